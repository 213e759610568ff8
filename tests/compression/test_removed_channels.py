"""Removed channels against the dense network: what goes first, what it costs, what is made up for."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
from small_models import SMALL_SHAPE, Branches, Gated, Plain, divergence, macs, made, run, untouched
from torch import Tensor, nn

from optimizer.compression.calibration.moments import collect
from optimizer.compression.prune.channels import masked_model, shrink, shrink_to
from optimizer.compression.prune.plan import ORDERS, ChannelPlan, plan
from optimizer.compression.prune.ranking import removal_order
from optimizer.compression.prune.readers import refit
from optimizer.compression.prune.widths import kept_counts
from optimizer.data.loading import Datasets, load_images
from optimizer.errors import InputError
from optimizer.model.architectures import ARCHITECTURES, IMAGE_SHAPE
from optimizer.model.catalogue import load
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.records import DataSpec

Planned = Callable[[str, str], ChannelPlan]


@pytest.fixture(scope="module")
def fashion() -> Datasets:
    return load_images(load("fashion-mlp"), DataSpec(limit=500))


@pytest.fixture(scope="module")
def planned(fashion: Datasets) -> Planned:
    """``planned(name, order)``: the plan of a bundled model on 96 calibration images, made once."""

    @cache
    def of(name: str, order: str) -> ChannelPlan:
        module, _ = fold_batch_norm(load(name).module)
        return plan(module, fashion.calibration.images[:96], order=order)

    return of


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Order


def test_removal_order_is_the_greedy_least_squares_one() -> None:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 12, generator=random) @ torch.randn(12, 12, generator=random)
    weight = torch.randn(5, 12, generator=random)
    covariance = inputs.T @ inputs / 200
    order, costs = removal_order([weight.reshape(5, 6, 2)], [covariance.inverse()])
    blocks, total = list(range(6)), 0.0
    for step in range(5):
        errors = {}
        for block in blocks:
            columns = [column for other in blocks if other != block for column in (2 * other, 2 * other + 1)]
            fitted = torch.linalg.lstsq(inputs[:, columns], inputs @ weight.T).solution
            errors[block] = (inputs @ weight.T - inputs[:, columns] @ fitted).square().sum().item() / 200
        best = min(errors, key=errors.__getitem__)
        assert order[step] == best
        assert costs[step] == pytest.approx(errors[best] - total, rel=1e-2)
        blocks.remove(best)
        total = errors[best]


def test_removal_order_adds_up_over_readers() -> None:
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(4, 30, 1, generator=random)
    inputs = torch.randn(90, 30, generator=random)
    inverse = (inputs.T @ inputs).inverse()
    order, costs = removal_order([rows], [inverse])
    twice, doubled = removal_order([rows, rows], [inverse, inverse])
    assert sorted(order.tolist()) == list(range(30))
    assert torch.equal(order, twice)
    assert torch.allclose(2 * costs, doubled, rtol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_dead_channels_go_first_and_change_nothing(order: str, small_images: Tensor) -> None:
    model = made(Plain)
    dead = {"first": [1, 4, 7], "second": [0, 5, 10, 15]}
    for name, channels in dead.items():
        layer = model.get_submodule(name)
        layer.weight[channels] = 0
        if layer.bias is not None:
            layer.bias[channels] = -1.0  # what relu makes 0 of
    model.second.weight[:, dead["first"]] = 0
    model.head.weight.reshape(10, 16, 4)[:, dead["second"]] = 0
    found = plan(model, small_images, order=order)
    shrunk = shrink(found, 0.25)
    for name, channels in dead.items():
        assert not set(shrunk.kept[f"{name}.weight"].tolist()) & set(channels)
    assert torch.allclose(run(shrunk.module, small_images), run(model, small_images), atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_kept_channels_are_nested(order: str, small_images: Tensor) -> None:
    found = plan(made(Plain), small_images, order=order)
    for multiple in (1, 4):
        kept = [shrink(found, ratio, multiple=multiple).kept for ratio in (0.1, 0.3, 0.6)]
        for less, more in pairwise(kept):
            for layer in less:
                assert set(more[layer].tolist()) <= set(less[layer].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-mobilenet"])
def test_kept_channels_never_grow_with_the_ratio(
    name: str, order: str, multiple: int, planned: Planned
) -> None:
    found = planned(name, order)
    counts = [kept_counts(found, step / 40, multiple) for step in range(40)]
    assert counts[0] == {group.name: group.channels for group in found.free}
    for less, more in pairwise(counts):
        assert all(more[name] <= less[name] for name in less)
    assert all(counts[-1][group.name] >= group.channels / 16 for group in found.free)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_wide_groups_are_snapped(order: str, planned: Planned) -> None:
    found = planned("fashion-mobilenet", order)
    counts = kept_counts(found, 0.3, 16)
    for group in found.free:
        if group.channels >= 64:
            assert counts[group.name] % 16 == 0
    assert kept_counts(found, 0.3, 1) != counts


@pytest.mark.slow
def test_by_magnitude_each_group_loses_the_same_share(planned: Planned) -> None:
    found = planned("fashion-resnet", "magnitude")
    assert kept_counts(found, 0.25) == {group.name: 3 * group.channels // 4 for group in found.free}


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_compensated_ratio_is_a_share_of_multiply_accumulates(ratio: float, planned: Planned) -> None:
    found = planned("fashion-mobilenet", "compensated")
    counts = kept_counts(found, ratio)
    gone = sum((group.channels - counts[group.name]) * found.macs[group.name] for group in found.free)
    assert gone / sum(group.channels * found.macs[group.name] for group in found.free) == pytest.approx(
        ratio, abs=0.02
    )


# What stays


def test_refit_is_least_squares() -> None:
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(300, 10, generator=random) @ torch.randn(10, 10, generator=random)
    weight = torch.randn(4, 10, generator=random)
    kept = torch.tensor([True, False] * 5)
    covariance = inputs.T @ inputs / 300
    fitted = refit(weight, kept, covariance, ridge=0)
    wanted = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution.T
    assert torch.allclose(fitted[:, kept], wanted, rtol=1e-3, atol=1e-3)
    assert not fitted[:, ~kept].any()
    held = refit(weight, kept, covariance, ridge=1e6)
    assert torch.allclose(held[:, kept], weight[:, kept], atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [Plain, Gated, Branches])
def test_shrunk_equals_masked(kind: type[nn.Module], order: str, small_images: Tensor) -> None:
    found = plan(made(kind), small_images, order=order)
    masked = masked_model(found, found.gone(kept_counts(found, 0.4)))
    shrunk = shrink(found, 0.4)
    assert parameters(shrunk.module) < parameters(masked)
    assert close(run(shrunk.module, small_images), run(masked, small_images))


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bundled_models_shrink(name: str, order: str, planned: Planned, fashion: Datasets) -> None:
    found = planned(name, order)
    shrunk = shrink(found, 0.25)
    assert parameters(shrunk.module) < parameters(found.model)
    assert macs(shrunk.module, IMAGE_SHAPE) < macs(found.model, IMAGE_SHAPE)
    logits = run(shrunk.module, fashion.evaluation.images[:100])
    assert logits.shape == (100, 10)
    assert logits.isfinite().all()
    widths = {layer.name: len(layer.weight) for layer in walk(shrunk.module)}
    assert all(widths[layer] == len(kept) for layer, kept in shrunk.kept.items())
    assert not any(parameter.requires_grad for parameter in shrunk.module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-resnet", "fashion-mobilenet", "fashion-vit"])
def test_compensated_keeps_more_accuracy(name: str, planned: Planned, fashion: Datasets) -> None:
    images, labels = fashion.evaluation.images, fashion.evaluation.labels
    right = {
        order: (run(shrink(planned(name, order), 0.25).module, images).argmax(1) == labels).float().mean()
        for order in ORDERS
    }
    assert right["compensated"] > right["magnitude"] - 0.01
    assert right["compensated"] > 0.85


@pytest.mark.parametrize("order", ORDERS)
def test_ratio_0_changes_nothing(order: str, small_images: Tensor) -> None:
    model = made(Plain)
    shrunk = shrink(plan(model, small_images, order=order), 0.0)
    assert shrunk.kept == {}
    assert torch.equal(run(shrunk.module, small_images), run(model, small_images))


def test_the_mean_of_what_goes_is_put_into_the_bias(small_images: Tensor) -> None:
    model = made(Plain)
    shrunk = shrink(plan(model, small_images, order="magnitude"), 0.25)
    blind = shrink(plan(model, small_images[:0], order="magnitude"), 0.25)
    error, worse = (
        (run(other.module, small_images) - run(model, small_images)).mean(0).norm()
        for other in (shrunk, blind)
    )
    assert error < 0.5 * worse


@pytest.mark.slow
def test_matching_is_kept_where_it_helps(planned: Planned, fashion: Datasets) -> None:
    found = planned("fashion-mobilenet", "magnitude")
    plain, matched = shrink(found, 0.3), shrink(found, 0.3, match=True)
    images = fashion.evaluation.images[:200]
    after, before = (divergence(found.model, one.module, images) for one in (matched, plain))
    assert matched.matched
    assert after < before
    assert not shrink(found, 0.0, match=True).matched


def test_models_are_left_as_they_were(small_images: Tensor) -> None:
    model = made(Plain)
    with untouched(model):
        found = plan(model, small_images, moments=collect(model, small_images))
        with torch.inference_mode(), untouched(found.model):
            shrink(found, 0.5, match=True)


def test_a_model_is_made_as_small_as_shapes_say(small_images: Tensor) -> None:
    model = made(Plain)
    module = shrink(plan(model, small_images, order="magnitude"), 0.5).module
    shapes = {layer.name: tuple(layer.weight.shape) for layer in walk(module)}
    found = shrink_to(model, shapes, SMALL_SHAPE)
    assert {name: one.shape for name, one in found.state_dict().items()} == {
        name: one.shape for name, one in module.state_dict().items()
    }
    assert found(small_images).shape == (len(small_images), 10)
    for outputs in (0, 13):
        with pytest.raises(InputError, match=f"first.weight has {outputs} of 12 outputs"):
            shrink_to(model, shapes | {"first.weight": (outputs, 1, 3, 3)}, SMALL_SHAPE)
    with pytest.raises(InputError, match=r"first.weight is \[6\], taken from \[12, 1, 3, 3\]"):
        shrink_to(model, shapes | {"first.weight": (6,)}, SMALL_SHAPE)


def test_too_few_images_are_refused(small_images: Tensor) -> None:
    with pytest.raises(InputError, match="give some, or take magnitude"):
        plan(made(Plain), small_images[:0])
    found = plan(made(Plain), small_images[:4], order="magnitude")
    with pytest.raises(InputError, match="4 images are too few.*give at least 16"):
        shrink(found, 0.5, match=True)
