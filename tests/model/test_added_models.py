"""A user's own weights file becomes a model of this machine's, and goes again."""

import importlib
import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from factories import make_result, recipe
from torch import Tensor

from optimizer.analysis import stored
from optimizer.cli.main import main
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.model import catalogue
from optimizer.model.added import architectures, cards, files, tensors
from optimizer.model.added.cards import Choices, Examined
from optimizer.model.added.limits import refusal
from optimizer.model.cifar_resnet import CifarResNet
from optimizer.model.layers import walk
from optimizer.model.preprocessing import IMAGENET
from optimizer.records import Request
from optimizer.store import keys
from optimizer.store.keys import request_key
from optimizer.store.results import Store

REAL = Path(__file__).resolve().parents[3] / "shared/data/models"


@pytest.fixture(scope="module")
def network() -> CifarResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return CifarResNet(20, classes=4).eval()


@pytest.fixture
def checkpoint(network: CifarResNet, tmp_path: Path) -> Path:
    """As a training script leaves it: wrapped twice, beside other things."""
    path = tmp_path / "my net (best).pt"
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 7, "optimizer": {"state": {}}}, path)
    return path


@pytest.fixture
def about(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Examined:
    in_this_process(monkeypatch)
    return files.examine(checkpoint, "cifar-resnet20")


def in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Reading without its limits, and without the second that a process takes to begin."""

    def read(reader: str, file: Path, name: str, target: str, external: bool) -> dict[str, object]:
        return tensors.rewrite(file, Path(target))

    patch.setattr(files, "read_limited", read)


Examine = Callable[..., Examined]


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """``examine(content, architecture)``: what is said of a checkpoint with that content."""
    in_this_process(monkeypatch)

    def of(content: object, named: str = "", **how: bool) -> Examined:
        torch.save(content, tmp_path / "net.pt", **how)
        return files.examine(tmp_path / "net.pt", named)

    return of


def test_a_text_is_no_checkpoint_and_half_of_one_is_damaged(checkpoint: Path, tmp_path: Path) -> None:
    whole, cut, text = checkpoint.read_bytes(), tmp_path / "cut.pt", tmp_path / "text.pt"
    text.write_bytes(b"hello, these are notes")
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="it is no checkpoint as torch.save writes them: save the weights"):
        tensors.rewrite(text, tmp_path / "none")
    with pytest.raises(RuntimeError) as raised:  # torch's own
        tensors.rewrite(cut, tmp_path / "none")
    assert refusal(raised.value).startswith("it is damaged")


@pytest.mark.slow
def test_a_checkpoint_comes_in_is_listed_answers_as_before_and_goes(
    checkpoint: Path, network: CifarResNet, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["add", "mine", "--checkpoint", str(checkpoint), "--architecture", "cifar-resnet20"]
    assert main([*command, "--input-shape", "3x24x32", "--mean", "0,0,0.5"]) == 0
    said = capsys.readouterr().out
    assert "4, without names" in said
    assert main(["models", "--source", "added", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["classes"], listed["input_shape"]) == ("mine", 4, [3, 24, 32])
    assert listed["parameters"] == sum(one.numel() for one in network.parameters())
    loaded = catalogue.load("mine")
    images = torch.rand(3, 3, 24, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), network(images))
    assert not checkpoint.samefile(cards.content_path(cards.added_model("mine").file))
    assert main(["remove", "mine"]) == 0
    assert not list(cards.folder().iterdir())
    assert main(["remove", "mine"]) == 2


def test_one_content_is_kept_once_and_its_keys_follow_it(about: Examined, checkpoint: Path) -> None:
    """A kept file is gone with its last card; another of the same content is looked into then."""
    first = catalogue.add(about, Choices("one"))
    key = request_key(Request("one"))
    second = catalogue.add(about, Choices("two"))
    assert first.file == second.file
    catalogue.remove("two")
    assert catalogue.card("one").ready
    catalogue.remove("one")
    catalogue.add(files.examine(checkpoint, "cifar-resnet20"), Choices("one"))
    assert request_key(Request("one")) == key
    catalogue.remove("one")
    other = Choices("one", preprocessing=IMAGENET)
    catalogue.add(files.examine(checkpoint, "cifar-resnet20"), other)
    assert request_key(Request("one")) != key


def test_what_is_said_to_be_no_classifier_has_keys_of_its_own(about: Examined, checkpoint: Path) -> None:
    """Its outputs are compared, where a classifier's accuracy is measured: neither is the other's result."""
    catalogue.add(about, Choices("one"))
    key = request_key(Request("one"))
    catalogue.remove("one")
    catalogue.add(files.examine(checkpoint, "cifar-resnet20"), Choices("one", classifier=False))
    assert request_key(Request("one")) != key


def test_what_is_said_to_be_no_classifier_opens_with_all_its_outputs(
    about: Examined, network: CifarResNet
) -> None:
    catalogue.add(about, Choices("one", classifier=False))
    loaded = catalogue.load("one")
    assert loaded.card.classes == 0
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), network(images))


def test_a_classifier_s_version_stays_what_it_was() -> None:
    """Results of releases before this one are found under it."""
    model = cards.AddedModel("one", "onnx", f"{'0' * 20}.onnx", IMAGENET, classes=4)
    assert model.version == "416ca0aa4f5b117b7e4c"


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", ".hidden", "a b", "x" * 65, "-x", "\u202ex", "a\n"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, about: Examined) -> None:
    for act in (lambda: catalogue.add(about, Choices(name or " ")), lambda: catalogue.remove(name)):
        with pytest.raises(InputError, match="can't name a model"):
            act()
    assert cards.version_of(name) == ""


def test_results_of_a_network_that_had_the_name_before_are_left_out(
    about: Examined, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "one.json"

    def keep(sparsity: float) -> None:
        made = make_result(recipe(sparsity), model="one")
        stored.put(Store(), replace(made, weights=keys.short_version("one")))

    def exported() -> list[float]:
        assert main(["export", "one", "--format", "json", "--output", str(table)]) == 0
        return [row["sparsity"] for row in json.loads(table.read_text())["rows"]]

    catalogue.add(about, Choices("one"))
    keep(0.3)
    assert exported() == [0.3]
    catalogue.remove("one")
    again = files.examine(checkpoint, "cifar-resnet20")
    catalogue.add(again, Choices("one", preprocessing=IMAGENET))
    keep(0.6)
    capsys.readouterr()
    assert exported() == [0.6]
    assert "1 result of another network that had this name before left out" in capsys.readouterr().err


def test_a_name_that_another_model_has_is_refused(about: Examined) -> None:
    for name in ("resnet18", "Fashion-ResNet"):
        with pytest.raises(InputError, match="already"):
            catalogue.add(about, Choices(name))
    with pytest.raises(InputError, match="no model 'resnet18' was added"):
        catalogue.remove("resnet18")


def test_class_names_have_to_be_as_many_as_classes(about: Examined) -> None:
    with pytest.raises(InputError, match="3 class names were given, and the network has 4"):
        catalogue.add(about, Choices("mine", class_names=("a", "b", "c")))
    catalogue.add(about, Choices("mine", class_names=("a", "b", "c", "d")))
    assert catalogue.load("mine").classes == ("a", "b", "c", "d")


def test_a_damaged_card_hides_no_other_and_can_be_removed(about: Examined) -> None:
    catalogue.add(about, Choices("mine"))
    (cards.folder() / "broken.json").write_text("{")
    assert "mine" in catalogue.catalogue()
    assert any("paretoscope remove broken" in problem for problem in catalogue.problems())
    catalogue.remove("broken")
    assert not catalogue.problems()
    cards.content_path(cards.added_model("mine").file).write_bytes(b"damaged")
    with pytest.raises(InputError, match="of mine can't be read"):
        catalogue.load("mine")


def test_what_was_looked_into_and_not_added_goes(about: Examined, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cards.content_path(about.file).is_file()
    monkeypatch.setattr(files, "UNUSED_SECONDS", -1)
    files.forget_unused()
    assert not cards.content_path(about.file).exists()


# Architectures


Change = Callable[[dict[str, Tensor]], None]


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("resnet18", 5),
        ("mobilenet_v3_small", 37),
        ("squeezenet1_1", 2),
        ("vit_b_32", 10),
        ("densenet121", 1000),
    ],
)
def test_the_class_count_is_read_from_the_weights(name: str, classes: int) -> None:
    with architectures._Unfilled():
        weights = shapes(torchvision.models.get_model(name, num_classes=classes))
    fit = architectures.fit_of(name, weights)
    assert fit.exact
    assert fit.classes == classes
    (found,) = architectures.fitting(weights, name)
    assert found == fit


@pytest.mark.slow
def test_of_many_architectures_few_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with architectures._Unfilled():
        weights = shapes(torchvision.models.resnet50(num_classes=5))
    tried: list[str] = []
    shapes_of = architectures._shapes
    monkeypatch.setattr(
        architectures, "_shapes", lambda name, *more: tried.append(name) or shapes_of(name, *more)
    )
    (fit,) = architectures.fitting(weights, "best")
    assert (fit.architecture, fit.classes) == ("resnet50", 5)
    assert len({*tried} - architectures.OWN.keys()) <= 8


def test_what_only_runs_in_training_may_be_missing() -> None:
    with architectures._Unfilled():
        weights = shapes(architectures.build("googlenet", 8))
    bare = {name: shape for name, shape in weights.items() if not name.startswith("aux")}
    for given in (weights, bare):
        assert architectures.fit_of("googlenet", given).exact
        with architectures._Unfilled():
            assert shapes(architectures.build("googlenet", 8, given)) == given


def test_a_near_miss_is_explained(about: Examined, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: architectures.OWN[name] for name in ("cifar-resnet20", "cifar-resnet32", "fashion-mlp")}
    monkeypatch.setattr(architectures, "architectures", lambda: known)
    with pytest.raises(
        InputError, match=r"fit cifar-resnet32: 6\d tensors missing .*They fit cifar-resnet20"
    ):
        catalogue.add(about, Choices("mine", architecture="cifar-resnet32"))
    weights = shapes(CifarResNet(20))
    weights["layer1.0.conv1.weight"] = (16, 16, 5, 5)
    weights["more.weight"] = weights.pop("bn1.weight")
    nearest = architectures.fitting(weights)[0]
    assert nearest.architecture == "cifar-resnet20"
    assert nearest.describe() == (
        "1 tensor missing (bn1.weight); 1 tensor that it has not (more.weight); 1 tensor of another shape "
        "(layer1.0.conv1.weight is [16, 16, 5, 5], not [16, 16, 3, 3])"
    )


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [("stem", False), ("conv1", True)],
    ids=["nothing in common", "a tensor in common"],
)
def test_what_shares_no_tensor_is_not_near_and_onnx_is_named(
    layer: str, nearest: bool, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {name: architectures.OWN[name] for name in ("cifar-resnet20", "fashion-mlp")}
    monkeypatch.setattr(architectures, "architectures", lambda: known)
    weights = {
        f"{layer}.weight": CifarResNet(20).state_dict()["conv1.weight"],
        "bn1.num_batches_tracked": torch.tensor(3),
        "tail.weight": torch.zeros(7, 16),
    }
    about = examine(weights)
    assert "Export the network to ONNX and add that file" in about.problem
    assert ("Nearest are cifar-resnet20" in about.problem) == nearest
    assert "fashion-mlp" not in about.problem
    with pytest.raises(InputError, match="don't fit fashion-mlp"):
        catalogue.add(about, Choices("mine", architecture="fashion-mlp"))


def test_an_unknown_architecture_lists_the_close_names() -> None:
    with pytest.raises(InputError, match=r"unknown architecture 'resnet81'.*resnet1?\d"):
        architectures.build("resnet81", 10)
    if not architectures.has_timm():
        with pytest.raises(UnavailableError, match=r"paretoscope\[timm\]"):
            architectures.build("timm/resnet18", 10)


NETWORKS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        pool = nn.AdaptiveAvgPool2d(1)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Flatten(), nn.Linear(4, classes))

    def forward(self, images):
        return self.net(images)

class Masked(Net):
    def __init__(self, classes):
        super().__init__(classes)
        nn.utils.parametrizations.weight_norm(self.net[0])
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3))

    def forward(self, images):
        return super().forward(images) + self.mask.softmax(1)[0, 0]

class Odd(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.add_module(f"head{classes}", nn.Linear(4, classes))
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Of an architecture that a package adds, whose names all begin with ``net.``."""
    (tmp_path / "nets_of_a_package.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, net="nets_of_a_package:Net")
    return importlib.import_module("nets_of_a_package").Net(5).eval()


def install(patch: pytest.MonkeyPatch, **points: str) -> None:
    """Entry points of the group, as pip leaves them."""
    found = [EntryPoint(name, value, architectures.GROUP) for name, value in points.items()]
    patch.setattr(architectures, "entry_points", lambda group: found)
    architectures._shapes.cache_clear()


@pytest.mark.parametrize("before", ["", "module.", "model.module."])
@pytest.mark.parametrize("named", ["", "net"])
def test_a_prefix_may_be_the_architecture_s_own(
    before: str, named: str, net: torch.nn.Module, examine: Examine
) -> None:
    about = examine({f"{before}{name}": value for name, value in net.state_dict().items()}, named)
    assert about.architecture == "net"
    catalogue.add(about, Choices("mine"))
    loaded, images = catalogue.load("mine"), torch.rand(2, 3, 32, 32)
    assert loaded.card.classes == 5
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), net(images))


@pytest.mark.parametrize("named", ["", "net"])
def test_what_training_keeps_beside_its_network_is_left_out_and_said(
    named: str, net: torch.nn.Module, examine: Examine
) -> None:
    """As Lightning does, whose module has the network and the weights of classes in its loss."""
    held = {f"model.{name}": value for name, value in net.state_dict().items()}
    held |= {"criterion.weight": torch.ones(5), "val_acc.total": torch.tensor(3)}
    about = examine({"state_dict": held, "thresholds": torch.ones(5)}, named)
    assert about.architecture == "net"
    assert [words for what, words in about.facts if what == "left out"] == [
        "thresholds, beside the weights under state_dict",
        "criterion.weight, val_acc.total, of the training: the network's names begin with model.net.",
    ]
    loaded, images = files.opened(about, Choices()), torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), net(images))


def test_computed_weights_are_layers_and_a_mask_may_be_infinite(
    net: torch.nn.Module, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, masked="nets_of_a_package:Masked")
    masked = importlib.import_module("nets_of_a_package").Masked(5).eval()
    loaded = files.opened(examine(masked.state_dict(), "masked"), Choices())
    images = torch.rand(2, 3, 32, 32)
    assert [layer.name for layer in walk(loaded.module)] == ["net.0.weight", "net.3.weight"]
    with torch.inference_mode():
        assert torch.allclose(loaded.module(images), masked(images))
    masked.state_dict()["net.3.bias"][0] = -torch.inf
    about = examine(masked.state_dict(), "masked")
    with pytest.raises(InputError, match=r"net\.3\.bias has values that are not finite"):
        catalogue.add(about, Choices("other"))


def test_a_package_s_architecture_that_fails_is_named_and_the_others_are_tried(
    net: torch.nn.Module, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = {"odd": "nets_of_a_package:Odd", "net": "nets_of_a_package:Net"}
    install(monkeypatch, ada="no_such_module:Net", eve="math:factorial", **networks)
    about = examine(net.state_dict())
    assert about.architecture == "net"
    left_out = [words for what, words in about.facts if what == "left out"]
    assert [words.partition(" can't be built")[0] for words in left_out] == [
        "architecture ada",
        "architecture eve",
        "the names of odd's tensors change with the number of classes",
    ]
    with pytest.raises(WorkError, match="architecture ada can't be built"):
        examine(net.state_dict(), "ada")


@pytest.mark.parametrize("before", ["", "model."])
def test_averaged_weights_are_found(before: str, network: CifarResNet, examine: Examine) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network)
    weights = {f"{before}{name}": value for name, value in averaged.state_dict().items()}
    assert examine(weights, "cifar-resnet20").architecture == "cifar-resnet20"


def test_options_and_numbers_beside_the_weights_are_no_code(network: CifarResNet, examine: Examine) -> None:
    said = {"args": Namespace(lr=0.1, nested=Namespace()), "best": np.float64(0.9), "epoch": np.int64(3)}
    for as_zip in (True, False):
        content = {"model": network.state_dict(), **said}
        about = examine(content, "cifar-resnet20", _use_new_zipfile_serialization=as_zip)
        assert about.architecture == "cifar-resnet20"


def test_tensors_may_lie_in_one_another(tmp_path: Path) -> None:
    """As queries, keys and values that are parts of one projection."""
    joint = torch.arange(12.0).reshape(6, 2)
    path, target = tmp_path / "net.pt", tmp_path / "target.safetensors"
    torch.save({"joint": joint, "query": joint[:2], "key": joint[2:4]}, path)
    tensors.rewrite(path, target)
    kept = safetensors.torch.load_file(target)
    assert torch.equal(kept["joint"], joint)
    assert torch.equal(kept["query"], joint[:2])
    assert torch.equal(kept["key"], joint[2:4])


def test_of_two_models_in_a_file_the_other_is_named(network: CifarResNet, examine: Examine) -> None:
    weights = network.state_dict()
    content = {"model_ema": {"module": weights}, "model": weights, "params": {"width": 3}}
    about = examine(content, "cifar-resnet20")
    (words,) = [words for what, words in about.facts if what == "left out"]
    assert words.startswith("other weights, under model_ema: those under model are taken")


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
def test_a_checkpoint_as_people_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["add", "real", "--checkpoint", str(REAL / "cifar-resnet20.pt")]) == 0
    assert "cifar-resnet20" in capsys.readouterr().out
    assert catalogue.card("real").classes == 10
