"""Where models come from: the bundled files, torchvision's registry."""

import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from optimizer.errors import InputError
from optimizer.model import catalogue
from optimizer.model.architectures import ARCHITECTURES
from optimizer.model.sources import bundled
from optimizer.system import paths

WHOLE = paths.assets_dir()


def bundled_model(name: str) -> catalogue.LoadedModel:
    if not (paths.assets_dir() / f"{name}.json").exists():
        pytest.skip(f"{name} is not trained yet: run tools/train_bundled.py {name}")
    return catalogue.load(name)


# Bundled


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a test's own in the place of the bundled models'."""
    monkeypatch.setattr(bundled, "assets_dir", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_bundled_model_is_what_its_card_says(name: str) -> None:
    loaded = bundled_model(name)
    assert loaded.card == catalogue.card(name)
    assert loaded.card.source == "bundled"
    assert loaded.card.ready
    assert loaded.card.bundled_images
    assert sum(parameter.numel() for parameter in loaded.module.parameters()) == loaded.card.parameters
    assert not any(part.training for part in loaded.module.modules())
    x = loaded.preprocess(Image.new("L", (28, 28), 255))
    assert x.shape == loaded.card.input_shape
    assert x.dtype == torch.float32
    assert loaded.module(x[None]).shape == (1, loaded.card.classes)
    assert len(loaded.classes) == loaded.card.classes


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.9999])
def test_a_truncated_weights_file_is_refused_in_words(kept: float, assets: Path) -> None:
    whole = (WHOLE / "fashion-resnet.safetensors").read_bytes()
    shutil.copy(WHOLE / "fashion-resnet.json", assets)
    (assets / "fashion-resnet.safetensors").write_bytes(whole[: int(kept * len(whole))])
    assert list(catalogue.catalogue())[:2] == ["fashion-resnet", "alexnet"]
    with pytest.raises(
        InputError, match=r"fashion-resnet\.safetensors of fashion-resnet is damaged .*install"
    ):
        catalogue.load("fashion-resnet")


def test_weights_of_another_architecture_are_refused(assets: Path) -> None:
    description = (WHOLE / "fashion-resnet.json").read_text()
    (assets / "fashion-mlp.json").write_text(description.replace("fashion-resnet", "fashion-mlp"))
    shutil.copy(WHOLE / "fashion-resnet.safetensors", assets / "fashion-mlp.safetensors")
    with pytest.raises(InputError, match="damaged or of another model"):
        catalogue.load("fashion-mlp")


def test_a_missing_weights_file_is_not_ready(assets: Path) -> None:
    shutil.copy(WHOLE / "fashion-resnet.json", assets)
    assert not catalogue.card("fashion-resnet").ready
    with pytest.raises(InputError, match=r"fashion-resnet\.safetensors .*No such file"):
        catalogue.load("fashion-resnet")


def test_a_damaged_card_is_a_note_and_the_others_stay(assets: Path) -> None:
    (assets / "fashion-resnet.json").write_text("{")
    assert "resnet18" in catalogue.catalogue()
    assert any("source bundled" in problem for problem in catalogue.problems())
    with pytest.raises(
        InputError, match=r"unknown model 'fashion-resnet'.*fashion-resnet\.json can't be read"
    ):
        catalogue.load("fashion-resnet")


def test_the_version_follows_the_weights(assets: Path) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(WHOLE / f"fashion-resnet.{suffix}", assets)
    before = catalogue.card("fashion-resnet").version
    (assets / "fashion-resnet.safetensors").write_bytes(b"other")
    assert catalogue.card("fashion-resnet").version not in ("", before)


def test_loading_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    catalogue.load("fashion-resnet")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_preprocessing_of_a_photograph_keeps_its_middle() -> None:
    image = Image.new("L", (300, 100), 0)
    image.paste(255, (100, 0, 200, 100))
    assert torch.equal(bundled.GreyTransform(28, 0.0, 1.0)(image), torch.ones(1, 28, 28))


# The catalogue


def test_an_unknown_model_lists_the_close_names() -> None:
    with pytest.raises(
        InputError, match=r"unknown model 'resnet81': use one of resnet\d.*paretoscope models"
    ):
        catalogue.load("resnet81")
    with pytest.raises(InputError, match="use one of fashion-"):
        catalogue.card("☃")


def test_torchvision_s_classifiers_are_listed_with_what_is_published() -> None:
    known = catalogue.catalogue()
    card = known["resnet18"]
    assert (card.published_top1, card.parameters, card.classes) == (0.69758, 11_689_512, 1000)
    assert card.download_bytes == pytest.approx(46_830_571, rel=1e-4)  # of the file as it is served
    assert card.description.startswith("ResNet-18 from Deep Residual Learning for Image Recognition")
    assert known["resnet50"].published_top1 != known["resnet50.IMAGENET1K_V1"].published_top1
    assert known["inception_v3"].input_shape == (3, 299, 299)
    listed = {name.split(".")[0] for name, card in known.items() if card.source == "torchvision"}
    assert listed == set(torchvision.models.list_models(module=torchvision.models))
    assert "vgg16.IMAGENET1K_FEATURES" not in known  # a backbone, not a classifier
    for name, card in known.items():
        if card.source == "torchvision":
            assert card.published_top1 is not None, name
            assert 0.5 < card.published_top1 < 1, name
            assert "<" not in card.description, name
            assert card.version, name


def test_listing_touches_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert not catalogue.card("resnet18").ready
    assert not list(tmp_path.iterdir())


def test_a_bundled_model_has_nothing_to_download() -> None:
    with pytest.raises(InputError, match="nothing to download"):
        catalogue.download("fashion-resnet")
