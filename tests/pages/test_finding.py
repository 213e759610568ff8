"""A question under limits on the Sweep page, without a browser."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
from faults.storing import claimed
from page_runs import newest, press, words
from search_bench import Bench, winner
from started import Started, open_page
from streamlit.testing.v1 import AppTest

from optimizer.analysis.limits import Limits
from optimizer.export.report import answer_report
from optimizer.formats import capital
from optimizer.records import DataSpec, Request, encode
from optimizer.search import answers
from optimizer.search.questions import ask, question_of
from optimizer.search.records import Progress, Step
from optimizer.store import ledger
from optimizer.store.items import Sweep
from optimizer.store.results import ANSWER, EARLY_ANSWER, SEARCH
from pages import finding, sidebar, tasks

LINK = {"model": "fashion-mlp", "ask": "The best under limits"}


def asked(**link: str) -> tuple[AppTest, Sweep]:
    page = press(open_page("sweep", LINK | link), "Find")
    return page, newest()


def answer(sweep: Sweep, bench: Bench, early: bool = False) -> None:
    """As who works on questions does."""
    store, item = tasks.store(), claimed(tasks.store())
    assert item.answer is not None
    found = bench.go_on(question_of(sweep), Progress(), enough=lambda: early and len(bench.measured) > 2)
    for result in found.measured:
        store.put(result)
    store.put_document(SEARCH, item.key, encode(found.answer.progress))
    store.put_document(EARLY_ANSWER if early else ANSWER, item.answer, encode(found.answer))
    ledger.finish(store, item, item.answer, 30.0)


def history_of(page: AppTest) -> pd.DataFrame:
    """What the history says once it is opened."""
    page.session_state["sweep_history_open"] = True
    return next(table.value for table in page.run().dataframe if "asked for" in table.value)


def test_the_history_is_read_where_it_is_open(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[int]()
    monkeypatch.setattr(answers, "outcome_of", lambda store, sweep: read.append(sweep.id) or "found")
    page, sweep = asked(find_drop="1")
    page.run()
    assert not read
    assert list(history_of(page)["outcome"]) == ["found"]
    assert read == [sweep.id]
    item = claimed(tasks.store())
    ledger.finish(tasks.store(), item, item.answer, 30.0)
    for _ in range(2):
        assert list(history_of(page)["outcome"]) == ["found"]
    assert read == [sweep.id] * 2, "an answer that is there is read once"


def test_a_question_needs_a_limit_and_stands_in_the_ledger_as_a_link_says(started: Started) -> None:
    page = open_page("sweep", LINK)
    assert "Give at least one limit" in words(page)
    page.number_input(key="find_drop").set_value(1.0).run()
    assert "Give at least one limit" not in words(page)
    page, sweep = asked(find_drop="1", find_ms="0.5", find_seconds="30 s", timed_threads="1")
    question = question_of(sweep)
    assert question.limits == Limits(drop_points=1, latency_ms=0.5)
    assert (question.minimise, question.budget_seconds) == ("latency", 30)
    assert question.space.threads == (1,)
    assert question.model == "fashion-mlp"
    assert page.query_params["sweep"] == str(sweep.id)
    assert "**Question** (entry 1 of the history)" in words(page)
    assert sweep.state == "queued"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "find_drop",
            250.0,
            "Accuracy lost, points: 250 is not allowed: give a number above 0 and below 100",
        ),
        ("find_ms", -1.0, "Latency, ms: -1 is not allowed: give a number above 0"),
        ("find_mb", 0.0, "File, MB: 0 is not allowed: give a number above 0"),
    ],
)
def test_nothing_is_searched_under_a_limit_that_can_not_be(
    started: Started, key: str, value: float, said: str
) -> None:
    """Nor under the limits beside it, as if it were not there."""
    page = open_page("sweep", LINK | {"find_ratio": "0.5"})
    assert "Find" in [button.label for button in page.button]
    page.number_input(key=key).set_value(value).run()
    assert said in words(page)
    assert "Find" not in [button.label for button in page.button]
    page.number_input(key=key).set_value(None).run()
    assert "Find" in [button.label for button in page.button]


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_a_link_to_a_limit_that_is_no_number_says_that_it_is_left_out(started: Started, value: str) -> None:
    page = open_page("sweep", LINK | {"find_ms": value, "find_ratio": "0.5"})
    assert page.number_input(key="find_ms").value is None
    assert page.toast[0].value.startswith("Settings of this link are left out: find\\_ms")


def test_the_history_says_that_sweeps_and_questions_are_numbered_together(started: Started) -> None:
    ledger.create(tasks.store(), b"{}", [Request("fashion-mlp")], "ann")
    page, sweep = asked(find_drop="1")
    assert sweep.id == 2
    assert "**Question** (entry 2 of the history)" in words(page)
    assert "History: 2 entries (1 sweep, 1 question)" in [one.label for one in page.expander]
    assert set(history_of(page)["entry"]) == {1, 2}


def test_what_to_optimise_for_follows_the_limits_until_it_is_chosen(started: Started) -> None:
    """With time alone limited, the fastest network would be found, however wrong it is."""
    page = open_page("sweep", LINK)

    def goal() -> object:
        return page.selectbox(key="find_minimise").value

    assert goal() == "latency"
    page.number_input(key="find_ms").set_value(0.5).run()
    assert goal() == "drop"
    page.number_input(key="find_drop").set_value(1.0).run()
    assert goal() == "latency"
    page.selectbox(key="find_minimise").set_value("file_size").run()
    page.number_input(key="find_drop").set_value(None).run()
    assert goal() == "file_size"


def test_a_network_that_is_no_classifier_is_asked_for_its_sqnr(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = sidebar.catalogue()
    cards = {name: replace(card, classes=0) for name, card in known.cards.items()}
    monkeypatch.setattr(sidebar, "catalogue", lambda: replace(known, cards=cards))
    page = open_page("sweep", LINK)
    assert "find_sqnr" in [one.key for one in page.number_input]
    assert "find_drop" not in [one.key for one in page.number_input]
    _, sweep = asked(find_sqnr="30", find_minimise="SQNR")
    question = question_of(sweep)
    assert (question.limits, question.minimise) == (Limits(sqnr_db=30), "sqnr")
    _, sweep = asked(find_ratio="0.5")
    assert question_of(sweep).limits == Limits(latency_ratio=0.5)
    _, sweep = asked(find_mb="1", find_minimise="accuracy lost")
    assert question_of(sweep).minimise == "sqnr", "it has no accuracy to lose"


@pytest.mark.slow
def test_an_answer_is_told_with_what_it_rests_on_and_opens_in_explore(started: Started) -> None:
    page, sweep = asked(find_drop="1")
    answer(sweep, Bench())
    page = open_page("sweep", {"sweep": str(sweep.id)})
    told = words(page)
    assert "8-bit activations on OpenVINO: accuracy" in told
    assert "images that chose it" in told
    assert len(page.get("plotly_chart")) == 2
    found = finding.found_of(newest())
    assert found is not None
    tried = next(table.value for table in page.dataframe if "outcome" in table.value)
    assert len(tried) == len(found.answer.progress.trials)
    assert "Open the answer in Explore" in [link.proto.label for link in page.get("page_link")]
    opened = open_page("explore", {sidebar.OPEN: winner(found).key})
    assert opened.select_slider(key="activations").value == 8
    report = answer_report(found)
    assert "What was asked" in report
    assert "paretoscope find fashion-mlp --max-drop=1.0" in report
    report = answer_report(found, only_python=True)
    assert "ask px.find again with them" in report
    assert "paretoscope find fashion-mlp" not in report


@pytest.mark.slow
@pytest.mark.parametrize(
    "link", [{"find_drop": "0.5", "find_mb": "0.01", "find_seconds": "30 s"}, {"find_ms": "0.001"}], ids=str
)
def test_where_nothing_keeps_to_the_limits_that_is_said(started: Started, link: dict[str, str]) -> None:
    page, sweep = asked(**link)
    answer(sweep, Bench())
    told = words(page.run())
    assert "No configuration that was tried is shown to keep to the limits" in told
    assert "the nearest that keeps the other limits has" in told
    assert list(history_of(page)["outcome"]) == ["nothing keeps to the limits"]


@pytest.mark.slow
def test_a_search_is_followed_stopped_and_gone_on_with(started: Started) -> None:
    page, sweep = asked(find_drop="1", find_seconds="1 minute")
    item = claimed(tasks.store())
    steps = (Step(10.0, 3, 2e5, 0.5),)
    tasks.store().put_document(SEARCH, item.key, encode(Progress(12.0, (), steps)))
    page.run()
    (line,) = page.get("progress")
    assert line.proto.text.startswith("12 of 60 s")
    assert len(page.get("plotly_chart")) == 1
    page = press(page, "Answer now")
    assert ledger.is_enough(tasks.store(), item)
    ledger.put_back(tasks.store(), item)
    answer(sweep, Bench(), early=True)
    page.run()
    assert "Ended early. " in words(page)
    assert history_of(page)["outcome"][0].endswith(", ended early")
    page = press(page, "Resume")
    assert newest().state == "queued"
    assert not ledger.items(tasks.store(), sweep.id)[0].enough


@pytest.mark.slow
def test_a_question_is_cancelled_resumed_repeated_and_extended(started: Started) -> None:
    page, sweep = asked(find_drop="1", find_seconds="30 s")
    page = press(page, "Cancel")
    assert newest().state == "cancelled"
    assert "Cancelled" in words(page)
    page = press(page, "Resume")
    answer(newest(), Bench())
    page.run()
    page = press(page, "Repeat")
    assert (newest().id, newest().state) == (sweep.id, "done"), "nothing has changed: its answer is there"
    page = press(page, "Extend to 1 minute")
    longer = newest()
    assert (longer.id, longer.state) == (sweep.id + 1, "queued")
    assert question_of(longer).budget_seconds == 60
    assert ledger.items(tasks.store(), longer.id)[0].key == ledger.items(tasks.store(), sweep.id)[0].key
    assert page.query_params["sweep"] == str(longer.id)


def test_the_best_until_a_question_was_cancelled_is_shown_and_in_the_history(started: Started) -> None:
    page, sweep = asked(find_drop="1", find_seconds="30 s")
    item = claimed(tasks.store())
    found = Bench().go_on(question_of(sweep), Progress())
    for result in found.measured:
        tasks.store().put(result)
    tasks.store().put_document(SEARCH, item.key, encode(found.answer.progress))
    page = press(page.run(), "Cancel")
    told = words(page)
    assert "Cancelled. What was measured is kept: Resume goes on from there." in told
    assert f"Ended early. {capital(answers.named(winner(found)))}: accuracy" in told
    tried = next(table.value for table in page.dataframe if "outcome" in table.value)
    assert len(tried) == len(found.answer.progress.trials)
    assert list(history_of(page)["outcome"]) == [f"cancelled; so far {answers.named(winner(found))}"]


@pytest.mark.slow
def test_a_question_of_images_in_memory_is_shown_and_not_asked_again_of_others(started: Started) -> None:
    _, sweep = asked(find_drop="1", find_seconds="30 s")
    given = replace(question_of(sweep), data=DataSpec(content="0" * 20))
    number = ask(tasks.store(), given, "ann")
    assert ledger.cancel(tasks.store(), sweep.id) == 1
    answer(newest(), Bench())
    page = open_page("sweep", {"sweep": str(number)})
    told = words(page)
    assert "given in memory: ask it again, or with more time, from Python" in told
    labels = {button.label for button in page.button}
    assert not labels & {"Repeat", "Resume", "Extend to 1 minute"}
    links = [link.proto for link in page.get("page_link")]
    assert [link.disabled for link in links if link.label == "Open the answer in Explore"] == [True]
    found = finding.found_of(newest())
    assert found is not None
    opened = open_page("explore", {sidebar.OPEN: winner(found).key, "images": sidebar.BUNDLED})
    assert "on images in memory: Explore has not got them" in words(opened)
    assert opened.select_slider(key="activations").value == 32, "nothing is set to it"
    tasks.store().forget([winner(found).key])
    page.run()
    assert "was dropped." in words(page)


def test_a_question_of_a_module_is_not_asked_again_here(started: Started) -> None:
    _, sweep = asked(find_drop="1", find_seconds="30 s")
    given = replace(question_of(sweep), model="Sequential-20b8178076")
    number = ask(tasks.store(), given, "ann")
    for one in (sweep.id, number):
        assert ledger.cancel(tasks.store(), one) == 1
    page = open_page("sweep", {"sweep": str(number)})
    told = words(page)
    assert "Sequential-20b8178076 is not among the models here. One that was given in Python" in told
    assert "What was measured is kept." in told
    assert not {button.label for button in page.button} & {"Repeat", "Resume", "Extend to 1 minute"}


def damage(key: str) -> None:
    with tasks.store().writing() as connection:
        connection.exec_driver_sql("UPDATE results SET json = 'damaged' WHERE key = ?", (key,))


@pytest.mark.slow
@pytest.mark.parametrize(
    "lose", [lambda key: tasks.store().forget([key]), damage], ids=["dropped", "damaged"]
)
def test_what_is_there_no_more_is_said_and_found_anew(
    started: Started, lose: Callable[[str], object]
) -> None:
    page, sweep = asked(find_drop="1", find_seconds="30 s")
    answer(sweep, Bench())
    found = finding.found_of(newest())
    assert found is not None
    lose(winner(found).key)
    page.run()
    assert "was dropped" in words(page)
    press(page, "Resume")
    assert newest().state == "queued"


@pytest.mark.slow
def test_one_who_asks_the_same_gets_the_answer_of_another(started: Started) -> None:
    _, sweep = asked(find_drop="1")
    question = question_of(sweep)
    assert ask(tasks.store(), question, "bob") == sweep.id
    answer(sweep, Bench())
    press(open_page("sweep", LINK | {"find_drop": "1"}), "Find")
    assert [(one.id, one.state) for one in ledger.sweeps(tasks.store())] == [(sweep.id, "done")]


def test_a_question_of_another_version_says_so(started: Started) -> None:
    _, sweep = asked(find_drop="1")
    with tasks.store().writing() as connection:
        connection.exec_driver_sql("UPDATE sweeps SET asked = '{}'")
    page = open_page("sweep", {"sweep": str(sweep.id)})
    assert "asked by another version" in words(page)
    assert "can't read what question 1 asks: ask it anew" in words(page)
