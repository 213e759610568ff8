"""Looking into a user's model file, adding what it holds to this machine's models, and opening that.

Nothing of a file is believed before the limited process has read it and written it anew
(:mod:`optimizer.model.added.limits`); what is kept is what that wrote.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from optimizer.errors import InputError, UnavailableError, first_line
from optimizer.formats import format_bytes
from optimizer.model.added import architectures, cards, checkpoint, hub, onnx_file
from optimizer.model.added.cards import AddedModel, Choices, Examined
from optimizer.model.added.containers import CHECKPOINTS, MODEL_FILES, check_kind
from optimizer.model.added.hub import Repository
from optimizer.model.added.limits import read_limited
from optimizer.model.computed import without_computed
from optimizer.model.own import tried
from optimizer.model.sources import LoadedModel
from optimizer.model.sources.imagenet import is_imagenet, wordnet_ids
from optimizer.model.unused import unused
from optimizer.progress import Report, quiet

UNUSED_SECONDS = 86_400
"""After so long a file that was looked into and not added goes."""


@dataclass(frozen=True)
class FileKind:
    """A kind of model file: by which ``suffixes`` it is known, and how it is kept.

    ``examined`` finds out more of a file that was read and kept, ``described`` makes a card by what the user
    decides, ``module`` builds what the card says. ``lacking`` says what is missing here to read such files.
    """

    suffixes: tuple[str, ...]
    extension: str
    examined: Callable[[Examined, dict[str, Any], str], Examined]
    described: Callable[[Examined, Choices], AddedModel]
    module: Callable[[AddedModel], nn.Module]
    lacking: Callable[[], str] = lambda: ""


KINDS: dict[str, FileKind] = {
    "checkpoint": FileKind(
        CHECKPOINTS, ".safetensors", checkpoint.examined, checkpoint.described, checkpoint.module
    ),
    "onnx": FileKind(
        (".onnx",), ".onnx", onnx_file.examined, onnx_file.described, onnx_file.module, onnx_file.lacking
    ),
}


def examine(
    file: Path,
    architecture: str = "",
    report: Report = quiet,
    external: bool = True,
    called: str | None = None,
    repository: Repository | None = None,
) -> Examined:
    """Read a file and keep what it holds under a content name; ``external`` data may lie beside it. Its user
    knows it as ``called``, else by its name. With a ``repository`` it is the weights in that.

    Raises InputError, which names the file, for one that is refused, UnavailableError for what this machine
    lacks.
    """
    kind, called = "checkpoint" if repository else _kind_of(file), called or file.name
    if problem := KINDS[kind].lacking():
        raise UnavailableError(problem)
    report(None, f"reading {called}")
    forget_unused()
    target = cards.folder() / f"{uuid.uuid4().hex}.partial"
    try:
        found = read_limited(kind, file, called, target=str(target), external=external)
        with target.open("rb") as written:
            content = hashlib.file_digest(written, "sha256").hexdigest()[:20]
        kept = f"{content}{KINDS[kind].extension}"
        target.replace(cards.content_path(kept))
    finally:
        with suppress(OSError):
            target.unlink()
    facts = (("file", f"{called}, {format_bytes(file.stat().st_size)}"),)
    about = Examined(kind, kept, cards.suggested_name(called), facts)
    if repository:
        about = replace(about, config=json.dumps(repository.config))
        architecture, found["metadata"] = repository.architecture, found["metadata"] | repository.said
    return KINDS[kind].examined(about, found, architecture)


def examine_hub(name: str, report: Report, allow: Callable[[int], None]) -> Examined:
    """Fetch a repository of the hub and look into it. Raises as :func:`optimizer.model.added.hub.fetch`."""
    repository = hub.fetch(name, report, allow, architectures.check)
    return examine(repository.weights, report=report, called=repository.id, repository=repository)


def add(about: Examined, choices: Choices, taken: Collection[str] = (), report: Report = quiet) -> AddedModel:
    """Keep what was examined as a model, whose name is none of ``taken``. Raises InputError."""
    name = cards.check_name(choices.name or about.name)
    if name.casefold() in {other.casefold() for other in taken}:
        raise InputError(f"there is a model {name!r} already: give another name, or remove that one first")
    model, _ = _built(about, replace(choices, name=name), report)
    cards.save_card(model)
    return model


def opened(about: Examined, choices: Choices, report: Report = quiet) -> LoadedModel:
    """What was examined, loaded and not kept as a model, under a name of its content. Raises InputError."""
    model, module = _built(about, choices, report)
    return _loaded(replace(model, name=f"{about.name}-{model.version[:10]}"), module)


def load(model: AddedModel, report: Report = quiet) -> LoadedModel:
    """Raises InputError for a file that is missing or damaged."""
    report(None, f"loading {model.name}")
    try:
        module = KINDS[model.kind].module(model)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"the file {model.file} of {model.name} can't be read ({first_line(error)}): remove the model, "
            "and add it again"
        ) from error
    return _loaded(model, module)


def _built(about: Examined, choices: Choices, report: Report) -> tuple[AddedModel, nn.Module]:
    """Its card, once the network has answered two images."""
    kind = KINDS[about.kind]
    model = kind.described(about, choices)
    report(None, f"trying {about.name}")
    with torch.random.fork_rng(devices=[]):  # building a module draws initial weights
        module = without_computed(kind.module(model).eval().float()).requires_grad_(False)
    outputs = tried(module, model.preprocessing.input_shape)
    logits = outputs.ndim == 2 and outputs.shape[1] > 1
    classes = outputs.shape[1] if logits and choices.classifier else 0
    if choices.class_names and len(choices.class_names) != classes:
        raise InputError(
            f"{len(choices.class_names):,} class names were given, and the network has {classes:,} classes"
        )
    known = (choices.class_names, about.class_names)
    names = next((names for names in known if len(names) == classes), ())
    parameters = sum(parameter.numel() for parameter in module.parameters())
    by_choice = logits and not choices.classifier
    known_card = replace(model, parameters=parameters, classes=classes, class_names=tuple(names))
    unrun = bool(unused(module, model.preprocessing.input_shape))
    return replace(known_card, by_choice=by_choice, unused=unrun), module


def _loaded(model: AddedModel, module: nn.Module) -> LoadedModel:
    return LoadedModel(
        model.card,
        without_computed(module.eval().float()).requires_grad_(False),
        lambda image: torch.from_numpy(model.preprocessing(image)),
        model.class_names,
        wordnet_ids() if is_imagenet(model.class_names) else (),
        getattr(module, "parts", ()),
        getattr(module, "input_name", LoadedModel.input_name),
        getattr(module, "notes", ()),
        model.preprocessing,
    )


def _kind_of(file: Path) -> str:
    """By its name. Raises InputError for a file that is none, or of no kind that is read."""
    if not os.path.isfile(file):
        raise InputError(f"there is no file {str(file)!r}: give a model file ({', '.join(MODEL_FILES)})")
    check_kind(file.name)
    suffix = file.suffix.lower()
    return next(name for name, kind in KINDS.items() if suffix in kind.suffixes)


def forget_unused() -> None:
    """Drop what no card names and nobody has looked into lately."""
    used = {model.file for model in cards.added_models().values()}
    for path in cards.folder().iterdir():
        with suppress(OSError):
            old = time.time() - path.stat().st_mtime > UNUSED_SECONDS
            if old and path.suffix != ".json" and path.name not in used:
                path.unlink()
