"""Images given in memory: what of a dataset is read, and what is no image or label."""

import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, TensorDataset

from optimizer.data.memory import calibrated, for_evaluation, in_memory
from optimizer.errors import InputError


class Examples(Dataset[Any]):
    """``examples``, whatever they are."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


class Streamed(IterableDataset[Any]):
    """Images and labels 0, 1, 2 and so on, to the ``end`` if there is one."""

    def __init__(self, end: int | None = None) -> None:
        self.end = end

    def __iter__(self) -> Iterator[Any]:
        for number in count() if self.end is None else range(self.end):
            yield torch.full((1, 1, 1), float(number)), number


class Sorted(Dataset[Any]):
    """As many images as most training sets, by class."""

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 1, 1), float(index)), index // 50


def test_a_part_of_a_dataset_is_drawn_over_all_of_it() -> None:
    read = for_evaluation(Sorted())
    assert read.evaluation.labels is not None
    assert len(read.evaluation.labels) == len(read.evaluation.images.unique()) == 10_000
    assert len(read.evaluation.labels.unique()) == 1_000, "it comes sorted by class"
    assert torch.equal(read.evaluation.labels, read.evaluation.images.flatten().long() // 50)
    assert read.notes == ("10,000 of 50,000 examples are used, drawn with seed 0",)


class Short(Sorted):
    """Shorter than it says."""

    def __getitem__(self, index: int) -> Any:
        if index >= 20_000:
            raise IndexError("no more")
        return super().__getitem__(index)


def test_a_dataset_that_ends_before_its_length_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"says that it has 50,000 examples, and gives none for \d+"):
        for_evaluation(Short())


class Damaged(Sorted):
    """Its examples can't be read from the third on."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        if index >= 3:
            raise self.error
        return super().__getitem__(index)


class DamagedStream(IterableDataset[Any]):
    """The same, as a stream."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        yield from (torch.full((1, 1, 1), float(number)) for number in range(3))
        raise self.error


@pytest.mark.parametrize("damaged", [Damaged, DamagedStream])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (OSError("cannot identify image file '3.jpg'"), "OSError: cannot identify image file '3.jpg'"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_of_a_dataset_s_own_names_the_example(
    damaged: Callable[..., Any], error: Exception, words: str
) -> None:
    with pytest.raises(
        InputError, match=rf"dataset fails at example 3 \({words}\): mend it, or leave"
    ) as raised:
        for_evaluation(damaged(error))
    assert raised.value.__cause__ is error


def test_of_a_stream_the_first_examples_are_read() -> None:
    read = for_evaluation(Streamed())
    assert read.evaluation.labels is not None
    assert read.evaluation.labels.tolist() == list(range(10_000))
    assert "the first 10,000 examples" in read.notes[0]
    assert len(for_evaluation(Streamed(20)).evaluation.images) == 20
    assert for_evaluation(Streamed(20)).notes == ()


@pytest.mark.parametrize("label", [np.array([2]), torch.tensor([2]), torch.tensor(2), np.int64(2), 2])
def test_a_label_is_one_whole_number_however_it_is_wrapped(label: object) -> None:
    read = for_evaluation(Examples([(torch.rand(1, 2, 2), label) for _ in range(3)]))
    assert read.evaluation.labels is not None
    assert read.evaluation.labels.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ((Image.new("RGB", (2, 2)), 1), r"gives Image as an image: have it give floats.*transforms\(\)"),
        ({"image": torch.rand(1, 2, 2), "label": 1}, r"gives dict as an image: .*pairs \(input, label\)"),
        (((torch.rand(2), torch.rand(2)), 1), r"gives tuple as an image: .*pairs \(input, label\)"),
        ((torch.rand(1, 2, 2), np.eye(3)[1]), r"labels of shape \[2, 3\].*one whole number an image"),
        ((torch.rand(1, 2, 2), torch.eye(3)[1]), r"labels of shape \[2, 3\].*one whole number an image"),
        ((torch.rand(1, 2, 2), 0.5), "labels of shape .*one whole number an image"),
        ((torch.rand(1, 2, 2), "cat"), "labels can't be read .*one whole number an image"),
        ((torch.rand(1, 2, 2), {"boxes": []}), "labels can't be read .*one whole number an image"),
    ],
)
def test_what_is_no_image_or_label_is_refused_with_what_to_do(example: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        for_evaluation(Examples([example, example]))


def test_labels_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="one whole number an image"):
        for_evaluation((torch.rand(2, 1, 2, 2), [[1], [1, 2]]))


@pytest.mark.parametrize(
    "labels", [torch.rand(3), torch.rand(3, 2), torch.ones(3, 4).long(), torch.ones(3, 2, 2).long()]
)
def test_targets_that_are_no_classes_may_be_left_out(labels: torch.Tensor) -> None:
    with pytest.raises(InputError, match="or leave them out: outputs are then compared"):
        for_evaluation((torch.rand(3, 1, 2, 2), labels))


def test_two_arrays_of_images_are_said_to_be_read_as_a_pair() -> None:
    with pytest.raises(InputError, match=r"read as images and their labels.*torch\.stack.*leave out targets"):
        for_evaluation([torch.rand(1, 2, 2), torch.rand(1, 2, 2)])


def test_sparse_tensors_are_asked_for_as_dense_ones() -> None:
    with pytest.raises(InputError, match=r"layout torch\.sparse_coo: give a dense one, by \.to_dense\(\)"):
        for_evaluation(torch.eye(4).to_sparse())


def test_a_data_loader_is_asked_for_its_dataset() -> None:
    with pytest.raises(InputError, match=r"give its \.dataset"):
        for_evaluation(DataLoader(Examples([torch.rand(1, 2, 2)] * 3)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("wrapped", [lambda images: images, lambda images: Examples([*images])])
def test_images_that_are_not_finite_are_refused(value: float, wrapped: Callable[..., Any]) -> None:
    images = torch.rand(3, 1, 2, 2)
    images[1, 0, 1, 1] = value
    with pytest.raises(InputError, match="1 of 3 images have values that are not finite"):
        for_evaluation(wrapped(images))
    with pytest.raises(InputError, match="not finite"):
        in_memory(torch.rand(3, 1, 2, 2), wrapped(images))


@pytest.mark.filterwarnings("error")
def test_an_array_is_read_whatever_its_strides_and_byte_order(tmp_path: Path) -> None:
    images, labels = np.random.default_rng(0).standard_normal((20, 3, 4, 4)), np.arange(20)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    expected = in_memory((images, labels)).evaluation
    for same in (images[::-1].copy()[::-1], images.astype(">f8"), np.asfortranarray(images), mapped):
        for numbers in (labels, labels[::-1].copy()[::-1], labels.astype(">i8")):
            found = in_memory((same, numbers)).evaluation
            assert torch.equal(found.images, expected.images)
            assert found.labels is not None
            assert found.labels.equal(expected.labels)


# Copies


def distinct(number: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(number, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "repeated",
    [
        lambda images, labels: (images.repeat(20, 1, 1, 1), labels.repeat(20)),
        lambda images, labels: ConcatDataset([TensorDataset(images, labels)] * 20),
        lambda images, labels: (images.repeat_interleave(20, 0).numpy(), labels.repeat_interleave(20)),
    ],
    ids=["an array", "a dataset", "side by side"],
)
def test_repeated_images_are_evaluated_once(repeated: Callable[..., Any]) -> None:
    """Else their intervals would be those of 20 times as many."""
    images, labels = distinct(10), torch.arange(10)
    note = "190 images left out: equal to another one that is evaluated, which counts once"
    read = for_evaluation(repeated(images, labels))
    assert torch.equal(read.evaluation.images, images)
    assert read.evaluation.labels is not None
    assert torch.equal(read.evaluation.labels, labels)
    assert read.notes == (note,)
    shared_out = in_memory(repeated(images, labels))
    assert shared_out.notes == (note, "2 images of those that were given set aside for calibration")
    both = torch.cat((shared_out.evaluation.images, shared_out.calibration.images))
    assert len(both) == len(both.flatten(1).unique(dim=0)) == 10, "none calibrates that is evaluated"
    assert shared_out.evaluation.labels is not None
    assert torch.equal(shared_out.evaluation.images, images[shared_out.evaluation.labels])


def test_images_that_differ_in_one_value_are_each_evaluated() -> None:
    images = distinct(1).repeat(6, 1, 1, 1)
    images[:, 2, 3, 3] = torch.arange(6.0)
    for inputs in (images, images[:, 2, 3, 3]):  # of any shape, also single numbers
        assert torch.equal(for_evaluation(inputs).evaluation.images, inputs)
        assert for_evaluation(inputs).notes == ()


def test_calibration_images_that_are_evaluated_are_left_out() -> None:
    images, others = distinct(6), distinct(4, seed=1)
    read = in_memory(images, torch.cat((images[:3], others)))
    assert torch.equal(read.calibration.images, others)
    assert torch.equal(read.evaluation.images, images)
    assert read.notes == ("3 calibration images left out: evaluated images have the same content",)
    assert in_memory(images, others).notes == ()


def test_images_do_not_calibrate_what_is_evaluated_on_them() -> None:
    images = distinct(6)
    refused = "every calibration image is also evaluated: give others as calibration=images"
    with pytest.raises(InputError, match=f"^{refused}, or leave it out$"):
        in_memory(images, images[2:])
    with pytest.raises(InputError, match=f"^{refused}$"):  # of a single one no share can be set aside
        in_memory(images[:1], images[:1])


@pytest.mark.parametrize("number", [1, 20])
def test_a_single_image_is_told_what_will_do(number: int) -> None:
    image = distinct(1).repeat(number, 1, 1, 1)
    why = r" \(19 images left out: equal to another one .*\)" if number > 1 else ""
    with pytest.raises(
        InputError, match=f"evaluated and calibrate{why}: give more, or others as calibration=images$"
    ):
        in_memory(image)
    assert len(in_memory(image, distinct(2, seed=1)).calibration.images) == 2
    with pytest.raises(InputError, match="at least 2, or 1 with others as calibration=images"):
        in_memory(image[:0])


def test_none_of_a_model_s_own_images_that_is_evaluated_calibrates() -> None:
    own, others = in_memory(distinct(10)), distinct(3, seed=1)
    mixed = calibrated(own, torch.cat((own.evaluation.images[:2], others)))
    assert torch.equal(mixed.calibration.images, others)
    assert mixed.notes[-1] == "2 calibration images left out: evaluated images have the same content"


def test_rows_that_are_no_images_all_count() -> None:
    """Of a table, or of tokens, equal ones are no copies."""
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(10, 1)
    found = for_evaluation(rows)
    assert len(found.evaluation.images) == 20
    assert found.notes == ()
