"""What tests of clusters share."""

import pytest

from optimizer.search import drain
from optimizer.store.results import Store


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(drain, "BEAT_SECONDS", 0.02)
    return Store()
