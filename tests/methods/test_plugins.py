"""An installed package adds a pruner, a quantizer and an engine: with no other edit they are everywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st
import torch
from factories import make_result
from page_runs import settled, stands
from streamlit.testing.v1 import AppTest
from torch import nn

import optimizer as px
from optimizer import charts
from optimizer.analysis.summary import summarise
from optimizer.charts.families import belongs, family
from optimizer.charts.points import hover
from optimizer.cli.main import main
from optimizer.compression.apply import compress
from optimizer.engine import engine_named
from optimizer.errors import InputError, UnavailableError
from optimizer.export.report import report
from optimizer.methods import plugins
from optimizer.methods.artifacts import ARTIFACTS
from optimizer.methods.engines import ENGINES
from optimizer.methods.pruners import PRUNERS
from optimizer.methods.quantizers import QUANTIZERS
from optimizer.model.layers import walk
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Request
from optimizer.store.keys import request_keys
from optimizer.store.results import Store
from optimizer.work import Catalogue, run
from pages import tasks

ROOT = Path(__file__).parents[2]
ENTRIES = """
from optimizer.methods.artifacts import ArtifactInfo
from optimizer.methods.engines import EngineInfo
from optimizer.methods.pruners import PrunerInfo
from optimizer.methods.quantizers import QuantizerInfo

PRUNER = PrunerInfo(
    "stripes", "Stripes", "of every hundred weights the first go.", "toy_code:prune",
    options=(), allocations=("uniform",), allocation="uniform", rounding="towards-zero", thresholds=False,
)
SHRINKER = PrunerInfo(
    "thin", "Thin", "the first channels go.", "toy_code:shrink",
    options=(), allocations=("uniform",), allocation="uniform", thresholds=False, needs_data=True,
    shrinks=True, per_layer=False,
)
QUANTIZER = QuantizerInfo(
    "towards-zero", "towards zero", "each weight goes to the next value below.", "toy_code:quantize",
    options=("granularity",), asymmetric_below=4,
)
ARTIFACT = ArtifactInfo("names", "Names", "of the layers alone.", "toy_code:write", extension=".names")
ENGINE = EngineInfo("toy", "Toy runtime", "only a toy", "toy_code:ENGINE")
NOTHING = 0
TAKEN = EngineInfo("torch", "Another torch", "not this one")
"""
CODE = """
import torch

from optimizer.compression.prune import Pruned
from optimizer.compression.prune.coupling import without
from optimizer.compression.quantize.grid import Rounded
from optimizer.compression.quantize.nearest import round_to_nearest
from optimizer.engine import Engine, Runner
from optimizer.engine.realised import simulated
from optimizer.model.layers import walk
from optimizer.records import Execution, LayerExecution


def prune(weights, published, spec, statistics):
    places = {name: torch.arange(weight.numel()).reshape(weight.shape) for name, weight in weights.items()}
    kept = {name: place % 100 >= 100 * spec.share for name, place in places.items()}
    return {name: Pruned(weight * kept[name], kept[name]) for name, weight in weights.items()}


def shrink(model, spec, plan_in, report):
    plan = plan_in("magnitude")
    gone = {group: torch.arange(int(spec.share * group.channels)) for group in plan.free}
    return without(plan.model, tuple(plan.images.shape[1:]), gone)


def write(source):
    return " ".join(source.compressed.weights).encode()


def quantize(original, pruned, spec, name, statistics=None):
    return Rounded(round_to_nearest(0.75 * pruned.weight, spec), pruned.bias_change)


def build(compressed, calibration, *, threads, batch):
    def infer(images):
        with torch.inference_mode():
            return compressed.module(torch.from_numpy(images)).numpy()

    layers = tuple(LayerExecution(layer.name, "f32", "toy") for layer in walk(compressed.module))
    execution = Execution(layers, tuple(simulated(compressed, layers, "toy")))
    return Runner(infer, infer, lambda: execution)


ENGINE = Engine(lambda: None, lambda model, shape: build)
"""
CALIBRATION = torch.rand(32, 1, 28, 28)
POINTS = {
    "stripes": "PRUNER",
    "thin": "SHRINKER",
    "names": "ARTIFACT",
    "towards": "QUANTIZER",
    "runtime": "ENGINE",
}


def install(folder: Path, points: dict[str, str]) -> None:
    """As pip does."""
    folder.mkdir(exist_ok=True)
    (folder / "toy_entries.py").write_text(ENTRIES)
    (folder / "toy_code.py").write_text(CODE)
    information = folder / "toy-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    lines = "".join(f"{name} = toy_entries:{attribute}\n" for name, attribute in points.items())
    (information / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{lines}")


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("site")
    before = [(registry, dict(registry)) for registry in plugins.REGISTRIES.values()]
    install(folder, POINTS)
    sys.path.insert(0, str(folder))  # which workers take over
    plugins.add_installed()
    yield
    sys.path.remove(str(folder))
    plugins.packages.clear()
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
    for module in ("toy_entries", "toy_code"):
        sys.modules.pop(module, None)


@pytest.fixture
def toy() -> Recipe:
    return Recipe(
        PruneSpec("stripes", 0.5, allocation="uniform"),
        QuantizeSpec("towards-zero", 4, granularity="tensor"),
    )


def test_the_entries_are_read_without_their_code() -> None:
    assert "toy_entries" in sys.modules
    registries = (PRUNERS, QUANTIZERS, ENGINES, ARTIFACTS)
    assert {"stripes", "thin", "towards-zero", "toy", "names"} <= set().union(*registries)
    assert not plugins.problems


def test_recipes_survive_json_and_unknown_names_list_them(toy: Recipe) -> None:
    assert Recipe.from_json(toy.to_json()) == toy
    with pytest.raises(InputError, match="use one of magnitude, compensated, channels, stripes, thin"):
        PruneSpec("strips")
    with pytest.raises(InputError, match="use one of nearest, compensated, towards-zero"):
        QuantizeSpec("to-zero")
    with pytest.raises(InputError, match="pruning method stripes takes no threshold"):
        PruneSpec("stripes", threshold=0.1)


def test_the_canonical_recipe_leaves_out_what_the_methods_do_not_read(toy: Recipe) -> None:
    prune = replace(toy.prune, allocation="measured", snap=8, match=True)
    quantize = replace(toy.quantize, range="mse", equalise=True)
    assert Recipe(prune, quantize).canonical() == toy.canonical() == toy
    other = (Override("a", rounding="compensated"),)
    assert Recipe(prune, quantize, other).canonical().quantize == replace(quantize, equalise=False)
    assert not toy.needs_data
    assert toy.quantize.automatic
    assert not toy.quantize.at(3).symmetric


def test_another_version_of_the_package_is_another_method(
    monkeypatch: pytest.MonkeyPatch, toy: Recipe
) -> None:
    requests = (Request("fashion-mlp", toy), Request("fashion-mlp", engine="toy"), Request("fashion-mlp"))
    before = request_keys(requests)
    for name, package in plugins.packages.items():
        assert package == "toy 1.0"
        monkeypatch.setitem(plugins.packages, name, "toy 1.1")
    after = request_keys(requests)
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True]


def test_descriptions_name_them(toy: Recipe) -> None:
    words = "50 % of each layer pruned (stripes) · 4-bit weights (towards zero, per tensor)"
    assert toy.describe() == words


def test_weights_are_pruned_and_rounded_by_their_code(toy: Recipe) -> None:
    model = nn.Sequential(nn.Linear(20, 10)).eval()
    made = compress(model, Recipe(toy.prune)).weights["0.weight"]
    first = torch.arange(200).reshape(10, 20) % 100 < 50
    assert torch.equal(made.mask, ~first)
    both = compress(model, toy).weights["0.weight"]
    assert both.codes is not None
    assert both.values.abs().max() < 0.9 * made.values.abs().max()
    layer = Recipe(layers=(Override("0.weight", sparsity=0.2, pruning="stripes"),))
    assert compress(model, layer).weights["0.weight"].mask.sum() == 160


def test_average_bits_are_shared_out_for_a_quantizer_without_costs_of_its_own(toy: Recipe) -> None:
    mixed = replace(toy.quantize, weight_bits=32, average_bits=4.0)
    assert mixed.needs_data
    assert mixed.quantizer.load_costs() is QUANTIZERS["nearest"].load_costs()


@pytest.mark.slow
def test_the_command_line_offers_and_measures_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    help = " ".join(capsys.readouterr().out.split())
    assert "magnitude, compensated (Data-aware (OBS)), channels, stripes, thin" in help
    assert "compensated (GPTQ), towards-zero (towards zero)" in help
    assert "stripes: uniform" in help
    assert "compile, torch, toy (default: openvino)" in help
    options = ["--prune", "stripes", "--sparsity", "0.5", "--rounding", "towards-zero", "--weight-bits", "4"]
    measured = ["measure", "fashion-mlp", "--engine", "toy", "--limit", "100", "--quick", "--json", *options]
    assert main(measured) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"]["prune"]["method"] == "stripes"
    (result,) = Store().results(engine="toy")
    assert result.request.recipe.prune.method == "stripes"
    assert {layer.kernel for layer in result.execution.layers} == {"toy"}


@pytest.mark.slow
def test_a_smaller_network_comes_of_one_that_shrinks() -> None:
    recipe, images = Recipe.of(sparsity=0.5, pruning="thin"), torch.rand(100, 1, 28, 28)
    result = px.measure("fashion-mlp", recipe, images, calibration=CALIBRATION, engine="toy", progress=False)
    assert result.request.recipe.describe() == "50 % of removable channels pruned (thin)"
    whole, small = (
        px.compress("fashion-mlp", recipe, calibration=CALIBRATION, progress=False)
        for recipe in (Recipe(), result.request.recipe)
    )
    before, after = ([layer.weight for layer in walk(module)] for module in (whole, small))
    assert [len(one) for one in after] == [*(len(one) // 2 for one in before[:-1]), len(before[-1])]
    assert torch.equal(after[0], before[0][len(before[0]) // 2 :])
    assert result.record.inspection.size.nonzero == sum(int(one.count_nonzero()) for one in after)


def test_a_file_of_their_own_kind_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "names"
    assert main(["save", "fashion-mlp", "--format", "names", "--output", str(path)]) == 0
    names = [layer.name for layer in walk(px.compress("fashion-mlp", Recipe(), progress=False))]
    assert path.read_text().split() == names


def test_charts_and_the_report_name_them(toy: Recipe) -> None:
    result = make_result(toy, engine="toy")
    others = [make_result(), make_result(Recipe(PruneSpec(sparsity=0.5))), make_result(engine="torch")]
    assert "stripes" in hover(summarise(result))
    assert "on Toy runtime" in hover(summarise(result))
    assert not belongs(family(result.request.recipe), family(others[1].request.recipe))
    lines = charts.latency_info([result, *others]).series
    assert any("Toy runtime" in line.name for line in lines)
    compared = charts.compare_info([result, *others], "accuracy")
    assert any("Toy runtime" in name for name in compared.y.categories)
    page = report([result, *others])
    assert "stripes" in page
    assert "Toy runtime" in page


def test_a_stored_result_of_a_method_that_is_gone_is_passed_over(
    toy: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    store.put(make_result(toy, engine="toy"))
    store.put(make_result())
    with monkeypatch.context() as patch:
        patch.delitem(PRUNERS, "stripes")
        assert [result.request.recipe for result in store.results()] == [Recipe()]
        with pytest.raises(InputError, match="unknown pruning method 'stripes'"):
            Recipe.from_json(toy.to_json())
    assert len(store.results()) == 2


@pytest.mark.slow
def test_the_page_offers_and_measures_them(own_locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Beside a folder named pages, AppTest takes its second run for one of a bare page: see test_pages.
    monkeypatch.setattr(
        AppTest,
        "_finished_page_script_hash",
        property(lambda page: "", lambda page, value: None),
        raising=False,
    )
    st.cache_resource.clear()
    Store().put(make_result())  # else the curves of the first model are filled meanwhile
    try:
        page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        link = {"model": "fashion-mlp", "engine": "Toy runtime", "method": "Stripes", "sparsity": "50"}
        for key, value in link.items():
            page.query_params[key] = value  # a link has labels
        page.run()
        method, engine = page.selectbox(key="method"), page.selectbox(key="engine")
        assert method.options[:4] == ["Data-aware (OBS)", "Magnitude", "Threshold", "Channels"]
        assert sorted(method.options[4:]) == ["Stripes", "Thin"]
        assert "Stripes: of every hundred weights the first go." in method.help
        assert "Toy runtime" in engine.options
        assert "- **Toy runtime**: only a toy" in engine.help
        assert (method.value, engine.value) == ("stripes", "toy")
        assert page.selectbox(key="stripes_allocation").options == ["uniform"]
        assert page.button_group(key="stripes_rounding").value == "towards-zero"
        assert not [one for one in page.selectbox if one.key in ("pattern", "towards-zero_range")]
        assert not [one for one in page.toggle if one.key in ("match", "equalise")]
        settled(page, stands)
        assert any("50 % of each layer pruned" in one.value for one in page.markdown)
        assert "stripes" in {result.request.recipe.prune.method for result in Store().results(engine="toy")}
    finally:
        tasks.pool().close()
        st.cache_resource.clear()


def test_what_is_no_entry_or_takes_a_name_is_left_out_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "other", {"nothing": "NOTHING", "taken": "TAKEN", "missing": "MISSING"})
    monkeypatch.syspath_prepend(tmp_path / "other")
    monkeypatch.setattr(plugins, "problems", [])
    before = dict(ENGINES)
    plugins.add_installed()
    assert before == ENGINES
    nothing, taken = "gives int, not a PrunerInfo", "another method is called torch"
    for name, words in (("nothing", nothing), ("taken", taken), ("missing", "has no attribute 'MISSING'")):
        assert any(f"plugin {name} (" in told and words in told for told in plugins.problems), (
            plugins.problems
        )


def test_a_command_names_what_is_left_out_and_why_once(tmp_path: Path) -> None:
    """In a process of its own, as it is started in a shell."""
    folder = tmp_path / "site"
    install(folder, POINTS | {"lacking": "MISSING"})
    entries = folder / "toy-1.0.dist-info" / "entry_points.txt"
    entries.write_text(entries.read_text() + "runtime2 = toy_lacking:ENGINE\n")
    (folder / "toy_lacking.py").write_text("import a_package_that_is_gone\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), *sys.path))}
    for arguments in (["doctor", "--json"], ["models", "--source", "bundled", "--json"]):
        command = [sys.executable, "-m", "optimizer.cli", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        json.loads(done.stdout)
        lacking, runtime = sorted(line for line in done.stderr.splitlines() if "left out" in line)
        assert lacking.startswith("paretoscope: plugin lacking (toy_entries:MISSING) is left out: ")
        assert "AttributeError" in lacking
        assert runtime.startswith("paretoscope: plugin runtime2 (toy_lacking:ENGINE) is left out: ")
        assert runtime.endswith("ModuleNotFoundError: No module named 'a_package_that_is_gone'")


def test_an_engine_whose_code_is_broken_is_told_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "toy", replace(ENGINES["toy"], code="toy_code_that_is_gone:ENGINE"))
    catalogue = run("catalogue", None, lambda share, message: None)
    assert isinstance(catalogue, Catalogue)
    assert "No module named 'toy_code_that_is_gone'" in catalogue.engines["toy"]
    assert catalogue.engines["torch"] == ""
    with pytest.raises(UnavailableError, match="engine toy can't run here: its code fails"):
        engine_named("toy")
