"""Content keys: equal for the same work, different as soon as anything that matters changes."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from optimizer.data.selection import fingerprint
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request, Settings
from optimizer.store import keys
from optimizer.store.keys import request_key
from optimizer.system.environment import environment

PLAIN = Request("fashion-resnet")


def test_equal_requests_have_equal_keys() -> None:
    assert request_key(PLAIN) == request_key(
        Request("fashion-resnet", Recipe(), "openvino", DataSpec(), Settings())
    )


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAIN, model="fashion-mlp"),
        replace(PLAIN, recipe=Recipe(PruneSpec(sparsity=0.5))),
        replace(PLAIN, recipe=Recipe(quantize=QuantizeSpec(weight_bits=8))),
        replace(PLAIN, engine="torch"),
        replace(PLAIN, data=DataSpec(limit=10)),
        replace(PLAIN, settings=Settings(quick=False)),
    ],
)
def test_any_part_of_a_request_changes_its_key(other: Request) -> None:
    assert request_key(other) != request_key(PLAIN)


def test_a_request_keeps_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that this request had once, all else held still: what is stored is found."""
    here = environment()
    machine = replace(here, cpu="", instruction_sets=(), cores=1, governor=None, libraries={}, variables={})
    monkeypatch.setattr(keys, "environment", lambda: machine)
    monkeypatch.setattr(keys, "__version__", "1")
    monkeypatch.setattr(keys, "recent_fingerprint", lambda data: "files")
    monkeypatch.setattr(keys, "weights_version", lambda model: "weights")
    quantize = QuantizeSpec("compensated", weight_bits=4)
    request = replace(PLAIN, recipe=Recipe(PruneSpec(sparsity=0.5), quantize, (Override("head.weight"),)))
    assert request_key(request) == "5d2b9d8a5f5a2ce5badf"
    for change in ({"quantize": replace(quantize, precision="bf16")}, {"finetune_steps": 5}):
        assert request_key(replace(request, recipe=replace(request.recipe, **change))) != request_key(request)


def test_an_image_that_is_added_changes_the_key(tmp_path: Path, wait: Callable[[], None]) -> None:
    folder = tmp_path / "images" / "bag"
    folder.mkdir(parents=True)
    Image.new("L", (28, 28)).save(folder / "a.png")
    request = replace(PLAIN, data=DataSpec(path=str(tmp_path / "images")))
    before = request_key(request)
    assert request_key(request) == before
    Image.new("L", (28, 28), 255).save(folder / "b.png")
    read = request_key(request, fingerprint(request.data))  # what measures looks at once
    wait()
    assert request_key(request) == read
    assert request_key(request) != before


def test_retrained_weights_change_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "fashion-resnet.safetensors"
    monkeypatch.setattr(keys, "assets_dir", lambda: tmp_path)
    weights.write_bytes(b"one")
    before = request_key(PLAIN)
    weights.write_bytes(b"two")
    os.utime(weights, ns=(1, 1))
    assert request_key(PLAIN) != before
