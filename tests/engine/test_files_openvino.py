"""Networks of ONNX files on OpenVINO: which kernel runs which layer."""

from typing import Any

import numpy as np
import onnx
import pytest
from hostile_graphs import graph, node

from optimizer.engine import files_openvino
from optimizer.engine.opened import Network
from optimizer.engine.realised import UNTOLD
from optimizer.records import LayerExecution

random = np.random.default_rng(0)
CHANNELS = {name: np.abs(random.normal(size=4)).astype(np.float32) for name in "smvb"}
FILTERS = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
MATRIX = random.normal(size=(16, 16)).astype(np.float32)
ROW = random.normal(size=16).astype(np.float32)

FORMS: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "a batch norm of its own": (
        [node("Conv", "x w", "a"), node("BatchNormalization", "a s b m v", "c"), node("Relu", "c")],
        {"w": FILTERS, **CHANNELS},
    ),
    "a bias and a batch norm": (
        [node("Conv", "x w b", "a"), node("BatchNormalization", "a s b m v", "c"), node("Relu", "c")],
        {"w": FILTERS, **CHANNELS},
    ),
    "a product that lies the other way around": (
        [node("MatMul", "x p", "a"), node("Add", "a r", "c"), node("Relu", "c")],
        {"p": MATRIX, "r": ROW},
    ),
    "two layers of one weight": (
        [
            node("MatMul", "x p", "a"),
            node("Add", "a r", "c"),
            node("Relu", "c", "d"),
            node("MatMul", "d p", "e"),
            node("Add", "e r"),
        ],
        {"p": MATRIX, "r": ROW},
    ),
    "a transposed convolution": (
        [node("ConvTranspose", "x t", "a"), node("Relu", "a")],
        {"t": FILTERS.swapaxes(0, 1).copy()},
    ),
}


def executed(made: onnx.ModelProto) -> tuple[LayerExecution, ...]:
    network = Network(onnx=made.SerializeToString())
    return files_openvino.opened(network, (3, 16, 16), threads=1, batch=1).runner.execution.layers


@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_of_each_layer_is_known(form: str) -> None:
    nodes, tensors = FORMS[form]
    layers = executed(graph(nodes, tensors))
    assert len(layers) == sum(one.op_type in ("Conv", "MatMul", "ConvTranspose") for one in nodes)
    assert all((one.precision, one.kernel) != UNTOLD and one.precision == "f32" for one in layers)


def test_what_adds_a_layer_s_bias_is_not_what_runs_it() -> None:
    """Both branches end in one addition, which OpenVINO puts into a kernel of either."""
    nodes = [
        node("MatMul", "x p", "a"),
        node("Sigmoid", "x", "d"),
        node("MatMul", "d q", "e"),
        node("Add", "a e"),
    ]
    layers = executed(graph(nodes, {"p": MATRIX, "q": MATRIX + 1}))
    assert [(one.precision, one.others) for one in layers] == [("f32", ())] * 2
