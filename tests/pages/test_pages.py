"""The pages without a browser: each runs from the entry, asks for real work, and shows it."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st
from factories import make_result
from PIL import Image
from streamlit.testing.v1 import AppTest

from optimizer.analysis import scaling
from optimizer.analysis.comparison import compare
from optimizer.analysis.coverage import coverage_key
from optimizer.analysis.headline import headlines
from optimizer.analysis.labels import ENGINE_LABELS
from optimizer.analysis.scaling import ComplexityRequest
from optimizer.analysis.summary import summarise
from optimizer.compression.step_time import keep_step_time
from optimizer.measurement.experiment import measure
from optimizer.recipe import MAX_FINETUNE_STEPS, NORMAL, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Request, Result
from optimizer.store import keys
from optimizer.store.results import Store
from optimizer.system.downloads import DEFAULT_DOWNLOADS, DOWNLOADS_VARIABLE
from optimizer.system.environment import threads_available
from pages import sidebar, tasks

ROOT = Path(__file__).parents[2]
PLAIN = Request("fashion-resnet")
HALF = replace(
    PLAIN,
    recipe=Recipe(replace(NORMAL.prune, sparsity=0.5), NORMAL.quantize.at(4)),
)
BY_MAGNITUDE = {"method": "Magnitude"}
DEADLINE_SECONDS = 180


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with two results: the uncompressed network, and half of it at 4 bits.

    The pages' tests share it and the workers, as visitors of one server do.
    """
    folder = tmp_path_factory.mktemp("measured")
    store = Store(folder / "results.sqlite")
    for request in (PLAIN, HALF):
        store.put(measure(request, shared_latency=store.latency))
    st.cache_resource.clear()
    yield folder
    tasks.pool().close()
    st.cache_resource.clear()


@pytest.fixture
def app(measured: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    monkeypatch.setenv("PARETOSCOPE_HOME", str(measured))
    # Beside a folder named pages, AppTest takes its second run for one of a bare page, without the entry and
    # its sidebar. A server forgets that folder at the first st.navigation.
    monkeypatch.setattr(
        AppTest,
        "_finished_page_script_hash",
        property(lambda page: "", lambda page, value: None),
        raising=False,
    )
    yield AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    for job in tasks.pool().jobs():  # what nobody waits for any more would keep the next test waiting
        if job.state == "queued":
            tasks.pool().cancel(job.key)
            tasks.pool().forget(job.key)


def results() -> dict[Recipe, Result]:
    return {result.request.recipe: result for result in Store().results()}


def shown(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def words(page: AppTest) -> str:
    """What the page says, as it is read: without the backslashes that keep it from being Markdown."""
    kinds = (page.error, page.warning, page.info, page.caption, page.markdown, page.header, page.subheader)
    said = "\n".join(element.value for kind in kinds for element in kind)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", said)


def settled(page: AppTest, condition: Callable[[AppTest], bool]) -> AppTest:
    """Run the page again, as its poll would, until ``condition(page)`` holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition(page):
        assert time.monotonic() < deadline, words(page)
        time.sleep(0.1)
        page.run()
    assert not page.exception
    return page


def expected(result: Result) -> dict[str, str]:
    return {card.label: card.value for card in headlines(summarise(result), result.inspection)}


def test_a_measured_position_is_shown_at_once(app: AppTest) -> None:
    page = app.run()
    assert not page.exception
    assert shown(page) == expected(results()[Recipe()])


def test_sliders_move_the_figures(app: AppTest) -> None:
    page = app.run()
    page.slider(key="sparsity").set_value(50)
    page.select_slider(key="bits").set_value(4).run()
    assert shown(page) == expected(results()[HALF.recipe])
    assert shown(page) != expected(results()[Recipe()])


def test_a_new_position_is_counted_at_once_and_measured_soon(app: AppTest) -> None:
    page = app.run()
    page.slider(key="sparsity").set_value(37).run()
    settled(page, lambda page: "–" not in shown(page).values())
    recipe = Recipe(replace(NORMAL.prune, sparsity=0.37))
    assert shown(page) == expected(results()[recipe])


def test_a_threshold_is_another_way_to_prune(app: AppTest) -> None:
    page = app.run()
    page.selectbox(key="method").set_value("threshold").run()
    page.slider(key="threshold").set_value(0.02).run()
    settled(page, lambda page: "–" not in shown(page).values())
    assert Recipe(PruneSpec(threshold=0.02)) in results()


@pytest.mark.skipif(threads_available() == 1, reason="every core is one thread here")
def test_the_threads_are_chosen(app: AppTest) -> None:
    app.query_params |= {"sparsity": "21", "timed_threads": "1"}
    page = app.run()
    settled(page, lambda page: "–" not in shown(page).values())
    result = results()[Recipe(replace(NORMAL.prune, sparsity=0.21))]
    assert (result.request.settings.threads, result.latency.threads) == (1, 1)
    assert shown(page) == expected(result)


@pytest.mark.parametrize(
    ("control", "key", "value", "quantize"),
    [
        ("select_slider", "activations", 8, QuantizeSpec(weight_bits=8, activation_bits=8)),
        ("segmented_control", "granularity", "tensor", QuantizeSpec(weight_bits=8, granularity="tensor")),
        ("segmented_control", "grid", "asymmetric", QuantizeSpec(weight_bits=8, symmetric=False)),
        ("selectbox", "nearest_range", "mse", QuantizeSpec(weight_bits=8, range="mse")),
        (
            "segmented_control",
            "magnitude_rounding",
            "compensated",
            QuantizeSpec("compensated", weight_bits=8, range="mse"),
        ),
    ],
)
def test_every_other_control_is_part_of_the_recipe(
    app: AppTest, control: str, key: str, value: object, quantize: QuantizeSpec
) -> None:
    app.query_params |= BY_MAGNITUDE
    page = app.run()
    page.select_slider(key="bits").set_value(8)
    getattr(page, control)(key=key).set_value(value).run()
    settled(page, lambda page: "–" not in shown(page).values())
    assert Recipe(quantize=quantize) in results()


def test_outputs_are_matched_and_channels_equalised_when_asked(app: AppTest) -> None:
    app.query_params |= BY_MAGNITUDE
    page = app.run()
    page.slider(key="sparsity").set_value(50)
    page.select_slider(key="bits").set_value(4)
    page.toggle(key="match").set_value(True)
    page.toggle(key="equalise").set_value(True).run()
    settled(page, lambda page: "–" not in shown(page).values())
    spec = QuantizeSpec(weight_bits=4, equalise=True)
    assert Recipe(PruneSpec(sparsity=0.5, match=True), spec) in results()


def test_widths_that_differ_by_layer_keep_to_their_average(app: AppTest) -> None:
    page = app.run()
    page.select_slider(key="bits").set_value(4)
    page.toggle(key="mixed").set_value(True).run()
    settled(page, lambda page: "–" not in shown(page).values())
    recipe = Recipe(quantize=replace(NORMAL.quantize.at(4), weight_bits=32, average_bits=4.0))
    layers = results()[recipe].inspection.layers
    assert len({layer.bits for layer in layers}) > 1
    assert sum(layer.bits * layer.elements for layer in layers) <= 4 * sum(layer.elements for layer in layers)


def test_a_pattern_fixes_the_sparsity(app: AppTest) -> None:
    page = app.run()
    page.selectbox(key="pattern").set_value("2:4").run()
    assert page.slider(key="sparsity").disabled
    settled(page, lambda page: "–" not in shown(page).values())
    assert Recipe(PruneSpec("compensated", pattern="2:4")) in results()


def test_the_address_restores_the_view(app: AppTest) -> None:
    app.query_params["sparsity"] = "50"
    app.query_params["bits"] = "4"
    assert shown(app.run()) == expected(results()[HALF.recipe])


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


def test_what_a_step_takes_is_told(app: AppTest) -> None:
    page = app.run()
    assert "about a second for photographs" in page.number_input(key="finetune").help
    keep_step_time(page.selectbox(key="model").value, 0.25)
    assert "A step took 0.25 s" in page.run().number_input(key="finetune").help


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


def test_every_engine_is_offered_or_told_why_not(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app.run()
    engine = page.selectbox(key="engine")
    found = sidebar.catalogue()
    assert engine.options == [ENGINE_LABELS[name] for name, problem in found.engines.items() if not problem]
    assert set(sidebar.ENGINE_WORDS) == set(ENGINE_LABELS) == set(found.engines)
    assert sidebar.ENGINE_WORDS["openvino"] in words(page)
    assert sidebar.ENGINE_WORDS["sparse"] in engine.help

    engines = found.engines | {"compile": "there is no C++ compiler"}
    monkeypatch.setattr(
        sidebar, "catalogue", lambda: replace(found, engines=engines, fallback="none was built")
    )
    page.selectbox(key="engine").set_value("sparse").run()
    assert "torch.compile" not in page.selectbox(key="engine").options
    assert "Not here: torch.compile, since there is no C++ compiler." in words(page)
    assert "torch's CSR takes their place: none was built" in words(page)


@pytest.mark.parametrize(
    ("key", "value"), [("sparsity", "500"), ("bits", "9"), ("model", "nope"), ("engine", "x")]
)
def test_a_bad_value_in_the_address_is_dropped(app: AppTest, key: str, value: str) -> None:
    app.query_params[key] = value
    page = app.run()
    assert not page.exception
    assert shown(page) == expected(results()[Recipe()])


def test_a_folder_that_is_not_open_is_refused_in_words(app: AppTest) -> None:
    app.query_params["images"] = "/etc"
    page = app.run()
    assert not page.exception
    assert "outside the folders that are allowed" in words(page)


def test_a_model_without_images_says_what_to_do(app: AppTest) -> None:
    app.query_params["model"] = "resnet18"
    page = app.run()
    assert not page.exception
    assert "Models and data" in words(page) or "--images" in words(page)


PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py") if "(Not a page.)" not in path.read_text())


@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens_with_images_of_ones_own(
    app: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    for label in ("Bag", "Coat"):
        (tmp_path / "clothes" / label).mkdir(parents=True)
        for number in range(4):
            image = Image.new("L", (28, 28), 60 * number + 7 * len(label))  # no two alike
            image.save(tmp_path / "clothes" / label / f"{number}.png")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    app.query_params |= {"model": "fashion-mlp", "images": "clothes"}
    page = app.switch_page(f"pages/{name}.py").run()
    assert not page.exception
    assert not page.error
    assert page.selectbox(key="images").value == str(tmp_path / "clothes")


def test_the_images_follow_the_model(app: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    (folder / "n01440764").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "n01440764" / "one.png")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    page = app.run()
    chosen = [page.selectbox(key="images").value]
    for model in ("resnet18", "fashion-mlp"):
        page.selectbox(key="model").set_value(model).run()
        chosen.append(page.selectbox(key="images").value)
    assert chosen == [sidebar.BUNDLED, str(folder), sidebar.BUNDLED]
    page.selectbox(key="images").set_value(str(folder)).run()
    page.selectbox(key="model").set_value("fashion-resnet").run()
    assert page.selectbox(key="images").value == str(folder), "both models see any image: the choice stays"


def test_compare_shows_pinned_configurations(app: AppTest) -> None:
    app.query_params["pins"] = ".".join(results()[recipe].key for recipe in (Recipe(), HALF.recipe))
    page = app.switch_page("pages/compare.py").run()
    assert not page.exception
    assert len(page.dataframe[0].value) == 2


def test_what_is_pinned_is_compared(app: AppTest) -> None:
    page = app.run()
    next(button for button in page.button if button.label == "Pin for Compare").click().run()
    page.switch_page("pages/compare.py").run()
    assert page.multiselect(key="configurations").value == [results()[Recipe()].key]
    assert page.query_params["pins"] == results()[Recipe()].key


def test_compare_tells_configurations_of_one_recipe_apart(app: AppTest) -> None:
    recipe = Recipe(PruneSpec(sparsity=0.4321))
    kinds = [
        {"quick": True},
        {"quick": False},
        {"engine": "torch"},
        {"path": "/photographs"},
        {"noisy": True},
    ]
    alike = [make_result(recipe, **kind) for kind in kinds]  # type: ignore[arg-type]
    store = Store()
    for result in alike:
        store.put(result)
    app.query_params["configurations"] = [result.key for result in alike]
    page = app.switch_page("pages/compare.py").run()
    store.forget(result.key for result in alike)
    assert not page.exception
    options = page.multiselect(key="configurations").options
    assert len(set(options)) == len(options) == len(results()) + len(alike)
    assert len(page.dataframe[0].value) == len(alike)


def test_compare_shows_the_raw_times_of_any_configuration(app: AppTest) -> None:
    plain, half = (results()[recipe].key for recipe in (Recipe(), HALF.recipe))
    app.query_params["pins"] = f"{plain}.{half}"
    page = app.switch_page("pages/compare.py").run()
    assert page.selectbox(key="times").value == page.query_params["times"] == plain
    assert "Each round times the uncompressed model twice" in words(page)
    assert len(page.get("plotly_chart")) == 2
    page.segmented_control(key="view").set_value("distribution").run()
    assert "Which share of the calls" in words(page)
    page.selectbox(key="times").set_value(half).run()
    assert page.query_params["times"] == half
    page.multiselect(key="configurations").set_value([plain]).run()
    assert not page.exception
    assert page.selectbox(key="times").value == plain, "what is pinned no more is shown no more"


def test_compare_takes_any_configuration_as_the_reference(app: AppTest) -> None:
    plain, half = (results()[recipe].key for recipe in (Recipe(), HALF.recipe))
    app.query_params |= {"configurations": [plain, half], "against": half}
    page = app.switch_page("pages/compare.py").run()
    assert not page.exception
    assert page.selectbox(key="against").value == half
    drop = compare(summarise(results()[Recipe()]), summarise(results()[HALF.recipe])).drop
    assert drop is not None
    assert list(page.dataframe[0].value["accuracy differs"]) == [drop.verdict, "the reference"]
    assert "independent runs" in words(page)
    page.multiselect(key="configurations").set_value([plain]).run()
    assert page.selectbox(key="against").value == page.query_params["against"] == "uncompressed"
    assert "accuracy differs" not in page.dataframe[0].value


def test_a_link_restores_the_raw_times(app: AppTest) -> None:
    keys = [results()[recipe].key for recipe in (Recipe(), HALF.recipe)]
    app.query_params |= {"configurations": keys, "times": keys[1], "view": "distribution"}
    page = app.switch_page("pages/compare.py").run()
    assert not page.exception
    assert page.selectbox(key="times").value == keys[1]
    assert page.segmented_control(key="view").value == "distribution"


def test_compare_says_what_to_do_when_nothing_is_chosen(app: AppTest) -> None:
    page = app.switch_page("pages/compare.py").run()
    assert not page.exception
    assert "pin them under Explore" in words(page)


def test_complexity_measures_and_concludes(app: AppTest) -> None:
    page = app.switch_page("pages/complexity.py").run()
    settled(page, lambda page: "What the numbers say" in words(page))
    assert "dense execution" in words(page)
    assert {"Dense kernels", "torch's CSR", "Rows removed"} <= {metric.label for metric in page.metric}


def try_again(page: AppTest, key: str) -> None:
    """What failed is not tried again by itself, but when it is asked for."""
    page.run()
    assert not page.exception
    assert "no such model" in page.error[0].value
    assert tasks.pool().get(key).state == "failed"  # type: ignore[union-attr]
    next(button for button in page.button if button.label == "Try again").click().run()
    assert not page.error
    assert tasks.pool().get(key).state in ("queued", "running")  # type: ignore[union-attr]
    tasks.pool().cancel(key)


def press(page: AppTest, label: str) -> AppTest:
    return next(button for button in page.button if button.label == label).click().run()


def has_button(label: str) -> Callable[[AppTest], bool]:
    return lambda page: label in [button.label for button in page.button]


def as_visitor(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tasks, "visitor", lambda: name)


def test_what_runs_can_be_stopped_and_goes_on_when_asked(app: AppTest) -> None:
    recipe = Recipe(replace(NORMAL.prune, sparsity=0.31), finetune_steps=2_000).canonical()
    key = keys.request_key(replace(PLAIN, recipe=recipe))
    app.query_params["recipe"] = json.dumps(recipe.differences())
    page = settled(press(app.run(), "Start"), lambda _: tasks.pool().get(key).state == "running")  # type: ignore[union-attr]
    page = press(page, "Stop measuring")
    stopped = tasks.pool().get(key)
    assert stopped is not None
    assert stopped.state == "cancelled"
    assert "Stopped, as you asked" in words(page)
    assert not page.run().exception
    assert tasks.pool().get(key) is stopped  # it is not asked for again by itself
    page = press(page, "Go on")
    assert tasks.pool().get(key).state in ("queued", "running")  # type: ignore[union-attr]
    page.slider(key="sparsity").set_value(0).run()  # measured: this page shows no job of its own
    page = settled(page, has_button("Stop measuring"))  # in the sidebar
    press(page, "Stop measuring")
    assert tasks.pool().get(key).state == "cancelled"  # type: ignore[union-attr]


def test_a_stop_leaves_what_another_waits_for(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(replace(NORMAL.prune, sparsity=0.32), finetune_steps=2_000).canonical()
    key = keys.request_key(replace(PLAIN, recipe=recipe))
    app.query_params["recipe"] = json.dumps(recipe.differences())
    as_visitor(monkeypatch, "ann")
    ann = settled(press(app.run(), "Start"), lambda _: tasks.pool().get(key).state == "running")  # type: ignore[union-attr]
    job = tasks.pool().get(key)
    assert job is not None
    assert tasks.pool().submit("measure", "measure", job.request, key, visitor="bob") is job
    ann = press(ann, "Stop measuring")
    assert "Stopped, as you asked" in words(ann)
    assert not has_button("Stop measuring")(ann)
    assert job.state == "running"
    assert tasks.pool().withdraw(key, "bob")


def test_two_visitors_of_one_preset_both_get_it(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {}
    for name in ("ann", "bob"):
        as_visitor(monkeypatch, name)
        page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        page.query_params |= {"model": "fashion-mlp"}
        pages[name] = press(page.run(), "Small")
    assert pages["ann"].session_state["session"].preset is pages["bob"].session_state["session"].preset
    for name, page in pages.items():
        as_visitor(monkeypatch, name)
        settled(page, lambda page: len(page.toast) == 1)
        assert "smallest file" in page.toast[0].value.lower()
        assert page.session_state["session"].preset is None


def test_a_position_that_failed_is_tried_again_when_asked(app: AppTest) -> None:
    recipe = replace(NORMAL, prune=replace(NORMAL.prune, sparsity=0.29)).canonical()
    key = keys.request_key(replace(PLAIN, recipe=recipe))
    tasks.pool().wait(tasks.pool().submit("measure", "measure", Request("no such model"), key))
    app.query_params["sparsity"] = "29"
    try_again(app.run(), key)


def test_kernels_that_failed_are_tried_again_when_asked(app: AppTest) -> None:
    request = replace(
        PLAIN, recipe=Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)).canonical()
    )
    key = coverage_key(request)
    bad = replace(request, model="no such model")
    tasks.pool().wait(tasks.pool().submit("measure", "coverage", bad, key))
    try_again(app.switch_page("pages/latency.py").run(), key)


def test_complexity_that_failed_is_tried_again_when_asked(app: AppTest) -> None:
    share = 0.37
    key = scaling.request_key(ComplexityRequest(removed_share=share, quick=True))
    bad = ComplexityRequest("no such model", share)
    tasks.pool().wait(tasks.pool().submit("measure", "complexity", bad, key))
    app.query_params["removed"] = "37"
    try_again(app.switch_page("pages/complexity.py").run(), key)


def test_latency_profiles_at_once_and_serves_when_asked(app: AppTest) -> None:
    app.query_params["batches"], app.query_params["threads"] = ["1", "2"], ["1"]
    page = app.switch_page("pages/latency.py").run()
    assert page.button(key="measure").label == "Measure"
    settled(page, lambda page: "layers ran int8 kernels" in words(page))
    assert "Not measured yet" not in words(page)
    page.button(key="measure").click().run()
    settled(page, lambda page: "Compressed, against the uncompressed model on OpenVINO" in words(page))
    assert len(page.get("plotly_chart")) == 4
    served, ran = (element.value for element in page.dataframe)
    assert list(served.batch) == [1, 1, 2, 2]
    assert (served.throughput > 0).all()
    assert ran.share.sum() == pytest.approx(1)
    page.number_input(key="limit_ms").set_value(60_000.0).run()
    assert "Under 60.0 s, most images a second" in words(page)
    page.segmented_control(key="what").set_value("explore").run()
    assert page.button(key="measure").label == "Measure", "another recipe is another comparison"


def test_latency_says_what_can_not_be_served(app: AppTest) -> None:
    app.query_params["threads"], app.query_params["streams"] = ["1"], ["2"]
    page = app.switch_page("pages/latency.py").run()
    assert not page.exception
    if page.error:  # on a machine of one core 2 streams can't be picked at all
        assert "2 streams are more than 1 thread" in page.error[0].value


def test_models_and_data_lists_what_there_is_and_reads_the_images(app: AppTest) -> None:
    page = app.switch_page("pages/models_and_data.py").run()
    settled(page, lambda page: "10,000" in words(page))
    table = page.dataframe[0].value.set_index("model")
    assert table.loc["resnet18", "download"] > 40e6
    assert table.loc["fashion-resnet", "top-1"] > 0.93


def test_what_may_not_be_downloaded_is_said_instead(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    app.query_params["model"] = "squeezenet1_1"
    app.run()
    assert os.environ[DOWNLOADS_VARIABLE] == DEFAULT_DOWNLOADS  # its workers inherit it
    for allowed, disabled in (("5GB", False), ("0", True)):
        monkeypatch.setenv(DOWNLOADS_VARIABLE, allowed)
        page = app.switch_page("pages/models_and_data.py").run()
        (button,) = [button for button in page.button if button.label.startswith("Download")]
        assert button.disabled == disabled
        assert ("no weights may be downloaded to this machine" in words(page)) == disabled


def test_layers_shows_a_layer_and_what_it_is_worth(app: AppTest) -> None:
    page = app.run()
    page.slider(key="sparsity").set_value(50)
    page.select_slider(key="bits").set_value(4).run()
    page.switch_page("pages/layers.py").run()
    settled(page, lambda page: len(page.get("plotly_chart")) == 2)
    assert HALF.recipe.describe() in words(page)
    inspected = results()[HALF.recipe].inspection.layers
    assert page.selectbox(key="layer").options == [layer.name.removesuffix(".weight") for layer in inspected]
    table = page.dataframe[0].value
    assert list(table["weights"]) == [layer.elements for layer in inspected]
    assert set(table["bits"]) == {4}
    settled(page, lambda page: len(page.dataframe) == 2)
    groups = page.dataframe[1].value
    assert (groups["together"] > 0).all()
    assert any("residual sum" in why for why in groups["why"])


def test_layers_apart_come_with_a_link(app: AppTest) -> None:
    app.query_params["layers"] = '[{"layer":"9.weight","sparsity":0.25,"weight_bits":8}]'
    page = app.switch_page("pages/layers.py").run()
    settled(page, lambda page: len(page.dataframe) >= 1)
    row = page.dataframe[0].value.set_index("layer").loc["9.weight"]
    assert (row["own sparsity"], row["own bits"], row["removed"], row["bits"]) == (25, 8, 25, 8)
    assert "1 layer apart" in words(page)


def test_layers_apart_go_with_their_model(app: AppTest) -> None:
    app.query_params["layers"] = '[{"layer":"9.weight","weight_bits":8}]'
    page = app.run()
    assert "1 layer apart" in words(page)
    page.selectbox(key="model").set_value("fashion-mlp").run()
    assert "apart" not in words(page)
    assert "layers" not in page.query_params
    page.selectbox(key="model").set_value("fashion-resnet").run()
    assert "apart" not in words(page)


@pytest.mark.parametrize(
    ("layers", "told", "removable"),
    [
        ('[{"layer":"nope","sparsity":0.25}]', "nope", True),
        ('[{"layer":"9.weight","sparsity":25}]', "sparsity 25", False),
        ("[", "not a recipe", False),
    ],
)
def test_layers_apart_that_cannot_be_are_refused_in_words(
    app: AppTest, layers: str, told: str, removable: bool
) -> None:
    app.query_params["layers"] = layers
    page = app.switch_page("pages/layers.py").run()
    if not page.toast:  # what the text doesn't show is found out by a worker
        settled(page, lambda page: bool(page.error))
    assert told in [*page.toast, *page.error][0].value
    undo = [button for button in page.button if button.label == "All layers as the rest"]
    assert bool(undo) == removable
    if undo:
        undo[0].click().run()
        settled(page, lambda page: len(page.dataframe) >= 1)
        assert not page.error
