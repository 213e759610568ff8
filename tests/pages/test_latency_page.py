"""Latency, without a browser."""

from dataclasses import replace

import numpy as np
import pytest
from page_runs import SMALL, press, try_again, words
from started import Started, go_to, open_page
from streamlit.testing.v1 import AppTest
from test_serving import make_run

from optimizer.analysis import serving
from optimizer.analysis.coverage import coverage_key
from optimizer.analysis.load import RECIPE, UNCOMPRESSED, Answered, LoadPoint, LoadRequest, LoadRun
from optimizer.analysis.queueing import response_percentiles
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Times, encode
from optimizer.system.environment import environment
from pages import tasks


@pytest.mark.slow
def test_kernels_that_failed_are_tried_again_when_asked(app: AppTest) -> None:
    request = replace(
        SMALL, recipe=Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)).canonical()
    )
    key = coverage_key(request)
    bad = replace(request, model="no such model")
    tasks.pool().wait(tasks.pool().submit("measure", "coverage", bad, key))
    try_again(app.switch_page("pages/latency.py").run(), key)


def test_while_throughput_is_measured_the_empty_chart_says_so(started: Started) -> None:
    page = open_page("latency", {"model": "fashion-mlp"})
    assert "Not measured yet" in page.get("plotly_chart")[0].proto.spec
    page.button(key="measure throughput").click().run()
    assert "throughput" in started.tasks()
    assert "Being measured" in page.get("plotly_chart")[0].proto.spec


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_torch_eager_is_beside_other_engines_and_not_beside_itself(started: Started, engine: str) -> None:
    page = open_page("latency", {"model": "fashion-mlp", "engine": engine})
    beside = "two builds of the uncompressed model and torch eager, interleaved"
    assert (beside in words(page)) == (engine != "torch")
    press(page, "Measure")
    (job,) = [job for job in started.listed.values() if job.task == "throughput"]
    request = job.request
    assert isinstance(request, serving.ServingRequest)
    run = make_run(request.recipe, key=job.key, request=request, eager=engine != "torch")
    tasks.store().put_document("throughput", run.key, encode(run))
    told = words(open_page("latency", {"model": "fashion-mlp", "engine": engine}))
    assert ("The last column is the ratio to torch eager" in told) == (engine != "torch")


def test_load_is_measured_when_asked_and_the_highest_rate_under_a_limit_is_named(started: Started) -> None:
    link = {"model": "fashion-mlp", "what": "int8"}
    page = open_page("latency", link)
    press(page, "Measure under load")
    (job,) = [job for job in started.listed.values() if job.task == "load"]
    assert isinstance(job.request, LoadRequest)
    assert job.request.settings.quick
    times = Times.of(np.random.default_rng(0).normal(2e6, 1e5, 2_000))
    found = response_percentiles(times.values.astype(float), 50.0)
    both = {name: Answered(times, 0.5, False, times, found) for name in (RECIPE, UNCOMPRESSED)}
    service = dict.fromkeys(both, 1e6)
    run = LoadRun(job.key, job.request, environment(), "now", (LoadPoint(500.0, both),), service, 0.0)
    tasks.store().put_document("load", run.key, encode(run))
    page = open_page("latency", link | {"limit_ms": "5"})
    assert "answers 99 % of requests within 5.00 ms at up to 500 requests/s" in words(page)
    assert not [button for button in page.button if button.label == "Measure under load"]
    assert "takes 1.00 ms by itself; at 500 requests/s, 50 % busy" in words(page)
    assert "red-badge[noisy]" not in words(page)
    tasks.store().put_document("load", run.key, encode(replace(run, stolen_share=0.3)))
    page = open_page("latency", link | {"limit_ms": "5"})
    assert "red-badge[noisy]" in words(page)
    assert "up to 500 requests/s (noisy: the machine was not quiet).**" in words(page)
    job.state = "done"
    press(page.run(), "Measure under load again")
    assert started.listed[job.key] is not job
    page = open_page("latency", link | {"limit_ms": "5"})
    page.toggle(key="full").set_value(True).run()
    assert "up to 500 requests/s" in words(page)
    assert "gray-badge[preliminary]" in words(page)
    assert [button for button in page.button if button.label == "Measure under load"]


def test_load_is_measured_at_rates_of_ones_own(started: Started) -> None:
    page = open_page("latency", {"model": "fashion-mlp", "rates": "100, 50"})
    press(page, "Measure under load")
    (job,) = [job for job in started.listed.values() if job.task == "load"]
    assert isinstance(job.request, LoadRequest)
    assert job.request.rates == (100.0, 50.0)


@pytest.mark.parametrize("typed", ["fast", "0", "-5", "nan", "50; 100", ",".join(["5"] * 13)])
def test_rates_that_are_none_are_refused_in_words_and_nothing_is_offered(
    started: Started, typed: str
) -> None:
    page = open_page("latency", {"model": "fashion-mlp", "rates": typed})
    assert "rate" in page.error[0].value
    assert not [button for button in page.button if button.label == "Measure under load"]


def test_what_was_served_quickly_stays_until_there_is_the_full_measurement(started: Started) -> None:
    page = open_page("latency", {"model": "fashion-mlp", "what": "int8"})
    page.button(key="measure throughput").click().run()
    (job,) = [job for job in started.listed.values() if job.task == "throughput"]
    assert isinstance(job.request, serving.ServingRequest)
    run = replace(make_run(), key=job.key, request=job.request)
    tasks.store().put_document("throughput", run.key, encode(run))
    started.listed.pop(job.key)
    page = open_page("latency", {"model": "fashion-mlp", "what": "int8", "full": "true"})
    for _ in range(2):  # before it is asked for, and while it is measured
        assert "gray-badge[preliminary]" in words(page)
        assert not [chart for chart in page.get("plotly_chart") if "Not measured yet" in chart.proto.spec]
        if offered := [button for button in page.button if button.key == "measure throughput"]:
            offered[0].click().run()
    assert not offered
    assert "throughput" in started.tasks()
    page.segmented_control(key="what").set_value("explore").run()
    assert page.button(key="measure throughput").label == "Measure", "another recipe is another comparison"


def test_latency_says_what_can_not_be_served(stored: AppTest) -> None:
    stored.query_params["threads"], stored.query_params["streams"] = ["1"], ["2"]
    page = go_to(stored, "latency")
    if page.error:  # on a machine of one core 2 streams can't be picked at all
        assert "2 streams are more than 1 thread" in page.error[0].value
