"""``safetensors`` and ``packed``: the weights themselves, for the same module to hold again."""

import math

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from optimizer.compression.packing import narrow, pack
from optimizer.export.artifacts.archive import DENSE_FILE, PACKED_FILE, zipped
from optimizer.export.artifacts.source import ArtifactSource
from optimizer.model.added.cards import SOURCE_NAME as ADDED
from optimizer.model.added.cards import added_models
from optimizer.model.layers import walk
from optimizer.model.own import SOURCE_NAME

VERSION = "1"
"""Of what is inside the two formats, raised when a reader has to know."""
METADATA_KEY = "paretoscope"
SMALLER = "smaller"
"""Among what is said under it: whether channels were removed, so that the module has to be cut first."""
FORMATS = {DENSE_FILE: "paretoscope dense", PACKED_FILE: "paretoscope packed"}


def write_safetensors(source: ArtifactSource) -> bytes:
    """Every tensor under its own name, weights in the narrowest types that hold every value."""
    tensors = others(source.compressed.module)
    for name, weight in source.compressed.weights.items():
        tensors |= {f"{name}{suffix}": tensor for suffix, tensor in narrow(weight, weight.bits).items()}
    model = safetensors.torch.save(tensors, _metadata(source, DENSE_FILE))
    return zipped(source, {DENSE_FILE: model}, _load_again(source), _weights_only(source))


def write_packed(source: ArtifactSource) -> bytes:
    """Every weight as a stream of bits (:mod:`optimizer.compression.packing`), everything else as it is."""
    tensors, layouts = others(source.compressed.module), {}
    for name, weight in source.compressed.weights.items():
        packed = pack(weight, weight.bits)
        layouts[name] = packed.layout
        parts = {"": packed.stream, ".scale": packed.scale, ".zero_point": packed.zero_point}
        tensors |= {f"{name}{suffix}": part for suffix, part in parts.items() if part is not None}
    model = safetensors.torch.save(tensors, _metadata(source, PACKED_FILE, layers=layouts))
    return zipped(source, {PACKED_FILE: model}, _load_again(source), _weights_only(source))


def _metadata(source: ArtifactSource, file: str, **more: object) -> dict[str, str]:
    """One entry: safetensors writes several in any order, and the same model is to give the same bytes."""
    facts = {"format": FORMATS[file], "version": VERSION, "model": source.card.name, **more}
    if source.compressed.recipe.prune.shrinks:
        facts[SMALLER] = True
    return {METADATA_KEY: msgspec.json.encode(facts).decode()}


def _weights_only(source: ArtifactSource) -> tuple[str, ...]:
    if not source.compressed.recipe.quantize.rounds_activations:
        return ()
    return (
        "Weights only: the module that they are loaded into does not round its activations. The ONNX and "
        "OpenVINO files do.",
    )


def others(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that are no layer's weight, by name; each once, contiguous, and no view."""
    layers = {id(layer.weight) for layer in walk(module)}
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if id(tensor) not in layers
    }


def _load_again(source: ArtifactSource) -> str:
    """A module or a file of the user's own is none of the catalogue's."""
    card = source.card
    name, shape = card.name, str(tuple(card.input_shape))
    if card.source == ADDED and name not in added_models():
        imported = "import optimizer as px\n"
        begin = (
            f"# file: the path (or hf-hub: name) of the model, as it was when {name} was measured\n"
            f"module = px.compress(file, px.Recipe.of(), input_shape={shape})  # uncompressed"
        )
    elif card.source == SOURCE_NAME:
        imported = "from optimizer.model import folding\n"
        begin = (
            f"# module: your own, as it was when {name} was measured\n"
            f"module, _ = folding.fold_batch_norm(module.cpu().float(), {shape})"
        )
    else:
        imported, shape = "from optimizer.model import catalogue, folding\n", "model.card.input_shape"
        begin = (
            f"model = catalogue.load({name!r})\nmodule, _ = folding.fold_batch_norm(model.module, {shape})"
        )
    smaller = f", {shape}" if source.compressed.recipe.prune.shrinks else ""
    apart = ""
    if source.parts:  # the module's one tensor, taken apart
        names, shapes = [name for name, _ in source.parts], [shape for _, shape in source.parts]
        apart = (
            f"\nrows = module(images).flatten(1).split({[*map(math.prod, shapes)]}, 1)  # {names}\n"
            f"outputs = [row.reshape(-1, *shape) for row, shape in zip(rows, {shapes})]"
        )
    return (
        "from optimizer.export import artifacts\n"
        f"{imported}{begin}\n"
        f'module = artifacts.load("model.zip", module{smaller})  # this zip, under the name that you gave it'
        f"{apart}"
    )
