"""Folders good and bad as tensors, also for models of one's own."""

import io
import json
import re
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import COLOURS, Paint, colour_model, noise, predicted
from PIL import Image

from optimizer.data import loading, selection
from optimizer.data.classes import ClassMapping
from optimizer.data.loading import classes_of, held_images, load_images
from optimizer.data.selection import fingerprint, select
from optimizer.errors import InputError, WorkError
from optimizer.measurement.workspace import open_workspace
from optimizer.model.catalogue import LoadedModel, load
from optimizer.model.sources import imagenet
from optimizer.records import DataSpec
from optimizer.system.environment import environment

# Folders


def test_labels_belong_to_their_images(colours: Path) -> None:
    model = colour_model()
    loaded = load_images(model, DataSpec(str(colours), calibration_share=0.25))
    assert loaded.evaluation.images.shape == (9, 3, 4, 4)
    assert loaded.evaluation.images.dtype == torch.float32
    assert torch.equal(predicted(model, loaded.evaluation.images), loaded.evaluation.labels)  # type: ignore[arg-type]
    assert loaded.calibration.images.shape == (3, 3, 4, 4)
    assert loaded.notes == ()
    assert [entry.folder for entry in loaded.mapping.mapped] == sorted(COLOURS)


def test_bad_files_are_skipped_counted_and_named(colours: Path) -> None:
    model = colour_model()
    good = (colours / "red" / "0.png").read_bytes()
    Image.new("RGB", (200, 200), "red").save(colours / "red" / "cut.jpg")
    whole = (colours / "red" / "cut.jpg").read_bytes()
    (colours / "red" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (colours / "green" / "text.jpg").write_text("not an image")
    (colours / "green" / "zero.png").touch()
    (colours / "blue" / "cut.png").write_bytes(good[:60])
    (colours / "blue" / "dead.png").symlink_to(colours / "gone")
    (colours / "blue" / "folder.png").mkdir()
    (colours / "blue" / "notes.txt").write_text("a note")
    loaded = load_images(model, DataSpec(str(colours), calibration_share=0.01))
    notes = "; ".join(loaded.notes)
    assert "1 file (notes.txt) skipped: not an image by name" in notes
    assert re.search(r"5 of 16 images skipped: \S+ \(.+\), \S+ \(.+\), \S+ \(.+\), \.\.\.", notes)
    assert len(loaded.evaluation.images) == 11
    assert torch.equal(predicted(model, loaded.evaluation.images), loaded.evaluation.labels)  # type: ignore[arg-type]


def test_images_that_say_to_turn_them_are_read_as_stored_and_counted(colours: Path, paint: Paint) -> None:
    spec = DataSpec(str(colours), calibration=str(paint("others", 2) / "others"))
    assert load_images(colour_model(), spec).notes == ()
    for name, orientation in (("0", 1), ("1", 6), ("2", 3)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (60, 20), "red").save(colours / "red" / f"turned {name}.jpg", exif=exif)
    Image.new("RGB", (50, 20), "red").save(colours / "red" / "broken.jpg", exif=b"Exif\0\0II*\0\xff\xff")
    assert [note for note in load_images(colour_model(), spec).notes if "EXIF" in note] == [
        "2 of 16 images read as stored, as torchvision does, though their EXIF orientation says to turn them"
    ]


def test_a_folder_of_damaged_images_is_refused(paint: Paint) -> None:
    top = paint("good", 1)
    (top / "bad").mkdir()
    for number in range(4):
        (top / "bad" / f"{number}.jpg").write_text(f"{number} is no image")
    with pytest.raises(InputError, match="none of the 3 images can be read: .*cannot identify image"):
        load_images(colour_model(), DataSpec(str(top / "bad")))
    with pytest.raises(InputError, match="none of the 4 calibration images can be read"):
        load_images(colour_model(), DataSpec(str(top / "good"), str(top / "bad")))


def test_images_without_folders_have_no_labels(paint: Paint) -> None:
    loaded = load_images(colour_model(), DataSpec(str(paint("flat", 5, suffix="jpg") / "flat")))
    assert loaded.evaluation.labels is None
    assert len(loaded.evaluation.images) == 4
    assert loaded.mapping == ClassMapping()


@pytest.mark.parametrize(
    ("mode", "white", "suffix"),
    [
        ("L", 255, "png"),
        ("1", 1, "png"),
        ("P", 255, "gif"),
        ("LA", (255, 255), "png"),
        ("RGB", (255, 255, 255), "bmp"),
        ("RGBA", (255, 255, 255, 0), "webp"),
        ("CMYK", (0, 0, 0, 0), "jpg"),
        ("I;16", 65535, "png"),
        ("I;16", 65535, "tif"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_model_s(
    tmp_path: Path, mode: str, white: int, suffix: str, channels: int
) -> None:
    for number in range(2):
        image = Image.new(mode, (8 + number, 8), white)
        if mode == "P":
            image.putpalette([255, 255, 255] * 256)
            image.info["transparency"] = 255
        image.save(tmp_path / f"{number}.{suffix}")
    loaded = load_images(colour_model(channels), DataSpec(str(tmp_path)))
    assert loaded.notes == ()
    assert torch.allclose(loaded.evaluation.images, torch.tensor(255 / 254), atol=0.02)


def test_sixteen_bit_greys_keep_their_steps(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("I;16", (8 + number, 8), 32768).save(tmp_path / f"{number}.png")
    images = load_images(colour_model(1), DataSpec(str(tmp_path))).evaluation.images
    assert torch.allclose(images, torch.tensor(128 / 254), atol=0.01)


BITS, SAMPLE_FORMAT = 258, 339


def tiff_of(mode: str, pixels: np.ndarray, tags: dict[int, int]) -> bytes:
    """A TIFF file whose header says something else about the same bytes, by the numbers of its tags."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", tiffinfo={SAMPLE_FORMAT: 1})
    written = buffer.getvalue()
    for tag, value in tags.items():
        start = written.index(struct.pack("<HHI", tag, 3, 1)) + 8
        written = written[:start] + struct.pack("<H", value) + written[start + 2 :]
    assert Image.open(io.BytesIO(written)).mode == mode
    return written


def test_greys_are_as_bright_as_the_bits_of_their_file_say(tmp_path: Path) -> None:
    for number in range(2):
        white = np.full((8, 8 + 2 * number), 65535, np.uint16)
        (tmp_path / f"{number}.tif").write_bytes(tiff_of("I;16", white, {BITS: 12}))
        (tmp_path / f"{number}.pgm").write_bytes(
            b"P5 %d 8 1023\n" % (7 + number) + b"\3\xff" * 8 * (7 + number)
        )
    loaded = load_images(colour_model(1), DataSpec(str(tmp_path)))
    assert loaded.notes == ()
    for images in (loaded.evaluation.images, loaded.calibration.images):
        assert torch.allclose(images, torch.tensor(255 / 254))


@pytest.mark.parametrize(
    ("pixels", "tags", "words"),
    [
        (np.full((8, 8), 200, np.int32), {}, "signed integer pixels of 32 bits"),
        (np.full((8, 8), 200, np.int32), {SAMPLE_FORMAT: 1}, "integer pixels of 32 bits"),
        (np.full((8, 8), 200, np.uint16), {SAMPLE_FORMAT: 2}, "signed integer pixels of 16 bits"),
    ],
)
def test_integers_whose_white_is_not_known_are_refused(
    tmp_path: Path, pixels: np.ndarray, tags: dict[int, int], words: str
) -> None:
    """They would be read as black, were they taken for 16 bits."""
    for number in range(4):
        Image.new("L", (8 + number, 8), 200).save(tmp_path / f"{number}.png")
    (tmp_path / "deep.tif").write_bytes(tiff_of("I", pixels, tags))
    assert load_images(colour_model(1), DataSpec(str(tmp_path), calibration_share=0.01)).notes[-1] == (
        f"1 of 4 images skipped: deep.tif ({words}, whose white is not known)"
    )


def png_claiming(width: int, height: int) -> bytes:
    """A PNG file that is all header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (50_000, 50_000, "decompression bomb"),
        (9000, 9000, "9000 x 9000 pixels, more than 80,000,000"),
        (1, 9000, "1 x 9000 pixels, one side more than 100 times the other"),
    ],
)
def test_an_image_that_would_fill_the_memory_is_skipped(
    paint: Paint, width: int, height: int, words: str
) -> None:
    top = paint("set", 2)
    paint("other", 1)
    (top / "set" / "bomb.png").write_bytes(png_claiming(width, height))
    (note,) = load_images(colour_model(), DataSpec(str(top / "set"), str(top / "other"))).notes
    assert note.startswith("1 of 3 images skipped: bomb.png (")
    assert words in note


def test_only_common_formats_are_decoded(paint: Paint) -> None:
    top = paint("set", 2)
    paint("other", 1)
    Image.new("RGB", (8, 8)).save(top / "set" / "x.eps")  # its decoder runs another program
    (top / "set" / "x.eps").rename(top / "set" / "x.jpg")
    (note,) = load_images(colour_model(), DataSpec(str(top / "set"), str(top / "other"))).notes
    assert note.startswith("1 of 3 images skipped: x.jpg (cannot identify")


def test_too_many_images_for_the_memory_say_the_limit(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_bytes = 4 * 3 * 4 * 4
    monkeypatch.setattr(loading, "MEMORY_SHARE", 8.5 * image_bytes / environment().memory_bytes)
    spec = DataSpec(str(colours), calibration_share=0.25)
    words = r"9 images and 3 for calibration .* set the image limit to 5"
    with pytest.raises(InputError, match=words) as caught:
        load_images(colour_model(), spec)
    assert "memory" in str(caught.value)
    assert len(load_images(colour_model(), replace(spec, limit=5)).evaluation.images) == 5
    with pytest.raises(InputError, match="calibrate with fewer images"):
        load_images(colour_model(size=8), spec)


def test_progress_is_reported(colours: Path) -> None:
    said: list[tuple[float | None, str]] = []
    load_images(colour_model(), DataSpec(str(colours)), lambda share, message: said.append((share, message)))
    assert any("reading images" in message for _, message in said)
    assert all(share is None or 0 <= share <= 1 for share, _ in said)


def test_a_preprocessing_that_does_not_fit_its_card_is_named(colours: Path) -> None:
    good = colour_model()
    wrong = LoadedModel(good.card, good.module, colour_model(size=5).preprocess, good.classes)
    with pytest.raises(
        WorkError, match=r"preprocessing of colours gives \[3, 5, 5\], its card says \[3, 4, 4\]"
    ):
        load_images(wrong, DataSpec(str(colours)))


# What can't be read


def test_of_readable_images_not_all_are_set_aside_for_calibration(tmp_path: Path) -> None:
    for number in range(10):
        noise(number).save(tmp_path / f"{number}.png")
    spec = DataSpec(str(tmp_path), calibration_share=0.8)
    chosen = select(spec, tuple(COLOURS))
    for path in (*chosen.calibration, *chosen.spare):
        path.write_text("not an image")
    loaded = load_images(colour_model(size=16), spec)
    assert (len(loaded.calibration.images), len(loaded.evaluation.images)) == (1, 1)


def test_one_unreadable_file_is_not_the_whole_calibration(tmp_path: Path) -> None:
    for number in range(5):
        noise(number).save(tmp_path / f"{number}.png")
    spec = DataSpec(str(tmp_path), calibration_share=0.2)
    (aside,) = select(spec, tuple(COLOURS)).calibration
    aside.write_text("not an image")
    loaded = load_images(colour_model(size=16), spec)
    assert len(loaded.calibration.images) == 1
    assert len(loaded.evaluation.images) == 3
    assert "1 image set aside for calibration in place of those that can't be read" in loaded.notes
    assert not (loaded.evaluation.images == loaded.calibration.images).flatten(1).all(1).any()


def test_images_beyond_the_limit_calibrate_in_place_of_one_that_cannot_be_read(tmp_path: Path) -> None:
    for number in range(5):
        noise(number).save(tmp_path / f"{number}.png")
    spec = DataSpec(str(tmp_path), limit=1, calibration_share=0.2)
    chosen = select(spec, tuple(COLOURS))
    for file in (*chosen.calibration, *chosen.spare[:2]):
        file.write_text("not an image")
    loaded = load_images(colour_model(size=16), spec)
    assert (len(loaded.calibration.images), len(loaded.evaluation.images)) == (1, 1)
    assert "1 other image takes the place of calibration images that can't be read" in loaded.notes
    assert not torch.equal(loaded.evaluation.images, loaded.calibration.images)


@pytest.mark.parametrize("bundled", [False, True])
def test_a_calibration_folder_is_read_until_one_of_its_images_can_be(
    resnet: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled: bool
) -> None:
    for module in (selection, loading):
        monkeypatch.setattr(module, "CALIBRATION_LIMIT", 1)
    for folder in ("set", "other"):
        (tmp_path / folder).mkdir()
    noise(0).save(tmp_path / "set" / "0.png")
    for number in range(1, 4):
        noise(number).save(tmp_path / "other" / f"{number}.png")
    spec = DataSpec(None if bundled else str(tmp_path / "set"), str(tmp_path / "other"), limit=1)
    for file in selection.calibration_files(spec)[:2]:
        file.write_text("not an image")
    loaded = load_images(resnet, spec)
    assert len(loaded.calibration.images) == 1
    assert "1 other image takes the place of calibration images that can't be read" in loaded.notes


def test_images_that_change_while_they_are_read_are_not_evaluated(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(str(colours))
    files = fingerprint(spec)
    assert held_images(colour_model(), spec, files) is held_images(colour_model(), spec, files)
    monkeypatch.setattr(loading, "_held", {})
    preprocess = colour_model().preprocess

    def meanwhile(image: Image.Image) -> torch.Tensor:
        shutil.rmtree(colours / "red", ignore_errors=True)
        return preprocess(image)

    model = replace(colour_model(), preprocess=meanwhile)
    with pytest.raises(InputError, match="changed while they were read: try again"):
        held_images(model, spec, files)
    shutil.rmtree(colours)
    with pytest.raises(InputError, match="does not exist"):
        held_images(model, spec, files)


# Models of one's own


def test_without_class_names_as_many_folders_are_numbered_in_alphabetical_order(colours: Path) -> None:
    named = colour_model()
    known = load_images(named, DataSpec(str(colours)))
    unnamed = replace(named, classes=())
    found = load_images(unnamed, DataSpec(str(colours)))
    order = sorted(COLOURS)
    assert known.evaluation.labels is not None
    assert found.evaluation.labels is not None
    assert [order[label] for label in found.evaluation.labels] == [
        list(COLOURS)[label] for label in known.evaluation.labels
    ]
    fewer = replace(unnamed, card=replace(named.card, classes=len(COLOURS) + 1))
    with pytest.raises(
        InputError,
        match=r"the 3 folders .* can't be matched to the model's 4 outputs: .*in alphabetical order",
    ):
        load_images(fewer, DataSpec(str(colours)))


OWN = tuple(f"part {number:03}" for number in range(1000))


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (OWN, OWN),
        (("banana", *OWN[1:]), ("banana", *OWN[1:])),
        (OWN[:10], tuple(map(str, range(1000)))),
        ((), tuple(map(str, range(1000)))),
        (imagenet.wordnet_ids(), imagenet.class_names()),
        (imagenet.wordnet_ids()[:7], imagenet.class_names()),
        (("Golden_Retriever", "tench, Tinca tinca", "other"), imagenet.class_names()),
    ],
    ids=["own", "one of a name", "some of its own", "unknown", "ids", "some ids", "names"],
)
def test_a_thousand_outputs_are_imagenet_s_where_the_folders_are(
    folders: tuple[str, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    for folder in ("", *folders):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "an.png").touch()
    model = colour_model()
    unnamed = replace(model, card=replace(model.card, classes=1000), classes=())
    ids = imagenet.wordnet_ids() if names == imagenet.class_names() else ()
    found, found_ids = classes_of(unnamed, DataSpec(str(tmp_path)))
    assert tuple(found or ()) == tuple(sorted(names) if names[0] == "banana" else names)
    assert found_ids == ids


def test_folders_that_a_class_index_file_leaves_out_are_left_out(colours: Path, tmp_path: Path) -> None:
    """In place of a number by the alphabet, which may be that of another."""
    first, *others = sorted(COLOURS)
    index = tmp_path / "index.json"
    index.write_text(json.dumps({first: 1}))
    model = replace(colour_model(), classes=())
    loaded = load_images(model, DataSpec(str(colours), class_index=str(index)))
    assert loaded.mapping is not None
    assert [(one.folder, one.index) for one in loaded.mapping.mapped] == [(first, 1)]
    assert set(loaded.mapping.unmapped) == set(others)
    assert loaded.evaluation.labels is not None
    assert set(loaded.evaluation.labels.tolist()) == {1}


def test_folders_with_numbers_in_their_names_are_those_of_a_class_index_file(
    colours: Path, tmp_path: Path
) -> None:
    names = [f"{colour} {number}" for number, colour in enumerate(COLOURS, 1)]
    for colour, name in zip(COLOURS, names, strict=True):
        (colours / colour).rename(colours / name)
    (tmp_path / "index.txt").write_text("\n".join(names))
    model, spec = (
        replace(colour_model(), classes=()),
        DataSpec(str(colours), class_index=f"{tmp_path}/index.txt"),
    )
    assert classes_of(model, spec) == (names, ())
    mapping = load_images(model, spec).mapping
    assert mapping is not None
    assert {one.folder: one.index for one in mapping.mapped} == {name: at for at, name in enumerate(names)}


def test_folders_named_by_numbers_are_said_to_be_in_alphabetical_order(colours: Path) -> None:
    for number, colour in enumerate(COLOURS):
        (colours / colour).rename(colours / str(10**number))
    model = replace(colour_model(), classes=())
    assert not [note for note in load_images(model, DataSpec(str(colours))).notes if "numbers" in note]
    (colours / "1").rename(colours / "9")
    notes = load_images(model, DataSpec(str(colours))).notes
    assert [note for note in notes if "'10' is the model's output 0" in note]


def test_folders_are_no_labels_to_a_network_that_is_no_classifier(colours: Path) -> None:
    model = colour_model()
    other = replace(model, card=replace(model.card, classes=0), classes=())
    known, found = (load_images(one, DataSpec(str(colours))) for one in (model, other))
    assert found.evaluation.labels is None
    assert not found.mapping.mapped
    assert len(found.evaluation.images) == len(known.evaluation.images)


def test_no_other_images_take_the_place_of_those_that_were_given_in_memory() -> None:
    given = DataSpec(content="0123456789abcdef0123")
    for read in (load_images, lambda model, spec: held_images(model, spec, given.content)):
        with pytest.raises(InputError, match="given in memory.*ask again from Python"):
            read(load("fashion-mlp"), given)
    with pytest.raises(InputError, match="given in memory"):
        open_workspace("fashion-mlp", given)
    assert open_workspace("fashion-mlp").data is None
