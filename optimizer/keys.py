"""Content keys: equal for two requests that would give the same result on this machine."""

import hashlib
from functools import lru_cache
from pathlib import Path

from optimizer import __version__
from optimizer.environment import environment
from optimizer.folders import fingerprint
from optimizer.records import SCHEMA, Request, digest
from optimizer.resources import assets_dir


def request_key(request: Request) -> str:
    """Changes with the request, the files in its image folders, bundled weights, code, libraries and machine.

    Weights from elsewhere are told apart by the model's name or by their package's version.
    """
    weights = assets_dir() / f"{request.model}.safetensors"
    version = _file_digest(weights, weights.stat().st_mtime_ns) if weights.is_file() else ""
    files = fingerprint(request.data)
    return digest([SCHEMA, __version__, request, version, files, environment().key])


@lru_cache(maxsize=32)
def _file_digest(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
