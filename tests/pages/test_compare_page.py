"""Compare, without a browser."""

import pytest
from factories import make_result
from page_runs import HALF, results, words
from started import go_to
from streamlit.testing.v1 import AppTest

from optimizer.analysis.comparison import compare
from optimizer.analysis.summary import summarise
from optimizer.recipe import PruneSpec, Recipe
from optimizer.store.results import Store


def test_compare_tells_configurations_of_one_recipe_apart(stored: AppTest) -> None:
    recipe = Recipe(PruneSpec(sparsity=0.4321))
    kinds = [
        {"quick": True},
        {"quick": False},
        {"engine": "torch"},
        {"path": "/photographs"},
        {"noisy": True},
    ]
    alike = [make_result(recipe, **kind) for kind in kinds]  # type: ignore[arg-type]
    for result in alike:
        Store().put(result)
    stored.query_params["configurations"] = [result.key for result in alike]
    page = go_to(stored, "compare")
    options = page.multiselect(key="configurations").options
    assert len(set(options)) == len(options) == 2 + len(alike)
    assert len(page.dataframe[0].value) == len(alike)


@pytest.mark.slow
def test_compare_shows_the_raw_times_of_any_configuration(stored: AppTest) -> None:
    plain, half = (results()[recipe].key for recipe in (Recipe(), HALF.recipe))
    stored.query_params["pins"] = f"{plain}.{half}"
    page = stored.switch_page("pages/compare.py").run()
    assert page.selectbox(key="times").value == page.query_params["times"] == plain
    assert "Each round visits two builds of the uncompressed model" in words(page)
    assert len(page.get("plotly_chart")) == 2
    page.segmented_control(key="view").set_value("distribution").run()
    assert "Which share of the calls" in words(page)
    page.selectbox(key="times").set_value(half).run()
    assert page.query_params["times"] == half
    page.multiselect(key="configurations").set_value([plain]).run()
    assert not page.exception
    assert page.selectbox(key="times").value == plain, "what is pinned no more is shown no more"


def test_compare_takes_any_configuration_as_the_reference(stored: AppTest) -> None:
    plain, half = (results()[recipe].key for recipe in (Recipe(), HALF.recipe))
    stored.query_params |= {"configurations": [plain, half], "against": half}
    page = go_to(stored, "compare")
    assert page.selectbox(key="against").value == half
    drop = compare(summarise(results()[Recipe()]), summarise(results()[HALF.recipe])).drop
    assert drop is not None
    assert list(page.dataframe[0].value["accuracy differs"]) == [drop.verdict, "the reference"]
    assert "independent runs" in words(page)
    page.multiselect(key="configurations").set_value([plain]).run()
    assert page.selectbox(key="against").value == page.query_params["against"] == "uncompressed"
    assert "accuracy differs" not in page.dataframe[0].value


def test_what_a_link_compares_with_and_is_not_here_is_said(stored: AppTest) -> None:
    stored.query_params |= {"configurations": results()[Recipe()].key, "against": "f" * 20, "times": "e" * 20}
    page = go_to(stored, "compare")
    (told,) = (one.value for one in page.toast)
    assert f"against={'f' * 20} (the uncompressed model is shown)" in told
    assert f"times={'e' * 20} (fashion-resnet" in told


@pytest.mark.parametrize("link", [{}, {"configurations": "nope", "metric": "beauty"}])
def test_compare_says_what_to_do_when_nothing_is_chosen(stored: AppTest, link: dict[str, str]) -> None:
    stored.query_params |= link
    page = go_to(stored, "compare")
    assert "pin them on the Explore page" in words(page)
