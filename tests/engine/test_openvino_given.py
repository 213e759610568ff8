"""Layers whose products OpenVINO cuts, or works out for good: cross-attention, and what a learned query is
multiplied with."""

import numpy as np
import pytest
import torch
from engine_runs import EXACT, INT8, ON_INT8_KERNELS, off, with_shifted_biases
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import openvino
from optimizer.engine.openvino_given import Product, take_in

SHAPE = 6, 8


class Asks(nn.Module):
    """Cross-attention of a learned query, or of the first row with other keys than values."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 2, 8)) if learned else None
        self.head = nn.Linear(8, 3)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, images: Tensor) -> Tensor:
        if self.query is None:
            asked = self.attention(images[:, :1], images + 1, images, need_weights=False)
        else:
            query = self.query.expand(images.shape[0], -1, -1)
            asked = self.attention(query, images, images, need_weights=False)
        return self.head(asked[0].mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("learned", [True, False])
@torch.inference_mode()
def test_each_product_of_cross_attention_gets_its_rows_of_a_recipe(learned: bool) -> None:
    torch.manual_seed(0)
    model, images = Asks(learned).eval(), torch.randn(4, *SHAPE)
    build = openvino.prepare(model, SHAPE)
    pruned = with_shifted_biases(model, EXACT[3])
    int8 = compress(model, ON_INT8_KERNELS[0])
    for compressed, tolerance in (pruned, 1e-5), (int8, 0.05):
        runner, expected = build(compressed, images, threads=1, batch=1), compressed.module(images).numpy()
        assert off(runner.score(images.numpy()), expected) < tolerance, compressed.recipe
    assert {layer.precision for layer in runner.execution.layers} <= {*INT8}, runner.execution.layers


class AtTwoScales(nn.Module):
    """A convolution and its batch norm that run twice, as in a detector's head: the converter multiplies the
    weight with the norm's scale. One without a norm may have the same weight."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2)
        self.both = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 3)
        if tied:
            self.down.weight = self.both[0].weight

    def forward(self, images: Tensor) -> Tensor:
        large = self.stem(images)
        scales = large, self.down(large)
        return self.head(sum(torch.relu(self.both(one)).mean((2, 3)) for one in scales))


@torch.inference_mode()
def test_the_bias_of_a_layer_that_runs_twice_is_shifted_once_in_each_run() -> None:
    torch.manual_seed(0)
    model, images = AtTwoScales(tied=False).eval(), torch.randn(4, 3, 12, 12)
    made = with_shifted_biases(model, EXACT[3])
    runner = openvino.prepare(model, (3, 12, 12))(made, images, threads=1, batch=1)
    assert off(runner.score(images.numpy()), made.module(images).numpy()) < 1e-5


@torch.inference_mode()
def test_a_weight_is_put_in_also_where_the_converter_changed_it_for_one_of_its_layers() -> None:
    torch.manual_seed(0)
    model, images = AtTwoScales(tied=True).eval(), torch.randn(4, 3, 12, 12)
    made = compress(model, EXACT[3])
    runner = openvino.prepare(model, (3, 12, 12))(made, images, threads=1, batch=1)
    assert off(runner.score(images.numpy()), made.module(images).numpy()) < 1e-5


@pytest.mark.parametrize(
    ("axis", "lengths", "multiplied"),
    [(0, [2, 4], [0, 1]), (0, [2, 4], [1]), (1, [2, 2], [0, 1])],
    ids=["all rows", "not all rows", "columns"],
)
def test_a_layer_is_understood_where_all_of_its_rows_are_multiplied(
    axis: int, lengths: list[int], multiplied: list[int]
) -> None:
    import openvino as runtime
    from openvino import opset13 as ops

    weight = np.arange(24, dtype=np.float32).reshape(6, 4)
    given = ops.parameter([6, 4], np.float32)
    cut = ops.variadic_split(given, axis, lengths).outputs()
    images = ops.parameter([1, cut[0].get_shape()[1]], np.float32)
    products = [ops.matmul(images, cut[number], False, True) for number in multiplied]
    found = take_in(runtime.Model(products, [images, given]), {"head": weight})
    if (axis, multiplied) == (0, [0, 1]):
        names = [one.get_friendly_name() for one in products]
        assert {*found} == {Product("head", names[0], (0, 2)), Product("head", names[1], (2, 6))}
        values = [one.input_value(1).get_node().get_data() for one in products]
        np.testing.assert_array_equal(np.concatenate(values), weight)
    else:
        assert found == []
