"""Studies of models on images: made once, kept on disk by content, and read by every position of a slider."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optimizer.calibrate import Moments, as_rows, channels_last, collect, quadratic
from optimizer.curvature import row_effects
from optimizer.errors import UnavailableError
from optimizer.layers import walk
from optimizer.models import Report, quiet
from optimizer.prune.compensated import prune
from optimizer.recipe import PruneSpec
from optimizer.recover import recover
from optimizer.resources import home
from optimizer.sensitivity import Trial, divergences
from optimizer.study import Study

VERSION = 2
"""Raised with every change of what a study holds or how it comes about."""
IMAGES = 256
"""Calibration images that a study looks at."""
HELD_OUT = 8
"""Every eighth of them is held out: inputs are read from the others."""
CURVATURE_IMAGES = 32
REFERENCE = PruneSpec("compensated", sparsity=0.6, allocation="measured")
"""The change whose effect is measured, one layer at a time."""
NEGLIGIBLE = 0.01
"""Layers that are expected to do less than this share of what all do are not measured: they are the early
ones, whose replays take longest."""
LARGEST_RATIO = 16.0
"""How far a measurement may correct a prediction: either can be nearly nothing."""
KEPT_BYTES = 4 * 2**30
"""What the folder of studies may hold; those that were not used for longest go first."""


def study_of(model: nn.Module, images: Tensor, report: Report = quiet) -> Study:
    """The study of ``model`` (batch norm folded) on calibration images ``[N, C, H, W]``: read, or made and
    kept.

    Where the data folder can't be written the study is made and not kept. Raises InputError without images.
    """
    images = images[:IMAGES]
    try:
        path = home() / "studies" / f"{_digest(model, images)}.safetensors"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.parent / "lock"):  # two processes that need the same one make it once
            known = _read(path)
            if known is None:
                known = make(model, images, report)
                _write(path, known)
        _evict(path)
        return known
    except (OSError, UnavailableError):
        return make(model, images, report)


def trained(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    seconds: float,
    report: Report = quiet,
) -> nn.Module:
    """The student after :func:`optimizer.recover.recover`: read, or trained and kept; both stay as they were.

    How far it comes in its time depends on the machine, so a training is done once and its outcome kept.
    """
    module = copy.deepcopy(student)
    name = hashlib.sha256(f"{_digest(student, images)} {_digest(teacher, images)} {seconds:g}".encode())
    try:
        path = home() / "studies" / f"{name.hexdigest()[:20]}.safetensors"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.parent / "lock"):
            try:
                module.load_state_dict(load_file(path))
                os.utime(path)
            except (OSError, SafetensorError, RuntimeError):
                state = recover(student, teacher, masks, images, seconds, report).state
                module.load_state_dict(state)
                unfinished = path.with_suffix(f".{os.getpid()}")
                save_file({key: value.contiguous().clone() for key, value in state.items()}, unfinished)
                unfinished.replace(path)
        _evict(path)
    except (OSError, UnavailableError):
        module.load_state_dict(recover(student, teacher, masks, images, seconds, report).state)
    return module


def make(model: nn.Module, images: Tensor, report: Report = quiet) -> Study:
    """Read every layer's inputs, then tell what a change in each does to the outputs.

    Curvature says how much each row counts. How much a whole layer does is measured, on images that nothing
    was fitted to: a classifier that was refitted to 224 images answers those almost as before, and others
    not.
    """
    model, images = channels_last(model, images)
    seen, held_out = _split(images)
    moments = collect(model, seen, report)
    layers = {layer.name: layer for layer in walk(model) if layer.name in moments}
    biased = frozenset(name for name, layer in layers.items() if layer.bias is not None)
    effects = row_effects(model, seen[:CURVATURE_IMAGES], moments, report)
    predicted = Study(moments, effects, {}, frozenset(), biased)
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    pruned = prune(weights, weights, REFERENCE, predicted)
    alone = {}
    for name, weight in weights.items():
        change = as_rows(weight - pruned[name].weight, len(moments[name].mean))
        alone[name] = predicted.divergence(name, quadratic(change, predicted.matrix(name)))
    least = NEGLIGIBLE * sum(alone.values())
    trials = {
        name: Trial(pruned[name].weight, pruned[name].bias_change)
        for name, expected in alone.items()
        if expected >= least
    }
    for name, divergence in divergences(model, held_out, trials, report).items():
        ratio = divergence / alone[name] if alone[name] > 0 else 1.0
        effects[name] = effects[name] * min(max(ratio, 1 / LARGEST_RATIO), LARGEST_RATIO)
        alone[name] = max(0.0, divergence)
    return Study(moments, effects, alone, frozenset(trials), biased)


def _split(images: Tensor) -> tuple[Tensor, Tensor]:
    """Those to read from, and every eighth, held out; a single image is both."""
    if len(images) < 2:
        return images, images
    held_out = torch.arange(len(images)) % HELD_OUT == HELD_OUT - 1 if len(images) >= HELD_OUT else None
    if held_out is None:
        return images[:-1], images[-1:]
    return images[~held_out], images[held_out]


def _digest(model: nn.Module, images: Tensor) -> str:
    digest = hashlib.sha256(f"{VERSION} {model.__class__.__qualname__} {tuple(images.shape)}".encode())
    tensors = {**model.state_dict(), "": images}
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().data)
    return digest.hexdigest()[:20]


def _write(path: Path, study: Study) -> None:
    tensors = {f"covariance {name}": one.covariance for name, one in study.moments.items()}
    tensors |= {f"mean {name}": one.mean for name, one in study.moments.items()}
    tensors |= {f"effects {name}": one for name, one in study.effects.items()}
    facts = {
        "shrinkage": {name: one.shrinkage for name, one in study.moments.items()},
        "alone": dict(study.alone),
        "measured": sorted(study.measured),
        "biased": sorted(study.biased),
    }
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, unfinished, {"facts": json.dumps(facts)})
    unfinished.replace(path)


def _read(path: Path) -> Study | None:
    """A kept study, its tensors mapped and not copied; None where there is none, or a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        moments = {
            name: Moments(tensors[f"covariance {name}"], tensors[f"mean {name}"], shrinkage)
            for name, shrinkage in facts["shrinkage"].items()
        }
        effects = {name: tensors[f"effects {name}"] for name in moments}
        measured, biased = frozenset(facts["measured"]), frozenset(facts["biased"])
        study = Study(moments, effects, facts["alone"], measured, biased)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    os.utime(path)  # used now: what goes first is what was not
    return study


def _evict(used: Path) -> None:
    """Keep the folder below its limit; the study in use stays, however large."""
    studies = [path for path in used.parent.glob("*.safetensors") if path != used]
    newest = sorted(studies, key=lambda path: path.stat().st_mtime, reverse=True)
    total = used.stat().st_size if used.exists() else 0
    for path in newest:
        total += path.stat().st_size
        if total > KEPT_BYTES:
            path.unlink(missing_ok=True)
