"""Links, and what they restore, without a browser."""

import json

import pytest
from page_runs import HALF, expected, results, shown, words
from started import Started, go_to, open_page
from streamlit.testing.v1 import AppTest

from optimizer.recipe import MAX_FINETUNE_STEPS, PruneSpec, QuantizeSpec, Recipe

EVERYTHING = (
    Recipe(
        PruneSpec("compensated", 0.3, allocation="uniform", pattern="1x4"),
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


def test_the_address_restores_the_view(stored: AppTest) -> None:
    stored.query_params["sparsity"] = "50"
    stored.query_params["bits"] = "4"
    assert shown(stored.run()) == expected(results()[HALF.recipe])


@pytest.mark.slow
@pytest.mark.parametrize("way", EVERYTHING)
def test_a_link_to_layers_restores_the_sliders(stored: AppTest, way: Recipe) -> None:
    stored.query_params["recipe"] = json.dumps(way.differences())
    page = stored.switch_page("pages/layers.py").run()
    assert way.describe() in words(page)
    assert json.loads(page.query_params["recipe"]) == way.differences()
    go_to(page, "explore")
    assert page.session_state["session"].recipe == way
    assert json.loads(page.query_params["recipe"]) == way.differences()
    page.switch_page("pages/layers.py").run()
    assert way.describe() in words(page)


@pytest.mark.slow
def test_an_older_link_s_seconds_are_read_as_steps(stored: AppTest) -> None:
    stored.query_params["training"] = "60"
    page = stored.run()
    assert not page.exception
    assert page.number_input(key="finetune").value == 300
    assert page.session_state["session"].recipe.finetune_steps == 300
    assert "training" not in page.query_params
    assert any("read as 300 steps" in toast.value for toast in page.toast)
    page.run()
    assert page.number_input(key="finetune").value == 300


@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["long", "-1", "nan", "inf"])
def test_an_older_link_with_bad_seconds_says_so(stored: AppTest, seconds: str) -> None:
    stored.query_params["training"] = seconds
    page = stored.run()
    assert not page.exception
    assert page.toast[0].value.startswith("The fine-tuning of this link is left out")
    assert page.number_input(key="finetune").value == 0


def test_a_link_to_a_day_of_fine_tuning_gets_minutes(stored: AppTest) -> None:
    stored.query_params["training"] = "86400"
    assert stored.run().number_input(key="finetune").value == MAX_FINETUNE_STEPS


@pytest.mark.parametrize("recipe", ["[", '{"prune": {"sparsity": 7}}', '{"threshold": 1}'])
def test_a_link_with_a_bad_recipe_says_so(stored: AppTest, recipe: str) -> None:
    stored.query_params["recipe"] = recipe
    page = go_to(stored, "layers")
    assert page.toast[0].value.startswith("The recipe of this link is left out")
    assert "recipe" not in page.query_params


def test_what_no_slider_can_say_comes_as_near_as_it_can(stored: AppTest) -> None:
    far = Recipe(PruneSpec(threshold=3.0), QuantizeSpec("compensated", average_bits=3.5))
    stored.query_params["recipe"] = json.dumps(far.differences())
    page = stored.switch_page("pages/latency.py").run()
    go_to(page, "explore")
    assert (page.slider(key="threshold").value, page.select_slider(key="bits").value) == (0.5, 4)


def test_a_link_beyond_the_controls_is_shown_as_near_as_they_can_and_says_so(stored: AppTest) -> None:
    stored.query_params["recipe"] = '{"prune":{"sparsity":0.999}}'
    page = stored.run()
    assert not page.exception
    assert page.slider(key="sparsity").value == 99
    assert "99.9 % sparsity, shown as 99 %" in page.toast[0].value


@pytest.mark.parametrize(
    ("name", "link", "kept"),
    [
        ("explore", {"method": "Threshold", "threshold": "nan"}, {"method"}),
        ("complexity", {"removed": "120", "family": "sums"}, set()),
    ],
)
def test_bad_values_on_any_page_are_dropped(
    started: Started, name: str, link: dict[str, str], kept: set[str]
) -> None:
    page = open_page(name, link)
    assert not page.error
    assert page.query_params.keys() & link.keys() == kept


def test_a_link_restores_the_raw_times(stored: AppTest) -> None:
    keys = [results()[recipe].key for recipe in (Recipe(), HALF.recipe)]
    stored.query_params |= {"configurations": keys, "times": keys[1], "view": "distribution"}
    page = go_to(stored, "compare")
    assert page.selectbox(key="times").value == keys[1]
    assert page.segmented_control(key="view").value == "distribution"
