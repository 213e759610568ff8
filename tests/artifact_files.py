"""Files that are taken away: what they are made of, and what is in them."""

import copy
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.export.artifacts import ArtifactSource
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import ModelCard, Result

Small = Callable[[str], nn.Module]

RECIPES = {
    "uncompressed": Recipe(),
    "pruned": Recipe(PruneSpec(sparsity=0.5)),
    "half": Recipe(PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=16)),
    "8 bits": Recipe(quantize=QuantizeSpec(weight_bits=8)),
    "8 bits asymmetric": Recipe(quantize=QuantizeSpec(weight_bits=8, symmetric=False, range="mse")),
    "4 bits pruned": Recipe(PruneSpec(sparsity=0.8), QuantizeSpec(weight_bits=4)),
    "3 bits per tensor": Recipe(
        PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=3, symmetric=False, granularity="tensor")
    ),
    "8 bits and activations": Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)),
    "8 bits and 4-bit activations": Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=4)),
    "activations": Recipe(quantize=QuantizeSpec(activation_bits=8)),
}
SMALL_CARD = ModelCard("small", "test", "A small model.", None, (1, 8, 8), 10, licence="MIT")


def taken(
    model: nn.Module,
    recipe: Recipe,
    images: Tensor,
    card: ModelCard = SMALL_CARD,
    result: Result | None = None,
) -> ArtifactSource:
    module, _ = fold_batch_norm(model)
    return ArtifactSource(card, module, compress(module, recipe), images, 1, result)


def mixed(model: nn.Module, images: Tensor) -> ArtifactSource:
    """Layers of 4, 6, 16 and 32 bits in turn, and biases that rounding changed."""
    whole = taken(model, Recipe(), images)
    module, weights = copy.deepcopy(whole.compressed.module), {}
    for index, layer in enumerate(walk(module)):
        spec = QuantizeSpec(weight_bits=(4, 6, 16, 32)[index % 4], symmetric=bool(index % 2))
        weights[layer.name] = compress(module, Recipe(quantize=spec)).weights[layer.name]
    with torch.no_grad():
        for layer in walk(module):
            layer.weight.copy_(weights[layer.name].values)
            if layer.bias is not None:
                layer.bias.add_(0.1)
    return replace(whole, compressed=replace(whole.compressed, module=module, weights=weights))


def entries(zipped: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def values(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def check_same(found: nn.Module, expected: nn.Module, images: Tensor, signs: bool) -> None:
    """Bit for bit; without ``signs`` 0.0 may stand for -0.0."""
    assert values(found).keys() == values(expected).keys()
    for name, value in values(expected).items():
        other = values(found)[name]
        assert other.dtype == value.dtype
        assert torch.equal(other, value), name
        if signs:
            assert torch.equal(torch.signbit(other), torch.signbit(value)), name
    with torch.inference_mode():
        assert torch.equal(found(images), expected(images))
    assert not found.training
