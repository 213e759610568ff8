"""What the workers do: tasks by name. Imported by a worker process; a page only names the task.

torch and its kin are imported inside the tasks, so that naming this module costs nothing.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from optimizer.analysis import stored
from optimizer.analysis.load import LoadRequest
from optimizer.analysis.serving import ServingRequest, configurations
from optimizer.analysis.two_files import CompareRequest, TwoFiles
from optimizer.data.classes import ClassMapping
from optimizer.errors import ParetoscopeError, UnavailableError, WorkError, unknown
from optimizer.methods import plugins
from optimizer.methods.engines import ENGINES
from optimizer.progress import Cancelled, Report, quiet, satisfied, stop_if_cancelled, while_wanted
from optimizer.recipe import PRESETS, Recipe
from optimizer.records import (
    Anatomy,
    DataSpec,
    GroupSensitivity,
    Inspection,
    Known,
    Latency,
    ModelCard,
    Request,
    Result,
    Sensitivity,
    encode,
)
from optimizer.search.documents import DOCUMENTS
from optimizer.search.drain import Work
from optimizer.search.find import Progress, Question, Unwanted
from optimizer.search.find import find as find_best
from optimizer.search.presets import Found, find
from optimizer.search.questions import Answered, answer_of, keys_of, progress_of, question_of
from optimizer.search.space import Space
from optimizer.store import ledger
from optimizer.store.keys import request_key
from optimizer.store.ledger import Item
from optimizer.store.results import ANSWER, EARLY_ANSWER, SEARCH, Store, Unreadable
from optimizer.system.environment import resolve_threads
from optimizer.system.machine_lock import exclusive
from optimizer.system.process_pool import Limits

if TYPE_CHECKING:
    from optimizer.data.loading import Datasets
    from optimizer.measurement.workspace import Workspace
    from optimizer.model.added.cards import AddedModel, Choices, Examined, Trial

TARGET = "optimizer.work:run"
MAX_STEP_SECONDS = 10.0
"""A step of fine-tuning may take; one of photographs takes about half a second on two cores."""
KEEP_SECONDS = 2.0
"""Between two writings of how far a search is."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every model that can be picked, and in words what could not be listed.

    ``engines``: for each engine by name why it can't run here, or nothing; ``lacking``: why something else
    takes the place of its kernels here, of those where it does.
    """

    cards: dict[str, ModelCard]
    problems: tuple[str, ...]
    engines: dict[str, str]
    lacking: dict[str, str]


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
    if task not in JOB_KINDS:
        raise unknown("task", task, JOB_KINDS)
    return JOB_KINDS[task].run(request, report)


def limits(task: str, request: Any) -> Limits:
    """How long a worker may take for a task: its own minutes, and those of what learns in the request.

    Raises InputError for an unknown task.
    """
    if task not in JOB_KINDS:
        raise unknown("task", task, JOB_KINDS)
    parts = request if isinstance(request, tuple) else (request,)
    recipes = [part.recipe for part in parts if isinstance(part, Request | ServingRequest | LoadRequest)]
    learning = sum(map(_learning_seconds, recipes))
    return Limits(60 * JOB_KINDS[task].minutes + learning, 60 * JOB_KINDS[task].silent_minutes + learning)


def _learning_seconds(recipe: Recipe) -> float:
    return MAX_STEP_SECONDS * recipe.finetune_steps + recipe.effort_seconds if recipe.learns else 0.0


def load_or_measure(
    request: Request, store: Store, report: Report = quiet, workspace: "Workspace | None" = None
) -> Result:
    """The stored result of exactly this request, or a new one, which is stored; so is that it failed.

    ``workspace`` is that of a model or images that the request names but no catalogue has. Raises what
    :func:`optimizer.measurement.experiment.measure` does.
    """
    result = store.get(request_key(request))
    if result is not None:
        return result
    from optimizer.measurement import experiment
    from optimizer.measurement.workspace import open_workspace

    try:
        workspace = workspace or open_workspace(request.model, request.data, report)
        result = experiment.measure(workspace, request, report, store.latency)
    except ParetoscopeError as error:
        with suppress(UnavailableError):  # what made the measurement fail is what to tell
            store.put_failure(request_key(request), request, str(error), attempts=1)
        raise
    stored.put(store, result)
    return result


def do_here(store: Store, report: Report) -> Work:
    """How :func:`optimizer.search.drain.drain` does items in this process."""

    def reported(share: float | None, words: str) -> None:
        stop_if_cancelled()
        report(share, words)

    def do(item: Item) -> str:
        if item.answer:
            return search(question_of(ledger.find(store, item.sweep)), store, reported)
        assert item.request is not None
        return load_or_measure(item.request, store, reported).key

    return do


def measure_unless(
    request: Request,
    unwanted: Unwanted,
    store: Store,
    report: Report = quiet,
    workspace: "Workspace | None" = None,
) -> Result | None:
    """As :func:`load_or_measure`; None where ``unwanted`` ended it early."""
    with while_wanted(
        lambda known: (known is None or isinstance(known, Known)) and unwanted(known)
    ) as was_unwanted:
        try:
            return load_or_measure(request, store, report, workspace)
        except Cancelled:
            if was_unwanted():
                return None
            raise


def engines_to_search() -> tuple[str, ...]:
    """Those that a search tries unless it is told, of what can run here."""
    from optimizer.engine import problem_of

    return tuple(name for name in Space().engine if not problem_of(name))


def check(question: Question) -> None:
    """Whether its model is there, and its engines run here: what would fail all that it asks for. Raises
    InputError, UnavailableError."""
    from optimizer.engine import engine_named
    from optimizer.model import catalogue

    catalogue.card(question.model)
    for name in question.space.engine:
        engine_named(name)


def search(
    question: Question, store: Store, report: Report = quiet, workspace: "Workspace | None" = None
) -> str:
    """Have a question answered by what is in the store, and by a search for what is not: the key of the
    answer, for :func:`optimizer.search.questions.answer_of`.

    How far it is, is kept every few seconds, and a search that was killed goes on from there. Whatever is
    measured on the way is in the store. Raises what :func:`optimizer.search.find.find` does.
    """
    shared, key = keys_of(question)
    known = answer_of(store, key)
    if known and not known.answer.is_early:
        return key
    before, kept = progress_of(store, shared), -math.inf
    tried = len(before.trials)

    def keep(progress: Progress) -> None:
        nonlocal kept, tried
        if time.monotonic() > kept + KEEP_SECONDS:
            with suppress(UnavailableError):  # kept again in a moment
                store.put_document(SEARCH, shared, encode(progress))
                if len(progress.trials) > tried:
                    ledger.advance(store, shared)
                    tried = len(progress.trials)
            kept = time.monotonic()

    def confirm(result: Result) -> Latency:
        if question.settings.quick:
            return time_afresh(result, store, report, workspace)
        in_full = replace(result.request, settings=replace(result.request.settings, quick=False))
        return load_or_measure(in_full, store, report, workspace).latency

    found = find_best(
        question,
        lambda request, unwanted, told: measure_unless(request, unwanted, store, told, workspace),
        confirm,
        report,
        before,
        store.several([trial.key for trial in before.trials]),
        keep,
        satisfied(),
    )
    store.put_document(SEARCH, shared, encode(found.progress))
    store.put_document(EARLY_ANSWER if found.is_early else ANSWER, key, encode(found))
    return key


def answer(
    question: Question, store: Store, report: Report = quiet, workspace: "Workspace | None" = None
) -> Answered:
    """The best configuration that keeps to limits: what is stored of exactly this question, or a new answer,
    which is stored; as :func:`search`."""
    found = answer_of(store, search(question, store, report, workspace))
    if found is None:
        raise WorkError("what was measured was dropped meanwhile: ask again")
    return found


def time_afresh(
    result: Result, store: Store, report: Report = quiet, workspace: "Workspace | None" = None
) -> Latency:
    """The time of its own recipe, taken once more and kept beside the result: not the one that it may share.

    Raises what :func:`optimizer.measurement.experiment.measure` does.
    """
    key = f"{result.key} {result.latency.variant.calls.checksum}"
    latency = store.get_document("afresh", key, Latency)
    if latency is None:
        latency = time_again(result.request, report, workspace)
        store.put_document("afresh", key, encode(latency))
    return latency


def time_again(request: Request, report: Report = quiet, workspace: "Workspace | None" = None) -> Latency:
    """The time of a request, taken once more and kept nowhere.

    Raises what :func:`optimizer.measurement.experiment.measure` does.
    """
    from optimizer.measurement import experiment
    from optimizer.measurement.workspace import open_workspace

    workspace = workspace or open_workspace(request.model, request.data, report)
    return experiment.time_again(workspace, request, report)


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
    )


def _download(model: str, report: Report) -> str:
    """Fetch a model's weights, also in place of a damaged file."""
    from optimizer.model import catalogue

    return str(catalogue.download(model, report, force=True))


def _examine(asked: tuple[str, str, str], report: Report) -> "Examined":
    """What an upload holds: its name in the data folder, what its visitor calls it, and an architecture."""
    from optimizer.model.added import cards, files

    kept, called, architecture = asked
    return files.examine(cards.content_path(kept), architecture, report, external=False, called=called)


def _examine_hub(name: str, report: Report) -> "Examined":
    from optimizer.model import catalogue

    return catalogue.examine_hub(name, report)


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
    from optimizer.measurement.workspace import workspace_of

    kind, request = asked
    return artifact(kind, request, workspace_of(request, report), Store().best(request), report)


def artifact(
    kind: str,
    request: Request,
    workspace: "Workspace | None",
    result: Result | None,
    report: Report = quiet,
) -> bytes:
    """A file of the compressed model, with the figures that were measured of it.

    Without a workspace that of the request is opened. Raises what
    :func:`optimizer.export.artifacts.write` does.
    """
    import torch

    from optimizer.export import artifacts
    from optimizer.measurement.compressed import build_of, compressed_model, network_of
    from optimizer.measurement.workspace import workspace_of

    entry = artifacts.writable(kind)  # what can't be is said before anything is compressed
    recipe, workspace = request.recipe, workspace or workspace_of(request, report)
    rounds = recipe.quantize.activation_bits < 32
    report(None, "compressing")
    source = artifacts.ArtifactSource(
        card=workspace.model.loaded.card,
        module=network_of(workspace, recipe, report),
        compressed=compressed_model(workspace, recipe, report=report),
        calibration=workspace.activation_images if rounds else torch.empty(0, *workspace.model.input_shape),
        threads=resolve_threads(request.settings.threads),
        result=result,
        build=build_of(workspace, recipe, entry.engine, report) if entry.engine else None,
    )
    report(None, f"writing {entry.label}")
    return artifacts.write(kind, source)


def compare(request: CompareRequest, report: Report = quiet, given: "Datasets | None" = None) -> TwoFiles:
    """The stored comparison of two networks, or a new one, which is stored; on images that were ``given`` in
    memory, or those that the request names.

    Raises what :func:`optimizer.export.artifacts.networks.opened` and
    :func:`optimizer.measurement.two_files.prepare` do.
    """
    return comparison(request, report, given)[0]


def comparison(
    request: CompareRequest, report: Report = quiet, given: "Datasets | None" = None
) -> tuple[TwoFiles, Callable[[], Latency]]:
    """As :func:`compare`, and what times the two once more."""
    from optimizer.export.artifacts.networks import opened
    from optimizer.measurement import two_files
    from optimizer.model import catalogue

    a, b = (opened(one, report) for one in (request.a, request.b))

    @cache
    def made() -> two_files.Comparison:
        like = catalogue.load(request.like, report) if request.like else None
        return two_files.prepare(a, b, request, like, given, report)

    store, key = Store(), two_files.key_of(a, b, request)
    run = store.get_document("compare", key, TwoFiles)
    if run is None:
        run = two_files.measure(made(), report)
        store.put_document("compare", key, encode(run))
    return run, lambda: two_files.time_again(made(), report)


def _compare(request: CompareRequest, report: Report) -> str:
    return compare(request, report).key


def _complexity(request: Any, report: Report) -> str:
    from optimizer.measurement import complexity

    run = complexity.measure(request, report)
    Store().put_document("complexity", run.key, encode(run))
    return run.key


def _coverage(request: Request, report: Report) -> str:
    from optimizer.measurement.profile import profile
    from optimizer.measurement.workspace import open_workspace

    found = profile(open_workspace(request.model, request.data, report), request, report)
    Store().put_document("coverage", found.key, encode(found))
    return found.key


def _throughput(request: ServingRequest, report: Report) -> str:
    from optimizer.measurement import throughput
    from optimizer.measurement.workspace import open_workspace

    configurations(request)  # what can't be is said before anything is loaded
    run = throughput.measure(open_workspace(request.model, request.data, report), request, report)
    Store().put_document("throughput", run.key, encode(run))
    return run.key


def _load(request: LoadRequest, report: Report) -> str:
    from optimizer.measurement import load
    from optimizer.measurement.workspace import open_workspace

    run = load.measure(open_workspace(request.model, request.data, report), request, report)
    Store().put_document("load", run.key, encode(run))
    return run.key


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
    "add": JobKind(_add, "adding a model", 30),
    "try": JobKind(_try, "trying the preprocessing", 30),
    "images": JobKind(_images, "reading images", 120),
    "inspect": JobKind(_inspect, "compressing", 120),
    "anatomy": JobKind(_anatomy, "compressing", 120),
    "sensitivities": JobKind(_sensitivities, "measuring sensitivities", 240),
    "coupled": JobKind(_coupled, "measuring sensitivities of coupled layers", 240),
    "measure": JobKind(_measure, "measuring", 480),
    "ahead": JobKind(_ahead, "working ahead", 480),
    "preset": JobKind(_preset, "searching a recipe", 1440, silent_minutes=120),
    "find": JobKind(_find, "searching a configuration", 1440, silent_minutes=120),
    "artifact": JobKind(_artifact, "writing a model file", 120),
    "compare": JobKind(_compare, "comparing two files", 240),
    "complexity": JobKind(_complexity, "measuring time against weights", 120),
    "check": JobKind(_check, "reading what is stored", 120),
    "coverage": JobKind(_coverage, "timing the kernels", 120),
    "throughput": JobKind(_throughput, "measuring throughput", 240),
    "load": JobKind(_load, "measuring latency under load", 120),
}
