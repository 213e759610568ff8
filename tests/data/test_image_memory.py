"""Images are decoded and held within this machine's memory."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from image_folders import colour_model, noise
from PIL import Image

from optimizer.data import decoding, loading
from optimizer.data.loading import held_images, load_images
from optimizer.data.selection import fingerprint
from optimizer.errors import InputError
from optimizer.records import DataSpec
from optimizer.system.environment import environment, threads_available


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
from image_folders import colour_model
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
