"""Models and images on their way to a node, known by their content, each sent once.

A node that has what a request names, at its own place or received before, is sent nothing. Images are the
sender's where their names, sizes and times of change are
(:func:`optimizer.data.selection.fingerprint`): a folder of which half is missing is none of them.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from optimizer.data.classes import index_file
from optimizer.data.folders import expand, list_folder, open_file
from optimizer.data.selection import fingerprint
from optimizer.errors import InputError, UnavailableError
from optimizer.model.added import cards
from optimizer.records import DataSpec, Request
from optimizer.store.keys import weights_version
from optimizer.system.paths import home

FOLDER = "received"
PIECE_BYTES = 8 << 20
"""Of one file that travels at once."""
IMAGES, CALIBRATION, INDEX = "images", "calibration", "index"
"""Folders in a parcel of images."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it travels, with what its sender has: ``weights`` is the version of the model's
    (:func:`optimizer.store.keys.weights_version`), ``downloaded`` says whether it has weights of
    torchvision's that a node would have to fetch, ``files`` is the fingerprint of the images."""

    request: Request
    weights: str
    downloaded: bool
    files: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a node lacks, and its name by content."""

    kind: Literal["model", "weights", "images"]
    name: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the file at ``place`` in a parcel, from ``offset`` on."""

    place: str
    offset: int
    changed_ns: int
    content: bytes


# At the sender


def pack(request: Request) -> Asked:
    """Raises InputError for images that no path leads to, or that can't be read."""
    if request.data.content:
        raise InputError("images in memory stay on this machine: give a folder of images")
    weights = weights_version(request.model)
    path = None if weights else _weights_path(request.model)
    return Asked(request, weights, path is not None and path.is_file(), fingerprint(request.data))


def pieces(asked: Asked, parcel: Parcel) -> Iterator[Piece]:
    """All that is in a parcel. Raises InputError for a file that can't be read."""
    for place, file in _files(asked, parcel):
        try:
            with open_file(file) as opened:
                changed_ns, offset = os.fstat(opened.fileno()).st_mtime_ns, 0
                while (content := opened.read(PIECE_BYTES)) or not offset:
                    yield Piece(place, offset, changed_ns, content)
                    offset += max(1, len(content))
        except OSError as error:
            raise InputError(f"can't send {file} ({error.strerror}): remove it, or mend it") from error


def _files(asked: Asked, parcel: Parcel) -> Iterator[tuple[str, Path]]:
    """Each file of a parcel, and its place in it."""
    request, data = asked.request, asked.request.data
    if parcel.kind == "model":
        model = cards.added_model(request.model)
        yield f"{model.name}.json", cards.card_path(model.name)
        yield model.file, cards.content_path(model.file)
    elif parcel.kind == "weights":
        if found := _weights_path(request.model):
            yield found.name, found
    else:
        for folder, path in ((IMAGES, data.path), (CALIBRATION, data.calibration)):
            for listing in [list_folder(path)] if path else ():
                for file in listing.images:
                    yield f"{folder}/{file.relative_to(listing.path).as_posix()}", file
        if data.class_index:
            yield f"{INDEX}/{expand(data.class_index).name}", expand(data.class_index)
        elif data.path and (beside := index_file(expand(data.path))):
            yield beside.name, beside


def loads(asked: Asked, parcel: Parcel) -> Iterator[list[Piece]]:
    """The same, as many at once as are worth a message."""
    load, size_bytes = list[Piece](), 0
    for piece in pieces(asked, parcel):
        load.append(piece)
        size_bytes += len(piece.content)
        if size_bytes >= PIECE_BYTES:
            yield load
            load, size_bytes = [], 0
    yield load


# At the node


def lacking(asked: Asked) -> Parcel | None:
    """The next that this node has not of what is asked for. Raises UnavailableError for another model of the
    name."""
    request, version = asked.request, weights_version(asked.request.model)
    if version != asked.weights:
        if version:
            raise UnavailableError(
                f"another model has the name {request.model} there: take it out with `paretoscope remove "
                f"{request.model}`, or add this one under another name"
            )
        return Parcel("model", asked.weights)
    if asked.downloaded and (path := _weights_path(request.model)) and not path.is_file():
        return Parcel("weights", request.model)
    return None if _place(asked) else Parcel("images", asked.files)


def at_this_place(asked: Asked) -> Request:
    """The request with this machine's own paths, once nothing is :func:`lacking`."""
    return replace(asked.request, data=_place(asked) or asked.request.data)


def _place(asked: Asked) -> DataSpec | None:
    """Where the images are here: at the sender's own path, as on a shared disk, or received."""
    data, folder = asked.request.data, home() / FOLDER / asked.files
    received = replace(
        data,
        path=data.path and str(folder / IMAGES),
        calibration=data.calibration and str(folder / CALIBRATION),
        class_index=data.class_index and str(folder / INDEX / expand(data.class_index).name),
    )
    for place in (data, received):
        with suppress(InputError):
            if fingerprint(place) == asked.files:
                return place
    return None


def receive(parcel: Parcel, sender: str, arrived: Iterable[Piece]) -> None:
    """Write pieces where nobody reads them yet. Raises UnavailableError."""
    try:
        for piece in arrived:
            file = _partial(parcel, sender) / _checked(piece.place)
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with file.open("r+b" if piece.offset else "wb") as opened:
                opened.seek(piece.offset)
                opened.write(piece.content)
            os.utime(file, ns=(piece.changed_ns, piece.changed_ns))
    except OSError as error:
        raise UnavailableError(f"can't write to {home() / FOLDER} ({error.strerror}): make room") from error


def keep(parcel: Parcel, sender: str, asked: Asked) -> None:
    """Put a whole parcel of what is asked for into its place, unless another sender's is there: that may be
    read already. Raises InputError for a model that is damaged."""
    partial = _partial(parcel, sender)
    if parcel.kind == "images":
        place = home() / FOLDER / parcel.name
        with suppress(OSError):  # something is there
            partial.rename(place)
        if _place(asked) is None:  # and it is not whole
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):
                partial.rename(place)
    elif parcel.kind == "weights":
        if target := _weights_path(parcel.name):
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f"{target.name}.{sender}.partial")
            shutil.move(partial / target.name, beside)  # the two may be on different disks
            beside.replace(target)
    else:
        model = cards.read_card(next(partial.glob("*.json")))
        with (partial / model.file).open("rb") as file:
            if not model.file.startswith(hashlib.file_digest(file, "sha256").hexdigest()[:20]):
                raise InputError(f"the model {model.name} was damaged on its way: try again")
        (partial / model.file).replace(cards.content_path(model.file))
        cards.save_card(model)
    shutil.rmtree(partial, ignore_errors=True)


def _weights_path(model: str) -> Path | None:
    from optimizer.model.sources import torchvision_hub

    return torchvision_hub.weights_path(model)


def _partial(parcel: Parcel, sender: str) -> Path:
    return home() / FOLDER / f".{parcel.kind}-{_checked(parcel.name)}-{_checked(sender)}"


def _checked(place: str) -> PurePosixPath:
    """Raises InputError for one that leads elsewhere."""
    path = PurePosixPath(place)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{place!r} leads out of the folder {FOLDER}")
    return path
