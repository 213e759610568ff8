"""Stores that the tests begin with, empty."""

from pathlib import Path

import pytest

from optimizer.store.results import Store


@pytest.fixture
def store(place: Path | str) -> Store:
    return Store(place)


@pytest.fixture
def file(tmp_path: Path) -> Store:
    """A store that is a file."""
    return Store(tmp_path / "results.sqlite")
