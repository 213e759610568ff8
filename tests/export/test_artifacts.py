"""Files that are taken away, against the torch module that they were made of."""

import copy
import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artifact_files import RECIPES, SMALL_CARD, Small, check_same, entries, mixed, taken, values, zip_of
from factories import make_result, remade
from pairs import pairs
from small_models import SMALL_SHAPE
from torch import Tensor, nn

from optimizer.analysis.badges import NOT_SAID, BadgeKind
from optimizer.analysis.summary import summarise
from optimizer.analysis.two_files import NetworkRef
from optimizer.compression.apply import compress
from optimizer.compression.packing import packed_bytes
from optimizer.compression.prune.channels import shrink
from optimizer.compression.prune.plan import plan
from optimizer.errors import InputError, UnavailableError
from optimizer.export.artifacts import CARD_FILE, RECIPE_FILE, ArtifactSource, load, write
from optimizer.export.artifacts.card import model_card
from optimizer.export.artifacts.networks import opened
from optimizer.measurement.size import size_of
from optimizer.measurement.workspace import open_model
from optimizer.model.catalogue import LoadedModel
from optimizer.model.catalogue import load as load_model
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.model.own import own_model
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Execution, ModelCard

# Written and read back


@pairs(chosen=RECIPES, kind=["safetensors", "packed"], name=["cnn", "encoder", "tied"])
def test_a_small_model_comes_back(
    small: Small, small_images: Tensor, name: str, kind: str, chosen: str, tmp_path: Path
) -> None:
    source = taken(small(name), RECIPES[chosen], small_images)
    path = tmp_path / "taken.zip"
    path.write_bytes(write(kind, source))
    fresh, _ = fold_batch_norm(small(name))
    before = {key: value.clone() for key, value in values(fresh).items()}
    (alone,) = [content for name, content in entries(path.read_bytes()).items() if name.startswith("model")]
    for written in (path, str(path), path.read_bytes(), alone):
        found = load(written, fresh)
        check_same(found, source.compressed.module, small_images, signs=kind == "safetensors")
    assert all(torch.equal(value, before[key]) for key, value in values(fresh).items())
    assert [layer.name for layer in walk(found)] == [layer.name for layer in walk(fresh)]


@pytest.mark.parametrize("name", ["cnn", "encoder"])
@pytest.mark.parametrize("kind", ["safetensors", "packed"])
def test_layers_may_differ_in_bits(small: Small, small_images: Tensor, name: str, kind: str) -> None:
    source = mixed(small(name), small_images)
    zipped = write(kind, source)
    found = load(zipped, source.module)
    check_same(found, source.compressed.module, small_images, signs=kind == "safetensors")
    assert "1 in 4 bits, 1 in 6 bits, 1 in 16 bits, 1 in 32 bits" in entries(zipped)[CARD_FILE].decode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-resnet", "fashion-vit"])
@pytest.mark.parametrize("kind", ["safetensors", "packed"])
def test_a_bundled_model_comes_back(kind: str, name: str) -> None:
    loaded = load_model(name)
    images = torch.randn(4, *loaded.card.input_shape, generator=torch.Generator().manual_seed(0))
    for recipe in (RECIPES["4 bits pruned"], RECIPES["half"], RECIPES["8 bits asymmetric"]):
        source = taken(loaded.module, recipe, images, loaded.card)
        found = load(write(kind, source), fold_batch_norm(loaded.module)[0])
        check_same(found, source.compressed.module, images, signs=kind == "safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_files_are_as_large_as_the_sizes_that_are_shown(resnet: LoadedModel, recipe: Recipe) -> None:
    """But for the header: names, and what must be known to read them."""
    source = taken(resnet.module, recipe, torch.zeros(1, 1, 28, 28), resnet.card)
    weights = source.compressed.weights
    size = size_of(source.module, weights)
    dense = entries(write("safetensors", source))["model.safetensors"]
    assert 0 <= len(dense) - size.file_bytes < 200
    packed = entries(write("packed", source))["model.packed.safetensors"]
    header = 8 + int.from_bytes(packed[:8], "little")
    assert len(packed) - header == size.packed_bytes
    assert sum(packed_bytes(weight, weight.bits)[1] for weight in weights.values()) < size.packed_bytes


@pytest.mark.parametrize("kind", ["safetensors", "packed"])
def test_the_same_model_gives_the_same_bytes(small: Small, small_images: Tensor, kind: str) -> None:
    files = {write(kind, taken(small("cnn"), RECIPES["4 bits pruned"], small_images)) for _ in range(4)}
    assert len(files) == 1


def test_the_recipe_is_in_the_file(small: Small, small_images: Tensor) -> None:
    for recipe in RECIPES.values():
        files = entries(write("packed", taken(small("cnn"), recipe, small_images)))
        assert Recipe.from_json(files[RECIPE_FILE]) == recipe
        assert set(files) == {"model.packed.safetensors", RECIPE_FILE, CARD_FILE}


def test_files_zipped_again_are_read(small: Small, small_images: Tensor) -> None:
    source = taken(small("cnn"), RECIPES["8 bits"], small_images)
    again = zip_of(entries(write("packed", source)), zipfile.ZIP_STORED)
    check_same(load(again, source.module), source.compressed.module, small_images, signs=False)


CHANNELS = Recipe(PruneSpec("channels", sparsity=0.5), QuantizeSpec(weight_bits=6))


def smaller(model: nn.Module, images: Tensor, card: ModelCard = SMALL_CARD) -> ArtifactSource:
    """Without half of the channels and heads that can go."""
    module, _ = fold_batch_norm(model, card.input_shape)
    small = shrink(plan(module, images[:0], order="magnitude"), 0.5).module
    weights = compress(small, replace(CHANNELS, prune=PruneSpec()))
    return ArtifactSource(card, small, replace(weights, recipe=CHANNELS), images)


@pytest.mark.parametrize("kind", ["safetensors", "packed"])
def test_a_smaller_network_comes_back(small: Small, small_images: Tensor, kind: str) -> None:
    without_bias = nn.Sequential(nn.Conv2d(1, 12, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    for fresh in (without_bias, small("encoder")):
        before = copy.deepcopy(values(fresh))
        source = smaller(fresh, small_images)
        zipped = write(kind, source)
        found = load(zipped, fresh, SMALL_SHAPE)
        check_same(found, source.compressed.module, small_images, signs=kind == "safetensors")
        assert values(fresh).keys() == before.keys()
        assert all(torch.equal(value, before[key]) for key, value in values(fresh).items())
        with pytest.raises(InputError, match="without some of its channels: give the shape of one input too"):
            load(zipped, fresh)
        with pytest.raises(InputError, match="does not fit this model"):
            load(zipped, small("cnn"), SMALL_SHAPE)


# Model card


def test_a_card_says_what_was_measured_and_how_to_load_it(resnet: LoadedModel) -> None:
    recipe = RECIPES["8 bits and activations"]
    result = make_result(recipe, notes=("a note of the loader",))
    source = taken(resnet.module, recipe, torch.zeros(3, 1, 28, 28), resnet.card, result)
    card = entries(write("safetensors", source))[CARD_FILE].decode()
    summary = summarise(result)
    for name in ("accuracy", "drop", "file_size", "latency", "latency_ratio", "memory"):
        assert summary.text(name) in card
    for words in (
        recipe.describe(),
        resnet.card.licence,
        summary.environment,
        "10,000 bundled images",
        "3 calibration images",
        "does not round its activations",
        "a note of the loader",
        "`model.safetensors`",
        "not how fast",
    ):
        assert words in card
    code = card.split("```python\n")[1].split("\n```")[0]
    assert len(code.splitlines()) == 5


def test_the_lines_in_the_card_run(
    resnet: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = taken(resnet.module, RECIPES["4 bits pruned"], torch.zeros(1, 1, 28, 28), resnet.card)
    monkeypatch.chdir(tmp_path)
    found = run_card(write("packed", source), tmp_path)
    check_same(found, source.compressed.module, torch.ones(1, 1, 28, 28), signs=False)


def run_card(zipped: bytes, folder: Path, **given: object) -> nn.Module:
    """What the card's own lines give, with the zip in a folder."""
    (folder / "model.zip").write_bytes(zipped)
    code = entries(zipped)[CARD_FILE].decode().split("```python\n")[1].split("\n```")[0]
    found = {**given}
    exec(code, found)
    module = found["module"]
    assert isinstance(module, nn.Module)
    return module


def test_the_lines_in_the_card_run_for_a_smaller_network_and_for_a_module_of_one_s_own(
    small: Small, small_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_model("fashion-mlp")
    listed = smaller(loaded.module, torch.ones(1, 1, 28, 28), loaded.card)
    found = run_card(write("packed", listed), tmp_path)
    check_same(found, listed.compressed.module, torch.ones(1, 1, 28, 28), signs=False)
    compared = opened(NetworkRef("model.zip")).network.module  # as one of two files
    assert compared is not None
    check_same(compared, listed.compressed.module, torch.ones(1, 1, 28, 28), signs=False)
    own = own_model(small("auxiliary"), SMALL_SHAPE)
    network = open_model(own).module
    for source in (
        smaller(network, small_images, own.card),
        taken(network, RECIPES["8 bits"], small_images, own.card),
    ):
        found = run_card(write("packed", source), tmp_path, module=small("auxiliary"))
        check_same(found, source.compressed.module, small_images, signs=False)
        with pytest.raises(InputError, match=r"weights alone, of .*save an .onnx or .xml file"):
            opened(NetworkRef("model.zip"))  # whose module is not at hand
    older = taken(own.module, RECIPES["8 bits"], small_images, own.card)  # with what never runs
    found = run_card(write("packed", older), tmp_path, module=small("auxiliary"))
    assert torch.equal(found(small_images), older.compressed.module(small_images))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_lines_in_the_card_run_for_a_module_of_torch_compile(
    small: Small, small_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = torch.compile(small("cnn"))
    own = own_model(given, SMALL_SHAPE)  # type: ignore[arg-type]
    source = taken(open_model(own).module, RECIPES["8 bits"], small_images, own.card)
    found = run_card(write("packed", source), tmp_path, module=given)
    check_same(found, source.compressed.module, small_images, signs=False)


def test_a_card_without_a_result_claims_nothing(small: Small, small_images: Tensor) -> None:
    card = entries(write("packed", taken(small("cnn"), RECIPES["half"], small_images)))[CARD_FILE].decode()
    assert "Not measured." in card
    assert "Environment" not in card


def test_a_card_says_what_the_numbers_do_not_as_a_report_does(small: Small, small_images: Tensor) -> None:
    card = model_card(taken(small("cnn"), RECIPES["half"], small_images), {}, "")
    assert all(f"\n- {line}\n" in card for line in NOT_SAID)


def test_a_card_says_that_batch_norm_is_folded_where_none_is_left(small: Small, small_images: Tensor) -> None:
    folded = taken(small("cnn"), RECIPES["half"], small_images)
    assert "; batch norm folded, nothing trained." in model_card(folded, {}, "")
    first = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    left = model_card(taken(first, RECIPES["half"], small_images), {}, "")
    assert "; nothing trained." in left
    assert "batch norm folded" not in left


def test_a_card_says_what_stood_in_for_the_sparse_kernels(resnet: LoadedModel) -> None:
    result = make_result(RECIPES["pruned"], engine="sparse")
    layers = tuple(replace(one, skips_zeros=True) for one in result.execution.layers)
    result = remade(result, execution=Execution(layers, (), "no compiler"))
    source = taken(resnet.module, RECIPES["pruned"], torch.zeros(1, 1, 28, 28), resnet.card, result)
    assert "in f32 (torch CSR)" in model_card(source, {}, "")


def test_a_card_of_images_without_labels_speaks_of_agreement(resnet: LoadedModel) -> None:
    result = make_result(RECIPES["pruned"], labelled=False, noisy=True, other_machine=True)
    card = model_card(
        taken(resnet.module, RECIPES["pruned"], torch.zeros(1, 1, 28, 28), resnet.card, result), {}, ""
    )
    assert "| agreement with the uncompressed model |" in card
    assert "| agreement lost |" in card
    assert "| accuracy |" not in card
    kinds = {badge.kind for badge in summarise(result).badges}
    assert {kind for kind in BadgeKind if f"**{kind.label}**" in card} == kinds
    assert "**other environment**" in card
    assert "**noisy**" in card


def test_a_card_counts_weights_against_those_of_the_uncompressed_model(resnet: LoadedModel) -> None:
    result = make_result(RECIPES["pruned"])
    source = taken(resnet.module, RECIPES["pruned"], torch.zeros(1, 1, 28, 28), resnet.card, result)
    own = sum(weight.values.numel() for weight in source.compressed.weights.values())
    for elements in (own, own + 1_000):
        size = replace(result.inspection.size, elements=elements)
        counted = replace(result, inspection=replace(result.inspection, size=size))
        card = model_card(replace(source, result=counted), {}, "")
        more = f"; the uncompressed model has {elements:,}" if elements > own else ""
        assert f" of {own:,} weights are not zero{more}\n" in card


def test_the_figures_of_another_recipe_are_refused(resnet: LoadedModel) -> None:
    result = make_result(RECIPES["pruned"])
    with pytest.raises(InputError, match="give the result of this very model"):
        taken(resnet.module, RECIPES["8 bits"], torch.zeros(1, 1, 28, 28), resnet.card, result)


def test_kinds(small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    source = taken(small("cnn"), Recipe(), small_images)
    with pytest.raises(InputError, match="unknown kind of file 'gguf': use one of safetensors, packed"):
        write("gguf", source)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UnavailableError, match=r"onnxscript and onnxruntime .*pip install 'paretoscope\[onnx\]'"
    ):
        write("onnx", source)
    with pytest.raises(UnavailableError, match="pip install openvino"):
        write("openvino", source)
