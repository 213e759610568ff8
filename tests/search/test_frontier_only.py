"""Sweeps of the frontier alone: that of the whole grid, with what is left out never told as measured."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from faults.storing import claimed
from faults.tasks import lines, until

import optimizer as px
from optimizer import on_demand, work
from optimizer.analysis.frontier import frontier_of
from optimizer.analysis.screening import ScreenedOut
from optimizer.analysis.summary import summarise
from optimizer.cli.main import main
from optimizer.errors import InputError
from optimizer.progress import Cancelled, ended_by, quiet
from optimizer.recipe import NORMAL, Recipe
from optimizer.records import DataSpec, Request, Result, Settings, encode
from optimizer.search import sweep as sweep_module
from optimizer.search.drain import by_pool, drain
from optimizer.search.sweep import Grid, describe_asked, is_frontier_only
from optimizer.store import ledger
from optimizer.store.items import Item
from optimizer.store.keys import request_key, request_keys
from optimizer.store.results import Store
from optimizer.system.process_pool import Pool

IMAGES = 300
BASE = Request("fashion-mlp", Recipe(), data=DataSpec(limit=IMAGES), settings=Settings(threads=1))
WHOLE = Grid(BASE, (0.0, 0.6, 0.95), (32, 8, 3), (32,), ("openvino",))
ASKED = replace(WHOLE, frontier_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """The grid, all of it measured."""
    store = Store(tmp_path_factory.mktemp("whole") / "results.sqlite")
    return [on_demand.load_or_measure(request, store) for request in WHOLE.requests()]


def optimal(results: list[Result]) -> set[Recipe]:
    """By what does not hang on how quiet the machine is: all of them share one time."""
    summaries = [summarise(one) for one in results]
    assert len({one.latency.signature for one in results}) == 1
    found = frontier_of(summaries, ("drop", "compressed_size"))
    return {one.recipe for one, is_on in zip(summaries, found.optimal, strict=True) if is_on}


def begun(store: Store, asked: Grid = ASKED) -> int:
    return ledger.create(store, encode(asked), asked.requests(), "ann")


def states(store: Store, sweep: int) -> list[str]:
    return [item.state for item in ledger.items(store, sweep)]


def check(store: Store, sweep: int, whole: list[Result]) -> None:
    """The frontier is that of the whole grid, its members are measured whole, and what is left has no result,
    but says on how many images that was known."""
    items = ledger.items(store, sweep)
    assert {item.state for item in items} == {"done", "screened out"}
    measured = store.several([item.key for item in items if item.state == "done"])
    assert optimal(measured) == optimal(whole)
    assert {one.accuracy.total for one in measured} == {IMAGES}
    left = [item for item in items if item.state == "screened out"]
    assert len(left) >= len(items) / 3
    for item in left:
        assert store.get(item.key) is None
        assert item.request
        assert item.request.recipe not in optimal(whole)
        assert "not on the frontier: " in item.message
        assert f" of {IMAGES} images" in item.message


@pytest.mark.slow
def test_the_frontier_is_that_of_the_grid_measured_whole(home: object, whole: list[Result]) -> None:
    store = Store()
    sweep = begun(store)
    assert len([*drain(store, on_demand.do_here(store, quiet), sweep)]) == len(whole)
    check(store, sweep, whole)
    found = ledger.find(store, sweep)
    assert (found.state, found.over) == ("done", len(whole))
    assert f"{found.counts['screened out']} screened out" in found.described()
    assert len(store.results()) == found.counts["done"]


@pytest.mark.slow
def test_one_that_was_ended_goes_on_and_what_is_screened_out_stays_so(
    home: object, whole: list[Result]
) -> None:
    store = Store()
    sweep = begun(store)

    def is_over() -> bool:
        return "screened out" in states(store, sweep)

    with ended_by(is_over), pytest.raises(Cancelled):
        [*drain(store, on_demand.do_here(store, quiet), sweep)]
    ledger.cancel(store, sweep)
    before = states(store, sweep)
    assert {"done", "screened out", "cancelled"} == set(before)
    assert ledger.resume(store, sweep) == before.count("cancelled")
    again = [*drain(store, on_demand.do_here(store, quiet), sweep)]
    assert len(again) == before.count("cancelled")
    check(store, sweep, whole)


def test_one_that_goes_on_is_screened_by_what_today_s_images_and_weights_gave(
    home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, grids = Store(), list[Sequence[str]]()
    sweep = begun(store)
    item = claimed(store, "ann", sweep)
    ledger.finish(store, item, "measured on other images", 1.0)
    monkeypatch.setattr(on_demand, "load_or_screen", lambda request, grid, *others: grids.append(grid))
    on_demand.measure_for(sweep, BASE, store)
    assert [[*keys] for keys in grids] == [request_keys(ASKED.requests())]
    for what in ("weights_version", "recent_fingerprint"):
        with monkeypatch.context() as patch:
            patch.setattr(sweep_module, what, lambda _: "changed meanwhile")
            on_demand.measure_for(sweep, BASE, store)
        assert not {*grids[0]} & {*grids.pop()}


def test_items_are_screened_by_the_keys_that_they_have_themselves(home: object) -> None:
    store = Store()
    sweep = begun(store)
    more = replace(ASKED, sparsities=(*ASKED.sparsities, 0.3))
    for asked in (ASKED, more):
        ledger.extend(store, sweep, encode(asked), asked.requests())
        keys = [item.key for item in ledger.items(store, sweep)]
        assert sorted(sweep_module.grid_keys(ledger.find(store, sweep).asked)) == sorted(keys)


@pytest.mark.slow
def test_what_was_screened_out_waits_again_where_what_beat_it_is_gone(home: object) -> None:
    store = Store()
    sweep = begun(store)
    [*drain(store, on_demand.do_here(store, quiet), sweep)]
    before = states(store, sweep)
    assert ledger.resume(store, sweep) == 0
    store.forget([next(item.key for item in ledger.items(store, sweep)[::-1] if item.state == "done")])
    assert ledger.resume(store, sweep) == before.count("screened out") + 1
    assert states(store, sweep).count("done") == before.count("done") - 1


@pytest.mark.slow
def test_what_is_measured_for_others_is_shown_and_the_sweep_repeated_finds_it(home: object) -> None:
    store = Store()
    sweep = begun(store)
    [*drain(store, on_demand.do_here(store, quiet), sweep)]
    left = next(item for item in ledger.items(store, sweep) if item.state == "screened out")
    assert left.request
    assert on_demand.load_or_measure(left.request, store).key == left.key
    again = ledger.repeat(store, sweep, "bob")
    assert states(store, again)[left.number] == "done"


def test_a_worker_tells_a_dashboard_what_is_left_out(home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, store = replace(ASKED, sparsities=(0.0,), weight_bits=(2, 8)), Store()
    sweep = begun(store, asked)
    out = ScreenedOut("8-bit weights", 9, 20, 300)
    seen = list[tuple[object, ...]]()

    def raised(*given: object) -> Result:
        raise out

    monkeypatch.setattr(work, "measure_for", raised)

    class Done:
        over, died, state = True, False, "done"
        result = work.run("measure for", (sweep, BASE), quiet)

    class Workers:
        def submit(self, *given: object) -> type[Done]:
            seen.append(given)
            return Done

        def wait(self, job: object, seconds: float) -> object:
            return job

        def get(self, key: str) -> None:
            return None

    def screens(item: Item) -> bool:
        return is_frontier_only(ledger.find(store, item.sweep).asked)

    first, second = drain(store, by_pool(cast(Pool, Workers()), 1, screens), sweep)
    assert (first.state, first.message) == ("screened out", str(out))
    (_, task, given, key, _), _ = seen
    assert second.state == "screened out"
    assert (task, given) == ("measure for", (sweep, first.request))
    assert key != first.key  # who waits for the result itself is given one
    assert states(store, sweep) == ["screened out"] * 2


def test_who_waits_for_a_result_already_is_joined(home: object) -> None:
    store, seen = Store(), list[tuple[object, ...]]()
    sweep = begun(store, replace(ASKED, sparsities=(0.0,), weight_bits=(8,)))

    class Live:
        over, died, state, result = False, False, "done", "key"

    class Workers:
        def submit(self, *given: object) -> type[Live]:
            seen.append(given)
            return Live

        def wait(self, job: object, seconds: float) -> object:
            Live.over = True
            return Live

        def get(self, key: str) -> type[Live]:
            return Live

    (item,) = drain(store, by_pool(cast(Pool, Workers()), 1, lambda item: True), sweep)
    ((_, task, _, key, _),) = seen
    assert (task, key, item.state) == ("measure", request_key(item.request or BASE), "done")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_in_the_middle_of_what_is_screened_out_costs_nothing(home: Path, whole: list[Result]) -> None:
    store = Store()
    sweep = begun(store)
    code = f"from faults.storing import screen_here; screen_here({sweep})"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ | path) as worker:
        try:
            until(lambda: lines(home / "held"))
            assert "running" in states(store, sweep)
        finally:
            worker.kill()
    [*drain(store, on_demand.do_here(store, quiet), sweep)]
    check(store, sweep, whole)


def test_small_ones_come_first_and_a_sweep_that_is_extended_stays_one_of_the_frontier() -> None:
    asked = replace(ASKED, base=replace(BASE, recipe=NORMAL))
    order = [(one.recipe.quantize.weight_bits, one.recipe.prune.share) for one in asked.requests()]
    assert order[:3] == [(32, 0.0), (3, 0.95), (8, 0.95)]
    assert order[-1] == (32, 0.6)
    assert sorted(order) == sorted(
        (one.recipe.quantize.weight_bits, one.recipe.prune.share)
        for one in replace(asked, frontier_only=False).requests()
    )
    assert WHOLE.beside(ASKED).frontier_only
    assert describe_asked(encode(ASKED)).endswith(", the frontier only")
    assert ", 99.95 % at " in describe_asked(encode(replace(ASKED, sparsities=(0.5, 0.9995)))), "not 100 %"
    both = describe_asked(encode(replace(ASKED, weight_bits=(32, 4), activation_bits=(8, 32))))
    assert " % at 32, 4 bits, activations at 32, 8 bits, " in both, "of four widths, which are whose"
    assert not is_frontier_only(encode(WHOLE))
    assert not is_frontier_only(b"what another version asks")


@pytest.mark.slow
def test_a_script_is_told_what_is_left_out(home: object) -> None:
    plain = Recipe.of(pruning="magnitude", rounding="nearest")
    found = px.sweep("fashion-mlp", (0.0, 0.9), (32, 4), recipe=plain, frontier_only=True, progress=False)
    assert found.screened
    assert len(found) + len(found.screened) == 4
    assert not found.failed
    assert all(0 < one.images < 10_000 for one in found.screened)
    words = f"screened out: {found.screened[0].request.recipe.describe()}: not on the frontier: "
    assert words in repr(found)
    assert words in found._repr_html_()
    assert found[:1].screened == found.screened
    assert len(found.frame()) == len(found)


@pytest.mark.slow
def test_the_command_says_what_is_left_out(home: object, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--sparsities", "0,0.9", "--bits", "32,4", "--limit", str(IMAGES), "--quick"]
    plain = ["--prune", "magnitude", "--rounding", "nearest"]
    assert main(["sweep", "fashion-mlp", *grid, *plain, "--frontier-only", "--json"]) == 0
    said = capsys.readouterr()
    left = said.err.count("screened out: not on the frontier: ")
    assert left > 0
    told = [json.loads(line) for line in said.out.splitlines()]
    out = [line for line in told if line.get("screened_out")]
    assert (len(told), len(out)) == (4, left)
    for line in out:
        assert (line["model"], line["engine"]) == ("fashion-mlp", "openvino")
        assert line["recipe_words"] == Recipe.from_dict(line["recipe"]).describe()
        assert line["recipe"] not in [one["recipe"] for one in told if "accuracy" in one]
        assert re.search(
            r"not on the frontier: \d+ errors? on .* of 300 images, .*; .* is no larger", line["why"]
        )
        assert Store().get(line["key"]) is None
    main(["sweeps"])
    assert f"{4 - left} done, {left} screened out" in capsys.readouterr().out


def test_on_a_cluster_it_is_refused(home: object, capsys: pytest.CaptureFixture[str]) -> None:
    refused = ["sweep", "fashion-mlp", "--frontier-only", "--cluster", "tcp://127.0.0.1:1"]
    assert main(refused) == 2
    assert "--frontier-only works on this machine alone" in capsys.readouterr().err
    with pytest.raises(InputError, match="frontier_only works on this machine alone"):
        px.sweep("fashion-mlp", executor="tcp://127.0.0.1:1", frontier_only=True, progress=False)
