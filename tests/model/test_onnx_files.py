"""A user's own ONNX file: read in a limited process, converted, and held against ONNX Runtime."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hostile_graphs import SIDES, classifier, graph, node, save

from optimizer.engine import engine_named
from optimizer.errors import InputError
from optimizer.model import own
from optimizer.model.added import cards, files, onnx_check, onnx_reading
from optimizer.model.added.onnx_conversion import convert
from optimizer.model.added.onnx_operators import REDUCED
from optimizer.model.added.onnx_reading import read_onnx


def read(model: Any, folder: Path, external: bool = True) -> tuple[Path, dict[str, Any]]:
    source = save(model, folder / "given.onnx")
    return folder / "kept.onnx", read_onnx(source, folder / "kept.onnx", external, lambda more: None)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def test_a_network_of_other_inputs_than_images_is_refused_with_what_to_do(tmp_path: Path) -> None:
    words = r"it takes inputs \[N, 1, 784\], .*optimizer.measure\(module, data=\(inputs, labels\)\)"
    with pytest.raises(InputError, match=words):
        read(graph([node("Relu", "x")], sides=("N", 1, 784)), tmp_path)


def test_numbers_of_words_are_first_told_that_they_are_no_images(tmp_path: Path) -> None:
    model = graph([node("Relu", "x")], sides=("N", 12))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(
        InputError, match=r"it takes inputs \[N, 12\], .*optimizer.measure\(module"
    ) as refused:
        read(model, tmp_path)
    assert "export it" not in str(refused.value)
    model = graph([node("Relu", "x")])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(
        InputError, match=r"is int64: export it with a float32 input, .*optimizer.measure\(module"
    ):
        read(model, tmp_path)


@pytest.mark.parametrize(
    ("outputs", "may"),
    [
        ([None], True),
        ([("N", 5)], True),
        ([("N", "K")], True),
        ([(1, 5, 1, 1)], True),
        ([("N", 1)], False),
        ([(1, 84, 8400)], False),
        ([(1, 21, 64, 64)], False),
        ([("N", 5), ("N", 5)], False),
    ],
)
def test_a_file_says_whether_its_outputs_may_be_logits(tmp_path: Path, outputs: Any, may: bool) -> None:
    names = [f"y{number}" for number in range(len(outputs))]
    model = graph([node("Relu", "x", name) for name in names], outputs=tuple(names))
    for value, sides in zip(model.graph.output, outputs, strict=True):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, sides))
    assert read(model, tmp_path)[1]["may_classify"] == may


def test_a_fixed_number_of_images_is_told_how_to_be_exported(tmp_path: Path) -> None:
    kept, _ = read(graph([node("Conv", "x w")], {"w": weights(4, 3, 3, 3)}, sides=(4, *SIDES)), tmp_path)
    with pytest.raises(InputError, match="it takes exactly 4 images at once: export it with a batch of 1"):
        onnx_check.check(kept, SIDES)


CONV = {"w": weights(4, 3, 3, 3), "b": weights(4)}
VECTOR = {"w": weights(3), "b": weights(3)}
GRAPHS: dict[str, Any] = {
    "strides": graph([node("Conv", "x w b", strides=[2, 2], pads=[1, 0, 2, 1])], CONV),
    "same padding": graph([node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])], CONV),
    "same padding, lower": graph([node("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2])], CONV),
    "dilated": graph([node("Conv", "x w", dilations=[2, 2])], CONV),
    "nodes out of order": graph(
        [node("Relu", "b"), node("Add", "a a", "b"), node("Conv", "x w", "a")], {"w": CONV["w"]}
    ),
    "depthwise": graph([node("Conv", "x w", group=3)], {"w": weights(6, 1, 3, 3)}),
    "transposed": graph(
        [node("ConvTranspose", "x w", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": weights(3, 4, 3, 3)},
    ),
    "batch norm": graph([node("BatchNormalization", "x w b b v")], VECTOR | {"v": np.ones(3, np.float32)}),
    "instance norm": graph([node("InstanceNormalization", "x w b")], VECTOR),
    "layer norm": graph([node("LayerNormalization", "x w b", axis=-1)], {"w": weights(16), "b": weights(16)}),
    "max pool": graph([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]),
    "max pool, ceil": graph([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)]),
    "max pool, uneven": graph([node("MaxPool", "x", kernel_shape=[3, 3], pads=[0, 0, 1, 1])]),
    "average pool": graph([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])]),
    "global": graph(
        [node("GlobalAveragePool", "x", "a"), node("GlobalMaxPool", "x", "b"), node("Add", "a b")]
    ),
    "product": graph([node("MatMul", "x w")], {"w": weights(16, 8)}),
    "product from the left": graph([node("MatMul", "w x")], {"w": weights(8, 16)}),
    "factors of a product and its bias": graph(
        [node("Flatten", "x", "a"), node("Gemm", "a w b", alpha=0.5, beta=2.0, transB=1)],
        {"w": weights(4, 3 * 16 * 16), "b": weights(4)},
    ),
    "product of images": graph([node("MatMul", "x x")]),
    "older softmax": graph([node("Softmax", "x", axis=1)], opset=11),
    "newer softmax": graph([node("Softmax", "x", axis=1)], opset=13),
    "clip": graph([node("Clip", "x l", "a"), node("HardSigmoid", "a")], {"l": np.float32(0.2)}),
    "torch's hard sigmoid": graph([node("HardSigmoid", "x", alpha=1 / 6)]),
    "activations": graph(
        [
            *(node("LeakyRelu", "x", "a"), node("Elu", "a", "b"), node("HardSwish", "b", "c")),
            *(node("Celu", "c", "d", alpha=0.5), node("Softplus", "d", "e"), node("Erf", "e", "f")),
            node("PRelu", "f w"),
        ],
        {"w": weights(3, 1, 1)},
    ),
    "gelu of opset 20": graph([node("Gelu", "x")], opset=20),
    "reduced by attribute": graph([node("ReduceMean", "x", axes=[2, 3])], opset=13),
    "reduced by input": graph([node("ReduceMean", "x s")], {"s": np.array([2, 3])}, opset=18),
    **{kind: graph([node(kind, "x", axes=[1])], opset=11) for kind in (*REDUCED, "ReduceProd")},
    "cast like a whole number": graph(
        [node("Mul", "x s", "a"), node("CastLike", "a i", "b"), node("Cast", "b", to=1)],
        {"s": np.float32(10), "i": np.array(0)},
    ),
    "reduced to L2": graph([node("ReduceL2", "x", axes=[-1], keepdims=0)], opset=13),
    "shuffled": graph(
        [
            *(node("Reshape", "x s", "a"), node("Transpose", "a", "b", perm=[0, 2, 1, 3, 4])),
            node("Reshape", "b t"),
        ],
        {"s": np.array([1, 3, 1, 16, 16]), "t": np.array([1, 3, 16, 16])},
        sides=(1, *SIDES),
    ),
    "flattened by its shape": graph(
        [
            *(node("Shape", "x", "a"), node("Gather", "a i", "b"), node("Unsqueeze", "b z", "c")),
            *(node("Concat", "c m", "d", axis=0), node("Reshape", "x d")),
        ],
        {"i": np.array(0), "z": np.array([0]), "m": np.array([-1])},
    ),
    "a class token": graph(
        [
            *(node("Reshape", "x s", "a"), node("Shape", "a", "b"), node("Slice", "b z o", "c")),
            *(
                node("Concat", "c o e", "d", axis=0),
                node("Expand", "t d", "f"),
                node("Concat", "f a", axis=1),
            ),
        ],
        {
            **{"s": np.array([0, 3, 256]), "z": np.array([0]), "o": np.array([1]), "e": np.array([256])},
            "t": weights(1, 1, 256),
        },
    ),
    "tokens first": graph(
        [
            *(node("Reshape", "x s", "a"), node("Transpose", "a", "b", perm=[1, 0, 2])),
            *(node("Reshape", "b t", "c"), node("MatMul", "c w", "d"), node("Reshape", "d u", "e")),
            node("Transpose", "e", perm=[1, 0, 2]),
        ],
        {
            **{"s": np.array([0, 3, 256]), "t": np.array([-1, 256]), "u": np.array([3, -1, 8])},
            "w": weights(256, 8),
        },
    ),
    "slices": graph(
        [node("Slice", "x s e a p", "b"), node("Slice", "b m n a")],
        {
            **{
                "s": np.array([1, -1]),
                "e": np.array([16, -20]),
                "a": np.array([2, 3]),
                "p": np.array([2, -1]),
            },
            **{"m": np.array([0, -4]), "n": np.array([2**62, 2**62])},
        },
    ),
    "split": graph(
        [node("Split", "x s", "a b", axis=1), node("Concat", "b a", axis=1)], {"s": np.array([1, 2])}
    ),
    "split evenly": graph([node("Split", "x", "a b", axis=2, num_outputs=2), node("Sub", "a b")], opset=18),
    "gather": graph([node("Gather", "x s", axis=1)], {"s": np.array([[2, 0], [-1, 1]])}),
    "padded": graph([node("Pad", "x s", mode="reflect")], {"s": np.array([0, 0, 1, 2, 0, 0, 3, 0])}),
    "padded at the end": graph(
        [node("Pad", "x s  a")], {"s": np.array([1, 2]), "a": np.array([-1])}, opset=18
    ),
    "depth to space": graph(
        [
            node("Concat", "x x x x", "a", axis=1),
            node("DepthToSpace", "a", "b", blocksize=2),
            node("SpaceToDepth", "b", blocksize=2),
        ]
    ),
    "nearest": graph([node("Resize", "x  s", mode="nearest")], {"s": np.float32([1, 1, 2, 2])}),
    "nearest, odd": graph(
        [node("Resize", "x   s", mode="nearest", nearest_mode="ceil")], {"s": np.array([1, 3, 23, 11])}
    ),
    "bilinear": graph([node("Resize", "x   s", mode="linear")], {"s": np.array([1, 3, 24, 40])}),
    "corners": graph(
        [node("Resize", "x   s", mode="linear", coordinate_transformation_mode="align_corners")],
        {"s": np.array([1, 3, 31, 9])},
    ),
    "of opset 9": graph([node("Upsample", "x s", mode="nearest")], {"s": np.float32([1, 1, 2, 2])}, opset=9),
    "quantized": graph(
        [
            *(node("QuantizeLinear", "x s z", "a"), node("DequantizeLinear", "a s z", "b")),
            *(node("DequantizeLinear", "w r", "v", axis=0), node("Conv", "b v")),
        ],
        {
            **{"s": np.float32(0.02), "z": np.uint8(120), "r": np.abs(weights(4)) / 100},
            "w": np.random.default_rng(0).integers(-128, 128, (4, 3, 3, 3)).astype(np.int8),
        },
    ),
    **{
        f"quantized to {kind}": graph(
            [node("QuantizeLinear", "x s z", "a"), node("DequantizeLinear", "a s z")],
            {"s": np.float32(1e-4), "z": zero},
            opset=21,
        )
        for kind, zero in (("int16", np.int16(-5)), ("uint16", np.uint16(20_000)))
    },
    "quantized without a zero point": graph(
        [node("QuantizeLinear", "x s", "a", output_dtype=3), node("DequantizeLinear", "a s")],
        {"s": np.float32(0.02)},
        opset=21,
    ),
    **{
        f"rows by {shape}": graph(
            [node("Reshape", "x s", "a"), node("MatMul", "a w")],
            {"s": np.array(shape), "w": weights(768, 4)},
            sides=sides,
        )
        for shape, sides in (
            ([0, -1], ("N", 3, 16, 16)),
            ([1, -1], (1, 3, 16, 16)),
            ([-1, 768], (1, 3, 16, 16)),
        )
    },
    "groups": graph([node("Reshape", "x s")], {"s": np.array([0, 1, -1])}),
    "rows of tokens": graph(
        [
            node("Reshape", "x s", "a"),
            node("MatMul", "a w", "b"),
            node("Softmax", "b", "c"),
            node("Reshape", "c t"),
        ],
        {"s": np.array([-1, 16]), "w": weights(16, 8), "t": np.array([-1, 384])},
    ),
    "rows of tokens, flattened": graph(
        [node("Flatten", "x", "a", axis=2), node("Gemm", "a w", "b"), node("Reshape", "b t")],
        {"w": weights(256, 8), "t": np.array([-1, 24])},
    ),
    "heads of one image": graph(
        [
            node("Reshape", "x s", "a"),
            node("Transpose", "a", "b", perm=[2, 0, 1]),
            node("Reshape", "b t", "c"),
            node("Transpose", "c", perm=[1, 0, 2]),
        ],
        {"s": np.array([1, 48, 16]), "t": np.array([16, 1, 48])},
        sides=(1, 3, 16, 16),
    ),
    "swish of opset 24": graph([node("Swish", "x", alpha=0.7)], opset=24),
    "more activations": graph(
        [
            *(node("Selu", "x", "a"), node("ThresholdedRelu", "a", "b", alpha=0.3)),
            *(node("Atan", "b", "c"), node("Shrink", "c", lambd=0.2, bias=0.1)),
        ]
    ),
    "group norm": graph(
        [node("Concat", "x x", "a", axis=1), node("GroupNormalization", "a w b", num_groups=2)],
        {"w": weights(2), "b": weights(2)},
        opset=18,
    ),
    "group norm of opset 21": graph([node("GroupNormalization", "x w b", num_groups=3)], VECTOR, opset=21),
    "root mean square": graph([node("RMSNormalization", "x w")], {"w": weights(16)}, opset=23),
    "unit length": graph([node("LpNormalization", "x", axis=1)]),
    "local response": graph([node("LRN", "x", size=3, alpha=0.3, beta=0.6, bias=1.5)]),
    "attention of opset 23": graph([node("Attention", "x x x", scale=0.3)], opset=23),
    "attention, heads side by side": graph(
        [node("Reshape", "x s", "a"), node("Attention", "a a a", q_num_heads=4, kv_num_heads=4)],
        {"s": np.array([-1, 48, 16])},
        opset=23,
    ),
    "elements": graph([node("ArgMax", "x", "a", axis=3), node("GatherElements", "x a", axis=3)]),
    "sums so far": graph(
        [node("CumSum", "x s", "a"), node("Trilu", "a k", upper=0)], {"s": np.array(2), "k": np.array(1)}
    ),
    "two outputs": graph([node("Relu", "x", "y"), node("Neg", "x", "z")], outputs=("y", "z")),
    "channels last": graph(
        [node("Transpose", "x", "a", perm=[0, 3, 1, 2]), node("Conv", "a w")], CONV, sides=(1, 16, 16, 3)
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_operators_answer_as_onnx_runtime_does_whatever_the_batch(name: str, tmp_path: Path) -> None:
    kept, _ = read(GRAPHS[name], tmp_path)
    found = onnx_check.check(kept, SIDES)
    assert found["difference"] < 1e-5
    assert not found["for_one"]


def recurrent_graph(kind: str, gates: int, directions: int, **attributes: Any) -> Any:
    """Columns of images, one after another, through a layer of 5 states."""
    nodes = [
        *(node("Reshape", "x s", "a"), node("Transpose", "a", "b", perm=[2, 0, 1])),
        node(kind, "b w r u", "c h", hidden_size=5, **attributes),
        *(node("Transpose", "c", "d", perm=[2, 0, 1, 3]), node("Transpose", "h", "e", perm=[1, 0, 2])),
        *(node("Flatten", "d", "f"), node("Flatten", "e", "g"), node("Concat", "f g", axis=1)),
    ]
    tensors = {
        **{"w": weights(directions, gates * 5, 48), "r": weights(directions, gates * 5, 5)},
        **{"u": weights(directions, 2 * gates * 5), "s": np.array([-1, 48, 16])},
    }
    return graph(nodes, {name: value / 5 if name != "s" else value for name, value in tensors.items()})


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    ("kind", "gates", "attributes"), [("LSTM", 4, {}), ("GRU", 3, {"linear_before_reset": 1}), ("RNN", 1, {})]
)
def test_recurrent_layers_answer_as_onnx_runtime_does(
    kind: str, gates: int, attributes: dict[str, Any], directions: int, tmp_path: Path
) -> None:
    way = {"direction": "bidirectional"} if directions == 2 else {}
    kept, _ = read(recurrent_graph(kind, gates, directions, **attributes, **way), tmp_path)
    found = onnx_check.check(kept, SIDES)
    assert found["difference"] < 1e-5
    assert not found["for_one"]


@pytest.mark.parametrize(
    ("kind", "gates", "attributes", "words"),
    [
        ("GRU", 3, {}, "linear_before_reset"),
        ("LSTM", 4, {"direction": "reverse"}, "direction"),
        ("LSTM", 4, {"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations Sigmoid, Relu, Tanh"),
    ],
)
def test_a_recurrent_layer_that_torch_does_not_have_is_refused(
    kind: str, gates: int, attributes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    kept, _ = read(recurrent_graph(kind, gates, 1, **attributes), tmp_path)
    with pytest.raises(InputError, match=words):
        convert(kept, SIDES)


def test_what_does_not_depend_on_the_image_may_be_resized(tmp_path: Path) -> None:
    """As the places of a transformer's tokens are, for images of another size."""
    nodes = [node("Resize", "t   s", "a", mode="cubic"), node("Add", "x a")]
    kept, _ = read(graph(nodes, {"t": weights(1, 3, 4, 4), "s": np.array([1, 3, 16, 16])}), tmp_path)
    assert onnx_check.check(kept, SIDES)["difference"] < 1e-5


def test_a_vector_of_zeros_has_no_length(tmp_path: Path) -> None:
    kept, _ = read(graph([node("LpNormalization", "x", axis=1)]), tmp_path)
    assert torch.equal(convert(kept, SIDES)(torch.zeros(2, *SIDES)), torch.zeros(2, *SIDES))


def test_a_network_that_takes_one_image_gets_one_at_a_time(tmp_path: Path) -> None:
    """Its indices are worked out for one image."""
    flat = {"s": np.array([-1]), "i": np.arange(768).reshape(1, 3, 16, 16)}
    model = graph([node("Reshape", "x s", "a"), node("Gather", "a i")], flat, sides=(1, *SIDES))
    kept, _ = read(model, tmp_path)
    assert onnx_check.check(kept, SIDES)["for_one"]
    images = torch.rand(3, *SIDES)
    assert torch.equal(convert(kept, SIDES, for_one=True)(images), images)


HARD_SIGMOID = [node("Conv", "x w", "a"), node("HardSigmoid", "a", alpha=1 / 6)]


@pytest.mark.parametrize("model", [graph(HARD_SIGMOID, CONV), GRAPHS["quantized"]], ids=["before", "behind"])
def test_openvino_still_has_the_weights_before_a_hard_sigmoid_and_behind_rounded_activations(
    model: Any, tmp_path: Path
) -> None:
    """It would multiply them with a factor, or with the scale of the rounding."""
    kept, _ = read(model, tmp_path)
    build = engine_named("openvino").prepare(convert(kept, SIDES).eval(), SIDES)
    assert callable(build)


def test_a_model_keeps_the_names_of_its_file(tmp_path: Path) -> None:
    about = files.examine(save(classifier(), tmp_path / "given.onnx"))
    loaded = files.opened(about, cards.Choices())
    assert loaded.names == ("x", loaded.parts[0][0])
    assert dataclasses.replace(loaded, parts=(), input_name="images").names == ("images", "logits")
    unlabelled = dataclasses.replace(loaded.card, classes=0)
    assert dataclasses.replace(loaded, parts=(), card=unlabelled).names == ("x", "output")


def test_a_mask_of_attention_may_be_infinite(tmp_path: Path) -> None:
    """As what is exported with ``is_causal=True`` has it: a constant that is added before a softmax."""
    nodes = [node("MatMul", "x w", "a"), node("Add", "a m", "b"), node("Softmax", "b", axis=-1)]
    mask = np.triu(np.full((16, 16), -np.inf, np.float32), 1)
    path, _ = read(graph(nodes, {"w": weights(16, 16), "m": mask}), tmp_path)
    assert onnx_check.check(path, SIDES)["difference"] < 1e-5
    network = convert(path, SIDES).eval()
    assert own.tried(network, SIDES).shape == (2, *SIDES)
    assert any(one.isneginf().any() for one in network.buffers())


def test_what_a_file_says_is_told_before_anything_is_run(tmp_path: Path) -> None:
    _, found = read(classifier(), tmp_path)
    facts = dict(found["facts"])
    assert facts["opset"] == "ai.onnx 17"
    assert facts["input"] == "x float [batch, 3, 16, 16]"
    assert found["shape"] == [3, 16, 16]
    assert not found["asks_shape"]


@pytest.mark.parametrize(
    ("sides", "offered"), [(("n", "c", "h", "w"), [3, 32, 32]), ((1, 3, "h", 32), [3, 32, 32])]
)
def test_a_shape_that_is_left_open_is_offered_so_that_it_fits(
    sides: tuple[object, ...], offered: list[int], tmp_path: Path
) -> None:
    """The linear layer takes what 32 x 32 pixels become."""
    tensors = {"w": weights(4, 3, 3, 3), "v": weights(4 * 16 * 16, 5)}
    nodes = [
        node("Conv", "x w", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Flatten", "a", "b"),
        node("Gemm", "b v"),
    ]
    _, found = read(graph(nodes, tensors, sides=sides), tmp_path)
    assert found["asks_shape"]
    assert found["shape"] == offered


def test_external_data_beside_the_file_are_taken_in(tmp_path: Path) -> None:
    source = tmp_path / "given.onnx"
    onnx.save(classifier(), source, save_as_external_data=True, location="given.data", size_threshold=0)
    size = (tmp_path / "given.data").stat().st_size
    assert size > 5000
    kept = tmp_path / "kept.onnx"
    more: list[int] = []
    read_onnx(source, kept, True, more.append)
    assert len(more) == 1  # before any is read, of all tensors together
    assert 5120 <= more[0] <= size
    assert onnx_check.check(kept, SIDES)["difference"] < 1e-5
    with pytest.raises(InputError, match="in other files"):
        read_onnx(source, kept, False, more.append)


@pytest.mark.slow
def test_external_data_of_many_tensors_have_room_in_the_limited_process(tmp_path: Path) -> None:
    """The last tensor is small, and what is written has all."""
    tensors = {"w": weights(4, 3, 3, 3), "v": weights(4 * 8 * 8, 24_000), "b": weights(24_000)}
    nodes = [
        node("Conv", "x w", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Flatten", "a", "c"),
        node("Gemm", "c v b"),
    ]
    source = tmp_path / "given.onnx"
    onnx.save(graph(nodes, tensors), source, save_as_external_data=True, size_threshold=0)
    about = files.examine(source)
    assert cards.content_path(about.file).stat().st_size > 24e6


def test_external_data_may_be_no_larger_than_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "given.onnx"
    onnx.save(classifier(), source, save_as_external_data=True, size_threshold=0)
    monkeypatch.setattr(onnx_reading, "MAX_FILE_BYTES", 5000)  # each of its tensors has fewer bytes
    with pytest.raises(InputError, match=r"external data have 5\.\d+ kB: up to 5\.00 kB are read"):
        read_onnx(source, tmp_path / "kept.onnx", True, lambda more: None)


def test_shapes_are_inferred_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    infer = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(
        onnx.shape_inference,
        "infer_shapes",
        lambda model, **how: sizes.append(model.ByteSize()) or infer(model, **how),
    )
    tensors = {"w": weights(4, 3, 3, 3), "v": weights(4, 5000)}
    nodes = [node("Conv", "x w", "a"), node("GlobalAveragePool", "a", "b"), node("Flatten", "b", "c")]
    kept, found = read(graph([*nodes, node("Gemm", "c v")], tensors, sides=("n", 3, "h", "w")), tmp_path)
    assert found["asks_shape"]
    assert max(sizes) < 2000
    assert kept.stat().st_size > 80_000
