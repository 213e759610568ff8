"""Every model that can be picked, whichever source it comes from, and the one loader."""

import difflib
from dataclasses import replace
from pathlib import Path

import torch

from optimizer.errors import InputError, ParetoscopeError, WorkError, unknown
from optimizer.model.added import cards, files, hub
from optimizer.model.added.cards import AddedModel, Choices, Examined
from optimizer.model.computed import without_computed
from optimizer.model.sources import LoadedModel, Source, added, bundled, plugins, torchvision_hub
from optimizer.progress import Report, quiet
from optimizer.records import ModelCard
from optimizer.system.downloads import check_allowed

__all__ = [
    "SOURCES",
    "LoadedModel",
    "Source",
    "add",
    "card",
    "catalogue",
    "download",
    "examine_hub",
    "load",
    "problems",
    "remove",
]

SOURCES: dict[str, Source] = {
    "bundled": bundled.SOURCE,
    cards.SOURCE_NAME: added.SOURCE,
    "torchvision": torchvision_hub.SOURCE,
}
"""What this package brings itself; installed plugins add to it (:mod:`optimizer.model.sources`)."""


def catalogue() -> dict[str, ModelCard]:
    """Every model by name: bundled, added, torchvision's, then the plugins'. Cheap: no weight is touched."""
    return {name: card for name, (card, _) in _survey()[0].items()}


def problems() -> tuple[str, ...]:
    """In words, what could not be listed: plugins that fail, names taken twice, damaged cards."""
    return _survey()[1]


def card(name: str) -> ModelCard:
    """What is known of one model. Raises InputError for an unknown name."""
    return _find(name)[0]


def load(name: str, progress: Report | None = None) -> LoadedModel:
    """The model in evaluation mode, downloaded first where it must be.

    Raises InputError for an unknown name or a damaged file, UnavailableError for what this machine lacks or
    may not download, WorkError when a plugin fails.
    """
    known, source = _find(name)
    if source.download is not None and not known.ready:
        check_allowed(known, catalogue().values())
    try:
        with torch.random.fork_rng(devices=[]):  # building a module draws initial weights
            loaded = source.load(name, progress or quiet)
            _check(known, loaded)
            module = without_computed(loaded.module.eval())
    except ParetoscopeError:
        raise
    except Exception as error:
        raise WorkError(
            f"source {known.source} could not load {name}: {type(error).__name__}: {error}"
        ) from error
    return replace(loaded, card=replace(loaded.card, source=known.source), module=module)


def download(name: str, progress: Report | None = None, force: bool = False) -> Path:
    """Fetch a model's weights, again with ``force``, and give their path.

    Raises InputError for an unknown name or a model that needs no download, UnavailableError without a
    network or a folder to write to, or where more downloads are not allowed
    (:mod:`optimizer.system.downloads`).
    """
    known, source = _find(name)
    if source.download is None:
        raise InputError(f"{name} comes from {known.source}: there is nothing to download")
    if force or not known.ready:
        check_allowed(known, catalogue().values())
    return source.download(name, progress or quiet, force)


def examine_hub(name: str, progress: Report | None = None) -> Examined:
    """Look into a classifier of the Hugging Face hub, downloaded where it must be.

    Raises InputError for one that is missing or can't be read, UnavailableError for what this machine lacks
    or may not download.
    """

    def allow(size_bytes: int) -> None:
        asked = ModelCard(name, "hub", "", None, (), 0, download_bytes=size_bytes, ready=False)
        here = replace(asked, download_bytes=hub.cached_bytes(), ready=True)
        check_allowed(asked, [*catalogue().values(), here])

    return files.examine_hub(name, progress or quiet, allow)


def add(about: Examined, choices: Choices, progress: Report | None = None) -> AddedModel:
    """Keep what a user's file holds (:func:`optimizer.model.added.files.examine`) as a model of this machine.

    Raises InputError for a name that is taken or not allowed, or choices that don't fit the file.
    """
    return files.add(about, choices, catalogue(), progress or quiet)


def remove(name: str) -> None:
    """Drop a model that was added, and its file; what was measured stays. Raises InputError for another."""
    cards.remove(name)


def _survey(wanted: str = "") -> tuple[dict[str, tuple[ModelCard, Source]], tuple[str, ...]]:
    """Every model and what could not be listed, or as far as the source that has the one wanted: to import
    torchvision takes longer than to import torch."""
    found: dict[str, tuple[ModelCard, Source]] = {}
    trouble = [*plugins.problems(), *cards.problems()]
    for origin, source in [*SOURCES.items(), *plugins.sources().items()]:
        try:
            listed = source.cards()
            for name, known in listed.items():
                if name in found:
                    trouble.append(
                        f"model {name} of {origin} is left out: {found[name][0].source} has its name"
                    )
                else:
                    found[name] = (replace(known, name=name, source=origin), source)
        except Exception as error:  # one source that fails must not hide the others
            trouble.append(f"source {origin} can't be listed: {type(error).__name__}: {error}")
        if wanted in found:
            break
    return found, tuple(trouble)


def _find(name: str) -> tuple[ModelCard, Source]:
    found, trouble = _survey(name)
    if name in found:
        return found[name]
    close = difflib.get_close_matches(name, found, n=6, cutoff=0.5) or list(found)[:6]
    more = f" (of {len(found)}; `paretoscope models` lists them)"
    raise InputError("; ".join([f"{unknown('model', name, close)}{more}", *trouble]))


def _check(known: ModelCard, loaded: LoadedModel) -> None:
    """What a plugin must get right, said at the door and not as a wrong accuracy later."""
    if not isinstance(loaded, LoadedModel):
        raise TypeError(f"gives {type(loaded).__name__}, not optimizer.model.catalogue.LoadedModel")
    if loaded.classes and len(loaded.classes) != known.classes:
        raise ValueError(f"{len(loaded.classes)} class names for the {known.classes} classes on its card")
    if loaded.wordnet_ids and len(loaded.wordnet_ids) != known.classes:
        raise ValueError(f"{len(loaded.wordnet_ids)} WordNet ids for {known.classes} classes")
