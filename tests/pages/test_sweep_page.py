"""Sweep, without a browser."""

from dataclasses import replace
from typing import Any

import pytest
from factories import OTHER_MACHINE, make_result
from faults.storing import claimed
from page_runs import PLAIN, newest, press, words
from started import Started, open_page

from optimizer.analysis.limits import Limits
from optimizer.cluster.nodes import Device
from optimizer.recipe import NORMAL
from optimizer.records import DataSpec, Request, decode, encode
from optimizer.search import questions
from optimizer.search.records import Question
from optimizer.search.sweep import STARTER_BITS, STARTER_SPARSITIES, Grid
from optimizer.store import ledger
from optimizer.store.items import Line
from optimizer.store.keys import request_key
from pages import backlog, consent, devices, tasks

GRID = Grid(replace(PLAIN, model="fashion-mlp", recipe=NORMAL), (0.0, 0.5), (32, 4), (32,), ("openvino",))
ITS_MODEL = {"model": "fashion-mlp"}


def measure_next(noisy: bool = False) -> None:
    item = claimed(tasks.store())
    assert item.request is not None
    tasks.store().put(
        replace(make_result(item.request.recipe, quick=True, noisy=noisy), key=item.key, request=item.request)
    )
    ledger.finish(tasks.store(), item, item.key, 2.0)


def store_some(number: int) -> list[Request]:
    """A sweep of four, of which so many are measured."""
    requests = GRID.requests()
    ledger.create(tasks.store(), encode(GRID), requests, "ann")
    for _ in range(number):
        measure_next()
    return requests


def test_a_grid_is_said_before_it_starts_and_then_stands_in_the_ledger(started: Started) -> None:
    page = open_page("sweep", {"model": "fashion-mlp"})
    assert len(page.button_group) + len(page.selectbox) + len(page.button) <= 12
    assert "24 configurations, 24 to measure" in words(page)
    assert "about 72 seconds" in words(page)
    page.button_group(key="sweep_bits").set_value([4]).run()
    assert "6 configurations, 6 to measure" in words(page)
    page = press(page, "Start")
    sweep = newest()
    assert (sweep.state, sweep.total) == ("queued", 6)
    asked = decode(sweep.asked, Grid)
    assert (asked.base.model, asked.base.recipe, asked.weight_bits) == ("fashion-mlp", NORMAL, (4,))
    assert not asked.frontier_only
    assert page.query_params["sweep"] == str(sweep.id)
    assert "**Sweep** (entry 1 of the history)" in words(page)


def test_a_link_holds_the_grid(started: Started) -> None:
    page = open_page(
        "sweep", {"sweep_bits": ["32", "4"], "sweep_shares": ["0", "50"], "sweep_method": "Channels"}
    )
    assert "4 configurations, 4 to measure" in words(page)
    press(page, "Start")
    asked = decode(newest().asked, Grid)
    assert (asked.sparsities, asked.weight_bits) == ((0, 0.5), (32, 4))
    assert asked.base.recipe.prune.method == "channels"


def test_the_results_of_a_grid_that_is_measured_already_are_shown_as_a_sweep(started: Started) -> None:
    for request in GRID.requests():
        made = make_result(request.recipe, quick=True)
        tasks.store().put(replace(made, key=request_key(request), request=request))
    page = open_page(
        "sweep", {"model": "fashion-mlp", "sweep_bits": ["32", "4"], "sweep_shares": ["0", "50"]}
    )
    assert "4 configurations, 0 to measure.**" in words(page)
    assert "Start" not in [button.label for button in page.button]
    page = press(page, "Show the results")
    sweep = newest()
    assert (sweep.state, sweep.counts) == ("done", {"done": 4})
    assert page.query_params["sweep"] == str(sweep.id)
    assert len(page.dataframe[0].value) == 4


@pytest.mark.slow
def test_a_sweep_of_the_frontier_lists_what_it_left_out_and_is_extended_as_one(started: Started) -> None:
    page = open_page("sweep", {"model": "fashion-mlp"})
    page.checkbox(key="sweep_frontier_only").check().run()
    page = press(page, "Start")
    sweep = newest()
    assert decode(sweep.asked, Grid).frontier_only
    measure_next()
    ledger.screen_out(tasks.store(), claimed(tasks.store()), "not on the frontier: 9 errors")
    ledger.cancel(tasks.store(), sweep.id)
    page = open_page("sweep", ITS_MODEL)
    assert len(page.dataframe[0].value) == 1
    assert "1 configuration screened out: can't be on the frontier." in words(page)
    page.segmented_control(key="sweep_view").set_value("not measured").run()
    shown = page.dataframe[0].value
    assert len(shown) == 23
    assert shown[["state", "why"]].values.tolist()[0] == ["screened out", "not on the frontier: 9 errors"]
    page = press(page, "Extend")
    assert "24 configurations, 0 to measure." in words(page), "what was screened out or cancelled is not new"
    page = page.button_group(key="sweep_bits").set_value([6]).run()
    assert "30 configurations, 6 to measure" in words(page)
    assert page.checkbox(key="sweep_frontier_only").disabled
    press(page, f"Extend sweep {sweep.id}")
    assert decode(newest().asked, Grid).frontier_only


@pytest.mark.slow
def test_a_running_sweep_tells_how_far_it_is_and_is_cancelled_and_resumed(started: Started) -> None:
    store_some(3)
    item = claimed(tasks.store())
    page = open_page("sweep", ITS_MODEL)
    (line,) = page.get("progress")
    assert line.proto.text.startswith("3 of 4 · about 2 seconds left · now: 50 %")
    page = press(page, "Cancel")
    assert newest().state == "cancelled"
    page = press(page, "Resume (1)")
    assert newest().state == "running"
    assert not ledger.beat(tasks.store(), item)


def test_a_running_sweep_of_the_frontier_tells_what_is_screened_out_and_the_most_that_is_left(
    started: Started,
) -> None:
    asked = replace(GRID, sparsities=(0.0, 0.5, 0.9), frontier_only=True)
    ledger.create(tasks.store(), encode(asked), asked.requests(), "ann")
    for _ in range(3):
        measure_next()
    ledger.screen_out(tasks.store(), claimed(tasks.store()), "not on the frontier: 9 errors")
    (line,) = open_page("sweep", ITS_MODEL).get("progress")
    assert line.proto.text.startswith("4 of 6 · 1 screened out · at most about 4 seconds left")


def test_who_comes_first_is_said(started: Started) -> None:
    store_some(0)
    ledger.create(tasks.store(), encode(GRID), [Request("fashion-vit")], "bob")
    page = open_page("sweep", {"sweep": "2"})
    (line,) = page.get("progress")
    assert "0 of 1" in line.proto.text
    assert "1 configuration of others first" in line.proto.text


def test_a_sweep_that_runs_says_once_what_runs_and_not_who_comes_first(started: Started) -> None:
    """What runs is its own: others come before its next configuration, not before this one."""
    first, *_ = store_some(0)
    item = claimed(tasks.store())
    ledger.create(tasks.store(), encode(GRID), [Request("fashion-vit")], "bob")
    assert ledger.line(tasks.store(), 1).before_next == 1
    job = started.submit("measure", "measure", first, item.key, tasks.BACKGROUND)
    job.state, job.message = "running", "timing"
    (line,) = open_page("sweep", {"sweep": "1"}).get("progress")
    assert "of others first" not in line.proto.text
    assert line.proto.text.endswith(", timing")
    assert line.proto.text.count("now: ") == 1
    ledger.create(tasks.store(), encode(GRID), [Request("fashion-vit")], "eve")
    (line,) = open_page("sweep", {"sweep": "3"}).get("progress")
    waits = " of others first · now: measuring (fashion-mlp) for a sweep"
    assert line.proto.text.endswith(waits), "none of its own runs"


@pytest.mark.parametrize(("line", "seconds"), [(Line(1, 1, (2,)), 62), (Line(1, 1, (), (2,)), 64)])
def test_the_time_left_has_what_a_question_of_others_may_take(
    started: Started, monkeypatch: pytest.MonkeyPatch, line: Line, seconds: int
) -> None:
    """One that waits is of those that come before, one at work is not."""
    store_some(3)
    monkeypatch.setattr(ledger, "line", lambda store, sweep: line)
    questions.ask(
        tasks.store(), Question("fashion-mlp", Limits(size_mb=1), "latency", budget_seconds=60), "bob"
    )
    (told,) = open_page("sweep", {"sweep": "1"}).get("progress")
    assert f"about {seconds} seconds left" in told.proto.text


def test_the_newest_sweep_of_the_chosen_model_is_shown(started: Started) -> None:
    store_some(4)
    other = replace(GRID, base=replace(GRID.base, model="fashion-vit"))
    ledger.create(tasks.store(), encode(other), other.requests(), "bob")
    page = open_page("sweep", ITS_MODEL)
    assert "**Sweep** (entry 1 of the history)" in words(page)
    assert "fashion-mlp on OpenVINO, bundled images: " in words(page)
    page.selectbox(key="model").select("fashion-vit").run()
    assert "**Sweep** (entry 2 of the history)" in words(page)


def test_a_model_without_a_sweep_says_so_and_offers_the_others(started: Started) -> None:
    store_some(4)
    store_some(0)
    page = open_page("sweep", {"model": "fashion-resnet"})
    assert "No sweep of fashion-resnet yet. The newest of other models:" in words(page)
    assert not page.dataframe
    page = press(page, "fashion-mlp (entry 2)")
    assert page.query_params["sweep"] == "2"
    assert "Of fashion-mlp; fashion-resnet is chosen in the sidebar." in words(page)
    page.selectbox(key="model").select("fashion-vit").run()
    assert "sweep" not in page.query_params, "another model is chosen: what is shown is of that"
    assert "No sweep of fashion-vit yet." in words(page)


def test_images_of_a_sweep_are_named_with_the_most_that_it_takes(started: Started) -> None:
    data = DataSpec("/photographs/clothes 0123456789ab", limit=200)
    asked = replace(GRID, base=replace(GRID.base, data=data))
    ledger.create(tasks.store(), encode(asked), [Request("fashion-mlp")], "ann")
    assert "fashion-mlp on OpenVINO, images of clothes (up to 200): " in words(open_page("sweep", ITS_MODEL))


@pytest.mark.slow
def test_results_are_shown_and_one_is_opened_or_pinned(started: Started) -> None:
    store_some(4)
    page = open_page("sweep", ITS_MODEL)
    assert len(page.get("plotly_chart")) == 2
    assert len(page.dataframe[0].value) == 4
    hints = [html.proto.body for html in page.get("html") if "swipe" in html.proto.body]
    assert "11 columns: swipe the table sideways" in hints[0], "of those that are there"
    assert "Click a point or tick a row to open it" in words(page)
    together = page.segmented_control(key="sweep_chart").set_value("parallel coordinates").run()
    assert (
        next(chart.proto.alt for chart in together.get("plotly_chart")).count("4 lines through parallel axes")
        == 1
    )
    assert "Tick a row to open it" in words(together), "no line can be clicked"
    key = ledger.items(tasks.store(), 1)[3].key
    page.session_state["session"].swept = key
    assert "4-bit weights (GPTQ, asymmetric, MSE range) on OpenVINO" in words(page.run())
    page = press(page, "Pin for Compare")
    assert page.session_state["session"].pins == (key,)
    page = open_page("explore", {"open": key})
    assert "open" not in page.query_params
    assert page.selectbox(key="model").value == "fashion-mlp"
    assert page.slider(key="sparsity").value == 50
    assert page.select_slider(key="bits").value == 4


def test_a_sweep_is_compared_with_another_of_the_same_images(started: Started) -> None:
    store_some(4)
    other = replace(GRID, sparsities=(0.3, 0.5))
    ledger.create(tasks.store(), encode(other), other.requests(), "bob")
    measure_next()
    elsewhere = replace(GRID, base=replace(GRID.base, data=DataSpec(limit=100)))
    ledger.create(tasks.store(), encode(elsewhere), elsewhere.requests(), "eve")
    for _ in range(5):
        measure_next()
    page = open_page("sweep", {"sweep": "1", "sweep_against": "2"})
    assert not page.toast, "it is a link like any"
    choice = page.selectbox(key="against 1")
    assert len(choice.options) == 1, "neither what is of other images nor what is not measured"
    assert choice.options[0].startswith("entry 2: ")
    assert "On the frontier of both sweeps together (" in words(page)
    assert " of this sweep alone, " in words(page)
    assert all("this sweep" in chart.proto.alt for chart in page.get("plotly_chart"))
    assert "since no times" not in words(page)
    page = choice.set_value(None).run()
    assert not page.exception
    assert "of both sweeps" not in words(page)
    assert "sweep_against" not in page.query_params
    for named in ("1", "7", "x", "9" * 5000):
        page = open_page("sweep", {"sweep": "1", "sweep_against": named})
        assert not page.exception
        assert page.selectbox(key="against 1").value is None


def test_sweeps_without_calm_times_are_compared_by_size(started: Started) -> None:
    store_some(0)
    other = replace(GRID, sparsities=(0.3,), weight_bits=(32,))
    ledger.create(tasks.store(), encode(other), other.requests(), "bob")
    for _ in range(5):
        measure_next(noisy=True)
    page = open_page("sweep", {"sweep": "1", "sweep_against": "2"})
    assert "since no times of the two can be ranked with each other): " in words(page)
    assert "every latency is noisy" in page.get("plotly_chart")[1].proto.spec


def test_noisy_times_are_left_out_of_the_frontier_in_words(started: Started) -> None:
    ledger.create(tasks.store(), encode(GRID), GRID.requests(), "ann")
    measure_next(noisy=True)
    page = open_page("sweep", ITS_MODEL)
    page.segmented_control(key="sweep_view").set_value("on the frontier").run()
    assert "Ranked by accuracy lost and zstd size, as every latency is noisy." in words(page)
    assert len(page.dataframe[0].value) == 1
    measure_next()
    assert len(page.run().dataframe[0].value) == 1
    assert "Ranked by accuracy lost, zstd size and latency ratio." in words(page)


def test_what_was_not_measured_says_why(started: Started) -> None:
    store_some(3)
    ledger.fail(tasks.store(), claimed(tasks.store()), "no *such* engine")
    page = open_page("sweep", ITS_MODEL)
    page.segmented_control(key="sweep_view").set_value("not measured").run()
    row = ["50 % of layer weights pruned · 4-bit weights", "OpenVINO", "no *such* engine"]
    assert page.dataframe[0].value[["recipe", "engine", "why"]].values.tolist() == [row]


@pytest.mark.slow
def test_a_sweep_is_repeated_and_extended(started: Started) -> None:
    store_some(3)
    page = press(open_page("sweep", ITS_MODEL), "Cancel")
    page = press(page, "Repeat")
    assert (newest().id, newest().state, newest().total) == (2, "running", 4)
    measure_next()
    page = press(page.run(), "Repeat")
    assert "All of it is measured already" in page.toast[0].value
    assert (newest().id, newest().state) == (2, "done")
    page = press(page, "Extend")
    page.button_group(key="sweep_bits").set_value([8]).run()
    assert "6 configurations, 2 to measure" in words(page)
    press(page, "Extend sweep 2")
    assert (newest().id, newest().total, newest().state) == (2, 6, "running")
    assert decode(newest().asked, Grid).weight_bits == (32, 8, 4)


def test_the_time_that_a_sweep_would_take_is_that_of_its_own_model(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_some(4)
    asked: list[str] = []
    seconds_of = consent.seconds_of

    def noted(requests: Any, each: Any, card: Any) -> float:
        asked.append(card.name)
        return seconds_of(requests, each, card)

    monkeypatch.setattr(consent, "seconds_of", noted)
    press(open_page("sweep", {"model": "fashion-vit", "sweep": "1"}), "Extend")
    assert (asked[0], asked[-1]) == ("fashion-vit", "fashion-mlp")


def test_for_what_is_timed_on_other_machines_the_command_is_shown(started: Started) -> None:
    ledger.create(tasks.store(), encode(GRID), GRID.requests(), "ann", OTHER_MACHINE.key)
    page = open_page("sweep", ITS_MODEL)
    assert page.code[0].value == "paretoscope sweep --resume 1 --cluster ADDRESS"
    page = press(page, "Cancel")
    assert newest().state == "cancelled"
    assert len(page.code) == 1
    assert not {button.label.split(" ")[0] for button in page.button} & {"Resume", "Repeat", "Extend"}


class Lent:
    """A cluster of two kinds of nodes, none of which does anything."""

    def __init__(self) -> None:
        self.devices = {OTHER_MACHINE.key: Device(OTHER_MACHINE, ("rpi5", "rpi6"), 4)}
        self.unused, self.problem = ("old has *another* version",), ""

    def ring(self) -> None:
        pass

    def waits_for(self, device: str) -> str:
        return self.problem


@pytest.fixture
def lent(started: Started, monkeypatch: pytest.MonkeyPatch) -> Lent:
    made = Lent()
    monkeypatch.setattr(backlog, "cluster", lambda: made)
    return made


def test_without_a_cluster_there_is_nothing_to_choose(started: Started) -> None:
    page = open_page("sweep", {"sweep_on": "rpi5"})
    assert not [one for one in page.selectbox if one.label == "Time on"]
    assert "Nothing leaves this machine." in words(page)
    press(page, "Start")
    assert newest().device == ""


@pytest.mark.slow
def test_a_grid_is_timed_on_the_node_that_is_chosen(lent: Lent) -> None:
    page = open_page("sweep", {"model": "fashion-mlp"})
    assert page.selectbox(key="sweep_on").options == ["this machine", "rpi5"]
    assert "Only sweeps timed on the cluster send" in words(page)
    page.selectbox(key="sweep_on").select("rpi5").run()
    assert "rpi5, rpi6: with the processor Another CPU" in words(page)
    assert "openvino 2026.4.0 and not" in words(page)
    page = press(page, "Start")
    sweep = newest()
    assert (sweep.device, sweep.total) == (OTHER_MACHINE.key, 24)
    assert "timed on Another CPU" in words(page)
    page = press(page, "Cancel")
    page = press(page, "Resume (24)")
    assert newest().state == "queued"
    page = press(page, "Extend")
    assert not [one for one in page.selectbox if one.label == "Time on"]
    page.button_group(key="sweep_bits").set_value([6]).run()
    press(page, "Extend sweep 1")
    assert (newest().total, newest().device) == (30, OTHER_MACHINE.key)


def test_a_link_to_a_node_that_is_alike_or_gone_never_means_this_machine(lent: Lent) -> None:
    link = {"model": "fashion-mlp", "sweep_on": "rpi6"}
    page = open_page("sweep", link)
    assert page.selectbox(key="sweep_on").options == ["this machine", "rpi6"]
    assert "rpi5, rpi6: with the processor" in words(page)
    lent.devices, lent.problem = {}, "the *scheduler* answers no more"
    page = open_page("sweep", link)
    assert page.selectbox(key="sweep_on").value == "rpi6"
    assert "rpi6 is not there now" in words(page)
    assert "the *scheduler* answers no more" in words(page)
    assert not [button for button in page.button if button.label == "Start"]
    page.selectbox(key="sweep_on").select("this machine").run()
    press(page, "Start")
    assert newest().device == ""


def test_kinds_of_nodes_with_one_name_or_this_machines_are_told_apart(lent: Lent) -> None:
    kinds = [replace(OTHER_MACHINE, cpu=cpu) for cpu in ("one", "two", "three")]
    names = (("node",), ("node",), ("this machine",))
    lent.devices = {kind.key: Device(kind, named, 2) for kind, named in zip(kinds, names, strict=True)}
    page = open_page("sweep", {"model": "fashion-mlp"})
    told = [f"{named[0]} ({kind.key[:6]})" for kind, named in zip(kinds, names, strict=True)]
    assert page.selectbox(key="sweep_on").options == ["this machine", *sorted(told)]
    for name, kind in zip(told, kinds, strict=True):
        page.selectbox(key="sweep_on").select(name).run()
        assert f"with the processor {kind.cpu}" in words(page)
    del lent.devices[kinds[1].key]
    page = open_page("sweep", {"model": "fashion-mlp", "sweep_on": told[0]})
    assert page.selectbox(key="sweep_on").value == told[0]
    assert "with the processor one" in words(page)
    press(page, "Start")
    assert newest().device == kinds[0].key


def test_a_sweep_is_called_by_the_processor_that_was_drawn(
    lent: Lent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node leaves between drawing and starting."""
    page = open_page("sweep", {"model": "fashion-mlp", "sweep_on": "rpi5"})
    seconds_of = consent.seconds_of

    def leave(*given: Any) -> float:
        lent.devices = {}
        return seconds_of(*given)

    monkeypatch.setattr(consent, "seconds_of", leave)
    press(page, "Start")
    assert decode(newest().asked, Grid).on == OTHER_MACHINE.cpu


def test_time_left_counts_the_slots_that_something_fills(lent: Lent) -> None:
    assert [devices.slots_of(OTHER_MACHINE.key, left) for left in (9, 3, 1, 0)] == [4, 3, 1, 1]


def test_while_the_cluster_is_lost_a_sweep_says_so(lent: Lent) -> None:
    ledger.create(tasks.store(), encode(GRID), GRID.requests(), "ann", OTHER_MACHINE.key)
    assert not open_page("sweep", ITS_MODEL).warning
    lent.problem = "the scheduler answers no more"
    assert "the scheduler answers no more" in open_page("sweep", ITS_MODEL).warning[0].value


def test_what_is_left_to_another_server_says_so(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    store_some(1)
    monkeypatch.setattr(ledger, "lacking", lambda store: {1: "the model *mine*"})
    assert "Waiting for a server that has the model *mine*." in words(open_page("sweep", ITS_MODEL))


def test_questions_say_where_they_are_searched(lent: Lent) -> None:
    page = open_page("sweep", {"ask": "The best under limits", "find_mb": "1"})
    assert ", on this machine: those that can't win" in words(page)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("7", "there is no sweep 7"),
        ("9" * 30, f"there is no sweep {'9' * 30}"),
        ("nope", "nope is not the number of a sweep"),
        ("²", "² is not the number of a sweep"),
        ("9" * 5_000, f"{'9' * 80} is not the number of a sweep"),
    ],
)
def test_a_link_to_no_sweep_says_so(started: Started, named: str, said: str) -> None:
    assert said in words(open_page("sweep", {"sweep": named}))


def test_too_many_are_refused_in_words(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_WAITING", 5)
    page = press(open_page("sweep", {"model": "fashion-mlp"}), "Start")
    assert "no room for 24 more configurations: 0 wait already, and 5 may" in words(page)
    assert not ledger.sweeps(tasks.store())
    assert len(STARTER_SPARSITIES) * len(STARTER_BITS) == 24
