"""What is said of two networks."""

from types import SimpleNamespace
from typing import Any

import pytest

from optimizer.analysis import two_files_words
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
