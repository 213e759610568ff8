"""Removed channels against the dense network: what is coupled, what goes first, what is made up for."""

import copy
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from small_models import SMALL_SHAPE, Indexed, Small, divergence, macs, made, run, untouched
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention

from optimizer.compression.calibration.moments import collect
from optimizer.compression.prune import coupling
from optimizer.compression.prune.channels import masked_model, shrink, shrink_to
from optimizer.compression.prune.coupling import MIXED, groups
from optimizer.compression.prune.plan import ORDERS, ChannelPlan, plan
from optimizer.compression.prune.ranking import removal_order
from optimizer.compression.prune.readers import refit
from optimizer.compression.prune.widths import kept_counts
from optimizer.data.loading import Datasets, load_images
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.model.architectures import ARCHITECTURES, IMAGE_SHAPE
from optimizer.model.catalogue import LoadedModel, load
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.records import DataSpec

Planned = Callable[[str, str], ChannelPlan]


class Plain(nn.Module):
    """Two convolutions and, behind a flatten that gives each channel four columns, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, 2, 1)
        self.second = nn.Conv2d(12, 16, 3, 2, 1, bias=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).flatten(1))


class Gated(nn.Module):
    """Squeeze-and-excitation: two layers make the group's channels, and two read them."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(1, 16, 3, 1, 1)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.expand(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.project(x * gate).mean((2, 3)))


class Branches(nn.Module):
    """What is joined stays; a width that the code relies on, too; and grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 6, 3)
        self.right = nn.Conv2d(1, 6, 3)
        self.grouped = nn.Conv2d(12, 8, 1, groups=2)
        self.fixed = nn.Conv2d(8, 12, 1)
        self.free = nn.Linear(12, 20)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = torch.relu(self.fixed(torch.relu(self.grouped(x))))
        return self.head(torch.relu(self.free(x.view(len(x), 12, -1).mean(-1))))


class Upsampled(nn.Module):
    """A convolution that a transposed one reads too, and one that reads what that makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.down = nn.Conv2d(8, 4, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return torch.relu(self.down(x)).mean((2, 3)) + self.last(torch.relu(self.up(x))).mean((2, 3))


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


def reasons(model: nn.Module, input_shape: tuple[int, ...] = SMALL_SHAPE) -> dict[str, str]:
    return {group.name: group.held for group in groups(model, input_shape)}


# Groups


def test_hidden_channels_of_residual_branches_are_free(resnet: LoadedModel) -> None:
    module, _ = fold_batch_norm(resnet.module)
    found = {group.name: group for group in groups(module, IMAGE_SHAPE)}
    free = {name: group for name, group in found.items() if not group.held}
    assert list(free) == ["0.0.weight", *(f"{block}.first.0.weight" for block in (3, 4, 5, 6))]
    assert free["4.first.0.weight"].consumers == ("4.second.0.weight",)
    assert free["0.0.weight"].consumers == ("3.first.0.weight", "3.shortcut.0.weight")
    trunk = found["5.second.0.weight"]
    assert "residual sum" in trunk.held
    assert trunk.producers == ("5.second.0.weight", "5.shortcut.0.weight", "6.second.0.weight")
    assert "output" in found["9.weight"].held


def test_hidden_channels_of_inverted_residuals_pass_their_depthwise_layer() -> None:
    module, _ = fold_batch_norm(load("fashion-mobilenet").module)
    found = {group.name: group for group in groups(module, IMAGE_SHAPE)}
    for block in range(2, 8):
        group = found[f"{block}.expand.0.weight"]
        assert (group.through, group.consumers, group.held) == (
            (f"{block}.depthwise.0.weight",),
            (f"{block}.project.0.weight",),
            "",
        )
    assert all("residual sum" in found[f"{block}.project.0.weight"].held for block in (2, 4, 6))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_output_channel_belongs_to_one_group(name: str) -> None:
    module, _ = fold_batch_norm(load(name).module)
    found = groups(module, IMAGE_SHAPE)
    widths = {layer.name: len(layer.weight) for layer in walk(module)}
    made = [part for group in found for part in (*group.producers, *group.through)]
    assert sorted(made) == sorted(widths)
    alone = [group for group in found if not group.attention]
    assert all(widths[part] == group.channels for group in alone for part in group.producers)


def test_reused_layers_are_held(small: Small) -> None:
    assert all(reasons(small("shared")).values())
    assert all(reasons(small("tied")).values())


def test_joined_grouped_and_fixed_channels_are_held() -> None:
    found = reasons(made(Branches))
    assert "joined" in found["left.weight"]
    assert "grouped" in found["grouped.weight"]
    assert "own code" in found["fixed.weight"]
    assert found["free.weight"] == ""


class FixedWidth(nn.Module):
    """Reshaped to a width that is written down, as what is exported from ONNX is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu().mean((2, 3)).reshape(-1, 8))


class WithErf(nn.Module):
    """GELU as exporters of ONNX write it out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((x * (torch.erf(x / 2**0.5) + 1) / 2).mean((2, 3)))


def test_an_error_function_treats_each_channel_by_itself() -> None:
    assert reasons(made(WithErf))["first.weight"] == ""


def test_a_traced_module_that_fails_on_another_width_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """torch.fx prints where it fails, which is how groups that must stay are found."""
    found = reasons(torch.fx.symbolic_trace(made(FixedWidth)))
    assert "own code" in found["first.weight"]
    assert capfd.readouterr().err == ""


def test_what_a_transposed_convolution_reads_is_held() -> None:
    assert "a ConvTranspose2d makes or reads them" in reasons(made(Upsampled))["first.weight"]


def test_what_a_layer_of_computed_weights_reads_is_held() -> None:
    normed = [weight_norm(nn.Conv2d(*widths, 1)) for widths in ((8, 7), (7, 6))]
    model = nn.Sequential(nn.Conv2d(1, 8, 1), *normed, nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)).eval()
    found = reasons(model)
    assert "a ParametrizedConv2d makes or reads them" in found.pop("0.weight")
    assert found == {"3.weight": "", "4.weight": "they are the model's output"}


class Gram(nn.Module):
    """The outputs of a layer multiplied with themselves: 16 channels become 256 each time around."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 16, 3)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x))).flatten(2)
        return self.head((x @ x.mT).flatten(1))


def test_channels_that_become_more_each_time_around_are_not_followed() -> None:
    found = reasons(made(Gram))
    assert found["first.weight"] == ""
    assert "second.weight" not in found


class Chosen(nn.Module):
    """The values of its input choose which of two layers reads the hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).relu()
        return self.one(hidden) if x.sum() > 0 else self.other(hidden)


def test_channels_that_values_choose_the_reader_of_are_not_followed_through_one() -> None:
    with pytest.raises(WorkError, match="depends on the values of its input.*prune its weights instead"):
        groups(Chosen().eval(), (6,))


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first, self.second, self.head = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(self.between(self.first(x)))).mean((2, 3)))


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "gate by the mean of each": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "gate by the mean of all": lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "relative to the mean": lambda x: x / (1 + x.relu().mean(1, keepdim=True)),
    "neighbours": lambda x: (
        x
        * nn.functional.avg_pool1d(x.mean((2, 3)).unsqueeze(1), 3, 1, 1).squeeze(1).sigmoid()[..., None, None]
    ),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_channels_that_are_mixed_on_the_way_are_held(between: str) -> None:
    model = made(partial(Between, BETWEEN[between]))
    found = reasons(model)
    assert found["first.weight"] == ("" if between == "gate by the mean of each" else MIXED)
    assert found["second.weight"] == ""


@pytest.mark.parametrize("affine", [False, True])
def test_what_norms_and_padding_treat_channel_by_channel_can_go(affine: bool) -> None:
    def network() -> nn.Module:
        norm = nn.InstanceNorm2d(16, affine=affine)
        if affine:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
        first, second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 8, 3)
        around = (nn.ReflectionPad2d(1), norm, nn.PReLU(16), nn.ReplicationPad2d(1))
        return nn.Sequential(
            first, *around, second, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
        )

    model = made(network)
    group = next(one for one in groups(model, SMALL_SHAPE) if one.name == "0.weight")
    assert not group.held
    gone = torch.arange(0, 16, 3)
    smaller, unread = coupling.without(model, SMALL_SHAPE, {group: gone}), copy.deepcopy(model)
    unread.get_submodule("5").weight.data[:, gone] = 0
    images = torch.randn(4, *SMALL_SHAPE)
    assert smaller.get_submodule("0").weight.shape[0] == 10
    torch.testing.assert_close(smaller(images), unread(images), rtol=1e-4, atol=1e-5)


class Grouped(nn.Module):
    """A norm over groups of channels, written as one of instances, and a layer that takes no float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 8, 3)
        self.constant, self.head = nn.Linear(4, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        normed = nn.functional.instance_norm(x.reshape(len(x), 4, -1)).reshape(x.shape)
        x = self.second(torch.relu(normed)).mean((2, 3))
        return self.head(x + self.constant(torch.ones(len(x), 4)))


def test_channels_that_are_normed_in_groups_are_held_where_only_float32_runs() -> None:
    assert reasons(made(Grouped))["first.weight"]


def test_what_an_index_in_a_parameter_shuffles_is_held() -> None:
    found = reasons(Indexed().eval())
    assert found["stem.weight"]
    assert not found["mix.weight"]


def test_gated_channels_have_two_producers_and_two_consumers() -> None:
    group = groups(made(Gated), SMALL_SHAPE)[0]
    assert set(group.producers) == {"expand.weight", "excite.weight"}
    assert set(group.consumers) == {"squeeze.weight", "project.weight"}
    assert not group.held


def test_a_model_without_free_channels_says_why(small: Small, small_images: Tensor) -> None:
    with pytest.raises(InputError, match="residual sum ties.*prune its weights instead"):
        plan(fold_batch_norm(small("cnn"))[0], small_images)


def test_without_the_package_it_says_what_to_install(
    small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UnavailableError, match="pip install torch-pruning"):
        plan(made(Plain), small_images)


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


def test_models_that_cannot_be_followed_are_refused(small_images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(65, 12), nn.ReLU(), nn.Linear(12, 10))
    with pytest.raises(WorkError, match="can't follow this model's channels.*prune its weights instead"):
        plan(model, small_images, order="magnitude")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("integer division or modulo by zero"), coupling.USUAL_REASON),
        (UserWarning("Maximum recursive depth reached!"), coupling.USUAL_REASON),
        (RuntimeError("shapes cannot be\nmultiplied"), "shapes cannot be multiplied"),
    ],
)
def test_of_torch_prunings_inner_errors_only_usual_reasons_are_said(error: Exception, reason: str) -> None:
    words = rf"^torch-pruning can't follow this model's channels \({reason}\): prune its weights instead$"
    with pytest.raises(WorkError, match=words), coupling._following():
        raise error


class Windowed(nn.Module):
    """Its queries, keys and values are one layer, cut by MaxViT's attention over windows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = RelativePositionalMultiHeadAttention(8, 4, 4)
        self.hidden, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.attention(x)).relu()).mean((1, 2))


@pytest.mark.timeout(60)
def test_a_group_that_comes_back_to_its_layers_without_end_is_left_out() -> None:
    found = reasons(Windowed().eval(), (1, 4, 8))
    assert "attention.to_qkv.weight" not in found
    assert not found["hidden.weight"]
