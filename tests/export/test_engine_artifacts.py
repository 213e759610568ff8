"""Files for OpenVINO and ONNX Runtime, which those answer as the torch module does."""

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artifact_files import RECIPES, Small, entries, mixed, taken
from pairs import pairs
from torch import Tensor, nn

import optimizer
from optimizer.data.loading import load_images
from optimizer.engine import onnx_export
from optimizer.engine import onnxruntime as onnxruntime_engine
from optimizer.engine import openvino as openvino_engine
from optimizer.engine import torch as torch_engine
from optimizer.errors import WorkError
from optimizer.export.artifacts import CARD_FILE, RECIPE_FILE, ArtifactSource, write
from optimizer.formats import format_bytes
from optimizer.methods.artifacts import ARTIFACTS
from optimizer.model.added.network_reading import read_ir
from optimizer.model.catalogue import LoadedModel
from optimizer.model.catalogue import load as load_model
from optimizer.model.layers import uses
from optimizer.recipe import PRECISIONS, QuantizeSpec, Recipe
from optimizer.records import DataSpec
from optimizer.system.environment import environment, precisions

Once = Callable[[str, ArtifactSource], ArtifactSource]

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are needed to write an ONNX file and run it",
)


# OpenVINO


def openvino_logits(zipped: bytes, images: Tensor, folder: Path) -> np.ndarray:
    import openvino

    files = entries(zipped)
    assert set(files) == {"model.xml", "model.bin", RECIPE_FILE, CARD_FILE}
    for name in ("model.xml", "model.bin"):
        (folder / name).write_bytes(files[name])
    model = openvino.compile_model(
        folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    return np.concatenate([model([image[None]])[0] for image in images.numpy()])


@pytest.mark.slow
@pairs(recipe=["4 bits pruned", "8 bits and activations"], name=["cnn", "encoder"], given=[True, False])
def test_openvino_reads_the_graph_that_the_runner_runs(
    small: Small, small_images: Tensor, name: str, recipe: str, given: bool, tmp_path: Path
) -> None:
    """``given`` what was prepared, or preparing it itself."""
    source = taken(small(name), RECIPES[recipe], small_images)
    build = openvino_engine.prepare(source.module, (1, 8, 8))
    runner = build(source.compressed, small_images, threads=1, batch=1)
    expected = np.concatenate([runner.infer(image[None]) for image in small_images.numpy()])
    zipped = write("openvino", replace(source, build=build) if given else source)
    found = openvino_logits(zipped, small_images, tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_openvino_file_says_what_it_was_made_of(
    small: Small, small_images: Tensor, tmp_path: Path
) -> None:
    source = taken(small("cnn"), Recipe().canonical(), small_images)
    for name, content in entries(write("openvino", source)).items():
        (tmp_path / name).write_bytes(content)
    said = read_ir(tmp_path / "model.xml", tmp_path / "model.bin", tmp_path / "kept.partial")["metadata"]
    assert said == {"model": source.card.name, "recipe": json.loads(Recipe().canonical().to_json())}
    again = read_ir(tmp_path / "kept.xml", tmp_path / "kept.bin", tmp_path / "again.partial")
    assert again["metadata"] == said


@pytest.mark.parametrize(("kind", "batch"), [("openvino", "1"), ("onnx", "N"), ("packed", "N")])
def test_a_card_says_how_large_each_file_is_and_what_it_takes(
    small: Small, small_images: Tensor, kind: str, batch: str
) -> None:
    files = entries(write(kind, taken(small("cnn"), RECIPES["8 bits"], small_images)))
    card = files.pop(CARD_FILE).decode()
    del files[RECIPE_FILE]
    assert all(f"- `{name}`, {format_bytes(len(content))}\n" in card for name, content in files.items())
    assert f"Input: float32 `[{batch}, 1, 8, 8]`" in card
    assert f"Output: logits `[{batch}, 10]`" in card


class Looks(nn.Module):
    """Has another layer where the sum is below ``least``, which is what values decide."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.some, self.others, self.least = nn.Linear(64, 10), nn.Linear(64, 10), least

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        return self.some(rows) if rows.sum() > self.least else self.others(rows)


def test_no_openvino_file_of_a_model_whose_path_its_input_chooses(small_images: Tensor) -> None:
    source = taken(Looks(0.0).eval(), Recipe().canonical(), small_images)
    with pytest.raises(WorkError, match=r"\d of 8 inputs .* not answered as torch does. Export it as safet"):
        write("openvino", source)


def test_an_openvino_file_of_a_model_that_only_checks_values_says_so(small_images: Tensor) -> None:
    note = "8 inputs that were tried are answered as torch does"
    for model, said in ((Looks(-1e9), True), (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), False)):
        source = taken(model.eval(), Recipe().canonical(), small_images)
        assert (note in entries(write("openvino", source))[CARD_FILE].decode()) == said


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_card_of_an_openvino_file_loads_it_in_the_recipe_s_precision(
    small: Small, small_images: Tensor, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = taken(small("cnn"), Recipe(quantize=QuantizeSpec(precision=precision)), small_images)
    zipped = write("openvino", source)
    card = entries(zipped)[CARD_FILE].decode()
    assert f'"INFERENCE_PRECISION_HINT": "{precision}"' in card
    assert ("Without the float32 hint" in card) == (precision == "f32")
    assert (f"compute in {PRECISIONS[precision]}, as this recipe does" in card) == (precision != "f32")
    if precision not in precisions(environment()):
        return
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(entries(zipped)[name])
    monkeypatch.chdir(tmp_path)
    image = small_images[:1].numpy()
    found: dict[str, Any] = {"images": image}
    exec(card.split("```python\n")[1].split("\n```")[0], found)
    build = openvino_engine.prepare(source.module, (1, 8, 8))
    runner = build(source.compressed, small_images, threads=1, batch=1)
    np.testing.assert_allclose(found["logits"], runner.infer(image), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "activations", "smaller"), [(4, 32, False), (8, 32, False), (8, 8, True)])
def test_openvino_s_file_is_smaller_where_activations_have_8_bits(
    bits: int, activations: int, smaller: bool
) -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 5)).eval()
    recipe = Recipe(quantize=QuantizeSpec(weight_bits=bits, activation_bits=activations)).canonical()
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = entries(write("openvino", taken(layers, recipe, images)))["model.bin"]
    assert (len(weights) < 4 * (64 * 128 + 128 * 5)) == smaller
    assert "Unless activations have 8 bits" in ARTIFACTS["openvino"].help


@pytest.mark.slow
def test_the_openvino_file_names_no_folder(resnet: LoadedModel) -> None:
    images = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    files = entries(
        write("openvino", taken(resnet.module, RECIPES["8 bits and activations"], images, resnet.card))
    )
    check_no_folder(files)


def check_no_folder(files: Mapping[str, bytes]) -> None:
    """Nothing of where this ran: not the package's folder, the interpreter's or torch's."""
    for module in (optimizer, torch, pytest):
        assert module.__file__ is not None
        folder = str(Path(module.__file__).parent.parent).encode()
        assert not [name for name, content in files.items() if folder in content]
    assert not [name for name, content in files.items() if b".py" in content and name != CARD_FILE]


@pytest.mark.slow
@needs_onnx
def test_files_have_the_names_that_are_asked_for(
    small: Small, small_images: Tensor, exported_once: Once, tmp_path: Path
) -> None:
    """As a model of an ONNX file has its own; one that the exporter uses inside gives way."""
    import onnxruntime
    import openvino

    source = exported_once("cnn", taken(small("cnn"), RECIPES["8 bits"], small_images))
    inner = onnx_export.export(source.module, (1, 8, 8)).model.graph.node[0].output[0]
    for names in (("images", "logits"), ("x", "22"), (inner, "masks")):
        named = replace(source, names=names)
        files = entries(write("onnx", named)) | entries(write("openvino", named))
        session = onnxruntime.InferenceSession(files["model.onnx"])
        (answer,) = session.run([names[1]], {names[0]: small_images.numpy()})
        np.testing.assert_allclose(answer, torch_logits(source, small_images), rtol=1e-4, atol=1e-4)
        for name in ("model.xml", "model.bin"):
            (tmp_path / name).write_bytes(files[name])
        graph = openvino.Core().read_model(tmp_path / "model.xml")
        assert (graph.inputs[0].names, graph.outputs[0].names) == ({names[0]}, {names[1]})


# ONNX


def onnx_logits(zipped: bytes, images: Tensor) -> np.ndarray:
    """By ONNX Runtime, without the fusions that turn a DequantizeLinear and a product into another kernel."""
    import onnx
    import onnxruntime

    files = entries(zipped)
    assert set(files) == {"model.onnx", RECIPE_FILE, CARD_FILE}
    onnx.checker.check_model(files["model.onnx"], full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(files["model.onnx"], options, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(None, {"images": images.numpy()})[0]
    return logits


def operations(zipped: bytes) -> dict[str, int]:
    import onnx

    counts: dict[str, int] = {}
    for node in onnx.load_from_string(entries(zipped)["model.onnx"]).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def torch_logits(source: ArtifactSource, images: Tensor) -> np.ndarray:
    """By the torch module. Its inputs are rounded as the torch engine does it, but over one range for modules
    that share a weight: an ONNX graph tells weights apart, not modules."""
    model = copy.deepcopy(source.compressed.module)
    bits = source.compressed.recipe.quantize.activation_bits
    if bits < 32:
        by_module = torch_engine.activation_ranges(model, source.calibration)
        for layer in uses(model):
            spans = [by_module.get(other.module, (0, 0)) for other in uses(model) if other.name == layer.name]
            low, high = min(low for low, _ in spans), max(high for _, high in spans)
            layer.module.register_forward_pre_hook(torch_engine.RoundActivations(low, high, bits))
    with torch.inference_mode():
        return model(images).numpy()


@pytest.fixture(scope="module")
def exported_once() -> Iterator[Once]:
    """``exported_once(model, source)``: the same, of one module for all recipes of a model. Its export,
    which takes seconds, is kept."""
    modules: dict[str, nn.Module] = {}

    def shared(model: str, source: ArtifactSource) -> ArtifactSource:
        return replace(source, module=modules.setdefault(model, source.module))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "export", cache(onnx_export.export))
        yield shared


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        *(("cnn", chosen) for chosen in RECIPES if chosen not in ("pruned", "8 bits", "4 bits pruned")),
        *(("encoder", chosen) for chosen in ("half", "8 bits asymmetric", "8 bits and 4-bit activations")),
        *((name, "8 bits and activations") for name in ("tied", "shared", "auxiliary")),
    ],
)
def test_onnx_answers_as_torch_does(
    small: Small, small_images: Tensor, exported_once: Once, name: str, chosen: str
) -> None:
    recipe = RECIPES[chosen]
    source = exported_once(name, taken(small(name), recipe, small_images))
    zipped = write("onnx", source)
    small_images = 1.2 * small_images  # some values lie beyond the calibrated ranges
    expected = torch_logits(source, small_images)
    found = onnx_logits(zipped, small_images)
    kernels = chosen == "8 bits and activations"
    if recipe.quantize.activation_bits == 32:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(onnx_logits(zipped, small_images[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    elif kernels:  # rounded in more places than torch does it, and within 8 bits
        assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.03
    else:  # a last bit apart before rounding is a step of the grid apart after it, but rarely
        apart = np.abs(found - expected)
        assert np.median(apart) < 1e-5
        # inside of attention torch rounds no inputs of the output projection
        assert np.linalg.norm(apart) < (0.1 if name == "encoder" else 0.03) * np.linalg.norm(expected)
    check_nothing_is_left_out(zipped)
    layers = {"cnn": 4, "encoder": 4, "tied": 3, "shared": 3, "auxiliary": 2}[name]
    counts = operations(zipped)
    inputs = {"cnn": 4, "encoder": 4, "tied": 4, "shared": 4, "auxiliary": 2}[name]
    if kernels:  # what the last convolution gives, their sum, and biases where products are
        inputs += 2 * (name == "cnn")
    inputs *= recipe.quantize.activation_bits < 32
    biases = kernels * {"cnn": 4, "tied": 4, "shared": 4, "auxiliary": 2}.get(name, 0)
    assert counts.get("QuantizeLinear", 0) == inputs
    assert counts.get("DequantizeLinear", 0) == inputs + layers * kernels + biases
    assert counts.get("Cast", 0) == layers * (recipe.quantize.weight_bits < 32 and not kernels)


def check_nothing_is_left_out(zipped: bytes) -> None:
    card = entries(zipped)[CARD_FILE].decode()
    assert "kept in float32" not in card
    assert "one image at a time" not in card


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", ["cnn", "encoder"])
def test_onnx_layers_may_differ_in_bits(
    small: Small, small_images: Tensor, exported_once: Once, name: str
) -> None:
    source = exported_once(name, mixed(small(name), small_images))
    zipped = write("onnx", source)
    check_nothing_is_left_out(zipped)
    with torch.inference_mode():
        expected = source.compressed.module(small_images).numpy()
    np.testing.assert_allclose(onnx_logits(zipped, small_images), expected, rtol=1e-4, atol=1e-4)
    counts = operations(zipped)
    assert (counts.get("DequantizeLinear", 0), counts["Cast"]) == (0, 3)


class Wide(nn.Module):
    """Products of more than one row, as transformers have, and a convolution whose answers are rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.mixes, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.mixes(self.second(self.stem(images).relu()).flatten(2))
        return self.head(rows.mean(1))


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(
    "chosen", ["8 bits", "8 bits asymmetric", "half", "8 bits and 4-bit activations", "activations"]
)
def test_onnx_runtime_answers_by_default_as_was_measured(
    small_images: Tensor, exported_once: Once, chosen: str
) -> None:
    """Of a DequantizeLinear and a product it would make one that rounds activations to 8 bits too."""
    import onnxruntime

    torch.manual_seed(0)
    source = exported_once("wide", taken(Wide().eval(), RECIPES[chosen], small_images))
    runner = onnxruntime_engine.build(
        onnx_export.export(source.module, (1, 8, 8)), source.compressed, small_images, threads=1, batch=1
    )
    zipped = write("onnx", source)
    session = onnxruntime.InferenceSession(entries(zipped)["model.onnx"])
    images = small_images.numpy()
    np.testing.assert_allclose(
        session.run(None, {"images": images})[0], runner.score(images), rtol=1e-5, atol=1e-6
    )
    wide = sum(weight.values.numel() for weight in source.compressed.weights.values())
    narrow = min(source.compressed.recipe.quantize.weight_bits, 32) // 8 * wide
    assert len(entries(zipped)["model.onnx"]) < narrow + 6000
    assert "SessionOptions" not in entries(zipped)[CARD_FILE].decode()


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", ["fashion-resnet", "fashion-vit"])
def test_onnx_of_a_bundled_model_predicts_as_torch_does(exported_once: Once, name: str) -> None:
    loaded = load_model(name)
    images = load_images(loaded, DataSpec(limit=200)).evaluation.images
    for recipe in (RECIPES["4 bits pruned"], RECIPES["8 bits and activations"]):
        source = exported_once(name, taken(loaded.module, recipe, images[:64], loaded.card))
        zipped = write("onnx", source)
        eager = torch_engine.prepare(source.module, loaded.card.input_shape)
        expected = eager(source.compressed, images[:64], threads=1, batch=1).score(images.numpy())
        same = np.mean(onnx_logits(zipped, images).argmax(1) == expected.argmax(1))
        assert same == 1 if recipe.quantize.activation_bits == 32 else same > 0.98
        check_no_folder(entries(zipped))
