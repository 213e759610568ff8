"""Weights that are really packed, read back, and counted against the sizes that are shown."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from small_models import Small
from torch import Tensor

from optimizer.compression.apply import CompressedWeight, compress_weights
from optimizer.compression.packing import (
    CODINGS,
    Packed,
    narrow,
    pack,
    packed_bytes,
    payload_bits,
    unpack,
    widen,
)
from optimizer.compression.quantize.grid import Codes
from optimizer.errors import InputError
from optimizer.measurement.size import size_of
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

RECIPES = [
    Recipe(),
    Recipe(PruneSpec(sparsity=0.5)),
    Recipe(PruneSpec(sparsity=0.98, allocation="uniform")),
    Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=16)),
    Recipe(quantize=QuantizeSpec(weight_bits=8)),
    Recipe(PruneSpec(sparsity=0.8), QuantizeSpec(weight_bits=4)),
    Recipe(PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=3, symmetric=False, granularity="tensor")),
    Recipe(PruneSpec(sparsity=0.95), QuantizeSpec(weight_bits=5, symmetric=False, range="mse")),
]


def made(values: Tensor, spec: QuantizeSpec) -> CompressedWeight:
    """A pruned weight (its zeros) rounded to nearest as ``spec`` says."""
    codes = None
    if spec.integer:
        codes = rounded(values, spec)
        values = codes.values
    elif spec.weight_bits == 16:
        values = values.half().float()
    return CompressedWeight(values, values != 0, codes, -1.0, spec)


def rounded(values: Tensor, spec: QuantizeSpec) -> Codes:
    rows = values.flatten(1) if spec.granularity == "channel" else values.reshape(1, -1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    first, last = 0, 2**spec.weight_bits - 1
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low, last = -high, 2 ** (spec.weight_bits - 1) - 1
        first = -last
    shape = [len(rows), *[1] * (values.dim() - 1)]
    scale = ((high - low) / (last - first)).reshape(shape)
    scale[scale == 0] = 1
    zero_point = torch.round(-low.reshape(shape) / scale) * (not spec.symmetric)
    codes = torch.round(values / scale + zero_point).clamp(first, last)
    return Codes((codes - zero_point).to(torch.int16), scale, zero_point.to(torch.int16))


def values_of(found: Tensor | Codes) -> Tensor:
    return found.values if isinstance(found, Codes) else found


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Bit for bit, zeros without their sign."""
    return torch.equal((found + 0.0).view(torch.int32), (expected + 0.0).view(torch.int32))


def check_round_trip(weight: CompressedWeight, bits: int) -> Packed:
    packed = pack(weight, bits)
    found = unpack(packed)
    assert same_bits(values_of(found), weight.values)
    assert not torch.signbit(values_of(found)[weight.values == 0]).any()
    if weight.codes is not None:
        assert isinstance(found, Codes)
        assert torch.equal(found.centred, weight.codes.centred)
        assert torch.equal(found.zero_point, weight.codes.zero_point)
    return packed


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, QuantizeSpec]:
    shape = draw(st.sampled_from([(1, 1), (1, 9), (7, 1), (3, 2, 3, 3), (16, 40), (5, 1, 3, 3), (64, 3)]))
    spec = QuantizeSpec(
        weight_bits=draw(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16, 32])),
        symmetric=draw(st.booleans()),
        granularity=draw(st.sampled_from(["tensor", "channel"])),
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kept = torch.rand(shape, generator=random) < draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0]))
    if draw(st.booleans()):
        kept[:: draw(st.integers(1, 3))] = False  # rows without a weight
    scale = draw(st.sampled_from([1e-6, 1.0, 300.0]))
    return torch.randn(shape, generator=random) * scale * kept, spec


@pytest.mark.slow
@given(weights())
@example((torch.zeros(4, 5), QuantizeSpec(weight_bits=3, symmetric=False)))
@example((-torch.zeros(4, 5), QuantizeSpec()))
@example((torch.tensor([[-1.5]]), QuantizeSpec(weight_bits=2)))
@example((torch.tensor([[1.0, 0.5, 0.0]]), QuantizeSpec(weight_bits=4, symmetric=False)))
@example((torch.tensor([[float("nan"), float("inf"), -0.0, 1e-40]]), QuantizeSpec()))
def test_a_weight_comes_back_bit_for_bit(case: tuple[Tensor, QuantizeSpec]) -> None:
    values, spec = case
    weight = made(values, spec)
    packed = check_round_trip(weight, spec.weight_bits)
    assert (packed.layout.coding, packed.nbytes) == packed_bytes(weight, spec.weight_bits)
    costs = payload_bits(values.numel(), len(values), packed.layout.nonzero, spec.weight_bits)
    assert costs[packed.layout.coding] == min(costs.values())
    assert packed.stream.numel() == -(-min(costs.values()) // 8)


@given(weights())
def test_narrow_types_hold_every_bit_signs_of_zeros_too(case: tuple[Tensor, QuantizeSpec]) -> None:
    values, spec = case
    weight = made(values, spec)
    found = widen(narrow(weight, spec.weight_bits))
    assert torch.equal(found.view(torch.int32), weight.values.view(torch.int32))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.describe())
@pytest.mark.parametrize("name", ["cnn", "encoder"])
def test_packed_bytes_are_the_size_that_is_shown(small: Small, name: str, recipe: Recipe) -> None:
    bits = recipe.quantize.weight_bits
    weights = compress_weights(small(name), recipe)
    total = size_of(small(name), weights).packed_bytes
    packed = [check_round_trip(weight, bits) for weight in weights.values()]
    model = small(name)
    layers = {id(layer.weight) for layer in walk(model)}
    others = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in layers]
    found = sum(each.nbytes for each in packed) + sum(t.numel() * t.element_size() for t in others)
    # A layer pruned whole needs no zero points, whatever the grid.
    spared = (
        0
        if recipe.quantize.symmetric
        else sum(each.scale.numel() for each in packed if each.scale is not None and each.zero_point is None)
    )
    assert found in (total, total - spared)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16, 32])
def test_each_coding_is_chosen_where_it_is_cheapest(bits: int) -> None:
    random = torch.Generator().manual_seed(0)
    dice = torch.rand(64, 512, generator=random)
    codings = []
    for share in (1.0, 0.4, 0.01):
        signs = torch.where(dice < share / 2, 1, -1) * (dice < share)
        codes = Codes(signs.to(torch.int16), torch.ones(64, 1), torch.zeros(64, 1, dtype=torch.int16))
        weight = CompressedWeight(codes.values, signs != 0, codes if bits <= 8 else None, -1.0)
        codings.append(check_round_trip(weight, bits).layout.coding)
    assert codings == ["dense", "bitmap", "index"]


def test_the_layout_in_bits() -> None:
    """Worked by hand: anyone can write a reader from the description alone."""
    values = torch.tensor([[0.0] * 16, [0.0, 0.0, 0.0, 3.0] + [0.0] * 11 + [-1.0], [0.0] * 16])
    codes = Codes(values.to(torch.int16), torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int16))
    packed = pack(CompressedWeight(values, values != 0, codes, -1.0), 3)
    starts, columns, patterns = [0, 0, 2, 2], [3, 15], [0b011, 0b111]
    bits = [number >> i & 1 for number in starts for i in range(2)]
    bits += [number >> i & 1 for number in columns for i in range(4)]
    bits += [number >> i & 1 for number in patterns for i in range(3)]
    assert packed.layout.coding == "index"
    assert packed.stream.tolist() == np.packbits(bits, bitorder="little").tolist()


def test_a_slice_of_another_tensor_is_packed() -> None:
    values = torch.randn(9, 6, generator=torch.Generator().manual_seed(1)).t()[:, ::2]
    for bits in (4, 16, 32):
        check_round_trip(made(values, QuantizeSpec(weight_bits=bits)), bits)


def test_four_million_weights_pack_in_about_a_second() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(2000, 2000, generator=random)
    values *= torch.rand(values.shape, generator=random) < 0.5
    weight = made(values, QuantizeSpec(weight_bits=5, symmetric=False))
    start = time.process_time()
    packed = pack(weight, 5)
    unpack(packed)
    assert time.process_time() - start < 5  # a loop over weights takes longer than that


@pytest.mark.parametrize(
    ("bits", "words"),
    [(4, "codes from .* don't fit in 4 bits"), (16, "can't be packed in 16 bits"), (9, "use one of 2, 3")],
)
def test_bits_that_lose_something_are_refused(bits: int, words: str) -> None:
    values = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    weight = made(values, QuantizeSpec(weight_bits=8, symmetric=False))
    for write in (pack, narrow):
        with pytest.raises(InputError, match=words):
            write(weight, bits)


def test_codes_are_needed_for_a_grid() -> None:
    with pytest.raises(InputError, match="without codes"):
        pack(made(torch.ones(2, 2), QuantizeSpec()), 8)


def test_codes_and_values_must_agree() -> None:
    weight = made(torch.ones(2, 2), QuantizeSpec(weight_bits=8))
    with pytest.raises(InputError, match="not those of their codes"):
        narrow(replace(weight, values=weight.values * 1.01), 8)


def packed_as(coding: str) -> Packed:
    share = {"dense": 1.0, "bitmap": 0.5, "index": 0.02}[coding]
    random = torch.Generator().manual_seed(4)
    values = torch.randn(16, 100, generator=random)
    values *= torch.rand(values.shape, generator=random) < share
    return pack(made(values, QuantizeSpec(weight_bits=4, symmetric=False)), 4)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_stream_that_does_not_fit_is_refused(coding: str) -> None:
    packed = packed_as(coding)
    layout = packed.layout
    assert layout.coding == coding
    assert packed.scale is not None
    broken = [
        replace(packed, stream=packed.stream[:-1]),
        replace(packed, stream=packed.stream.to(torch.int8)),
        replace(packed, layout=replace(layout, coding="huffman")),
        replace(packed, layout=replace(layout, bits=9)),
        replace(packed, layout=replace(layout, bits=16)),
        replace(packed, layout=replace(layout, shape=(17, 100))),
        replace(packed, layout=replace(layout, shape=())),
        replace(packed, layout=replace(layout, shape=(16, -100))),
        replace(packed, layout=replace(layout, nonzero=-1)),
        replace(packed, layout=replace(layout, nonzero=1601)),
        replace(packed, scale=None),
        replace(packed, scale=packed.scale[:5]),
        replace(packed, scale=packed.scale.double()),
        replace(packed, zero_point=torch.zeros(1, dtype=torch.uint8)),
    ]
    for wrong in broken:
        with pytest.raises(InputError):
            unpack(wrong)


@pytest.mark.slow
@given(st.sampled_from(CODINGS), st.data())
def test_a_stream_of_noise_is_refused_or_read(coding: str, data: st.DataObject) -> None:
    """Whatever the bytes, no other error, and nothing outside the weight is written to."""
    packed = packed_as(coding)
    stream = packed.stream.clone()
    for _ in range(data.draw(st.integers(1, 20))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpack(replace(packed, stream=stream))
    except InputError:
        return
    assert isinstance(found, Codes)
    assert found.centred.shape == packed.layout.shape
