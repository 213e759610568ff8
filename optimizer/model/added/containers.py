"""What a weights file says of itself, checked before anything of its size is made. No torch.

A safetensors file begins with the length of a JSON header that names each tensor's type, shape and place; a
file of ``torch.save`` is a zip of uncompressed entries, or in old ones a row of pickles.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

from optimizer.errors import InputError, one_line, shown
from optimizer.formats import format_bytes
from optimizer.model.added.limits import MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME, MAX_TENSORS
from optimizer.system.uploads import check_entries

DTYPE_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPE_BYTES |= {"F16": 2, "BF16": 2, "U16": 2, "I16": 2, "F32": 4, "U32": 4, "I32": 4}
DTYPE_BYTES |= {"F64": 8, "U64": 8, "I64": 8}
SAFETENSORS = ".safetensors"
PICKLED = (".pt", ".pth")
CHECKPOINTS = (SAFETENSORS, *PICKLED)
MODEL_FILES = (*CHECKPOINTS, ".onnx")


EXPORTED = ".pt2"
"""Of torch.export: a program, as TorchScript is."""


def is_model_file(path: str) -> bool:
    """Whether a path is named as a model file."""
    return path.lower().endswith(MODEL_FILES)


def check_kind(name: str) -> None:
    """Whether a file of that name is of a kind that is read. Raises InputError."""
    if is_model_file(name):
        return
    if name.lower().endswith(EXPORTED):
        raise InputError(
            f"{name} is of no kind that is read: it is a program of torch.export, which can only be read by "
            "running it, and that is never done. Save the module's weights, torch.save(module.state_dict(), "
            "'weights.pt'), or export it as ONNX"
        )
    raise InputError(f"{name} is of no kind that is read: give one of {', '.join(MODEL_FILES)}")


def read_header(content: bytes, total: int) -> dict[str, Any]:
    """The header of a safetensors file of ``total`` bytes, which begins with ``content``, as JSON.

    Raises InputError where it is no header, or has more than MAX_HEADER_BYTES or than the file.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(MAX_HEADER_BYTES, total - 8):
        raise InputError(
            f"it is no safetensors file, or is cut off: it says that its header has {size:,} bytes, more "
            f"than the file or the allowed {MAX_HEADER_BYTES:,}. Download or write it again"
        )
    try:
        header = json.loads(content[8 : 8 + size], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the safetensors header is damaged ({one_line(error, 120)}): download or write the file again"
        ) from error
    if not isinstance(header, dict):
        raise InputError("the safetensors header is damaged (no JSON object): download or write it again")
    return header


def check_safetensors(file: Path) -> dict[str, str]:
    """The metadata. Raises InputError unless the header describes the rest of the file, byte for byte."""
    total = file.stat().st_size
    with file.open("rb") as opened:
        begin = opened.read(8)
        size = int.from_bytes(begin, "little")
        header = read_header(begin + opened.read(min(size, MAX_HEADER_BYTES)), total)
    metadata = header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise InputError(f"it names {len(header):,} tensors: up to {MAX_TENSORS:,} are read")
    places = sorted(_place(name, entry) for name, entry in header.items())
    end = 0
    for begin_at, end_at, name in places:
        if begin_at != end:
            raise InputError(f"tensor {shown(name)} does not begin where the one before it ends")
        end = end_at
    if end != total - 8 - size:
        raise InputError(
            f"its header describes {format_bytes(end)} of values, the file has "
            f"{format_bytes(total - 8 - size)}: it is cut off, or was changed"
        )
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def _place(name: str, entry: object) -> tuple[int, int, str]:
    """Where a tensor begins and ends, once its type, shape and place agree."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise InputError(f"tensor {shown(name)} has no type, shape and place")
    if len(name) > MAX_NAME or not name.isprintable():
        raise InputError(f"tensor {shown(name)} has a name that is too long or can't be printed")
    if dtype not in DTYPE_BYTES:
        raise InputError(f"tensor {shown(name)} is of type {shown(dtype)}, which is not read")
    if len(shape) > MAX_DIMENSIONS or not all(type(side) is int and side >= 0 for side in shape):
        raise InputError(f"tensor {shown(name)} has the shape {shown(shape)}, which can't be")
    if math.prod(shape) * DTYPE_BYTES[dtype] != end - begin or begin < 0:
        raise InputError(
            f"tensor {shown(name)} of shape {shown(shape)} does not take the {end - begin:,} bytes that it "
            "is said to take"
        )
    return begin, end, name


def check_zip(file: Path) -> None:
    """Raises InputError for a zip that ``torch.save`` can't have written: compressed or overlapping entries,
    which could hold more than the file, or names that lead elsewhere."""
    total = file.stat().st_size
    check_entries(file, "it", 2 * MAX_TENSORS)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, UnicodeError) as error:
        raise InputError(f"its zip archive is damaged ({one_line(error, 120)}): save it again") from error
    if len(entries) > 2 * MAX_TENSORS:
        raise InputError(f"it holds {len(entries):,} entries: up to {2 * MAX_TENSORS:,} are read")
    if any(entry.filename.endswith("constants.pkl") or "/code/" in entry.filename for entry in entries):
        raise InputError(
            "it is a TorchScript program, which can only be read by running it, and that is never done: give "
            "the module that it was made from, optimizer.measure(module), or save that one's weights, "
            "torch.save(module.state_dict(), 'weights.pt')"
        )
    for entry in entries:
        if ".." in entry.filename.split("/") or entry.filename.startswith("/") or "\\" in entry.filename:
            raise InputError(f"its entry {shown(entry.filename)} leads elsewhere")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise InputError(
                f"its entry {shown(entry.filename)} is compressed ({format_bytes(entry.compress_size)} that "
                f"become {format_bytes(entry.file_size)}): torch.save writes none such, save it with that"
            )
    if (held := sum(entry.file_size for entry in entries)) > total:
        raise InputError(f"its entries overlap: {format_bytes(held)} in a file of {format_bytes(total)}")
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_HEADER_BYTES:
        raise InputError("it has no list of its tensors, or one that is too long: write it with torch.save")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a name comes twice: readers differ in which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found
