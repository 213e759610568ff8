"""Which channels go together, and which are held: what a model's own code and its layers couple."""

import copy
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from small_models import SMALL_SHAPE, Branches, Gated, Indexed, Plain, Small, made
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention

from optimizer.compression.prune import coupling
from optimizer.compression.prune.coupling import MIXED, groups
from optimizer.compression.prune.plan import plan
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.model.architectures import ARCHITECTURES, IMAGE_SHAPE
from optimizer.model.catalogue import LoadedModel, load
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk


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


def reasons(model: nn.Module, input_shape: tuple[int, ...] = SMALL_SHAPE) -> dict[str, str]:
    return {group.name: group.held for group in groups(model, input_shape)}


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
