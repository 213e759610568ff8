"""Content keys: equal for two requests that would give the same result on this machine."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from optimizer import __version__
from optimizer.environment import environment
from optimizer.records import SCHEMA, Request, digest
from optimizer.resources import assets_dir
from optimizer.selection import fingerprint


def request_key(request: Request) -> str:
    """Changes with the request, the files in its image folders, bundled weights, code, libraries and machine.

    Weights from elsewhere are told apart by the model's name or by their package's version.
    """
    return request_keys([request])[0]


def request_keys(requests: Sequence[Request]) -> list[str]:
    """The keys of many requests, in order; each image folder among them is looked at once."""
    files = {data: fingerprint(data) for data in {request.data for request in requests}}
    return [
        digest(
            [SCHEMA, __version__, request, _weights(request.model), files[request.data], environment().key]
        )
        for request in requests
    ]


def _weights(model: str) -> str:
    """A digest of bundled weights; empty for a model from elsewhere."""
    path = assets_dir() / f"{model}.safetensors"
    return _file_digest(path, path.stat().st_mtime_ns) if path.is_file() else ""


@lru_cache(maxsize=32)
def _file_digest(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
