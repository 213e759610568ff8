"""The graph that the OpenVINO engine compiles, as OpenVINO's own two files."""

import tempfile
from pathlib import Path

from optimizer.engine import openvino
from optimizer.export.artifacts.archive import zipped
from optimizer.export.artifacts.source import ArtifactSource
from optimizer.recipe import PRECISIONS


def write_openvino(source: ArtifactSource) -> bytes:
    """The graph that the OpenVINO engine compiles, weights, activation ranges and all."""
    build = source.build or openvino.prepare(source.module, source.card.input_shape)
    runner = build(source.compressed, source.calibration, threads=source.threads, batch=1)
    assert runner.memory_probe is not None
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        runner.memory_probe(folder)
        files = {name: (Path(folder) / name).read_bytes() for name in ("model.xml", "model.bin")}
    precision = source.compressed.recipe.quantize.precision
    loading = (
        "import openvino\n"
        f'model = openvino.compile_model("model.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "{precision}"}})\n'
        f"logits = model([images])[0]  # images: float32 {[1, *source.card.input_shape]}"
    )
    hint = (
        "Without the float32 hint OpenVINO computes in bfloat16 on CPUs that can, and answers differ."
        if precision == "f32"
        else f"The hint has OpenVINO compute in {PRECISIONS[precision]}, as this recipe does: with "
        "another, or on a CPU without instructions for it, answers differ."
    )
    return zipped(source, files, loading, (*runner.execution.simulated, hint))
