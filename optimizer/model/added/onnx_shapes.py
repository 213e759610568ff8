"""ONNX operators that look at shapes, or move values about: more of :data:`OPERATORS`."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from optimizer.model.added.onnx_operators import Attributes, UnsupportedError, operator, word


@operator("Shape")
def _shape(a: Attributes, x: Any) -> Tensor:
    return torch.tensor(a.shapes[0][a.get("start", 0) : a.get("end")])


@operator("Reshape")
def _reshape(a: Attributes, x: Any, shape: Tensor) -> Any:
    have = [*a.shapes[0], *[0] * len(shape)]

    def written(shape: Tensor) -> list[int]:
        sides = [int(side) for side in shape]
        return (
            sides if a.get("allowzero") else [have[i] if side == 0 else side for i, side in enumerate(sides)]
        )

    one, two = written(shape), written(a.pairs[1] if a.pairs else shape)
    grows = next((axis for axis in range(len(one)) if one[axis] != two[axis]), None)
    batch = a.batches[0]
    if grows is None and batch is not None and batch < len(one) and not a.get("allowzero"):
        grows = batch if int(shape[batch]) == 0 else None  # a side that is taken over
    return _reshaped(a, x, one, grows)


@operator("Flatten")
def _flatten(a: Attributes, x: Any) -> Any:
    axis = a.get("axis", 1)
    axis = axis + a.rank if axis < 0 else axis
    return _reshaped(a, x, [math.prod(a.shapes[0][:axis]), math.prod(a.shapes[0][axis:])], None)


def _reshaped(a: Attributes, x: Any, sides: list[int], grows: int | None) -> Any:
    """With the axis left open on which images lie then: the one that ``grows`` in the file, or is -1 in a
    file for any number; else one that has as many values before it as there were before them."""
    batch = a.batches[0]
    if batch is None:
        return x.reshape(sides)
    whole = math.prod(a.shapes[0])
    open_axis = sides.index(-1) if -1 in sides else None
    sides = [side if side >= 0 else whole // -math.prod(sides) for side in sides]
    before = math.prod(a.shapes[0][:batch])
    places = [
        axis
        for axis in range(len(sides))
        if math.prod(sides[:axis]) <= before <= math.prod(sides[: axis + 1])
        and before % math.prod(sides[:axis]) == 0
    ]
    if grows is None:
        if not places:
            raise UnsupportedError(f"a shape {sides} that mixes images")
        sure = open_axis is not None and (open_axis in places or a["any_batch"])
        grows = open_axis if sure and open_axis is not None else places[0]
        if not a["any_batch"] and batch in places and sides[batch] == 1:  # as a file for one image says it
            grows = batch
    if grows == batch == 0 and len(sides) == 2 and sides[0] == a.shapes[0][0]:
        return x.flatten(1)  # says no width, so that channels can be removed before it
    sides[grows] = -1
    return x.reshape(sides)


@operator("Squeeze")
def _squeeze(a: Attributes, x: Any, axes: Tensor | None = None) -> Any:
    chosen = a.ints("axes", axes)
    if chosen is None:
        chosen = [axis for axis, side in enumerate(a.shapes[0]) if side == 1]
    return x.squeeze(tuple(axis % a.rank for axis in chosen))


@operator("Unsqueeze")
def _unsqueeze(a: Attributes, x: Any, axes: Tensor | None = None) -> Any:
    chosen = a.ints("axes", axes) or []
    for axis in sorted(axis % (a.rank + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def _transpose(a: Attributes, x: Any) -> Any:
    return x.permute(*a.get("perm", range(a.rank)[::-1]))


@operator("Concat")
def _concat(a: Attributes, *several: Any) -> Any:
    axis = a["axis"] % a.rank
    grown = [(one, batch) for one, batch in zip(several, a.batches, strict=True) if batch is not None]
    if grown and grown[0][1] != axis:  # what is the same for each image, as often as there are
        first, batch = grown[0]
        several = tuple(
            one.expand([first.size(batch) if place == batch else -1 for place in range(a.rank)])
            if other is None
            else one
            for one, other in zip(several, a.batches, strict=True)
        )
    return torch.cat(several, axis)


@operator("Split")
def _split(a: Attributes, x: Any, sizes: Tensor | None = None) -> Any:
    axis = a.get("axis", 0)
    parts = a.ints("split", sizes)
    if parts is None:
        each = -(-a.shapes[0][axis] // a.outputs)
        parts = [min(each, a.shapes[0][axis] - each * number) for number in range(a.outputs)]
    begins = [sum(parts[:number]) for number in range(len(parts))]
    return tuple(x.narrow(axis, begin, size) for begin, size in zip(begins, parts, strict=True))


@operator("Slice")
def _slice(a: Attributes, x: Any, *given: Tensor | None) -> Any:
    starts, ends, axes, steps = [*given, *[None] * 4][:4]
    begin, end = a.ints("starts", starts) or [], a.ints("ends", ends) or []
    chosen = a.ints("axes", axes) or list(range(len(begin)))
    for axis, first, last, step in zip(
        chosen, begin, end, a.ints("steps", steps) or [1] * len(begin), strict=True
    ):
        inside = range(a.shapes[0][axis])[slice(first, last if abs(last) < 2**31 else None, step)]
        if step > 0:
            x = x[(slice(None),) * (axis % a.rank) + (slice(inside.start, inside.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(inside)))
    return x


def _from_zero(a: Attributes, indices: Any, axis: int) -> Any:
    """Indices of which negative ones count from the end of an axis."""
    return torch.where(indices < 0, indices + a.shapes[0][axis], indices).long()


@operator("Gather")
def _gather(a: Attributes, x: Any, indices: Tensor) -> Any:
    if not isinstance(indices, Tensor):
        raise UnsupportedError("its indices depend on the image")
    axis = a.get("axis", 0) % a.rank
    chosen = _from_zero(a, indices, axis)
    if chosen.ndim == 0:
        return x.select(axis, int(chosen))
    taken = x.index_select(axis, chosen.reshape(-1))
    return taken if chosen.ndim == 1 else taken.unflatten(axis, tuple(chosen.shape))


@operator("GatherElements")
def _gather_elements(a: Attributes, x: Any, indices: Any) -> Any:
    axis = a.get("axis", 0) % a.rank
    return torch.gather(x, axis, _from_zero(a, indices, axis))


@operator("GatherND")
def _gather_nd(a: Attributes, x: Any, indices: Tensor) -> Any:
    if a.get("batch_dims") or not isinstance(indices, Tensor):
        raise UnsupportedError("axes in common, or indices that depend on the image")
    return x[tuple(indices.long().unbind(-1))]


@operator("GridSample")
def _grid_sample(a: Attributes, x: Any, grid: Any) -> Any:
    mode = word(a, "mode", "linear").removeprefix("bi")
    names = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
    return F.grid_sample(
        x, grid, names[mode], word(a, "padding_mode", "zeros"), bool(a.get("align_corners", 0))
    )


@operator("Trilu")
def _triangle(a: Attributes, x: Any, diagonal: Tensor | None = None) -> Any:
    number = 0 if diagonal is None else int(diagonal)
    return torch.triu(x, number) if a.get("upper", 1) else torch.tril(x, number)


@operator("CumSum")
def _running_sum(a: Attributes, x: Any, axis: Tensor) -> Any:
    if a.get("exclusive") or a.get("reverse"):
        raise UnsupportedError("a sum that leaves out its own value, or runs backwards")
    return torch.cumsum(x, int(axis))


@operator("Expand")
def _expand(a: Attributes, x: Any, shape: Tensor) -> Any:
    wanted = list(torch.broadcast_shapes(a.shapes[0], tuple(int(side) for side in shape)))
    if a.batches[0] is not None:
        wanted[len(wanted) - a.rank + a.batches[0]] = -1
    return x.expand(wanted)


@operator("Tile")
def _tile(a: Attributes, x: Any, repeats: Tensor) -> Any:
    return x.repeat([int(one) for one in repeats])


@operator("ScatterND")
def _scatter(a: Attributes, x: Any, indices: Tensor, updates: Any) -> Any:
    if word(a, "reduction", "none") != "none" or not isinstance(indices, Tensor):
        raise UnsupportedError("a reduction, or indices that depend on the image")
    return torch.index_put(x, tuple(indices.unbind(-1)), updates)


@operator("ScatterElements")
def _scatter_elements(a: Attributes, x: Any, indices: Any, updates: Any) -> Any:
    if word(a, "reduction", "none") != "none":
        raise UnsupportedError("a reduction")
    axis = a.get("axis", 0) % a.rank
    return torch.scatter(x, axis, _from_zero(a, indices, axis), updates)


@operator("Size")
def _size(a: Attributes, x: Any) -> Tensor:
    return torch.tensor(math.prod(a.shapes[0]))


@operator("ConstantOfShape")
def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    sides = [int(side) for side in shape]
    value = a.get("value", torch.zeros(1))
    found: Tensor = value.reshape(()).expand(sides)
    return found  # no memory is taken, however large


@operator("Range")
def _range(a: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


@operator("DepthToSpace")
def _depth_to_space(a: Attributes, x: Any) -> Any:
    if word(a, "mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, a["blocksize"])
    block, (_, channels, height, width) = a["blocksize"], a.shapes[0]
    x = x.reshape(-1, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(-1, channels // block**2, height * block, width * block)


@operator("SpaceToDepth")
def _space_to_depth(a: Attributes, x: Any) -> Any:
    block, (_, channels, height, width) = a["blocksize"], a.shapes[0]
    x = x.reshape(-1, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(-1, channels * block**2, height // block, width // block)


@operator("Pad")
def _pad(
    a: Attributes, x: Any, pads: Tensor | None = None, value: Tensor | None = None, axes: Any = None
) -> Any:
    given = a.ints("pads", pads) or []
    chosen = [axis % a.rank for axis in a.ints("axes", axes) or range(len(given) // 2)]
    begin, end = dict(zip(chosen, given, strict=False)), dict(zip(chosen, given[len(chosen) :], strict=True))
    sides = [side for axis in reversed(range(a.rank)) for side in (begin.get(axis, 0), end.get(axis, 0))]
    while len(sides) > 2 and sides[-2:] == [0, 0]:
        sides = sides[:-2]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(
        word(a, "mode", "constant")
    )
    if mode is None:
        raise UnsupportedError(f"mode {word(a, 'mode', '')}")
    fill = float(a.get("value", 0)) if value is None else value.item()
    return F.pad(x, sides, mode, fill) if mode == "constant" else F.pad(x, sides, mode)
