"""Which layers two networks both have, and what these give, clipped alike."""

import difflib
from collections.abc import Sequence

from optimizer.engine.opened import Answer, InnerLayer


def clipped(answer: Answer, clips: Sequence[tuple[float, float] | None]) -> Answer:
    """With each tensor clipped as it is in either network."""
    return lambda images: [
        one if clip is None else one.clip(*clip) for one, clip in zip(answer(images), clips, strict=True)
    ]


def matching(a: Sequence[InnerLayer], b: Sequence[InnerLayer]) -> list[tuple[InnerLayer, InnerLayer]]:
    """The layers that both have: those of the same name and shapes, and of those left the longest common
    sequences of shapes, in A's order."""
    named = {layer.name: layer for layer in b}
    found = {
        layer.name: named[layer.name]
        for layer in a
        if layer.name in named and _shapes_of(layer) == _shapes_of(named[layer.name])
    }
    taken = {layer.name for layer in found.values()}
    left = [layer for layer in a if layer.name not in found]
    others = [layer for layer in b if layer.name not in taken]
    blocks = difflib.SequenceMatcher(
        None, [*map(_shapes_of, left)], [*map(_shapes_of, others)], autojunk=False
    ).get_matching_blocks()
    for block in blocks:
        for offset in range(block.size):
            found[left[block.a + offset].name] = others[block.b + offset]
    return [(layer, found[layer.name]) for layer in a if layer.name in found]


def _shapes_of(layer: InnerLayer) -> tuple[object, ...]:
    return layer.kind, layer.weight, layer.shape
