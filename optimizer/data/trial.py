"""The preprocessing of a new model tried on a few labelled images: is it an obviously wrong one?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy
import torch
from PIL import Image

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
        found = select(replace(spec, limit=IMAGES), classes_of(loaded, spec), loaded.wordnet_ids)
    except InputError:  # no class that maps, or too few images
        return Trial(0, 0)
    if found.labels is None:
        return Trial(0, 0)
    images, labels = [], []
    for path, label in zip(found.evaluation, found.labels, strict=True):
        try:
            with decoded(path, "RGB", Allowance.of_this_machine()) as image:
                images.append(image.copy())
        except Exception:  # a damaged file can make a decoder raise anything
            continue
        labels.append(label)
    if not images:
        return Trial(0, 0)
    report(0.0, "trying the preprocessing")
    right = _right(loaded, chosen, images, labels)
    trial = Trial(len(images), int(right.sum()))
    others = alternatives(chosen)
    for number, (name, other) in enumerate(others.items(), 1):
        if 100 * (1 - right.mean()) < MIN_POINTS:  # none can be so much better
            break
        report(number / (len(others) + 1), f"trying {name}")
        theirs = _right(loaded, other, images, labels)
        gained, lost = int((theirs & ~right).sum()), int((right & ~theirs).sum())
        far = 100 * (gained - lost) / len(images) >= MIN_POINTS
        if (
            far
            and 2 * scipy.special.bdtr(lost, gained + lost, 0.5) < MAX_P
            and theirs.sum() > trial.better_right
        ):
            trial = replace(trial, better=name, better_right=int(theirs.sum()))
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


def _right(
    loaded: LoadedModel, preprocessing: Preprocessing, images: Sequence[Image.Image], labels: Sequence[int]
) -> np.ndarray:
    """Whether each image is answered rightly, ``[N]`` bool."""
    batch = torch.from_numpy(np.stack([preprocessing(image) for image in images]))
    with torch.inference_mode():
        answers = torch.cat([loaded.module(part).argmax(1) for part in batch.split(16)])
    found: np.ndarray = (answers == torch.tensor(labels)).numpy()
    return found
