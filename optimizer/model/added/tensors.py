"""The tensors of a weights file, by name, as its architecture knows them. Runs in the limited process.

``.safetensors``, and ``.pt`` or ``.pth`` read with ``weights_only=True``: tensors and plain values, and no
code. Training scripts put the weights into a dict beside an optimizer's state, and wrappers put a prefix
before every name: both are taken off.
"""

import json
import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from optimizer.errors import InputError
from optimizer.formats import listed
from optimizer.model.added.containers import SAFETENSORS, check_safetensors
from optimizer.model.added.declared import MAX_SAID, plain
from optimizer.model.added.limits import MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights"),
    *("state_dict_ema", "model_ema", "ema", "params_ema", "params"),
)
"""Under which training scripts keep the weights, in the order in which they are looked for."""
MAX_WRAPPERS = 4
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Before every name, of DataParallel, torch.compile, Lightning and others."""
TRAINING = re.compile(r"(\w+_)?(loss|losses|criterion|metrics?|acc|accuracy)(_\w+)?\.")
"""How names begin that a training module has beside its network's: of weights of classes, and counts."""
AVERAGED = "n_averaged"
"""What ``AveragedModel`` (EMA, SWA) counts, outside the prefix that it puts before every other name."""
NUMBERS = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
SCALAR: Any = np.float64(0).__reduce__()[0]
BESIDE = [Namespace, np.dtype, *NUMBERS, SCALAR, (SCALAR, "numpy.core.multiarray.scalar")]
"""What training scripts keep beside the weights: their options, and numbers that NumPy gave them. Making one
runs nothing of a file's."""
BEGINNINGS = (b"PK", b"\x80")
"""Of what torch.save writes: a zip, of old a row of pickles."""
WAY_OUT = "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"


def rewrite(file: Path, target: Path) -> dict[str, Any]:
    """Write the tensors of a file as safetensors: unwrapped, none NaN. Gives their names with ``shapes``,
    the ``metadata`` beside them, and ``left_out``, in words. Raises InputError, and whatever a damaged file
    makes torch raise."""
    if target.exists():
        raise InputError(f"{target.name} is there already")
    left_out: list[str] = []
    if file.suffix.lower() == SAFETENSORS:
        metadata = plain(check_safetensors(file))
        tensors = safetensors.torch.load_file(file)
    else:
        loaded = _unpickled(file)
        metadata, tensors = _said_in(loaded), _weights_in(loaded, left_out)
    tensors = _checked(_without_prefix(tensors, left_out))
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        tied = storage in seen  # safetensors keeps no two names of the same memory
        seen.add(storage)
        separate[name] = tensor.detach().clone() if tied else tensor.detach().contiguous()
    safetensors.torch.save_file(separate, target)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return {"shapes": shapes, "metadata": metadata, "left_out": left_out}


def _unpickled(file: Path) -> Any:
    """Raises InputError for what torch.save can't have written, and for what names code, and says what it
    names."""
    with file.open("rb") as opened:
        if not opened.read(2).startswith(BEGINNINGS):
            raise InputError(f"it is no checkpoint as torch.save writes them: {WAY_OUT}")
    try:
        with torch.serialization.safe_globals(BESIDE):
            if zipfile.is_zipfile(file):
                named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
                if named:
                    raise _code(", ".join(named[:3]) + (" ..." if len(named) > 3 else ""))
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if named_code := re.search(r"(?:GLOBAL|reduce|call) ([\w.]+)", str(error)):
            raise _code(named_code[1]) from error
        raise InputError(f"it is damaged, or holds more than tensors: {WAY_OUT}") from error


def _code(named: str) -> InputError:
    return InputError(
        f"it does not hold weights alone but names {named[:200]}, as a whole pickled module does. Reading "
        f"that would import and run code, which is never done: {WAY_OUT}"
    )


def _weights_in(loaded: Any, left_out: list[str], depth: int = 0) -> dict[str, Tensor]:
    """The dict of tensors, from whatever it was put into. Other weights beside them are ``left_out``."""
    if depth > MAX_WRAPPERS:
        raise InputError(f"its tensors are wrapped in more than {MAX_WRAPPERS} dicts: {WAY_OUT}")
    if not isinstance(loaded, Mapping):
        raise InputError(f"it holds {type(loaded).__name__}, not tensors by name: {WAY_OUT}")
    inner = [name for name in WRAPPERS if isinstance(loaded.get(name), Mapping)]
    if inner:
        taken, *others = inner
        left_out += [
            f"other weights, under {other}: those under {taken} are taken. Save the others alone to have them"
            for other in others
            if _holds_tensors(loaded[other])
        ]
        if loose := [str(name) for name, value in loaded.items() if isinstance(value, Tensor)]:
            left_out.append(f"{listed(loose)}, beside the weights under {taken}")
        return _weights_in(loaded[taken], left_out, depth + 1)
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        known = ", ".join(map(str, list(loaded)[:5])) or "nothing"
        raise InputError(f"it holds no tensors by name but {known[:200]}: {WAY_OUT}")
    return tensors


def _holds_tensors(wrapped: Mapping[Any, Any]) -> bool:
    """Itself, or in a dict of its own."""
    parts = [wrapped, *(part for part in wrapped.values() if isinstance(part, Mapping))]
    return any(isinstance(value, Tensor) for part in parts for value in part.values())


def _said_in(loaded: Any) -> dict[str, Any]:
    """What a training script keeps beside the weights, as far as it is plain data."""
    found, left = {}, MAX_SAID
    for name, value in loaded.items() if isinstance(loaded, Mapping) else ():
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):  # tensors, and what holds itself
            continue
        left -= len(text)
        if left >= 0:
            found[str(name)] = json.loads(text)
    return found


def prefix_of(names: Collection[str]) -> str:
    """What wrappers put before every name, but those of TRAINING."""
    names, prefix = [name for name in names if not TRAINING.match(name)], ""
    while names and (more := next((one for one in PREFIXES if _all_begin(names, prefix + one)), "")):
        prefix += more
    return prefix


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _without_prefix(tensors: Mapping[str, Tensor], left_out: list[str]) -> dict[str, Tensor]:
    names = {
        str(name): tensor for name, tensor in tensors.items() if str(name).rpartition(".")[2] != AVERAGED
    }
    prefix = prefix_of(names)
    if beside := [name for name in names if not name.startswith(prefix)]:
        left_out.append(f"{listed(beside)}, of the training: the network's names begin with {prefix}")
    return {name.removeprefix(prefix): names[name] for name in names if name not in beside}


def _checked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Raises InputError for tensors that are not what a weights file holds."""
    if not tensors:
        raise InputError("it holds no tensors")
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"it holds {len(tensors):,} tensors: up to {MAX_TENSORS:,} are read")
    for name, tensor in tensors.items():
        shown = repr(name[:80])
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise InputError(f"tensor {shown} has a name that is empty, too long or can't be printed")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise InputError(
                f"tensor {shown} is sparse, quantized, complex or without values: save it as float32"
            )
        if tensor.ndim > MAX_DIMENSIONS:
            raise InputError(f"tensor {shown} has {tensor.ndim} dimensions: up to {MAX_DIMENSIONS} are read")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise InputError(
                f"tensor {shown} of shape {list(tensor.shape)} says that it has more values than it has"
            )
        if tensor.is_floating_point() and _has_nan(tensor):
            raise InputError(f"tensor {shown} has values that are not a number: save whole weights")
    return tensors


def _has_nan(tensor: Tensor) -> bool:
    """Piece by piece: without a copy of the whole. Infinite ones may be a mask's, which shows in the network
    (:func:`optimizer.model.own.tried`)."""
    flat = tensor.reshape(-1)
    return any(bool(part.float().isnan().any()) for part in flat.split(1 << 20))
