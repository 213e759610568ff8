"""Benchmarks judge what they claim: each ends with 1 where a claim is not reached, and says which.

Nothing is timed here: what they would measure is made up.
"""

import asyncio
import contextlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import websockets
from small_models import SMALL_SHAPE
from torch import nn

from optimizer.analysis.statistics import LatencyVerdict
from optimizer.data.memory import in_memory
from optimizer.measurement.compressed import compressed_model
from optimizer.measurement.workspace import Workspace, open_model
from optimizer.model.own import own_model
from optimizer.records import DataSpec
from optimizer.system.paths import HOME_VARIABLE, home

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class Benchmark:
    """A file of the folder, some of whose names may be given another meaning."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(BENCHMARKS)
        self.name, self.patch = name, monkeypatch
        path = str(BENCHMARKS / f"{name}.py")
        self.named = runpy.run_path(path)
        functions = [one for one in self.named.values() if isinstance(one, FunctionType)]
        self.globals = next(one.__globals__ for one in functions if one.__code__.co_filename == path)

    def __getitem__(self, name: str) -> Any:
        return self.named[name]

    def put(self, **others: Any) -> None:
        for name, other in others.items():
            self.patch.setitem(self.globals, name, other)

    def ends(self, *options: str) -> object:
        """What its ``main`` ends with: None, or what is to be said."""
        self.patch.setattr(sys, "argv", [self.name, *options])
        with pytest.raises(SystemExit) as ended:
            self["main"]()
        return ended.value.code


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Benchmark]:
    return lambda name: Benchmark(name, monkeypatch)


# Engines


class Engines:
    """Runners of a benchmark of engines, by the order in which they were built and first called."""

    def __init__(self, file: Benchmark, low: float, ratio: float, high: float, *noise: str) -> None:
        self.built: list[str] = []
        self.called: list[str] = []
        verdict = LatencyVerdict.NOISY if noise else LatencyVerdict.SAME
        self.judged = SimpleNamespace(
            median_ns=1.0, ratio=ratio, ratio_low=low, ratio_high=high, verdict=verdict, noise=noise, rounds=9
        )
        file.put(
            network=lambda name: (nn.Sequential(nn.Linear(4, 2)), (4,)),
            engine_named=lambda engine: SimpleNamespace(
                prepare=lambda *_: lambda *_, **__: self.runner(engine)
            ),
            by_nncf=lambda *_: self.runner("nncf"),
            time_interleaved=self.timed,
        )

    def runner(self, name: str) -> Any:
        self.built.append(name)
        return SimpleNamespace(infer=lambda images: self.called.append(name))

    def timed(self, baselines: Any, variants: dict[str, Any], *_: Any) -> Any:
        assert self.called == self.built, "what the first call does counts to its place in the order"
        visits = SimpleNamespace(medians_ns=np.ones(3))
        return SimpleNamespace(summaries=dict.fromkeys(variants, self.judged), baseline=[visits, visits])


def test_the_dense_baseline_is_built_before_the_sparse_engines_and_after(benchmark: Any) -> None:
    file = benchmark("engines")
    engines = Engines(file, 0.4, 0.5, 0.6)
    assert len(list(file["networks"](["fashion-mlp"], 1))) == len(file["SHARES"])
    assert engines.built == ["openvino", *["sparse"] * len(file["SHARES"]), "openvino"]


def test_a_speed_up_is_reached_where_its_whole_interval_is(benchmark: Any) -> None:
    """Half the weights of ``fashion-mlp`` are to be no slower, 5 % of them three times as fast."""
    file = benchmark("engines")
    Engines(file, 0.3, 0.9, 1.01)
    rows = {row["variant"]: row for row in file["networks"](["fashion-mlp"], 1)}
    assert [share for share, row in rows.items() if not row["reached"]] == ["50%", "95%"]
    assert file["not_reached"]({"environment": "", "networks": rows.values()}) == [
        "not reached, networks: fashion-mlp, 50%: 1.11x, of which 0.99x is sure, and 1x is claimed",
        "not reached, networks: fashion-mlp, 95%: 1.11x, of which 0.99x is sure, and 3x is claimed",
    ]
    Engines(file, 0.2, 0.3, 0.33)
    assert all(row["reached"] for row in file["networks"](["fashion-mlp"], 1))


@pytest.mark.parametrize(
    ("high", "noise", "reached"), [(1.02, (), True), (1.05, (), False), (0.9, ("x",), False)]
)
def test_an_int8_network_is_as_fast_as_nncfs_where_its_interval_says_so_and_nothing_was_noisy(
    benchmark: Any, high: float, noise: tuple[str, ...], reached: bool
) -> None:
    file = benchmark("engines")
    engines = Engines(file, 0.8, 0.85, high, *noise)
    rows = list(file["int8"](["fashion-mlp"], 1))
    assert engines.built == ["openvino", "nncf", "nncf", "openvino"]
    assert [row["reached"] for row in rows] == [reached] * 2


def test_engines_end_with_1_for_a_kernel_that_is_not_straight(benchmark: Any) -> None:
    file = benchmark("engines")
    row = {"model": "m", "shape": "8 x 8 x 9", "form": "matrix", "at_most": None, "dense_us": 1.0}
    row |= {f"{share:.0%}": 7.0 for share in file["KERNEL_SHARES"]}
    bad = row | {"r_squared": 0.9, "80%": 1.5, "reached": False}
    file.put(kernel=lambda names: [row | {"r_squared": 1.0, "reached": True}])
    assert file.ends("--parts", "kernel") is None
    file.put(kernel=lambda names: [bad])
    lacks = "1.5x at 80% (2 is claimed), 0.9 r squared (0.98 is claimed)"
    said = f"not reached, kernel: m, 8 x 8 x 9, matrix: {lacks}"
    assert file.ends("--parts", "kernel") == said
    assert file.ends("--parts", "kernel", "--json") == said


# Gate


@pytest.mark.parametrize(
    ("same", "more", "said"),
    [
        (["pass"] * 20, ["fail"] * 19 + ["undecided"], None),
        (
            ["pass"] * 20,
            ["fail"] * 18 + ["undecided"] * 2,
            "5 % more: of 20, 18 were told rightly and 0 wrongly",
        ),
        (["pass"] * 99 + ["fail"], ["fail"] * 100, "same: of 100, 99 were told rightly and 1 wrongly"),
    ],
)
def test_the_gate_is_to_be_right_95_times_of_100_and_never_wrong(
    benchmark: Any, same: list[str], more: list[str], said: str | None
) -> None:
    file, outcomes = benchmark("gate"), {"same": iter(same), "5 % more": iter(more)}

    def gate(options: Any, before: Path, after: str, seed: int) -> tuple[str, float, float]:
        return next(outcomes[after]), 0.0, 0.0

    kinds = {"same": "same", "5": "5 % more"}
    file.put(gate=gate, exported=lambda folder, layers, name: kinds.get(name))
    file.patch.setenv(HOME_VARIABLE, os.environ[HOME_VARIABLE])
    ended = file.ends("--repeats", str(len(same)))
    assert ended == (said and f"not reached, {said}; 95% and none are claimed")


# Sweep


@pytest.mark.parametrize(
    ("figures", "missed"), [({}, False), ({"same_frontier": True}, False), ({"same_frontier": False}, True)]
)
def test_a_frontier_that_is_another_measured_whole_ends_the_sweep_with_1(
    benchmark: Any, tmp_path: Path, figures: dict[str, bool], missed: bool
) -> None:
    file = benchmark("sweep")
    file.put(halves=lambda images, folder: DataSpec(), grids=lambda data, options: figures)
    ended = file.ends("--images", str(tmp_path), "--part", "grid")
    assert (ended is not None and "another frontier" in ended) == missed


def test_photographs_are_halved_by_their_classes_also_in_a_relative_folder(
    benchmark: Any, tmp_path: Path
) -> None:
    file = benchmark("notebook")
    file.patch.chdir(tmp_path)
    for name in ("n01443537", "n01484850", "others"):
        Path("photographs", name).mkdir(parents=True)
    data = file["halves"](Path("photographs"), tmp_path)
    halves = [
        [one.name for one in Path(half).iterdir() if one.is_dir()] for half in (data.path, data.calibration)
    ]
    assert halves == [["n01443537"], ["n01484850"]]


# Compression


@pytest.fixture
def compression(benchmark: Any) -> Iterator[Benchmark]:
    file = benchmark("compression")
    file.patch.setenv(HOME_VARIABLE, os.environ[HOME_VARIABLE])
    threads = torch.get_num_threads()
    yield file
    torch.set_num_threads(threads)


def test_compression_ends_with_1_without_photographs(compression: Benchmark, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert compression.ends("--images", str(missing)) == f"no photographs at {missing}: give --images FOLDER"


def test_and_where_no_other_library_ran(compression: Benchmark, tmp_path: Path) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("another version")

    images = compression["Images"](torch.zeros(2, 4), np.zeros(2, int), torch.zeros(1, 4))
    library, ours = compression["PEERS"]["torch"], lambda *_: lambda part: torch.zeros(len(part), 3)
    compression.put(open_workspace=lambda *_: SimpleNamespace(model=None), images_of=lambda workspace: images)
    options = ("--images", str(tmp_path), "--recipes", "none", "--peers", "torch,nncf")
    for runs, said in ((fails, "nothing to compare with: none of torch, nncf ran"), (ours, None)):
        known = {
            "torch": type(library)("torch", {"pruned": runs}),
            "nncf": type(library)("not.there", {"x": ours}),
        }
        compression.put(PEERS=known)
        assert compression.ends(*options) == said


def test_each_row_of_compression_works_out_all_but_the_statistics(compression: Benchmark) -> None:
    """And has the engine's build in its seconds where activations are rounded, as NNCF's row has."""
    now, met = [0.0], []

    def compressed(workspace: Any, recipe: Any) -> Any:
        now[0] += 1
        studies = {path.name for path in (home() / "studies").glob("*.safetensors")}
        met.append((home(), studies, len(workspace.kept), len(workspace.model.kept)))
        return compressed_model(workspace, recipe)

    def runner_of(workspace: Any, compressed: Any) -> None:
        now[0] += 7

    clock = SimpleNamespace(process_time=lambda: now[0])
    images, others = torch.randn(2, 32, *SMALL_SHAPE, generator=torch.Generator().manual_seed(0))
    given = in_memory((images, torch.zeros(32, dtype=torch.int64)), others)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ).eval()
    opened = Workspace(open_model(own_model(network, SMALL_SHAPE)), given=given)
    compression.put(open_workspace=lambda *_: opened)
    compression.put(compressed_model=compressed, runner_of=runner_of, answered=lambda *_: 0, time=clock)
    before = home()
    names = ["20 % of channels", "8 bits int8 kernels", "4 bits"]
    rows = compression["rows_of"]("small", DataSpec(), names)
    assert [row.seconds for row in rows[2:]] == [1, 8, 1]
    assert home() == before
    homes, studies, *kept = zip(*met[1:], strict=True)  # the first is the uncompressed network
    assert len(set(homes)) == len(names)
    assert all(known == studies[0] for known in studies)
    assert kept == [(1,) * len(names), (0,) * len(names)], "the statistics, and nothing converted"


# What a visitor waits for


def test_what_is_late_counts_as_the_longest_wait_and_is_told(benchmark: Any) -> None:
    file = benchmark("browser_waits")
    watched, all_of_it = file["Watched"], dict.fromkeys(file["FIGURES"], 1000.0)
    whole, late = watched(0.0, all_of_it), watched(0.0, {"counts and size": 500.0})
    found = file["summary"]([whole] * 3 + [late] * 2 + [None] * 4)
    assert found["unchanged"] == 4
    assert found["counts and size"] == {"median_ms": 1000, "p95_ms": 1000, "positions": 5, "late": 0}
    late = found["everything"]
    assert (late["median_ms"], late["p95_ms"], late["late"]) == (1000, file["MAX_WAIT_MS"], 2)
    assert file["never_seen"]({"Sparsity": found, "Method": file["summary"]([None])}) == [
        "no new position of Method could be seen on the page"
    ]


def test_where_the_time_goes_adds_up_to_what_everything_takes(benchmark: Any) -> None:
    """Of each position its own job; one that was found in the store has none."""
    file = benchmark("browser_waits")

    def events(key: str, asked: float) -> list[dict[str, Any]]:
        steps = [("queued", 0.0, None), ("running", 0.1, None), ("running", 0.3, 0), ("running", 0.5, 200)]
        steps += [("running", 1.0, 900), ("running", 1.2, None), ("done", 3.0, None)]
        return [
            {"key": key, "task": "measure", "state": state, "time": asked + after, "images": images}
            for state, after, images in steps
        ]

    logged = [*events("a", 10.05), {"key": "x", "task": "images", "time": 11.0}, *events("b", 20.05)]
    watched = [file["Watched"](begun, {"everything": 1500.0}) for begun in (10.0, 20.0, 30.0)]
    found = file["stages"]([*watched, None], logged)
    assert found.pop("positions") == 2
    assert [*found] == [*file["STAGES"]]
    assert [*found.values()] == pytest.approx([50, 100, 200, 200, 500, 200, 250])
    assert file["stages"]([None], []) == {"positions": 0}


@pytest.mark.slow
def test_a_dashboard_that_ends_is_not_waited_for(benchmark: Any, tmp_path: Path) -> None:
    dashboard = benchmark("browser_waits")["dashboard"]
    with pytest.raises(SystemExit, match="ended with 2 before"), dashboard(tmp_path, "--no-such-option"):
        pass


def test_nor_one_that_does_not_answer(benchmark: Any, tmp_path: Path) -> None:
    file = benchmark("browser_waits")
    file.put(START_SECONDS=0.0)
    with pytest.raises(SystemExit, match="not answered within 0 s"), file["dashboard"](tmp_path):
        pass


def test_a_view_that_is_never_whole_is_an_error_and_counts_as_the_longest(benchmark: Any) -> None:
    file = benchmark("visitors")
    file.put(MAX_VIEW_SECONDS=0.2)
    seen = file["Seen"]()

    async def silent(connection: Any) -> None:
        await connection.wait_closed()

    async def viewed() -> float:
        async with websockets.serve(silent, "127.0.0.1", 0, subprotocols=[file["SUBPROTOCOL"]]) as server:
            port = server.sockets[0].getsockname()[1]
            seconds: float = await file["view"](f"ws://127.0.0.1:{port}", "", seen)
            return seconds

    seen.seconds.append(asyncio.run(viewed()))
    assert seen.seconds == [0.2]
    assert file["missed"](seen) == ["1 x a page was not whole within 0.2 s"]


def test_visitors_who_viewed_nothing_have_no_median_and_end_with_1(benchmark: Any) -> None:
    file = benchmark("visitors")
    nothing, something = file["Seen"](), file["Seen"]([1.0, 3.0])
    assert (file["figures"](nothing)["median, s"], file["figures"](something)["median, s"]) == (None, 2)
    assert "was viewed" in file["missed"](nothing)[0]
    assert not file["missed"](something)


@pytest.mark.parametrize(
    ("seconds", "errors", "said"),
    [([1.0], [], None), ([1.0], ["no", "no"], "2 x no"), ([], [], "nothing that is measured was viewed")],
)
def test_visitors_end_with_1_after_an_error_or_without_a_view(
    benchmark: Any, seconds: list[float], errors: list[str], said: str | None
) -> None:
    file = benchmark("visitors")

    async def visit(*_: Any) -> Any:
        return file["Seen"](seconds, errors)

    file.put(
        subprocess=SimpleNamespace(run=lambda *_, **__: None),
        dashboard=lambda home: contextlib.nullcontext("http://nowhere"),
        resident_mb=lambda: 0.0,
        visit=visit,
    )
    ended = file.ends("--json")
    assert ended is None if said is None else str(ended).startswith(said)
