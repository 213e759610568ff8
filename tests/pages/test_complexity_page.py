"""Complexity, without a browser. (What it measures for real: tests/browser/test_complexity_page.py.)"""

from dataclasses import replace

import pytest
from factories import OTHER_MACHINE
from page_runs import try_again, words
from started import Started, open_page
from streamlit.testing.v1 import AppTest
from test_growth import run

from optimizer.analysis import scaling
from optimizer.analysis.scaling import STACK, ComplexityRequest
from optimizer.records import encode
from pages import tasks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "address"), [(STACK, "stacks of 10 to 10 M weights"), ("fashion-mlp", "fashion-mlp's layers")]
)
def test_what_was_measured_is_shown_and_concluded_from(started: Started, family: str, address: str) -> None:
    request = ComplexityRequest(family, removed_share=0.9, quick=True)
    made = run(0.9)
    points = tuple(replace(point, family=family) for point in made.points)
    made = replace(made, request=request, points=points)
    tasks.store().put_document("complexity", scaling.complexity_key(request), encode(made))
    page = open_page("complexity", {"model": "fashion-mlp", "family": address, "removed": "90"})
    assert "complexity" not in started.tasks(), "measured again"
    assert "What the numbers say" in words(page)
    assert "dense execution" in words(page)
    folded = " ".join(markdown.value for expander in page.expander for markdown in expander.markdown)
    assert "dense execution" in folded, "the cards say it already"
    assert "Pruning does not make the time constant" in words(page)
    assert "Pruning does not make the time constant" not in folded
    assert {"Dense kernels", "torch's CSR", "Rows removed"} <= {metric.label for metric in page.metric}
    (table,) = page.dataframe
    assert table.value.equals(scaling.counts(made))
    page.slider(key="removed").set_value(50).run()
    assert "what it predicts for 50 %" in words(page)
    (job,) = (job for job in started.listed.values() if job.task == "complexity")
    assert job.request == replace(request, removed_share=0.5)


def test_times_of_another_machine_are_not_shown_as_of_this_one(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may hold them, from there or from before a library was changed."""
    made = run(0.9)
    with monkeypatch.context() as there:
        there.setattr(scaling, "environment", lambda: OTHER_MACHINE)
        key = scaling.complexity_key(made.request)
    store = tasks.store()
    store.put_document("complexity", key, encode(replace(made, key=key, environment=OTHER_MACHINE)))
    more = replace(made.request, batch=4)
    store.put_document(
        "complexity", scaling.complexity_key(more), encode(replace(made, request=more, batch=4))
    )
    page = open_page("complexity", {"model": "fashion-mlp", "removed": "50"})
    assert "complexity" in started.tasks()
    assert "Shown until then" not in words(page)
    assert not page.metric
    store.put_document("complexity", made.key, encode(made))
    assert "Shown until then" in words(page.run())


def test_stacks_are_chosen_where_the_models_weights_are_not_here(started: Started) -> None:
    page = open_page("complexity", {"model": "alexnet", "family": "alexnet's layers"})
    chosen = page.segmented_control(key="stacks alone")
    assert (chosen.value, chosen.proto.disabled) == ("stacks", True)
    (job,) = (job for job in started.listed.values() if job.task == "complexity")
    assert job.request == ComplexityRequest(quick=True)
    page = open_page("complexity", {"model": "fashion-mlp", "family": "fashion-mlp's layers"})
    assert page.segmented_control(key="family").value == "model"
    page.selectbox(key="model").set_value("alexnet").run()
    assert page.segmented_control(key="stacks alone").value == "stacks"
    assert not page.exception


@pytest.mark.slow
def test_complexity_that_failed_is_tried_again_when_asked(app: AppTest) -> None:
    share = 0.37
    key = scaling.complexity_key(ComplexityRequest(removed_share=share, quick=True))
    bad = ComplexityRequest("no such model", share)
    tasks.pool().wait(tasks.pool().submit("measure", "complexity", bad, key))
    app.query_params["removed"] = "37"
    try_again(app.switch_page("pages/complexity.py").run(), key)
