"""How many instructions a piece of work takes, where the kernel lets a program count its own.

Another program beside it changes a time and hardly this. By ``perf_event_open`` (Linux manual pages,
perf_event_open(2)): user space only, so that the usual ``perf_event_paranoid`` of 2 allows it. Virtual
machines often have no counters to give.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optimizer.errors import UnavailableError

Event = tuple[int, int]
"""A type and a number of it, as the kernel numbers them."""
INSTRUCTIONS: Event = (0, 1)

CALLS = {"x86_64": 298, "aarch64": 241}
"""The number of ``perf_event_open`` by machine."""
ATTRIBUTES = struct.Struct("=IIQQQQQ64x")
"""type, size, config, sample period, sample type, read format, flags; the rest of version 5 is 0."""
WITH_TIMES = 1 | 2
"""Read format: the value, the time that it was wanted, and the time that it was counted."""
USER_SPACE_ONLY = 1 << 5 | 1 << 6
"""Flags: neither the kernel nor a hypervisor."""
THREADS = Path("/proc/self/task")


@contextmanager
def counting(event: Event = INSTRUCTIONS) -> Iterator[Callable[[], int]]:
    """Counts in all threads that this process has now; gives what tells how many there were so far.

    Raises UnavailableError where the kernel gives none.
    """
    opened: list[int] = []
    try:
        for thread in os.listdir(THREADS) if THREADS.exists() else ["0"]:
            with suppress(ProcessLookupError):  # it has ended since
                opened.append(_open(event, int(thread)))
        yield lambda: sum(map(_read, opened))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _open(event: Event, thread: int) -> int:
    """A descriptor that counts in one thread. Raises ProcessLookupError where that has ended."""
    number = CALLS.get(platform.machine()) if platform.system() == "Linux" else None
    if number is None:
        raise UnavailableError(
            f"instructions are not counted on {platform.system()}, {platform.machine()}: leave them out"
        )
    kind, config = event
    attributes = ATTRIBUTES.pack(kind, ATTRIBUTES.size, config, 0, 0, WITH_TIMES, USER_SPACE_ONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.syscall(number, ctypes.c_char_p(attributes), thread, -1, -1, 0))
    if descriptor < 0:
        reason = os.strerror(code := ctypes.get_errno())
        if code == errno.ESRCH:
            raise ProcessLookupError(code, reason)
        raise UnavailableError(
            f"this Linux kernel gives no count of instructions ({reason}): a machine without hypervisor has "
            "them, with kernel.perf_event_paranoid at most 2"
        )
    return descriptor


def _read(descriptor: int) -> int:
    """Where several programs count, each has the counters for a part of the time: extended to all of it."""
    value, wanted, counted = struct.unpack("=QQQ", os.read(descriptor, 24))
    return round(value * wanted / counted) if counted else 0
