"""Files that are taken away, against the torch module that they were made of; and files that are refused."""

import copy
import importlib.util
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from factories import make_result
from pairs import pairs
from torch import Tensor, nn

import optimizer
from optimizer.analysis.summary import summarise
from optimizer.compression.apply import compress
from optimizer.compression.packing import packed_bytes
from optimizer.data.loading import load_images
from optimizer.engine import onnx_export
from optimizer.engine import openvino as openvino_engine
from optimizer.engine import torch as torch_engine
from optimizer.errors import InputError, UnavailableError
from optimizer.export.artifacts import CARD_FILE, RECIPE_FILE, ArtifactSource, load, write
from optimizer.export.artifacts.card import model_card
from optimizer.measurement.size import size_of
from optimizer.model.catalogue import LoadedModel
from optimizer.model.catalogue import load as load_model
from optimizer.model.layers import fold_batch_norm, uses, walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, ModelCard, Result

Small = Callable[[str], nn.Module]
Once = Callable[[str, ArtifactSource], ArtifactSource]

RECIPES = {
    "uncompressed": Recipe(),
    "pruned": Recipe(PruneSpec(sparsity=0.5)),
    "half": Recipe(PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=16)),
    "8 bits": Recipe(quantize=QuantizeSpec(weight_bits=8)),
    "8 bits asymmetric": Recipe(quantize=QuantizeSpec(weight_bits=8, symmetric=False, range="mse")),
    "4 bits pruned": Recipe(PruneSpec(sparsity=0.8), QuantizeSpec(weight_bits=4)),
    "3 bits per tensor": Recipe(
        PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=3, symmetric=False, granularity="tensor")
    ),
    "8 bits and activations": Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)),
    "8 bits and 4-bit activations": Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=4)),
    "activations": Recipe(quantize=QuantizeSpec(activation_bits=8)),
}
SMALL_CARD = ModelCard("small", "test", "A small model.", None, (1, 8, 8), 10, licence="MIT")

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are needed to write an ONNX file and run it",
)


def taken(
    model: nn.Module,
    recipe: Recipe,
    images: Tensor,
    card: ModelCard = SMALL_CARD,
    result: Result | None = None,
) -> ArtifactSource:
    module, _ = fold_batch_norm(model)
    return ArtifactSource(card, module, compress(module, recipe), images, 1, result)


def mixed(model: nn.Module, images: Tensor) -> ArtifactSource:
    """Layers of 4, 6, 16 and 32 bits in turn, and biases that rounding changed."""
    whole = taken(model, Recipe(), images)
    module, weights = copy.deepcopy(whole.compressed.module), {}
    for index, layer in enumerate(walk(module)):
        spec = QuantizeSpec(weight_bits=(4, 6, 16, 32)[index % 4], symmetric=bool(index % 2))
        weights[layer.name] = compress(module, Recipe(quantize=spec)).weights[layer.name]
    with torch.no_grad():
        for layer in walk(module):
            layer.weight.copy_(weights[layer.name].values)
            if layer.bias is not None:
                layer.bias.add_(0.1)
    return replace(whole, compressed=replace(whole.compressed, module=module, weights=weights))


def entries(zipped: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def values(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def check_same(found: nn.Module, expected: nn.Module, images: Tensor, signs: bool) -> None:
    """Bit for bit; without ``signs`` 0.0 may stand for -0.0."""
    assert values(found).keys() == values(expected).keys()
    for name, value in values(expected).items():
        other = values(found)[name]
        assert other.dtype == value.dtype
        assert torch.equal(other, value), name
        if signs:
            assert torch.equal(torch.signbit(other), torch.signbit(value)), name
    with torch.inference_mode():
        assert torch.equal(found(images), expected(images))
    assert not found.training


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
    for written in (path, str(path), path.read_bytes()):
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


@pytest.mark.parametrize("name", ["fashion-resnet", "fashion-vit"])
@pytest.mark.parametrize("kind", ["safetensors", "packed"])
def test_a_bundled_model_comes_back(kind: str, name: str) -> None:
    loaded = load_model(name)
    images = torch.randn(4, *loaded.card.input_shape, generator=torch.Generator().manual_seed(0))
    for recipe in (RECIPES["4 bits pruned"], RECIPES["half"], RECIPES["8 bits asymmetric"]):
        source = taken(loaded.module, recipe, images, loaded.card)
        found = load(write(kind, source), fold_batch_norm(loaded.module)[0])
        check_same(found, source.compressed.module, images, signs=kind == "safetensors")


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
    zipped = write("packed", source)
    (tmp_path / "model.zip").write_bytes(zipped)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(entries(zipped)[CARD_FILE].decode().split("```python\n")[1].split("\n```")[0], found)
    check_same(found["module"], source.compressed.module, torch.ones(1, 1, 28, 28), signs=False)


def test_a_card_without_a_result_claims_nothing(small: Small, small_images: Tensor) -> None:
    card = entries(write("packed", taken(small("cnn"), RECIPES["half"], small_images)))[CARD_FILE].decode()
    assert "Not measured." in card
    assert "Environment" not in card


def test_a_card_of_images_without_labels_speaks_of_agreement(resnet: LoadedModel) -> None:
    result = make_result(RECIPES["pruned"], labelled=False, noisy=True, other_machine=True)
    card = model_card(
        taken(resnet.module, RECIPES["pruned"], torch.zeros(1, 1, 28, 28), resnet.card, result), (), ""
    )
    assert "| agreement with the uncompressed model |" in card
    assert "| accuracy |" not in card
    for badge in ("simulated", "noisy", "other machine"):
        assert (f"**{badge}**" in card) == any(given.kind == badge for given in summarise(result).badges)
    assert "**noisy**" in card


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


# Files that are refused


@pytest.fixture
def cnn(small: Small) -> nn.Module:
    return fold_batch_norm(small("cnn"))[0]


@pytest.fixture(params=["safetensors", "packed"])
def zipped(request: pytest.FixtureRequest, small: Small, small_images: Tensor) -> bytes:
    return write(request.param, taken(small("cnn"), RECIPES["4 bits pruned"], small_images))


def test_a_cut_zip_is_refused(zipped: bytes, cnn: nn.Module) -> None:
    for length in (0, 1, 21, 100, len(zipped) // 2, len(zipped) - 1):
        with pytest.raises(InputError):
            load(zipped[:length], cnn)


def test_noise_in_a_zip_is_refused_or_changes_nothing(zipped: bytes, cnn: nn.Module) -> None:
    random = np.random.default_rng(0)
    whole = values(load(zipped, cnn))
    for _ in range(150):
        content = bytearray(zipped)
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        try:
            found = values(load(bytes(content), cnn))
        except InputError:
            continue
        assert all(torch.equal(found[name], value) for name, value in whole.items())


def model_of(zipped: bytes) -> tuple[str, bytes]:
    return next((name, content) for name, content in entries(zipped).items() if name.startswith("model"))


def test_noise_in_a_model_is_refused_or_read(zipped: bytes, cnn: nn.Module) -> None:
    """The check sum of the zip is right: whatever the bytes, no other error."""
    random = np.random.default_rng(1)
    name, content = model_of(zipped)
    for index in range(300):
        noisy = bytearray(content)
        at = random.integers(len(noisy) if index % 2 else int.from_bytes(content[:2], "little"))
        noisy[at] ^= 1 << random.integers(8)
        try:
            load(zip_of({**entries(zipped), name: bytes(noisy)}), cnn)
        except InputError:
            continue


def test_another_model_is_refused(zipped: bytes, small: Small) -> None:
    words = "holds 'small' and does not fit this model: it lacks .*fold_batch_norm"
    with pytest.raises(InputError, match=words):
        load(zipped, small("encoder"))
    with pytest.raises(InputError, match="it lacks depthwise.1.bias, .* and 12 more"):
        load(zipped, small("cnn"))  # batch norm not folded
    wider, _ = fold_batch_norm(small("cnn"))
    wider.head = nn.Linear(8, 11)
    with pytest.raises(InputError, match=r"head.weight is \[10, 8\].*not \[11, 8\]"):
        load(zipped, wider)
    fewer, _ = fold_batch_norm(small("cnn"))
    fewer.head = nn.Linear(8, 10, bias=False)
    with pytest.raises(InputError, match="it has head.bias, which the model has not"):
        load(zipped, fewer)
    with pytest.raises(InputError, match="more than the .* of this model can have"):
        load(bytes(2**24), nn.Linear(1, 1))


Change = Callable[[dict[str, Any], dict[str, Tensor]], object]


def rewritten(zipped: bytes, change: Change) -> bytes:
    """The zip with other facts and tensors in its model."""
    name, content = model_of(zipped)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["paretoscope"])
    tensors = safetensors.torch.load(content)
    change(facts, tensors)
    model = safetensors.torch.save(tensors, {"paretoscope": json.dumps(facts)})
    return zip_of({**entries(zipped), name: model})


def test_another_version_or_format_is_refused(zipped: bytes, cnn: nn.Module) -> None:
    with pytest.raises(InputError, match="version '2' but '1' is read here: upgrade"):
        load(rewritten(zipped, lambda facts, _: facts.update(version="2")), cnn)
    with pytest.raises(InputError, match="does not say 'paretoscope"):
        load(rewritten(zipped, lambda facts, _: facts.pop("format")), cnn)
    name, content = model_of(zipped)
    tensors = safetensors.torch.load(content)
    for metadata in (None, {"paretoscope": "[1]"}, {"format": "pt"}):
        other = zip_of({**entries(zipped), name: safetensors.torch.save(tensors, metadata)})
        with pytest.raises(InputError, match="does not say 'paretoscope"):
            load(other, cnn)
    for text in ("{", "[" * 100_000, "\x00"):
        other = zip_of({**entries(zipped), name: safetensors.torch.save(tensors, {"paretoscope": text})})
        with pytest.raises(InputError, match="damaged"):
            load(other, cnn)


def test_tensors_that_do_not_fit_are_refused(zipped: bytes, cnn: nn.Module) -> None:
    name = "head.weight"
    packed = "packed" in model_of(zipped)[0]

    def without(tensor: str) -> Change:
        return lambda _, tensors: tensors.pop(tensor)

    def with_(tensor: str, value: Tensor) -> Change:
        return lambda _, tensors: tensors.update({tensor: value})

    def reshaped(*shape: int) -> Change:
        return lambda facts, _: facts["layers"][name].update(shape=shape)

    changes: list[Change] = [
        without(name),
        without("head.bias"),
        without(f"{name}.scale"),
        with_("head.bias", torch.zeros(10, dtype=torch.float64)),
        with_("head.bias", torch.zeros(1, 10)),
        with_(name, torch.zeros(10, 8, dtype=torch.int32)),
        with_(name, torch.zeros(10, 8)),
        with_(f"{name}.scale", torch.ones(8, 1)),
        with_(f"{name}.scale", torch.ones(10, 1, dtype=torch.float64)),
        with_("elsewhere.weight", torch.zeros(1)),
        with_("head.bias.scale", torch.zeros(1)),
        with_(f"{name}.zero_point", torch.zeros(3, dtype=torch.uint8)),
    ]
    if packed:
        changes += [
            lambda facts, _: facts.pop("layers"),
            lambda facts, _: facts.update(layers={}),
            lambda facts, _: facts.update(layers=[1]),
            lambda facts, _: facts["layers"].update({name: {"bits": 4}}),
            reshaped(80, 1),
            reshaped(10, 80_000_000_000),
            reshaped(10, -8),
        ]
    for change in changes:
        with pytest.raises(InputError):
            load(rewritten(zipped, change), cnn)


def test_other_entries_are_refused(zipped: bytes, cnn: nn.Module) -> None:
    files = entries(zipped)
    name, content = model_of(zipped)
    others = [
        {**files, "extra.txt": b""},
        {**files, "model.pt": b"pickle"},
        {name: content},
        {**files, f"../{name}": content},
        {"model.onnx": b"", RECIPE_FILE: b"{}", CARD_FILE: b""},
        {"model.safetensors": content, "model.packed.safetensors": content, RECIPE_FILE: b"{}"},
    ]
    for other in others:
        with pytest.raises(InputError, match="the zip holds .*: use one as it was written"):
            load(zip_of(other), cnn)
    twice = zip_of({**files, name.replace("m", "M", 1): content}).replace(b"Model.", b"model.")
    with pytest.raises(InputError, match="the zip holds"):
        load(twice, cnn)
    many = zip_of({f"{index}": b"" for index in range(1000)})
    with pytest.raises(InputError, match="more entries than"):
        load(many, cnn)


def test_bombs_are_refused_before_they_unpack(zipped: bytes, cnn: nn.Module) -> None:
    files, (name, _) = entries(zipped), model_of(zipped)
    zeros = bytes(64 << 20)
    for entry in (name, RECIPE_FILE, CARD_FILE):
        bomb = zip_of({**files, entry: zeros})
        assert len(bomb) < 1 << 20
        with pytest.raises(InputError, match=f"{entry} would unpack to 67,108,864 bytes"):
            load(bomb, cnn)
    lie = zip_of({**files, name: zeros}).replace(struct.pack("<I", 64 << 20), struct.pack("<I", 1000))
    with pytest.raises(InputError, match="damaged"):
        load(lie, cnn)
    for compression in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with pytest.raises(InputError, match="unusual way"):
            load(zip_of(files, compression), cnn)


def test_a_header_larger_than_the_file_is_refused(zipped: bytes, cnn: nn.Module) -> None:
    files, (name, content) = entries(zipped), model_of(zipped)
    for head in (2**63, len(content) - 7, 9 << 20):
        with pytest.raises(InputError, match="header of the safetensors file"):
            load(zip_of({**files, name: struct.pack("<Q", head) + content[8:]}), cnn)
    for header in (b"[1]", b"{", b"[" * 100_000, b"\xff\xff"):
        with pytest.raises(InputError, match="damaged"):
            load(zip_of({**files, name: struct.pack("<Q", len(header)) + header}), cnn)
    with pytest.raises(InputError):
        load(zip_of({**files, name: b""}), cnn)


def test_a_path_without_a_file_is_refused(cnn: nn.Module, tmp_path: Path) -> None:
    for path in (tmp_path / "none.zip", tmp_path):
        with pytest.raises(InputError, match="can't be read .*: give the path of a zip file"):
            load(path, cnn)


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


@pytest.mark.parametrize("name", ["cnn", "encoder"])
@pytest.mark.parametrize("recipe", ["4 bits pruned", "8 bits and activations"])
def test_openvino_reads_the_graph_that_the_runner_runs(
    small: Small, small_images: Tensor, name: str, recipe: str, tmp_path: Path
) -> None:
    source = taken(small(name), RECIPES[recipe], small_images)
    build = openvino_engine.prepare(source.module, (1, 8, 8))
    runner = build(source.compressed, small_images, threads=1, batch=1)
    found = openvino_logits(write("openvino", source), small_images, tmp_path)
    expected = np.concatenate([runner.infer(image[None]) for image in small_images.numpy()])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    again = openvino_logits(write("openvino", replace(source, build=build)), small_images, tmp_path)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


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
            spans = [by_module[other.module] for other in uses(model) if other.name == layer.name]
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
    assert counts.get("DequantizeLinear", 0) == inputs + layers * recipe.quantize.integer + biases
    assert counts.get("Cast", 0) == layers * (recipe.quantize.weight_bits == 16)


def check_nothing_is_left_out(zipped: bytes) -> None:
    card = entries(zipped)[CARD_FILE].decode()
    assert "kept in float32" not in card
    assert "one image at a time" not in card


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
    assert (counts["DequantizeLinear"], counts["Cast"]) == (2, 1)


@needs_onnx
@pytest.mark.parametrize("name", ["fashion-resnet", "fashion-vit"])
def test_onnx_of_a_bundled_model_predicts_as_torch_does(exported_once: Once, name: str) -> None:
    loaded = load_model(name)
    images = load_images(loaded, DataSpec(limit=500)).evaluation.images
    for recipe in (RECIPES["4 bits pruned"], RECIPES["8 bits and activations"]):
        source = exported_once(name, taken(loaded.module, recipe, images[:64], loaded.card))
        zipped = write("onnx", source)
        expected = torch_engine.build(source.compressed, images[:64], threads=1, batch=1).score(
            images.numpy()
        )
        same = np.mean(onnx_logits(zipped, images).argmax(1) == expected.argmax(1))
        assert same == 1 if recipe.quantize.activation_bits == 32 else same > 0.98
        check_no_folder(entries(zipped))
