"""Processes that must not outlive whoever started them, and how one ended, in words."""

import contextlib
import getpass
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from optimizer.errors import WorkError
from optimizer.progress import stop_if_cancelled
from optimizer.system.waiting import waiting

CHECK_SECONDS = 0.1
"""From a cancelled work's end to that of the process that it waits for, at most."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
START_FIELD = 19
"""Of /proc/PID/stat, counted after the command: clock ticks from the machine's start to the process's
(proc(5))."""
GRACE_SECONDS = 5
"""From asking a process to end until it is killed."""
GUARD = f'read _; kill -s "$1" -- "$0"; sleep {GRACE_SECONDS}; kill -s KILL -- "$0"'
"""A shell's input ends when the process that holds its other end is gone, however it went."""


def identity() -> str:
    """A name of this process that no other has, for :func:`is_gone`: where it runs, its number, when it
    began."""
    return f"{_here()}/{os.getpid()}/{_began(psutil.Process())}"


def _began(process: psutil.Process) -> str:
    """When a process began, in seconds. Where it is known, after the machine was started: a clock that is set
    changes every time of day, and would make all processes seem to be others."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # not on Linux
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return f"{int(fields[START_FIELD]) / os.sysconf('SC_CLK_TCK'):.2f}"
    return f"{process.create_time():.2f}"


def _here() -> str:
    """Where a process number means this process: cloned machines have one host name, and so have containers
    on the host's network."""
    told = ""
    with contextlib.suppress(OSError):  # not on Linux
        told = BOOT_ID.read_text() + os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def user() -> str:
    """Who asks, for others to see."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in a container
        return "a user"


def is_gone(process: str) -> bool:
    """Whether the process of an :func:`identity` has ended; of one on another host, in another container or
    from before the machine was started anew that is not known. What follows an identity after one more slash
    tells apart what works in one process."""
    here, _, place = process.partition("/")
    if here != _here():
        return False
    number, begun, *_ = [*place.split("/"), ""]
    try:
        found = psutil.Process(int(number))
        return found.status() == psutil.STATUS_ZOMBIE or _began(found) != begun
    except (psutil.NoSuchProcess, ValueError):
        return True
    except psutil.AccessDenied:
        return False


def guard(pid: int, group: bool = False) -> "subprocess.Popen[bytes] | None":
    """A process that ends ``pid`` as soon as this process is gone, killed by SIGKILL or not; :func:`release`
    ends it.

    ``pid`` is asked to end (SIGTERM) and killed ``GRACE_SECONDS`` later; with ``group`` its whole process
    group, which it leads, is killed at once. A process can't be trusted with this itself: in a long native
    call it notices nothing, and Linux's parent-death signal would kill it and leave behind what it started.
    None where there is no POSIX shell. Raises OSError when no process can be started.
    """
    if os.name != "posix":
        return None
    target, how = (f"-{pid}", "KILL") if group else (str(pid), "TERM")
    return subprocess.Popen(
        ["/bin/sh", "-c", GUARD, target, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C ends the others first, and this one when they are gone
    )


def release(guarding: "subprocess.Popen[bytes] | None") -> None:
    """End a guard: what it guards has ended."""
    if guarding is None:
        return
    guarding.kill()  # before its input is closed, or it would strike
    guarding.wait()
    assert guarding.stdin is not None
    guarding.stdin.close()


def run_module(module: str, *arguments: str, max_seconds: float) -> str:
    """What ``python -m module`` prints, in a process of its own that finds the same modules as this one.

    Raises WorkError when it can't be started, fails, or takes longer than ``max_seconds``. It ends where this
    work is cancelled.
    """
    paths = os.pathsep.join(path for path in sys.path if isinstance(path, str))
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            env=os.environ | waiting() | {"PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:  # no memory for one more, or too many
        raise WorkError(f"a fresh process can't be started: {error}") from error
    end = time.monotonic() + max_seconds
    with process:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    printed, said = process.communicate(timeout=CHECK_SECONDS)
                    break
                stop_if_cancelled()
                if time.monotonic() > end:
                    raise WorkError(f"a fresh process took longer than {max_seconds:g} s")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = said.strip()[-500:]
        raise WorkError(f"a fresh process {describe_exit(process.returncode)}{said and f': {said}'}")
    return printed


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process to end, and kill it where it does not within ``GRACE_SECONDS``.

    Streamlit, for one, says goodbye before it ends, and stays where nobody reads its output any more.
    """
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill_group(leader: int) -> None:
    """Kill a process group, where there are such."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def describe_exit(code: int | None) -> str:
    """How a process ended, to follow "its process"; None is one that has not."""
    if code is None:
        return "closed its output"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}{' (often: out of memory)' if name == 'SIGKILL' else ''}"
