"""What tests share: a data folder of their own, the bundled residual network, and small torch models.

The small models take images ``[N, 1, 8, 8]``; weights, biases and batch norm statistics are drawn from a
fixed seed. Each test gets fresh ones.
"""

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import databases
import pytest
import torch
from engine_runs import Ready
from hypothesis import settings
from image_folders import Fill
from quick_timing import A_FEW_CALLS
from small_models import SMALL_MODELS, SMALL_SHAPE, Small
from torch import Tensor, nn

from optimizer.cluster.attached import CLUSTER_VARIABLE
from optimizer.data.folders import RECENT_SECONDS
from optimizer.engine import engine_named, onnx_export, openvino_kernels
from optimizer.engine.base import Build
from optimizer.engine.compile import CACHE_VARIABLE
from optimizer.measurement import latency
from optimizer.model.catalogue import LoadedModel, load
from optimizer.model.folding import fold_batch_norm
from optimizer.search.sweep import WORK_AHEAD_VARIABLE
from optimizer.system import recent, threads
from optimizer.system.downloads import DOWNLOADS_VARIABLE
from optimizer.system.memory import kept_memory
from optimizer.system.paths import STORE_VARIABLE

TOGETHER = {"tests/pages/": "pages"}
"""The pages share a pool of processes: what is done by one of pytest-xdist's workers, by the beginning of its
path."""

EARLY = ("tests/measurement/test_rerun.py", "tests/test_soak.py", "tests/test_tutorial.py", "tests/pages/")
"""What takes a worker minutes, by the beginning of its path: it comes first, so that no worker is left alone
with it in the end."""

SHARING = (
    "tests/api/",
    "tests/cli/",
    "tests/compression/test_compensation.py",
    "tests/compression/test_heads.py",
    "tests/compression/test_rotation.py",
    "tests/export/",
    "tests/pages/",
    "tests/search/",
)
"""What only uses calibration statistics, by the beginning of its path: they are made once for all of it."""

TIMED = ("tests/measurement/test_latency.py", "tests/measurement/test_self_test.py")
"""What tests how long calls are timed, by the beginning of its path."""

STATISTICS_VARIABLE = "PARETOSCOPE_TEST_STATISTICS"
"""A folder for the calibration statistics that the tests of several runs share."""

SLOW_UNTIL_VARIABLE, NO_TIME = "PARETOSCOPE_SLOW_TESTS_UNTIL", "no time is left on this machine"
"""Seconds since the epoch: CI, which must end on slow machines too, leaves slow tests out from then on, and
names them."""

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
# On a busy machine the threads of small layers wait for each other more than they work.
torch.set_num_threads(1)
threads.threads_available = lambda: 1
if "PYTEST_XDIST_WORKER" in os.environ:  # in processes that tests start, threads that wait don't spin
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ[WORK_AHEAD_VARIABLE] = "0"  # what is measured is what a test asks for
# Else every process that compiles tries each instruction set first: 13 s, where a network takes 3 s.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, Any, Any]:
    """What is imported stays: looking through it for garbage takes each worker a fifth of its start.

    Of pytest-xdist's workers each begins with other files: else all would rewrite the asserts of the same
    ones at the same time, eight seconds each, where what one has rewritten is kept for the others."""
    args = session.config.args
    if args == ["tests"]:
        args[:] = [
            str(one) for one in sorted(Path("tests").iterdir()) if one.is_dir() or one.match("test_*.py")
        ]
    if worker := getattr(session.config, "workerinput", None):
        first = int(worker["workerid"].removeprefix("gw")) * len(args) // worker["workercount"]
        args[:] = [*args[first:], *args[:first]]
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(10_000)  # garbage is looked for a tenth as often: tests make little that stays


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where there is an hour by which all is to be over, slow tests are begun until then."""
    until = float(os.environ.get(SLOW_UNTIL_VARIABLE, "inf"))
    if time.time() > until and item.get_closest_marker("slow"):
        pytest.skip(NO_TIME)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if left := [one.nodeid for one in skipped if NO_TIME in str(one.longrepr)]:
        terminalreporter.section(f"{len(left)} slow tests were not run: no time was left on this machine")
        for name in left:
            terminalreporter.write_line(name)


def parts(names: list[str]) -> dict[str, str]:
    """What one worker does, for each test: those of a file, or of TOGETHER, that follow each other. (What
    is slow comes later.)"""
    found, count = dict[str, str](), Counter[str]()

    def whole(name: str) -> str:
        file = name.split("::", 1)[0]
        return next((together for start, together in TOGETHER.items() if file.startswith(start)), file)

    for one, those in groupby(names, whole):
        count[one] += 1
        found |= dict.fromkeys(those, f"{one} {count[one]}")
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is one worker's, so that its tests share what they prepare; so are the files of TOGETHER."""
    from xdist.scheduler.loadfile import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def add_node_collection(self, node: Any, collection: list[str]) -> None:
            self.parts = parts(collection)
            super().add_node_collection(node, collection)

        def _split_scope(self, nodeid: str) -> str:
            return self.parts[nodeid]

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of their names; what everybody runs comes first. A dashboard's tests stay together:
    it takes many seconds to start."""

    def place(item: pytest.Item) -> tuple[bool, bool, Path]:
        slow = item.get_closest_marker("slow") is not None
        early = item.nodeid.startswith(EARLY)
        return slow and not item.get_closest_marker("browser"), not early, item.path

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def locks_of_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's data folder for each process of pytest-xdist, and in it a machine lock: what they measure at
    the same time is not judged by its time (that is marked ``timing`` and runs alone)."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("user")))
        yield


@pytest.fixture(scope="session", autouse=True)
def memory_kept() -> Iterator[None]:
    """With a process of pytest-xdist: freed and asked for again, layer after layer, it takes up to half of
    the time that a network runs."""
    with kept_memory() if "PYTEST_XDIST_WORKER" in os.environ else nullcontext():
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_before(request: pytest.FixtureRequest) -> None:
    """What inductor made is kept, for all processes of this run and for the next one: not in the data folder
    that each test has of its own."""
    os.environ[CACHE_VARIABLE] = str(request.config.cache.mkdir("inductor"))


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """For each export torch reads anew what ONNX has for each of its operators: a second of the two to four
    that the export of a small network takes."""
    export = onnx_export._export

    def with_those_that_were_read(*arguments: Any) -> Any:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        return export(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "_export", with_those_that_were_read)
        yield


@pytest.fixture(scope="session", autouse=True)
def kernels_chosen_once() -> Iterator[None]:
    """Not for each test's own data folder: half a second for a small network."""
    chosen = dict[str, Any]()

    def in_this_process(content: str, make: Callable[[None], Any], *_: Any) -> Any:
        if content not in chosen:
            chosen[content] = make(None)
        return chosen[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_kernels, "kept", in_this_process)
        yield


@pytest.fixture(scope="module", autouse=True)
def in_a_few_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """But for TIMED, tests ask what comes of a quick measurement, and not how long it took."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.nodeid.startswith(TIMED):
            patch.setitem(latency.EFFORTS, True, A_FEW_CALLS)
        yield


@pytest.fixture(autouse=True)
def home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, statistics: Path
) -> Path:
    """A data folder for every test, empty but for the statistics that some share, and no limit for downloads
    (which a dashboard in this process has set): none sees another's results, or the user's."""
    for variable in (DOWNLOADS_VARIABLE, STORE_VARIABLE, CLUSTER_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "home"
    if request.node.nodeid.startswith(SHARING):
        folder.mkdir()
        (folder / "studies").symlink_to(statistics)
    monkeypatch.setenv("PARETOSCOPE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all processes of this run, and for no other run: where make runs the tests in parts, for
    all of them."""
    run = tmp_path_factory.getbasetemp()
    own = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "statistics"
    folder = Path(os.environ.get(STATISTICS_VARIABLE, own))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[databases.Server]:
    """A server for all tests of this process; who stops it starts it again."""
    with databases.server() as one:
        yield one


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a store may be, with nothing there."""
    if request.param == "sqlite":
        return tmp_path / "results.sqlite"
    return str(request.getfixturevalue("postgresql").empty())


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of the test's own, so that the machine's locks in it are too, also in processes that it
    starts."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    return folder


@pytest.fixture(scope="session")
def resnet() -> LoadedModel:
    """The bundled residual network, batch norm not folded. Shared: leave it as it is."""
    return load("fashion-resnet")


@pytest.fixture
def small() -> Small:
    """``small(name)``: a fresh model of SMALL_MODELS in evaluation mode, the same weights every time."""

    def make(name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(7)
            model = SMALL_MODELS[name]()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 2)
                    module.bias.normal_()
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
        return model.eval()

    return make


@pytest.fixture
def small_images() -> Tensor:
    """Float32 ``[48, 1, 8, 8]``."""
    return torch.randn(48, *SMALL_SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Make files of distinct content below a folder of the test's own."""

    def make(*names: str, content: str | None = None) -> Path:
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"content of {name}" if content is None else content)
        return tmp_path

    return make


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the seconds pass for which an answer is remembered."""
    passed = [0.0]
    monkeypatch.setattr(recent, "monotonic", lambda: time.monotonic() + passed[0])

    def later() -> None:
        passed[0] += RECENT_SECONDS

    return later


READY: dict[tuple[str, str], tuple[nn.Module, Build]] = {}


@pytest.fixture
def ready(small: Small) -> Ready:
    """``ready(engine, name)``: a small model, batch norm folded, and what the engine made of it, once for all
    tests here. (An export to ONNX takes 2 s.) Leave the model as it is."""

    def made(engine: str, name: str) -> tuple[nn.Module, Build]:
        if (engine, name) not in READY:
            model, _ = fold_batch_norm(small(name))
            READY[engine, name] = model, engine_named(engine).prepare(model, SMALL_SHAPE)
        return READY[engine, name]

    return made
