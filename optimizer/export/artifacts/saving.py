"""A compressed model as a file of the name that somebody gave: its extension says what is written."""

import errno
import io
import zipfile
from pathlib import Path

from optimizer.errors import UnavailableError
from optimizer.methods import entries
from optimizer.methods.artifacts import ARTIFACTS, CARD_FILE, RECIPE_FILE, holds_recipe
from optimizer.system.whole_files import write_whole

FULL = (errno.ENOSPC, errno.EDQUOT)
ZIPPED = "safetensors"
"""What a ``.zip`` holds where no format is given."""


def format_of(path: Path, format: str | None = None) -> str:
    """The format that a name stands for, or ``format``. Raises InputError as
    :func:`optimizer.methods.entries.format_of`."""
    first = {ZIPPED: ARTIFACTS[ZIPPED]} | ARTIFACTS
    own = {name: (entry.extension,) if entry.extension else () for name, entry in first.items()}
    return entries.format_of(path, format, {name: (*extensions, ".zip") for name, extensions in own.items()})


def save(content: bytes, kind: str, path: Path) -> Path:
    """Write the zip of a format, or where ``path`` is no ``.zip`` the model's own files in it, without recipe
    and card; gives the path of the first. What a plugin writes without a recipe beside it is a file as it is.
    Raises UnavailableError where it can't be written."""
    try:
        if path.suffix.lower() == ".zip" or not holds_recipe(content):
            write_whole(path, content)
            return path
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = [name for name in archive.namelist() if name not in (CARD_FILE, RECIPE_FILE)]
            places = [path.with_suffix(Path(name).suffix) for name in files] if len(files) > 1 else [path]
            for name, place in zip(files, places, strict=True):
                write_whole(place, archive.read(name))
    except OSError as error:
        advice = "Free some space" if error.errno in FULL else "Give a folder that is there"
        raise UnavailableError(f"can't write {path}: {error}. {advice}") from error
    return next((place for place in places if place.suffix == ARTIFACTS[kind].extension), places[0])
