"""Studies: made once, kept on disk by content, and thrown away oldest first."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from optimizer import studies
from optimizer.errors import InputError
from optimizer.layers import fold_batch_norm, walk
from optimizer.studies import make, study_of
from optimizer.study import Study

Small = Callable[[str], nn.Module]


def kept(home: Path) -> list[Path]:
    return sorted((home / "studies").glob("*.safetensors"))


def assert_equal(one: Study, other: Study) -> None:
    assert one.effects.keys() == other.effects.keys()
    assert all(torch.equal(effects, other.effects[name]) for name, effects in one.effects.items())
    assert one.alone == other.alone
    assert one.biased == other.biased
    assert one.moments.keys() == other.moments.keys()
    for name, moments in one.moments.items():
        assert torch.equal(moments.covariance, other.moments[name].covariance)
        assert torch.equal(moments.mean, other.moments[name].mean)
        assert moments.shrinkage == other.moments[name].shrinkage


@pytest.fixture
def model(small: Small) -> nn.Module:
    return fold_batch_norm(small("cnn"))[0]


def test_a_study_is_made_once_and_read_back_bit_for_bit(
    model: nn.Module, small_images: Tensor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study_of(model, small_images)
    assert_equal(made, make(model, small_images))
    assert len(kept(home)) == 1
    monkeypatch.setattr(studies, "make", lambda *_: pytest.fail("it was made again"))
    assert_equal(study_of(model, small_images.clone()), made)


def test_other_weights_or_images_are_another_study(
    model: nn.Module, small_images: Tensor, home: Path
) -> None:
    study_of(model, small_images)
    study_of(model, small_images[:20])
    with torch.no_grad():
        next(walk(model)).weight[0] += 1
    study_of(model, small_images)
    assert len(kept(home)) == 3


def test_a_damaged_study_is_made_again(model: nn.Module, small_images: Tensor, home: Path) -> None:
    made = study_of(model, small_images)
    (path,) = kept(home)
    path.write_bytes(path.read_bytes()[:200])
    assert_equal(study_of(model, small_images), made)
    assert_equal(study_of(model, small_images), made)


def test_those_that_were_not_used_for_longest_go_first(
    model: nn.Module, small_images: Tensor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    for age, count in enumerate((20, 24, 28)):
        study_of(model, small_images[:count])
        newest = max(kept(home), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (age, age))
    study_of(model, small_images[:20])  # used again: the second is the oldest now
    size = kept(home)[0].stat().st_size
    monkeypatch.setattr(studies, "KEPT_BYTES", int(3.5 * size))
    study_of(model, small_images[:32])
    assert len(kept(home)) == 3
    made = []
    monkeypatch.setattr(studies, "make", lambda *_: made.append(1) or make(model, small_images[:24]))
    study_of(model, small_images[:20])
    assert not made
    study_of(model, small_images[:24])
    assert made


def test_without_a_folder_to_write_to_a_study_is_made_and_not_kept(
    model: nn.Module, small_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("PARETOSCOPE_HOME", str(file / "home"))
    assert_equal(study_of(model, small_images), make(model, small_images))


def test_every_layer_that_matters_has_an_effect(model: nn.Module, small_images: Tensor) -> None:
    made = make(model, small_images)
    assert made.biased == {"stem.0.weight", "depthwise.0.weight", "project.0.weight", "head.weight"}
    for name in made.moments:
        assert made.alone[name] > 0, name
        assert (made.effects[name] > 0).all(), name


def test_progress_is_told(model: nn.Module, small_images: Tensor) -> None:
    told: list[str] = []
    make(model, small_images, report=lambda share, words: told.append(words))
    assert {words.split(":")[0] for words in told} == {
        "reading layer inputs",
        "measuring sensitivities",
    }


def test_bad_images_are_refused_and_nothing_is_kept(
    model: nn.Module, small_images: Tensor, home: Path
) -> None:
    with pytest.raises(InputError, match="no calibration images"):
        study_of(model, small_images[:0])
    assert not kept(home)


@pytest.mark.parametrize("images", [torch.zeros(4, 1, 8, 8), torch.ones(1, 1, 8, 8)])
def test_constant_images_and_a_single_one_are_survived(model: nn.Module, images: Tensor) -> None:
    made = make(model, images)
    assert all(torch.isfinite(one.covariance).all() for one in made.moments.values())
    assert all((effects >= 0).all() and effects.isfinite().all() for effects in made.effects.values())
