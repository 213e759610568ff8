"""A question under limits on the Sweep page, without a browser."""

from dataclasses import replace
from typing import Any

import pytest
from page_runs import words
from search_bench import Bench
from started import Started, open_page
from streamlit.testing.v1 import AppTest

from optimizer.analysis.limits import Limits
from optimizer.records import Request
from optimizer.search.find import Question
from optimizer.system.process_pool import Job
from pages import sidebar, tasks

LINK = {"model": "fashion-mlp", "ask": "The best under limits"}


def asked(started: Started, **link: str) -> tuple[AppTest, Job]:
    page = open_page("sweep", LINK | link)
    next(button for button in page.button if button.label == "Find").click().run()
    assert not page.exception
    (job,) = [job for job in started.listed.values() if job.task == "find"]
    return page, job


def answered(page: AppTest, job: Job, bench: Bench, limits: Limits) -> str:
    job.state, job.result = "done", bench.ask(limits)
    page.run()
    assert not page.exception
    return words(page)


def test_a_question_needs_a_limit_and_is_asked_as_a_link_says(started: Started) -> None:
    page = open_page("sweep", LINK)
    assert "Give at least one limit" in words(page)
    page.number_input(key="find_drop").set_value(1.0).run()
    assert "Give at least one limit" not in words(page)
    page, job = asked(started, find_drop="1", find_ms="0.5", find_seconds="30 s", timed_threads="1")
    request: Any = job.request
    question, base = request
    assert isinstance(question, Question)
    assert isinstance(base, Request)
    assert question.limits == Limits(drop_points=1, latency_ms=0.5)
    assert (question.minimise, question.budget_seconds) == ("latency", 30)
    assert question.space.threads == (1,)
    assert base.model == "fashion-mlp"


def test_an_answer_is_told_with_what_it_rests_on_and_opens_in_explore(started: Started) -> None:
    page, job = asked(started, find_drop="1")
    told = answered(page, job, Bench(), Limits(drop_points=1))
    assert "8-bit activations on OpenVINO: accuracy" in told
    assert "images that chose it" in told
    assert len(page.get("plotly_chart")) == 2
    (tried,) = page.dataframe
    assert len(tried.value) == len(job.result.trials)  # type: ignore[attr-defined]
    assert [link.proto.label for link in page.get("page_link")] == ["Open the answer"]
    best = job.result.best.result  # type: ignore[attr-defined]
    best = replace(best, key="0123456789abcdef0123")
    tasks.store().put(best)
    opened = open_page("explore", {sidebar.OPEN: best.key})
    assert opened.select_slider(key="activations").value == 8


@pytest.mark.parametrize("limits", [Limits(drop_points=0.5, size_mb=0.05), Limits(latency_ms=1e-3)])
def test_where_nothing_keeps_to_the_limits_that_is_said(started: Started, limits: Limits) -> None:
    page, job = asked(started, find_drop="1")
    told = answered(page, job, Bench(), limits)
    assert "Nothing of what was tried is shown to keep to the limits" in told
    assert "more than allowed is the nearest" in told
