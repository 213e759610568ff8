"""Every engine: what executes a model."""

from dataclasses import dataclass

from optimizer.methods.entries import Entry, by_name

DEFAULT_ENGINE = "openvino"
REFERENCE_ENGINE = "torch"
"""What *Latency* shows beside every engine."""


@dataclass(frozen=True, slots=True)
class EngineInfo(Entry):
    """An engine. ``code`` names an :class:`optimizer.engine.base.Engine`, or is one.

    ``help`` is one short phrase on what is special about it. ``int8``: it has integer kernels. ``streams``:
    it works on several requests at once. ``skips_zeros``: it decides layer by layer whether zeros are
    skipped. ``fallback`` says what takes the place of its kernels where it can't have them. ``repeat`` is the
    command of the engine's own instrument that times an exported file as we do, with ``{threads}``,
    ``{batch}`` and ``{precision}`` to be filled in.
    """

    int8: bool = False
    streams: bool = False
    skips_zeros: bool = False
    fallback: str = ""
    repeat: str = ""


ENGINES: dict[str, EngineInfo] = by_name(
    EngineInfo(
        "openvino",
        "OpenVINO",
        "int8 where weights and activations have 8 bits; zeros take as long",
        "optimizer.engine.openvino:ENGINE",
        int8=True,
        streams=True,
        repeat="benchmark_app -m model.xml -d CPU -api sync -nstreams 1 -nthreads {threads} -b {batch} "
        "-hint none -infer_precision {precision} -t 10",
    ),
    EngineInfo(
        "onnxruntime",
        "ONNX Runtime",
        "int8 by its own kernels; zeros take as long",
        "optimizer.engine.onnxruntime:ENGINE",
        int8=True,
    ),
    EngineInfo(
        "sparse",
        "sparse kernels",
        "skips zeros, layer by layer where that is faster; float32",
        "optimizer.engine.sparse:ENGINE",
        skips_zeros=True,
        fallback="No sparse kernels here, so torch's CSR takes their place",
    ),
    EngineInfo(
        "compile",
        "torch.compile",
        "kernels compiled for this network, in up to a minute; int8 only simulated",
        "optimizer.engine.compile:ENGINE",
    ),
    EngineInfo(
        "torch",
        "torch eager",
        "the reference; int8 only simulated; zeros take as long",
        "optimizer.engine.torch:ENGINE",
    ),
)


def use_another(name: str) -> str:
    """What to do where that engine can't run a model, as a sentence. Whether another one than torch can is
    only known once it has tried."""
    *others, last = [other for other in ENGINES if other not in (name, REFERENCE_ENGINE)]
    return (
        f"Use engine {REFERENCE_ENGINE}, which runs any model; {', '.join(others)} or {last} may run it too."
    )


def engine_info(name: str) -> EngineInfo:
    """The entry of that name. Of one that is not here, as stored results may have, only the name is known."""
    return ENGINES.get(name, EngineInfo(name, name))
