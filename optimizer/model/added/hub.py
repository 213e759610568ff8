"""Image classifiers of the Hugging Face hub, timm's among them, by their id (extra ``hub``).

What is in the hub's local cache is taken from there, also without a network (``HF_HUB_OFFLINE``). Nothing
that a repository holds is run: its configuration names an architecture of an installed package, of its
settings only those that build a network are passed on, and its weights are read as those of any checkpoint.
"""

import contextlib
import importlib.util
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optimizer.errors import InputError, UnavailableError, one_line
from optimizer.formats import format_bytes
from optimizer.model.added.limits import MAX_FILE_BYTES
from optimizer.progress import Report

PREFIX = "hf-hub:"
"""Before an id, where a model's name is expected."""
PART = r"\w(?:[\w.-]{0,94}\w)?"
ID = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){PART}/{PART}", re.ASCII)
"""What huggingface_hub takes: of another it raises an error of its own."""
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_CONFIG_BYTES = 4 << 20
CLASSIFIER = "ForImageClassification"


@dataclass(frozen=True)
class Repository:
    """What was fetched: ``architecture`` names a builder, ``config`` is what it needs beside the number of
    classes, ``said`` what its files say of preprocessing and classes."""

    id: str
    weights: Path
    architecture: str
    config: dict[str, Any]
    said: dict[str, Any]


def lacking() -> str:
    """Why nothing can be fetched here, or nothing."""
    if importlib.util.find_spec("huggingface_hub") is not None:
        return ""
    return "models of the hub need the package huggingface_hub: pip install 'paretoscope[hub]'"


def check_id(name: str) -> str:
    """The id of a repository, timm's where it names nobody. Raises InputError for what can be none."""
    name = name.removeprefix(PREFIX)
    name = name if "/" in name else f"timm/{name}"
    if not ID.fullmatch(name):
        raise InputError(
            f"{name[:200]!r} is no id of the hub: give one such as timm/resnet18.a1_in1k. What is on this "
            "machine is added as a file: weights as a checkpoint, or ONNX"
        )
    return name


def fetch(
    name: str,
    report: Report,
    allow: Callable[[int], None],
    check: Callable[[str, dict[str, Any]], None],
) -> Repository:
    """A repository's configuration and weights, from the cache or the network. ``allow`` is told how many
    bytes are to be downloaded, and raises where they may not be; ``check`` raises where an architecture and
    its settings are of no use, before the weights are fetched.

    Raises InputError for one that is missing, or no image classifier, UnavailableError without the package or
    the network, or where access has to be asked for.
    """
    if problem := lacking():
        raise UnavailableError(problem)
    name = check_id(name)
    report(None, f"asking for {name}")
    file = partial(_file, name, report, allow)
    if (described := file(CONFIG)) is None:
        raise InputError(f"{name} has no {CONFIG}, so that its architecture is not known: choose another")
    config, revision = _read(described), described.parent.name
    architecture, settings = _architecture(name, config)
    check(architecture, settings)
    with contextlib.suppress(UnavailableError):  # many have none
        if (other := file(PREPROCESSOR, revision)) is not None:
            config = config | _read(other)
    unreachable = None
    for kind in WEIGHTS:
        try:
            if weights := file(kind, revision):
                return Repository(name, weights, architecture, settings, config)
        except UnavailableError as error:  # offline there may be one of the other kind
            unreachable = unreachable or error
    if unreachable:
        raise unreachable
    raise InputError(
        f"{name} has neither {' nor '.join(WEIGHTS)}: weights in other or several files are not read"
    )


def cached_bytes() -> int:
    """What lies in the hub's cache."""
    import huggingface_hub as hub

    try:
        return int(hub.scan_cache_dir().size_on_disk)
    except hub.errors.CacheNotFound:
        return 0


def _architecture(name: str, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which builder, and what it needs. Raises InputError for what is no image classifier."""
    match config:
        case {"architecture": str(architecture)}:
            more = config.get("model_args")
            return f"timm/{architecture}", dict(more) if isinstance(more, dict) else {}
        case {"architectures": [str(architecture), *_]} if architecture.endswith(CLASSIFIER):
            return f"transformers/{architecture}", config
    said = config.get("architectures") or config.get("model_type") or "nothing"
    raise InputError(
        f"{name} is no image classifier of timm or transformers: its {CONFIG} says {str(said)[:80]}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(error, 100)
        raise InputError(f"{path.name} can't be read ({reason}): remove it from the hub's cache") from error
    if not isinstance(found, dict):
        raise InputError(f"{path.name} holds no settings: it is no repository of a model")
    return found


def _file(
    name: str, report: Report, allow: Callable[[int], None], file: str, revision: str | None = None
) -> Path | None:
    """The path of a file in the cache, downloaded where it is not there; None for one that the repository has
    not. Raises InputError, UnavailableError."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    cached = hub.try_to_load_from_cache(name, file, revision=revision)
    if cached is not None:
        return Path(cached) if isinstance(cached, str) else None
    try:
        size = hub.hf_hub_download(name, file, revision=revision, dry_run=True).file_size or 0
        if size > MAX_FILE_BYTES:
            limit = format_bytes(MAX_FILE_BYTES)
            raise InputError(f"{name} has {format_bytes(size)} of weights: up to {limit} are read")
        allow(size)
        bar = _bar(f"downloading {name}", report)
        return Path(hub.hf_hub_download(name, file, revision=revision, tqdm_class=bar))
    except errors.GatedRepoError as error:
        raise UnavailableError(
            f"{name} is gated: ask for access on its page of the hub, then sign in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no {name} on the hub, or it is private: check the id, or sign in with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UnavailableError(
            f"{name} is not in the hub's cache on this machine, and the hub can't be reached: fetch it where "
            f"there is a network (`hf download {name}`), or set HF_HOME to a cache that has it"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, OSError) as error:
        raise UnavailableError(f"{name} can't be fetched ({' '.join(str(error).split())[:150]})") from error


def _bar(words: str, report: Report) -> Any:
    """The progress bar that a download draws, as a class: it reports, and draws nothing."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **others: Any) -> None:
            others.pop("name", None)  # which bar: the hub's own way to silence some
            super().__init__(*arguments, **(others | {"file": io.StringIO(), "disable": False}))

        def display(self, *arguments: Any, **others: Any) -> None:
            total = self.total or 0
            share = min(self.n / total, 1.0) if total else None
            of = f" of {total / 1e6:.1f}" if total else ""  # not known before the first answer
            report(share, f"{words}: {self.n / 1e6:.1f}{of} MB")

    return Bar
