"""What is asked for, from the store or made now: results, answers to questions, times, files, comparisons.

The page's workers, the command line, the tools and the Python interface all come here, and find it in one
file. torch and its kin are imported inside, so that naming this module costs nothing.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from optimizer.analysis import stored
from optimizer.analysis.earlier import Conditions
from optimizer.analysis.gate import GateLimits, check_against, no_accuracy
from optimizer.analysis.screening import Bar, Screen, bar_for
from optimizer.analysis.statistics import LatencyVerdict
from optimizer.analysis.two_files import CompareRequest, TwoFiles, time_taken
from optimizer.data.selection import check_at_hand
from optimizer.errors import InputError, ParetoscopeError, UnavailableError, WorkError
from optimizer.progress import Cancelled, Report, quiet, satisfied, stop_if_cancelled, while_wanted
from optimizer.records import Inspection, Known, Latency, Request, Result, Scores, encode
from optimizer.search.drain import Work
from optimizer.search.find import Unwanted
from optimizer.search.find import find as find_best
from optimizer.search.questions import Answered, answer_of, keys_of, progress_of, question_of
from optimizer.search.records import Progress, Question
from optimizer.search.space import Space
from optimizer.search.sweep import grid_keys, is_frontier_only
from optimizer.store import ledger
from optimizer.store.items import Item
from optimizer.store.keys import request_key, short_version
from optimizer.store.results import ANSWER, EARLY_ANSWER, SEARCH, UNFINISHED, Store
from optimizer.system.environment import environment, resolve_threads, timestamp

if TYPE_CHECKING:
    from optimizer.data.loading import Datasets
    from optimizer.measurement.workspace import Workspace

KEEP_SECONDS = 2.0
"""Between two writings of how far a search is."""
LONG_ENOUGH_SHARE = 0.8
"""A time whose calls alone lasted for this share of the seconds that are asked for is not taken again."""


def load_or_measure(
    request: Request,
    store: Store,
    report: Report = quiet,
    workspace: "Workspace | None" = None,
    scores: Scores | None = None,
    screen: Screen | None = None,
) -> Result:
    """The stored result of exactly this request, or a new one, which is stored; so is that it failed. One
    that was ended while its memory and cold start were measured is gone on with.

    ``workspace`` is that of a model or images that the request names but no catalogue has, ``scores`` what
    another machine worked out. Raises UnavailableError where a new one could not be kept, and what
    :func:`optimizer.measurement.experiment.measure` does: with a ``screen`` also ScreenedOut, of which
    nothing is stored.
    """
    result = store.get(request_key(request))
    if result is not None:
        return result
    store.check_room()
    resolve_threads(request.settings.threads)  # another machine may have so many: nothing is kept of it
    from optimizer.measurement import experiment
    from optimizer.measurement.runners import TIMED_IMAGES
    from optimizer.measurement.workspace import open_workspace
    from optimizer.model import catalogue

    if workspace is None:
        catalogue.card(request.model)  # a name that was mistyped is no measurement that failed
        check_at_hand(request.data)  # nothing is wrong with the request: who has its images may go on with it
    # A small device, to which the scores are given, may have no memory for more than it times with.
    read, latency_of = TIMED_IMAGES if scores else None, store.latency
    if begun := store.get_document(UNFINISHED, request_key(request), Result):
        scores, latency_of = _scores_in(begun), lambda signature, quick: begun.latency
    try:
        workspace = workspace or open_workspace(request.model, request.data, report, read)
        keep = partial(_keep, store)
        result = experiment.measure(workspace, request, report, latency_of, scores, screen, keep)
    except ParetoscopeError as error:
        with suppress(UnavailableError):  # what made the measurement fail is what to tell
            store.put_failure(request_key(request), request, str(error))
        raise
    stored.put(store, result)
    if not request.settings.quick:
        store.forget_document(UNFINISHED, result.key)
    return result


def _keep(store: Store, result: Result) -> None:
    with suppress(UnavailableError):  # what ended the measurement goes on
        store.put_document(UNFINISHED, result.key, encode(result))


def _scores_in(result: Result) -> Scores:
    return Scores(
        result.scored_on or result.environment,
        "",
        result.inspection,
        result.accuracy,
        result.baseline_accuracy,
        result.notes,
    )


def load_or_screen(
    request: Request,
    grid: Sequence[str],
    store: Store,
    report: Report = quiet,
    workspace: "Workspace | None" = None,
) -> Result:
    """As :func:`load_or_measure`. Raises ScreenedOut for what can't be on the frontier, as is known by those
    of the ``grid``, of which these are the keys, that are stored."""

    def screen(inspection: Inspection, latency: Latency) -> Bar | None:
        rivals = stored.summaries_of(store, grid)
        return bar_for(request, rivals, inspection.size.compressed_bytes, latency)

    return load_or_measure(request, store, report, workspace, screen=screen)


def measure_for(sweep: int, request: Request, store: Store, report: Report = quiet) -> Result:
    """What a sweep of the ledger asks for: as :func:`load_or_measure`, and where it asks for its frontier
    alone, as :func:`load_or_screen`."""
    asked = ledger.find(store, sweep).asked
    if not is_frontier_only(asked):
        return load_or_measure(request, store, report)
    return load_or_screen(request, grid_keys(asked), store, report)


def do_here(store: Store, report: Report) -> Work:
    """How :func:`optimizer.search.drain.drain` does items in this process."""

    def reported(share: float | None, words: str) -> None:
        stop_if_cancelled()
        report(share, words)

    def do(item: Item) -> str:
        if item.answer:
            return search(question_of(ledger.find(store, item.sweep)), store, reported)
        assert item.request is not None
        return measure_for(item.sweep, item.request, store, reported).key

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
    """Whether its model and images are there, the model has what is limited, and its engines and threads run
    here: what would fail all that it asks for, or a part. Raises InputError, UnavailableError."""
    from optimizer.data.loading import check_has_images
    from optimizer.model import catalogue

    card = catalogue.card(question.model)
    check_has_images(card, question.data)
    if not card.classes:
        question.limits.check_for(question.model, question.minimise)
    check_space(question.space)


def check_request(request: Request, store: Store, report: Report = quiet) -> None:
    """Whether its model, images, engine and threads are there: what would fail every recipe. Raises
    InputError, UnavailableError, WorkError."""
    if store.get(request_key(request)) is not None:
        return
    store.check_room()
    from optimizer.measurement.runners import checked
    from optimizer.measurement.workspace import open_workspace

    checked(request)
    check_at_hand(request.data)
    workspace = open_workspace(request.model, request.data, report)
    report(None, "reading the images")
    report(None, f"{len(workspace.images.evaluation.images):,} images to evaluate")


def check_gate(
    request: Request, limits: GateLimits, against: Result | None, store: Store, report: Report = quiet
) -> None:
    """Whether limits can be held against a request, and ``against`` with it where that is the measure: what
    would refuse the verdict once all is measured. Raises as :func:`check_request`."""
    from optimizer.model import catalogue

    if limits.drop_points is not None and not catalogue.card(request.model).classes:
        raise no_accuracy(request.model)
    if against is None or store.get(request_key(request)) is not None:
        return
    check_request(request, store, report)
    from optimizer.measurement.runners import checked
    from optimizer.measurement.workspace import open_workspace

    workspace, settings = open_workspace(request.model, request.data, report), checked(request).settings
    images = workspace.images.evaluation
    in_full = replace(request, settings=replace(request.settings, quick=False))
    # A longer time answers a quick request too, where there is one; not the reverse.
    longer = settings.quick and not against.latency.quick and store.known([request_key(in_full)])
    timed = replace(settings, quick=settings.quick and not longer)
    now = Conditions(
        replace(request, settings=timed),
        environment().key,
        short_version(request.model),
        workspace.files,
        len(images.images),
        "baseline" if images.labels is None else "labels",
    )
    check_against(now, against, limits)


def check_space(space: Space) -> None:
    """Whether its engines and threads run here. Raises InputError, UnavailableError."""
    from optimizer.engine import engine_named

    for name in space.engine:
        engine_named(name)
    for threads in space.threads:
        resolve_threads(threads)


def check_can_go_on(question: Question) -> None:
    """Raises InputError for a question of images in memory, or of a model that is none of the catalogue: who
    has them may go on with it."""
    from optimizer.model import catalogue

    check_at_hand(question.data)
    try:
        catalogue.card(question.model)
    except InputError as error:
        raise InputError(f"{error}. One that was given in Python: ask again from there, with it") from error


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
    if workspace is None:
        check_can_go_on(question)
    before, kept = progress_of(store, shared), -math.inf
    tried, begun = len(before.trials), (before.at, before.times)

    def keep(progress: Progress) -> None:
        nonlocal kept, tried, begun
        begins = progress.at is not None and (progress.at, progress.times) != begun  # it may end this process
        if begins or time.monotonic() > kept + KEEP_SECONDS:
            begun = progress.at, progress.times
            with suppress(UnavailableError):  # kept again in a moment
                store.put_document(SEARCH, shared, encode(progress))
                if len(progress.trials) > tried:
                    ledger.advance(store, shared)
                    tried = len(progress.trials)
            kept = time.monotonic()

    def confirm(result: Result, seconds: float) -> Latency:
        if question.settings.quick:
            return time_afresh(result, store, report, workspace, seconds)
        in_full = replace(result.request, settings=replace(result.request.settings, quick=False))
        return load_or_measure(in_full, store, report, workspace).latency

    found = find_best(
        question,
        lambda request, unwanted, told: measure_unless(request, unwanted, store, told, workspace),
        lambda result, seconds: time_afresh(result, store, report, workspace, seconds),
        confirm,
        report,
        before,
        [
            stored.timed_again(store, one) or one
            for one in stored.several(store, [trial.key for trial in before.trials])
        ],
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
    result: Result,
    store: Store,
    report: Report = quiet,
    workspace: "Workspace | None" = None,
    seconds: float = 0.0,
) -> Latency:
    """The time of a result, taken once more (a quick one for so many ``seconds`` at least) and kept in the
    place of the newest that it has, for all that share that; or what was taken in its place before, if that
    lasted about as long.

    Raises what :func:`optimizer.measurement.experiment.measure` does.
    """
    newest = stored.timed_again(store, result)
    if newest and newest.latency.seconds >= LONG_ENOUGH_SHARE * seconds:
        return newest.latency
    latency = time_again(result.request, report, workspace, seconds)
    store.put_document(stored.AFRESH, stored.afresh_key((newest or result).latency), encode(latency))
    return latency


def time_again(
    request: Request,
    report: Report = quiet,
    workspace: "Workspace | None" = None,
    seconds: float = 0.0,
) -> Latency:
    """The time of a request, taken once more (a quick one for so many ``seconds`` at least) and kept nowhere.

    Raises what :func:`optimizer.measurement.experiment.measure` does.
    """
    from optimizer.measurement import experiment
    from optimizer.measurement.workspace import open_workspace

    workspace = workspace or open_workspace(request.model, request.data, report)
    return experiment.time_again(workspace, request, report, seconds)


def scores_of(request: Request, report: Report = quiet) -> Scores:
    """What a recipe does to accuracy and size, worked out by all cores and kept nowhere: for another machine,
    which times it.

    Raises what :func:`optimizer.measurement.experiment.score` does.
    """
    from optimizer.measurement import experiment
    from optimizer.measurement.workspace import open_workspace

    request = replace(request, settings=replace(request.settings, threads=0))
    return experiment.score(open_workspace(request.model, request.data, report), request, report).scores


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
    rounds = recipe.quantize.rounds_activations
    report(None, "compressing")
    source = artifacts.ArtifactSource(
        card=workspace.model.loaded.card,
        module=network_of(workspace, recipe, report),
        compressed=compressed_model(workspace, recipe, report=report),
        calibration=workspace.activation_images if rounds else torch.empty(0, *workspace.model.input_shape),
        threads=resolve_threads(request.settings.threads),
        result=result,
        build=build_of(workspace, recipe, entry.engine, report) if entry.engine else None,
        parts=workspace.model.loaded.joined,
        names=workspace.model.loaded.names,
        preprocessing=workspace.model.loaded.preprocessing,
        class_names=workspace.model.loaded.classes,
    )
    report(None, f"writing {entry.label}")
    return artifacts.write(kind, source)


def file_size(request: Request, report: Report = quiet) -> int:
    """Bytes of the file of a recipe, as a result of it has them. Raises as :func:`artifact`."""
    from optimizer.measurement.compressed import compressed_model, inspection_of
    from optimizer.measurement.workspace import workspace_of

    workspace = workspace_of(request, report)
    compressed = compressed_model(workspace, request.recipe, report=report)
    return inspection_of(workspace.model, compressed).size.file_bytes


def compare(request: CompareRequest, report: Report = quiet, given: "Datasets | None" = None) -> TwoFiles:
    """The stored comparison of two networks, or a new one, which is stored; on images that were ``given`` in
    memory, or those that the request names.

    Raises what :func:`optimizer.export.artifacts.networks.opened` and
    :func:`optimizer.measurement.two_files_prepared.prepare` do.
    """
    return comparison(request, report, given)[0]


def comparison(
    request: CompareRequest, report: Report = quiet, given: "Datasets | None" = None
) -> tuple[TwoFiles, Callable[[], Latency]]:
    """As :func:`compare`, and what times the two once more. A stored one whose time was noisy is timed anew:
    that the machine was not quiet then holds for no other day."""
    from optimizer.export.artifacts.networks import opened
    from optimizer.measurement import two_files
    from optimizer.measurement.two_files_prepared import Comparison, like_of, prepare
    from optimizer.model import catalogue

    a, b = (opened(one, report) for one in (request.a, request.b))
    if given is None and not request.like:
        request = replace(request, like=like_of(a, b, bundled=request.data.path is None))

    @cache
    def made() -> Comparison:
        like = catalogue.load(request.like, report) if request.like else None
        return prepare(a, b, request, like, given, report)

    store, key = Store(), two_files.key_of(a, b, request)
    run = store.get_document("compare", key, TwoFiles)
    if run is None:
        run = two_files.measure(made(), report)
        store.put_document("compare", key, encode(run))
    elif time_taken(run.latency).verdict is LatencyVerdict.NOISY:
        run = replace(run, latency=two_files.time_again(made(), report), created=timestamp())
        store.put_document("compare", key, encode(run))
    return run, lambda: two_files.time_again(made(), report)
