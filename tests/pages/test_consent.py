"""Long work that only an address asks for: it waits until the visitor wants it."""

from pathlib import Path

import pytest
from started import Started, entry
from streamlit.testing.v1 import AppTest

from optimizer.analysis.scaling import ComplexityRequest
from optimizer.records import DataSpec
from optimizer.search.sweep import STARTER_BITS, STARTER_SPARSITIES
from optimizer.store import ledger
from optimizer.store.items import Item
from pages import consent, tasks

LONG_STEPS, SHORT_STEPS = 2_000, 20
TUNED = {"method": "Magnitude", "sparsity": "51"}


@pytest.fixture
def app(started: Started) -> AppTest:
    return entry()


def start(page: AppTest) -> AppTest:
    """Press the only Start of a page."""
    (button,) = (button for button in page.button if button.label == "Start")
    return button.click().run()


def asked(page: AppTest) -> str:
    assert not page.exception
    return "\n".join(info.value for info in page.info if "This link asks for" in info.value)


@pytest.mark.slow
def test_a_link_to_long_fine_tuning_starts_when_the_visitor_says_so(app: AppTest, started: Started) -> None:
    app.query_params |= TUNED | {"finetune": str(LONG_STEPS)}
    page = app.run()
    assert "2,000 fine-tuning steps, which can take about 2 minutes" in asked(page)
    assert started.steps() == []
    assert "inspect" in started.tasks(), "counts and sizes are no long work"
    assert len(page.get("plotly_chart")) == 4
    assert started.steps() == [] == page.run().error.values
    page = start(page)
    assert not asked(page)
    assert started.steps() == [LONG_STEPS]
    page.slider(key="sparsity").set_value(60).run()
    assert not asked(page), "agreed to for the visit"
    assert started.steps() == [LONG_STEPS], "the one before was still queued, and gave way"


def test_what_a_visitor_sets_starts_at_once(app: AppTest, started: Started) -> None:
    app.query_params |= TUNED
    page = app.run()
    page.number_input(key="finetune").set_value(LONG_STEPS).run()
    assert not asked(page)
    assert started.steps() == [LONG_STEPS]


def test_what_a_visitor_sets_is_no_leave_for_more(app: AppTest, started: Started) -> None:
    app.query_params |= TUNED
    page = app.run()
    page.number_input(key="finetune").set_value(SHORT_STEPS).run()
    page.session_state["finetune"] = LONG_STEPS  # as a link would
    assert asked(page.run())
    assert LONG_STEPS not in started.steps()


def test_a_link_to_short_work_starts_at_once(app: AppTest, started: Started) -> None:
    app.query_params |= TUNED | {"finetune": str(SHORT_STEPS)}
    page = app.run()
    assert not asked(page)
    assert started.steps() == [SHORT_STEPS]


def test_what_runs_already_is_shown(app: AppTest, started: Started) -> None:
    app.query_params |= TUNED | {"finetune": str(LONG_STEPS)}
    start(app.run())
    another = entry()
    another.query_params |= TUNED | {"finetune": str(LONG_STEPS)}
    assert not asked(another.run())


def test_moving_pruning_under_a_link_s_fine_tuning_asks_once(app: AppTest, started: Started) -> None:
    app.query_params["finetune"] = str(LONG_STEPS)
    page = app.run()
    assert not asked(page), "what is not pruned is not fine-tuned"
    page.slider(key="sparsity").set_value(50).run()
    assert asked(page)
    assert LONG_STEPS not in started.steps()


def test_kernels_of_what_a_link_fine_tunes_wait(app: AppTest, started: Started) -> None:
    app.query_params["recipe"] = '{"prune":{"sparsity":0.5},"finetune_steps":2000}'
    page = app.switch_page("pages/latency.py").run()
    assert asked(page)
    assert started.tasks() == []
    assert not asked(start(page))
    assert started.tasks() == ["coverage"]


def test_layers_never_fine_tune_and_are_shown(app: AppTest, started: Started) -> None:
    app.query_params["recipe"] = '{"prune":{"sparsity":0.5},"finetune_steps":2000}'
    page = app.switch_page("pages/layers.py").run()
    assert not asked(page)
    assert started.tasks() == ["inspect"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["explore", "layers", "latency", "models_and_data"])
def test_a_link_to_many_images_waits(app: AppTest, started: Started, clothes: Path, name: str) -> None:
    app.query_params |= {"images": "clothes", "limit": "5000"}
    page = app.switch_page(f"pages/{name}.py").run()
    assert "up to 5,000 images, which can take about 100 seconds" in asked(page)
    assert started.tasks() == []
    assert not asked(start(page))
    assert started.tasks()


def test_many_images_that_a_visitor_sets_start_at_once(app: AppTest, started: Started, clothes: Path) -> None:
    app.query_params["images"] = "clothes"
    page = app.run()
    assert not asked(page)
    page.number_input(key="limit").set_value(5_000).run()
    assert not asked(page)


def test_a_link_to_complexity_in_full_waits(app: AppTest, started: Started) -> None:
    app.query_params["complexity_full"] = "true"
    page = app.switch_page("pages/complexity.py").run()
    assert "a full measurement, which can take about 30 seconds" in asked(page)
    assert started.tasks() == []
    start(page)
    assert started.tasks() == ["complexity"]


def test_complexity_in_full_starts_when_it_is_switched_on(app: AppTest, started: Started) -> None:
    page = app.switch_page("pages/complexity.py").run()
    page.toggle(key="complexity_full").set_value(True).run()
    assert not asked(page)
    assert len(started.tasks()) == 2


def test_latency_in_full_asks_for_nothing_in_full_of_complexity(app: AppTest, started: Started) -> None:
    app.switch_page("pages/latency.py").run().toggle(key="full").set_value(True).run()
    page = app.switch_page("pages/complexity.py").run()
    assert not page.toggle(key="complexity_full").value
    requests = [job.request for job in started.listed.values() if job.task == "complexity"]
    assert [one.quick for one in requests if isinstance(one, ComplexityRequest)] == [True]


def fill(page: AppTest, label: str) -> AppTest:
    return next(button for button in page.button if button.label.startswith(label)).click().run()


def swept() -> list[Item]:
    (sweep,) = ledger.sweeps(tasks.store())
    return ledger.items(tasks.store(), sweep.id)


def test_filling_the_curves_with_fine_tuning_tells_how_much_first(app: AppTest, started: Started) -> None:
    app.query_params |= TUNED
    page = app.run()
    page.number_input(key="finetune").set_value(100).run()
    assert not [button for button in page.button if button.label.startswith("Fill the curves")]
    (told,) = (words.value for words in page.markdown if "fine-tuning" in words.value)
    assert not ledger.sweeps(tasks.store())
    fill(page, "Start filling")
    assert sum(item.request is not None and item.request.recipe.learns for item in swept()) >= 17
    assert "17 networks to be trained first" in told, "each sparsity once, and with each coarse grid"


def test_filling_the_curves_without_fine_tuning_starts_at_once(app: AppTest, started: Started) -> None:
    app.query_params |= TUNED
    fill(app.run(), "Fill the curves")
    assert len(swept()) == len(STARTER_SPARSITIES) * len(STARTER_BITS)


def test_the_limit_to_begin_with_is_no_long_work() -> None:
    def seconds(limit: int) -> float:
        return sum(work.seconds for work in consent.images(DataSpec("photographs", limit=limit)))

    assert seconds(1_000) <= consent.LONG_SECONDS < seconds(1_001)
    assert consent.images(DataSpec()) == ()
