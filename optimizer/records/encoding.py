"""How records are written, read and named."""

import hashlib
from dataclasses import fields, is_dataclass
from typing import TypeVar

import msgspec

from optimizer.errors import InputError
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

T = TypeVar("T")

LATER: dict[type, dict[str, tuple[object, dict[str, object]]]] = {
    Recipe: {"finetune_steps": (0, {"training_seconds": 0.0}), "effort_seconds": (0, {})},
    PruneSpec: {"match": (False, {})},
    QuantizeSpec: {"precision": ("f32", {}), "equalise": (False, {})},
}
"""Fields that came after results were stored: the value that those have, and what a digest has in its place
(the field whose place it took, or nothing). With any other value a field is part of it like all others. Of a
layer's execution the first digests left out f32 as well. Nothing goes from here: it would change the keys.
What later modules have is added there."""
GONE: dict[type, dict[str, dict[str, object]]] = {PruneSpec: {"snap": {"effort": "fast"}}}
"""Fields that there are no more: what digests have of them before another field. Nothing goes from here
either."""


def encode(record: object) -> bytes:
    """JSON bytes of any record."""
    return msgspec.json.encode(record, order="deterministic")


def decode(data: bytes | str, kind: type[T]) -> T:
    """Read back what :func:`encode` wrote. Raises InputError for anything else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"not a {kind.__name__} record: {error}") from error


def digest(value: object) -> str:
    """A short, stable name for any value made of records and plain data.

    Fields that came later count only where they differ from what came before (:data:`LATER`), so that what is
    stored is still found. Raises InputError for a name that is not UTF-8, which no JSON holds.
    """
    try:
        plain = msgspec.json.encode(_digested(value))
    except UnicodeEncodeError as error:
        raise InputError(
            f"{error.object!a} is not UTF-8: rename it (convmv does so for all files in a folder), or set "
            "PYTHONUTF8=1 where only the terminal's locale is not"
        ) from error
    return hashlib.sha256(plain).hexdigest()[:20]


def _digested(value: object) -> object:
    if is_dataclass(value):
        later, plain = LATER.get(type(value), {}), dict[str, object]()
        for one in fields(value):
            content = getattr(value, one.name)
            plain |= GONE.get(type(value), {}).get(one.name, {})
            if one.name in later and content == later[one.name][0]:
                plain |= later[one.name][1]
            else:
                plain[one.name] = _digested(content)
        return plain
    if isinstance(value, dict):
        return {key: _digested(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_digested(one) for one in value]
    return value
