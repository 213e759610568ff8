"""What the workers do: tasks by name. Imported by a worker process; a page only names the task.

torch and its kin are imported inside the tasks, so that naming this module costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.analysis.load import LoadRequest
from optimizer.analysis.screening import ScreenedOut
from optimizer.analysis.serving import ServingRequest, configurations
from optimizer.analysis.two_files import CompareRequest
from optimizer.data.classes import ClassMapping
from optimizer.errors import InputError, unknown
from optimizer.methods import plugins
from optimizer.methods.artifacts import ARTIFACTS, ArtifactInfo
from optimizer.methods.engines import ENGINES
from optimizer.on_demand import artifact, compare, load_or_measure, measure_for, search, time_afresh
from optimizer.progress import Report
from optimizer.recipe import PRESETS, Recipe
from optimizer.records import (
    Anatomy,
    DataSpec,
    GroupSensitivity,
    Inspection,
    ModelCard,
    Request,
    Sensitivity,
    encode,
)
from optimizer.search.documents import DOCUMENTS
from optimizer.search.presets import Found, find
from optimizer.search.questions import question_of
from optimizer.store import ledger
from optimizer.store.results import Store
from optimizer.store.rows import Unreadable
from optimizer.system.machine_lock import exclusive
from optimizer.system.process_pool import Limits

if TYPE_CHECKING:
    from optimizer.data.uploaded import Staged, Unpacked
    from optimizer.model.added.cards import AddedModel, Choices, Examined, Refused, Trial

TARGET = "optimizer.work:run"
MAX_STEP_SECONDS = 10.0
"""A step of fine-tuning may take; one of photographs takes about half a second on two cores."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every model that can be picked, and in words what could not be listed.

    ``engines``: for each engine by name why it can't run here, or nothing; ``lacking``: why something else
    takes the place of its kernels here, of those where it does. ``files``: for each kind of file of a model
    why it can't be written here, or nothing.
    """

    cards: dict[str, ModelCard]
    problems: tuple[str, ...]
    engines: dict[str, str]
    lacking: dict[str, str]
    files: dict[str, str]


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
    return _kind_of(task).run(request, report)


def limits(task: str, request: Any) -> Limits:
    """How long a worker may take for a task: its own minutes, and those of what learns in the request.

    Raises InputError for an unknown task.
    """
    kind = _kind_of(task)
    parts = request if isinstance(request, tuple) else (request,)
    recipes = [part.recipe for part in parts if isinstance(part, Request | ServingRequest | LoadRequest)]
    learning = sum(map(_learning_seconds, recipes))
    return Limits(60 * kind.minutes + learning, 60 * kind.silent_minutes + learning)


def label_of(task: str) -> str:
    """What a task does, in words. Raises InputError for an unknown one."""
    return _kind_of(task).label


def describe_job(task: str, request: object) -> str:
    """What a job does and of which model, in words that every visitor may read. Raises InputError for an
    unknown task."""
    parts = request if isinstance(request, tuple) else (request,)
    models = [part.model for part in parts if isinstance(part, Request | ServingRequest | LoadRequest)]
    return f"{label_of(task)} ({models[0]})" if models else label_of(task)


def _kind_of(task: str) -> "JobKind":
    if task not in JOB_KINDS:
        raise unknown("task", task, JOB_KINDS)
    return JOB_KINDS[task]


def _learning_seconds(recipe: Recipe) -> float:
    return MAX_STEP_SECONDS * recipe.finetune_steps + recipe.effort_seconds if recipe.learns else 0.0


def _warm(request: Request | None, report: Report) -> None:
    """Pay the imports, and what a first request would wait for, before anyone waits."""
    from optimizer.measurement import experiment  # noqa: F401  (its imports)

    if request is not None:
        _inspect(request, report)


def _catalogue(request: None, report: Report) -> Catalogue:
    from optimizer.engine import problem_of
    from optimizer.model import catalogue

    engines = {name: problem_of(name) for name in ENGINES}
    run = {name: ENGINES[name].load() for name, problem in engines.items() if not problem}
    return Catalogue(
        catalogue.catalogue(),
        (*catalogue.problems(), *plugins.problems),
        engines,
        {name: lacking for name, engine in run.items() if (lacking := engine.lacking())},
        {name: _file_problem(entry) for name, entry in ARTIFACTS.items()},
    )


def _file_problem(entry: ArtifactInfo) -> str:
    try:
        return entry.problem() or ""
    except Exception as error:  # of a plugin: whatever it raises, the other kinds stay
        return f"its code fails ({type(error).__name__}: {error})"


def _download(model: str, report: Report) -> str:
    """Fetch a model's weights, also in place of a damaged file."""
    from optimizer.model import catalogue

    return str(catalogue.download(model, report, force=True))


def _examine(asked: tuple[str, str, str], report: Report) -> "Examined | Refused":
    """What an upload holds: its name in the data folder, what its visitor calls it, and an architecture."""
    from optimizer.model.added import cards, files

    kept, called, architecture = asked
    try:
        return files.examine(cards.content_path(kept), architecture, report, external=False, called=called)
    except InputError as error:
        if architecture:  # it may be that which is wrong
            raise
        return cards.Refused(str(error))


def _examine_hub(name: str, report: Report) -> "Examined":
    from optimizer.model import catalogue

    return catalogue.examine_hub(name, report)


def _unpack(staged: "Staged", report: Report) -> "Unpacked":
    from optimizer.data import uploaded

    return uploaded.unpack(staged, report)


def _add(asked: "tuple[Examined, Choices]", report: Report) -> "AddedModel":
    from optimizer.model import catalogue

    return catalogue.add(*asked, report)


def _try(asked: "tuple[Examined, Choices, DataSpec]", report: Report) -> "Trial":
    """What was looked into, on a few labelled images."""
    from optimizer.data.trial import try_preprocessing
    from optimizer.model.added import files

    about, choices, data = asked
    chosen = choices.preprocessing or about.preprocessing
    return try_preprocessing(files.opened(about, choices, report), chosen, data, report)


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
    from optimizer.measurement.compressed import inspect
    from optimizer.measurement.workspace import workspace_of

    return inspect(workspace_of(request, report), request.recipe, report)


def _anatomy(asked: tuple[Request, str], report: Report) -> Anatomy:
    from optimizer.measurement.compressed import anatomy
    from optimizer.measurement.workspace import workspace_of

    request, layer = asked
    return anatomy(workspace_of(request, report), request.recipe, layer, report)


def _sensitivities(request: Request, report: Report) -> tuple[Sensitivity, ...]:
    from optimizer.measurement.compressed import sensitivities
    from optimizer.measurement.workspace import open_workspace

    return sensitivities(open_workspace(request.model, request.data, report), report)


def _coupled(request: Request, report: Report) -> tuple[GroupSensitivity, ...]:
    from optimizer.measurement.compressed import coupled_sensitivities
    from optimizer.measurement.workspace import open_workspace

    return coupled_sensitivities(open_workspace(request.model, request.data, report), report)


def _measure(request: Request, report: Report) -> str:
    """The key of the result, which is in the store by then: a later failure loses nothing."""
    return load_or_measure(request, Store(), report).key


def _measure_for(asked: tuple[int, Request], report: Report) -> str | ScreenedOut:
    """As :func:`_measure`, for a sweep of the ledger; or why it is left out of one of the frontier alone."""
    try:
        return measure_for(*asked, Store(), report).key
    except ScreenedOut as out:
        return out


def _ahead(request: Request, report: Report) -> str:
    """What nobody waits for yet: with the machine to itself, so that it never runs beside what is timed."""
    with exclusive(report):
        return _measure(request, report)


def _preset(request: tuple[str, Request], report: Report) -> Found:
    """The recipe of a preset, and each one tried in the store."""
    store = Store()
    return find(
        PRESETS[request[0]],
        request[1],
        lambda one: store.best(one) or load_or_measure(one, store, report),
        lambda chosen: time_afresh(chosen, store, report),
        report,
    )


def _find(number: int, report: Report) -> str:
    """The key of the answer to a question of the ledger, which is in the store by then."""
    store = Store()
    return search(question_of(ledger.find(store, number)), store, report)


def _artifact(asked: tuple[str, Request], report: Report) -> bytes:
    kind, request = asked
    return artifact(kind, request, None, Store().best(request), report)


def _compare(request: CompareRequest, report: Report) -> str:
    return compare(request, report).key


def _complexity(request: Any, report: Report) -> str:
    from optimizer.measurement import complexity

    return _kept("complexity", complexity.measure(request, report))


def _coverage(request: Request, report: Report) -> str:
    from optimizer.measurement.profile import profile
    from optimizer.measurement.workspace import open_workspace

    return _kept("coverage", profile(open_workspace(request.model, request.data, report), request, report))


def _throughput(request: ServingRequest, report: Report) -> str:
    from optimizer.measurement import throughput
    from optimizer.measurement.workspace import open_workspace

    configurations(request)  # what can't be is said before anything is loaded
    workspace = open_workspace(request.model, request.data, report)
    return _kept("throughput", throughput.measure(workspace, request, report))


def _load(request: LoadRequest, report: Report) -> str:
    from optimizer.measurement import load
    from optimizer.measurement.workspace import open_workspace

    workspace = open_workspace(request.model, request.data, report)
    return _kept("load", load.measure(workspace, request, report))


def _kept(kind: str, run: Any) -> str:
    """The key of what was measured, which is in the store by then."""
    Store().put_document(kind, run.key, encode(run))
    return str(run.key)


def _check(request: None, report: Report) -> tuple[Unreadable, ...]:
    return tuple(Store().unreadable(DOCUMENTS))


@dataclass(frozen=True, slots=True)
class JobKind:
    """What a worker can be asked for: the function that does it, and what it does, in words.

    It may take ``minutes``, and ``silent_minutes`` between two reports. Both are generous: they are meant for
    what hangs, and for what was left behind. Fine-tuning comes on top (:func:`limits`).
    """

    run: Callable[[Any, Report], object]
    label: str
    minutes: float
    silent_minutes: float = 30


JOB_KINDS: dict[str, JobKind] = {
    "warm": JobKind(_warm, "loading libraries", 30),
    "catalogue": JobKind(_catalogue, "listing the models", 30),
    "download": JobKind(_download, "downloading weights", 720, silent_minutes=10),
    "examine": JobKind(_examine, "looking into a model file", 30),
    "examine hub": JobKind(_examine_hub, "fetching a model", 720, silent_minutes=10),
    "unpack": JobKind(_unpack, "unpacking images", 30),
    "add": JobKind(_add, "adding a model", 30),
    "try": JobKind(_try, "trying the preprocessing", 30),
    "images": JobKind(_images, "reading images", 120),
    "inspect": JobKind(_inspect, "compressing", 120),
    "anatomy": JobKind(_anatomy, "compressing", 120),
    "sensitivities": JobKind(_sensitivities, "measuring sensitivities", 240),
    "coupled": JobKind(_coupled, "measuring sensitivities of coupled layers", 240),
    "measure": JobKind(_measure, "measuring", 480),
    "measure for": JobKind(_measure_for, "measuring", 480),
    "ahead": JobKind(_ahead, "measuring neighbouring positions", 480),
    "preset": JobKind(_preset, "searching for a recipe", 1440, silent_minutes=120),
    "find": JobKind(_find, "searching for a configuration", 1440, silent_minutes=120),
    "artifact": JobKind(_artifact, "writing a model file", 120),
    "compare": JobKind(_compare, "comparing two files", 240),
    "complexity": JobKind(_complexity, "measuring time against weights", 120),
    "check": JobKind(_check, "reading what is stored", 120),
    "coverage": JobKind(_coverage, "timing the kernels", 120),
    "throughput": JobKind(_throughput, "measuring throughput", 240),
    "load": JobKind(_load, "measuring latency under load", 120),
}
