"""Two files against each other: what is said of them, how images are preprocessed, and what is refused."""

import json
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from factories import visits
from hostile_graphs import graph, node, save
from torch import nn
from two_networks import FIRST, HERE, IMAGES, LABELS, QUICK, compared, detector, network, photographs

from optimizer import on_demand
from optimizer.analysis import two_files_words
from optimizer.analysis.two_files import CompareRequest, NetworkRef
from optimizer.engine import files_openvino
from optimizer.engine.files import ENGINES
from optimizer.engine.opened import Network, Opened
from optimizer.errors import InputError, WorkError
from optimizer.export.artifacts import networks
from optimizer.measurement import two_files as measurement
from optimizer.measurement import two_files_prepared
from optimizer.measurement.two_files import key_of
from optimizer.measurement.two_files_prepared import Candidate, Comparison, like_of, paired
from optimizer.model import catalogue
from optimizer.model.added import cards, onnx_file
from optimizer.model.added.network_reading import read_zip
from optimizer.model.preprocessing import IMAGENET
from optimizer.model.sources import LoadedModel
from optimizer.progress import Report
from optimizer.records import DataSpec, ModelCard

CLOTHES = (["Pullover", "Sandal"] * 5, (28, 28))


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
def test_images_in_memory_that_are_gone_are_not_made_up(tmp_path: Path) -> None:
    places = (NetworkRef(str(save(network(), tmp_path / f"{name}.onnx"))) for name in "ab")
    request = CompareRequest(*places, DataSpec(content="0" * 20), settings=QUICK)
    with pytest.raises(InputError, match="given in memory"):
        on_demand.compare(request)
