"""Layers, without a browser."""

import json
from dataclasses import replace

import pytest
from by_request import inspect
from page_runs import HALF, SMALL, settled, words
from started import Started, open_page
from streamlit.testing.v1 import AppTest

from optimizer.records import Sensitivity
from optimizer.system.process_pool import Job
from pages import tasks


@pytest.mark.slow
def test_layers_shows_a_layer_and_what_it_is_worth(app: AppTest) -> None:
    app.query_params["recipe"] = json.dumps(HALF.recipe.differences())
    page = app.switch_page("pages/layers.py").run()
    settled(page, lambda page: len(page.get("plotly_chart")) == 2)
    assert HALF.recipe.describe() in words(page)
    inspected = inspect(replace(HALF, model=SMALL.model)).layers
    assert page.selectbox(key="layer").options == [layer.name.removesuffix(".weight") for layer in inspected]
    table = page.dataframe[0].value
    assert list(table["weights"]) == [layer.elements for layer in inspected]
    assert set(table["bits"]) == {4}


def test_layers_apart_come_with_a_link(started: Started) -> None:
    own = '[{"layer":"4.weight","sparsity":0.25,"weight_bits":8}]'
    page = open_page("layers", {"model": SMALL.model, "recipe": "{}", "layers": own})
    started.do("inspect")
    page.run()
    row = page.dataframe[0].value.set_index("layer").loc["4"]
    assert (row["own sparsity"], row["own bits"], row["zeros"], row["bits"]) == (25, 8, 25, 8)
    assert "1 layer override" in words(page)
    assert "Sensitivity of each layer alone: being measured" in words(page), "where its chart will be"


@pytest.mark.parametrize(("layers", "beside"), [(4, True), (60, False)])
def test_charts_side_by_side_are_of_one_height(
    started: Started, monkeypatch: pytest.MonkeyPatch, layers: int, beside: bool
) -> None:
    """And where one has very many rows, which would stretch the other, they are not side by side."""
    page = open_page("layers", {"model": SMALL.model})
    for task in ("inspect", "anatomy"):
        started.do(task)
        page.run()
    (job,) = (job for job in started.jobs() if job.task == "sensitivities")
    job.result = tuple(Sensitivity(f"{number}.weight", 0.1, True, {4: 0.2}) for number in range(layers))
    job.state = "done"
    charts = page.run().get("plotly_chart")
    assert [len(column.get("plotly_chart")) for column in page.columns] == ([1, 1] if beside else [])
    heights = [json.loads(chart.proto.spec)["layout"]["height"] for chart in charts]
    assert len(heights) == 2
    assert (heights[0] == heights[1]) == beside


def test_what_ends_while_the_page_is_drawn_is_shown(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, late = tasks.refresh_when_over, ["inspect"]

    def too_late(jobs: list[Job]) -> None:
        if late:
            started.do(late.pop())
        follow(jobs)

    monkeypatch.setattr(tasks, "refresh_when_over", too_late)
    page = open_page("layers", {"model": SMALL.model})
    assert not late
    assert len(page.dataframe) == 1


def test_layers_apart_go_with_their_model(stored: AppTest) -> None:
    stored.query_params["layers"] = '[{"layer":"9.weight","weight_bits":8}]'
    page = stored.run()
    assert "1 layer override" in words(page)
    page.selectbox(key="model").set_value("fashion-mlp").run()
    assert "override" not in words(page)
    assert "layers" not in page.query_params
    page.selectbox(key="model").set_value("fashion-resnet").run()
    assert "override" not in words(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "told", "removable"),
    [
        ('[{"layer":"nope","sparsity":0.25}]', "nope", True),
        ('[{"layer":"9.weight","sparsity":25}]', "sparsity 25", False),
        ("[", "not a recipe", False),
    ],
)
def test_layers_apart_that_cannot_be_are_refused_in_words(
    stored: AppTest, started: Started, layers: str, told: str, removable: bool
) -> None:
    stored.query_params["layers"] = layers
    page = stored.switch_page("pages/layers.py").run()
    if not page.toast:  # what the text doesn't show is found out by a worker
        started.do("inspect")
        page.run()
    assert told in [*page.toast, *page.error][0].value
    undo = [button for button in page.button if button.label == "Clear overrides"]
    assert bool(undo) == removable
    if undo:
        undo[0].click().run()
        started.do("inspect")
        assert len(page.run().dataframe) == 1
        assert not page.error
