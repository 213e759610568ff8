"""Explore, without a browser."""

import json
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import streamlit as st
from factories import make_result
from page_runs import (
    HALF,
    SMALL,
    expected,
    press,
    results,
    running,
    settled,
    shown,
    stands,
    try_again,
    words,
)
from started import PAGES, Started, entry, open_page
from streamlit.testing.v1 import AppTest

from optimizer import on_demand
from optimizer.analysis import stored as summaries
from optimizer.analysis.headline import headlines
from optimizer.analysis.summary import summarise
from optimizer.compression.step_time import keep_step_time
from optimizer.formats import MISSING
from optimizer.recipe import MAX_EFFORT_SECONDS, MAX_FINETUNE_STEPS, NORMAL, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Known, Request, Settings
from optimizer.search.sweep import WORK_AHEAD_VARIABLE, neighbours
from optimizer.store import keys, ledger
from optimizer.system.environment import threads_available
from pages import backlog, drawing, tasks

VERY_LONG = {"effort_seconds": MAX_EFFORT_SECONDS, "finetune_steps": MAX_FINETUNE_STEPS}
BY_MAGNITUDE = {"model": "fashion-mlp", "method": "Magnitude"}


def test_curves_need_no_raw_samples_but_those_of_the_position(stored: AppTest) -> None:
    more = [
        make_result(Recipe(replace(NORMAL.prune, sparsity=sparsity), NORMAL.quantize.at(4)), quick=True)
        for sparsity in (0.2, 0.35)
    ]
    for result in more:
        summaries.put(tasks.store(), result)
    with tasks.store().writing() as connection:
        connection.exec_driver_sql(
            "UPDATE results SET json = x'00' WHERE key IN (?, ?)", tuple(one.key for one in more)
        )
    page = stored.run()
    assert not page.exception
    curves = page.get("plotly_chart")[0].proto.spec
    assert all(result.key in curves for result in more)
    assert MISSING not in shown(page).values()


@pytest.mark.slow
def test_of_very_many_results_the_newest_are_drawn_and_the_position(
    stored: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newest = (
        replace(make_result(Recipe(replace(NORMAL.prune, sparsity=sparsity)), quick=True), created=created)
        for sparsity, created in ((0.2, "2027-01-01"), (0.3, "2027-01-02"))
    )
    for result in (older, newest):
        summaries.put(tasks.store(), result)
    assert "measured last" not in words(stored.run())
    monkeypatch.setattr(drawing, "MAX_DRAWN", 1)
    page = stored.run()
    assert not page.exception
    assert "The 1 result of this model that were measured last." in words(page)
    curves = page.get("plotly_chart")[0].proto.spec
    assert [one.key in curves for one in (older, newest, results()[Recipe()])] == [False, True, True]


def has_button(label: str) -> Callable[[AppTest], bool]:
    return lambda page: label in [button.label for button in page.button]


def as_visitor(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tasks, "visitor", lambda: name)


def test_a_measured_position_is_shown_at_once(stored: AppTest) -> None:
    page = stored.run()
    assert not page.exception
    assert shown(page) == expected(results()[Recipe()])


@pytest.mark.slow
def test_curves_that_were_measured_in_full_are_not_to_be_filled(stored: AppTest) -> None:
    offered = [one.label for one in stored.run().button if one.label.startswith("Fill the curves")]
    assert offered == ["Fill the curves (22 to measure)"]
    wanted = backlog.starter(Request("fashion-resnet", NORMAL, settings=Settings(quick=False))).requests()
    for number, request in enumerate(wanted):
        made = replace(make_result(request.recipe), request=request, key=keys.request_key(request))
        summaries.put(tasks.store(), made)
        if number in (0, len(wanted) - 1):
            labels = [button.label for button in stored.run().button]
            assert any(label.startswith("Fill") for label in labels) == (number == 0)


def test_the_curves_are_filled_where_the_button_says_another_number_by_then(
    stored: AppTest, started: Started
) -> None:
    (fill,) = [one for one in stored.run().button if one.label == "Fill the curves (22 to measure)"]
    request = next(
        one
        for one in backlog.starter(Request("fashion-resnet", NORMAL)).requests()
        if tasks.store().best(one) is None
    )
    measured = replace(make_result(request.recipe), request=request, key=keys.request_key(request))
    summaries.put(tasks.store(), measured)
    fill.click().run()
    (sweep,) = ledger.sweeps(tasks.store())
    assert sweep.total == 24


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_headed_as_the_navigation_calls_it(started: Started, name: str) -> None:
    page = open_page(name, {"model": "fashion-mlp"})
    assert page.header[0].value == name.replace("_", " ").capitalize()
    assert name != "explore" or "Prune and quantize a pretrained model" in words(page)


def test_curves_that_are_being_measured_are_not_offered_once_more(stored: AppTest) -> None:
    wanted = backlog.starter(Request("fashion-resnet", NORMAL)).requests()
    missing = [one for one in wanted if tasks.store().best(one) is None]
    others = [*missing, replace(SMALL, engine="torch")]
    for requests, words_of_it in ((missing, "Filling the curves"), (others, "Sweep 2 fills the curves")):
        number = ledger.create(tasks.store(), b"{}", requests, "a visitor")
        page = stored.run()
        labels = [button.label for button in page.button]
        assert not [label for label in labels if label.startswith("Fill")]
        assert ("Stop filling" in labels) == (requests is missing), "what is more is not stopped here"
        assert words_of_it in page.get("progress")[0].proto.text
        ledger.cancel(tasks.store(), number)
    assert [one.label for one in stored.run().button if one.label.startswith("Fill")]


def test_what_a_link_asks_for_and_was_not_started_is_not_said_to_be_measured(started: Started) -> None:
    page = open_page("explore", {"model": "fashion-vit", "bits": "3", "effort": "120"})
    assert "Start" in [button.label for button in page.button]
    said = [caption.value for caption in page.main.caption]
    assert said.count("not started") == 2
    assert "being measured" not in said
    drawn = json.dumps([figure.proto.spec for figure in page.get("plotly_chart")])
    assert "Nothing measured yet" in drawn
    assert "Being measured" not in drawn


def test_empty_charts_say_that_something_is_being_measured(started: Started) -> None:
    page = open_page("explore", {"model": "fashion-mlp"})
    drawn = json.dumps([figure.proto.spec for figure in page.get("plotly_chart")], ensure_ascii=False)
    assert "Being measured" in drawn
    assert "Nothing measured yet" not in drawn


@pytest.mark.slow
def test_a_time_that_a_search_has_taken_once_more_is_told_beside_the_one_of_the_charts(
    stored: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (result,) = [one for one in tasks.store().results() if one.request.recipe == Recipe()]
    told = "Timed again by a search or a preset"
    assert told not in words(stored.run())
    for noisy, ratio in ((True, 0.5), (False, 0.8)):
        again = make_result(Recipe(), quick=True, noisy=noisy, ratio=ratio).latency
        monkeypatch.setattr(on_demand, "time_again", lambda *given, again=again: again)
        assert on_demand.time_afresh(result, tasks.store()) == again
        summary = summarise(replace(result, latency=again))
        page = stored.run()
        told_of = f"{told}: {summary.text('latency')}{', noisy' if noisy else ''}."
        (line,) = [one for one in page.caption if told in one.value]
        assert told_of in words(page)
        assert [reason in line.proto.help for reason in summary.noise] == [True] * len(summary.noise)
        assert bool(summary.noise) == bool(line.proto.help) == noisy
        assert shown(page) == expected(results()[Recipe()])
        result = replace(result, latency=again)  # which is doubted in its turn


def test_a_full_measurement_is_shown_with_a_way_to_stop_it_and_why_it_failed(
    stored: AppTest, started: Started
) -> None:
    page = press(stored.run(), "Measure in full")
    (request,) = started.requests()
    assert not request.settings.quick
    job = started.get(keys.request_key(request))
    assert job is not None
    full = next(button for button in page.button if button.label == "Measure in full")
    assert full.disabled
    assert "queued" in words(page)
    assert [button.label for button in page.button].count("Stop measuring") == 1
    job.state, job.error = "failed", "the disk is full"
    page.run()
    assert "the disk is full" in [error.value for error in page.error]
    assert not next(button for button in page.button if button.label == "Measure in full").disabled


def test_a_preset_from_before_the_page_was_loaded_anew_is_shown(stored: AppTest, started: Started) -> None:
    page = press(stored.run(), "Balanced")
    job = next(job for job in started.jobs() if job.task == "preset")
    assert page.query_params["preset"] == "balanced"
    assert entry().run().session_state["session"].preset is None, "which another visitor asked for"
    again = entry()
    again.query_params["preset"] = "balanced"
    assert again.run().session_state["session"].preset is job
    job.state = "cancelled"
    again.run()
    assert again.session_state["session"].preset is None
    assert "preset" not in again.run().query_params


def test_sliders_move_the_figures(stored: AppTest) -> None:
    page = stored.run()
    page.slider(key="sparsity").set_value(50)
    page.select_slider(key="bits").set_value(4).run()
    assert shown(page) == expected(results()[HALF.recipe])
    assert shown(page) != expected(results()[Recipe()])


@pytest.mark.slow
def test_a_new_position_is_counted_at_once_and_measured_soon(app: AppTest) -> None:
    page = app.run()
    page.slider(key="sparsity").set_value(37).run()
    settled(page, stands)
    recipe = Recipe(replace(NORMAL.prune, sparsity=0.37))
    assert shown(page) == expected(results(SMALL.model)[recipe])


@pytest.mark.skipif(threads_available() == 1, reason="every core is one thread here")
def test_the_threads_are_chosen(started: Started) -> None:
    open_page("explore", {"timed_threads": "1"})
    assert {request.settings.threads for request in started.requests()} == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("control", "key", "value", "quantize"),
    [
        ("select_slider", "activations", 8, QuantizeSpec(weight_bits=8, activation_bits=8)),
        ("segmented_control", "granularity", "tensor", QuantizeSpec(weight_bits=8, granularity="tensor")),
        ("segmented_control", "grid", "asymmetric", QuantizeSpec(weight_bits=8, symmetric=False)),
        ("selectbox", "nearest_range", "mse", QuantizeSpec(weight_bits=8, range="mse")),
        (
            "segmented_control",
            "magnitude_rounding",
            "compensated",
            QuantizeSpec("compensated", weight_bits=8, range="mse"),
        ),
    ],
)
def test_every_other_control_is_part_of_the_recipe(
    started: Started, control: str, key: str, value: object, quantize: QuantizeSpec
) -> None:
    page = open_page("explore", BY_MAGNITUDE)
    page.select_slider(key="bits").set_value(8)
    getattr(page, control)(key=key).set_value(value).run()
    assert Recipe(quantize=quantize) in started.recipes()


def test_outputs_are_matched_and_channels_equalised_when_asked(started: Started) -> None:
    """Where the method has a use for it: the others don't offer it."""
    page = open_page("explore", BY_MAGNITUDE | {"sparsity": "50", "bits": "4"})
    page.toggle(key="match").set_value(True)
    page.toggle(key="equalise").set_value(True).run()
    spec = QuantizeSpec(weight_bits=4, equalise=True)
    assert Recipe(PruneSpec(sparsity=0.5, match=True), spec) in started.recipes()

    def offered() -> set[str]:
        return {"match", "equalise"} & {str(one.key) for one in page.toggle}

    page.segmented_control(key="magnitude_rounding").set_value("compensated").run()
    assert offered() == {"match"}
    page.selectbox(key="method").set_value("compensated").run()
    assert not offered()


@pytest.mark.slow
def test_widths_that_differ_by_layer_keep_to_their_average(app: AppTest) -> None:
    page = app.run()
    page.select_slider(key="bits").set_value(4)
    page.toggle(key="mixed").set_value(True).run()
    settled(page, stands)
    recipe = Recipe(quantize=replace(NORMAL.quantize.at(4), weight_bits=32, average_bits=4.0))
    layers = results(SMALL.model)[recipe].inspection.layers
    assert len({layer.bits for layer in layers}) > 1
    assert sum(layer.bits * layer.elements for layer in layers) <= 4 * sum(layer.elements for layer in layers)


def test_a_pattern_fixes_the_sparsity(started: Started) -> None:
    page = open_page("explore", {})
    page.selectbox(key="pattern").set_value("2:4").run()
    assert page.slider(key="sparsity").disabled
    assert Recipe(PruneSpec("compensated", pattern="2:4")) in started.recipes()


def test_what_a_step_takes_is_told(stored: AppTest) -> None:
    stored.query_params["model"] = "fashion-vit"  # which nothing else here fine-tunes
    page = stored.run()
    assert "about half a second for photographs" in page.number_input(key="finetune").help
    for seconds, said in (
        (120.0, "A step took 120 s for this model here, so 500 take about 1,000 minutes."),
        (0.25, "A step took 0.25 s for this model here, so 500 take about 2 minutes."),
    ):
        keep_step_time(page.selectbox(key="model").value, seconds)
        assert said in page.run().number_input(key="finetune").help


@pytest.mark.slow
def test_what_runs_can_be_stopped_and_goes_on_when_asked(app: AppTest) -> None:
    recipe = Recipe(replace(NORMAL.prune, sparsity=0.31), **VERY_LONG).canonical()
    key = keys.request_key(replace(SMALL, recipe=recipe))
    app.query_params["recipe"] = json.dumps(recipe.differences())
    page = running(press(app.run(), "Start"), key)
    page = press(page, "Stop measuring")
    stopped = tasks.pool().get(key)
    assert stopped is not None
    assert stopped.state == "cancelled"
    assert "Stopped, as you asked" in words(page)
    assert not page.run().exception
    assert tasks.pool().get(key) is stopped  # it is not asked for again by itself
    page = press(page, "Resume")
    assert tasks.pool().get(key).state in ("queued", "running")  # type: ignore[union-attr]
    page.slider(key="sparsity").set_value(0).run()
    assert tasks.pool().get(key).state == "cancelled"  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_stop_leaves_what_another_waits_for(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(replace(NORMAL.prune, sparsity=0.32), **VERY_LONG).canonical()
    key = keys.request_key(replace(SMALL, recipe=recipe))
    app.query_params["recipe"] = json.dumps(recipe.differences())
    as_visitor(monkeypatch, "ann")
    ann = running(press(app.run(), "Start"), key)
    job = tasks.pool().get(key)
    assert job is not None
    assert tasks.pool().submit("measure", "measure", job.request, key, visitor="bob") is job
    ann = press(ann, "Stop measuring")
    assert "Stopped, as you asked" in words(ann)
    assert not has_button("Stop measuring")(ann)
    assert job.state == "running"
    assert tasks.pool().withdraw(key, "bob")


@pytest.mark.slow
def test_two_visitors_of_one_preset_both_get_it(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {}
    for name in ("ann", "bob"):
        as_visitor(monkeypatch, name)
        page = entry()
        page.query_params |= {"model": "fashion-mlp"}
        pages[name] = press(page.run(), "Small")
    assert pages["ann"].session_state["session"].preset is pages["bob"].session_state["session"].preset
    for name, page in pages.items():
        as_visitor(monkeypatch, name)
        settled(page, lambda page: len(page.toast) == 1)
        assert "at most 3 points lost" in page.toast[0].value.lower()
        assert page.session_state["session"].preset is None


@pytest.mark.slow
def test_a_position_that_failed_is_tried_again_when_asked(app: AppTest) -> None:
    recipe = replace(NORMAL, prune=replace(NORMAL.prune, sparsity=0.29)).canonical()
    key = keys.request_key(replace(SMALL, recipe=recipe))
    tasks.pool().wait(tasks.pool().submit("measure", "measure", Request("no such model"), key))
    app.query_params["sparsity"] = "29"
    try_again(app.run(), key)


def test_accuracy_is_on_its_card_while_timing_goes_on(started: Started) -> None:
    page = open_page("explore", {"model": "fashion-mlp"})
    accuracy, _, latency, _ = page.metric
    assert (accuracy.value, latency.value) == (MISSING, MISSING)
    (job,) = [job for job in started.listed.values() if job.task == "measure"]
    made = make_result(model="fashion-mlp")
    assert isinstance(job.request, Request)
    job.state = "running"
    job.known = Known(
        job.request, made.inspection, made.accuracy.total, made.accuracy, made.baseline_accuracy
    )
    accuracy, _, latency, _ = page.run().metric
    assert accuracy.value == summarise(made).parts("accuracy")[0]
    assert latency.value == MISSING
    assert not page.exception


def test_a_noisy_latency_is_on_its_card_while_it_is_timed_again(started: Started) -> None:
    page = open_page("explore", {"model": "fashion-mlp"})
    (job,) = [job for job in started.listed.values() if job.task == "measure"]
    made = make_result(model="fashion-mlp")
    job.state, job.known = "running", made
    page.run()
    assert [card.value for card in page.metric] == [
        one.value for one in headlines(summarise(made), made.inspection)
    ]
    assert not tasks.store().count(), "shown, and not kept"
    assert not page.exception


@pytest.mark.slow
def test_charts_mark_the_position_before_until_this_one_is_measured_or_late(
    stored: AppTest, started: Started
) -> None:
    def marks() -> list[tuple[bool, bool]]:
        """Of the curves over sparsity: whether a result is marked, and a place where one will be."""
        drawn = [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")[:2]]
        return [
            ("#d6117c" in json.dumps(chart["data"]), '"dash": "dot"' in json.dumps(chart["layout"]))
            for chart in drawn
        ]

    page = stored.run()
    session = page.session_state["session"]
    measured = session.marked
    assert measured
    before = marks()
    page.slider(key="sparsity").set_value(71).run()
    assert (session.marked, marks()) == (measured, before)
    session.asked_at -= 60
    page.run()
    assert session.marked == ""
    assert marks() != before
    page.slider(key="sparsity").set_value(0).run()
    assert (session.marked, marks()) == (measured, before)


@pytest.mark.slow
def test_the_positions_beside_one_are_measured_ahead_and_dropped_when_it_is_left(
    stored: AppTest, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WORK_AHEAD_VARIABLE)
    page = stored.run()
    session = page.session_state["session"]
    session.seen_at, session.ahead = time.monotonic() + 3_600, None  # however long a busy machine drew
    for job in started.jobs():
        started.forget(job.key)
    page.run()
    assert started.tasks() == [], "the visitor may be on the way to another"
    session.seen_at -= 7_200
    page.run()
    ahead = {key: job for key, job in started.listed.items() if job.task == "ahead"}
    request = ahead and next(iter(ahead.values())).request
    assert isinstance(request, Request)
    shown = replace(request, recipe=page.session_state["session"].recipe.canonical())
    assert {job.request for job in ahead.values()} == set(neighbours(shown))
    assert {job.priority for job in ahead.values()} == {tasks.AHEAD}
    polls: list[float | None] = []
    fragment = st.fragment
    monkeypatch.setattr(
        st, "fragment", lambda *, run_every=None: (polls.append(run_every), fragment(run_every=run_every))[1]
    )
    page.run()
    assert not any(polls), "nothing is left to ask for"
    swept = started.listed[next(iter(ahead))]
    swept.priority = tasks.BACKGROUND
    page.slider(key="sparsity").set_value(77).run()
    assert set(ahead) & set(started.listed) == {swept.key}
    assert sorted(started.tasks()) == ["ahead", "measure"]
    assert not page.exception


def test_moving_on_ends_what_was_asked_for_before(started: Started) -> None:
    page = open_page("explore", {"model": "fashion-mlp", "sparsity": "30"})
    (before,) = started.requests()
    page.slider(key="sparsity").set_value(31).run()
    (after,) = started.requests()
    assert (before.recipe.prune.sparsity, after.recipe.prune.sparsity) == (0.3, 0.31)
