"""What a user takes away: a compressed model as one zip file, with its recipe and a model card, and the way
back from the file to a torch module.

``ARTIFACTS["packed"].write(take_away)`` gives bytes; :func:`load` reads ``safetensors`` and ``packed``. A zip
holds the model's own files, ``recipe.json`` and ``MODEL_CARD.md``, and the same model gives the same bytes.
"""

import copy
import io
import json
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from optimizer import __version__
from optimizer.compress import CompressedModel
from optimizer.engines import onnx_graph, openvino
from optimizer.engines.base import Build
from optimizer.errors import InputError, ParetoscopeError, UnavailableError, WorkError, unknown
from optimizer.export import MODEL_FILES
from optimizer.frame import Summary, summarise
from optimizer.layers import walk
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


def write_onnx(take_away: TakeAway) -> bytes:
    """The graph that the ONNX Runtime engine runs (:mod:`optimizer.engines.onnx_graph`)."""
    import onnx

    compressed, shape = take_away.compressed, take_away.card.input_shape
    try:
        exported = onnx_graph.export(take_away.module, shape)
    except WorkError as error:
        raise WorkError(f"{error}. Take it away in another format.") from error
    graph = onnx_graph.graph_of(exported, compressed, take_away.calibration, take_away.threads)
    onnx.helper.set_model_props(
        graph.model, {"model": take_away.card.name, "recipe": compressed.recipe.to_json()}
    )
    try:
        content: bytes = graph.model.SerializeToString()
    except Exception as error:  # protobuf's own, for more than its 2 GiB
        raise WorkError(f"{take_away.card.name} can't be written as ONNX: {error}") from error
    folded = compressed.recipe.quantize.integer and not graph.int8
    loading = "\n".join(
        [
            "import onnxruntime",
            "options = onnxruntime.SessionOptions()",
            *(['options.add_session_config_entry("session.disable_quant_qdq", "1")'] if folded else []),
            'session = onnxruntime.InferenceSession("model.onnx", options)',
            'logits = session.run(None, {"images": images})[0]  # images: float32 '
            f"{_batch_of(shape, graph.dynamic)}",
        ]
    )
    return _zip(take_away, {"model.onnx": content}, loading, tuple(_onnx_notes(take_away, graph, folded)))


def _batch_of(shape: tuple[int, int, int], dynamic: bool) -> str:
    return f"[{'N' if dynamic else 1}, {', '.join(map(str, shape))}]"


def _onnx_notes(take_away: TakeAway, graph: onnx_graph.Graph, folded: bool) -> Iterator[str]:
    bits, weights = take_away.compressed.recipe.quantize.activation_bits, take_away.compressed.weights
    if not graph.dynamic:
        yield "The graph takes one image at a time: this model can't be exported for more."
    if bits < 32:
        where = "at the layers' inputs" + (", and where int8 kernels want it" if graph.int8 else "")
        yield (
            f"Activations are rounded to {bits} bits {where}, between the lowest and highest value on "
            f"{len(take_away.calibration)} calibration images. Other engines choose places and ranges of "
            "their own: their accuracy is not exactly this file's."
        )
        if left := [name for name in graph.running if name not in graph.rounded]:
            yield f"Inputs that are not rounded: those of {', '.join(left)}."
    if left := [name for name in graph.running if weights[name].bits < 32 and name not in graph.narrowed]:
        yield f"Weights whose values are exact but kept in float32: {', '.join(left)}."
    if folded:
        yield (
            "Without the session's setting ONNX Runtime makes float32 of the weights in every call, which "
            "takes longer than the products."
        )


# Model card

FIGURES = (
    *("accuracy", "drop", "agreement", "file_size", "packed_size", "compressed_size"),
    *("memory", "cold_start", "nonzero", "operations", "latency", "latency_ratio"),
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
    "onnx": Artifact(MODEL_FILES["onnx"], onnx_graph.lacking, write_onnx),
    "openvino": Artifact(MODEL_FILES["openvino"], openvino.problem, write_openvino),
}
