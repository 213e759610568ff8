"""Links, and what they restore, without a browser."""

import json

import pytest
from page_runs import HALF, expected, results, shown, words
from streamlit.testing.v1 import AppTest

from optimizer.recipe import MAX_FINETUNE_STEPS, PruneSpec, QuantizeSpec, Recipe

EVERYTHING = (
    Recipe(
        PruneSpec("compensated", 0.3, allocation="uniform", pattern="1x4", effort="best"),
        QuantizeSpec(
            "compensated", average_bits=3.0, granularity="group", range="percentile", symmetric=False
        ),
        finetune_steps=20,
    ),
    Recipe(
        PruneSpec(threshold=0.02, match=True),
        QuantizeSpec("nearest", 8, None, 8, "tensor", False, "mse", equalise=True),
    ),
    Recipe(
        PruneSpec("channels", 0.2, allocation="uniform", snap=8), QuantizeSpec("compensated", 16, range="mse")
    ),
)


def test_the_address_restores_the_view(app: AppTest) -> None:
    app.query_params["sparsity"] = "50"
    app.query_params["bits"] = "4"
    assert shown(app.run()) == expected(results()[HALF.recipe])


@pytest.mark.parametrize("way", EVERYTHING)
def test_a_link_to_layers_restores_the_sliders(app: AppTest, way: Recipe) -> None:
    app.query_params["recipe"] = json.dumps(way.differences())
    page = app.switch_page("pages/layers.py").run()
    assert way.describe() in words(page)
    assert json.loads(page.query_params["recipe"]) == way.differences()
    page.switch_page("pages/explore.py").run()
    assert not page.exception
    assert page.session_state["session"].recipe == way
    assert json.loads(page.query_params["recipe"]) == way.differences()
    page.switch_page("pages/layers.py").run()
    assert way.describe() in words(page)


def test_an_older_link_s_seconds_are_read_as_steps(app: AppTest) -> None:
    app.query_params["training"] = "60"
    page = app.run()
    assert not page.exception
    assert page.number_input(key="finetune").value == 300
    assert page.session_state["session"].recipe.finetune_steps == 300
    assert "training" not in page.query_params
    assert any("read as 300 steps" in toast.value for toast in page.toast)
    page.run()
    assert page.number_input(key="finetune").value == 300


@pytest.mark.parametrize("seconds", ["long", "-1", "nan", "inf"])
def test_an_older_link_with_bad_seconds_says_so(app: AppTest, seconds: str) -> None:
    app.query_params["training"] = seconds
    page = app.run()
    assert not page.exception
    assert page.toast[0].value.startswith("The fine-tuning of this link is left out")
    assert page.number_input(key="finetune").value == 0


def test_a_link_to_a_day_of_fine_tuning_gets_minutes(app: AppTest) -> None:
    app.query_params["training"] = "86400"
    assert app.run().number_input(key="finetune").value == MAX_FINETUNE_STEPS


@pytest.mark.parametrize("recipe", ["[", '{"prune": {"sparsity": 7}}', '{"threshold": 1}'])
def test_a_link_with_a_bad_recipe_says_so(app: AppTest, recipe: str) -> None:
    app.query_params["recipe"] = recipe
    page = app.switch_page("pages/layers.py").run()
    assert not page.exception
    assert page.toast[0].value.startswith("The recipe of this link is left out")
    assert "recipe" not in page.query_params


def test_what_no_slider_can_say_comes_as_near_as_it_can(app: AppTest) -> None:
    far = Recipe(PruneSpec(threshold=3.0), QuantizeSpec("compensated", average_bits=3.5))
    app.query_params["recipe"] = json.dumps(far.differences())
    page = app.switch_page("pages/latency.py").run()
    page.switch_page("pages/explore.py").run()
    assert not page.exception
    assert (page.slider(key="threshold").value, page.select_slider(key="bits").value) == (0.5, 4)


def test_a_link_beyond_the_controls_is_shown_as_near_as_they_can_and_says_so(app: AppTest) -> None:
    app.query_params["recipe"] = '{"prune":{"sparsity":0.999}}'
    page = app.run()
    assert not page.exception
    assert page.slider(key="sparsity").value == 99
    assert "99.9 % sparsity, shown as 99 %" in page.toast[0].value


@pytest.mark.parametrize(
    ("key", "value"), [("sparsity", "500"), ("bits", "9"), ("model", "nope"), ("engine", "x")]
)
def test_a_bad_value_in_the_address_is_dropped(app: AppTest, key: str, value: str) -> None:
    app.query_params[key] = value
    page = app.run()
    assert not page.exception
    assert shown(page) == expected(results()[Recipe()])


def test_a_link_restores_the_raw_times(app: AppTest) -> None:
    keys = [results()[recipe].key for recipe in (Recipe(), HALF.recipe)]
    app.query_params |= {"configurations": keys, "times": keys[1], "view": "distribution"}
    page = app.switch_page("pages/compare.py").run()
    assert not page.exception
    assert page.selectbox(key="times").value == keys[1]
    assert page.segmented_control(key="view").value == "distribution"
