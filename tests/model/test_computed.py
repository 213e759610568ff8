"""Weights that a module computes from others are parameters in a copy of it, and it stays as it was."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from optimizer.engine import openvino
from optimizer.errors import InputError
from optimizer.measurement.workspace import open_model
from optimizer.model.computed import computed, copied, without_computed
from optimizer.model.examples import agree
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.model.own import own_model

SHAPE = (3, 8, 8)
old_weight_norm = getattr(nn.utils, "weight_norm")  # noqa: B009  (it is deprecated, and in use)


def of_two(layer: nn.Module) -> nn.Module:
    parametrizations.weight_norm(layer)
    prune.random_unstructured(layer, "bias", 0.5)
    return parametrize.register_parametrization(layer, "weight", nn.Tanh())


def pruned_before_norm(layer: nn.Module) -> nn.Module:
    old_weight_norm(layer)
    prune.l1_unstructured(layer, "weight_v", 0.5)
    return layer


def pruned_twice(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(prune.random_unstructured(layer, "weight", 0.3), "weight", 0.3)


MADE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two": of_two,
    "weight_norm of old": old_weight_norm,
    "spectral_norm of old": nn.utils.spectral_norm,
    "pruned": pruned_twice,
    "pruned before it is normalised": pruned_before_norm,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")


def network(make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Trained for a step, so that what a forward left in it is not what the next one computes."""
    torch.manual_seed(0)
    net = nn.Sequential(make(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), make(nn.Linear(144, 5)))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(8, *SHAPE)).square().sum().backward()
    optimiser.step()
    return net


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("learns", [True, False], ids=["learns", "frozen"])
def test_a_computed_weight_is_a_layer_of_a_copy(name: str, learns: bool) -> None:
    net, images = network(MADE[name]).requires_grad_(learns), torch.randn(4, *SHAPE)
    taken = own_model(net, SHAPE)
    assert [layer.name for layer in walk(taken.module)] == ["0.weight", "3.weight"]
    assert own_model(net, SHAPE).card.name == taken.card.name
    assert {one.partition(".")[2] for one in taken.module.state_dict()} == {"weight", "bias"}
    assert any(computed(net))
    parameters = [*net.parameters()]
    expected = [net.eval()(images) for _ in range(2)][1]  # a hook may come before what it reads
    assert torch.allclose(taken.module(images), expected, atol=1e-6)
    assert own_model(net, SHAPE).card.name == taken.card.name  # whatever the last forward left
    assert [*map(id, net.parameters())] == [*map(id, parameters)]
    assert all(one.requires_grad == learns for one in parameters)
    net.train()(images).sum()
    folded, _ = fold_batch_norm(net)  # as who loads a file of weights into it again does
    assert [layer.name for layer in walk(folded)] == ["0.weight", "3.weight"]


def test_spectral_norm_is_converted_by_openvino() -> None:
    taken = own_model(network(parametrizations.spectral_norm), SHAPE)
    openvino.prepare(taken.module, SHAPE)


class Noise(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 5)
        parametrizations.spectral_norm(self.layer, "weight_hh_l0")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(images)[0][:, -1])  # type: ignore[no-any-return]


def test_a_network_in_training_is_measured_as_it_is_in_evaluation() -> None:
    """Moving a recurrent layer reads its weights, and each reading is a step of the norm in training."""
    torch.manual_seed(0)
    net, image = Recurrent().train(), torch.randn(2, 3, 4)
    taken = own_model(net, (3, 4))
    assert net.training
    assert torch.equal(taken.module.layer.weight_hh_l0, net.eval().layer.weight_hh_l0)
    assert torch.allclose(taken.module(image), net(image), atol=1e-6)


def test_a_weight_that_each_forward_computes_otherwise_is_refused() -> None:
    layer = parametrize.register_parametrization(nn.Linear(4, 5), "weight", Noise())
    with pytest.raises(InputError, match="parametrization of weight does not give Linear the same weights"):
        own_model(layer, (4,))


def test_a_module_whose_forward_fails_says_that_first() -> None:
    with pytest.raises(InputError, match="fails in evaluation mode on inputs of shape"):
        own_model(parametrizations.weight_norm(nn.Linear(4, 5)), (3,))


def test_who_shares_what_is_pruned_keeps_its_own() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    prune.l1_unstructured(net[0], "weight", 0.5)
    expected, image = net[1].weight.clone(), torch.randn(1, 4)
    taken = own_model(net, (4,)).module
    assert torch.equal(taken[1].weight, expected)
    assert torch.allclose(taken(image), net(image))


def test_a_computed_buffer_stays_a_buffer() -> None:
    layer = nn.BatchNorm2d(3)
    parametrize.register_parametrization(layer, "running_mean", nn.Tanh())
    taken = without_computed(nn.Sequential(nn.Conv2d(3, 3, 1), layer).eval())
    assert {name for name, _ in taken[1].named_buffers()} >= {"running_mean", "running_var"}
    assert {name for name, _ in taken[1].named_parameters()} == {"weight", "bias"}


class Keeps(nn.Module):
    """What its last forward gave stays in attributes, as it is and among others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)
        self.kept: list[dict[str, Tensor]] = []
        self.last = torch.zeros(1)

    def forward(self, images: Tensor) -> Tensor:
        self.last = self.layer(images)
        self.kept.append({"last": self.last})
        return self.last


def test_what_a_forward_with_gradients_left_is_copied_without_them() -> None:
    net = Keeps()
    net(torch.randn(2, 4)).sum()
    copy = copied(net)
    assert torch.equal(copy.last, net.last)
    assert copy.kept[0]["last"] is copy.last
    assert copy.last.is_leaf
    assert not net.last.is_leaf
    own_model(net, (4,))


class Unseen:
    """An object of the user's own, into which nobody looks."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


def test_what_can_not_be_copied_is_said_with_what_to_do() -> None:
    net = Keeps()
    net.kept.append(Unseen(2 * net(torch.randn(2, 4))))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"can't be copied \(.*run it once under torch.no_grad\(\)"):
        own_model(net, (4,))


def test_a_model_of_a_source_is_ready_for_recipes_too() -> None:
    module = network(parametrizations.weight_norm).eval()
    module[3].requires_grad_(False)
    opened = open_model(replace(own_model(module, SHAPE), module=without_computed(module)))
    assert {*opened.published} == {"0.weight", "3.weight"}
    plain = nn.Linear(2, 2)
    assert without_computed(plain) is plain


@pytest.mark.parametrize("shape", [SHAPE, None])
def test_batch_norm_is_folded_into_a_computed_weight(shape: tuple[int, ...] | None) -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    folded, notes = fold_batch_norm(net, shape)
    assert notes == ()
    assert isinstance(folded[1], nn.Identity)
    image = torch.randn(1, *SHAPE)
    assert torch.allclose(folded(image), net(image), atol=1e-5)


def test_outputs_that_are_infinite_on_both_sides_are_alike() -> None:
    masked, other = torch.tensor([[1.0, -torch.inf]]), torch.tensor([[1.0, 2.0]])
    assert agree([masked], [masked])
    assert not agree([masked], [other])
    assert not agree([other], [masked])
