"""Matrices in OpenVINO's int8 kernels, one after the other: what int8 does to the time of n weights."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import openvino
from openvino import opset13 as ops
from torch import Tensor

from optimizer.engine.openvino_core import compile_graph
from optimizer.engine.realised import INT8
from optimizer.errors import WorkError

LEVELS = 256
MAX_ERROR = 0.3
"""Of what rounding may change; ten matrices change 0.05."""


def chain(weights: Sequence[Tensor], inputs: np.ndarray, threads: int) -> Callable[[], object]:
    """A call that takes ``inputs`` ``[columns, width]`` or ``[columns]`` through one matrix
    ``[rows, columns]`` after the other: weights in int8, inputs rounded to it before each.

    Raises WorkError when OpenVINO ran a layer in another precision, or computed something else: with eight
    columns or fewer its 2026 releases do, for several small matrices in a row.
    """
    columns = np.ascontiguousarray(inputs.reshape(len(inputs), -1).T)
    values = source = ops.parameter(columns.shape, np.float32)
    exact = columns
    for weight in (weight.detach().numpy() for weight in weights):
        largest = max(float(np.abs(exact).max()), 1e-12)
        limits = [ops.constant(np.float32(limit)) for limit in (-largest, largest)]
        rounded = ops.fake_quantize(values, *limits, *limits, LEVELS)
        values = ops.matmul(rounded, _codes(weight), False, True)
        exact = exact @ weight.T
    model = openvino.Model([values], [source])
    compiled = compile_graph(model, list(columns.shape), "LATENCY", threads, "f32")
    _check(compiled)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(columns, shared_memory=True))
    result = request.infer()[0]
    if np.linalg.norm(result - exact) > MAX_ERROR * np.linalg.norm(exact):
        raise WorkError(
            f"OpenVINO's int8 kernels gave wrong results for {len(columns)} columns through {len(weights)} "
            f"matrices of {weights[0].shape[0]} rows"
        )
    return partial(_infer, request, columns)


def _infer(request: openvino.InferRequest, columns: np.ndarray) -> object:
    """``columns`` is the memory that the request reads: it must live as long."""
    return request.infer(share_outputs=True)


def _codes(weight: np.ndarray) -> openvino.Node:
    """int8 codes and a scale a row: the pattern that becomes int8 kernels."""
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
    codes = np.round(weight / scale).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(codes), np.float32), ops.constant(scale))


def _check(compiled: openvino.CompiledModel) -> None:
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if str(info["layerType"].value) in ("FullyConnected", "MatMul"):
            precision = str(info["runtimePrecision"].value)
            if precision not in INT8:
                raise WorkError(f"OpenVINO ran a matrix product in {precision} where int8 was asked for")
