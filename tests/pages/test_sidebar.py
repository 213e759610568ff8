"""The sidebar, which every page has, without a browser."""

from dataclasses import replace
from pathlib import Path

import pytest
from factories import make_result, recipe
from page_runs import words
from PIL import Image
from started import PAGES, go_to
from streamlit.testing.v1 import AppTest

from optimizer.methods.engines import ENGINES
from optimizer.records import DataSpec, Request, Settings
from optimizer.search.presets import Found
from optimizer.system.process_pool import Job
from pages import sidebar, tasks


def test_every_engine_is_offered_or_told_why_not(stored: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    page = stored.run()
    engine = page.selectbox(key="engine")
    found = sidebar.catalogue()
    assert engine.options == [ENGINES[name].label for name, problem in found.engines.items() if not problem]
    assert set(ENGINES) == set(found.engines)
    assert ENGINES["openvino"].help in words(page)
    assert ENGINES["sparse"].help in engine.help

    engines = found.engines | {"compile": "there is no C++ compiler"}
    monkeypatch.setattr(
        sidebar, "catalogue", lambda: replace(found, engines=engines, lacking={"sparse": "none was built"})
    )
    page.selectbox(key="engine").set_value("sparse").run()
    assert "torch.compile" not in page.selectbox(key="engine").options
    assert "Not here: torch.compile, since there is no C++ compiler." in words(page)
    assert "torch's CSR takes their place: none was built" in words(page)


def test_a_model_in_a_line_has_its_weights_in_a_unit_of_their_size() -> None:
    card = next(iter(sidebar.catalogue().cards.values()))
    for parameters, written in ((24_112, "24.1 k"), (1_070_000, "1.07 M"), (143_667_240, "144 M")):
        assert sidebar.describe_card(replace(card, parameters=parameters)).endswith(f" · {written} weights")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("explore", "fashion-mlp · torch eager · bundled images"),
        ("layers", "fashion-mlp · torch eager · bundled images"),
        ("latency", "fashion-mlp · torch eager · bundled images"),
        ("sweep", "fashion-mlp · bundled images"),  # which asks for the engines itself
    ],
)
def test_a_page_says_itself_what_its_figures_are_of(stored: AppTest, name: str, said: str) -> None:
    """Where the sidebar is folded away, nothing else does."""
    stored.query_params |= {"model": "fashion-mlp", "engine": "torch"}
    page = go_to(stored, name)
    assert said in [caption.value for caption in page.main.caption]


def test_a_model_without_images_says_what_to_do(stored: AppTest) -> None:
    stored.query_params["model"] = "resnet18"
    page = stored.run()
    assert not page.exception
    assert "Models and data" in words(page) or "--images" in words(page)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens_with_images_of_ones_own(
    stored: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    for label in ("Bag", "Coat"):
        (tmp_path / "clothes" / label).mkdir(parents=True)
        for number in range(4):
            image = Image.new("L", (28, 28), 60 * number + 7 * len(label))  # no two alike
            image.save(tmp_path / "clothes" / label / f"{number}.png")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    stored.query_params |= {"model": "fashion-mlp", "images": "clothes"}
    page = go_to(stored, name)
    assert not page.error
    assert page.selectbox(key="images").value == str(tmp_path / "clothes")


@pytest.mark.slow
def test_the_images_follow_the_model(
    stored: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    (folder / "n01440764").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "n01440764" / "one.png")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    page = stored.run()
    chosen = [page.selectbox(key="images").value]
    for model in ("resnet18", "fashion-mlp"):
        page.selectbox(key="model").set_value(model).run()
        chosen.append(page.selectbox(key="images").value)
    assert chosen == [sidebar.BUNDLED, str(folder), sidebar.BUNDLED]
    page.selectbox(key="images").set_value(str(folder)).run()
    page.selectbox(key="model").set_value("fashion-resnet").run()
    assert page.selectbox(key="images").value == str(folder), "both models see any image: the choice stays"


def test_what_explore_has_no_control_for_is_said_when_a_result_is_opened(stored: AppTest) -> None:
    assert sidebar.no_control_for(Request("fashion-mlp", settings=Settings(threads=0))) == []
    drawn = DataSpec("clothes", limit=500, seed=2, calibration_share=0.5)
    request = Request("fashion-mlp", data=drawn, settings=Settings(threads=1_000, batch=4, seed=3))
    assert sidebar.no_control_for(request) == [
        "4 images a call",
        "1,000 threads",
        "seed 3",
        "images drawn with seed 2",
        "50 % of the images for calibration",
    ]
    few = replace(make_result(recipe(0.4)), request=Request("fashion-mlp", data=DataSpec(limit=500)))
    tasks.store().put(few)
    stored.query_params[sidebar.OPEN] = few.key
    page = stored.run()
    assert not page.exception
    (told,) = (one.value for one in page.toast)
    assert told == "It was measured with 500 of the bundled images, for which Explore has no control."


def test_more_images_than_the_control_takes_are_said_and_the_most_of_it_evaluated(
    stored: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clothes" / "Bag").mkdir(parents=True)
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    data = DataSpec(str(tmp_path / "clothes"), limit=200_000)
    assert sidebar.no_control_for(Request("fashion-mlp", data=replace(data, limit=100_000))) == []
    many = replace(make_result(recipe(0.4)), request=Request("fashion-mlp", data=data))
    tasks.store().put(many)
    stored.query_params[sidebar.OPEN] = many.key
    page = stored.run()
    assert page.number_input(key="limit").value == 100_000
    (told,) = (one.value for one in page.toast)
    assert told == "It was measured with up to 200,000 images, for which Explore has no control."


def test_a_result_of_an_engine_that_does_not_run_here_is_not_opened(
    stored: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sidebar.catalogue()
    engines = found.engines | {"compile": "there is no C++ compiler"}
    monkeypatch.setattr(sidebar, "catalogue", lambda: replace(found, engines=engines))
    for engine, words_of_it in (
        ("compile", "torch.compile, which does not run here (there is no C++ compiler)"),
        ("of a plugin", "of a plugin, which does not run here (it is not among the engines here)"),
    ):
        result = replace(make_result(recipe(0.4)), request=Request("fashion-mlp", engine=engine))
        assert words_of_it in sidebar.why_not_open(result.request)
    tasks.store().put(result)
    stored.query_params[sidebar.OPEN] = result.key
    page = stored.run()
    assert not page.exception
    assert [one.value for one in page.info if "of a plugin" in one.value]
    assert page.session_state["session"].recipe != result.request.recipe


@pytest.mark.slow
def test_what_a_preset_found_for_another_model_moves_no_slider(stored: AppTest) -> None:
    page = stored.run()
    before = page.slider(key="sparsity").value
    for model in ("fashion-mlp", "fashion-resnet"):
        found = Found(make_result(recipe(0.8), model=model), True, 3, "1 point is kept.")
        job = Job("preset", "preset", None, "measure", 0, state="done", result=found)
        page.session_state["session"].preset = job
        page.run()
        assert not page.exception
        moved = page.slider(key="sparsity").value != before
        foreign = page.toast[0].value == "For fashion-mlp on OpenVINO, chosen before: 1 point is kept."
        assert (moved, foreign) == ((False, True) if model == "fashion-mlp" else (True, False))
