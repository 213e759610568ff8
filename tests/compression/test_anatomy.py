"""One layer looked at closely: counts by hand, when a threshold is told, and the grid that weights lie on."""

import numpy as np
import pytest
import torch
from by_request import anatomy, compressed_model, open_model
from torch import Tensor

from optimizer.compression.anatomy import BINS, anatomy_of, sensitivities_of
from optimizer.compression.apply import CompressedWeight, compress_weights
from optimizer.compression.calibration.layer_sensitivity import Alone
from optimizer.compression.calibration.moments import Moments
from optimizer.compression.calibration.statistics import Statistics
from optimizer.errors import InputError
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Request

BEFORE = torch.tensor([[-1.0, -0.2, 0.0, 0.005], [0.3, 0.2, 0.9, 1.0]])


def pruned(*removed: float) -> CompressedWeight:
    """``BEFORE`` without some of its values."""
    mask = ~torch.isin(BEFORE, torch.tensor(removed))
    gone = BEFORE[~mask].abs()
    return CompressedWeight(BEFORE * mask, mask, None, gone.max().item() if gone.numel() else -1.0)


def test_counts_by_hand() -> None:
    found = anatomy_of("layer", BEFORE, pruned(0.0, 0.005, -0.2, 0.2), as_published=True)
    assert len(found.before) == len(found.after) == BINS
    assert (found.edges[0], found.edges[-1]) == (-1, 1)
    assert np.allclose(found.edges, -np.flip(found.edges))
    middle = BINS // 2
    assert found.edges[middle] < 0 < found.edges[middle + 1]
    assert (found.before[0], found.before[middle], found.before[-1]) == (1, 2, 1)
    assert (found.after[0], found.after[middle], found.after[-1]) == (1, 0, 1)
    assert (sum(found.before), sum(found.after), found.zeros) == (8, 4, 4)
    assert found.threshold == pytest.approx(0.2)


def test_zeros_that_were_there_are_zeros_too() -> None:
    found = anatomy_of("layer", BEFORE, pruned(), as_published=True)
    assert (found.zeros, found.threshold, found.levels) == (1, -1, ())


def test_a_layer_of_zeros_has_a_histogram() -> None:
    nothing = torch.zeros(2, 3)
    found = anatomy_of("layer", nothing, CompressedWeight(nothing, nothing == 0, None, -1.0), True)
    assert (sum(found.before), sum(found.after), found.zeros) == (6, 0, 6)
    assert found.edges == tuple(sorted(set(found.edges)))


@pytest.mark.parametrize(
    ("removed", "as_published", "told"),
    [((0.0, 0.005), True, True), ((0.0, 0.005), False, False), ((), True, False)],
)
def test_a_threshold_is_told_where_magnitude_decided_among_the_weights_that_run(
    removed: tuple[float, ...], as_published: bool, told: bool
) -> None:
    found = anatomy_of("layer", BEFORE, pruned(*removed), as_published)
    assert found.threshold == pytest.approx(max(removed) if told else -1.0)


def test_channels_that_are_gone_count_as_zeros() -> None:
    small = BEFORE[1:]
    after = CompressedWeight(small, torch.ones_like(small, dtype=torch.bool), None, -1.0)
    found = anatomy_of("layer", BEFORE, after, as_published=True)
    assert (sum(found.before), sum(found.after), found.zeros, found.threshold) == (8, 4, 4, -1)


def test_batch_norm_leaves_no_threshold_to_tell() -> None:
    half = Recipe(PruneSpec(sparsity=0.5))
    for model, told in (("fashion-mlp", True), ("fashion-resnet", False)):
        layer = next(walk(open_model(model).module)).name
        assert (anatomy(Request(model, half), layer).threshold > 0) == told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (PruneSpec(sparsity=0.5, allocation="uniform"), True),
        (PruneSpec(threshold=0.05), True),
        (PruneSpec(sparsity=0.5, allocation="measured"), True),
        (PruneSpec(sparsity=0.5, match=True), True),
        (PruneSpec(pattern="2:4"), False),
        (PruneSpec("compensated", 0.5), False),
    ],
)
def test_the_threshold_that_compression_tells_is_the_one_that_is_drawn(spec: PruneSpec, told: bool) -> None:
    """Where one is told, it parts the weights that went from those that stayed."""
    request = Request("fashion-mlp", Recipe(spec))
    after = compressed_model(request).weights
    for layer in walk(open_model("fashion-mlp").module):
        found, before = anatomy(request, layer.name), layer.weight.detach().abs()
        assert found.threshold == after[layer.name].threshold
        assert (found.threshold >= 0) == (told and not after[layer.name].mask.all())
        if found.threshold >= 0:
            assert before[~after[layer.name].mask].max() == pytest.approx(found.threshold)
            assert before[after[layer.name].mask].min() >= found.threshold


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"1\.weight"):
        anatomy(Request("fashion-mlp"), "nope")


@pytest.mark.parametrize(
    "spec",
    [
        QuantizeSpec(weight_bits=4),
        QuantizeSpec(weight_bits=3, symmetric=False),
        QuantizeSpec(weight_bits=2, granularity="tensor"),
        QuantizeSpec(weight_bits=4, granularity="group"),
    ],
)
def test_the_grid_is_one_that_values_lie_on(spec: QuantizeSpec) -> None:
    layer = torch.nn.Linear(64, 8)
    with torch.no_grad():
        layer.weight[5] *= 10  # the widest channel
    after = compress_weights(torch.nn.Sequential(layer), Recipe(quantize=spec))["0.weight"]
    found = anatomy_of("0.weight", layer.weight.detach(), after, as_published=True)
    levels = torch.tensor(found.levels)
    assert len(levels) <= 2**spec.weight_bits
    steps = levels.diff()
    assert (steps > 0).all()
    assert torch.allclose(steps, steps[0].expand_as(steps), rtol=1e-4)
    channel = after.values[5]
    apart = (channel[:, None] - levels).abs().amin(1)
    if spec.granularity == "group":
        assert (apart < 1e-6).sum() >= 8, "one group of the channel"
    else:
        assert apart.max() < 1e-6
    assert torch.isin(levels.round(decimals=4), channel.round(decimals=4)).float().mean() > 0.5


def test_a_grid_finer_than_the_bins_is_not_drawn() -> None:
    layer = torch.nn.Linear(64, 8)
    after = compress_weights(torch.nn.Sequential(layer), Recipe(quantize=QuantizeSpec(weight_bits=8)))
    assert anatomy_of("0.weight", layer.weight.detach(), after["0.weight"], True).levels == ()


def test_sensitivities_are_of_the_layers_that_the_statistics_know() -> None:
    random = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {
        name: torch.randn(4, 8, generator=random) for name in ("last", "first", "unknown")
    }
    statistics = Statistics(
        moments={name: Moments(torch.eye(8)[None], torch.zeros(1, 8), 0.0) for name in ("first", "last")},
        effects={name: torch.full((4,), 0.1) for name in ("first", "last")},
        biased=frozenset(),
    )
    pruned = {"first": Alone(0.3, True), "last": Alone(0.02, False)}
    found = sensitivities_of(weights, statistics, pruned)
    assert [(one.layer, one.pruned) for one in found] == [("last", 0.02), ("first", 0.3)]
    for one in found:
        assert 0 < one.rounded[4] < one.rounded[3] < one.rounded[2]
