"""What the entries of all registries have in common: options, and where a method's code is."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
