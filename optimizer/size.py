"""How big a compressed model is: bytes of a served file, packed, compressed, and the elements counted."""

import math
from collections.abc import Mapping

import torch
import zstandard
from safetensors.torch import save
from torch import Tensor, nn

from optimizer.compress import CompressedWeight
from optimizer.layers import walk
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Size

CODINGS = ("dense", "bitmap", "index")


def size_of(model: nn.Module, weights: Mapping[str, CompressedWeight], recipe: Recipe) -> Size:
    """Sizes of ``model`` with ``weights`` in the place of its own. Resident memory is measured elsewhere."""
    names = {id(layer.weight): layer.name for layer in walk(model)}
    others = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)  # the file takes no views
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()
        if id(tensor) not in names
    }
    file = save({**others, **_served_tensors(weights, recipe.quantize)})
    packed = {name: packed_bytes(weight, recipe.quantize) for name, weight in weights.items()}
    used = {coding for coding, _ in packed.values()}
    elements = sum(weight.values.numel() for weight in weights.values())
    return Size(
        file_bytes=len(file),
        packed_bytes=sum(size for _, size in packed.values())
        + sum(tensor.numel() * tensor.element_size() for tensor in others.values()),
        compressed_bytes=len(zstandard.ZstdCompressor(level=3).compress(file)),
        coding=" and ".join(coding for coding in CODINGS if coding in used),
        elements=elements,
        nonzero=sum(int(weight.values.count_nonzero()) for weight in weights.values()),
    )


def _served_tensors(weights: Mapping[str, CompressedWeight], spec: QuantizeSpec) -> dict[str, Tensor]:
    """The tensors of a safetensors file that restores every value exactly, in the narrowest types."""
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.codes is None:
            tensors[name] = weight.values.half() if spec.weight_bits == 16 else weight.values
            continue
        codes = weight.codes
        if spec.symmetric:
            tensors[name] = codes.centred.to(torch.int8)
        else:
            tensors[name] = (codes.centred + codes.zero_point).to(torch.uint8)
            tensors[f"{name}.zero_point"] = codes.zero_point.to(torch.uint8)
        tensors[f"{name}.scale"] = codes.scale
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def packed_bytes(weight: CompressedWeight, spec: QuantizeSpec) -> tuple[str, int]:
    """The cheapest coding of one layer and its bytes, with scales and zero points.

    ``dense`` writes every weight in k bits. ``bitmap`` writes one bit a weight and k bits a non-zero one.
    ``index`` writes k bits and a column of ceil(log2(columns)) bits a non-zero weight, and for each row
    where it starts.
    """
    elements, bits = weight.values.numel(), spec.weight_bits
    nonzero = int(weight.values.count_nonzero())
    rows = weight.values.shape[0]
    columns = elements // rows
    payload = {
        "dense": elements * bits,
        "bitmap": elements + nonzero * bits,
        "index": nonzero * (bits + _bits_for(columns)) + (rows + 1) * _bits_for(nonzero + 1),
    }
    coding = min(payload, key=payload.__getitem__)
    overhead = 0
    if weight.codes is not None:
        overhead = weight.codes.scale.numel() * (4 if spec.symmetric else 5)
    return coding, math.ceil(payload[coding] / 8) + overhead


def _bits_for(values: int) -> int:
    """Bits that tell ``values`` values apart."""
    return max(1, (values - 1).bit_length())
