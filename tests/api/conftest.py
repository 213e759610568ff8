"""What tests of the public API share."""

from collections.abc import Iterator

import pytest
import torch
from own_net import Net
from torch import Tensor, nn

from optimizer.measurement import given
from optimizer.search import confirming


@pytest.fixture(autouse=True)
def _no_workspaces() -> Iterator[None]:
    given._workspaces.clear()
    yield
    given._workspaces.clear()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a winner is timed is tested elsewhere."""
    monkeypatch.setattr(confirming, "MAX_CONFIRMING_SECONDS", 0.1)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(60) % 10
