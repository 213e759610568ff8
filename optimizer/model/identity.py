"""What a module computes, as a digest that is the same in every process: code, what it works with, weights.

What torch and the standard library define is known by its name, since a result's key has torch's version.
Methods of other installed packages are known by their code, and what a user's own functions name is followed
wherever it leads. None of the user's code runs for that.
"""

import copyreg
import dis
import hashlib
import sys
import types
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.model.examples import HELD

PLAIN = (
    *(type(None), bool, int, float, complex, str, range, slice, type(...)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
"""Kinds of values that ``repr`` tells whole."""
IMMUTABLE = {*PLAIN, bytes, tuple, frozenset}
"""Whether two equal ones are the same object is up to Python."""
CONTAINERS = (list, tuple, dict, set, frozenset)
IN_C = (
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType),
    *(types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType),
)
FOLLOWED = (
    *(*PLAIN, bytes, *CONTAINERS, *IN_C, Tensor, np.ndarray, np.generic, nn.Module),
    *(type, types.FunctionType, types.MethodType, types.ModuleType, torch.jit.ScriptFunction),
    *(partial, Namespace, types.SimpleNamespace, types.MappingProxyType),
    *(type(torch.ops.aten.relu), type(torch.ops.aten.relu.default)),
)
"""Kinds of Python's and of packages that a function works with, wherever it finds them."""
NAMED = {"torch", *sys.stdlib_module_names}
HOOKS = vars(nn.Module()).keys() - {"training", "_parameters", "_buffers", "_modules"}
"""What each module has for hooks, without which a copy is measured."""
TABLES = ("_parameters", "_buffers", "_modules")
NAMES = ("co_names", "co_varnames", "co_freevars", "co_cellvars")
SIGNATURE = ("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags")

Described = tuple[str, bytes | memoryview, Iterable[object]]
"""A kind with its name, bytes, and the parts that it is made of."""


def content(value: object) -> str:
    """A digest of a module, or of anything that one holds.

    Equal for copies, also for those that another process makes with the same code. What is met again counts
    as that, so that cycles end and tied weights are not the same as equal ones.
    """
    digest = hashlib.sha256()
    met: dict[int, tuple[int, object]] = {}  # with the value, whose id would be free for another
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if id(value) in met:
            digest.update(f"met {met[id(value)][0]};".encode())
            continue
        if type(value) not in IMMUTABLE:
            met[id(value)] = len(met), value
        name, data, described = _described(value)
        parts = [*described]
        digest.update(f"{name} {len(data)} {len(parts)};".encode())
        digest.update(data)
        waiting += reversed(parts)
    return digest.hexdigest()


def _described(value: Any) -> Described:  # noqa: C901 (a table: one line for each type)
    kind = type(value)
    if kind in PLAIN:
        return f"{kind.__name__} {value!r}", b"", ()
    match value:
        case bytes():
            return "bytes", value, ()
        case Tensor():
            dense = value.dequantize() if value.is_quantized else value.detach().to_dense()
            raw = dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            return f"tensor {value.dtype}", raw, (tuple(value.shape),)
        case np.ndarray():
            return "array", b"", np.ndarray.__reduce__(np.asarray(value))
        case list() | tuple() | dict() | set() | frozenset():
            return _container(value)
        case nn.Module():
            held = {name: one for name, one in _attributes(value) if name not in (*HOOKS, *TABLES, HELD)}
            tables = (dict(getattr(value, name).items()) for name in TABLES)
            return "module", b"", (kind, *tables, *_by_name(held))
        case types.CodeType():
            names = (getattr(value, name) for name in (*NAMES, *SIGNATURE))
            return "code", value.co_code, (*names, value.co_exceptiontable, value.co_consts)
        case types.FunctionType():
            return _function(value)
        case type():
            return _class(value)
        case types.MethodType():
            return "method", b"", (value.__func__, value.__self__)
        case staticmethod() | classmethod():
            return kind.__name__, b"", (value.__func__,)
        case property():
            return "property", b"", (value.fget,)
        case types.MappingProxyType():
            return "mapping", b"", (dict(value),)
        case types.ModuleType():
            return f"import {value.__name__}", b"", ()
        case torch.jit.ScriptFunction():
            return f"script {value.code}", b"", ()
    if isinstance(value, IN_C):
        owner = getattr(value, "__self__", None)
        bound = () if owner is None or isinstance(owner, type | types.ModuleType) else (owner,)
        return f"{kind.__name__} {value.__qualname__}", b"", bound
    held = dict(_attributes(value))
    if "__wrapped__" in held:
        return "wrapper", b"", (held["__wrapped__"],)
    return "object", b"", (kind, *(_as_pickled(value) if _is_installed(kind) else _by_name(held)))


def _container(value: Any) -> Described:
    """By its class's own methods: a subclass may have others."""
    kind = type(value)
    base = next(one for one in CONTAINERS if isinstance(value, one))
    parts = [*(dict.items(value) if base is dict else base.__iter__(value))]
    if base in (set, frozenset):  # their order is another in each process
        parts = sorted(parts, key=_in_a_set)
    others = () if kind is base else (kind, *_by_name(dict(_attributes(value))))
    return f"{base.__name__} {len(parts)}", b"", (*parts, *others)


def _in_a_set(value: object) -> str:
    """Where it stands among others. Of those that this puts in one place the order is left to chance: then
    what was measured is not found again, and nothing wrong is."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_in_a_set, value))})"
    plain = repr(value) if type(value) in (*PLAIN, bytes) else ""  # of others it may be the user's code
    named = value.__qualname__ if isinstance(value, type | types.FunctionType) else ""
    return f"{type(value).__name__} {named} {plain}"


def _function(function: types.FunctionType) -> Described:
    """Its code, and what that finds outside of it: enclosed, in a module, or as an attribute of one."""
    home = str(function.__globals__.get("__name__", ""))
    parts: list[object] = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            parts.append(_outside(cell.cell_contents))
    if _package(home) in NAMED:  # which may wrap a function of the user's
        return f"{home}.{function.__qualname__}", b"", parts
    parts += [function.__code__, function.__defaults__, function.__kwdefaults__]
    if not _is_installed(home):
        codes = [*_nested(function.__code__)]
        names = {name for code in codes for name in code.co_names}
        steps = [step for code in codes for step in dis.get_instructions(code)]
        loaded = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        for name in sorted(loaded & function.__globals__.keys()):
            found = function.__globals__[name]
            parts += [name, _outside(found)]
            parts += _inside(found, names)
        for name in sorted(step.argval for step in steps if step.opname == "IMPORT_NAME"):
            for above in ("", _package(home), home.rpartition(".")[0]):  # or relative to one
                parts += _inside(sys.modules.get(f"{above}.{name}".strip(".")), names)
    return function.__qualname__, b"", parts


def _inside(module: object, names: set[str]) -> Iterator[object]:
    """What a user's own module, and those in it, have under ``names``."""
    waiting, seen = [module], set[int]()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, types.ModuleType) or _is_installed(one.__name__) or id(one) in seen:
            continue
        seen.add(id(one))
        for name in sorted(names & vars(one).keys()):
            yield from (name, _outside(vars(one)[name]))
            waiting.append(vars(one)[name])


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _outside(value: object) -> object:
    """What a function finds outside. Of other objects of installed packages only the kind counts: a loader of
    training data, or a log."""
    followed = isinstance(value, FOLLOWED) or "__wrapped__" in dict(_attributes(value))
    return value if followed or not _is_installed(type(value)) else type(value)


def _class(kind: type) -> Described:
    """Its methods and attributes, and the classes that it is made from."""
    if _package(kind.__module__) in NAMED:
        return f"class {kind.__module__}.{kind.__qualname__}", b"", kind.__bases__
    methods = (types.FunctionType, staticmethod, classmethod, property)
    held = {
        name: one for name, one in vars(kind).items() if isinstance(one, methods) or not name.startswith("__")
    }
    return f"class {kind.__qualname__}", b"", (*kind.__bases__, *_by_name(held))


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    """Those in slots too, without running a ``__getattr__`` of the user's."""
    with suppress(AttributeError):  # slots alone
        yield from object.__getattribute__(value, "__dict__").items()
    for kind in type(value).__mro__:
        for name, slot in vars(kind).items():
            if isinstance(slot, types.MemberDescriptorType):
                with suppress(AttributeError):  # nothing in it
                    yield name, slot.__get__(value)


def _as_pickled(value: Any) -> tuple[object, ...]:
    """What makes an installed package's object again; nothing where that can't be."""
    if _package(type(value).__module__) == "torch":  # a graph, say: more than what it computes
        return (str(getattr(value, "__name__", "")),)
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        made = reduce(value) if reduce else value.__reduce_ex__(4)
    except Exception:  # a lock, a generator: each says so in its own way
        return ()
    return (made,) if isinstance(made, str) else (*made[:3], *([*(items or ())] for items in made[3:5]))


def _by_name(held: dict[str, object]) -> Iterator[object]:
    for name in sorted(held, key=str):
        yield from (name, held[name])


def _package(module: str) -> str:
    return module.partition(".")[0]


def _is_installed(where: type | str) -> bool:
    """Whether a class or module is torch's, Python's or an installed package's, and not the user's."""
    package = _package(where if isinstance(where, str) else where.__module__)
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package in NAMED or "site-packages" in file or "dist-packages" in file
