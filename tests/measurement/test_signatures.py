"""Which requests share one timing: those whose engine runs the same kernels."""

from dataclasses import replace

import pytest
from by_request import measure
from factories import visits
from small_requests import FOUR_BITS, HALF, INT8, INT8_KERNELS, MLP, Measured, Own, request
from torch import nn

from optimizer.compression.apply import compress
from optimizer.measurement import runners
from optimizer.measurement.workspace import Workspace
from optimizer.measurement.workspace import open_model as make_open
from optimizer.model.own import own_model
from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import DataSpec, Execution, Latency, Settings
from optimizer.system.environment import threads_available

pytestmark = pytest.mark.usefixtures("few_rounds")


@pytest.mark.slow
def test_recipes_that_run_the_same_kernels_share_a_signature(measured: Measured) -> None:
    asymmetric = replace(INT8, quantize=replace(INT8.quantize, symmetric=False))
    float32, int8, others = (
        {measured(recipe, model=MLP).latency.signature for recipe in recipes}
        for recipes in ((Recipe(), HALF, FOUR_BITS), (INT8, INT8_KERNELS), (asymmetric,))
    )
    assert len(float32) == len(int8) == 1
    assert len(float32 | int8 | others) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"engine": "openvino"}, {"settings": Settings(threads=1, batch=2)}, {"model": MLP}],
    ids=["engine", "batch", "model"],
)
def test_another_engine_batch_or_model_is_another_signature(
    measured: Measured, change: dict[str, object]
) -> None:
    on_torch = {"engine": "torch"}
    assert measured(**on_torch | change).latency.signature != measured(**on_torch).latency.signature


@pytest.mark.skipif(threads_available() < 2, reason="one core")
def test_no_thread_count_means_every_core_and_is_another_signature(measured: Measured) -> None:
    # A small network: threads of this test's and of others wait for each other.
    small = {"engine": "torch", "model": MLP}
    every = measured(settings=Settings(threads=0), **small).latency
    assert every.threads == threads_available()
    assert every.signature != measured(**small).latency.signature


@pytest.mark.slow
def test_the_limit_of_images_and_the_seed_do_not_change_the_signature(measured: Measured) -> None:
    other = measured(data=DataSpec(limit=50, seed=1), settings=Settings(threads=1, seed=9))
    assert other.latency.signature == measured().latency.signature


def test_networks_of_other_widths_have_another_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which channels go by what they were measured to be worth hangs on the calibration images."""
    channels = PruneSpec("channels", sparsity=0.5, allocation="measured")
    workspace, ran = Workspace(make_open(own_model(Own(), (3, 2, 2)))), Execution((), ())

    def signature(recipe: Recipe, width: int) -> str:
        made = compress(nn.Sequential(nn.Linear(12, width), nn.Linear(width, 4)), Recipe())
        monkeypatch.setattr(runners, "compressed_model", lambda *_: made)
        return runners.signature_of(workspace, request(recipe), ran, 1)

    for recipe, differ in ((Recipe(channels), True), (HALF, False)):
        assert signature(recipe, 6) == signature(recipe, 6)
        assert (signature(recipe, 6) != signature(recipe, 5)) == differ


def steady(signature: str, noisy: bool = False) -> Latency:
    """Twenty rounds without any spread; or with a variant that doubles half-way."""
    rounds = 20
    variant = visits([1_000_000 * (2 if noisy and index >= rounds / 2 else 1) for index in range(rounds)])
    calm = visits([1_000_000] * rounds)
    return Latency(signature, Recipe(), (calm, calm), variant, 1, 1, True, 0, 10, 0.0, 1, (rounds,))


@pytest.mark.slow
def test_an_earlier_measurement_of_the_same_kernels_is_used_instead_of_timing() -> None:
    asked: list[tuple[str, bool]] = []

    def shared(signature: str, quick: bool) -> Latency:
        asked.append((signature, quick))
        return steady(signature)

    messages: list[str] = []
    result = measure(request(FOUR_BITS), lambda share, message: messages.append(message), shared)
    assert asked == [(result.latency.signature, True)]
    assert result.latency == steady(result.latency.signature)
    assert "timing" not in messages


def test_an_earlier_measurement_that_was_noisy_is_used_too() -> None:
    """It has its badge, and is measured anew when it is measured in full."""
    result = measure(request(HALF), shared_latency=lambda signature, quick: steady(signature, noisy=True))
    assert result.latency == steady(result.latency.signature, noisy=True)
