"""What the entries of all registries have in common: options, and where a method's code is."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from optimizer.errors import InputError, unknown


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A field of a spec that a method may read: ``choices`` are its values, and what each is called."""

    label: str
    choices: Mapping[Any, str]
    default: Any
    help: str = ""


def load(code: object) -> Any:
    """What ``code`` names as ``"package.module:name"``, imported now; anything but a string is given back."""
    if not isinstance(code, str):
        return code
    module, _, name = code.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, slots=True)
class Entry:
    """What every registry says of each of its own. ``code`` names the object that does it
    (``"package.module:name"``), or is it."""

    name: str
    label: str
    help: str = ""
    code: object = None

    def load(self) -> Any:
        """What ``code`` names, imported now."""
        return load(self.code)


E = TypeVar("E", bound=Entry)


def by_name(*entries: E) -> dict[str, E]:
    """A registry of these."""
    return {entry.name: entry for entry in entries}


def named(kind: str, name: str, registry: Mapping[str, E]) -> E:
    """The entry of that name. Raises InputError for an unknown one, with those that there are."""
    if name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def format_of(path: Path, format: str | None, extensions: dict[str, tuple[str, ...]]) -> str:
    """The ``format`` that a file is to have, or else that of its name, of several the first.

    ``extensions`` (``.onnx``) are those of each format. Raises InputError for an extension that stands for
    none, an unknown format, and an extension that is another format's.
    """
    suffix = path.suffix.lower()
    by_extension = {one: name for name, own in reversed(extensions.items()) for one in own}
    kind = format or by_extension.get(suffix, "")
    if kind not in extensions:
        raise unknown("format", format or path.suffix or str(path), [*extensions, *by_extension])
    if suffix in by_extension and suffix not in extensions[kind]:
        raise InputError(
            f"{path.name} has the extension of {by_extension[suffix]}, but {kind} was asked for: give a "
            f"name that ends in {' or '.join(extensions[kind])}, or leave the format out"
        )
    return kind
