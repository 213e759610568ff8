"""What a user takes away: a compressed model as one zip file, with its recipe and a model card, and the way
back from the file to a torch module.

``ARTIFACTS["packed"].write(take_away)`` gives bytes; :func:`load` reads ``safetensors`` and ``packed``. A zip
holds the model's own files, ``recipe.json`` and ``MODEL_CARD.md``, and the same model gives the same bytes.
"""

import copy
import importlib.util
import io
import json
import struct
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from optimizer import __version__
from optimizer.compress import CompressedModel
from optimizer.engines import openvino
from optimizer.engines.base import Build
from optimizer.engines.torch import RoundActivations, activation_ranges, thread_count
from optimizer.errors import InputError, ParetoscopeError, UnavailableError, WorkError, unknown
from optimizer.export import MODEL_FILES
from optimizer.frame import Summary, summarise
from optimizer.layers import multiplications, uses, walk
from optimizer.metrics import METRICS
from optimizer.packing import Layout, Packed, check_grid, narrow, pack, unpack, widen
from optimizer.quantize.grid import Codes
from optimizer.records import ModelCard, Result
from optimizer.theme import engine_label

VERSION = "1"
"""Of what is inside the two formats that :func:`load` reads."""

RECIPE_FILE = "recipe.json"
CARD_FILE = "MODEL_CARD.md"
DENSE_FILE = "model.safetensors"
PACKED_FILE = "model.packed.safetensors"
METADATA_KEY = "paretoscope"
FORMATS = {DENSE_FILE: "paretoscope dense", PACKED_FILE: "paretoscope packed"}

TEXT_BYTES = 1 << 20
"""The most that a recipe or a card may have."""
HEADER_BYTES = 8 << 20
DIRECTORY_BYTES = 4096
"""The most that a zip's list of entries may have: three short names are all there is."""


@dataclass(frozen=True)
class TakeAway:
    """A compressed model and what is known of it.

    ``module`` is the uncompressed one that ``compressed`` was made of, its batch norm folded; ``calibration``
    float32 ``[N, C, H, W]`` gives activation ranges. ``result`` is its measurement, if there is one.
    ``build`` is what the OpenVINO engine prepared of ``module``, where that is at hand: it takes seconds.
    """

    card: ModelCard
    module: nn.Module
    compressed: CompressedModel
    calibration: Tensor
    threads: int = 1
    result: Result | None = None
    build: Build | None = None

    def __post_init__(self) -> None:
        if self.result is None:
            return
        request = self.result.request
        recipes = request.recipe.canonical(), self.compressed.recipe.canonical()
        if request.model != self.card.name or recipes[0] != recipes[1]:
            raise InputError(
                f"the result is of {request.model}, {request.recipe.describe()}, not of {self.card.name}, "
                f"{self.compressed.recipe.describe()}: give the result of this very model, or none"
            )


@dataclass(frozen=True)
class Artifact:
    """One kind of zip file. ``needs()`` says in words what is missing to write it here, or None."""

    label: str
    needs: Callable[[], str | None]
    write: Callable[[TakeAway], bytes]


def write(kind: str, take_away: TakeAway) -> bytes:
    """The file of one of :data:`ARTIFACTS`.

    Raises InputError for an unknown kind or a model that is too large for it, UnavailableError where a
    package is missing, WorkError for a model that can't be converted.
    """
    if kind not in ARTIFACTS:
        raise unknown("kind of file", kind, ARTIFACTS)
    problem = ARTIFACTS[kind].needs()
    if problem:
        raise UnavailableError(f"{ARTIFACTS[kind].label} can't be written here: {problem}")
    return ARTIFACTS[kind].write(take_away)


# safetensors and packed


def write_safetensors(take_away: TakeAway) -> bytes:
    """Every tensor under its own name, weights in the narrowest types that hold every value."""
    tensors = _others(take_away.compressed.module)
    for name, weight in take_away.compressed.weights.items():
        tensors |= {f"{name}{suffix}": tensor for suffix, tensor in narrow(weight, weight.bits).items()}
    model = safetensors.torch.save(tensors, _metadata(take_away, DENSE_FILE))
    return _zip(take_away, {DENSE_FILE: model}, _load_again(take_away), _weights_only(take_away))


def write_packed(take_away: TakeAway) -> bytes:
    """Every weight as a stream of bits (:mod:`optimizer.packing`), everything else as it is."""
    tensors, layouts = _others(take_away.compressed.module), {}
    for name, weight in take_away.compressed.weights.items():
        packed = pack(weight, weight.bits)
        layouts[name] = packed.layout
        parts = {"": packed.stream, ".scale": packed.scale, ".zero_point": packed.zero_point}
        tensors |= {f"{name}{suffix}": part for suffix, part in parts.items() if part is not None}
    model = safetensors.torch.save(tensors, _metadata(take_away, PACKED_FILE, layers=layouts))
    return _zip(take_away, {PACKED_FILE: model}, _load_again(take_away), _weights_only(take_away))


def _metadata(take_away: TakeAway, file: str, **more: object) -> dict[str, str]:
    """One entry: safetensors writes several in any order, and the same model is to give the same bytes."""
    facts = {"format": FORMATS[file], "version": VERSION, "model": take_away.card.name, **more}
    return {METADATA_KEY: msgspec.json.encode(facts).decode()}


def _weights_only(take_away: TakeAway) -> tuple[str, ...]:
    if take_away.compressed.recipe.quantize.activation_bits == 32:
        return ()
    return (
        "Weights only: the module that they are loaded into does not round its activations. The ONNX and "
        "OpenVINO files do.",
    )


def _others(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that are no layer's weight, by name; each once, contiguous, and no view."""
    layers = {id(layer.weight) for layer in walk(module)}
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if id(tensor) not in layers
    }


def _zip(take_away: TakeAway, files: Mapping[str, bytes], loading: str, notes: tuple[str, ...] = ()) -> bytes:
    recipe = json.dumps(take_away.compressed.recipe.to_dict(), indent=2)
    card = model_card(take_away, tuple(files), loading, notes)
    texts = {RECIPE_FILE: f"{recipe}\n".encode(), CARD_FILE: card.encode()}
    buffer = io.BytesIO()
    try:
        # No zip64: no model that fits would need it, and a reader has less to guard against.
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, allowZip64=False, compresslevel=1) as archive:
            for name, content in {**files, **texts}.items():
                entry = zipfile.ZipInfo(name)  # of a fixed date: same model, same bytes
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, content)
    except zipfile.LargeZipFile as error:
        raise InputError(
            f"{take_away.card.name} is larger than the 2 GiB of a zip file: use fewer weight bits"
        ) from error
    return buffer.getvalue()


# And back


def load(source: Path | str | bytes, module: nn.Module) -> nn.Module:
    """A copy of ``module`` with the values in a ``safetensors`` or ``packed`` zip, in evaluation mode.

    ``module`` is the same architecture with its batch norm folded (:func:`optimizer.layers.fold_batch_norm`);
    it is left as it was. Values come back bit for bit (zeros of ``packed`` without their sign); activations
    are not rounded. No code in the file is run, and no more is read than a file of this model can have.
    Raises InputError for a file that is damaged, of another model or of another version.
    """
    name, content = _model_file(source, _most_bytes(module))
    found = _facts(content)
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
        raise _damaged(name, error) from error
    try:
        return _restored(module, tensors, _layouts(found) if name == PACKED_FILE else None)
    except _UnfitError as error:
        raise InputError(
            f"{name} holds {str(found.get('model'))[:80]!r} and does not fit this model: {error}. "
            "Load it into the same model with its batch norm folded: layers.fold_batch_norm(model)[0]"
        ) from error


class _UnfitError(InputError):
    """What a file has that the model has not, or the reverse."""


def _restored(module: nn.Module, tensors: dict[str, Tensor], layouts: dict[str, Layout] | None) -> nn.Module:
    restored = copy.deepcopy(module).eval()
    targets: dict[str, Tensor] = {layer.name: layer.weight for layer in walk(restored)}
    values = {name: _weight(name, weight.shape, tensors, layouts) for name, weight in targets.items()}
    others = _others(restored)
    if lacking := sorted(others.keys() - tensors.keys()):
        raise _UnfitError(f"it lacks {_some(lacking)}")
    grids = {f"{name}{suffix}" for name in values for suffix in (".scale", ".zero_point")}
    if extra := sorted(tensors.keys() - others.keys() - values.keys() - grids):
        raise _UnfitError(f"it has {_some(extra)}, which the model has not")
    for name, other in others.items():
        _expect(name, tensors[name], other.dtype, other.shape)
        values[name] = tensors[name]
    targets |= {**dict(restored.named_parameters()), **dict(restored.named_buffers())}
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    return restored


def _weight(
    name: str, shape: torch.Size, tensors: dict[str, Tensor], layouts: dict[str, Layout] | None
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
        raise _UnfitError(f"{name} is {dtype} with {_some(sorted(parts.keys() - {''})) or 'no scale'}")
    _expect(name, parts[""], dtype, shape)
    if ".scale" in parts:
        check_grid(shape, parts[".scale"], parts.get(".zero_point"))
    return widen(parts)


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise _UnfitError(f"{name} is {list(tensor.shape)} {tensor.dtype}, not {list(shape)} {dtype}")


def _layouts(facts: Mapping[str, object]) -> dict[str, Layout]:
    try:
        return msgspec.convert(facts.get("layers"), dict[str, Layout])
    except msgspec.ValidationError as error:
        raise _damaged("its list of layers", error) from error


def _facts(content: bytes) -> dict[str, Any]:
    """What :func:`_metadata` wrote, or nothing."""
    metadata = _header(content).get("__metadata__")
    written = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    try:
        facts = msgspec.json.decode(written) if isinstance(written, str) else None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _damaged("the safetensors header", error) from error
    return facts if isinstance(facts, dict) else {}


def _header(content: bytes) -> dict[str, Any]:
    """The JSON header of a safetensors file, before anything else of it is believed."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(HEADER_BYTES, len(content) - 8):
        raise InputError(
            f"the header of the safetensors file has {size:,} bytes, more than the file or the allowed "
            f"{HEADER_BYTES:,}: download or write it again"
        )
    try:
        header = msgspec.json.decode(content[8 : 8 + size])
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _damaged("the safetensors header", error) from error
    if not isinstance(header, dict):
        raise _damaged("the safetensors header", "no JSON object")
    return header


def _most_bytes(module: nn.Module) -> int:
    """More than any file of this model has: its float32 values, as much again for scales, and a header."""
    tensors = (*module.parameters(), *module.buffers())
    return 2 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) + HEADER_BYTES


def _model_file(source: Path | str | bytes, most: int) -> tuple[str, bytes]:
    """Name and content of the model in a zip, at most ``most`` bytes."""
    what = "the file" if isinstance(source, bytes) else str(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size > most + 2 * TEXT_BYTES:
                raise InputError(
                    f"{what} has {size:,} bytes, more than the {most + 2 * TEXT_BYTES:,} that a file of this "
                    "model can have: it is of another model, or damaged"
                )
            _check_directory(file, size)
            with zipfile.ZipFile(file) as archive:
                return _read_model(archive, most)
    except ParetoscopeError:
        raise
    except OSError as error:
        raise InputError(f"{what} can't be read ({error.strerror}): give the path of a zip file") from error
    except Exception as error:  # damaged bytes reach any part of zipfile
        raise _damaged(what, error) from error


def _check_directory(file: Any, size: int) -> None:
    """Refuse a zip with a long list of entries: reading it would take memory for each."""
    file.seek(max(0, size - 65_557))  # the end record and the longest comment
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise InputError("this is no whole zip file: download or write it again")
    directory = struct.unpack_from("<I", tail, at + 12)[0]
    if directory > DIRECTORY_BYTES or b"PK\x06\x07" in tail[max(0, at - 20) : at]:
        raise InputError(
            "this zip has more entries than a model, a recipe and a card: use one as it was written"
        )


def _read_model(archive: zipfile.ZipFile, most: int) -> tuple[str, bytes]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    model = [name for name in entries if name in FORMATS]
    if len(model) != 1 or len(archive.infolist()) != 3 or entries.keys() != {*model, RECIPE_FILE, CARD_FILE}:
        raise InputError(
            f"the zip holds {_some([entry.filename for entry in archive.infolist()])}, not {DENSE_FILE} or "
            f"{PACKED_FILE} with {RECIPE_FILE} and {CARD_FILE}: use one as it was written. ONNX and OpenVINO "
            "files are read by their own runtimes"
        )
    for name, entry in entries.items():
        allowed = most if name in FORMATS else TEXT_BYTES
        if entry.file_size > allowed:
            raise InputError(
                f"{name} would unpack to {entry.file_size:,} bytes, more than the {allowed:,} that it can "
                "have for this model: it is of another model, or damaged"
            )
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise InputError(f"{name} is encrypted or packed in an unusual way: store or deflate it")
    return model[0], archive.read(model[0])


def _damaged(what: str, error: object) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{what} is damaged or no file of Paretoscope ({reason}): download or write it again")


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# OpenVINO


def write_openvino(take_away: TakeAway) -> bytes:
    """The graph that the OpenVINO engine compiles, weights, activation ranges and all."""
    build = take_away.build or openvino.prepare(take_away.module, take_away.card.input_shape)
    runner = build(take_away.compressed, take_away.calibration, take_away.threads, 1)
    assert runner.memory_probe is not None
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        runner.memory_probe(folder)
        files = {name: (Path(folder) / name).read_bytes() for name in ("model.xml", "model.bin")}
    loading = (
        "import openvino\n"
        'model = openvino.compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})\n'
        f"logits = model([images])[0]  # images: float32 {[1, *take_away.card.input_shape]}"
    )
    hint = "Without the float32 hint OpenVINO computes in bfloat16 on CPUs that can, and answers differ."
    return _zip(take_away, files, loading, (*runner.execution.simulated, hint))


# ONNX


def _onnx_needs() -> str | None:
    lacking = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if not lacking:
        return None
    return f"no package {' and '.join(lacking)} (pip install 'paretoscope[onnx]')"


def write_onnx(take_away: TakeAway) -> bytes:
    """An ONNX graph in QDQ form (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Weights of 8 bits or fewer are int8 or uint8 codes and a DequantizeLinear by channel, which gives every
    value back exactly; those of 16 are halves and a Cast. Where activations are rounded, each layer's input
    goes through QuantizeLinear and DequantizeLinear over its range on the calibration images.
    """
    import onnx

    compressed, shape = take_away.compressed, take_away.card.input_shape
    module, activation_bits = compressed.module, compressed.recipe.quantize.activation_bits
    model, dynamic = _exported(module, shape)
    _strip(model)
    found = _layers_in(model.graph, module)
    running = [name for name, runs in multiplications(module, shape).items() if runs]
    notes = [] if dynamic else ["The graph takes one image at a time: this model can't be exported for more."]
    if activation_bits < 32:
        rounded = _round_inputs(model.graph, found, _ranges(take_away), activation_bits)
        notes.append(
            f"Activations are rounded to {activation_bits} bits at each layer's input, between its lowest "
            f"and highest value on {len(take_away.calibration)} calibration images. Other engines choose "
            "places and ranges of their own: their accuracy is not exactly this file's."
        )
        if left := [name for name in running if name not in rounded]:
            notes.append(f"Inputs that are not rounded: those of {', '.join(left)}.")
    narrowed = _narrow_weights(model.graph, found, compressed)
    if left := [name for name in running if compressed.weights[name].bits < 32 and name not in narrowed]:
        notes.append(f"Weights whose values are exact but kept in float32: {', '.join(left)}.")
    onnx.helper.set_model_props(model, {"model": take_away.card.name, "recipe": compressed.recipe.to_json()})
    try:
        content: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's own, for more than its 2 GiB
        raise WorkError(f"{take_away.card.name} can't be written as ONNX: {error}") from error
    loading = (
        "import onnxruntime\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        f'logits = session.run(None, {{"images": images}})[0]  # images: float32 {_batch_of(shape, dynamic)}'
    )
    return _zip(take_away, {"model.onnx": content}, loading, tuple(notes))


def _batch_of(shape: tuple[int, int, int], dynamic: bool) -> str:
    return f"[{'N' if dynamic else 1}, {', '.join(map(str, shape))}]"


def _exported(module: nn.Module, shape: tuple[int, int, int]) -> tuple[Any, bool]:
    """The graph in float32, and whether it takes any number of images. Raises WorkError."""
    try:
        return _export(module, torch.zeros(2, *shape), ({0: torch.export.Dim("batch")},)), True
    except Exception:  # the exporter raises whatever the model's code or its own passes raise
        pass
    try:
        return _export(module, torch.zeros(1, *shape), None), False
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WorkError(
            f"torch can't export this model to ONNX: {reason}. Take it away in another format."
        ) from error


def _export(module: nn.Module, images: Tensor, dynamic: Any) -> Any:
    with _quiet():
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporter says of its own and of torch's workings is no concern of a user's."""
    with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
        yield


def _strip(model: Any) -> None:
    """Take out what the exporter noted of its work: source lines, with the paths of this machine."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _layers_in(graph: Any, module: nn.Module) -> dict[str, tuple[str, bool]]:
    """For each initializer that holds a layer's weight: the layer, and whether it is transposed there.

    By value: the exporter names what it folds itself, and a wrong match would give wrong answers in silence.
    """
    from onnx import TensorProto, numpy_helper

    names = {id(layer.weight): layer.name for layer in walk(module)}
    aliases = {
        alias: names[id(parameter)]
        for alias, parameter in module.named_parameters(remove_duplicate=False)
        if id(parameter) in names
    }
    weights = {layer.name: layer.weight.detach().numpy() for layer in walk(module)}
    found: dict[str, tuple[str, bool]] = {}
    for initializer in graph.initializer:
        if len(initializer.dims) < 2 or initializer.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(initializer)
        likely = aliases.get(initializer.name)
        for name in sorted(weights, key=lambda name: name != likely):
            weight = weights[name]
            if np.array_equal(values, weight):
                found[initializer.name] = (name, False)
                break
            if values.ndim == 2 and np.array_equal(values, weight.T):
                found[initializer.name] = (name, True)
                break
    return found


def _narrow_weights(graph: Any, found: dict[str, tuple[str, bool]], compressed: CompressedModel) -> set[str]:
    """Put codes, or halves, and the node that makes float32 of them in the place of weights.

    Returns the layers where that was done. Those in float32 stay, and so do grids by group of inputs.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants = {initializer.name: initializer for initializer in graph.initializer}
    first, layers = [], set()
    for tensor, (name, transposed) in found.items():
        weight = compressed.weights[name]
        if weight.bits == 32 or (weight.codes is not None and weight.codes.scale[0].numel() > 1):
            continue
        parts = {suffix: part.numpy() for suffix, part in narrow(weight, weight.bits).items()}
        codes = parts.pop("")
        arrays = {f"{tensor}_codes": np.ascontiguousarray(codes.T if transposed else codes)}
        by_channel = bool(parts) and parts[".scale"].size > 1
        for suffix, part in parts.items():
            arrays[tensor + suffix.replace(".", "_")] = part.ravel() if by_channel else part.reshape(())
        options: dict[str, Any] = {"axis": codes.ndim - 1 if transposed else 0} if by_channel else {}
        operation = "DequantizeLinear" if parts else "Cast"
        if not parts:
            options = {"to": TensorProto.FLOAT}
        first.append(helper.make_node(operation, list(arrays), [tensor], f"{tensor}_values", **options))
        del constants[tensor]
        constants |= {key: numpy_helper.from_array(array, key) for key, array in arrays.items()}
        layers.add(name)
    _replace(graph.initializer, list(constants.values()))
    _replace(graph.node, [*first, *graph.node])
    return layers


def _ranges(take_away: TakeAway) -> dict[str, tuple[float, float]]:
    """Lowest and highest input of each layer; modules that share a weight share the range."""
    module = take_away.compressed.module
    with thread_count(take_away.threads):
        by_module = activation_ranges(module, take_away.calibration)
    ranges: dict[str, tuple[float, float]] = {}
    for layer in uses(module):
        low, high = by_module[layer.module]
        lowest, highest = ranges.get(layer.name, (0.0, 0.0))
        ranges[layer.name] = (min(low, lowest), max(high, highest))
    return ranges


def _round_inputs(
    graph: Any, found: dict[str, tuple[str, bool]], ranges: Mapping[str, tuple[float, float]], bits: int
) -> set[str]:
    """Round the other factor of each layer's product to ``bits``. Returns the layers where that was done."""
    nodes, constants = [], list(graph.initializer)
    rounded: dict[tuple[str, float, float], str] = {}
    layers = set()
    for node in graph.node:
        name = found[node.input[1]][0] if len(node.input) > 1 and node.input[1] in found else None
        if name and node.op_type in ("Conv", "Gemm", "MatMul") and ranges[name] != (0.0, 0.0):
            place = (node.input[0], *ranges[name])
            if place not in rounded:
                rounded[place] = f"{node.input[0]}_rounded_{len(rounded)}"
                added, needed = _rounding(node.input[0], rounded[place], ranges[name], bits)
                nodes += added
                constants += needed
            node.input[0] = rounded[place]
            layers.add(name)
        nodes.append(node)
    _replace(graph.initializer, constants)
    _replace(graph.node, nodes)
    return layers


def _rounding(source: str, target: str, span: tuple[float, float], bits: int) -> tuple[list[Any], list[Any]]:
    """Nodes that round ``source`` into ``target``, and the constants they take."""
    from onnx import helper, numpy_helper

    grid = RoundActivations(*span, bits)
    arrays: dict[str, np.ndarray] = {
        f"{target}_scale": np.array(grid.scale, np.float32),
        f"{target}_zero_point": np.array(grid.zero_point, np.uint8),
    }
    factors, codes = list(arrays), f"{target}_codes"
    nodes = [helper.make_node("QuantizeLinear", [source, *factors], [codes], codes)]
    if bits < 8:  # the type holds 8: what lies beyond the grid's last code is clipped to it
        arrays |= {f"{target}_first": np.array(0, np.uint8), f"{target}_last": np.array(grid.last, np.uint8)}
        clipped = f"{target}_clipped"
        nodes.append(helper.make_node("Clip", [codes, *list(arrays)[2:]], [clipped], clipped))
        codes = clipped
    nodes.append(helper.make_node("DequantizeLinear", [codes, *factors], [target], target))
    return nodes, [numpy_helper.from_array(array, key) for key, array in arrays.items()]


def _replace(field: Any, messages: list[Any]) -> None:
    """The content of a repeated protobuf field, which may be among ``messages``."""
    kept = copy.deepcopy(messages)
    del field[:]
    field.extend(kept)


# Model card

FIGURES = (
    *("accuracy", "drop", "agreement", "file_size", "packed_size", "compressed_size"),
    *("memory", "nonzero", "operations", "latency", "latency_ratio"),
)

LIMITS = (
    "Nothing was trained: accuracy after fine-tuning can be higher.",
    "Accuracy holds for images like those it was measured on, and a class can lose more than the mean.",
    "Times hold for the engine, machine, batch and thread count named here, and not for other runtimes.",
    "Zeros in a dense kernel are multiplied like any other number: unless the kernels are named sparse, "
    "pruning changes accuracy and the size of the file, not time.",
    "A precision called simulated shows what accuracy it has, not how fast kernels of it would be.",
)


def model_card(take_away: TakeAway, files: tuple[str, ...], loading: str, notes: tuple[str, ...] = ()) -> str:
    """Markdown: the recipe in words, what was measured, where, and how to load the model again."""
    card, recipe = take_away.card, take_away.compressed.recipe
    summary = summarise(take_away.result) if take_away.result else None
    blocks = [
        f"# {card.name}: {recipe.describe()}",
        f"{card.description}\n\nWritten by Paretoscope {__version__}; batch norm folded, nothing trained.",
        *([f"Licence of the original weights: {card.licence}"] if card.licence else []),
        f"Input: float32 `[N, {', '.join(map(str, card.input_shape))}]`, preprocessed as for the original "
        f"model. Output: logits `[N, {card.classes}]`.",
        "## Recipe\n\n" + _bullets(_recipe_words(take_away)),
        "## Files\n\n" + _bullets([f"`{name}`" for name in (*files, RECIPE_FILE)]),
        *([_bullets(notes)] if notes else []),
        "## Measured\n\n" + (_measured(summary) if summary else "Not measured."),
        *([f"## Environment\n\n{summary.environment}"] if summary else []),
        f"## Load it again\n\n```python\n{loading}\n```",
        "## What the numbers do not say\n\n" + _bullets(LIMITS),
    ]
    return "\n\n".join(blocks) + "\n"


def _load_again(take_away: TakeAway) -> str:
    return (
        "from optimizer import artifacts, layers, models\n"
        f"module, _ = layers.fold_batch_norm(models.load({take_away.card.name!r}).module)\n"
        'module = artifacts.load("model.zip", module)  # this zip, under the name that you gave it'
    )


def _recipe_words(take_away: TakeAway) -> list[str]:
    recipe = take_away.compressed.recipe
    weights = take_away.compressed.weights.values()
    elements = sum(weight.values.numel() for weight in weights)
    nonzero = sum(int(weight.values.count_nonzero()) for weight in weights)
    widths = Counter(weight.bits for weight in weights)
    words = [recipe.describe()]
    if len(widths) > 1:
        words.append("layers: " + ", ".join(f"{widths[bits]} in {bits} bits" for bits in sorted(widths)))
    if recipe.quantize.activation_bits < 32:
        words.append(f"activation ranges from {len(take_away.calibration)} calibration images")
    return [*words, f"{nonzero:,} of {elements:,} weights are not zero", f"as data: `{RECIPE_FILE}`"]


def _measured(summary: Summary) -> str:
    labelled = summary.reference == "labels"
    rows = ["| | this model | uncompressed |", "|---|---|---|"]
    for name in FIGURES:
        measure, metric = summary.measures[name], METRICS[name]
        if measure.value is None or (name == "agreement" and not labelled):
            continue
        label = metric.label if labelled or name != "accuracy" else "agreement with the uncompressed model"
        before = "" if measure.baseline is None else metric.format(measure.baseline, None, None)
        rows.append(f"| {label} | {summary.text(name)} | {before} |")
    kernels = ", ".join(f"{layers} in {precision}" for precision, layers in summary.precisions.items())
    shared = f"time shared with {summary.shared_with}, which runs the same instructions"
    facts = [
        f"{summary.images}; intervals are of 95 %",
        f"{engine_label(summary.request.engine)}, batch {summary.batch}, threads: {summary.threads}; "
        f"layers: {kernels} ({summary.realisation})",
        *([shared] if summary.shared_with else []),
        *(f"**{badge.name}**: {badge.words}" for badge in summary.badges),
        *summary.notes,
    ]
    return "\n".join(rows) + "\n\n" + _bullets(facts)


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


ARTIFACTS: dict[str, Artifact] = {
    "safetensors": Artifact(MODEL_FILES["safetensors"], lambda: None, write_safetensors),
    "packed": Artifact(MODEL_FILES["packed"], lambda: None, write_packed),
    "onnx": Artifact(MODEL_FILES["onnx"], _onnx_needs, write_onnx),
    "openvino": Artifact(MODEL_FILES["openvino"], openvino.problem, write_openvino),
}
