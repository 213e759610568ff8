"""Two files against each other: every figure against numpy on what ONNX Runtime answers."""

import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from factories import make_latency, visits
from hostile_graphs import graph, node, save
from onnxruntime import quantization
from PIL import Image
from torch import nn

from optimizer import on_demand
from optimizer.analysis import fidelity, two_files, two_files_words
from optimizer.analysis.two_files import CompareRequest, NetworkRef, TwoFiles
from optimizer.data import memory
from optimizer.engine import files_onnxruntime, files_openvino
from optimizer.engine.files import ENGINES
from optimizer.engine.opened import InnerLayer, Network, Opened
from optimizer.errors import InputError, WorkError
from optimizer.export.artifacts import networks
from optimizer.measurement import two_files as measurement
from optimizer.measurement import two_files_prepared
from optimizer.measurement.two_files import key_of
from optimizer.measurement.two_files_layers import clipped, matching
from optimizer.measurement.two_files_prepared import Candidate, Comparison, like_of, paired
from optimizer.model import catalogue
from optimizer.model.added import cards, files, onnx_file
from optimizer.model.added.network_reading import read_ir, read_zip
from optimizer.model.added.onnx_reading import read_onnx
from optimizer.model.preprocessing import IMAGENET
from optimizer.model.sources import LoadedModel
from optimizer.progress import Report
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import DataSpec, ModelCard, Request, Settings

QUICK = Settings(threads=1, quick=True)
RANDOM = np.random.default_rng(0)
FIRST, SECOND = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((8, 3, 3, 3), (4, 8, 1, 1)))
BIAS = RANDOM.normal(size=8).astype(np.float32)
LINEAR = RANDOM.normal(size=(4, 5)).astype(np.float32)
IMAGES = RANDOM.normal(size=(40, 3, 16, 16)).astype(np.float32)
KERNEL = {"w": FIRST, "b": BIAS}
SIDES_1 = (1, 3, 16, 16)
LABELS = RANDOM.integers(0, 5, 40)
EIGHT = Recipe(quantize=QuantizeSpec(weight_bits=8))
CLOTHES = (["Pullover", "Sandal"] * 5, (28, 28))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read here: the process that reads them has tests of its own."""

    def read(reader: str, file: Path, name: str, target: str, **options: Any) -> dict[str, Any]:
        if reader == "onnx":
            return read_onnx(file, Path(target), False, lambda more: None)
        if reader == "zip":
            return read_zip(file, Path(target), lambda more: None)
        assert reader == "ir"
        return read_ir(file, Path(options["weights"]), Path(target))

    monkeypatch.setattr(files, "read_limited", read)
    monkeypatch.setattr(networks, "read_limited", read)


HERE = pytest.mark.usefixtures("in_this_process")


def network(second: np.ndarray = SECOND, sides: tuple[object, ...] = (1, 3, 16, 16), prefix: str = "") -> Any:
    """Two convolutions and a product to five numbers."""
    made = graph(
        [
            node("Conv", "x w b", "first", pads=[1, 1, 1, 1]),
            node("Relu", "first", "p"),
            node("Conv", "p v", "second"),
            node("GlobalAveragePool", "second", "q"),
            node("Flatten", "q", "r"),
            node("MatMul", "r u"),
        ],
        {"w": FIRST, "b": BIAS, "v": second, "u": LINEAR},
        sides=sides,
    )
    for one in made.graph.node:
        one.name = f"{prefix}{one.name}"
    return made


def detector(scale: float = 1.0, names: str = "boxes scores") -> Any:
    boxes, scores = names.split(" ")
    nodes = [node("Conv", "x w", boxes), node("Conv", "x v", scores)]
    tensors = {"w": scale * FIRST, "v": FIRST[:2]}
    return graph(nodes, tensors, sides=(1, 3, 16, 16), outputs=(boxes, scores))


def answers(model: Any, outputs: list[str], images: np.ndarray = IMAGES) -> list[np.ndarray]:
    """What ONNX Runtime gives, also for tensors inside: float64 ``[N, ...]``."""
    shown = onnx.ModelProto.FromString(model.SerializeToString())
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = onnxruntime.InferenceSession(shown.SerializeToString())
    rows = [session.run(outputs, {"x": image[None]}) for image in images]
    return [np.concatenate(each).astype(float) for each in zip(*rows, strict=True)]


def compared(a: Any, b: Any, folder: Path, data: Any = IMAGES, engine: str = "", **more: Any) -> TwoFiles:
    places = [str(save(one, folder / f"{name}.onnx")) for name, one in (("a", a), ("b", b))]
    given = None if data is None else memory.for_evaluation(data)
    spec = DataSpec(content=memory.content(given)) if given else DataSpec()
    request = CompareRequest(*map(NetworkRef, places), spec, engine, QUICK, **more)
    return on_demand.compare(request, given=given)


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
@pytest.mark.parametrize("error", [0.0, 0.05, 0.5])
def test_an_engine_that_misreads_an_onnx_file_is_not_taken_by_itself(
    error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*what: Any) -> Opened:
        found = files_openvino.opened(*what)
        return replace(found, answer=lambda images: [(1 + error) * one for one in found.answer(images)])

    monkeypatch.setitem(ENGINES, "openvino", wrong)
    file = str(save(network(), tmp_path / "net.onnx"))
    one = networks.opened(NetworkRef(file))
    request = CompareRequest(NetworkRef(file), NetworkRef(file))
    pair, notes = paired(one, one, request, 1)
    asked, warnings = paired(one, one, replace(request, engine="openvino"), 1)
    assert asked.engine == "openvino"
    words = "OpenVINO answers net.onnx otherwise than ONNX Runtime does (SQNR 6.0 dB, on made-up images)"
    misread = error > 0.1
    assert pair.engine == ("onnxruntime" if misread else "openvino")
    assert notes == ((f"{words}. So both are run by another engine.",) if misread else ())
    assert warnings == ((f"{words}.",) if misread else ())


@HERE
@pytest.mark.parametrize("instead", [0.0, np.nan])
def test_a_small_output_that_is_misread_is_seen_beside_a_large_one(
    instead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a file that ONNX Runtime can't run, OpenVINO runs both all the same, and that is said."""

    def wrong(network: Network, *how: Any) -> Opened:
        found = files_openvino.opened(network, *how)
        if network.onnx is None:
            return found
        return replace(found, answer=lambda images: [(large := found.answer(images))[0], instead * large[1]])

    monkeypatch.setitem(ENGINES, "openvino", wrong)
    file, other = save(detector(100), tmp_path / "two.onnx"), tmp_path / "two.xml"
    openvino.save_model(openvino.convert_model(file), other, compress_to_fp16=False)
    a, b = (networks.opened(NetworkRef(str(one))) for one in (file, other))
    request = CompareRequest(NetworkRef("a"), NetworkRef("b"))
    assert paired(a, a, request, 1)[0].engine == "onnxruntime"
    pair, notes = paired(a, b, request, 1)
    assert pair.engine == "openvino"
    how = "SQNR 0 dB" if instead == 0 else "not in numbers"
    assert notes == (
        f"OpenVINO answers two.onnx otherwise than ONNX Runtime does ({how}, on made-up images).",
    )


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


def photographs(
    folder: Path, classes: Sequence[str] = "abcde" * 3, shape: tuple[int, ...] = (16, 16, 3)
) -> DataSpec:
    """One of each of the classes."""
    for number, name in enumerate(classes):
        place = folder / "photos" / name / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 255, shape, np.uint8)).save(place)
    return DataSpec(str(folder / "photos"))


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


def test_a_long_list_of_entries_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(1000):
            archive.writestr(str(number), b"")
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("read"))
    with pytest.raises(InputError, match="^it has 1,000 entries: at most 16 are read"):
        read_zip(tmp_path / "many.zip", tmp_path / "out", lambda more: None)


def of_clothes(file: Path, said: dict[str, str]) -> NetworkRef:
    """A network of ten classes, zipped, with metadata."""
    weight = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32)
    model = graph([node("Flatten", "x", "r"), node("MatMul", "r u")], {"u": weight}, sides=(1, 1, 28, 28))
    onnx.helper.set_model_props(model, said)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.onnx", model.SerializeToString())
    return NetworkRef(str(file))


class PreparedError(Exception):
    """All is read and compiled."""


def prepared(request: CompareRequest) -> Comparison:
    """What would be measured."""
    found: list[Comparison] = []

    def measure(made: Comparison, report: Report) -> None:
        found.append(made)
        raise PreparedError

    with pytest.MonkeyPatch.context() as patch, suppress(PreparedError):
        patch.setattr(measurement, "measure", measure)
        on_demand.compare(request)
    return found[0]


@HERE
def test_images_are_preprocessed_as_for_the_model_that_a_file_was_saved_from(tmp_path: Path) -> None:
    ours = of_clothes(tmp_path / "ours.zip", {"model": "fashion-mlp", "recipe": "{}"})
    other = of_clothes(tmp_path / "other.zip", {"model": "fashion-mlp"})
    request = CompareRequest(other, ours, photographs(tmp_path, *CLOTHES), settings=QUICK)
    made, asked = prepared(request), prepared(replace(request, like="fashion-mlp"))
    assert made.notes[0].endswith("named as for fashion-mlp: ours.zip was exported from it.")
    assert made.notes == asked.notes
    assert made.request == asked.request
    assert np.array_equal(made.images, asked.images)
    assert made.labels is not None
    assert set(made.labels.tolist()) == {2, 5}, "its classes are known"
    for said in ({"model": "fashion-mlp"}, {"model": "of another machine", "recipe": "{}"}):
        unknown = of_clothes(tmp_path / "unknown.zip", said)
        with pytest.raises(
            InputError,
            match="the 2 folders .* can't be matched to the model's .* outputs: it has no class names",
        ):
            prepared(replace(request, a=unknown, b=unknown))


@HERE
def test_files_saved_from_a_model_that_comes_with_images_are_compared_on_them(tmp_path: Path) -> None:
    """On noise, int8 looked as if it changed every third answer."""
    ours = of_clothes(tmp_path / "ours.zip", {"model": "fashion-mlp", "recipe": "{}"})
    request = CompareRequest(ours, ours, DataSpec(limit=50), settings=QUICK)
    made = prepared(request)
    assert (made.made_up, len(made.images)) == (False, 50)
    assert made.labels is not None
    assert made.notes[0].endswith("named as for fashion-mlp: ours.zip was exported from it.")
    other = of_clothes(tmp_path / "other.zip", {"model": "of another machine", "recipe": "{}"})
    assert prepared(replace(request, a=other, b=other)).made_up


@HERE
def test_that_preprocessing_is_guessed_or_said_is_told(tmp_path: Path) -> None:
    names = json.dumps([f"class {number}" for number in range(8)] + ["Pullover", "Sandal"])
    plain = of_clothes(tmp_path / "plain.zip", {"class_names": names})
    said = of_clothes(tmp_path / "said.zip", {"class_names": names, "mean": "[0.1]", "std": "[0.2]"})
    request = CompareRequest(plain, plain, photographs(tmp_path, *CLOTHES), settings=QUICK)
    guessed, *_ = prepared(request).notes
    assert guessed.startswith("Neither file says how images are preprocessed for it. A guess was taken: ")
    assert guessed.endswith("name the model whose preprocessing to use (`--like`, in Python `like`).")
    told, *_ = prepared(replace(request, b=said)).notes
    assert told.startswith("Images are preprocessed as said.zip says: ")
    assert "values from −0.5 to 4.5" in told
    differs = of_clothes(tmp_path / "differs.zip", {"mean": "[0.1]", "std": "[0.1]"})
    both = prepared(replace(request, a=said, b=differs))
    assert "differs.zip says otherwise: " in both.notes[0]
    assert both.a.content == both.b.content, "the same network"
    assert key_of(both.a, both.b, request) != key_of(both.a, both.a, request)


@HERE
def test_a_file_that_takes_images_otherwise_than_the_model_beside_it_is_named(tmp_path: Path) -> None:
    """Both are given the same images."""
    said = catalogue.load("fashion-mlp").preprocessing
    assert said is not None
    like = {"mean": json.dumps(list(said.mean)), "std": json.dumps(list(said.std))}
    alike = of_clothes(tmp_path / "alike.zip", like)
    other = of_clothes(tmp_path / "other.zip", {"mean": "[0.1]", "std": "[0.1]"})
    unsaid = of_clothes(tmp_path / "unsaid.zip", {})
    request = CompareRequest(NetworkRef("fashion-mlp"), alike, DataSpec(limit=50), settings=QUICK)
    for file, asked in ((alike, ""), (unsaid, ""), (unsaid, "fashion-mlp")):
        made = prepared(replace(request, b=file, like=asked))
        assert not any("otherwise" in note for note in made.notes), made.notes
    for asked in ("", "fashion-mlp"):
        (found,) = (
            one for one in prepared(replace(request, b=other, like=asked)).notes if "otherwise" in one
        )
        assert "as for fashion-mlp (" in found
        assert "and other.zip takes them otherwise (" in found


@HERE
def test_files_that_leave_their_size_open_are_given_what_a_measurement_gives_one(tmp_path: Path) -> None:
    """A crop in proportion, and not the whole image stretched."""
    place = NetworkRef(str(save(network(sides=("batch", 3, "height", "width")), tmp_path / "open.onnx")))
    request = CompareRequest(place, place, photographs(tmp_path), settings=QUICK, input_shape=(3, 32, 32))
    preprocessing = onnx_file.usual_for(3, 224, 224).at_size((32, 32))
    assert preprocessing.resize == 37
    assert preprocessing.describe() in prepared(request).notes[0]


def test_images_are_preprocessed_as_for_the_model_that_a_file_was_exported_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no folder is given, only for one that comes with images."""
    known = [ModelCard(name, "", "", None, (1, 2, 2), 5) for name in ("with", "without", "elsewhere")]
    known = [replace(one, bundled_images=one.name == "with", ready=one.name != "elsewhere") for one in known]
    monkeypatch.setattr(two_files_prepared, "catalogue", lambda: {one.name: one for one in known})

    def like(of_a: str, of_b: str, bundled: bool) -> str:
        a, b = (Candidate("", "", "", 1, Network(), (1, 2, 2), made_of=one) for one in (of_a, of_b))
        return like_of(a, b, bundled)

    assert [like("with", "", one) for one in (False, True)] == ["with", "with"]
    assert [like("", "without", one) for one in (False, True)] == ["without", ""]
    assert [like("without", "with", one) for one in (False, True)] == ["without", "with"]
    assert [like(one, one, False) for one in ("elsewhere", "nowhere", "")] == ["", "", ""]
    wider = Candidate("", "", "", 1, Network(), (1, 4, 4), made_of="with")
    assert like_of(wider, wider) == ""


def test_another_model_under_the_name_that_images_are_preprocessed_for_has_another_key() -> None:
    """And so has one whose weights a file has; a model that is one of the two is in the key already."""
    asked, file = CompareRequest(NetworkRef("a"), NetworkRef("b")), Candidate("a", "", "0", 1, Network(), ())
    like, of_weights, of_others = [], [], set()
    for digit in "01":
        added = cards.AddedModel("mine", "onnx", f"{digit * 20}.onnx", IMAGENET)
        cards.save_card(added)
        loaded = LoadedModel(added.card, nn.Identity(), torch.as_tensor, ())
        like.append(key_of(file, file, replace(asked, like="mine")))
        of_weights.append(key_of(file, replace(file, loaded=loaded), asked))
        of_others |= {key_of(file, file, replace(asked, like="fashion-mlp"))}
        model = replace(file, content=added.version)
        assert key_of(file, replace(model, loaded=loaded), asked) == key_of(file, model, asked)
    assert like[0] != like[1]
    assert of_weights[0] != of_weights[1]
    assert len(of_others) == 1


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


def refused(a: Any, b: Any, folder: Path, words: str, **more: Any) -> None:
    with pytest.raises(InputError, match=words):
        compared(a, b, folder, None, **more)


@HERE
def test_what_can_not_be_compared_is_said(tmp_path: Path) -> None:
    refused(network(), network(sides=(1, 3, 24, 24)), tmp_path, r"b\.onnx takes images of \[3, 24, 24\]")
    refused(network(), detector(), tmp_path, r"no output of the same shape is in both")
    refused(network(), network(), tmp_path, "files are run by openvino or onnxruntime", engine="torch")
    refused(network(), network(), tmp_path, "was asked for", input_shape=(3, 8, 8))
    counted = graph([node("NonZero", "x")], sides=(1, 3, 16, 16))
    counted.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    refused(network(), counted, tmp_path, "does not have one row of a fixed size for each image")


@pytest.mark.slow
@HERE
def test_an_open_size_is_that_of_the_other_file_or_asked_for(tmp_path: Path) -> None:
    open_sides = network(sides=("batch", 3, "height", "width"))
    run = compared(open_sides, network(), tmp_path, None)
    assert all(one.largest == 0 for one in run.outputs)
    run = compared(open_sides, open_sides, tmp_path, None, input_shape=(3, 24, 40))
    assert {layer.shape for layer in run.layers if layer.reference == "Conv_first"} == {(8, 24, 40)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.onnx", b"no model"),
        ("a.xml", b"<net"),
        ("a.xml", b"<!DOCTYPE x [<!ENTITY a 'b'>]><net/>"),
        ("a.zip", b"PK no zip"),
        ("a.zip", b""),
    ],
)
def test_a_file_that_is_no_network_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        on_demand.compare(CompareRequest(NetworkRef(str(tmp_path / name)), NetworkRef("fashion-mlp")))
    assert not [path for path in cards.folder().iterdir() if path.suffix != ".onnx"], "nothing is left"


def test_an_ir_without_its_weights_and_a_file_that_is_not_there_are_said(tmp_path: Path) -> None:
    openvino.save_model(openvino.Core().read_model(save(network(), tmp_path / "a.onnx")), tmp_path / "b.xml")
    (tmp_path / "b.bin").unlink()
    for place, words in ((tmp_path / "b.xml", "its weights are missing"), (tmp_path / "c.xml", "no file")):
        with pytest.raises(InputError, match=words):
            on_demand.compare(CompareRequest(NetworkRef(str(place)), NetworkRef("fashion-mlp")))


@HERE
def test_a_network_that_gives_what_is_not_finite_is_said(tmp_path: Path) -> None:
    broken = graph([node("Log", "x", "a"), node("Conv", "a w")], {"w": FIRST}, sides=(1, 3, 16, 16))
    with pytest.raises(WorkError, match="not finite"):
        compared(broken, broken, tmp_path)


@pytest.mark.slow
@HERE
def test_the_first_sentence_says_all_four_from_values(tmp_path: Path) -> None:
    run = compared(network(), network(), tmp_path, (IMAGES, LABELS))
    fast = replace(
        run.latency,
        variant=replace(run.latency.baseline[0]),
    )
    words = two_files_words.sentence(replace(run, latency=fast))
    assert words.startswith("b.onnx ")
    assert "no measurable difference in accuracy" in words
    assert words.endswith("as large.")
    slow = replace(run.latency, baseline=(visits([1e6] * 8), visits([3e6] * 8)), variant=visits([1e6] * 8))
    taken = replace(run, latency=replace(slow, processes=(8,)))
    (row,) = (row for row in two_files_words.figures(taken) if row[""] == "latency")
    assert list(row.values())[1].startswith("2.00 ms"), "of both builds of the first"
    figures = two_files_words.as_json(taken)["latency"]
    assert (figures["a_ns"], figures["b_ns"]) == (2e6, 1e6)
    said = two_files_words.as_json(run)
    assert said["sentence"] == two_files_words.sentence(run)
    assert said["a"]["size_bytes"] == run.a.size_bytes
    assert said["outputs"][0]["sqnr_db"]["value"] is None


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


@HERE
def test_images_in_memory_that_are_gone_are_not_made_up(tmp_path: Path) -> None:
    places = (NetworkRef(str(save(network(), tmp_path / f"{name}.onnx"))) for name in "ab")
    request = CompareRequest(*places, DataSpec(content="0" * 20), settings=QUICK)
    with pytest.raises(InputError, match="given in memory"):
        on_demand.compare(request)
