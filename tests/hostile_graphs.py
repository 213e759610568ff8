"""ONNX graphs, whole and hostile."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDES = (3, 16, 16)


def graph(
    nodes: list[Any],
    tensors: dict[str, np.ndarray] | None = None,
    sides: tuple[object, ...] = ("batch", *SIDES),
    opset: int = 17,
    outputs: tuple[str, ...] = ("y",),
    kind: int = TensorProto.FLOAT,
) -> Any:
    """A model that makes ``outputs`` of images ``x``."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, sides)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in (tensors or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    """Names are single words: ``node("Add", "x b")``."""
    made = outputs.split(" ")
    return helper.make_node(kind, inputs.split(" "), made, name=f"{kind}_{made[0]}", **attributes)


def classifier(**options: Any) -> Any:
    """A convolution and a linear layer to five classes, with a ``Constant`` for a weight."""
    random = np.random.default_rng(0)
    weight = numpy_helper.from_array(random.normal(size=(4, 3, 3, 3)).astype(np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        node("Conv", "x w", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Flatten", "b", "c"),
        node("Gemm", "c v u", transB=1),
    ]
    tensors = {
        "v": random.normal(size=(5, 256)).astype(np.float32),
        "u": random.normal(size=5).astype(np.float32),
    }
    return graph(nodes, tensors, **options)


def hostile_graphs() -> Iterator[tuple[str, bytes]]:  # noqa: C901 (a list)
    whole = classifier().SerializeToString()
    for part in range(40):
        yield f"cut off at {part} of 40", whole[: part * len(whole) // 40]
    for number, junk in enumerate((b"onnx, please", bytes(4096), b"\xff" * 4096, b"\x0a" * 10_000)):
        yield f"junk {number}", junk

    def changed(change: Callable[[Any], object]) -> bytes:
        model = classifier()
        change(model)
        content: bytes = model.SerializeToString()
        return content

    def outside(**said: str) -> bytes:
        def change(model: Any) -> None:
            tensor = model.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in said.items():
                tensor.external_data.add(key=key, value=value)

        return changed(change)

    for place in (
        "/etc/passwd",
        "../x",
        "..",
        ".",
        "",
        "a/b",
        "..\\x",
        "nothing",
        "a/../../x",
        "link",
        "folder",
    ):
        yield f"external data at {place!r}", outside(location=place)
    for offset, length in (
        ("-1", "9"),
        ("9" * 30, "1"),
        ("0", "9" * 12),
        ("x", "1"),
        ("0", "-2"),
        ("5", "5120"),
    ):
        yield (
            f"external data from {offset[:9]}, {length}",
            outside(location="data", offset=offset, length=length),
        )
    for dims in ((-1, 4), (2**40, 2**20), (5, 255), (0,), (1,) * 12, (2**62, 4)):

        def lie(model: Any, dims: tuple[int, ...] = dims) -> None:
            del model.graph.initializer[0].dims[:]
            model.graph.initializer[0].dims.extend(dims)

        yield f"a tensor that is said to be {dims[:3]}", changed(lie)

    def type_of(number: int) -> Callable[[Any], object]:
        return lambda model: setattr(model.graph.initializer[0], "data_type", number)

    for number in (0, 8, 11, 99):
        yield f"a tensor of type {number}", changed(type_of(number))
    lost = np.full((5, 256), np.nan, np.float32)
    yield (
        "weights that are no numbers",
        changed(lambda model: model.graph.initializer[0].CopyFrom(numpy_helper.from_array(lost, "v"))),
    )
    circle = [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b")]
    yield "a cycle", graph(circle).SerializeToString()
    yield "a cycle of one", graph([node("Add", "x y")]).SerializeToString()
    yield "reads what is not there", graph([node("Relu", "a"), node("Relu", "x", "b")]).SerializeToString()
    yield "a name given twice", graph([node("Relu", "x", "a"), node("Relu", "x", "a")]).SerializeToString()
    yield "no output", graph([node("Relu", "x", "a")]).SerializeToString()
    yield "no nodes", graph([], outputs=("x",)).SerializeToString()
    inner = helper.make_graph([], "inner", [], [])
    yield "a loop", graph([helper.make_node("Loop", ["x"], ["y"], body=inner)]).SerializeToString()
    yield (
        "a branch",
        graph(
            [helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)]
        ).SerializeToString(),
    )
    yield (
        "functions",
        changed(lambda model: model.functions.append(helper.make_function("f", "f", ["x"], ["y"], [], []))),
    )
    for kind in (TensorProto.STRING, TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.INT64):
        yield f"an input of type {kind}", classifier(kind=kind).SerializeToString()
    for sides in ((), (3,), (1, 3), (1, 3, 16), (1, 3, 16, 16, 16)):
        yield f"an input {sides}", classifier(sides=sides).SerializeToString()
    yield (
        "two inputs",
        changed(
            lambda model: model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
        ),
    )
    yield "no input", changed(lambda model: model.graph.ClearField("input"))
    yield "60,000 nodes", graph([node("Relu", "x", f"a{i}") for i in range(60_000)]).SerializeToString()


def unconvertible_graphs() -> Iterator[tuple[str, Any]]:
    """Read they can be; what they are is found when they are converted."""
    yield "an operator of nobody's", graph([node("Sorcery", "x")])
    yield "an operator of another domain", graph([node("Relu", "x", domain="com.example")])
    yield "boxes", graph([node("NonZero", "x", "a"), node("Cast", "a", to=1)])
    yield "weights that depend on the image", graph([node("Conv", "x x")], sides=(1, 1, 3, 3))
    yield "images mixed", graph([node("ReduceMean", "x", axes=[0], keepdims=0)], opset=13)
    big = np.array([2**20, 2**20, 2**10], np.int64)
    yield (
        "memory",
        graph(
            [node("ConstantOfShape", "s", "a"), node("ReduceSum", "a", "b"), node("Add", "x b")], {"s": big}
        ),
    )
    yield "memory by tiles", graph([node("Tile", "x s")], {"s": np.array([1, 1, 2**15, 2**15])})
    yield (
        "an output of its own",
        graph([node("Relu", "x", "a"), node("Identity", "w")], {"w": np.zeros((1, 3), np.float32)}),
    )


def save(model: Any, path: Any) -> Any:
    onnx.save(model, path)
    return path
