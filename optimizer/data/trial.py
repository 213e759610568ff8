"""The preprocessing of a new model tried on a few labelled images: is it an obviously wrong one?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy
import torch

from optimizer.data.decoding import Allowance, decoded
from optimizer.data.loading import classes_of
from optimizer.data.selection import select
from optimizer.errors import InputError
from optimizer.model.added.cards import Trial
from optimizer.model.preprocessing import PRESETS, Preprocessing
from optimizer.model.sources import LoadedModel
from optimizer.progress import Report, quiet
from optimizer.records import DataSpec

IMAGES = 64
MIN_POINTS = 20
"""By so much another preset has to be better, in percentage points, before anything is said."""
MAX_P = 0.01
"""And by no more chance than this, of the images that only one of the two answers rightly (sign test)."""


def try_preprocessing(
    loaded: LoadedModel, chosen: Preprocessing, spec: DataSpec, report: Report = quiet
) -> Trial:
    """A classifier on a few images of a folder, preprocessed as ``chosen`` and as in every preset; no
    images where no folder has a class of the model as its name."""
    if spec.path is None or not loaded.card.classes:
        return Trial(0, 0)
    try:
        found = select(replace(spec, limit=IMAGES), *classes_of(loaded, spec))
    except InputError:  # no class that maps, or too few images
        return Trial(0, 0)
    if found.labels is None:
        return Trial(0, 0)
    report(0.0, "trying the preprocessing")
    answers = [_answers(loaded, [chosen], path) for path in found.evaluation]
    read = [place for place, answer in enumerate(answers) if answer is not None]
    if not read:
        return Trial(0, 0)
    labels = np.array(found.labels)[read]
    right = np.array([answers[place] for place in read])[:, 0] == labels
    trial = Trial(len(read), int(right.sum()))
    if 100 * (1 - right.mean()) < MIN_POINTS:  # none can be so much better
        return trial
    others = alternatives(chosen)
    theirs = np.zeros((len(read), len(others)), bool)
    for number, place in enumerate(read):
        report(number / len(read), "trying other preprocessings")
        answer = _answers(loaded, [*others.values()], found.evaluation[place])
        theirs[number] = answer == labels[number]
    for name, one in zip(others, theirs.T, strict=True):
        gained, lost = int((one & ~right).sum()), int((right & ~one).sum())
        far = 100 * (gained - lost) / len(read) >= MIN_POINTS
        if (
            far
            and 2 * scipy.special.bdtr(lost, gained + lost, 0.5) < MAX_P
            and one.sum() > trial.better_right
        ):
            trial = replace(trial, better=name, better_right=int(one.sum()))
    return trial


def alternatives(chosen: Preprocessing) -> dict[str, Preprocessing]:
    """What else it may have been, by name, at the same size: the presets, and the other order of channels."""
    grey = "grey" if chosen.channels == "grey" else None
    found = {}
    if not grey:
        order = "RGB" if chosen.channels == "BGR" else "BGR"
        found[f"the channels in the order {order}"] = chosen.with_channels(order)
    for name, preset in PRESETS.items():
        found[f"the preset {name}"] = preset.at_size_of(chosen).with_channels(grey)
    return {name: one for name, one in found.items() if one != chosen}


def _answers(loaded: LoadedModel, tried: Sequence[Preprocessing], path: Path) -> np.ndarray | None:
    """The class that an image is answered with, ``[T]``, preprocessed as in each of ``tried``; None for a
    file that is none. One is in memory at a time: each may be as large as is decoded at all."""
    try:
        with decoded(path, "RGB", Allowance.of_this_machine()) as image:
            batch = torch.from_numpy(np.stack([one(image) for one in tried]))
    except Exception:  # a damaged file can make a decoder raise anything
        return None
    with torch.inference_mode():
        return np.asarray(loaded.module(batch).argmax(1))
