"""The lossless coding of one compressed weight: k bits a surviving weight, and which weights survive.

One stream of bits, the lowest bit of every number first and at the lowest free bit of its byte, in one of
three codings, row by row (a row is all that belongs to one output channel):

- ``dense``: the pattern of every weight.
- ``bitmap``: one bit a weight, 1 where it is not zero; then the patterns of those.
- ``index``: for each row where its non-zero weights start among all of them, and last their number; then the
  column of each; then its pattern.

A pattern has k bits. At 2 to 8 it is the code on the integer grid: two's complement where no zero point is
kept with it, else unsigned and less the zero point of its row. At 16 it is an IEEE half, at 32 a float32.

Every value comes back bit for bit, except that zeros have no sign: pruning leaves -0.0 where a negative
weight stood, and what comes back is 0.0, in every coding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optimizer.compression.apply import CompressedWeight
from optimizer.compression.quantize.grid import GROUP, Codes, spread
from optimizer.errors import InputError, unknown
from optimizer.recipe import WEIGHT_BITS

CODINGS = ("dense", "bitmap", "index")

_AT_A_TIME = 1 << 16
"""Numbers, a multiple of eight, that are packed at a time: what they need in between stays in the cache."""


@dataclass(frozen=True, slots=True)
class BitLayout:
    """What must be known to read a stream. ``nonzero`` weights of ``shape`` ``[out, ...]`` survive."""

    coding: str
    bits: int
    shape: tuple[int, ...]
    nonzero: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One weight. ``stream`` uint8 ``[bytes]``; at 8 bits or fewer ``scale`` float32 as in Codes and, for an
    asymmetric grid, ``zero_point`` uint8 in its shape."""

    layout: BitLayout
    stream: Tensor
    scale: Tensor | None
    zero_point: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes with scales and zero points, without the layout."""
        kept = [tensor for tensor in (self.stream, self.scale, self.zero_point) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def payload_bits(elements: int, rows: int, nonzero: int, bits: int) -> dict[str, int]:
    """Bits of the stream in each coding, for ``elements`` weights in ``rows`` rows, ``nonzero`` of them not
    zero, of ``bits`` bits each."""
    columns = elements // max(1, rows)
    return {
        "dense": elements * bits,
        "bitmap": elements + nonzero * bits,
        "index": nonzero * (bits + _bits_for(columns)) + (rows + 1) * _bits_for(nonzero + 1),
    }


def packed_bytes(weight: CompressedWeight, bits: int) -> tuple[str, int]:
    """The coding that :func:`pack` takes and the bytes it comes to, with scales and zero points, without
    packing. Raises InputError where ``bits`` need codes and there are none."""
    nonzero = weight.nonzero
    coding, cost = _cheapest(weight.values.numel(), weight.values.shape[0], nonzero, bits)
    overhead = 0
    if bits <= 8:
        grid = _grid_of(weight, bits)
        overhead = grid.scale.numel() * (4 if _signed(grid, bits) else 5)
    return coding, math.ceil(cost / 8) + overhead


def _cheapest(elements: int, rows: int, nonzero: int, bits: int) -> tuple[str, int]:
    costs = payload_bits(elements, rows, nonzero, bits)
    coding = min(costs, key=costs.__getitem__)
    return coding, costs[coding]


def _bits_for(values: int) -> int:
    """Bits that tell ``values`` values apart."""
    return max(1, (values - 1).bit_length())


def pack(weight: CompressedWeight, bits: int) -> Packed:
    """``weight`` in the coding that takes the fewest bits. Raises InputError when ``bits`` can't hold it."""
    patterns, zero_point = _patterns(weight, bits)
    survives = weight.values.reshape(-1).numpy() != 0
    nonzero = int(np.count_nonzero(survives))
    coding, _ = _cheapest(survives.size, weight.values.shape[0], nonzero, bits)
    layout = BitLayout(coding, bits, tuple(weight.values.shape), nonzero)
    stream = torch.from_numpy(_write(_sections(layout, patterns, survives)))
    scale = weight.codes.scale.contiguous() if weight.codes is not None else None
    return Packed(layout, stream, scale, zero_point)


def unpack(packed: Packed) -> Tensor | Codes:
    """What was packed: codes on their grid at 2 to 8 bits, else float32 values, in the weight's shape.

    Raises InputError for a stream that doesn't fit its layout. The shape is for the caller to check first: a
    few bytes in ``index`` coding can stand for any number of zeros.
    """
    layout = packed.layout
    _check(packed)
    patterns, survives = _read_sections(layout, packed.stream.numpy())
    if layout.bits == 32:
        return torch.from_numpy(patterns.view(np.float32)).reshape(layout.shape)
    if layout.bits == 16:
        halves = torch.from_numpy(patterns.astype(np.uint16).view(np.float16))
        return halves.float().reshape(layout.shape)
    codes = torch.from_numpy(patterns.astype(np.int16)).reshape(layout.shape)
    assert packed.scale is not None
    if packed.zero_point is None:
        sign = 1 << (layout.bits - 1)
        return Codes((codes ^ sign) - sign, packed.scale, torch.zeros_like(packed.scale, dtype=torch.int16))
    zero_point = packed.zero_point.to(torch.int16)
    kept = torch.from_numpy(survives).reshape(layout.shape)
    centred = (codes - spread(zero_point, kept.shape)) * kept
    return Codes(centred, packed.scale, zero_point)


def narrow(weight: CompressedWeight, bits: int) -> dict[str, Tensor]:
    """The weight dense, in the narrowest types that hold every value: ``""`` in its own shape (int8, uint8,
    float16 or float32) and at 8 bits or fewer ``".scale"`` float32 and, for an asymmetric grid,
    ``".zero_point"`` uint8. Raises InputError when ``bits`` can't hold it."""
    if bits == 32:
        return {"": weight.values.contiguous()}
    if bits == 16:
        return {"": _halves(weight.values)}
    codes, zero_point = _codes(weight, bits)
    tensors = {"": codes.to(torch.int8 if zero_point is None else torch.uint8)}
    tensors[".scale"] = _grid_of(weight, bits).scale
    if zero_point is not None:
        tensors[".zero_point"] = zero_point
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def widen(tensors: Mapping[str, Tensor]) -> Tensor:
    """The float32 values of what :func:`narrow` gave, bit for bit."""
    codes = tensors[""]
    if ".scale" not in tensors:
        return codes.float()
    centred = codes.to(torch.int16)
    if ".zero_point" in tensors:
        centred = centred - spread(tensors[".zero_point"], codes.shape)
    return centred * spread(tensors[".scale"], codes.shape)


# Patterns


def _patterns(weight: CompressedWeight, bits: int) -> tuple[np.ndarray, Tensor | None]:
    """The pattern of every weight, uint32 ``[elements]``, and the zero points to keep."""
    if bits == 32:
        values = weight.values.reshape(-1) + 0.0  # -0.0 + 0.0 is 0.0
        return values.numpy().view(np.uint32), None
    if bits == 16:
        values = _halves(weight.values).reshape(-1) + 0.0
        return values.numpy().view(np.uint16).astype(np.uint32), None
    codes, zero_point = _codes(weight, bits)
    return codes.reshape(-1).numpy().astype(np.uint32) & ((1 << bits) - 1), zero_point


def _halves(values: Tensor) -> Tensor:
    halves = values.half()
    if not torch.equal(halves.float().nan_to_num(), values.nan_to_num()):
        raise InputError("weights that are no halves can't be packed in 16 bits: use 32")
    return halves.contiguous()


def _codes(weight: CompressedWeight, bits: int) -> tuple[Tensor, Tensor | None]:
    """Integer codes, int16 in the weight's shape, and zero points uint8: None where codes are signed."""
    grid = _grid_of(weight, bits)
    if not torch.equal(grid.values, weight.values):
        raise InputError(f"values that are not those of their codes can't be packed in {bits} bits: use 32")
    if _signed(grid, bits):
        return grid.centred, None
    codes = grid.stored
    low, high = (int(extreme) for extreme in codes.aminmax())
    if low < 0 or high >= 1 << bits:
        raise InputError(f"codes from {low} to {high} don't fit in {bits} bits: use more bits")
    return codes, grid.zero_point.to(torch.uint8).contiguous()


def _signed(grid: Codes, bits: int) -> bool:
    """Whether codes are written in two's complement, without zero points: where none is needed."""
    if grid.centred.numel() == 0:
        return True
    low, high = (int(extreme) for extreme in grid.centred.aminmax())
    top = 1 << (bits - 1)
    return not grid.zero_point.any() and -top <= low and high < top


def _grid_of(weight: CompressedWeight, bits: int) -> Codes:
    if bits not in WEIGHT_BITS:
        raise unknown("weight bits", bits, WEIGHT_BITS)
    if weight.codes is None:
        raise InputError(f"a weight without codes on a grid can't be packed in {bits} bits: use 16 or 32")
    return weight.codes


# Sections of a stream


def _sections(layout: BitLayout, patterns: np.ndarray, survives: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """The numbers of a stream in order, each section with the width of its numbers in bits."""
    if layout.coding == "dense":
        return [(patterns, layout.bits)]
    if layout.coding == "bitmap":
        return [(survives, 1), (patterns[survives], layout.bits)]
    at = np.flatnonzero(survives)
    starts = np.searchsorted(at, np.arange(layout.rows + 1) * layout.columns)
    return [
        (starts, _bits_for(layout.nonzero + 1)),
        (at % max(1, layout.columns), _bits_for(layout.columns)),
        (patterns[at], layout.bits),
    ]


def _read_sections(layout: BitLayout, stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every weight's pattern, uint32 ``[elements]`` with 0 for those that don't survive, and who survives."""
    elements, nonzero = layout.elements, layout.nonzero
    if layout.coding == "dense":
        return _read(stream, 0, elements, layout.bits), np.ones(elements, bool)
    if layout.coding == "bitmap":
        survives = _read(stream, 0, elements, 1).astype(bool)
        if np.count_nonzero(survives) != nonzero:
            raise _damaged(f"its bitmap has {np.count_nonzero(survives)} weights instead of {nonzero}")
        at, start = np.flatnonzero(survives), elements
    else:
        at, start = _read_positions(layout, stream)
        survives = np.zeros(elements, bool)
        survives[at] = True
    patterns = np.zeros(elements, np.uint32)
    patterns[at] = _read(stream, start, nonzero, layout.bits)
    return patterns, survives


def _read_positions(layout: BitLayout, stream: np.ndarray) -> tuple[np.ndarray, int]:
    """Positions of the surviving weights among all, and the bit of the stream behind them."""
    nonzero, width = layout.nonzero, _bits_for(layout.nonzero + 1)
    starts = _read(stream, 0, layout.rows + 1, width).astype(np.int64)
    counts = np.diff(starts)
    if starts[0] != 0 or starts[-1] != nonzero or (counts < 0).any():
        raise _damaged("its rows don't start one after another")
    first = (layout.rows + 1) * width
    columns = _read(stream, first, nonzero, _bits_for(layout.columns)).astype(np.int64)
    at = np.repeat(np.arange(layout.rows), counts) * layout.columns + columns
    if (columns >= layout.columns).any() or (np.diff(at) <= 0).any():
        raise _damaged("its columns are out of order")
    return at, first + nonzero * _bits_for(layout.columns)


def _check(packed: Packed) -> None:
    layout, stream, scale, zero_point = packed.layout, packed.stream, packed.scale, packed.zero_point
    if layout.coding not in CODINGS:
        raise unknown("coding", layout.coding, CODINGS)
    if layout.bits not in WEIGHT_BITS:
        raise unknown("weight bits", layout.bits, WEIGHT_BITS)
    if not layout.shape or min(layout.shape) < 0 or not 0 <= layout.nonzero <= layout.elements:
        raise _damaged(f"{layout.nonzero} weights can't survive in a weight of shape {list(layout.shape)}")
    bits = payload_bits(layout.elements, layout.rows, layout.nonzero, layout.bits)[layout.coding]
    if stream.dtype != torch.uint8 or list(stream.shape) != [math.ceil(bits / 8)]:
        raise _damaged(f"{list(stream.shape)} {stream.dtype} instead of {math.ceil(bits / 8)} bytes")
    if (layout.bits <= 8) != (scale is not None) or (zero_point is not None and scale is None):
        raise _damaged(f"{layout.bits} bits {'with' if scale is not None else 'without'} scales")
    if scale is not None:
        check_grid(layout.shape, scale, zero_point)


def check_grid(shape: Sequence[int], scale: Tensor, zero_point: Tensor | None) -> None:
    """Raises InputError unless a scale, and a zero point in its shape, go with a weight of ``shape``."""
    groups = [shape[0], math.ceil(math.prod(shape[1:]) / GROUP)]
    fits = list(scale.shape) == groups or (
        len(scale.shape) == len(shape)
        and all(size in (1, whole) for size, whole in zip(scale.shape, shape, strict=True))
    )
    if scale.dtype != torch.float32 or not fits:
        raise _damaged(f"scales {list(scale.shape)} {scale.dtype} for a weight of shape {list(shape)}")
    if zero_point is not None and (zero_point.dtype != torch.uint8 or zero_point.shape != scale.shape):
        raise _damaged(f"zero points {list(zero_point.shape)} {zero_point.dtype} do not match the scales")


def _damaged(reason: str) -> InputError:
    return InputError(f"a packed weight is damaged ({reason}): write or download the file again")


# Bits


def _write(sections: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Sections one after another, without a gap; the last byte is filled with zeros."""
    total = sum(len(numbers) * width for numbers, width in sections)
    stream = np.zeros(math.ceil(total / 8) + 1, np.uint8)  # one more takes the last carry
    at = 0
    for numbers, width in sections:
        part = _pack_numbers(numbers, width)
        byte, shift = divmod(at, 8)
        stream[byte : byte + len(part)] |= part << shift
        if shift:
            stream[byte + 1 : byte + 1 + len(part)] |= part >> (8 - shift)
        at += len(numbers) * width
    return stream[:-1]


def _read(stream: np.ndarray, at: int, count: int, width: int) -> np.ndarray:
    """``count`` numbers of ``width`` bits from bit ``at`` on, uint32."""
    byte, shift = divmod(at, 8)
    size = math.ceil(count * width / 8)
    part = stream[byte : byte + size] >> shift
    if shift:
        behind = stream[byte + 1 : byte + 1 + size]
        part[: len(behind)] |= behind << (8 - shift)
    return _unpack_numbers(part, count, width)


def _pack_numbers(numbers: np.ndarray, width: int) -> np.ndarray:
    """Numbers of ``width`` bits (1 to 32) as bytes."""
    packed = np.zeros(math.ceil(len(numbers) * width / 8), np.uint8)
    for start in range(0, len(numbers), _AT_A_TIME):
        some = numbers[start : start + _AT_A_TIME].astype("<u4")
        bits = np.unpackbits(some.view(np.uint8).reshape(-1, 4), 1, width, "little")
        part = np.packbits(bits, bitorder="little")
        packed[start // 8 * width :][: len(part)] = part
    return packed


def _unpack_numbers(packed: np.ndarray, count: int, width: int) -> np.ndarray:
    """What :func:`_pack_numbers` packed, uint32; bits behind the last number are not looked at."""
    numbers = np.empty(count, "<u4")
    for start in range(0, count, _AT_A_TIME):
        some = numbers[start : start + _AT_A_TIME]
        bits = np.zeros((len(some), 32), np.uint8)
        part = packed[start // 8 * width :]
        bits[:, :width] = np.unpackbits(part, count=bits[:, :width].size, bitorder="little").reshape(
            -1, width
        )
        some[:] = np.packbits(bits, bitorder="little").view("<u4")
    return numbers
