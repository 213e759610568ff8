"""Two files against each other: every figure against numpy on what ONNX Runtime answers."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from factories import make_latency
from hostile_graphs import graph, node, save
from onnxruntime import quantization
from two_networks import (
    BIAS,
    FIRST,
    HERE,
    IMAGES,
    LABELS,
    QUICK,
    RANDOM,
    SECOND,
    compared,
    detector,
    network,
    photographs,
)

from optimizer import on_demand
from optimizer.analysis import fidelity, two_files, two_files_words
from optimizer.analysis.two_files import CompareRequest, NetworkRef
from optimizer.data import memory
from optimizer.engine import files_onnxruntime, files_openvino
from optimizer.engine.files import ENGINES
from optimizer.engine.opened import InnerLayer, Network, Opened
from optimizer.errors import InputError
from optimizer.export.artifacts import networks
from optimizer.measurement import two_files as measurement
from optimizer.measurement.two_files_layers import clipped, matching
from optimizer.measurement.two_files_prepared import paired
from optimizer.model.added import cards, files
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request

KERNEL = {"w": FIRST, "b": BIAS}
SIDES_1 = (1, 3, 16, 16)
EIGHT = Recipe(quantize=QuantizeSpec(weight_bits=8))


def answers(model: Any, outputs: list[str], images: np.ndarray = IMAGES) -> list[np.ndarray]:
    """What ONNX Runtime gives, also for tensors inside: float64 ``[N, ...]``."""
    shown = onnx.ModelProto.FromString(model.SerializeToString())
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = onnxruntime.InferenceSession(shown.SerializeToString())
    rows = [session.run(outputs, {"x": image[None]}) for image in images]
    return [np.concatenate(each).astype(float) for each in zip(*rows, strict=True)]


@pytest.mark.slow
@HERE
@pytest.mark.parametrize("engine", ENGINES)
def test_each_figure_is_that_of_numpy(tmp_path: Path, engine: str) -> None:
    changed = SECOND + 0.1 * RANDOM.normal(size=SECOND.shape).astype(np.float32)
    a, b = network(), network(changed)
    run = compared(a, b, tmp_path, (IMAGES, LABELS), engine)
    before, after = (answers(one, ["y", "first", "second"]) for one in (a, b))
    (output,) = run.outputs
    change = after[0] - before[0]
    assert output.sqnr_db == pytest.approx(
        10 * np.log10((before[0] ** 2).sum() / (change**2).sum()), abs=1e-3
    )
    lengths = np.linalg.norm(before[0], axis=1) * np.linalg.norm(after[0], axis=1)
    assert output.cosine == pytest.approx(((before[0] * after[0]).sum(1) / lengths).mean(), abs=1e-6)
    assert output.largest == pytest.approx(np.abs(change).max(), rel=1e-4)
    assert output.span == pytest.approx(np.ptp(before[0]), rel=1e-5)
    assert output.largest_images is not None
    assert output.largest_images.values == pytest.approx(np.abs(change).max(1), rel=0.05)
    same = before[0].argmax(1) == after[0].argmax(1)
    assert two_files.same_answers(run).tolist() == same.tolist()
    both, drop = two_files.accuracies(run), two_files.accuracy_lost(run)
    assert both is not None
    assert drop is not None
    right = [100 * (one[0].argmax(1) == LABELS).mean() for one in (before, after)]
    assert [one.value for one in both] == pytest.approx(right)
    assert drop.points == pytest.approx(right[0] - right[1])
    assert run.a.size_bytes == (tmp_path / "a.onnx").stat().st_size
    inside = {layer.reference: layer for layer in run.layers}
    assert list(inside)[:2] == ["Conv_first", "Conv_second"]
    assert len(inside) == 3
    assert inside["Conv_first"].sqnr_db is None or inside["Conv_first"].sqnr_db > two_files.SAME_DB
    few = run.layer_images
    noise = ((after[2][:few] - before[2][:few]) ** 2).sum()
    assert inside["Conv_second"].sqnr_db == pytest.approx(
        10 * np.log10((before[2][:few] ** 2).sum() / noise), abs=1e-3
    )
    parting = two_files.parting(run)
    assert parting is not None
    assert parting.reference == "Conv_second"
    assert {layer.precision for side in (run.a, run.b) for layer in side.layers} == {"f32"}
    assert run.latency.threads == 1
    again = on_demand.compare(run.request, given=memory.for_evaluation((IMAGES, LABELS)))
    assert replace(again, latency=run.latency, created=run.created) == run, "kept, but for a noisy time"


@pytest.mark.parametrize("opened", [files_openvino.opened, files_onnxruntime.opened])
def test_what_a_layer_gives_has_its_bias_and_its_clip_is_found(
    tmp_path: Path, opened: Callable[..., Opened]
) -> None:
    file = opened(Network(onnx=save(network(), tmp_path / "a.onnx")), SIDES_1[1:], 1, 1)
    first, second, _ = file.layers
    assert (first.name, first.clip, second.clip) == ("Conv_first", (0.0, np.inf), None)
    (given,) = file.inside(["Conv_first"])(IMAGES[:1])
    (expected,) = answers(network(), ["first"], IMAGES[:1])
    assert given == pytest.approx(expected, abs=1e-4)


class Calibration(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self.rest = iter(IMAGES[:16])

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.rest, None)
        return None if image is None else {"x": image[None]}


@pytest.mark.parametrize(
    ("form", "opened"),
    [
        ("dynamic", files_openvino.opened),
        ("dynamic", files_onnxruntime.opened),
        ("QDQ", files_openvino.opened),
        ("QDQ", files_onnxruntime.opened),
        ("QOperator", files_onnxruntime.opened),
    ],
)
def test_layers_of_every_int8_form_give_what_those_of_the_float_file_do(
    tmp_path: Path, form: str, opened: Callable[..., Opened]
) -> None:
    """Scaled, and with the bias that is added to what was rounded before."""
    nodes = [
        node("Conv", "x w b", "first", pads=[1, 1, 1, 1]),
        node("Relu", "first", "p"),
        node("GlobalAveragePool", "p", "q"),
        node("Flatten", "q", "r"),
        node("MatMul", "r u", "s"),
        node("Add", "s c", "t"),
        node("Relu", "t", "v"),
        node("Gemm", "v k l"),
    ]
    tensors = {**KERNEL, "u": FIRST[:, 0, 0], "c": 5 * BIAS[:3], "k": FIRST[0, 0], "l": BIAS[:3]}
    plain, rounded = save(graph(nodes, tensors, sides=SIDES_1), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    if form == "dynamic":
        quantization.quantize_dynamic(plain, rounded)
    else:
        quantization.quantize_static(
            plain, rounded, Calibration(), quant_format=quantization.QuantFormat[form]
        )
    both = [opened(Network(onnx=file), SIDES_1[1:], 1, 1) for file in (plain, rounded)]
    pairs = matching(both[0].layers, both[1].layers)
    assert len(pairs) == len(both[1].layers) == 3
    clips = [one.clip or other.clip for one, other in pairs]
    expected, given = (
        clipped(file.inside([one.name for one in file.layers]), clips)(IMAGES[:1]) for file in both
    )
    for one, other in zip(given, expected, strict=True):
        assert np.linalg.norm(one - other) < 0.03 * np.linalg.norm(other)
    if opened is files_onnxruntime.opened:
        assert {one.precision for one in both[1].runner.execution.layers} == {"u8"}


@pytest.mark.parametrize("opened", [files_openvino.opened, files_onnxruntime.opened])
def test_a_network_without_layers_runs_too(tmp_path: Path, opened: Callable[..., Opened]) -> None:
    nodes = [node("GlobalAveragePool", "x", "q"), node("Flatten", "q")]
    file = opened(Network(onnx=save(graph(nodes, {}, sides=SIDES_1), tmp_path / "a.onnx")), SIDES_1[1:], 1, 1)
    (given,) = file.answer(IMAGES[:1])
    assert given == pytest.approx(IMAGES[:1].mean((2, 3)), abs=1e-5)


@pytest.mark.slow
@HERE
@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_whose_kernel_clips_is_held_against_one_that_is_clipped_after(
    tmp_path: Path, engine: str
) -> None:
    clip = {"low": np.float32(0), "high": np.float32(1)}
    last = node("GlobalAveragePool", "p")
    after = graph([node("Conv", "x w b", "c"), node("Clip", "c low high", "p"), last], clip | KERNEL, SIDES_1)
    scale, codes = np.float32(0.01), np.round(FIRST / 0.03).clip(-127, 127).astype(np.int8)
    grids = {"s": scale, "z": np.uint8(128), "t": 3 * scale, "o": np.int8(0), "r": np.float32(1 / 255)}
    grids |= {"q": np.uint8(0), "w": codes, "b": np.round(BIAS / 3e-4).astype(np.int32)}
    kernel = graph(
        [
            node("QuantizeLinear", "x s z", "i"),
            node("QLinearConv", "i s z w t o r q b", "c"),
            node("DequantizeLinear", "c r q", "p"),
            last,
        ],
        grids,
        SIDES_1,
    )
    (layer,) = compared(after, kernel, tmp_path, IMAGES.clip(-1, 1), engine).layers
    assert layer.reference == "Conv_c"
    assert layer.sqnr_db is not None
    assert layer.sqnr_db > 25


@pytest.mark.slow
@HERE
def test_outputs_are_compared_one_by_one_whatever_they_are_called(tmp_path: Path) -> None:
    run = compared(detector(), detector(1.5, "loc conf"), tmp_path)
    assert [(one.reference, one.name) for one in run.outputs] == [("boxes", "loc"), ("scores", "conf")]
    boxes, scores = run.outputs
    assert boxes.sqnr_db == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert boxes.cosine == pytest.approx(1)
    assert scores.sqnr_db is None
    assert scores.largest == 0
    assert not run.same
    assert "the worst of its outputs, loc, at an SQNR of 6.0" in two_files_words.sentence(run)
    first, *_ = fidelity.rows(run.outputs)
    assert first["SQNR"].startswith("6.0 dB")  # type: ignore[attr-defined]


@HERE
@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "openvino", "safetensors"])
def test_a_saved_file_has_the_several_outputs_of_the_one_it_came_from(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under names that tensors inside an exported graph have. Its card's code gives them too."""
    file, saved = save(detector(names="logits conv2d"), tmp_path / "det.onnx"), tmp_path / "model.zip"
    files.add(files.examine(file), cards.Choices("det"))
    saved.write_bytes(on_demand.artifact(kind, Request("det", EIGHT), None, None))
    a, b = (networks.opened(NetworkRef(str(one))) for one in (file, saved))
    pair, _ = paired(a, b, CompareRequest(NetworkRef("a"), NetworkRef("b")), 1)
    assert pair.a.outputs == pair.b.outputs == (("logits", (8, 14, 14)), ("conv2d", (2, 14, 14)))
    with zipfile.ZipFile(saved) as archive:
        archive.extractall(tmp_path)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    batch = "1" if kind == "openvino" else "N"
    assert f"Output: logits `[{batch}, 8, 14, 14]`, conv2d `[{batch}, 2, 14, 14]`." in card
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {"images": torch.tensor(IMAGES[:1]) if kind == "safetensors" else IMAGES[:1]}
    exec(card.partition("```python\n")[2].partition("```")[0], said)
    for found, compared_with, original in zip(
        said["outputs"], pair.b.answer(IMAGES[:1]), pair.a.answer(IMAGES[:1]), strict=True
    ):
        np.testing.assert_allclose(found, compared_with, atol=1e-4)
        np.testing.assert_allclose(found, original, atol=0.5)


@HERE
def test_equal_files_are_called_so_and_made_up_images_too(tmp_path: Path) -> None:
    run = compared(network(), network(prefix="model/"), tmp_path, None)
    assert run.made_up
    assert "gives the outputs of a.onnx exactly on 64 made-up images" in two_files_words.sentence(run)
    assert two_files.parting(run) is None
    assert len(run.layers) == 3, "by order and shape, since no name is the same"
    assert two_files.size_ratio(run) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_an_ir_is_compared_with_the_file_that_it_was_made_of(tmp_path: Path) -> None:
    file = save(network(), tmp_path / "a.onnx")
    openvino.save_model(openvino.Core().read_model(file), tmp_path / "b.xml", compress_to_fp16=True)
    places = [NetworkRef(str(tmp_path / name)) for name in ("a.onnx", "b.xml")]
    run = on_demand.compare(CompareRequest(*places, settings=QUICK))
    assert run.b.kind == "OpenVINO IR"
    assert run.b.size_bytes == sum((tmp_path / f"b.{end}").stat().st_size for end in ("xml", "bin"))
    (output,) = run.outputs
    assert output.sqnr_db is not None
    assert 50 < output.sqnr_db < 90, "weights in half precision"
    assert len(run.layers) == 3
    with pytest.raises(InputError, match=r"b\.xml: ONNX Runtime can't run an OpenVINO IR"):
        on_demand.compare(CompareRequest(*places, engine="onnxruntime", settings=QUICK))


@pytest.mark.slow
@HERE
def test_files_are_right_or_wrong_on_a_folder_of_their_classes(tmp_path: Path) -> None:
    places = [str(save(network(scale * SECOND), tmp_path / f"{scale}.onnx")) for scale in (1, 2)]
    request = CompareRequest(*map(NetworkRef, places), photographs(tmp_path), settings=QUICK)
    run = on_demand.compare(request)
    assert run.total == 12, "a share is set aside, as for every measurement"
    assert two_files.accuracies(run) is not None
    drop = two_files.accuracy_lost(run)
    assert drop is not None
    assert (drop.lost, drop.gained) == (0, 0), "twice the logits, the same answers"
    assert run.outputs[0].sqnr_db == pytest.approx(0, abs=1e-3)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """int8 of a bundled network, in every kind of file."""
    recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)).canonical()
    folder, found = tmp_path_factory.mktemp("artifacts"), {}
    for kind in ("onnx", "openvino", "safetensors"):
        found[kind] = folder / f"{kind}.zip"
        found[kind].write_bytes(on_demand.artifact(kind, Request("fashion-mlp", recipe), None, None))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino", "safetensors"])
def test_what_we_export_is_compared_with_its_model(artifacts: dict[str, Path], kind: str) -> None:
    spec = DataSpec(limit=300)
    request = CompareRequest(
        NetworkRef("fashion-mlp"), NetworkRef(str(artifacts[kind])), spec, settings=QUICK
    )
    run = on_demand.compare(request)
    assert run.total == 300
    assert not run.made_up
    alike, drop = two_files.answers_alike(run), two_files.accuracy_lost(run)
    assert alike is not None
    assert drop is not None
    assert (alike.value or 0) > 95
    assert abs(drop.points) < 3
    precisions = two_files.precisions(run.b)
    assert ("i8" in precisions or "u8" in precisions) == (kind != "safetensors"), precisions
    assert two_files.precisions(run.a) == {"f32": len(run.a.layers)}
    assert len(run.layers) == len(run.a.layers)


def test_layers_are_matched_by_name_and_then_by_order_and_shape() -> None:
    def layer(name: str, *weight: int) -> InnerLayer:
        return InnerLayer(name, "Convolution", weight, (weight[0], 8, 8))

    a = [layer("stem", 8, 3), layer("b", 8, 8), layer("c", 4, 8), layer("head", 2, 4)]
    b = [layer("stem", 8, 3), layer("x", 8, 8), layer("extra", 9, 8), layer("y", 4, 8), layer("head", 3, 4)]
    pairs = [(one.name, other.name) for one, other in matching(a, b)]
    assert pairs == [("stem", "stem"), ("b", "x"), ("c", "y")]


@pytest.mark.slow
@HERE
def test_an_open_size_is_that_of_the_other_file_or_asked_for(tmp_path: Path) -> None:
    open_sides = network(sides=("batch", 3, "height", "width"))
    run = compared(open_sides, network(), tmp_path, None)
    assert all(one.largest == 0 for one in run.outputs)
    run = compared(open_sides, open_sides, tmp_path, None, input_shape=(3, 24, 40))
    assert {layer.shape for layer in run.layers if layer.reference == "Conv_first"} == {(8, 24, 40)}


@HERE
def test_what_could_not_be_timed_is_timed_anew_when_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy moment would be the answer for ever."""
    places = (NetworkRef(str(save(network(), tmp_path / f"{name}.onnx"))) for name in "ab")
    request = CompareRequest(*places, settings=QUICK)
    noisy, quiet = make_latency(1.0, noisy=True), make_latency(1.0)
    times = iter((noisy, quiet))
    monkeypatch.setattr(measurement, "time_again", lambda made, report: next(times))
    assert on_demand.compare(request).latency == noisy
    for _ in range(2):  # the second is the stored one
        assert on_demand.compare(request).latency == quiet
