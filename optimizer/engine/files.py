"""Networks of files, run as they are by OpenVINO or ONNX Runtime: all their outputs, the tensors inside, and
which kernels ran. Nothing is converted to torch, so what torch has no counterpart for runs too.
"""

from collections.abc import Callable

from optimizer.engine import files_onnxruntime, files_openvino
from optimizer.engine.opened import Network, Opened
from optimizer.errors import InputError

ENGINES: dict[str, Callable[[Network, tuple[int, ...], int, int], Opened]] = {
    "openvino": files_openvino.opened,
    "onnxruntime": files_onnxruntime.opened,
}


def open_network(network: Network, engine: str, shape: tuple[int, ...], threads: int, batch: int) -> Opened:
    """Compile for images ``[C, H, W]``. Raises InputError for a network that can't be run on them, or not by
    this engine, WorkError where a module can't be converted."""
    if engine not in ENGINES:
        raise InputError(f"files are run by {' or '.join(ENGINES)}, not by {engine!r}: give one of these")
    return ENGINES[engine](network, shape, threads, batch)
