"""Let the real dashboard live through visits, kills and bad links, and see that it is as well as before.

    python -m tools.soak --minutes 30        (or: make soak MINUTES=30)

A server of its own, on a free port of this machine and a data folder of its own. Visitors speak to it as a
browser does, over its WebSocket: they open pages with good and bad links, move on before anything is
measured, and leave. Meanwhile its workers are killed at random, and then the server itself, in the middle of
a sweep, of which nothing may be lost or measured twice. At the end each lane must finish a fresh job, the
server's resident memory must be flat since it had warmed up, and its log must hold no stack trace. Where one
of these fails, the exit code is 1, and the log is kept.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlencode

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import Request, encode
from optimizer.search.sweep import Grid
from optimizer.store import ledger
from optimizer.store.results import Store
from optimizer.system.paths import PACKAGE

PAGES = ("", "layers", "latency", "sweep", "compare", "complexity", "models_and_data")
MODELS = ("fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit")
ENGINES = ("openvino", "onnxruntime", "torch", "sparse")
FRESH_MODEL = "fashion-mlp"
"""Its odd sparsities are asked for at the end only."""
SWEEP = Grid(Request(FRESH_MODEL), (0.11, 0.12, 0.13, 0.14), (32, 8), (32,), ("openvino",))
STANDS = "a sweep stands still"
WARM_UP_SHARE, WARM_UP_PAGES = 0.4, 20
"""Of the time, and how many pages are opened, before memory is first looked at: the first of each
page brings modules of its own."""
MIN_LOOKS, MIN_KILLS = 2, 3
"""At memory, and of workers, for a judgement."""
MAX_SPARED = 3
"""Workers are killed so many times less often where no page was opened meanwhile: a slow machine takes longer
to start one than passes between two kills, and the pages would never have what they wait for."""
MAX_GROWTH_BYTES = 128 * 2**20
"""By which the server's resident memory may differ between then and the end: what Streamlit keeps of sessions
that left some minutes ago is among it."""
PATIENCE_SECONDS = 600.0
FAULTS = ("Traceback (most recent call last)", "Exception in thread", "Uncaught")


@dataclass
class Report:
    """What happened, and what should not have."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="paretoscope-soak-"))
    report = soak(
        folder,
        60 * options.minutes,
        options.visitors,
        options.kill_every,
        options.seed,
        options.server_kills,
    )
    print(", ".join(f"{count:,} {what}" for what, count in sorted(report.counts.items())))
    for problem in report.problems:
        print(f"soak: {problem}", file=sys.stderr)
    if report.problems:
        print(f"soak: the server's log and its results are kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return bool(report.problems)


def soak(
    folder: Path, seconds: float, visitors: int, kill_every: float, seed: int, server_kills: int
) -> Report:
    """Serve from ``folder``, disturb for ``seconds``, then look."""
    report, port = Report(), free_port()
    home = folder / "home"
    home.mkdir(mode=0o700)
    store = Store(home / "results.sqlite")
    sweep = ledger.create(store, encode(SWEEP), SWEEP.requests(), "soak")
    with ExitStack() as servers:

        def serving() -> "subprocess.Popen[bytes]":
            return servers.enter_context(_serving(folder, port, report))

        server = serving()
        if not report.problems:
            _disturb(server, port, seconds, visitors, kill_every, seed, report)
            _look(server, port, store.path, report)
        if not report.problems:
            _kill_servers(server, serving, store, sweep, server_kills, random.Random(seed), report)
    _read(folder / "server.log", report)
    return report


@contextmanager
def _serving(folder: Path, port: int, report: Report) -> Iterator["subprocess.Popen[bytes]"]:
    """The dashboard, once it answers, until the block ends."""
    with (folder / "server.log").open("a") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "optimizer.cli", "dashboard", "--headless", "--port", str(port)],
            cwd=PACKAGE.parent,
            env={**os.environ, "PARETOSCOPE_HOME": str(folder / "home"), "https_proxy": "http://127.0.0.1:9"},
            stdout=output,
            stderr=output,
        )
    try:
        _until(lambda: server.poll() is not None or healthy(port), "the server never answered", report)
        yield server
    finally:
        server.terminate()
        server.wait(60)


def _kill_servers(
    server: "subprocess.Popen[bytes]",
    serving: Callable[[], "subprocess.Popen[bytes]"],
    store: Store,
    sweep: int,
    kills: int,
    chance: random.Random,
    report: Report,
) -> None:
    """Kill the server in the middle of a sweep, again and again, and let it finish: nothing of it may be lost
    or measured twice. Nobody visits; a server goes on by itself."""
    ledger.resume(store, sweep)  # what was given up as its workers were killed
    more = replace(SWEEP, weight_bits=(*SWEEP.weight_bits, *range(3, 3 + min(kills, 6))))
    ledger.extend(store, sweep, encode(more), more.requests())
    created = {one.key: one.created for one in store.results()}

    def check() -> None:
        for one in store.results():
            if created.setdefault(one.key, one.created) != one.created:
                report.problems.append(f"{one.request.recipe.describe()} was measured twice")

    def done() -> int:
        return ledger.find(store, sweep).counts.get("done", 0)

    def goes_on() -> bool:
        return done() > before or not ledger.any_open(store)

    for _ in range(kills):
        before = done()
        _until(goes_on, STANDS, report)
        time.sleep(chance.uniform(0, 3))
        for process in (_streamlit(server), server):
            process.kill()
        server.wait(60)
        report.counts["servers killed"] += 1
        check()
        server = serving()

    def finished() -> bool:
        if not ledger.any_open(store):
            ledger.resume(store, sweep)
        return done() == len(more.requests())

    _until(finished, STANDS, report)
    check()
    report.counts["configurations of a sweep"] = done()


def _disturb(
    server: "subprocess.Popen[bytes]",
    port: int,
    seconds: float,
    visitors: int,
    kill_every: float,
    seed: int,
    report: Report,
) -> None:
    over = threading.Event()
    threads = [
        threading.Thread(target=_visit_until, args=(port, over, random.Random(f"{seed} {number}"), report))
        for number in range(visitors)
    ]
    for thread in threads:
        thread.start()
    chance, begun = random.Random(seed), time.monotonic()
    warm, end, last = (
        begun + passed for passed in (WARM_UP_SHARE * seconds, seconds, seconds + PATIENCE_SECONDS)
    )
    resident: list[int] = []
    killed, opened = begun, 0

    def enough() -> bool:
        return len(resident) >= MIN_LOOKS and report.counts["workers killed"] >= MIN_KILLS

    # On a slow machine longer, until enough was seen to judge.
    while (now := time.monotonic()) < end or (not enough() and now < last):
        time.sleep(kill_every * chance.uniform(0.5, 1))
        spared = (
            report.counts["pages opened"] == opened and time.monotonic() < killed + MAX_SPARED * kill_every
        )
        if not spared and (workers := _workers(server)):
            with suppress(psutil.NoSuchProcess):
                chance.choice(workers).kill()
                report.counts["workers killed"] += 1
                killed, opened = time.monotonic(), report.counts["pages opened"]
        if time.monotonic() > warm and report.counts["pages opened"] >= WARM_UP_PAGES:
            resident.append(_resident_bytes(server))
    over.set()
    for thread in threads:
        thread.join()
    if len(resident) < MIN_LOOKS:
        report.problems.append(
            f"its memory was not looked at: {report.counts['pages opened']} pages were opened, fewer than "
            f"{WARM_UP_PAGES} by then"
        )
    else:
        early, late = (sorted(part)[len(part) // 2] for part in (resident[:3], resident[-3:]))
        report.counts["MiB resident at the end"] = late >> 20
        if late - early > MAX_GROWTH_BYTES:
            report.problems.append(
                f"the server's memory grew from {early >> 20} to {late >> 20} MiB after it had warmed up"
            )


def _look(server: "subprocess.Popen[bytes]", port: int, results: Path, report: Report) -> None:
    """Whether the server still does all that it should."""
    if server.poll() is not None:
        report.problems.append(f"the server ended with code {server.returncode}")
        return
    if not healthy(port):
        report.problems.append("the server is not healthy")
    measured, inspected = Recipe(PruneSpec(sparsity=0.43)), Recipe(PruneSpec(sparsity=0.41))

    def measures() -> bool:
        with Visitor(port) as visitor:  # who stays: what the others left behind goes after it
            visitor.open("", urlencode({"model": FRESH_MODEL, "method": "Magnitude", "sparsity": 43}))
            end = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < end:
                if any(one.request.recipe == measured for one in Store(results).results(FRESH_MODEL)):
                    return True
                time.sleep(1)
        return False

    def inspects() -> bool:
        query = {"model": FRESH_MODEL, "recipe": json.dumps(inspected.differences())}
        with Visitor(port) as visitor:
            return "Layer" in visitor.open("layers", urlencode(query)).labels

    _until(measures, "the lane measure does not finish a fresh job", report)
    _until(inspects, "the interactive lane does not finish a fresh job", report)


class Visitor:
    """A browser's end of a session: opens pages, and gathers what they show."""

    def __init__(self, port: int) -> None:
        self._connection = connect(
            f"ws://127.0.0.1:{port}/_stcore/stream",
            subprotocols=[Subprotocol("streamlit")],
            max_size=None,
            open_timeout=60,
        )
        self._socket = self._connection.__enter__()  # kept beyond this function

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.__exit__(None, None, None)

    def open(self, page: str, query: str, patience: float = 60) -> "Shown":
        """Run a page once, until its script ends; what it showed by then."""
        message = BackMsg()
        message.rerun_script.query_string = query
        message.rerun_script.page_name = page
        self._socket.send(message.SerializeToString())
        shown, end = Shown(), time.monotonic() + patience
        while time.monotonic() < end:
            answer = ForwardMsg()
            answer.ParseFromString(self._socket.recv(timeout=max(0.0, end - time.monotonic())))
            if answer.WhichOneof("type") == "delta":
                element = answer.delta.new_element
                kind = element.WhichOneof("type")
                if kind == "exception":
                    shown.exceptions.append(f"{element.exception.type}: {element.exception.message}")
                if kind:
                    shown.labels.add(getattr(getattr(element, kind), "label", ""))
            elif answer.WhichOneof("type") == "script_finished" and (
                answer.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN
            ):
                return shown
        raise TimeoutError


@dataclass
class Shown:
    """Exceptions that a page drew, and the labels of its controls."""

    exceptions: list[str] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)


def _visit_until(port: int, over: threading.Event, chance: random.Random, report: Report) -> None:
    while not over.is_set():
        try:
            with Visitor(port) as visitor:
                for _ in range(chance.randint(1, 4)):
                    page, query = chance.choice(PAGES), link(chance)
                    shown = visitor.open(page, query)
                    report.counts["pages opened"] += 1
                    report.problems += [f"/{page}?{query[:200]} drew {one}" for one in shown.exceptions]
                    if over.wait(chance.uniform(0, 1)):
                        break
        except (OSError, WebSocketException, TimeoutError) as error:
            report.counts["visits cut off"] += 1
            report.counts[f"cut off by {type(error).__name__}"] += 1
            time.sleep(1)


def link(chance: random.Random) -> str:
    """A query as a visitor may send it: good, out of range, garbage, or long."""
    kind = chance.choice(("good", "good", "good", "bad", "recipe", "garbage", "long"))
    if kind == "good":
        return urlencode(
            {
                "model": chance.choice(MODELS),
                "engine": chance.choice(ENGINES),
                "method": "Magnitude",
                "sparsity": chance.randrange(0, 100, 2),
                "bits": chance.choice((2, 3, 4, 8, 32)),
            }
        )
    if kind == "bad":
        names = (
            "model",
            "engine",
            "sparsity",
            "bits",
            "threshold",
            "images",
            "layer",
            "limit",
            "batches",
            "finetune",
        )
        values = ("-1", "nan", "1e309", "../../etc", "\0", "![x](http://127.0.0.1:9)", "999999999999", "💥")
        return urlencode({name: chance.choice(values) for name in chance.sample(names, 3)})
    if kind == "recipe":
        spec = {
            "sparsity": chance.choice((-1, 0.999, 7, "x", None)),
            "method": chance.choice(("magnitude", 3)),
        }
        layers = [{"name": "fc", "weight_bits": chance.choice((0, 8, "eight"))}] * chance.randint(0, 50)
        return urlencode(
            {"recipe": json.dumps({"prune": spec, "layers": layers})[: chance.randint(1, 3_000)]}
        )
    size = 20_000 if kind == "long" else 200
    return quote("".join(chr(chance.randint(1, 0x24FF)) for _ in range(chance.randint(1, size))), safe="=&%")


# The server, from outside


def healthy(port: int) -> bool:
    with (
        suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=30) as answer,
    ):
        return bool(answer.status == 200)
    return False


def _streamlit(command: "subprocess.Popen[bytes]") -> psutil.Process:
    children = psutil.Process(command.pid).children()
    return next(one for one in children if "pages.serve" in one.cmdline())


def _workers(command: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess, StopIteration):
        children = _streamlit(command).children()
        return [one for one in children if any("optimizer.system.worker" in part for part in one.cmdline())]
    return []


def _resident_bytes(command: "subprocess.Popen[bytes]") -> int:
    with suppress(psutil.NoSuchProcess, StopIteration):
        return int(_streamlit(command).memory_info().rss)
    return 0


def _read(log: Path, report: Report) -> None:
    """A library's stack trace in a worker is its own; a killed worker has none."""
    lines = log.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        if any(fault in line for fault in FAULTS):
            report.problems.append("the log has a stack trace:\n" + "\n".join(lines[number : number + 30]))
            return


def _until(condition: Callable[[], bool], problem: str, report: Report) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with suppress(OSError, WebSocketException, TimeoutError):
            if condition():
                return
        time.sleep(0.5)
    report.problems.append(problem)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--visitors", type=int, default=3, help="at the same time (3)")
    parser.add_argument("--kill-every", type=float, default=15, help="at most so many seconds apart (15)")
    parser.add_argument("--server-kills", type=int, default=20, help="in the middle of a sweep (20)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
