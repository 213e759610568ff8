"""What torch computes in while it is ours, and that a caller's settings come back."""

from collections.abc import Callable, Iterator

import pytest
import torch

from optimizer.system.precision import KINDS, float32_throughout


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with float32_throughout():  # which is shown here to put back what it finds
        yield


def products() -> None:
    torch.set_float32_matmul_precision("medium")


def newer_setting() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def convolutions() -> None:
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


def double() -> None:
    torch.set_default_dtype(torch.float64)


def state() -> tuple[object, ...]:
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = "not told"
    kinds = [kind.fp32_precision for kind in KINDS]
    return precision, kinds, torch.get_default_dtype(), torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("change", [products, newer_setting, convolutions, double])
def test_what_is_computed_is_the_same_and_settings_come_back(change: Callable[[], None]) -> None:
    images, weights = torch.randn(8, 64, 12, 12), torch.randn(64, 64, 3, 3)

    def computed() -> list[torch.Tensor]:
        convolved = torch.conv2d(images, weights)
        return [convolved, convolved.flatten(1) @ torch.ones(convolved[0].numel(), 3), torch.zeros(2)]

    before = computed()
    change()
    changed = state()
    with torch.autocast("cpu", torch.bfloat16), float32_throughout():
        found = computed()
    assert all(torch.equal(one, other) for one, other in zip(before, found, strict=True))
    assert found[-1].dtype == torch.float32
    assert state() == changed
    with pytest.raises(ZeroDivisionError), float32_throughout():
        1 / 0  # noqa: B018
    assert state() == changed
