"""A network of a file, as it is run here: all its outputs, and the tensors inside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from optimizer.engine.base import Array, Runner
from optimizer.errors import InputError, one_line
from optimizer.records import Part

Answer = Callable[[Array], list[Array]]
"""From images ``[batch, C, H, W]`` to one tensor of floats for each output."""


@dataclass(frozen=True)
class Network:
    """What can be run as it is: one of an ONNX file and an IR, as they were read and kept
    (:mod:`optimizer.model.added.files`), and a ``module`` whose batch norm is folded. Its ``parts`` are the
    outputs that lie one behind the other in what it gives, where those are several."""

    onnx: Path | None = None
    ir: Path | None = None
    module: nn.Module | None = None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class InnerLayer:
    """A convolution or product with weights: its operation's ``kind``, the shape of its ``weight`` (of a
    product, sorted: it may be transposed), and that of what it gives for one image, its bias added.

    ``clip`` are the ends of a ReLU, or another clip, that follows. Integer kernels take it with them: what
    they give is to be held against what another network gives once that is clipped too."""

    name: str
    kind: str
    weight: tuple[int, ...]
    shape: tuple[int, ...]
    clip: tuple[float, float] | None = None


@dataclass(frozen=True)
class Opened:
    """A network compiled for images of one shape. ``runner`` is what is timed; ``answer`` gives every output
    of the same compiled network. ``inside`` compiles it anew, to give what layers of these names give."""

    outputs: tuple[Part, ...]
    layers: tuple[InnerLayer, ...]
    runner: Runner
    answer: Answer
    inside: Callable[[Sequence[str]], Answer]


def short(error: Exception) -> str:
    return one_line(error)[-300:]


def check_static(outputs: dict[str, bool]) -> None:
    for name, rows in outputs.items():
        if not rows:
            raise InputError(
                f"its output {name[:60]!r} does not have one row of a fixed size for each image: export it "
                "without what follows the network, such as the selection of boxes"
            )
