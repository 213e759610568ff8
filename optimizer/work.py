"""What the workers do: tasks by name. Imported by a worker process; a page only names the task.

torch and its kin are imported inside the tasks, so that naming this module costs nothing.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from optimizer.analysis.serving import ServingRequest
from optimizer.data.classes import ClassMapping
from optimizer.errors import ParetoscopeError, UnavailableError, unknown
from optimizer.recipe import PRESETS, Recipe
from optimizer.records import (
    Anatomy,
    DataSpec,
    GroupSensitivity,
    Inspection,
    ModelCard,
    Request,
    Result,
    Sensitivity,
)
from optimizer.search.presets import Found, find
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.process_pool import Limits

Report = Callable[[float | None, str], None]
TARGET = "optimizer.work:run"
MAX_STEP_SECONDS = 10.0
"""A step of fine-tuning may take; one of photographs takes about 1 s on two cores."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every model that can be picked, and in words what could not be listed.

    ``engines``: for each engine by name why it can't run here, or nothing; ``fallback``: what the sparse
    engine lacks here, or nothing.
    """

    cards: dict[str, ModelCard]
    problems: tuple[str, ...]
    engines: dict[str, str]
    fallback: str


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
    return TASKS[task].run(request, report)


def limits(task: str, request: Any) -> Limits:
    """How long a worker may take for a task: its own minutes, and those of the fine-tuning in the request.

    Raises InputError for an unknown task.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    parts = request if isinstance(request, tuple) else (request,)
    recipes = [part.recipe for part in parts if isinstance(part, Request | ServingRequest)]
    finetuning = sum(map(_finetuning_seconds, recipes))
    return Limits(60 * TASKS[task].minutes + finetuning, 60 * TASKS[task].silent_minutes + finetuning)


def _finetuning_seconds(recipe: Recipe) -> float:
    return MAX_STEP_SECONDS * recipe.finetune_steps if recipe.finetunes else 0.0


def _warm(request: Request | None, report: Report) -> None:
    """Pay the imports, and what a first request would wait for, before anyone waits."""
    from optimizer.measurement import experiment, variant  # noqa: F401  (experiment: its imports)

    if request is not None:
        variant.inspect(request)


def _catalogue(request: None, report: Report) -> Catalogue:
    from optimizer.engine import ENGINES, kernels
    from optimizer.model import catalogue

    engines = {name: engine.problem() or "" for name, engine in ENGINES.items()}
    return Catalogue(catalogue.catalogue(), catalogue.problems(), engines, kernels.problem() or "")


def _download(model: str, report: Report) -> str:
    """Fetch a model's weights, also in place of a damaged file."""
    from optimizer.model import catalogue

    return str(catalogue.download(model, report, force=True))


def _images(request: tuple[str, DataSpec], report: Report) -> ImagesReport:
    from optimizer.data import loading
    from optimizer.model import catalogue

    datasets = loading.load_images(catalogue.load(request[0], report), request[1], report)
    return ImagesReport(
        evaluated=len(datasets.evaluation.images),
        calibrated=len(datasets.calibration.images),
        labelled=datasets.evaluation.labels is not None,
        mapping=datasets.mapping,
        notes=datasets.notes,
    )


def _inspect(request: Request, report: Report) -> Inspection:
    from optimizer.measurement import variant

    return variant.inspect(request, report)


def _anatomy(request: tuple[Request, str], report: Report) -> Anatomy:
    from optimizer.measurement import variant

    return variant.anatomy(*request, report)


def _sensitivities(request: Request, report: Report) -> tuple[Sensitivity, ...]:
    from optimizer.measurement import variant

    return variant.sensitivities(request, report)


def _coupled(request: Request, report: Report) -> tuple[GroupSensitivity, ...]:
    from optimizer.measurement import variant

    return variant.coupled_sensitivities(request, report)


def _measure(request: Request, report: Report) -> str:
    """The key of the result, which is in the store by then: a later failure loses nothing."""
    from optimizer.measurement import experiment

    store = Store()
    try:
        result = experiment.measure(request, report, store.latency)
    except ParetoscopeError as error:
        with suppress(UnavailableError):  # what made the measurement fail is what to tell
            store.put_failure(request_key(request), request, str(error), attempts=1)
        raise
    store.put(result)
    return result.key


def _preset(request: tuple[str, Request], report: Report) -> Found:
    """The recipe of a preset, and each one tried in the store."""
    store = Store()

    def measured(one: Request) -> Result:
        known = store.best(one) or store.get(_measure(one, report))
        assert known is not None
        return known

    return find(PRESETS[request[0]], request[1], measured, report)


def _artifact(request: tuple[str, Request], report: Report) -> bytes:
    """A file of the compressed model, with the figures that were measured of it."""
    import torch

    from optimizer.export import artifacts
    from optimizer.measurement import subject, variant

    kind, wanted = request
    target = subject.subject(wanted.model)
    ranges = wanted.recipe.quantize.activation_bits < 32
    report(None, "compressing")
    take_away = artifacts.TakeAway(
        card=target.loaded.card,
        module=variant.network_of(wanted, report),
        compressed=variant.compressed_model(wanted, report),
        calibration=subject.activation_images(wanted) if ranges else torch.empty(0, *target.input_shape),
        threads=subject.resolve_threads(wanted.settings.threads),
        result=Store().best(wanted),
        build=variant.build_of(replace(wanted, engine="openvino"), report) if kind == "openvino" else None,
    )
    report(None, f"writing {artifacts.ARTIFACTS[kind].label if kind in artifacts.ARTIFACTS else kind}")
    return artifacts.write(kind, take_away)


def _complexity(request: Any, report: Report) -> str:
    from optimizer.measurement import complexity
    from optimizer.records import encode

    run = complexity.measure(request, report)
    Store().put_document("complexity", run.key, encode(run))
    return run.key


def _coverage(request: Request, report: Report) -> str:
    from optimizer.measurement import profile
    from optimizer.records import encode

    found = profile.profile(request, report)
    Store().put_document("coverage", found.key, encode(found))
    return found.key


def _throughput(request: ServingRequest, report: Report) -> str:
    from optimizer.measurement import throughput
    from optimizer.records import encode

    run = throughput.measure(request, report)
    Store().put_document("throughput", run.key, encode(run))
    return run.key


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker can be asked for: the function that does it, and what it does, in words.

    It may take ``minutes``, and ``silent_minutes`` between two reports. Both are generous: they are meant for
    what hangs, and for what was left behind. Fine-tuning comes on top (:func:`limits`).
    """

    run: Callable[[Any, Report], object]
    label: str
    minutes: float
    silent_minutes: float = 30


TASKS: dict[str, Task] = {
    "warm": Task(_warm, "loading libraries", 30),
    "catalogue": Task(_catalogue, "listing the models", 30),
    "download": Task(_download, "downloading weights", 720, silent_minutes=10),
    "images": Task(_images, "reading images", 120),
    "inspect": Task(_inspect, "compressing", 120),
    "anatomy": Task(_anatomy, "compressing", 120),
    "sensitivities": Task(_sensitivities, "measuring sensitivities", 240),
    "coupled": Task(_coupled, "measuring sensitivities of coupled layers", 240),
    "measure": Task(_measure, "measuring", 480),
    "preset": Task(_preset, "searching a recipe", 1440, silent_minutes=120),
    "artifact": Task(_artifact, "writing a model file", 120),
    "complexity": Task(_complexity, "measuring time against weights", 120),
    "coverage": Task(_coverage, "timing the kernels", 120),
    "throughput": Task(_throughput, "measuring throughput", 240),
}
