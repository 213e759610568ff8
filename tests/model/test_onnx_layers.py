"""What becomes of the layers of an ONNX file: what is folded into them, and how they can be compressed."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_graphs import SIDES, graph, node
from test_onnx_files import CONV, GRAPHS, read, weights

from optimizer.compression.prune.coupling import groups
from optimizer.errors import InputError
from optimizer.model.added import onnx_check
from optimizer.model.added.onnx_conversion import ROUNDS, convert
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk


def test_layers_have_the_names_of_their_weights_and_can_be_compressed(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x block.0.conv.weight", "a"),
        node("Relu", "a", "b"),
        node("Conv", "b block.0.conv.weight", "c", pads=[1, 1, 1, 1]),
        node("Conv", "c 7"),
    ]
    tensors = {"block.0.conv.weight": weights(3, 3, 3, 3), "7": weights(4, 3, 1, 1)}
    kept, _ = read(graph(nodes, tensors), tmp_path)
    module = convert(kept, SIDES)
    names = [layer.name for layer in walk(module)]
    assert names == ["network.block.0.conv.weight", "network.block.0.conv_2.weight", "network.Conv_y.weight"]
    assert torch.equal(copy.deepcopy(module)(torch.ones(1, *SIDES)), module(torch.ones(1, *SIDES)))


@pytest.mark.parametrize(
    ("nodes", "biases"),
    [
        ([node("MatMul", "x w", "a"), node("Add", "a b")], [True]),
        ([node("MatMul", "x w", "a"), node("Add", "b a")], [True]),
        ([node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("Add", "c b")], [True]),
        ([node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("Mul", "a c")], [False]),
        (
            [node("MatMul", "x w", "a"), node("Relu", "a", "d"), node("Add", "a b", "c"), node("Mul", "c d")],
            [False],
        ),
        (
            [
                node("MatMul", "x w", "a"),
                node("Identity", "a", "d"),
                node("Add", "d b", "c"),
                node("Mul", "a c"),
            ],
            [False],
        ),
        ([node("MatMul", "x w", "a"), node("Add", "a r")], [False]),
        ([node("MatMul", "x w", "a"), node("Add", "a mask")], [False]),
        ([node("MatMul", "x w", "a"), node("Add", "a one")], [False]),
        ([node("MatMul", "x w", "a"), node("MatMul", "x w", "c"), node("Add", "a c")], [False, False]),
    ],
    ids=[
        "after",
        "before",
        "twice",
        "read by another later",
        "read by another first",
        "read under another name",
        "for each row",
        "infinite",
        "one for all",
        "of two layers",
    ],
)
def test_a_sum_with_a_constant_is_the_bias_of_the_product_before_it(
    nodes: Any, biases: list[bool], tmp_path: Path
) -> None:
    tensors = {"w": weights(16, 8), "b": weights(8), "r": weights(16, 1), "one": weights(1)}
    tensors["mask"] = np.float32([0, -np.inf] * 4)
    kept, _ = read(graph(nodes, tensors), tmp_path)
    if "mask" not in {name for one in nodes for name in one.input}:
        assert onnx_check.check(kept, SIDES) == {"difference": pytest.approx(0, abs=1e-5), "for_one": False}
    assert [layer.module.bias is not None for layer in walk(convert(kept, SIDES))] == biases


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_a_product_and_a_sum_for_each_channel_are_a_batch_norm_and_are_folded(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    nodes = [
        *(node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Mul", "s a", "b"), node("Add", "b t", "c")),
        *(node("Relu", "c", "d"), node("Conv", "d v", "e"), node("Add", "t e", "f"), node("Mul", "f f")),
    ]
    numbers = {"s": weights(4).reshape(shape), "t": weights(5)[:4].reshape(shape)}
    tensors = {"w": weights(4, 3, 3, 3), "v": weights(4, 4, 1, 1), **numbers}
    kept, _ = read(graph(nodes, tensors, sides=("N", *SIDES)), tmp_path)
    assert onnx_check.check(kept, SIDES) == {"difference": pytest.approx(0, abs=1e-5), "for_one": False}
    module, notes = fold_batch_norm(convert(kept, SIDES), SIDES)
    first, second = (layer.module for layer in walk(module))
    scaled = numbers["s"].reshape(4, 1, 1, 1) * tensors["w"]
    np.testing.assert_allclose(first.weight.detach().numpy(), scaled, rtol=1e-6)
    for one in (first, second):
        np.testing.assert_allclose(one.bias.detach().numpy(), numbers["t"].flatten(), rtol=1e-6)
    assert not notes
    assert [bool(group.held) for group in groups(module, SIDES)] == [False, True]


def test_channels_can_go_before_a_shape_that_says_their_number_and_a_product_with_a_sum(
    tmp_path: Path,
) -> None:
    nodes = [
        *(node("Conv", "x c", "a"), node("Relu", "a", "b"), node("Reshape", "b s", "d")),
        *(node("MatMul", "d w", "e"), node("Add", "e f", "g"), node("Relu", "g", "h"), node("MatMul", "h v")),
    ]
    tensors = {"c": weights(4, 3, 1, 1), "s": np.array([-1, 4 * 16 * 16]), "w": weights(4 * 16 * 16, 8)}
    tensors |= {"f": weights(8), "v": weights(8, 5)}
    kept, _ = read(graph(nodes, tensors, sides=("N", *SIDES)), tmp_path)
    found = groups(convert(kept, SIDES), SIDES)
    assert [(group.channels, bool(group.held)) for group in found] == [(4, False), (8, False), (5, True)]


@pytest.mark.parametrize(("name", "taken"), [("quantized", True), ("dilated", False)])
def test_where_a_file_rounds_activations_a_code_more_or_less_is_no_other_network(
    name: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_check, "difference", lambda have, want: 0.01)
    kept, _ = read(GRAPHS[name], tmp_path)
    if taken:
        assert onnx_check.check(kept, SIDES)["difference"] == 0.01
        assert convert(kept, SIDES).notes == (ROUNDS,)
    else:
        with pytest.raises(InputError, match=r"by 0.01 of their range \(0.001 is .*`paretoscope compare`"):
            onnx_check.check(kept, SIDES)
        assert not convert(kept, SIDES).notes


def test_channels_can_go_where_they_are_rounded_on_the_way(tmp_path: Path) -> None:
    nodes = [
        *(node("Conv", "x w", "a"), node("Relu", "a", "b"), node("QuantizeLinear", "b s z", "c")),
        *(node("DequantizeLinear", "c s z", "d"), node("Conv", "d v")),
    ]
    tensors = {"w": weights(4, 3, 3, 3), "v": weights(4, 4, 1, 1), "s": np.float32(0.02), "z": np.uint8(0)}
    kept, _ = read(graph(nodes, tensors, sides=("N", *SIDES)), tmp_path)
    assert [bool(group.held) for group in groups(convert(kept, SIDES), SIDES)] == [False, True]


def test_weights_alone_that_are_rounded_are_no_rounded_activations(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", "w s z", "a"),
        node("DequantizeLinear", "a s z", "b"),
        node("Conv", "x b"),
    ]
    tensors = {"w": weights(4, 3, 3, 3), "s": np.float32(0.02), "z": np.int8(0)}
    kept, _ = read(graph(nodes, tensors), tmp_path)
    assert not convert(kept, SIDES).notes


@pytest.mark.parametrize(
    "nodes",
    [
        [node("QuantizeLinear", "x s", output_dtype=21)],
        [node("Cast", "x", "a", to=4), node("Cast", "a", to=1)],
    ],
    ids=["codes of 4 bits", "numbers of 16 bits that wrap around"],
)
def test_codes_that_torch_would_make_otherwise_are_refused(nodes: Any, tmp_path: Path) -> None:
    kept, _ = read(graph(nodes, {"s": np.float32(0.3)}, opset=21), tmp_path)
    with pytest.raises(InputError, match="can't be converted: .* has (codes|type)"):
        convert(kept, SIDES)


def test_a_matrix_on_the_left_of_a_product_is_a_layer(tmp_path: Path) -> None:
    kept, _ = read(GRAPHS["product from the left"], tmp_path)
    assert [layer.weight.shape for layer in walk(convert(kept, SIDES))] == [(8, 16)]


def test_batch_norm_is_folded(tmp_path: Path) -> None:
    more = {name: np.abs(weights(4)) for name in "stuv"}
    kept, _ = read(
        graph([node("Conv", "x w", "a"), node("BatchNormalization", "a s t u v")], CONV | more), tmp_path
    )
    folded, notes = fold_batch_norm(convert(kept, SIDES))
    assert not notes
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
