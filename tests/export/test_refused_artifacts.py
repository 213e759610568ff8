"""Files that are refused: cut, damaged, made up, or of another model."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from artifact_files import RECIPES, Small, entries, taken, values, zip_of
from torch import Tensor, nn

from optimizer.analysis.two_files import NetworkRef
from optimizer.errors import InputError
from optimizer.export.artifacts import CARD_FILE, RECIPE_FILE, load, write
from optimizer.export.artifacts.networks import opened
from optimizer.model.folding import fold_batch_norm


@pytest.fixture
def cnn(small: Small) -> nn.Module:
    return fold_batch_norm(small("cnn"))[0]


@pytest.fixture(params=["safetensors", "packed"])
def zipped(request: pytest.FixtureRequest, small: Small, small_images: Tensor) -> bytes:
    return write(request.param, taken(small("cnn"), RECIPES["4 bits pruned"], small_images))


def test_a_cut_zip_is_refused(zipped: bytes, cnn: nn.Module) -> None:
    for length in (0, 1, 21, 100, len(zipped) // 2, len(zipped) - 1):
        with pytest.raises(InputError):
            load(zipped[:length], cnn)


@pytest.mark.slow
def test_noise_in_a_zip_is_refused_or_changes_nothing(zipped: bytes, cnn: nn.Module) -> None:
    random = np.random.default_rng(0)
    whole = values(load(zipped, cnn))
    for _ in range(150):
        content = bytearray(zipped)
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        try:
            found = values(load(bytes(content), cnn))
        except InputError:
            continue
        assert all(torch.equal(found[name], value) for name, value in whole.items())


def model_of(zipped: bytes) -> tuple[str, bytes]:
    return next((name, content) for name, content in entries(zipped).items() if name.startswith("model"))


@pytest.mark.slow
def test_noise_in_a_model_is_refused_or_read(zipped: bytes, cnn: nn.Module) -> None:
    """The check sum of the zip is right: whatever the bytes, no other error."""
    random = np.random.default_rng(1)
    name, content = model_of(zipped)
    for index in range(300):
        noisy = bytearray(content)
        at = random.integers(len(noisy) if index % 2 else int.from_bytes(content[:2], "little"))
        noisy[at] ^= 1 << random.integers(8)
        try:
            load(zip_of({**entries(zipped), name: bytes(noisy)}), cnn)
        except InputError:
            continue


def test_another_model_is_refused(zipped: bytes, small: Small) -> None:
    words = "holds 'small' and does not fit this model: it lacks .*fold_batch_norm"
    with pytest.raises(InputError, match=words):
        load(zipped, small("encoder"))
    with pytest.raises(InputError, match="it lacks depthwise.1.bias, .* and 12 more"):
        load(zipped, small("cnn"))  # batch norm not folded
    wider, _ = fold_batch_norm(small("cnn"))
    wider.head = nn.Linear(8, 11)
    with pytest.raises(InputError, match=r"head.weight is \[10, 8\].*not \[11, 8\]"):
        load(zipped, wider)
    fewer, _ = fold_batch_norm(small("cnn"))
    fewer.head = nn.Linear(8, 10, bias=False)
    with pytest.raises(InputError, match="it has head.bias, which the model has not"):
        load(zipped, fewer)
    with pytest.raises(InputError, match="more than the .* of this model can have"):
        load(bytes(2**24), nn.Linear(1, 1))


Change = Callable[[dict[str, Any], dict[str, Tensor]], object]


def rewritten(zipped: bytes, change: Change) -> bytes:
    """The zip with other facts and tensors in its model."""
    name, content = model_of(zipped)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["paretoscope"])
    tensors = safetensors.torch.load(content)
    change(facts, tensors)
    model = safetensors.torch.save(tensors, {"paretoscope": json.dumps(facts)})
    return zip_of({**entries(zipped), name: model})


def test_another_version_or_format_is_refused(zipped: bytes, cnn: nn.Module) -> None:
    with pytest.raises(InputError, match="version '2' but '1' is read here: upgrade"):
        load(rewritten(zipped, lambda facts, _: facts.update(version="2")), cnn)
    with pytest.raises(InputError, match="does not say 'paretoscope"):
        load(rewritten(zipped, lambda facts, _: facts.pop("format")), cnn)
    name, content = model_of(zipped)
    tensors = safetensors.torch.load(content)
    for metadata in (None, {"paretoscope": "[1]"}, {"format": "pt"}):
        other = zip_of({**entries(zipped), name: safetensors.torch.save(tensors, metadata)})
        with pytest.raises(InputError, match="does not say 'paretoscope"):
            load(other, cnn)
    for text in ("{", "[" * 100_000, "\x00"):
        other = zip_of({**entries(zipped), name: safetensors.torch.save(tensors, {"paretoscope": text})})
        with pytest.raises(InputError, match="damaged"):
            load(other, cnn)


def test_tensors_that_do_not_fit_are_refused(zipped: bytes, cnn: nn.Module) -> None:
    name = "head.weight"
    packed = "packed" in model_of(zipped)[0]

    def without(tensor: str) -> Change:
        return lambda _, tensors: tensors.pop(tensor)

    def with_(tensor: str, value: Tensor) -> Change:
        return lambda _, tensors: tensors.update({tensor: value})

    def reshaped(*shape: int) -> Change:
        return lambda facts, _: facts["layers"][name].update(shape=shape)

    changes: list[Change] = [
        without(name),
        without("head.bias"),
        without(f"{name}.scale"),
        with_("head.bias", torch.zeros(10, dtype=torch.float64)),
        with_("head.bias", torch.zeros(1, 10)),
        with_(name, torch.zeros(10, 8, dtype=torch.int32)),
        with_(name, torch.zeros(10, 8)),
        with_(f"{name}.scale", torch.ones(8, 1)),
        with_(f"{name}.scale", torch.ones(10, 1, dtype=torch.float64)),
        with_("elsewhere.weight", torch.zeros(1)),
        with_("head.bias.scale", torch.zeros(1)),
        with_(f"{name}.zero_point", torch.zeros(3, dtype=torch.uint8)),
    ]
    if packed:
        changes += [
            lambda facts, _: facts.pop("layers"),
            lambda facts, _: facts.update(layers={}),
            lambda facts, _: facts.update(layers=[1]),
            lambda facts, _: facts["layers"].update({name: {"bits": 4}}),
            reshaped(80, 1),
            reshaped(10, 80_000_000_000),
            reshaped(10, -8),
        ]
    for change in changes:
        with pytest.raises(InputError):
            load(rewritten(zipped, change), cnn)


def test_other_entries_are_refused(zipped: bytes, cnn: nn.Module) -> None:
    files = entries(zipped)
    name, content = model_of(zipped)
    others = [
        {**files, "extra.txt": b""},
        {**files, "model.pt": b"pickle"},
        {name: content},
        {**files, f"../{name}": content},
        {"model.onnx": b"", RECIPE_FILE: b"{}", CARD_FILE: b""},
        {"model.safetensors": content, "model.packed.safetensors": content, RECIPE_FILE: b"{}"},
    ]
    for other in others:
        with pytest.raises(InputError, match="the zip holds .*: use one as it was written"):
            load(zip_of(other), cnn)
    twice = zip_of({**files, name.replace("m", "M", 1): content}).replace(b"Model.", b"model.")
    with pytest.raises(InputError, match="the zip holds"):
        load(twice, cnn)
    many = zip_of({f"{index}": b"" for index in range(1000)})
    with pytest.raises(InputError, match="more entries than"):
        load(many, cnn)


def test_a_whole_zip_file_of_two_is_not_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    path.write_bytes(zip_of({f"{index}": b"" for index in range(1000)}))
    with pytest.raises(InputError, match="^many.zip: this zip has more entries than"):
        opened(NetworkRef(str(path)))


@pytest.mark.slow
def test_bombs_are_refused_before_they_unpack(zipped: bytes, cnn: nn.Module) -> None:
    files, (name, _) = entries(zipped), model_of(zipped)
    zeros = bytes(64 << 20)
    for entry in (name, RECIPE_FILE, CARD_FILE):
        bomb = zip_of({**files, entry: zeros})
        assert len(bomb) < 1 << 20
        with pytest.raises(InputError, match=f"{entry} would unpack to 67,108,864 bytes"):
            load(bomb, cnn)
    lie = zip_of({**files, name: zeros}).replace(struct.pack("<I", 64 << 20), struct.pack("<I", 1000))
    with pytest.raises(InputError, match="damaged"):
        load(lie, cnn)
    for compression in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with pytest.raises(InputError, match="unusual way"):
            load(zip_of(files, compression), cnn)


def test_a_header_larger_than_the_file_is_refused(zipped: bytes, cnn: nn.Module) -> None:
    files, (name, content) = entries(zipped), model_of(zipped)
    for head in (2**63, len(content) - 7, 9 << 20):
        with pytest.raises(InputError, match="no safetensors file, or is cut off"):
            load(zip_of({**files, name: struct.pack("<Q", head) + content[8:]}), cnn)
    for header in (b"[1]", b"{", b"[" * 100_000, b"\xff\xff"):
        with pytest.raises(InputError, match="damaged"):
            load(zip_of({**files, name: struct.pack("<Q", len(header)) + header}), cnn)
    with pytest.raises(InputError):
        load(zip_of({**files, name: b""}), cnn)


def test_a_path_without_a_file_is_refused(cnn: nn.Module, tmp_path: Path) -> None:
    for path in (tmp_path / "none.zip", tmp_path):
        with pytest.raises(InputError, match="can't be read .*: give the path of a zip file"):
            load(path, cnn)
