"""What really ran: each layer's precision and kernel, and the time of each operation."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from optimizer.records.encoding import LATER


@dataclass(frozen=True, slots=True)
class LayerExecution:
    """How the engine really ran one layer, read off its executed graph.

    ``others`` are the precisions of a layer's other calls, where these differ from that of its first.
    """

    name: str
    precision: str
    kernel: str
    others: tuple[str, ...] = ()
    skips_zeros: bool = False

    @property
    def precisions(self) -> tuple[str, ...]:
        """Every precision that it ran in."""
        return (self.precision, *self.others)


LATER[LayerExecution] = {"precision": ("f32", {}), "others": ((), {}), "skips_zeros": (False, {})}


@dataclass(frozen=True, slots=True)
class Execution:
    """What ran, layer by layer, and in words what was only simulated. ``fallback``: why torch's own sparse
    matrices stood in for the sparse engine's kernels; empty where they didn't."""

    layers: tuple[LayerExecution, ...]
    simulated: tuple[str, ...]
    fallback: str = ""

    @property
    def precisions(self) -> dict[str, int]:
        """Layers by the precisions they ran in."""
        return dict(Counter(" and ".join(layer.precisions) for layer in self.layers))


Role = Literal["layer", "conversion", "between", "other"]


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One operation of an executed graph: how it ran, and nanoseconds a call, one sample a profile.

    ``layers`` are those that it is where ``role`` is ``layer`` (several may run as one kernel); ``name`` is
    theirs, else its own. A ``conversion`` is what a change of precision or layout adds: re-quantization,
    reorders. ``between`` is what a call takes beside its operations, so that the rows add up to it, and
    ``other`` all the rest. ``kernel`` is the engine's own word.
    """

    name: str
    role: Role
    precision: str
    kernel: str
    times_ns: tuple[int, ...]
    layers: tuple[str, ...] = ()
    skips_zeros: bool = False

    @classmethod
    def of_layers(
        cls, layers: Iterable[str], precision: str, kernel: str, time_ns: int, skips_zeros: bool = False
    ) -> "KernelTime":
        """One sample of a kernel that is these layers."""
        names = tuple(layers)
        return cls(" + ".join(names), "layer", precision, kernel, (time_ns,), names, skips_zeros)

    @classmethod
    def between_operations(cls, time_ns: int, what: str = "scheduling, and the call itself") -> "KernelTime":
        """What a call takes beside its operations, and what that is."""
        return cls("between operations", "between", "", what, (max(0, time_ns),))
