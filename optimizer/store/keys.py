"""Content keys: equal for two requests that would give the same result on the same device."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

from optimizer import __version__
from optimizer.data.selection import recent_fingerprint
from optimizer.methods import plugins
from optimizer.model.added.cards import version_of
from optimizer.records import SCHEMA, Request, digest
from optimizer.system.environment import environment
from optimizer.system.paths import assets_dir


def request_key(request: Request, files: str | None = None, device: str = "") -> str:
    """Changes with the request, the files in its image folders, bundled or added weights, code, libraries and
    machine: this one, or the ``device`` whose environment has that key.

    ``files`` is the fingerprint of the images that were really read
    (:func:`optimizer.data.selection.fingerprint`), so that a result is never filed under images that changed
    meanwhile; without it the folders are looked at, or were some seconds ago. Weights from elsewhere are
    identified by the model's name or by their package's version, methods of plugins by their package's.
    """
    files = recent_fingerprint(request.data) if files is None else files
    return key_under(request, weights_version(request.model), files, device)


def request_keys(requests: Sequence[Request], device: str = "") -> list[str]:
    """The keys of many requests, in order; each model and image folder among them is looked at once."""
    weights = {model: weights_version(model) for model in {request.model for request in requests}}
    files = {data: recent_fingerprint(data) for data in {request.data for request in requests}}
    device = device or environment().key
    return [key_under(one, weights[one.model], files[one.data], device) for one in requests]


def key_under(request: Request, weights: str, files: str, device: str = "") -> str:
    """The key of a request with that version of the weights and fingerprint of the images."""
    asked = [SCHEMA, __version__, request, weights, files, device or environment().key]
    return digest([*asked, *_plugins(request)])


def _plugins(request: Request) -> list[str]:
    """The packages, with their versions, of methods that a plugin added."""
    if not plugins.packages:
        return []
    recipe = request.recipe
    pruners = {spec.method for spec in recipe.prune_specs}
    quantizers = {spec.method for spec in recipe.quantize_specs}
    asked = {request.engine, *pruners, *quantizers}
    return sorted(plugins.packages[name] for name in asked & plugins.packages.keys())


def weights_version(model: str) -> str:
    """A digest of bundled weights, or of an added model; empty for one from elsewhere."""
    path = assets_dir() / f"{model}.safetensors"
    return _file_digest(path, path.stat().st_mtime_ns) if os.path.isfile(path) else version_of(model)


def short_version(model: str) -> str:
    """Enough of :func:`weights_version` to tell one network from another; results are kept with it."""
    version = weights_version(model)
    return digest(version)[:16] if version else ""


class Measured(Protocol):
    """A result, or its summary."""

    @property
    def weights(self) -> str: ...


M = TypeVar("M", bound=Measured)


def of_today(model: str, measured: Iterable[M]) -> list[M]:
    """Those of the network that has the name today. Of what was measured before weights were kept that is
    taken for granted."""
    known = ("", short_version(model))
    return [one for one in measured if one.weights in known]


@lru_cache(maxsize=32)
def _file_digest(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
