"""Sizes against files that are really written, and bit streams that are really packed and read back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optimizer.compression.apply import CompressedWeight, compress_weights
from optimizer.compression.quantize.grid import Codes
from optimizer.measurement.size import packed_bytes, size_of
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

Small = Callable[[str], nn.Module]

RECIPES = [
    Recipe(),
    Recipe(PruneSpec(sparsity=0.5)),
    Recipe(PruneSpec(sparsity=0.98, allocation="uniform")),
    Recipe(quantize=QuantizeSpec(weight_bits=16)),
    Recipe(quantize=QuantizeSpec(weight_bits=8)),
    Recipe(PruneSpec(sparsity=0.8), QuantizeSpec(weight_bits=4)),
    Recipe(PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=3, symmetric=False, granularity="tensor")),
    Recipe(quantize=QuantizeSpec(weight_bits=8, symmetric=False, range="mse")),
]


def write(bits: list[int], value: int, width: int) -> None:
    bits.extend(value >> position & 1 for position in range(width))


def read(bits: list[int], at: int, width: int) -> int:
    return sum(bits[at + position] << position for position in range(width))


def width_of(count: int) -> int:
    """The fewest bits, at least one, that tell ``count`` values apart."""
    width = 1
    while 2**width < count:
        width += 1
    return width


def pack(rows: list[list[int]], width: int, coding: str) -> list[int]:
    """One bit stream for codes of ``width`` bits, 0 where a weight is zero."""
    bits: list[int] = []
    if coding == "index":
        nonzero = sum(code != 0 for row in rows for code in row)
        start = 0
        for row in rows:
            write(bits, start, width_of(nonzero + 1))
            start += sum(code != 0 for code in row)
        write(bits, start, width_of(nonzero + 1))
    for row in rows:
        for column, code in enumerate(row):
            if coding == "bitmap":
                write(bits, int(code != 0), 1)
            if coding == "index" and code:
                write(bits, column, width_of(len(row)))
            if coding == "dense" or code:
                write(bits, code, width)
    return bits


def unpack(bits: list[int], shape: tuple[int, int], width: int, coding: str) -> list[list[int]]:
    """Nothing but the stream, the shape, the width and the coding is needed to read it."""
    rows, columns = shape
    found = [[0] * columns for _ in range(rows)]
    if coding == "index":
        for offset in range(
            1, 10_000
        ):  # the number of non-zero weights, and so a start's width, from the end
            starts = width_of(offset)
            head = (rows + 1) * starts
            if head + (offset - 1) * (width + width_of(columns)) == len(bits):
                break
        ends = [read(bits, index * starts, starts) for index in range(rows + 1)]
        for row in range(rows):
            for item in range(ends[row], ends[row + 1]):
                at = head + item * (width + width_of(columns))
                column = read(bits, at, width_of(columns))
                found[row][column] = read(bits, at + width_of(columns), width)
        return found
    at = 0
    for row in found:
        for column in range(columns):
            present = coding == "dense" or read(bits, at, 1)
            at += coding == "bitmap"
            if present:
                row[column] = read(bits, at, width)
                at += width
    return found


@st.composite
def sparse_codes(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Codes of 2 to 8 bits, from all zero to all non-zero."""
    width = draw(st.integers(2, 8))
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    filled = draw(st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0]))
    random = draw(st.randoms(use_true_random=False))
    code = st.integers(1, 2**width - 1)
    one = draw(code)
    return [[one if random.random() < filled else 0 for _ in range(columns)] for _ in range(rows)], width


@pytest.mark.slow
@given(sparse_codes())
@example(([[5] + [0] * 99] * 3 + [[0] * 100] * 4, 4))  # 8 starts of 2 bits and 3 x (7 + 4): 49 bits, 7 bytes
def test_packed_bytes_are_those_of_the_shortest_of_three_real_bit_streams(
    codes: tuple[list[list[int]], int],
) -> None:
    rows, width = codes
    shape = (len(rows), len(rows[0]))
    streams = {coding: pack(rows, width, coding) for coding in ("dense", "bitmap", "index")}
    for coding, stream in streams.items():
        assert unpack(stream, shape, width, coding) == rows
    scale = torch.ones(shape[0], 1)
    centred = torch.tensor(rows, dtype=torch.int16)
    held = Codes(centred, scale, torch.full_like(scale, 1, dtype=torch.int16))
    weight = CompressedWeight(held.values, centred != 0, held, -1.0)
    coding, size = packed_bytes(weight, width)
    shortest = min(len(stream) for stream in streams.values())
    assert len(streams[coding]) == shortest
    assert size == -(-shortest // 8) + shape[0] * (4 + 1)  # a float32 scale and a byte of zero point a row
    signed = Codes(centred.clamp(max=1), scale, torch.zeros_like(scale, dtype=torch.int16))
    _, symmetric = packed_bytes(CompressedWeight(signed.values, centred != 0, signed, -1.0), width)
    assert symmetric == size - shape[0]  # no zero points


@pytest.mark.parametrize(
    ("recipe", "coding"),
    [
        (RECIPES[0], "dense"),
        (RECIPES[1], "bitmap"),
        (Recipe(PruneSpec(sparsity=0.99, allocation="uniform")), "index"),
        (RECIPES[4], "dense"),
    ],
)
def test_the_coding_is_named(recipe: Recipe, coding: str) -> None:
    model = nn.Linear(1000, 50)
    assert size_of(model, compress_weights(model, recipe)).coding == coding


def test_every_coding_that_a_layer_uses_is_named() -> None:
    model = nn.Sequential(nn.Linear(1000, 50), nn.Linear(50, 50))
    with torch.no_grad():
        model[1].weight.add_(torch.sign(model[1].weight) * 10)
    recipe = Recipe(PruneSpec(sparsity=0.94))
    assert size_of(model, compress_weights(model, recipe)).coding == "dense and index"


def served(model: nn.Module, weights: dict[str, CompressedWeight], recipe: Recipe) -> dict[str, Tensor]:
    """What has to be in a file from which the compressed model can be put together again."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, weight in weights.items():
        if weight.codes is None:
            tensors[name] = weight.values.half() if recipe.quantize.weight_bits == 16 else weight.values
        elif recipe.quantize.symmetric:
            tensors[name] = weight.codes.centred.to(torch.int8)
            tensors[f"{name}.scale"] = weight.codes.scale
        else:
            tensors[name] = (weight.codes.centred + weight.codes.zero_point).to(torch.uint8)
            tensors[f"{name}.scale"] = weight.codes.scale
            tensors[f"{name}.zero_point"] = weight.codes.zero_point.to(torch.uint8)
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def restored(tensors: dict[str, Tensor], name: str) -> Tensor:
    """One weight from the tensors of a file."""
    stored = tensors[name].float()
    if f"{name}.zero_point" in tensors:
        stored = stored - tensors[f"{name}.zero_point"].float()
    return stored * tensors.get(f"{name}.scale", torch.tensor(1.0))


@pytest.mark.parametrize("name", ["cnn", "encoder", "tied"])
@pytest.mark.parametrize("recipe", RECIPES, ids=Recipe.describe)
def test_file_bytes_are_those_of_a_written_file_that_restores_every_value(
    small: Small, tmp_path: Path, name: str, recipe: Recipe
) -> None:
    model = small(name)
    weights = compress_weights(model, recipe)
    size = size_of(model, weights)
    path = tmp_path / "model.safetensors"
    save_file(served(model, weights, recipe), path)
    assert size.file_bytes == path.stat().st_size
    assert size.compressed_bytes == len(zstandard.ZstdCompressor(level=3).compress(path.read_bytes()))
    tensors = load_file(path)
    for layer in walk(model):
        assert torch.equal(restored(tensors, layer.name), weights[layer.name].values)
    for other, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if other not in weights:
            assert torch.equal(tensors[other], tensor)


@pytest.mark.parametrize("recipe", RECIPES, ids=Recipe.describe)
def test_counts_against_a_loop_over_the_weights(small: Small, recipe: Recipe) -> None:
    model = small("encoder")
    weights = compress_weights(model, recipe)
    values = [value for weight in weights.values() for value in weight.values.flatten().tolist()]
    size = size_of(model, weights)
    assert size.elements == len(values)
    assert size.nonzero == sum(value != 0 for value in values)
    assert size.memory_bytes is None


def test_zeros_that_quantization_makes_are_not_counted_as_weights() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.1]]))
    recipe = Recipe(quantize=QuantizeSpec(weight_bits=2))
    size = size_of(model, compress_weights(model, recipe))
    assert (size.elements, size.nonzero) == (2, 1)


def test_tied_weights_count_once(small: Small) -> None:
    tied, apart = small("tied"), small("tied")
    apart.right.weight = nn.Parameter(tied.left.weight.detach().clone())
    once, twice = (size_of(model, compress_weights(model, Recipe())) for model in (tied, apart))
    weight = tied.left.weight.numel()
    assert twice.elements - once.elements == twice.nonzero - once.nonzero == weight
    assert twice.packed_bytes - once.packed_bytes == 4 * weight
    assert twice.file_bytes - once.file_bytes >= 4 * weight


def test_the_uncompressed_packed_size_is_4_bytes_a_number(small: Small) -> None:
    model = small("encoder")
    size = size_of(model, compress_weights(model, Recipe()))
    assert size.packed_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(2, 9))
def test_fewer_bits_and_fewer_weights_never_take_more_packed_bytes(resnet, bits: int) -> None:  # type: ignore[no-untyped-def]
    def packed(bits: int, sparsity: float) -> int:
        recipe = Recipe(PruneSpec(sparsity=sparsity), QuantizeSpec(weight_bits=bits))
        return size_of(resnet.module, compress_weights(resnet.module, recipe)).packed_bytes

    sizes = [packed(bits, sparsity) for sparsity in (0.0, 0.3, 0.7, 0.95)]
    assert sizes == sorted(sizes, reverse=True)
    assert packed(bits, 0.0) <= packed(min(bits + 1, 8), 0.0)


def test_memory_formats_do_not_matter(small: Small) -> None:
    model = small("cnn")
    before = size_of(model, compress_weights(model, Recipe()))
    channels_last = small("cnn").to(memory_format=torch.channels_last)
    assert size_of(channels_last, compress_weights(channels_last, Recipe())) == before


def test_views_of_other_tensors_can_be_sized() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(3, 4).t())
            self.register_buffer("whole", torch.zeros(6))
            self.register_buffer("part", self.whole[2:])
            self.head = nn.Linear(4, 2)

    model = Positions()
    size = size_of(model, compress_weights(model, Recipe()))
    assert size.packed_bytes == 4 * (12 + 6 + 4 + 8 + 2)
