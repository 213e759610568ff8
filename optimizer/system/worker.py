"""One worker process: the server's end of it, and what runs in it.

The process is started afresh (never forked: the server has threads) and without ``multiprocessing``, whose
spawned children first run the parent's ``__main__`` again: under ``streamlit run`` that is the dashboard
itself. It is told its work through standard input and answers through standard output. When the server dies,
however it dies, a guard kills the worker and whatever it started; and the worker, whose input then ends, ends
itself where it can.
"""

import contextlib
import functools
import importlib
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from optimizer.errors import LITTLE_MEMORY, ParetoscopeError, UnavailableError
from optimizer.progress import Asker, Cancelled, Report, asked_by, stop_if_cancelled
from optimizer.system.processes import describe_exit, guard, kill_group, release
from optimizer.system.waiting import waiting

Target = Callable[[str, Any, Report], object]


class WorkerDied(Exception):
    """Says how, to follow "its worker process"."""


class Worker:
    """The server's end of one worker process. ``run`` belongs to one thread; ``cancel``, ``conclude`` and
    ``kill`` may come from any.

    Raises UnavailableError where no process can be started.
    """

    def __init__(self, target: str) -> None:
        paths = json.dumps([path for path in sys.path if isinstance(path, str)])
        code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        code += "from optimizer.system.worker import work; work(sys.argv[2])"
        self._killed = False  # a killed process takes a moment to go
        self._runs = 0
        self._sending = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            # In a session of its own, so that killing the group takes along what the target started, and so
            # that Ctrl-C in the terminal reaches the server alone.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, paths, target],
                env=os.environ | waiting(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, MemoryError) as error:
            raise _no_process(error) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            self._guard = guard(self._process.pid, group=True)
            threading.Thread(target=self._bury, name="worker's end", daemon=True).start()
        except (OSError, MemoryError, RuntimeError) as error:  # RuntimeError: no more threads
            self.close()
            raise _no_process(error) from error

    @property
    def alive(self) -> bool:
        try:
            self._tell(None)  # reaches nobody as soon as the process is gone, buried or not
        except (OSError, ValueError):  # ValueError: closed
            return False
        return not self._killed

    def run(
        self,
        task: str,
        payload: bytes,
        report: Report,
        receive: Callable[[bytes], None],
        wanted: Callable[[], bool],
    ) -> tuple[str, Any]:
        """``("done", pickled result)``, ``("failed", words)``, ``("broken", words)``, which follow what the
        task is called, or ``("cancelled", "")``; ``receive`` gets, pickled, what the target publishes before.
        ``wanted`` says whether it is still wanted once it has begun: until then, :meth:`cancel` may have had
        nothing to end. Raises WorkerDied."""
        self._runs += 1
        try:
            self._tell((self._runs, task, payload))
            if not wanted():
                self.cancel()
            while True:
                run, kind, answer = pickle.load(self._answers)
                if run != self._runs:  # a thread that an earlier job left behind still reports
                    continue
                if kind == "progress":
                    report(*answer)
                elif kind == "known":
                    receive(answer)
                else:
                    return kind, answer
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            words = describe_exit(self._process.poll())
            self.kill()
            raise WorkerDied(words) from error
        except BaseException:  # the rest of an answer may still be on its way
            self.kill()
            raise

    def cancel(self) -> None:
        """Ask the target to end what it runs; see :func:`optimizer.progress.stop_if_cancelled`."""
        self._ask("cancel")

    def conclude(self) -> None:
        """Ask the target to end with the best that it has; see :func:`optimizer.progress.is_enough`."""
        self._ask("conclude")

    def _ask(self, what: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the process is gone
            self._tell((self._runs, what))

    def _tell(self, message: object) -> None:
        with self._sending:
            _send(self._requests, message)

    def kill(self) -> None:
        """End the process and what it started. It may take a moment to be gone."""
        self._killed = True
        if self._process.poll() is None:
            kill_group(self._process.pid)
            self._process.kill()  # where there are no groups

    def close(self) -> None:
        """End the process, wait until it is gone, and give back what it took."""
        self.kill()
        self._process.wait()
        release(self._guard)
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # unsent bytes, nobody left to read them
                pipe.close()

    def _bury(self) -> None:
        """End what a dead worker started: it may hold open the output that ``run`` reads to its end."""
        self._process.wait()
        kill_group(self._process.pid)


def _no_process(error: BaseException) -> UnavailableError:
    return UnavailableError(
        f"no worker process could be started ({getattr(error, 'strerror', None) or error or 'no memory'}): "
        "this machine has no process or no memory left. End some programs, then try again"
    )


def _send(pipe: BinaryIO | Any, message: object) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


# In the worker process


def work(target: str) -> None:
    """Answer requests with ``target``, named ``"module:function"``, until the server is gone."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints goes to the log, not between the answers
    inbox: queue.SimpleQueue[tuple[int, str, bytes]] = queue.SimpleQueue()
    asked: set[tuple[int, str]] = set()
    threading.Thread(target=_receive, args=(requests, inbox, asked), daemon=True).start()
    lock = threading.Lock()  # the target may report from several threads

    def answer(run: int, kind: str, content: object) -> None:
        with lock:
            try:
                _send(answers, (run, kind, content))
            except BrokenPipeError:
                _leave()

    with contextlib.suppress(Exception):  # loads what the target needs; the first job tells of an error
        _resolve(target)
    while True:
        run, task, payload = inbox.get()
        tell, words = functools.partial(answer, run), [(run, "cancel"), (run, "conclude")]
        tell(
            *_perform(
                target, task, payload, tell, *(functools.partial(asked.__contains__, one) for one in words)
            )
        )
        asked.difference_update(words)


def _receive(
    requests: BinaryIO, inbox: "queue.SimpleQueue[tuple[int, str, bytes]]", asked: set[tuple[int, str]]
) -> None:
    try:
        while True:
            message = pickle.load(requests)
            if message is None:  # only asking whether this process is alive
                continue
            asked.add(message) if len(message) == 2 else inbox.put(message)
    finally:  # end of file, or half a message
        _leave()


def _leave() -> None:
    """The server is gone: end, with what was started here."""
    kill_group(os.getpid())
    os._exit(1)


def _perform(
    target: str,
    task: str,
    payload: bytes,
    answer: Callable[[str, object], None],
    cancelled: Callable[[], bool],
    satisfied: Callable[[], bool],
) -> tuple[str, object]:
    def report(share: float | None, message: str = "") -> None:
        stop_if_cancelled()
        answer(
            "progress", (None if share is None else float(share), str(message))
        )  # plain, whatever was given

    try:
        with asked_by(Asker(lambda known: answer("known", pickle.dumps(known)), cancelled, satisfied)):
            return "done", pickle.dumps(_resolve(target)(task, pickle.loads(payload), report))
    except Cancelled:
        return "cancelled", ""
    except ParetoscopeError as error:
        return "failed", str(error)
    except MemoryError:
        traceback.print_exc()
        return "broken", f"failed: {LITTLE_MEMORY}"
    except Exception as error:
        traceback.print_exc()
        return "broken", f"failed: {type(error).__name__}: {error}"


def _resolve(target: str) -> Target:
    module, _, name = target.partition(":")
    function: Target = getattr(importlib.import_module(module), name)
    return function
