"""The zip file: written so that the same model gives the same bytes, and read without believing it."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import InputError, ParetoscopeError, one_line
from optimizer.export.artifacts.card import model_card
from optimizer.export.artifacts.source import ArtifactSource
from optimizer.formats import listed
from optimizer.methods.artifacts import CARD_FILE, RECIPE_FILE

DENSE_FILE = "model.safetensors"
PACKED_FILE = "model.packed.safetensors"
"""The models that can be read again."""

TEXT_BYTES = 1 << 20
"""The most that a recipe or a card may have."""
DIRECTORY_BYTES = 4096
"""The most that a zip's list of entries may have: three short names are all there is."""


def zipped(
    source: ArtifactSource,
    files: Mapping[str, bytes],
    loading: str,
    notes: tuple[str, ...] = (),
    any_batch: bool = True,
) -> bytes:
    """A model's own ``files``, its recipe, and its card, which says how to load it again, and whether it
    takes ``any_batch`` or one input at a time.

    Raises InputError for more than a zip file can hold.
    """
    recipe = json.dumps(source.compressed.recipe.to_dict(), indent=2)
    sizes = {name: len(content) for name, content in files.items()}
    card = model_card(source, sizes, loading, notes, any_batch)
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
            f"{source.card.name} is larger than the 2 GiB of a zip file: use fewer weight bits"
        ) from error
    return buffer.getvalue()


def model_file(source: Path | str | bytes, most: int) -> tuple[str, bytes]:
    """Name and content of the model in a zip, at most ``most`` bytes; of a file that is no zip all of it, and
    no name.

    Raises InputError for a file that can't be read, is damaged, or holds anything else.
    """
    what = "the file" if isinstance(source, bytes) else str(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size > most + 2 * TEXT_BYTES:
                raise InputError(
                    f"{what} has {size:,} bytes, more than the {most + 2 * TEXT_BYTES:,} that a file of this "
                    "model can have: it is of another model, or damaged"
                )
            file.seek(0)
            if file.read(4) != b"PK\x03\x04":
                file.seek(0)
                return "", file.read()
            check_directory(file, size)
            with zipfile.ZipFile(file) as archive:
                return _read_model(archive, most)
    except ParetoscopeError:
        raise
    except OSError as error:
        raise InputError(f"{what} can't be read ({error.strerror}): give the path of a zip file") from error
    except Exception as error:  # damaged bytes reach any part of zipfile
        raise damaged(what, error) from error


def check_directory(file: Any, size: int) -> None:
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
    model = [name for name in entries if name in (DENSE_FILE, PACKED_FILE)]
    if len(model) != 1 or len(archive.infolist()) != 3 or entries.keys() != {*model, RECIPE_FILE, CARD_FILE}:
        raise InputError(
            f"the zip holds {some([entry.filename for entry in archive.infolist()])}, not {DENSE_FILE} or "
            f"{PACKED_FILE} with {RECIPE_FILE} and {CARD_FILE}: use one as it was written. ONNX and OpenVINO "
            "files are read by their own runtimes"
        )
    for name, entry in entries.items():
        allowed = most if name in (DENSE_FILE, PACKED_FILE) else TEXT_BYTES
        if entry.file_size > allowed:
            raise InputError(
                f"{name} would unpack to {entry.file_size:,} bytes, more than the {allowed:,} that it can "
                "have for this model: it is of another model, or damaged"
            )
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise InputError(f"{name} is encrypted or packed in an unusual way: store or deflate it")
    return model[0], archive.read(model[0])


def damaged(what: str, error: object) -> InputError:
    """``error``, of whatever kind, in words that say what to do."""
    reason = one_line(error, 200)
    return InputError(f"{what} is damaged or no file of Paretoscope ({reason}): download or write it again")


def some(names: list[str]) -> str:
    """The first three, and how many more: there may be any number, of any length."""
    return listed([name[:80] for name in names])
