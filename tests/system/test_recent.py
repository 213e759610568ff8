"""Answers that hold for some seconds."""

import itertools

import pytest

from optimizer.system import recent


def test_within_one_moment_no_answer_becomes_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "monotonic", itertools.count(1_000, 10).__next__)
    numbers = itertools.count()
    asked = recent.remembered(5.0)(lambda: next(numbers))
    assert [asked(), asked()] == [0, 1], "each question comes ten seconds after the one before"
    with recent.one_moment():
        assert [asked(), asked(), asked()] == [2, 2, 2]
    assert asked() == 3
