"""What the workers do: tasks by name. Imported by a worker process; a page only names the task.

torch and its kin are imported inside the tasks, so that naming this module costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optimizer.errors import ParetoscopeError, unknown
from optimizer.folders import ClassMapping
from optimizer.keys import request_key
from optimizer.records import DataSpec, Inspection, ModelCard, Request
from optimizer.store import Store

Report = Callable[[float | None, str], None]
TARGET = "optimizer.work:run"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every model that can be picked, and in words what could not be listed."""

    cards: dict[str, ModelCard]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImagesReport:
    """What an image folder is to a model, once read."""

    evaluated: int
    calibrated: int
    labelled: bool
    mapping: ClassMapping
    notes: tuple[str, ...]


def run(task: str, request: Any, report: Report) -> object:
    """Run one task. Raises InputError for an unknown one, else what the task raises."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    return TASKS[task](request, report)


def _warm(request: Request | None, report: Report) -> None:
    """Pay the imports, and what a first request would wait for, before anyone waits."""
    from optimizer import experiment

    if request is not None:
        experiment.inspect(request)


def _catalogue(request: None, report: Report) -> Catalogue:
    from optimizer import models

    return Catalogue(models.catalogue(), models.problems())


def _download(model: str, report: Report) -> str:
    """Fetch a model's weights, also in place of a damaged file."""
    from optimizer import models

    return str(models.download(model, report, force=True))


def _images(request: tuple[str, DataSpec], report: Report) -> ImagesReport:
    from optimizer import data, models

    datasets = data.load_images(models.load(request[0], report), request[1], report)
    return ImagesReport(
        evaluated=len(datasets.evaluation.images),
        calibrated=len(datasets.calibration.images),
        labelled=datasets.evaluation.labels is not None,
        mapping=datasets.mapping,
        notes=datasets.notes,
    )


def _inspect(request: Request, report: Report) -> Inspection:
    from optimizer import experiment

    return experiment.inspect(request)


def _measure(request: Request, report: Report) -> str:
    """The key of the result, which is in the store by then: a later failure loses nothing."""
    from optimizer import experiment

    store = Store()
    try:
        result = experiment.measure(request, report, store.latency)
    except ParetoscopeError as error:
        store.put_failure(request_key(request), request, str(error), attempts=1)
        raise
    store.put(result)
    return result.key


def _complexity(request: Any, report: Report) -> str:
    from optimizer import complexity
    from optimizer.records import encode

    run = complexity.measure(request, report)
    Store().put_document("complexity", run.key, encode(run))
    return run.key


TASKS: dict[str, Callable[[Any, Report], object]] = {
    "warm": _warm,
    "catalogue": _catalogue,
    "download": _download,
    "images": _images,
    "inspect": _inspect,
    "measure": _measure,
    "complexity": _complexity,
}
