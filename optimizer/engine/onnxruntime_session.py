"""ONNX Runtime's sessions. Without torch: a fresh process that loads a graph needs none, and importing it
takes a second or more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizer.engine.base import Array, Load


def session_of(
    model: bytes | str,
    batch: int,
    threads: int,
    folded: bool,
    optimised: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """A session for batches of one size, so that shapes are known when the graph is optimised. ``optimised``
    and ``profile`` are where that graph and its times are to be written.

    ``folded``: a DequantizeLinear of constants is done when the session is made. By itself ONNX Runtime
    leaves it to every call, for kernels that take it with them, and without those it takes longer than the
    product.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Threads of a session that waits would take the cores of the one that runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1" if folded else "0")
    options.add_free_dimension_override_by_name("batch", batch)
    if optimised:
        options.optimized_model_filepath = str(optimised)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # A product and a sum made one have no int8 kernel for sums in float32, as transformers have them.
    without = [] if folded else ["MatMulAddFusion"]
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=without
    )


def save_content(content: bytes, folded: bool, folder: str) -> None:
    (Path(folder) / "model.onnx").write_bytes(content)
    (Path(folder) / "folded").write_text("1" if folded else "")


def saved() -> Load:
    """The loader of what a runner's ``memory_probe`` writes."""
    import onnxruntime  # noqa: F401

    def load(folder: Path, threads: int, shape: tuple[int, ...]) -> Callable[[Array], Array]:
        folded = bool((folder / "folded").read_text())
        session = session_of(str(folder / "model.onnx"), shape[0], threads, folded)
        return lambda images: session.run(None, {"images": images})[0]

    return load
