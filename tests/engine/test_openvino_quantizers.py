"""Quantizers placed once and given ranges for each recipe are those that NNCF gives each recipe's graph."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SMALL_SHAPE, Small
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import openvino_graph
from optimizer.engine.openvino import build
from optimizer.engine.openvino_batches import run_batches
from optimizer.engine.openvino_core import core
from optimizer.engine.openvino_graph import Converted, convert
from optimizer.engine.openvino_quantizers import (
    MIN_SHARE,
    REACHES,
    Extremes,
    Quantizer,
    insert,
    ranges,
    seen,
    set_levels,
)
from optimizer.model.folding import fold_batch_norm
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

EIGHT = QuantizeSpec(weight_bits=8, activation_bits=8)
HALF = Recipe(PruneSpec(sparsity=0.5, allocation="uniform"), EIGHT)


class Bounded(nn.Module):
    """Two branches that both reach the bound of ReLU6, concatenated, and one that is never alive."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.dead = (nn.Conv2d(1, 4, 3, padding=1) for _ in range(3))
        self.both, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 10)
        for branch in (self.left, self.right):
            nn.init.normal_(branch.weight, std=8)
        nn.init.constant_(self.dead.bias, -1e3)

    def forward(self, x: Tensor) -> Tensor:
        branches = [nn.functional.relu6(branch(x)) for branch in (self.left, self.right, self.dead)]
        return self.head(nn.functional.relu6(self.both(torch.cat(branches, 1))).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "encoder", "bounded", "tied"])
def test_one_placement_gives_what_nncf_gives_each_recipe(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    torch.manual_seed(0)
    model = Bounded().eval() if name == "bounded" else fold_batch_norm(small(name))[0]
    prepared = convert(model, SMALL_SHAPE)
    assert prepared.quantizers, "placed"
    compressed = compress(model, HALF)
    monkeypatch.setattr(Converted, "reach", lambda *_: 0.0)  # NNCF's own
    monkeypatch.setattr(Converted, "seen", lambda *_: ())
    monkeypatch.setattr(openvino_graph, "RANGE_IMAGES", len(small_images))

    def logits() -> np.ndarray:
        return build(prepared, compressed, small_images, threads=1, batch=1).score(small_images.numpy())

    placed_once = logits()
    monkeypatch.setattr(Converted, "quantizers", None)  # as where ranges are not to be had otherwise
    np.testing.assert_array_equal(placed_once, logits())


@pytest.mark.slow
def test_what_is_concatenated_has_one_range(small_images: Tensor) -> None:
    torch.manual_seed(0)
    prepared = convert(Bounded().eval(), SMALL_SHAPE)
    assert prepared.quantizers is not None
    together = [one for one in prepared.quantizers if any("cat" in name for name, _ in one.inputs)]
    assert len(together) == 3
    assert len({one.group for one in together}) == 1
    ends = ranges(together, seen(prepared.graph, together, small_images.numpy()))
    assert len({float(high) for _, high in ends}) == 1


def test_ranges_reach_as_far_as_suits_the_outputs() -> None:
    torch.manual_seed(0)
    prepared = convert(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), SMALL_SHAPE
    )
    placed, images = prepared.quantizers, torch.randn(32, *SMALL_SHAPE).numpy()
    assert placed

    def noise(reach: float) -> float:
        graph = prepared.graph.clone()
        insert(graph, placed, ranges(placed, seen(graph, placed, images), reach), 8)
        return float(np.square(answers(graph) - answers(prepared.graph)).sum())

    def answers(graph: Any) -> np.ndarray:
        return run_batches(core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), 1, images)

    for rare in 1, 100:  # one image is as large as the others, or far larger
        images[0] *= rare
        shown = seen(prepared.graph, placed, images)
        means, half, whole = (ranges(placed, shown, reach) for reach in REACHES)
        for low, middle, high in zip(means, half, whole, strict=True):
            assert low[1] < middle[1] < high[1]
            np.testing.assert_allclose(middle[1], (low[1] + high[1]) / 2, rtol=1e-6)
        found = prepared.reach(images, 8)
        assert noise(found) == min(noise(reach) for reach in REACHES)
        assert found > 0, "what is clipped costs more than finer steps win"


def test_a_channel_that_is_nearly_zero_keeps_a_grid(small: Small, small_images: Tensor) -> None:
    """Before a depthwise convolution, where each channel has a range of its own."""
    model, _ = fold_batch_norm(small("cnn"))
    with torch.no_grad():
        model.stem[0].weight[0] = 0
        model.stem[0].bias[0] = 1e-7
    prepared = convert(model, SMALL_SHAPE)
    channels = Quantizer(((prepared.operations["depthwise.0.weight"][0], 0),), (1, 8, 1, 1), 0)
    ((low, high),) = ranges([channels], seen(prepared.graph, [channels], small_images.numpy()))
    assert high.shape == (1, 8, 1, 1)
    assert not low.any()
    assert high.ravel()[0] == pytest.approx(0.01 * high.max())


def test_a_channel_has_room_above_what_a_few_images_show(small: Small, small_images: Tensor) -> None:
    """Up to the largest of its layer, and only where there are steps enough."""
    prepared = convert(fold_batch_norm(small("cnn"))[0], SMALL_SHAPE)
    channels = Quantizer(((prepared.operations["depthwise.0.weight"][0], 0),), (1, 8, 1, 1), 0)
    shown = seen(prepared.graph, [channels], small_images.numpy())
    room, none = (ranges([channels], shown, bits=bits)[0][1].ravel() for bits in (8, 6))
    live = none > 1.01 * MIN_SHARE * none.max()
    np.testing.assert_allclose(room[live], np.minimum(2 * none, none.max())[live])
    assert np.count_nonzero(room[live] == 2 * none[live]) > 1


def test_a_range_has_room_for_what_more_images_showed_before_compression() -> None:
    """As much larger or smaller as the compressed network's activations are on the images that are common."""
    placed = [Quantizer((), (1, 3, 1, 1), 0), Quantizer((), (), 1)]
    before = [
        Extremes(np.zeros((4, 3), np.float32), np.float32([[2, 2, 4], [1, 2, 4], [9, 1, 1], [1, 1, 12]])),
        Extremes(np.float32([[0], [0], [-1], [0]]), np.float32([[1], [3], [6], [6]])),
    ]
    compressed = [
        Extremes(np.zeros((2, 3), np.float32), np.float32([[1, 1, 0], [1, 2, 1]])),
        Extremes(np.zeros((2, 1), np.float32), np.float32([[4], [4]])),
    ]
    (low, channels), (signed, whole) = ranges(placed, compressed, 0, 6, before)
    assert not low.any(), "of values that are never below zero"
    np.testing.assert_allclose(channels.ravel(), [4.5, 2, 6])  # half of 9 and 12, for 4 of 8; 2 of its own
    np.testing.assert_allclose(whole, 8)  # twice the mean of all
    assert signed < 0, "one of the others is"
    ((_, channels), _) = ranges(placed, compressed, 0, 8, before)
    np.testing.assert_allclose(channels.ravel(), [6, 4, 6], err_msg="twice as far, up to the largest")
    alone = ranges(placed, compressed, 0, 6)
    np.testing.assert_allclose(alone[0][1].ravel(), [1, 2, 1])


def test_what_the_uncompressed_network_showed_is_read_once(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all recipes; other images are read anew."""
    read = list[int]()

    def counted(graph: Any, placed: Any, images: np.ndarray) -> list[Extremes]:
        read.append(len(images))
        return seen(graph, placed, images)

    monkeypatch.setattr(openvino_graph, "seen", counted)
    model, images = fold_batch_norm(small("cnn"))[0], small_images.repeat(3, 1, 1, 1)
    prepared = convert(model, SMALL_SHAPE)
    for recipe in (HALF, Recipe(quantize=EIGHT)):
        build(prepared, compress(model, recipe), images, threads=1, batch=1)
    assert read == [len(images), 16, 16]
    build(prepared, compress(model, HALF), images + 1, threads=1, batch=1)
    assert read == [len(images), 16, 16, len(images), 16]


class Fixed(nn.Module):
    """Multiplies with a buffer as well: on a grid of 8 bits from its largest weight, all others are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)
        mixing = torch.randn(4, 4, 1, 1)
        mixing[:, 0] = 1e3
        self.register_buffer("mixing", mixing)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x).relu()
        kept = torch.cat([0 * features[:, :1], features[:, 1:]], 1)
        return self.head(nn.functional.conv2d(kept, self.mixing).mean((2, 3)))


@pytest.mark.parametrize("placed", [True, False])
def test_a_weight_of_no_layer_stays_as_it_is(
    small_images: Tensor, monkeypatch: pytest.MonkeyPatch, placed: bool
) -> None:
    torch.manual_seed(0)
    model = Fixed().eval()
    prepared = convert(model, SMALL_SHAPE)
    assert len(prepared.others) == 1
    if not placed:
        monkeypatch.setattr(Converted, "quantizers", None)
    compressed = compress(model, Recipe(quantize=EIGHT))
    runner = build(prepared, compressed, small_images, threads=1, batch=1)
    exact = model(small_images).detach().numpy()
    error = runner.score(small_images.numpy()) - exact
    assert np.square(error).mean() < 0.1 * np.square(exact - exact.mean(0)).mean()


def test_a_network_has_more_operations_in_a_row_than_python_nests_calls() -> None:
    import openvino
    from openvino import opset13 as ops

    value = images = ops.parameter([1, 4], np.float32)
    for _ in range(sys.getrecursionlimit()):
        value = ops.relu(value)
    ends = [ops.constant(np.float32(end)) for end in (0, 1)]
    rounded = ops.fake_quantize(value, *ends, *ends, 256)
    graph = openvino.Model([rounded], [images])
    set_levels(graph, 4)
    assert rounded.get_attributes()["levels"] == 16
