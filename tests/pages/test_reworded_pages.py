"""With every label reworded, pages and command line show and print the same but for the words."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import make_result
from page_runs import HALF, PLAIN, results, words
from started import Started, open_page
from streamlit.testing.v1 import AppTest
from test_rewording import WORDS, reword, wording

from optimizer.analysis import summary
from optimizer.cli.main import main
from optimizer.recipe import NORMAL, Recipe
from optimizer.store.keys import request_key
from pages import tasks

INT8 = Recipe(NORMAL.prune, replace(NORMAL.quantize.at(8), activation_bits=8)).canonical()
PROSE = {"recipe_words", "simulated", "noise", "notes", "environment", "shared_with"}


@pytest.fixture
def rewordable(started: Started) -> Iterator[None]:
    """Results of what was measured here, and noisy."""
    for made, noisy in ((PLAIN.recipe, False), (HALF.recipe, False), (INT8, True)):
        request = replace(PLAIN, recipe=made)
        result = make_result(made, noisy=noisy, images=2_000)
        tasks.store().put(replace(result, key=request_key(request), request=request))
    yield
    summary._summaries.clear()


def numbers(values: Any) -> Any:
    """Those of a chart's axis, whose texts are labels."""
    return [None if isinstance(value, str) else value for value in values or ()]


def without_prose(value: Any) -> Any:
    """Of what is printed for programs, all but sentences."""
    if isinstance(value, dict):
        return {name: without_prose(one) for name, one in value.items() if name not in PROSE}
    return [without_prose(one) for one in value] if isinstance(value, list) else value


def structure(page: AppTest) -> dict[str, Any]:
    """What is on a page: widgets with what they are set to, numbers of charts and tables, no words."""
    widgets = (*page.selectbox, *page.multiselect, *page.toggle, *page.slider, *page.number_input)
    charts = [json.loads(chart.proto.spec)["data"] for chart in page.get("plotly_chart")]
    return {
        "widgets": {one.key: one.value for one in widgets},
        "segmented": {one.key: one.value for one in page.segmented_control},
        "buttons": [one.key for one in page.button],
        "moods": [(one.color, one.value) for one in page.metric],
        "charts": [[(numbers(one.get("x")), numbers(one.get("y"))) for one in traces] for traces in charts],
        "tables": [one.value.select_dtypes("number").to_numpy().tolist() for one in page.dataframe],
    }


def shown() -> tuple[dict[str, Any], set[str]]:
    pins = ".".join(result.key for result in results().values())
    explore = open_page("explore", {"sparsity": "50", "bits": "4"})
    compare = open_page("compare", {"pins": pins})
    said = words(explore) + words(compare)
    return {"explore": structure(explore), "compare": structure(compare)}, {*said.splitlines()}


def printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    found = []
    asked, table = folder / "recipe.json", folder / "table.json"
    for made in (HALF.recipe, INT8):
        asked.write_text(made.to_json())
        assert main(["measure", "fashion-resnet", "--recipe", str(asked), "--quick", "--json"]) == 0
        found.append(without_prose(json.loads(capsys.readouterr().out)))
    assert main(["export", "fashion-resnet", "--format", "json", "--output", str(table)]) == 0
    rows = json.loads(table.read_text())["rows"]
    return [*found, *({name: cell for name, cell in row.items() if name not in WORDS} for row in rows)]


@pytest.mark.slow
def test_reworded_nothing_but_the_words_is_shown_and_printed_otherwise(
    rewordable: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages, said = shown()
    lines = printed(tmp_path, capsys)
    reword(monkeypatch, wording(0))
    reworded, otherwise = shown()
    for page, there in pages.items():
        for part, value in there.items():
            assert reworded[page][part] == value, f"{part} of {page}"
    assert printed(tmp_path, capsys) == lines
    assert len(said - otherwise) > len(said) / 3, "much of it is worded anew"
