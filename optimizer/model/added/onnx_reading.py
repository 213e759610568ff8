"""An ONNX file read, checked and written anew, easy to convert. Runs in the limited process.

External data are taken in, from files beside it alone; weights in ``Constant`` nodes become initializers; an
input whose channels come last gets them first. Nothing is run.
"""

import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, import-not-found]
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import InputError
from optimizer.formats import format_bytes
from optimizer.model.added.declared import plain
from optimizer.model.added.limits import MAX_DIMENSIONS, MAX_FILE_BYTES, MAX_NAME, MAX_TENSORS
from optimizer.system.paths import READ_FLAGS

MAX_NODES = 50_000
SIDES = (224, 256, 299, 384, 32, 28, 64, 96, 128, 160, 192, 320, 352, 416, 512, 640)
"""Heights and widths that are tried for a network that does not say its own."""
COLOURS = (1, 3)
CHANNELS_FIRST = " channels first"
"""Behind the name of an input whose channels came last."""
SMALL_BYTES = 1 << 10
"""A tensor of numbers that shapes may depend on, such as how far an image is enlarged, has no more."""


def read_onnx(file: Path, target: Path, external: bool, grow: Callable[[int], None]) -> dict[str, Any]:
    """What the file holds, for people to read and for :mod:`optimizer.model.added.onnx_file`.

    ``external`` data may lie beside it; ``grow`` is told how many bytes they have in all. Raises InputError,
    and whatever damaged bytes make protobuf raise.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except DecodeError as error:
        raise InputError("it is no ONNX file, or a damaged one: export the network to ONNX again") from error
    graph = model.graph
    _check_nodes(model)
    _take_in(graph, file.parent if external else None, grow)
    for tensor in _tensors(graph):
        _check_tensor(tensor)
    facts = _facts(model)
    _lift_constants(graph)
    if _channels_first(graph):
        facts.append(("layout", "channels come last in the file; they are given first here"))
    shape, asks = _image_shape(model)
    about = plain({one.key: one.value for one in model.metadata_props})
    documented = plain({"model": model.doc_string, "graph": graph.doc_string})
    for said in documented.values():  # a JSON object, as some write
        about |= said if isinstance(said, dict) else {}
    del model.metadata_props[:], model.training_info[:], graph.value_info[:]
    onnx.save(model, target)
    may_classify = _may_classify(graph)
    return {
        "facts": facts,
        "shape": shape,
        "asks_shape": asks,
        "metadata": about,
        "may_classify": may_classify,
    }


def _check_nodes(model: Any) -> None:
    graph = model.graph
    if not graph.node:
        raise InputError("it has no nodes: it is empty, or no ONNX model")
    if len(graph.node) > MAX_NODES or len(graph.initializer) > MAX_TENSORS:
        raise InputError(
            f"it has {len(graph.node):,} nodes and {len(graph.initializer):,} tensors: up to {MAX_NODES:,} "
            f"and {MAX_TENSORS:,} are read"
        )
    if model.functions:
        raise InputError("it has functions of its own: export it with them inlined (onnx.inliner)")
    if graph.sparse_initializer:
        raise InputError("it has sparse tensors, which are not read: export it with dense ones")
    _put_in_order(graph)
    known = {""} | {one.name for one in (*graph.input, *graph.initializer)}
    for node in graph.node:
        _check_node(node, known)
        known |= {name for name in node.output if name}
    if missing := [one.name for one in graph.output if one.name not in known]:
        raise InputError(f"nothing gives its output {missing[0][:80]!r}")


def _check_node(node: Any, known: Set[str]) -> None:
    """``known``: the names that something before it gives."""
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise InputError(
                f"{named(node)} holds a graph of its own (control flow), which can't be converted: "
                "export the network without it, for a fixed input shape"
            )
    for name in node.input:
        if name not in known:
            raise InputError(
                f"{named(node)} reads {name[:80]!r}, which nothing gives, or only what depends "
                "on it: the graph has a cycle, or was cut off"
            )
    for number, name in enumerate(node.output):
        if name and (name in known or name in node.output[:number]):
            raise InputError(f"{named(node)} gives {name[:80]!r} a second time")


def _put_in_order(graph: Any) -> None:
    """Nodes behind those that they read. ONNX asks for that; ONNX Runtime does not, and its converter to
    float16 does not write them so. With a cycle they stay as they are."""
    gives = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    reads = {
        number: {gives[name] for name in node.input if name in gives}
        for number, node in enumerate(graph.node)
    }
    if all(number > max(before, default=-1) for number, before in reads.items()):
        return
    with suppress(CycleError):
        places = {number: place for place, number in enumerate(TopologicalSorter(reads).static_order())}
        graph.node.sort(
            key=lambda node: max((places[gives[name]] for name in node.output if name), default=0)
        )


def named(node: Any) -> str:
    """A node in words: its operator and its name."""
    return f"{node.op_type[:60]} (node {(node.name or (node.output[0] if node.output else ''))[:80]!r})"


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _take_in(graph: Any, folder: Path | None, grow: Callable[[int], None]) -> None:
    """External data, read from plain files beside the model."""
    outside = [tensor for tensor in _tensors(graph) if tensor.data_location == TensorProto.EXTERNAL]
    if not outside:
        return
    if folder is None:
        raise InputError(
            "its weights are in other files (external data), which don't come with it: save it as one file, "
            "or add it with `paretoscope add NAME --onnx FILE` where they lie beside it"
        )
    places = [_place(tensor, folder) for tensor in outside]
    if (total := sum(length for _, _, length in places)) > MAX_FILE_BYTES:
        raise InputError(
            f"its external data have {format_bytes(total)}: up to {format_bytes(MAX_FILE_BYTES)} are read"
        )
    grow(total)
    for tensor, (file, offset, length) in zip(outside, places, strict=True):
        with _opened(file) as opened:
            opened.seek(offset)
            tensor.raw_data = opened.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _place(tensor: Any, folder: Path) -> tuple[Path, int, int]:
    """In which file a tensor's external data lie, from which byte on, and how many they are."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    place = said.get("location", "")
    if place != os.path.basename(place) or place in ("", ".", "..") or "\\" in place:
        raise InputError(
            f"tensor {tensor.name[:80]!r} points to {place[:80]!r}: external data are read from files "
            "beside the model alone"
        )
    with _opened(folder / place) as opened:
        size = os.fstat(opened.fileno()).st_size
    try:
        offset = int(said.get("offset", 0))
        length = int(said.get("length", size - offset))
    except ValueError as error:
        raise InputError(f"its external data {place[:80]!r} can't be read ({error})") from error
    if offset < 0 or not 0 <= length <= size - offset:
        raise InputError(f"its external data {place[:80]!r} is shorter than it is said to be")
    return folder / place, offset, length


def _opened(file: Path) -> BinaryIO:
    """Raises InputError for what is no plain file."""
    try:
        descriptor = os.open(file, READ_FLAGS | getattr(os, "O_NOFOLLOW", 0))
    except (OSError, ValueError) as error:
        raise InputError(f"its external data {file.name[:80]!r} can't be read ({error})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"its external data {file.name[:80]!r} is no file")
    return os.fdopen(descriptor, "rb")


def _check_tensor(tensor: Any) -> None:
    """Raises InputError unless it holds as many values as its shape says."""
    shown = repr(tensor.name[:80])
    if len(tensor.name) > MAX_NAME or len(tensor.dims) > MAX_DIMENSIONS or min(tensor.dims, default=0) < 0:
        raise InputError(f"tensor {shown} has the shape {list(tensor.dims)[:10]}, which can't be")
    try:
        size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError as error:
        raise InputError(f"tensor {shown} is of type {tensor.data_type}, which is not read") from error
    if tensor.data_type == TensorProto.STRING:
        raise InputError(f"tensor {shown} holds text, which is not read")
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
        packed = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
        right = held == ((count + 1) // 2 if packed else count * size)
    else:
        held = max(
            len(getattr(tensor, kind))
            for kind in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        )
        right = held in (count, 2 * count, (count + 1) // 2)
    if not right:
        raise InputError(f"tensor {shown} of shape {list(tensor.dims)} does not have as many values")
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    if tensor.data_type in floats and np.isnan(numpy_helper.to_array(tensor)).any():
        raise InputError(f"tensor {shown} has values that are not a number: export whole weights")


def _facts(model: Any) -> list[tuple[str, str]]:
    graph = model.graph
    opsets = ", ".join(f"{one.domain[:40] or 'ai.onnx'} {one.version}" for one in model.opset_import)
    producer = f"{model.producer_name[:60]} {model.producer_version[:40]}".strip()
    operators = Counter(node.op_type[:40] for node in graph.node).most_common(8)
    weights = {one.name for one in graph.initializer}
    return [
        ("opset", opsets),
        ("made by", producer or "not said"),
        *(("input", _described(one)) for one in graph.input if one.name not in weights),
        *(("output", _described(one)) for one in graph.output),
        ("nodes", f"{len(graph.node):,}: " + ", ".join(f"{count:,} {kind}" for kind, count in operators)),
    ]


def _described(value: Any) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return f"{value.name[:60]} {kind} [{', '.join(map(str, dimensions(value)))}]"


def dimensions(value: Any) -> list[int | str]:
    """Of an input or output; a word for one that is not fixed."""
    sides = value.type.tensor_type.shape.dim
    return [side.dim_value if side.dim_value > 0 else side.dim_param[:20] or "?" for side in sides]


def _may_classify(graph: Any) -> bool:
    """Whether its outputs may be logits, ``[N, K]`` or ``[N, K, 1, 1]``, as far as the file says."""
    if len(graph.output) != 1:
        return False
    match dimensions(graph.output[0]):
        case []:  # not said
            return True
        case [_, classes]:
            return classes != 1
        case [_, classes, *sides] if len(sides) == 2:
            return classes != 1 and not any(isinstance(side, int) and side > 1 for side in sides)
        case _:
            return False


def _lift_constants(graph: Any) -> None:
    """``Constant`` nodes become initializers, and no initializer is an input."""
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            lifted = graph.initializer.add()
            lifted.CopyFrom(_constant(node))
            lifted.name = node.output[0]
        else:
            kept.append(type(node).FromString(node.SerializeToString()))  # emptied below otherwise
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)
    known = {tensor.name for tensor in graph.initializer}
    for value in [one for one in graph.input if one.name in known]:
        graph.input.remove(value)


def _constant(node: Any) -> Any:
    attribute: Any = node.attribute[0] if len(node.attribute) == 1 else None
    name = attribute.name if attribute is not None else "nothing"
    if name == "value":
        return attribute.t
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if name not in kinds:
        raise InputError(
            f"{named(node)} holds {name[:40]}, not a tensor or numbers, which can't be converted"
        )
    return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), kinds[name]))


def _image_input(graph: Any) -> Any:
    """The one input. Raises InputError unless it can be an image."""
    if len(graph.input) != 1:
        names = ", ".join(one.name[:40] for one in graph.input) or "none"
        raise InputError(
            f"it has {len(graph.input)} inputs ({names}): a network of one image [N, C, H, W] is needed"
        )
    (value,) = graph.input
    kind, shape = value.type.tensor_type.elem_type, ", ".join(map(str, dimensions(value)))
    in_python = (
        "a file must take float32 images [N, C, H, W]. A network of other inputs is measured in Python, as "
        "the torch module that it was exported from: optimizer.measure(module, data=(inputs, labels)), or "
        "data=inputs without labels; inputs are given as float32"
    )
    if len(dimensions(value)) != 4:
        raise InputError(f"it takes inputs [{shape}], and {in_python}")
    if kind != TensorProto.FLOAT:
        said = (
            TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else "no tensor"
        )
        raise InputError(
            f"its input {value.name[:40]!r} is {said}: export it with a float32 input, since {in_python}"
        )
    return value


def _channels_first(graph: Any) -> bool:
    """Whether channels came last, as from TensorFlow: then they are moved before the first node."""
    value = _image_input(graph)
    sides = dimensions(value)
    if sides[1] in COLOURS or sides[3] not in COLOURS:
        return False
    last, name = value.name, f"{value.name}{CHANNELS_FIRST}"
    moved = helper.make_node("Transpose", [name], [last], f"{last} channels last", perm=[0, 2, 3, 1])
    graph.node.insert(0, moved)
    shape = [sides[0], sides[3], sides[1], sides[2]]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return True


def _image_shape(model: Any) -> tuple[list[int], bool]:
    """Channels, height and width, and whether some of them had to be guessed.

    Channels are those of the first convolution, height and width the first of SIDES with which the shapes of
    all nodes agree, as far as ONNX infers them.
    """
    sides = dimensions(model.graph.input[0])[1:]
    if all(isinstance(side, int) for side in sides):
        return [int(side) for side in sides], False
    weights = {one.name: one.dims for one in model.graph.initializer}
    convolutions = (node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in weights)
    first = next(convolutions, None)
    group = next((one.i for one in first.attribute if one.name == "group"), 1) if first is not None else 1
    guessed = weights[first.input[1]][1] * group if first is not None else 3
    channels = sides[0] if isinstance(sides[0], int) else guessed
    bare = _without_weights(model)
    for side in SIDES:
        shape = [int(channels), *(one if isinstance(one, int) else side for one in sides[1:])]
        if _agrees(bare, shape):
            return shape, True
    return [int(channels), *(one if isinstance(one, int) else SIDES[0] for one in sides[1:])], True


def _without_weights(model: Any) -> Any:
    """A copy for shapes to be inferred of, which takes a minute a gigabyte with weights and reads none."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) > SMALL_BYTES:
            tensor.ClearField("raw_data")
    return bare


def _agrees(model: Any, shape: list[int]) -> bool:
    """Whether ONNX finds nothing against an input of that shape."""
    tried = onnx.ModelProto.FromString(model.SerializeToString())
    tried.graph.input[0].CopyFrom(
        helper.make_tensor_value_info(tried.graph.input[0].name, TensorProto.FLOAT, [1, *shape])
    )
    try:
        onnx.shape_inference.infer_shapes(tried, strict_mode=True, data_prop=True)
    except Exception:  # of its own kind, which says which node
        return False
    return True
