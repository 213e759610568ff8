"""What is said of two networks."""

from types import SimpleNamespace
from typing import Any

import pytest

from optimizer.analysis import two_files, two_files_words
from optimizer.analysis.measures import Measure
from optimizer.analysis.outcomes import AccuracyVerdict


def test_one_image_is_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    both, drop = (
        (Measure(90.5, 89.9, 91.0),) * 2,
        SimpleNamespace(p=0.5, lost=1, gained=4, verdict=AccuracyVerdict.SAME),
    )
    monkeypatch.setattr(two_files_words, "accuracies", lambda run: both)
    monkeypatch.setattr(two_files_words, "accuracy_lost", lambda run: drop)
    run: Any = SimpleNamespace(a=SimpleNamespace(name="a.onnx"), b=SimpleNamespace(name="b.onnx"))
    (said,) = two_files_words._accuracy(run)
    assert "Right in the first alone: 1 image, in the second alone: 4 images" in said


def layers(*sqnr_db: float | None) -> Any:
    """A run whose layers have these SQNRs."""
    found = [
        SimpleNamespace(reference=f"layer {place}", sqnr_db=one, was_silent=False)
        for place, one in enumerate(sqnr_db)
    ]
    return SimpleNamespace(layers=tuple(found))


@pytest.mark.parametrize(
    ("sqnr_db", "found"),
    [
        ((40.0, -3.0, 25.0, -2.9, 20.0, 12.0), ["layer 1", "layer 3"]),
        ((None, -3.0, 25.0, 3.0, 20.0), ["layer 1"]),
        ((40.0, 20.0, 8.0, 2.0, -1.0, -3.0), []),
        ((40.0, -1.0, 9.0), []),
        ((), []),
    ],
)
def test_layers_whose_difference_later_ones_take_back_are_named(
    sqnr_db: tuple[float | None, ...], found: list[str]
) -> None:
    """Rotated ones; not those from which a network goes wrong."""
    run = layers(*sqnr_db)
    assert [one.reference for one in two_files.undone(run)] == found
    for one in (two_files.parting(run), *(two_files.widest_fall(run) or ())):
        assert one is None or one.reference not in found
