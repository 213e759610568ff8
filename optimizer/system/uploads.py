"""What visitors of the page may upload to the data folder: so much a file, and so much in all."""

import os

from optimizer.errors import InputError
from optimizer.formats import format_bytes
from optimizer.system.downloads import parse_bytes
from optimizer.system.paths import home_path

MAX_UPLOAD_MB = 300
UPLOADS_VARIABLE = "PARETOSCOPE_UPLOADS"
DEFAULT_UPLOADS = "2GB"
"""What files of visitors, and models made of them, may take of the disk where the operator says nothing."""
MODELS, IMAGES = "models", "uploaded-images"
"""Where they lie in the data folder."""


def allowed_bytes() -> int:
    """Raises InputError where the operator's limit is no number of bytes."""
    return parse_bytes(os.environ.get(UPLOADS_VARIABLE, DEFAULT_UPLOADS), UPLOADS_VARIABLE)


def check_room(name: str, size: int) -> None:
    """Whether ``size`` bytes more may be kept, of a file or of what it unpacks to. Raises InputError."""
    allowed = allowed_bytes()
    places = (home_path() / folder for folder in (MODELS, IMAGES))
    held = sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())
    if held + size > allowed:
        raise InputError(
            f"{name} has {format_bytes(size)}: all that is uploaded may have {format_bytes(allowed)}, and "
            f"{format_bytes(held)} are here. Remove models or images, or have who runs this dashboard allow "
            f"more (`paretoscope dashboard --uploads BYTES` or {UPLOADS_VARIABLE})"
        )
