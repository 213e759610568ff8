"""How big a compressed model is: bytes of a served file, packed, compressed, and the elements counted."""

from collections.abc import Mapping

import torch
import zstandard
from safetensors.torch import save
from torch import nn

from optimizer.compression.apply import CompressedWeight
from optimizer.compression.packing import CODINGS, narrow, packed_bytes
from optimizer.model.layers import walk
from optimizer.records import Size


def size_of(model: nn.Module, weights: Mapping[str, CompressedWeight]) -> Size:
    """Sizes of ``model`` with ``weights`` in the place of its own. Resident memory is measured elsewhere."""
    names = {id(layer.weight): layer.name for layer in walk(model)}
    others = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)  # the file takes no views
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()
        if id(tensor) not in names
    }
    served = {
        f"{name}{suffix}": tensor
        for name, weight in weights.items()
        for suffix, tensor in narrow(weight, weight.bits).items()
    }
    file = save({**others, **served})
    packed = {name: packed_bytes(weight, weight.bits) for name, weight in weights.items()}
    used = {coding for coding, _ in packed.values()}
    elements = sum(weight.values.numel() for weight in weights.values())
    return Size(
        file_bytes=len(file),
        packed_bytes=sum(size for _, size in packed.values())
        + sum(tensor.numel() * tensor.element_size() for tensor in others.values()),
        compressed_bytes=len(zstandard.ZstdCompressor(level=3).compress(file)),
        coding=" and ".join(coding for coding in CODINGS if coding in used),
        elements=elements,
        nonzero=sum(weight.nonzero for weight in weights.values()),
    )
