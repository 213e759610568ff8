"""Whatever holds a network, opened to be run as it is: an ONNX file, an OpenVINO IR, a zip file of ours, or a
model of the catalogue. Files are read by the limited process first.
"""

import hashlib
import os
import uuid
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from optimizer.analysis.two_files import NETWORK_FILES, NetworkRef, is_network_file
from optimizer.data.folders import expand
from optimizer.engine.opened import Network
from optimizer.errors import InputError
from optimizer.export.artifacts.archive import DENSE_FILE, PACKED_FILE, check_directory
from optimizer.export.artifacts.restore import load, model_named
from optimizer.measurement.two_files_prepared import Candidate
from optimizer.measurement.workspace import open_workspace
from optimizer.model.added import cards, declared, files, onnx_file
from optimizer.model.added.limits import read_limited
from optimizer.model.added.network_reading import IR_FILES, ONNX_FILE
from optimizer.model.catalogue import catalogue
from optimizer.model.preprocessing import CHANNELS, IMAGENET
from optimizer.model.sources import LoadedModel
from optimizer.progress import Report, quiet
from optimizer.store.keys import weights_version


@dataclass(frozen=True)
class _Kept:
    """A network that the limited process has written anew: ``kind`` onnx or ir, and the shape of its images,
    0 where a side is open; ``metadata`` are the file's."""

    kind: str
    path: Path
    shape: tuple[int, ...]
    metadata: Mapping[str, Any]


def opened(ref: NetworkRef, report: Report = quiet) -> Candidate:
    """Raises InputError for what is no network, no model, or can't be read; UnavailableError for what this
    machine lacks."""
    path = expand(ref.place)
    if not is_network_file(ref.place):
        if os.path.isfile(path) and ref.place not in catalogue():
            raise InputError(
                f"{ref.name} is no file that says which network it is: give one of "
                f"{', '.join(NETWORK_FILES)}, or a model's name. Of weights saved here save the .zip; "
                "a checkpoint is added as a model first (paretoscope add)"
            )
        return _of_model(ref.place, report)
    if not os.path.isfile(path):
        raise InputError(
            f"there is no file {ref.place!r}: give one of {', '.join(NETWORK_FILES)}, or a model's name"
        )
    report(None, f"reading {ref.name}")
    match path.suffix.lower():
        case ".onnx":
            return _of_onnx(ref, path, report)
        case ".xml":
            weights = Path(ref.weights) if ref.weights else path.with_suffix(".bin")
            found = str(weights) if weights.is_file() else ""
            kept = _read("ir", path, ref.name, weights=found)
            size = path.stat().st_size + weights.stat().st_size
            return _candidate(ref, kept, "OpenVINO IR", size)
        case _:
            return _of_zip(ref, path, report)


def _of_onnx(ref: NetworkRef, path: Path, report: Report) -> Candidate:
    about = files.examine(path, report=report, called=ref.name)
    kept, usual = cards.content_path(about.file), about.preprocessing
    size = max(path.stat().st_size, kept.stat().st_size)  # with what lay beside it
    return Candidate(
        ref.name,
        "ONNX file",
        kept.stem,
        size,
        Network(onnx=kept),
        usual.input_shape,
        about.asks_shape,
        usual,
        bool(about.preprocessing_of),
        about.class_names,
        about.made_of,
    )


def _of_zip(ref: NetworkRef, path: Path, report: Report) -> Candidate:
    try:
        with path.open("rb") as file:
            check_directory(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry.file_size for entry in archive.infolist()}
    except InputError as error:
        raise InputError(f"{ref.name}: {error}") from error
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{ref.name} is no whole zip file ({error}): write it again") from error
    weights = next((name for name in (DENSE_FILE, PACKED_FILE) if name in entries), "")
    if weights:
        return _of_weights(ref, path, entries[weights], report)
    kept = _read("zip", path, ref.name)
    words = "ONNX file, zipped" if kept.kind == "onnx" else "OpenVINO IR, zipped"
    return _candidate(ref, kept, words, sum(entries.get(name, 0) for name in (ONNX_FILE, *IR_FILES)))


def _of_weights(ref: NetworkRef, path: Path, size: int, report: Report) -> Candidate:
    """Of a file that has weights alone: in the model that it says they are of."""
    name = model_named(path)
    try:
        model = open_workspace(name, report=report).model
    except InputError as error:
        raise InputError(
            f"{ref.name} holds weights alone, of {name}, which can't be opened ({error}). Of a module of "
            "your own save an .onnx or .xml file, or a .zip of one of these formats"
        ) from error
    with path.open("rb") as opened_file:
        content = hashlib.file_digest(opened_file, "sha256").hexdigest()[:20]
    module = load(path, model.module, model.input_shape)
    return _of_loaded(ref.name, f"weights of {model.loaded.card.name}", content, size, module, model.loaded)


def _of_model(name: str, report: Report) -> Candidate:
    model = open_workspace(name, report=report).model
    version, added = weights_version(name) or name, cards.added_models().get(name)
    found = _of_loaded(name, "model", version, model.size.file_bytes, model.module, model.loaded)
    if added and added.kind == "onnx":  # as it came: with all its outputs
        file = cards.content_path(added.file)
        return replace(found, network=Network(onnx=file), size_bytes=file.stat().st_size)
    return found


def _of_loaded(
    name: str, kind: str, content: str, size: int, module: nn.Module, loaded: LoadedModel
) -> Candidate:
    shape, network = loaded.card.input_shape, Network(module=module, parts=loaded.joined)
    return Candidate(name, kind, content, size, network, shape, loaded=loaded)


def _candidate(ref: NetworkRef, kept: _Kept, words: str, size: int) -> Candidate:
    asks = not all(kept.shape)
    channels, height, width = (
        side or usual for side, usual in zip(kept.shape, IMAGENET.input_shape, strict=True)
    )
    network = Network(onnx=kept.path) if kept.kind == "onnx" else Network(ir=kept.path)
    shape = (channels, height, width)
    found = Candidate(ref.name, words, kept.path.stem, size, network, shape, asks)
    if channels not in CHANNELS.values():
        return found
    usual = onnx_file.usual_for(channels, height, width)
    said = declared.read(kept.metadata, usual, fixed_size=not asks)
    return replace(
        found,
        preprocessing=said.preprocessing or usual,
        declared=said.preprocessing is not None,
        class_names=said.class_names,
        made_of=said.made_of,
    )


def _read(reader: str, file: Path, called: str, **options: Any) -> _Kept:
    """Read in the limited process and kept under the digest of what that wrote."""
    files.forget_unused()
    target = cards.folder() / f"{uuid.uuid4().hex}.partial"
    parts = [target, target.with_suffix(".xml"), target.with_suffix(".bin")]
    try:
        found = read_limited(reader, file, called, target=str(target), **options)
        digest = hashlib.sha256()
        written = [part for part in parts if part.is_file()]
        for part in written:
            with part.open("rb") as opened_file:
                digest.update(hashlib.file_digest(opened_file, "sha256").digest())
        name = digest.hexdigest()[:20]
        for part in written:
            suffix = ".onnx" if part == target else part.suffix
            part.replace(cards.content_path(f"{name}{suffix}"))
        path = cards.content_path(f"{name}{'.onnx' if found['kind'] == 'onnx' else '.xml'}")
        return _Kept(found["kind"], path, tuple(found["shape"]), found["metadata"])
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink()
