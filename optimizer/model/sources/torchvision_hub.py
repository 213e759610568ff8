"""torchvision's pretrained classifiers, straight from its registry, kept where ``torch.hub`` keeps them."""

import contextlib
import hashlib
import http.client
import pickle
import re
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlparse

import torch

from optimizer.errors import InputError, UnavailableError, first_line
from optimizer.model.preprocessing import of_torchvision
from optimizer.model.sources import LoadedModel, Source
from optimizer.model.sources.imagenet import class_names, wordnet_ids
from optimizer.progress import Report
from optimizer.records import ModelCard, decode, digest, encode
from optimizer.system.disk_cache import Parts, kept

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

TIMEOUT_S = 30
_ANEW = "Delete it and choose the model again: it is then downloaded anew"
CHUNK_BYTES = 1 << 20
_one_gives = threading.Lock()
CARDS_VERSION = 1
"""Raised with every change of what :func:`_card` says."""


@cache
def _registry() -> "dict[str, tuple[str, WeightsEnum]]":
    """By our name: ``resnet50`` with the default weights, ``resnet50.IMAGENET1K_V1`` with others."""
    from torchvision import models

    registry = {}
    for builder in models.list_models(module=models):
        entries = models.get_model_weights(builder)
        for weights in entries:
            if weights.meta.get("categories"):  # VGG-16 also has a backbone without a classifier
                default = weights is entries.DEFAULT
                registry[builder if default else f"{builder}.{weights.name}"] = (builder, weights)
    return registry


def cards() -> dict[str, ModelCard]:
    """Every classification model with pretrained weights. Reads no weights and no network."""
    return {
        name: replace(card, ready=(_checkpoints() / file).exists())
        for name, (card, file) in _listed().items()
    }


@cache
def _listed() -> dict[str, tuple[ModelCard, str]]:
    """Each card, and its file's name. Kept, for whoever lists models only: importing torchvision takes longer
    than importing torch."""

    def make(_: Path | None) -> dict[str, tuple[ModelCard, str]]:
        return {
            name: (_card(name, *entry), checkpoint_path(entry[1]).name) for name, entry in _registry().items()
        }

    def pack(made: dict[str, tuple[ModelCard, str]]) -> Parts:
        return {}, {name: [encode(card).decode(), file] for name, (card, file) in made.items()}

    def unpack(parts: Parts) -> dict[str, tuple[ModelCard, str]]:
        return {name: (decode(card.encode(), ModelCard), file) for name, (card, file) in parts[1].items()}

    return kept(digest(["torchvision's cards", version("torchvision"), CARDS_VERSION]), make, pack, unpack)


def download(name: str, report: Report, force: bool = False) -> Path:
    """Fetch the weights unless they are there (or anyway with ``force``), and check them.

    Raises UnavailableError without a network or a writable folder, InputError for a damaged file.
    """
    path = _present(name, report, force)
    with _checked(name, path, report):
        return path


def load(name: str, report: Report) -> LoadedModel:
    """Download where needed, check, and build with torchvision's own builder.

    The file is opened once: what was checked is what is loaded, as tensors only. Raises UnavailableError
    without a network, InputError for a damaged file.
    """
    from torchvision import models

    builder, weights = _registry()[name]
    path = _present(name, report)
    try:
        with _checked(name, path, report) as file:
            report(None, f"loading {name}")
            state = torch.load(file, map_location="cpu", weights_only=True)
        with _giving(weights, state):
            module = models.get_model(builder, weights=weights, progress=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(
            f"the weights file {path} of {name} can't be read ({first_line(error)}). {_ANEW}"
        ) from error
    classes = tuple(weights.meta["categories"])
    return LoadedModel(
        _card(name, builder, weights),
        module.eval(),
        weights.transforms(),
        classes,
        wordnet_ids() if classes == class_names() else (),
        preprocessing=of_torchvision(weights.transforms()),
    )


SOURCE = Source(cards, load, download)


def checkpoint_path(weights: "WeightsEnum") -> Path:
    """Where torch.hub keeps, and looks for, these weights."""
    return _checkpoints() / PurePosixPath(urlparse(weights.url).path).name


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def weights_path(name: str) -> Path | None:
    """Where the weights of a model are kept, or will be; None for a model of another source."""
    return checkpoint_path(_registry()[name][1]) if name in _registry() else None


def _card(name: str, builder: str, weights: "WeightsEnum") -> ModelCard:
    meta = weights.meta
    size = weights.transforms().crop_size[0]
    top1 = meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    mebibytes = meta.get("_file_size")
    path = checkpoint_path(weights)
    return ModelCard(
        name=name,
        source="torchvision",
        description=f"{_describe(builder)}, weights {weights.name}",
        parameters=meta.get("num_params"),
        input_shape=(3, size, size),
        classes=len(meta["categories"]),
        published_top1=None if top1 is None else round(top1 / 100, 5),
        download_bytes=None if mebibytes is None else round(mebibytes * 2**20),
        ready=path.exists(),
        version=_expected_digest(path.name),
        licence=meta.get("license", "torchvision: BSD-3-Clause; trained on ImageNet-1k"),
    )


def _describe(builder: str) -> str:
    """The first sentence of torchvision's own description, links reduced to their text."""
    from torchvision import models

    text = models.get_model_builder(builder).__doc__ or builder
    text = re.sub(r"`([^`<]+?)\s*<[^>]*>`_*", r"\1", " ".join(text.split("\n\n")[0].split()))
    return re.sub(r"^Constructs an? |\.$| paper\.?$", "", text)


def _expected_digest(file_name: str) -> str:
    """How the file's SHA-256 begins, by torch.hub's custom the digits after the last dash; or nothing."""
    digits = PurePosixPath(file_name).stem.rpartition("-")[2]
    return digits if re.fullmatch("[0-9a-f]{8,64}", digits) else ""


def _present(name: str, report: Report, force: bool = False) -> Path:
    """Where the weights are, once they are there. Raises UnavailableError."""
    _, weights = _registry()[name]
    path = checkpoint_path(weights)
    if force or not path.exists():
        _fetch(name, weights, path, report)
    return path


@contextlib.contextmanager
def _checked(name: str, path: Path, report: Report) -> Iterator[BinaryIO]:
    """The weights file, opened, once its content is what its name says. Raises InputError."""
    report(None, f"checking {path.name}")
    expected = _expected_digest(path.name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(expected):
            raise InputError(
                f"the weights file {path} of {name} is damaged: its SHA-256 begins with "
                f"{found[: len(expected)]} and not with {expected} ({path.stat().st_size:,} bytes). {_ANEW}"
            )
        file.seek(0)
        yield file


@contextlib.contextmanager
def _giving(weights: "WeightsEnum", state: dict[str, Any]) -> Iterator[None]:
    """Have torchvision's builders take ``state`` where they would open and unpickle the file themselves.

    Each asks its weights with ``get_state_dict``, and some rename what they get. The weights are the whole
    process's: one thread at a time.
    """
    with _one_gives:
        vars(weights)["get_state_dict"] = lambda *args, **kwargs: state
        try:
            yield
        finally:
            del vars(weights)["get_state_dict"]


def _fetch(name: str, weights: "WeightsEnum", path: Path, report: Report) -> None:
    """Receive beside the final place, check, then move there: a reader never sees half a file."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    received = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            for chunk in _receive(name, weights, path, report):
                file.write(chunk)
                received.update(chunk)
        if not received.hexdigest().startswith(_expected_digest(path.name)):
            raise UnavailableError(
                f"what {weights.url} answered is not the weights of {name} (its SHA-256 begins with "
                f"{received.hexdigest()[:8]}): a proxy may stand between. {_by_hand(weights, path)}"
            )
        partial.replace(path)
    except OSError as error:
        raise UnavailableError(
            f"can't write to {path.parent} ({error.strerror}): make room, or set TORCH_HOME to a folder "
            "that you can write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _receive(name: str, weights: "WeightsEnum", path: Path, report: Report) -> Iterator[bytes]:
    done = 0
    request = urllib.request.Request(weights.url, headers={"User-Agent": "paretoscope"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(CHUNK_BYTES):
                done += len(chunk)
                share = min(done / total, 1.0) if total else None
                size = f"{done / 1e6:.1f} of {total / 1e6:.1f}" if total else f"{done / 1e6:.1f}"
                report(share, f"downloading {name}: {size} MB")
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            f"{name} has to be downloaded and {urlparse(weights.url).hostname} can't be reached ({error}). "
            f"{_by_hand(weights, path)}"
        ) from error
    if done < total:
        raise UnavailableError(
            f"the download of {name} broke off after {done:,} of {total:,} bytes: try again. "
            f"{_by_hand(weights, path)}"
        )


def _by_hand(weights: "WeightsEnum", path: Path) -> str:
    return (
        f"Without a network, copy {path.name} from {weights.url} to {path.parent}, or use a model that is "
        "already here"
    )
