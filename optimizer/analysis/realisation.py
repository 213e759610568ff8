"""What the kernels really did, by what an engine says that it executed."""

from optimizer.analysis.labels import Labelled
from optimizer.records import Execution

INT8_PRECISIONS = frozenset(("i8", "u8", "int8", "uint8"))
HALF_PRECISIONS = frozenset(("f16", "bf16", "float16", "bfloat16"))
FLOAT32 = frozenset(("f32", "float32"))
FALLBACK = "torch CSR"
"""What skips zeros where the sparse engine has no kernels."""


class Realisation(Labelled):
    """What a network's kernels did: the most compressed thing that any layer did."""

    DENSE = "dense fp32"
    INT8 = "int8 kernels"
    SPARSE = "sparse kernels"
    SHRUNK = "channels removed"
    HALF = "half-precision kernels"
    UNKNOWN = "unknown kernels"


def realisation(execution: Execution, shrunk: bool) -> Realisation:
    """``shrunk``: channels were removed from the network, which its kernels don't show."""
    precisions = {one.lower() for layer in execution.layers for one in layer.precisions}
    if skipping(execution):
        return Realisation.SPARSE
    if precisions & INT8_PRECISIONS:
        return Realisation.INT8
    if precisions & HALF_PRECISIONS:
        return Realisation.HALF
    if not precisions <= FLOAT32:
        return Realisation.UNKNOWN
    return Realisation.SHRUNK if shrunk else Realisation.DENSE


def ran(kind: Realisation, fallback: str) -> str:
    """In words, also where kernels of ours were not there, for the reason ``fallback``."""
    return FALLBACK if fallback and kind is Realisation.SPARSE else kind.label


def skipping(execution: Execution) -> tuple[str, ...]:
    """The layers, in the order of the network, whose kernels skip zeros."""
    return tuple(layer.name for layer in execution.layers if layer.skips_zeros)
