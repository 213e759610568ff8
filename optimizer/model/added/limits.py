"""A model file is read in a process of its own, whose memory, time and output are limited, before anything of
it is believed here.

What is limited: processor seconds, memory beyond what the libraries take, bytes written, open files; and by
the readers themselves bytes, header, tensors and elements. Where the system has no such limits (Windows), the
process still ends after ``max_seconds``.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from optimizer.errors import InputError, ParetoscopeError, WorkError, one_line
from optimizer.formats import format_bytes
from optimizer.system.processes import run_module

MAX_FILE_BYTES = 4 << 30
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
MAX_NAME = 500
"""Characters of a tensor's name."""
BASE_SECONDS, SECONDS_A_GIGABYTE = 4.0, 60.0
"""Processor seconds that reading may take once the libraries are loaded."""
BASE_MEMORY_BYTES, MEMORY_A_BYTE = 192 << 20, 4
"""Memory beyond that of the libraries."""
RUN_SECONDS, RUN_BYTES = 150.0, 2 << 30
"""What more it takes to run a network on a few images. A small file may have much to do: a U-Net on 512
pixels takes half of it."""
LIBRARIES_SECONDS, LIBRARIES_BYTES = 60.0, 2 << 30
"""To load them, on a machine that has other things to do."""


def read_limited(reader: str, file: Path, name: str, runs: bool = False, **options: Any) -> dict[str, Any]:
    """What ``reader``, one of :mod:`optimizer.model.added.child`, says of a file, given ``options``; with
    ``runs`` it has the network answer images. Raises InputError, which calls the file ``name``, for one that
    is refused."""
    size = file.stat().st_size
    if not size:
        raise InputError(f"{name} is empty (0 bytes): export or download it again")
    if size > MAX_FILE_BYTES:
        raise InputError(
            f"{name} has {format_bytes(size)}: files of up to {format_bytes(MAX_FILE_BYTES)} are read"
        )
    seconds = BASE_SECONDS + SECONDS_A_GIGABYTE * size / 1e9 + runs * RUN_SECONDS
    asked = {"file": str(file), "seconds": seconds, "size": size, "runs": runs, **options}
    try:
        printed = run_module(
            "optimizer.model.added.child",
            reader,
            json.dumps(asked),
            max_seconds=LIBRARIES_SECONDS + 2 * seconds,
        )
        answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    except (WorkError, ValueError, IndexError) as error:
        raise InputError(
            f"{name} is refused: reading it took more than the {seconds:.0f} s of processor time or the "
            f"memory that a file of {format_bytes(size)} gets, or broke the reader ({one_line(error, 200)})"
        ) from error
    if "refused" in answer:
        raise InputError(f"{name} is refused: {answer['refused']}")
    return answer


# In the limited process


def limit_this_process(seconds: float, size: int, libraries: bool = False, runs: bool = False) -> None:
    """From now on: what was loaded and spent already does not count. ``size`` is the file's in bytes; with
    ``libraries`` there is room to load these, and where it ``runs`` for what a network makes of images."""
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    now = psutil.Process()
    used = now.cpu_times()
    spent = used.user + used.system
    memory = BASE_MEMORY_BYTES + MEMORY_A_BYTE * size + libraries * LIBRARIES_BYTES + runs * RUN_BYTES
    seconds += libraries * LIBRARIES_SECONDS
    data = getattr(now.memory_info(), "data", now.memory_info().vms)
    for kind, limit in (
        ("RLIMIT_CPU", int(spent + seconds) + 1),
        ("RLIMIT_DATA", data + memory),
        ("RLIMIT_AS", now.memory_info().vms + 4 * memory),
        ("RLIMIT_FSIZE", 2 * size + (16 << 20)),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has them all
            number = getattr(resource, kind)
            _, hard = resource.getrlimit(number)
            resource.setrlimit(number, (limit if hard < 0 else min(limit, hard), hard))


def refusal(error: BaseException) -> str:
    """Why a file is refused, in one sentence, of whatever reading it raised."""
    if isinstance(error, ParetoscopeError):
        return str(error)
    if lacks_memory(error):
        return "reading it would take more memory than a file of its size may"
    said = ": ".join(dict.fromkeys((type(error).__name__, one_line(error, 200))))
    return f"it is damaged or of another kind ({said})"


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of torch's or another library's says that it got no memory."""
    words = ("alloc", "out of memory", "not enough memory", "could not create a primitive")  # oneDNN's
    return isinstance(error, MemoryError) or any(one in str(error).lower() for one in words)
