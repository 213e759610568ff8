"""What torch computes in while it is ours, and that a caller's settings come back."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from optimizer.system.precision import KINDS, float32_throughout


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.fp32_precision = "none"
    for kind in KINDS:
        kind.fp32_precision = "none"


def products() -> None:
    torch.set_float32_matmul_precision("medium")


def newer_setting() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def convolutions() -> None:
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


def all_kinds() -> None:
    torch.backends.mkldnn.fp32_precision = "bf16"


def double() -> None:
    torch.set_default_dtype(torch.float64)


def state() -> tuple[object, ...]:
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = "not told"
    kinds = [kind.fp32_precision for kind in KINDS]
    every = torch.backends.fp32_precision, torch.backends.mkldnn.fp32_precision
    return (
        precision,
        kinds,
        every,
        torch.backends.cuda.matmul.fp32_precision,
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
    )


@pytest.mark.parametrize("change", [products, newer_setting, convolutions, all_kinds, double])
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


def test_what_followed_another_setting_follows_it_again() -> None:
    all_kinds()
    with float32_throughout():
        pass
    torch.backends.mkldnn.fp32_precision = "ieee"
    assert [kind.fp32_precision for kind in KINDS] == ["ieee"] * 3


def test_blocks_of_several_threads_put_back_what_was_there_before_the_first() -> None:
    products()
    double()
    changed = state()
    entered, left = threading.Event(), threading.Event()
    inside: list[tuple[object, ...]] = []

    def first() -> None:
        with float32_throughout():
            entered.set()
            assert left.wait(30)

    def second() -> None:
        with float32_throughout():
            left.set()
            one.join()
            inside.append((torch.get_default_dtype(), [kind.fp32_precision for kind in KINDS]))

    one, other = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert entered.wait(30)
    other.start()
    other.join()
    assert inside == [(torch.float32, ["ieee"] * 3)]
    assert state() == changed


def test_nothing_is_made_on_another_device() -> None:
    with torch.device("meta"), float32_throughout():
        assert torch.zeros(2).device.type == "cpu"
