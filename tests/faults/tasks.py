"""What the workers of the pool's tests run. Hundreds of them start: none imports what only some need."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from optimizer.errors import InputError
from optimizer.progress import Cancelled, is_enough, publish, stop_if_cancelled, uninterrupted

Report = Callable[[float | None, str], None]


SEEDS = range(int(os.environ.get("PARETOSCOPE_TEST_SEEDS", "1")))
"""Of tests that kill at random moments: `make soak` has many."""


POLLING_SHARE = 0.05
"""Of the time for which a condition may be looked at: what it waits for needs the processor too."""


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll until the condition holds and give back what it gave; AssertionError when it never does."""
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        if value := condition():
            return value
        time.sleep(max(0.01, min(0.1, (time.monotonic() - begun) / POLLING_SHARE)))
    raise AssertionError("waited in vain")


def note(file: str | Path, line: object) -> None:
    """Append a line in one write, so that lines of several processes don't mix."""
    with open(file, "a") as noted:
        noted.write(f"{line}\n")


def lines(file: str | Path) -> list[str]:
    """The lines noted so far."""
    path = Path(file)
    return path.read_text().splitlines() if path.exists() else []


def _wait(request: dict[str, str], report: Report) -> int:
    """Note this process's id in ``begun``, then go on once ``go`` exists."""
    report(0.5, "half way")
    note(request["begun"], os.getpid())
    until(Path(request["go"]).exists)
    return os.getpid()


def _tell(request: dict[str, str], report: Report) -> int:
    """Publish what is known, then wait."""
    publish(("known", request["begun"]))
    return _wait(request, report)


def _die(request: tuple[str, int], report: Report) -> int:
    """Be killed the first ``times`` times; give back how often this was tried."""
    file, times = request
    note(file, os.getpid())
    if len(lines(file)) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(lines(file))


def _fork(request: dict[str, str], report: Report) -> str:
    """Fork a child that outlives this process and holds its pipes open, then wait. On a retry, say so."""
    if lines(request["child"]):
        return "again"
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    note(request["child"], child)
    _wait(request, report)
    return "undisturbed"


def _native(request: dict[str, str], report: Report) -> None:
    """Start a program, then call into C for minutes without letting Python run: no thread of this process
    notices anything."""
    child = subprocess.Popen(["sleep", "600"])
    note(request["child"], child.pid)
    report(None, "in a native call")
    note(request["begun"], os.getpid())
    ctypes.PyDLL(None).sleep(600)


def _hang(request: dict[str, str], report: Report) -> None:
    """Tell of the beginning, then nothing."""
    report(0.1, "reading images")
    note(request["begun"], os.getpid())
    time.sleep(600)


def _go_on(request: dict[str, str], report: Report) -> None:
    """Tell of progress for ever."""
    note(request["begun"], os.getpid())
    while True:
        report(0.1, "training")
        time.sleep(0.05)


def _search(request: dict[str, str], report: Report) -> str:
    """Find better and better until somebody takes the best."""
    note(request["begun"], os.getpid())
    while not is_enough():
        report(0.1, "searching")
        time.sleep(0.05)
    return "the best so far"


def _is_cancelled() -> bool:
    try:
        stop_if_cancelled()
    except Cancelled:
        return True
    return False


def _prepare(request: dict[str, str], report: Report) -> None:
    """Make what later work needs too, once this was cancelled, and then something else."""
    outside = copy_context()
    with uninterrupted():
        _wait(request, report)
        until(lambda: outside.run(_is_cancelled))
        stop_if_cancelled()
        note(request["made"], "made")
    stop_if_cancelled()
    note(request["made"], "and more")


def _eat(request: int, report: Report) -> int:
    """Want ``request`` bytes where the process may have no more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**26, hard))
    try:
        return len(bytearray(request))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _fill_up(request: tuple[str, str, str, int], report: Report) -> None:
    """Fill a store where no file may grow beyond 500 kB, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        _store("fill", request, report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _chat(request: int, report: Report) -> int:
    """Report from several threads at once, and go on reporting after the end."""

    def talk(times: int) -> None:
        for step in range(times):
            report(step / times, "x" * 1000)

    threads = [threading.Thread(target=talk, args=(request,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.Thread(target=talk, args=(request * 10,), daemon=True).start()
    return request


def _noisy(request: object, report: Report) -> object:
    """Print, and start a program that prints, where a library might."""
    print("from python")
    os.write(1, b"from C\n")
    os.system("echo from a program")
    return sys.stdin.read()


def _warm(request: str | None, report: Report) -> None:
    if request is not None:
        note(request, "warm")


def _refuse(request: str, report: Report) -> None:
    note(request, "tried")
    raise InputError("sparsity 1.5 is out of range")


def _break(request: str, report: Report) -> None:
    note(request, "tried")
    raise ValueError("no such thing")


def _note(request: tuple[str, str], report: Report) -> None:
    note(*request)


def _store(task: str, request: Any, report: Report) -> object:
    """A task that stores something."""
    from faults import storing

    return getattr(storing, task)(request, report)


def _hold(request: dict[str, str], report: Report) -> None:
    from optimizer.system.machine_lock import machine_lock

    with machine_lock(request["lock"]):
        _wait(request, report)


JOB_KINDS: dict[str, Callable[[Any, Report], object]] = {
    "warm": _warm,
    "echo": lambda request, report: request,
    "exit": lambda request, report: os._exit(3),
    "lambda": lambda request, report: lambda: None,
    "wait": _wait,
    "tell": _tell,
    "die": _die,
    "fork": _fork,
    "native": _native,
    "hang": _hang,
    "go on": _go_on,
    "search": _search,
    "pid": lambda request, report: os.getpid(),
    "prepare": _prepare,
    "eat": _eat,
    "bytes": lambda request, report: bytes(request),
    "chat": _chat,
    "noisy": _noisy,
    "refuse": _refuse,
    "break": _break,
    "note": _note,
    "fill": partial(_store, "fill"),
    "fill up": _fill_up,
    "hold": _hold,
    "measure": partial(_store, "keep_here"),
    "find": partial(_store, "find_here"),
}


def run(task: str, request: Any, report: Report) -> object:
    return JOB_KINDS[task](request, report)
