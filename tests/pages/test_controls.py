"""The controls of Explore by themselves: each value is its own, and what is set is what is read."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import streamlit as st
from started import Started
from streamlit.testing.v1 import AppTest

from optimizer.errors import ParetoscopeError
from optimizer.methods.artifacts import ARTIFACTS
from optimizer.methods.exporters import EXPORTERS
from optimizer.recipe import NORMAL, PruneSpec, QuantizeSpec, Recipe, best_grid
from optimizer.system.process_pool import Job


def script() -> None:
    import streamlit as st

    from pages import controls

    if "wanted" in st.session_state:
        controls.set_widgets(st.session_state.pop("wanted"))
    st.session_state["read"] = controls.read_recipe("fashion-mlp")


@pytest.mark.parametrize("bits", [2, 8, 16, 32])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("grid", ["automatic", "symmetric", "asymmetric"])
def test_widths_and_grids_are_told_by_their_own_controls(bits: int, mixed: bool, grid: str) -> None:
    page = AppTest.from_function(script).run()
    page.toggle(key="mixed").set_value(mixed)
    page.segmented_control(key="grid").set_value(grid)
    page.select_slider(key="bits").set_value(bits).run()
    assert not page.exception
    averaged = mixed and bits <= 8
    symmetric = best_grid("compensated", bits) if grid == "automatic" else grid == "symmetric"
    assert page.session_state["read"].quantize == replace(
        NORMAL.quantize,
        weight_bits=32 if averaged else bits,
        average_bits=bits if averaged else None,
        symmetric=symmetric,
    )
    assert page.select_slider(key="bits").label == ("Average weight bits" if mixed else "Weight bits")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(PruneSpec("compensated", 0.3, allocation="uniform"), QuantizeSpec("compensated", 32, 8.0)),
        Recipe(PruneSpec(threshold=0.02), QuantizeSpec(weight_bits=4, symmetric=False)),
        Recipe(NORMAL.prune, replace(NORMAL.quantize, weight_bits=8)),
    ],
)
def test_what_is_set_is_what_is_read(recipe: Recipe) -> None:
    page = AppTest.from_function(script)
    page.session_state["wanted"] = recipe
    page.run()
    assert not page.exception
    assert page.session_state["read"] == recipe


def menu() -> None:
    from factories import make_result

    from pages import drawing

    result = make_result()
    problems = {"onnx": "no package onnxscript", "packed": ""}
    drawing.export_menu([result], "fashion-resnet", result.request, problems=problems)


def test_a_kind_of_file_that_cannot_be_written_here_is_not_offered(started: Started) -> None:
    page = AppTest.from_function(menu).run()
    told = {button.proto.id.rpartition("-")[2]: button.proto for button in page.get("download_button")}
    assert {kind for kind, button in told.items() if button.disabled} - {"export png", "export svg"} == {
        "model onnx"
    }
    assert told["model onnx"].help == "no package onnxscript"
    assert told["model packed"].help == ARTIFACTS["packed"].help


def test_what_a_download_of_a_model_fails_for_is_said_at_the_next_run(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Callable[[], bytes]] = {}
    button = st.download_button

    def keep(label: str, data: Callable[[], bytes], **more: Any) -> Any:
        made[label] = data
        return button(label, data, **more)

    monkeypatch.setattr(st, "download_button", keep)
    page = AppTest.from_function(menu).run()

    def ended(job: Job, timeout: float | None = None) -> Job:
        job.state, job.error = "failed", "writing a model file: it is larger than 2 GiB"
        return job

    monkeypatch.setattr(started, "wait", ended)
    with pytest.raises(ParetoscopeError, match="2 GiB"):
        made["Weights packed to their bits"]()
    page.run()
    (error,) = page.error
    assert error.value == "writing a model file: it is larger than 2 GiB"

    def written(job: Job, timeout: float | None = None) -> Job:
        job.state, job.result = "done", b"no zip"
        return job

    monkeypatch.setattr(started, "wait", written)
    taken = made["Weights packed to their bits"]()
    with zipfile.ZipFile(io.BytesIO(taken)) as archive:
        assert archive.read("model.safetensors") == b"no zip", "a plugin's: every file is named a zip"
    assert not page.run().error


def test_charts_and_tables_are_exported_above_model_files(started: Started) -> None:
    page = AppTest.from_function(menu).run()
    assert not page.exception
    labels = [button.proto.label for button in page.get("download_button")]
    assert labels == [entry.label for entry in (*EXPORTERS.values(), *ARTIFACTS.values())]


def test_notes_of_a_result_stand_beside_its_badges() -> None:
    def script() -> None:
        from factories import make_result, recipe, remade

        from optimizer.analysis.summary import summarise
        from pages import drawing

        drawing.badges(summarise(remade(make_result(recipe(0.5)), notes=("43 % are in gru",))))
        drawing.badges(summarise(make_result(recipe(0.5))))

    page = AppTest.from_function(script).run()
    assert not page.exception
    (notes,) = [one for one in page.markdown if "notes" in one.value]
    assert "43 % are in gru" in notes.help
