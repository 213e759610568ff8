"""The way back from a ``safetensors`` or ``packed`` file to a torch module, each part checked before it is
believed: the file may be anything.
"""

import copy
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from optimizer.compression.packing import BitLayout, Packed, check_grid, unpack, widen
from optimizer.compression.prune.channels import shrink_to
from optimizer.compression.quantize.grid import Codes
from optimizer.errors import InputError, ParetoscopeError
from optimizer.export.artifacts.archive import DENSE_FILE, PACKED_FILE, damaged, model_file, some
from optimizer.export.artifacts.weights import FORMATS, METADATA_KEY, SMALLER, VERSION, others
from optimizer.model.added.containers import read_header
from optimizer.model.added.limits import MAX_HEADER_BYTES
from optimizer.model.layers import walk


def load(
    source: Path | str | bytes, module: nn.Module, input_shape: tuple[int, ...] | None = None
) -> nn.Module:
    """A copy of ``module`` with the values in a ``safetensors`` or ``packed`` zip, or in the ``.safetensors``
    file of one alone, in evaluation mode.

    ``module`` is the same architecture with its batch norm folded
    (:func:`optimizer.model.folding.fold_batch_norm`, which is to know the input shape); it is left as it was.
    Values come back bit for bit (zeros of ``packed`` without their sign); activations are not rounded. Where
    channels were removed they are taken out of the copy first: which go together is found with an input of
    ``input_shape`` ``[C, H, W]``, which is needed only then. No code in the file is run, and no more is read
    than a file of this model can have.

    Raises InputError for a file that is damaged, of another model or of another version, or that lacks the
    input shape that it needs; then also UnavailableError without torch-pruning, WorkError for a model that it
    can't follow.
    """
    name, content = model_file(source, _most_bytes(module))
    found = _facts(content)
    name = name or next((one for one, kind in FORMATS.items() if kind == found.get("format")), DENSE_FILE)
    if found.get("format") != FORMATS[name]:
        raise InputError(f"{name} does not say {FORMATS[name]!r}: use a file that Paretoscope wrote")
    if found.get("version") != VERSION:
        raise InputError(
            f"{name} has version {str(found.get('version'))[:20]!r} but {VERSION!r} is read here: "
            "upgrade, or write the file again"
        )
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # of several kinds, for bytes that may be anything
        raise damaged(name, error) from error
    layouts = _layouts(found) if name == PACKED_FILE else None
    smaller = found.get(SMALLER) is True
    if smaller and input_shape is None:
        raise InputError(
            f"{name} holds {str(found.get('model'))[:80]!r} without some of its channels: give the shape of "
            "one input too, load(file, module, input_shape), such as (3, 224, 224)"
        )
    try:
        fitting = (
            _without_channels(module, tensors, layouts, input_shape) if smaller and input_shape else module
        )
        return _restored(fitting, tensors, layouts)
    except _UnfitError as error:
        raise InputError(
            f"{name} holds {str(found.get('model'))[:80]!r} and does not fit this model: {error}. "
            "Load it into the same model with its batch norm folded: "
            "folding.fold_batch_norm(model, input_shape)[0]"
        ) from error


def model_named(source: Path) -> str:
    """Which model a ``safetensors`` or ``packed`` zip says that it is of; no more than its header is read.
    Raises InputError."""
    try:
        with zipfile.ZipFile(source) as archive:
            name = next(name for name in FORMATS if name in archive.namelist())
            with archive.open(name) as stream:
                begin = stream.read(8)
                size = min(int.from_bytes(begin, "little"), MAX_HEADER_BYTES)
                found = _facts(begin + stream.read(size))
    except ParetoscopeError:
        raise
    except Exception as error:  # damaged bytes reach any part of zipfile
        raise damaged(str(source), error) from error
    if found.get("format") != FORMATS[name] or not isinstance(found.get("model"), str):
        raise InputError(f"{name} does not say {FORMATS[name]!r}: use a file that Paretoscope wrote")
    model: str = found["model"]
    return model


class _UnfitError(InputError):
    """What a file has that the model has not, or the reverse."""


def _without_channels(
    module: nn.Module,
    tensors: dict[str, Tensor],
    layouts: dict[str, BitLayout] | None,
    input_shape: tuple[int, ...],
) -> nn.Module:
    """As small as what is in the file."""
    found: Mapping[str, Tensor | BitLayout] = tensors if layouts is None else layouts
    try:
        return shrink_to(module, {name: tuple(one.shape) for name, one in found.items()}, input_shape)
    except InputError as error:
        raise _UnfitError(str(error)) from error


def _restored(
    module: nn.Module, tensors: dict[str, Tensor], layouts: dict[str, BitLayout] | None
) -> nn.Module:
    restored = copy.deepcopy(module).eval()
    targets: dict[str, Tensor] = {layer.name: layer.weight for layer in walk(restored)}
    values = {name: _weight(name, weight.shape, tensors, layouts) for name, weight in targets.items()}
    expected = others(restored)
    if lacking := sorted(expected.keys() - tensors.keys()):
        raise _UnfitError(f"it lacks {some(lacking)}")
    grids = {f"{name}{suffix}" for name in values for suffix in (".scale", ".zero_point")}
    extra = sorted(tensors.keys() - expected.keys() - values.keys() - grids)
    if extra := [name for name in extra if not _is_left_out(restored, name)]:
        raise _UnfitError(f"it has {some(extra)}, which the model has not")
    for name, other in expected.items():
        _expect(name, tensors[name], other.dtype, other.shape)
        values[name] = tensors[name]
    targets |= {**dict(restored.named_parameters()), **dict(restored.named_buffers())}
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    return restored


def _is_left_out(module: nn.Module, name: str) -> bool:
    """Whether a tensor is of what never runs, and was left out of the module but not of an older file."""
    for part in name.split("."):
        if part in module._modules and module._modules[part] is None:
            return True
        found = module._modules.get(part)
        if found is None:
            return False
        module = found
    return False


def _weight(
    name: str, shape: torch.Size, tensors: dict[str, Tensor], layouts: dict[str, BitLayout] | None
) -> Tensor:
    """The float32 values of one layer ``shape``, checked before anything of its size is made."""
    if name not in tensors or (layouts is not None and name not in layouts):
        raise _UnfitError(f"it lacks {name}")
    parts = {
        suffix: tensors[f"{name}{suffix}"]
        for suffix in ("", ".scale", ".zero_point")
        if f"{name}{suffix}" in tensors
    }
    if layouts is None:
        return _dense_weight(name, shape, parts)
    layout = layouts[name]
    if layout.shape != tuple(shape):
        raise _UnfitError(f"{name} is {list(layout.shape)}, not {list(shape)}")
    try:
        found = unpack(Packed(layout, parts[""], parts.get(".scale"), parts.get(".zero_point")))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return found.values if isinstance(found, Codes) else found


def _dense_weight(name: str, shape: torch.Size, parts: dict[str, Tensor]) -> Tensor:
    kinds = {
        torch.float32: {""},
        torch.float16: {""},
        torch.int8: {"", ".scale"},
        torch.uint8: {"", ".scale", ".zero_point"},
    }
    dtype = parts[""].dtype
    if kinds.get(dtype) != parts.keys():
        raise _UnfitError(f"{name} is {dtype} with {some(sorted(parts.keys() - {''})) or 'no scale'}")
    _expect(name, parts[""], dtype, shape)
    if ".scale" in parts:
        check_grid(shape, parts[".scale"], parts.get(".zero_point"))
    return widen(parts)


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise _UnfitError(f"{name} is {list(tensor.shape)} {tensor.dtype}, not {list(shape)} {dtype}")


def _layouts(facts: Mapping[str, object]) -> dict[str, BitLayout]:
    try:
        return msgspec.convert(facts.get("layers"), dict[str, BitLayout])
    except msgspec.ValidationError as error:
        raise damaged("its list of layers", error) from error


def _facts(content: bytes) -> dict[str, Any]:
    """What was written under :data:`METADATA_KEY`, or nothing."""
    metadata = read_header(content, len(content)).get("__metadata__")
    written = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    try:
        facts = msgspec.json.decode(written) if isinstance(written, str) else None
    except (msgspec.DecodeError, RecursionError) as error:
        raise damaged("the safetensors header", error) from error
    return facts if isinstance(facts, dict) else {}


def _most_bytes(module: nn.Module) -> int:
    """More than any file of this model has: its float32 values, as much again for scales, and a header."""
    tensors = (*module.parameters(), *module.buffers())
    return 2 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) + MAX_HEADER_BYTES
