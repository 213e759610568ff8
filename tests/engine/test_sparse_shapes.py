"""The sparse engine on networks of other shapes than images to features to logits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_models import Branching
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import csr, kernels
from optimizer.engine.kernels.network import Network
from optimizer.engine.kernels.trace import trace
from optimizer.engine.sparse import prepare
from optimizer.engine.torch import parameters_of
from optimizer.recipe import QuantizeSpec, Recipe


class Ending(nn.Module):
    """A layer, and what is done to its outputs."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(6, 5), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x.flatten(1)))


def network_of(model: nn.Module, images: Tensor) -> Network:
    return Network(trace(model, images.shape), parameters_of(model), kernels.kernels(), threads=1)


@pytest.mark.parametrize(
    "end",
    [lambda x: x[:, :3], lambda x: x[:, :, None, None].sigmoid().flatten(1)],
    ids=["a view of the kernels' memory", "another name of what torch made"],
)
@torch.inference_mode()
def test_an_answer_is_not_overwritten_by_the_next_where_torch_ends_a_network(
    end: Callable[[Tensor], Tensor],
) -> None:
    model, images = Ending(end).eval(), torch.randn(2, 6, 1, 1)
    network = network_of(model, images)
    first = network.infer(images.numpy())
    network.infer(-images.numpy())
    np.testing.assert_allclose(first, model(images), atol=1e-5)


@pytest.mark.parametrize("sides", [1, 3])
@torch.inference_mode()
def test_features_of_one_or_three_dimensions_are_not_taken_for_tokens_or_planes(sides: int) -> None:
    convolution, pool = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}[sides]
    layers = convolution(3, 8, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(8, 4)
    model, signals = nn.Sequential(*layers).eval(), torch.randn(3, 3, *[4] * sides)
    answers = network_of(model, signals).infer(signals.numpy())
    np.testing.assert_allclose(answers, model(signals), atol=1e-5)


class Counted(nn.Module):
    """Whole numbers that an operation of the kernels' is done to, and features made of them."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.embedding, self.layer = change, nn.Embedding(9, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embedding(self.change(x.long())).mean(1))


@pytest.mark.parametrize(
    "change",
    [lambda x: x.clamp(0, 8), torch.relu, lambda x: (x + x).clamp(0, 8)],
    ids=["clamp", "relu", "sum"],
)
@torch.inference_mode()
def test_whole_numbers_are_not_taken_for_floats(change: Callable[[Tensor], Tensor]) -> None:
    model, images = Counted(change).eval(), torch.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(network_of(model, images).infer(images.numpy()), model(images), atol=1e-5)


class OneByOne(nn.Module):
    """OpenVINO converts it for the number of images that it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(x[image].flatten()[None])[0] for image in range(x.shape[0])])


@torch.inference_mode()
def test_a_batch_that_openvino_does_not_take_is_left_to_the_kernels() -> None:
    model, images = OneByOne().eval(), torch.randn(2, 6, 1, 1)
    runner = prepare(model, (6, 1, 1))(compress(model, Recipe()), images, threads=1, batch=2)
    np.testing.assert_allclose(runner.infer(images.numpy()), model(images), atol=1e-5)


class TwoBiases(nn.Module):
    """Two layers with a weight in common, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(x.flatten(1)))


@pytest.mark.parametrize("model", [TwoBiases(), nn.Linear(6, 6)], ids=["a shared weight", "a layer alone"])
def test_without_kernels_every_layer_is_replaced_by_its_own(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csr, "_seconds", lambda layer, inputs: 0 if isinstance(layer, csr.CsrLayer) else 1)
    inputs = torch.randn(2, 6)
    for quantize in QuantizeSpec(activation_bits=8), QuantizeSpec(precision="bf16"), QuantizeSpec():
        compressed = compress(model.eval(), Recipe(quantize=quantize))
        runner = csr.build(compressed, inputs, threads=1, batch=2, why="no compiler")
        answers, scored = runner.infer(inputs.numpy()), runner.score(inputs.numpy())
        np.testing.assert_allclose(answers, scored, atol=1e-5)
        exact = np.allclose(answers, model(inputs).detach(), atol=1e-5)
        assert exact is not quantize.rounds_activations
    (layer,) = runner.execution.layers
    assert layer.kernel == "torch CSR, 36 weights"
    assert "torch's CSR for 1 of 1 layers" in runner.execution.simulated[-1]


@pytest.mark.parametrize("shape", [(6,), (6, 2, 2, 2)])
def test_without_kernels_inputs_of_any_number_of_axes_are_taken(shape: tuple[int, ...]) -> None:
    model, inputs = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 5)).eval(), torch.randn(2, *shape)
    runner = csr.build(compress(model, Recipe()), inputs, threads=1, batch=2, why="no compiler")
    with torch.inference_mode():
        np.testing.assert_allclose(runner.infer(inputs.numpy()), model(inputs), atol=1e-5)


def test_without_kernels_a_model_that_looks_at_values_scores_one_at_a_time() -> None:
    model, inputs = Branching(6, 5).eval(), torch.tensor([[3.0], [-1.0]]).expand(2, 6).contiguous()
    runner = csr.build(compress(model, Recipe()), inputs, threads=1, batch=1, why="no compiler")
    with torch.inference_mode():
        np.testing.assert_allclose(
            runner.score(inputs.numpy()), torch.cat([model(one) for one in inputs.split(1)]), atol=1e-5
        )
