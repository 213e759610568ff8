"""A model and images as a script gives them: a name, a file, a module; a folder, arrays, a dataset."""

import os
import pickle
from collections.abc import Sequence
from os import PathLike
from types import FunctionType
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from optimizer.data import memory
from optimizer.data.folders import absolute, expand
from optimizer.data.loading import Datasets, load_images
from optimizer.data.selection import fingerprint
from optimizer.errors import InputError, one_line, unknown
from optimizer.measurement.workspace import OpenModel, Workspace, open_model, open_workspace
from optimizer.model import catalogue
from optimizer.model.added.cards import Choices
from optimizer.model.added.containers import is_model_file
from optimizer.model.added.files import examine
from optimizer.model.added.files import opened as opened_file
from optimizer.model.added.hub import PREFIX as HUB
from optimizer.model.own import own_model
from optimizer.model.preprocessing import image_shape
from optimizer.model.sources import LoadedModel
from optimizer.progress import Report
from optimizer.records import DataSpec, ModelCard, Request
from optimizer.tasks import NO_CLASSES, TASKS

_workspaces: LRUCache[object, Workspace] = LRUCache(2)
"""The last ones that were given, by their models, images and fingerprints: they stay open, with what was
found out about them."""


def open_given(
    model: str | PathLike[str] | nn.Module,
    data: Any,
    calibration: Any,
    input_shape: Sequence[int] | None,
    report: Report,
    needs_data: bool = True,
    evaluates: bool = True,
    example: Any = None,
    task: str | None = None,
) -> tuple[Workspace, Request]:
    """The workspace of a model and data, and a request that names them. Where something ``evaluates`` them,
    calibration images alone do for a model that comes with others. ``example`` ``[N, ...]`` tells the shape
    of inputs where it is given, and ``task`` what the outputs of a model of one's own are, else their shape
    does. Raises InputError."""
    if task not in (None, *TASKS):
        raise unknown("task", task, TASKS)
    images = _in_memory(data, calibration, report)
    example = None if example is None else _example(example)
    input_shape = input_shape if example is None else tuple(example.shape[1:])
    spec = _folders(data, calibration, evaluates) if images is None else DataSpec()
    if isinstance(model, str) and not _is_file(model):
        if task:
            raise InputError(
                f"what {model} is for is known: leave task={task!r} out, which models of your own take"
            )
        if images is None:
            return open_workspace(model, spec if needs_data else None, report), Request(model, data=spec)
        opened = open_workspace(model, None, report).model
        if evaluates and data is None:
            own = load_images(opened.loaded, spec, report)
            images = memory.calibrated(own, images.calibration.images)
    else:
        wanted = "data" if evaluates else "calibration"
        if needs_data and data is None and (evaluates or calibration is None):
            raise InputError(f"a model of your own needs images: give {wanted}")
        if images is None and needs_data:
            fingerprint(spec)  # a folder that is missing is said before what images would tell of the model
        if isinstance(model, str | PathLike):
            loaded = _read_file(model, input_shape, images, report, task != NO_CLASSES)
        else:
            shape = input_shape or _shape_of(images)
            tried = _to_try(images) if example is None else example
            loaded = own_model(model, shape, not input_shape, tried, classifier=task != NO_CLASSES)
        _check_task(loaded.card, task, images)
        opened = _opened(loaded)
    if images is not None:
        memory.check_shape(images, opened.input_shape, opened.loaded.card.name)
        spec = DataSpec(content=memory.content(images))
    name, files = opened.loaded.card.name, fingerprint(spec) if needs_data else ""
    made = Workspace(opened, spec if needs_data else None, files, images)
    return _workspaces.setdefault((opened, spec, files), made), Request(name, data=spec)


def _check_task(card: ModelCard, task: str | None, images: Datasets | None) -> None:
    """Raises InputError for outputs that are no logits where those are needed."""
    if card.classes:
        return
    if task and task != NO_CLASSES:
        raise InputError(f"{card.name} gives no logits [N, K], one a class: leave task={task!r} out")
    if images is not None and images.evaluation.labels is not None:
        raise InputError(
            f"{card.name} is no classifier, so no label is right or wrong: leave the labels out, and its "
            "outputs are compared with the uncompressed model's. A single logit z for yes and no are two as "
            "torch.cat((torch.zeros_like(z), z), 1)"
        )


def _opened(loaded: LoadedModel) -> OpenModel:
    """One that is open already, or it."""
    opened = (one.model for one in _workspaces.values() if one.model.loaded.card == loaded.card)
    return next(opened, None) or open_model(loaded)


def _in_memory(data: Any, calibration: Any, report: Report) -> Datasets | None:
    """Images that were given in memory; None for folders and for nothing. Raises InputError for a mixture."""
    given = [one for one in (data, calibration) if one is not None]
    paths = [isinstance(one, str | PathLike) for one in given]
    if all(paths):
        return None
    if any(paths):
        raise InputError("data and calibration are either both folders or both in memory")
    if data is None:
        return memory.for_calibration(calibration, report)
    return memory.in_memory(data, calibration, report)


def named_only(model: Any, data: Any, calibration: Any) -> Request:
    """What can be asked of another machine. Raises InputError for a model or images of one's own."""
    if not isinstance(model, str) or _is_file(model):
        raise InputError(
            "an executor measures models of the catalogue: `paretoscope add` makes one of your own file"
        )
    if any(one is not None and not isinstance(one, str | PathLike) for one in (data, calibration)):
        raise InputError("an executor measures on images in folders: give a path")
    return Request(model, data=_folders(data, calibration))


def _folders(data: Any, calibration: Any, evaluates: bool = True) -> DataSpec:
    """Where nothing ``evaluates``, a share of a folder for calibration alone calibrates."""
    folder, other = (data, calibration) if evaluates or data is not None else (calibration, None)
    path, calibrating = (None if one is None else absolute(one) for one in (folder, other))
    return DataSpec(path, calibrating)


def _example(given: Any) -> Tensor:
    try:
        return torch.as_tensor(given).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the example_input is {type(given).__name__}: give a tensor or an array [N, ...], "
            "one input of the model with its batch"
        ) from error


def _to_try(images: Datasets | None) -> Tensor | None:
    """Of the images that were given, those that a module is tried on."""
    both = (images.evaluation.images, images.calibration.images) if images else ()
    return next((some for some in both if len(some)), None)


def _shape_of(images: Datasets | None) -> Sequence[int]:
    if (some := _to_try(images)) is None:
        raise InputError("the model's input shape is not known: give input_shape, such as (3, 224, 224)")
    return some.shape[1:]


class _Sender(pickle.Pickler):
    """Refuses what the script or notebook that runs defines itself: another process has a ``__main__`` of its
    own."""

    def reducer_override(self, given: Any) -> Any:
        if isinstance(given, type | FunctionType) and given.__module__ == "__main__":
            raise InputError(
                f"{given.__qualname__} is defined in the script or notebook that runs, where a process of "
                "its own can't find it: leave isolated=True out, or move it to a module that is imported"
            )
        return NotImplemented


def check_can_be_sent(given: object) -> None:
    """Whether what was given can be brought to a process of its own. Raises InputError."""
    try:
        with open(os.devnull, "wb") as nowhere:
            _Sender(nowhere, pickle.HIGHEST_PROTOCOL).dump(given)
    except InputError:
        raise
    except Exception as error:  # of the code of what was given, as a lambda's or an open file's
        said = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(
            f"what was given can't be brought to a process of its own ({said}): leave isolated=True out, or "
            "give what can be pickled"
        ) from error


def _is_file(model: str) -> bool:
    """Whether it names a model file, or a model of the hub, and not one of the catalogue."""
    return model.startswith(HUB) or is_model_file(model)


def _read_file(
    model: str | PathLike[str],
    input_shape: Sequence[int] | None,
    images: Datasets | None,
    report: Report,
    classifier: bool,
) -> LoadedModel:
    """A model file of one's own or of the hub, preprocessed as it says itself, as its architecture's weights
    are, or as is usual. Where it takes images of any size, and is given some, it takes them as they are."""
    shape = None if input_shape is None else image_shape(input_shape)
    if isinstance(model, str) and model.startswith(HUB):
        about = catalogue.examine_hub(model, report)
    else:
        about = examine(expand(model), report=report)
    preprocessing = about.preprocessing
    if shape is None and about.asks_shape and (some := _to_try(images)) is not None:
        shape = image_shape(some.shape[1:])
    if shape is not None:
        channels, height, width = shape
        preprocessing = preprocessing.with_channels("grey" if channels == 1 else None).at_size(
            (height, width)
        )
    return opened_file(about, Choices(preprocessing=preprocessing, classifier=classifier), report)
