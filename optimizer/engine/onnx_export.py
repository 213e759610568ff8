"""The float32 ONNX graph of a module, as torch exports it, and which of its constants are whose weights."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.engine.exporting import exporting
from optimizer.errors import WorkError, one_line
from optimizer.model.examples import examples
from optimizer.model.layers import by_path, multiplications, walk
from optimizer.records import Part

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """The float32 graph of ``module``; nothing changes it.

    ``weights``: for each initializer that holds a layer's weight, the layer, and whether it is transposed
    there. ``others``: initializers that are another parameter, whose path they have for a name. ``running``
    layers multiply at all. ``dynamic``: it takes any number of images, else one at a time.
    """

    model: Any
    module: nn.Module
    input_shape: tuple[int, ...]
    dynamic: bool
    weights: Mapping[str, tuple[str, bool]]
    others: frozenset[str]
    running: tuple[str, ...]


def lacking() -> str | None:
    """Why no graph can be made here, or None."""
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if not absent:
        return None
    named = " and ".join([*([", ".join(absent[:-1])] if absent[:-1] else []), absent[-1]])
    return f"no package {named} (pip install 'paretoscope[onnx]')"


def export(module: nn.Module, shape: tuple[int, ...]) -> Exported:
    """Export ``module`` for images ``[C, H, W]``. Raises WorkError when torch can't, or ONNX Runtime could
    not load it."""
    model, dynamic = _whole_graph(module, shape)
    if _computes_in_bfloat16(model.graph):
        raise WorkError(
            "this model's own code computes in bfloat16, as in torch.autocast, for which ONNX Runtime has no "
            "kernels on processors"
        )
    _strip(model)
    weights = _layers_in(model.graph, module)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    others = frozenset(
        initializer.name
        for initializer in model.graph.initializer
        if initializer.name not in weights
        and initializer.name in parameters
        and _holds(initializer, parameters[initializer.name])
    )
    running = tuple(name for name, runs in multiplications(module, shape).items() if runs)
    return Exported(model, module, shape, dynamic, weights, others, running)


def _whole_graph(module: nn.Module, shape: tuple[int, ...]) -> tuple[Any, bool]:
    """The graph in float32, and whether it takes any number of images. Raises WorkError."""
    try:
        model = _export(module, examples(module, shape, 2), ({0: torch.export.Dim("batch")},))
    except Exception:  # the exporter raises whatever the model's code or its own passes raise
        pass
    else:  # without a word it may have settled for the two images that it was shown
        if model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
            return model, True
    try:
        return _export(module, examples(module, shape), None), False
    except Exception as error:
        reason = one_line(error.__cause__ or error, 300)  # its own has what would come next
        raise WorkError(f"torch can't export this model to ONNX: {reason}") from error


def _export(module: nn.Module, images: Tensor, dynamic: Any) -> Any:
    with exporting():
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def taken_apart(model: Any, parts: Sequence[Part]) -> Any:
    """``model``, changed to give each of the ``parts`` under its own name, where its output is several, one
    behind the other."""
    from onnx import TensorProto, helper, numpy_helper

    if not parts:
        return model
    graph, names = model.graph, [name for name, _ in parts]
    new = max(names, key=len)  # with more behind it, it is none of theirs
    _rename(graph, {name: f"{new} inner {number}" for number, name in enumerate(names)})
    joined, images = graph.output[0].name, graph.input[0].type.tensor_type.shape.dim[0]
    rows = [f"{new} row {number}" for number in range(len(parts))]
    arrays = {f"{new} sizes": np.array([math.prod(shape) for _, shape in parts])}
    graph.node.append(helper.make_node("Split", [joined, *arrays], rows, f"{new} rows", axis=-1))
    del graph.output[:]
    for (name, shape), row in zip(parts, rows, strict=True):
        arrays[f"{row} shape"] = np.array([-1, *shape])
        graph.node.append(helper.make_node("Reshape", [row, f"{row} shape"], [name], f"{row} shaped"))
        sizes = [images.dim_param or images.dim_value, *shape]
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def renamed(model: Any, given: str, answer: str) -> Any:
    """``model``, changed to have these names for its input and, where it gives one, for its output."""
    graph = model.graph
    names = {graph.input[0].name: given}
    if len(graph.output) == 1:
        names[graph.output[0].name] = answer
    new = [*names.values()]
    longest = max(new, key=len)  # with more behind it, it is none of theirs
    _rename(graph, {name: f"{longest} inner {number}" for number, name in enumerate(new)} | names)
    return model


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give tensors other names."""
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]


def _strip(model: Any) -> None:
    """Take out what the exporter noted of its work: source lines, with the paths of this machine."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _computes_in_bfloat16(graph: Any) -> bool:
    """Whether an operation other than a conversion gives bfloat16."""
    from onnx import TensorProto

    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return any(
        types.get(name) == TensorProto.BFLOAT16
        for node in graph.node
        if node.op_type != "Cast"
        for name in node.output
    )


def _holds(initializer: Any, values: Tensor) -> bool:
    from onnx import numpy_helper

    return np.array_equal(numpy_helper.to_array(initializer), values.detach().numpy())


def _layers_in(graph: Any, module: nn.Module) -> dict[str, tuple[str, bool]]:
    """For each initializer that holds a layer's weight: the layer, and whether it is transposed there.

    By value: the exporter names what it folds itself, and a wrong match would give wrong answers in silence.
    """
    from onnx import TensorProto, numpy_helper

    weights, aliases = {layer.name: layer.weight.detach().numpy() for layer in walk(module)}, by_path(module)
    # A MatMul takes [in, out]. Of a weight that equals its transpose, values don't tell which it is.
    turned = {node.input[1] for node in graph.node if node.op_type == "MatMul"} - aliases.keys()
    found: dict[str, tuple[str, bool]] = {}
    for initializer in graph.initializer:
        if len(initializer.dims) < 2 or initializer.data_type != TensorProto.FLOAT:
            continue
        values, likely = numpy_helper.to_array(initializer), aliases.get(initializer.name)
        first = initializer.name in turned
        same = (
            (name, transposed)
            for name in sorted(weights, key=lambda name: name != likely)
            for transposed in ((first, not first) if values.ndim == 2 else (False,))
            if np.array_equal(values, weights[name].T if transposed else weights[name])
        )
        if one := next(same, None):
            found[initializer.name] = one
    return found
