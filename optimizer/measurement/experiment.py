"""One experiment: a request in, a result out."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from optimizer.analysis.screening import Bar, Screen
from optimizer.engine import Runner
from optimizer.engine.memory import Start, measure_start
from optimizer.engine.realised import named
from optimizer.errors import words_of
from optimizer.formats import count
from optimizer.measurement.compressed import (
    build_of,
    compressed_model,
    inspect,
    inspection_of,
    notes_on_calibration,
    notes_on_channels,
    notes_on_equalisation,
    notes_on_ties,
    notes_on_unread,
)
from optimizer.measurement.latency import efforts_afresh
from optimizer.measurement.runners import (
    baseline_key,
    checked,
    first_baseline,
    pair,
    run_by,
    second_baseline,
    signature_of,
    timed_images,
    uncompressed,
)
from optimizer.measurement.scoring import score_at_random, score_unless_beaten
from optimizer.measurement.timing import time_latency
from optimizer.measurement.workspace import Workspace, once, uncompressed_alone
from optimizer.methods.engines import engine_info
from optimizer.model.examples import examples
from optimizer.progress import Report, is_heard, publish, quiet, uninterrupted
from optimizer.records import (
    Accuracy,
    ColdStart,
    Execution,
    Inspection,
    Known,
    Latency,
    Request,
    Result,
    Scores,
)
from optimizer.store.keys import request_key, short_version
from optimizer.system.environment import environment, timestamp
from optimizer.system.machine_lock import exclusive
from optimizer.tasks import accuracy_of

SharedLatency = Callable[[str, bool], Latency | None]
"""Gives an earlier measurement of an execution signature, a quick one where that will do."""
TOLD_SECONDS = 0.25
"""Between two accuracies of a growing number of images: drawing each takes time of the same cores."""


@dataclass(frozen=True)
class Baseline:
    """The uncompressed model on one engine, scored once."""

    runner: Runner
    logits: np.ndarray


@dataclass(frozen=True)
class Scored:
    """A compressed model that has run over the evaluation images, with logits ``[N, K]``."""

    workspace: Workspace
    inspection: Inspection
    runner: Runner
    logits: np.ndarray
    baseline: Baseline
    accuracy: Accuracy
    baseline_accuracy: Accuracy
    notes: tuple[str, ...]

    @property
    def scores(self) -> Scores:
        """All that was worked out here, as it travels."""
        return Scores(
            environment(),
            self.workspace.files,
            self.inspection,
            self.accuracy,
            self.baseline_accuracy,
            self.notes,
        )


def score(
    workspace: Workspace,
    request: Request,
    report: Report = quiet,
    bar_of: Callable[[Runner, Inspection], Bar | None] = lambda *_: None,
) -> Scored:
    """Compress, build and run over all evaluation images. Raises InputError, UnavailableError, WorkError; and
    ScreenedOut as soon as it has as many errors as the bar has, where ``bar_of`` gives one."""
    request = checked(request)
    if request.recipe.learns:  # which changes no count, and is waited for
        publish(Known(request, inspect(workspace, request.recipe, report), learning=True))
    report(None, f"preparing {engine_info(request.engine).label}")
    compressed = compressed_model(workspace, request.recipe, report=report)
    inspection = inspection_of(workspace.model, compressed)
    publish(Known(request, inspection))
    build = build_of(workspace, request.recipe, request.engine, report)
    report(None, "reading the images")
    images = workspace.images.evaluation
    labels = None if images.labels is None else images.labels.numpy()
    with exclusive(report):
        report(None, f"scoring {len(images.images):,} images")
        baseline = _baseline(workspace, *baseline_key(request))
        runner = run_by(workspace, build, compressed, request)

        def partly(logits: np.ndarray, of: np.ndarray | slice, files: str = "") -> Accuracy:
            known = None if labels is None else labels[of]
            loaded = workspace.model.loaded
            classifier = bool(loaded.card.classes)
            return accuracy_of(logits[of], baseline.logits[of], known, files, loaded.parts, classifier)

        told = -math.inf

        def tell(logits: np.ndarray, of: np.ndarray) -> None:
            nonlocal told
            if is_heard() and time.monotonic() > told + TOLD_SECONDS:
                told = time.monotonic()
                accuracy, before = partly(logits, of), partly(baseline.logits, of)
                publish(Known(request, inspection, len(logits), accuracy, before))

        def errors(logits: np.ndarray, of: np.ndarray) -> int:
            return int(np.count_nonzero(~partly(logits, of).outcomes))

        logits, every = baseline.logits, images.images.numpy()
        if not request.recipe.identity:
            bar = bar_of(runner, inspection)
            if bar is None:
                logits = score_at_random(runner.score, every, tell)
            else:
                logits = score_unless_beaten(runner.score, every, bar, baseline.logits, errors)
        accuracy, before = (partly(one, slice(None), workspace.files) for one in (logits, baseline.logits))
        publish(Known(request, inspection, len(logits), accuracy, before))
        runner.ready()
    notes = (
        *workspace.model.notes,
        *compressed.notes,
        *notes_on_equalisation(workspace.model.module, request.recipe),
        *notes_on_ties(request.recipe, inspection),
        *notes_on_channels(workspace.model, compressed, inspection),
        *notes_on_calibration(workspace.images.calibration.images, request.recipe),
        *notes_on_unread(workspace, request.recipe, report),
        *_notes_on_scoring(runner),
        *workspace.images.notes,
    )
    return Scored(workspace, inspection, runner, logits, baseline, accuracy, before, notes)


def measure(
    workspace: Workspace,
    request: Request,
    report: Report = quiet,
    shared_latency: SharedLatency = lambda *_: None,
    scores: Scores | None = None,
    screen: Screen | None = None,
    keep: Callable[[Result], None] = lambda _: None,
) -> Result:
    """Score and time one recipe. Raises InputError, UnavailableError, WorkError; and ScreenedOut, where
    there is a ``screen``, for what shares a latency and can't be on the frontier.

    ``shared_latency`` may give an earlier measurement of an execution signature: dense kernels run the same
    instructions whatever the weights' values, so it is used, noisy or not, instead of timing again. A
    result whose latency is noisy is published before it is timed again. With ``scores``, which another
    machine worked out, nothing is scored here. ``keep`` is given all but memory and cold start before those
    are measured.
    """
    ready = checked(request)
    settings, baseline_of = ready.settings, baseline_key(ready)

    def bar_of(runner: Runner, inspection: Inspection) -> Bar | None:
        signature = signature_of(workspace, request, runner.execution, settings.threads)
        timed = shared_latency(signature, settings.quick) if screen else None
        return screen(inspection, timed) if screen and timed else None

    if scores is None:
        scored = score(workspace, request, report, bar_of)
        scores, runner, baseline = scored.scores, scored.runner, scored.baseline.runner
    else:
        runner = pair(workspace, request, report).runner
        with exclusive(report):
            baseline = first_baseline(workspace, *baseline_of)
    signature = signature_of(workspace, request, runner.execution, settings.threads)
    made = partial(_result, workspace, scores, request, runner.execution)
    latency = shared_latency(signature, settings.quick)
    if latency is None:
        with exclusive(report):
            builds = baseline.ready(), second_baseline(workspace, *baseline_of).ready()
            latency = time_latency(
                builds,
                runner,
                timed_images(workspace),
                settings,
                signature,
                request.recipe,
                report,
                lambda noisy: publish(made(noisy)),
            )
    if settings.quick:
        return made(latency)
    keep(made(latency))  # this may be cancelled, or killed
    model = workspace.model
    try:
        with exclusive(report):
            report(None, "measuring memory and cold start")
            images = examples(model.module, model.input_shape, settings.batch).numpy()
            starts = [measure_start(one, settings.threads, images) for one in (runner, baseline)]
    except Exception as error:  # all that was measured before is not to be lost to it
        return made(latency, note=f"memory and cold start are not known: {_last_line(error)}")
    except BaseException:  # it is not wanted any more, or the program is ended
        publish(made(latency, note="memory and cold start are not known: that was ended"))
        raise
    return made(latency, starts)


def _result(
    workspace: Workspace,
    scores: Scores,
    request: Request,
    execution: Execution,
    latency: Latency,
    starts: Sequence[Start | None] = (None, None),
    note: str = "",
) -> Result:
    """All that was measured; ``starts`` are those of the compressed model and of its baseline."""
    here, inspection, cold_start = environment(), scores.inspection, None
    started, before = starts
    if started and before:
        inspection = _with_memory(inspection, started.memory_bytes, before.memory_bytes)
        cold_start = ColdStart(started.cold_start_ns, before.cold_start_ns)
    return Result(
        key=request_key(request, workspace.files),
        request=request,
        environment=here,
        created=timestamp(),
        inspection=inspection,
        accuracy=scores.accuracy,
        baseline_accuracy=scores.baseline_accuracy,
        latency=latency,
        execution=execution,
        notes=(*scores.notes, note) if note else scores.notes,
        cold_start=cold_start,
        scored_on=None if scores.environment.key == here.key else scores.environment,
        weights=short_version(request.model),
    )


def time_again(
    workspace: Workspace, request: Request, report: Report = quiet, seconds: float = 0.0
) -> Latency:
    """The time of a recipe, with nothing scored; a quick one is longer than at first, and lasts for so many
    ``seconds`` at least. Raises InputError, UnavailableError, WorkError."""
    ready = checked(request)
    found = pair(workspace, ready, report)
    signature = signature_of(workspace, request, found.runner.execution, ready.settings.threads)
    with exclusive(report):
        builds = uncompressed(workspace, *baseline_key(ready)).ready(), found.baseline
        return time_latency(
            builds,
            found.runner,
            found.images,
            ready.settings,
            signature,
            request.recipe,
            report,
            efforts=efforts_afresh(seconds),
        )


def _last_line(error: Exception) -> str:
    """Of a process that failed it says what came of it, below where."""
    return (words_of(error).strip().splitlines() or [""])[-1]


def _notes_on_scoring(runner: Runner) -> tuple[str, ...]:
    """What is to be said where accuracy is not that of the precisions that are timed."""
    names = runner.scored_otherwise
    if not names:
        return ()
    layers = count(len(names), "layer")
    return (f"accuracy: {layers} ran in another precision than when timed ({named(names)})",)


@once
@uninterrupted()
def _baseline(workspace: Workspace, engine: str, threads: int, batch: int) -> Baseline:
    runner, images = first_baseline(workspace, engine, threads, batch), workspace.images.evaluation.images
    with uncompressed_alone():
        return Baseline(runner, runner.score(images.numpy()))


def _with_memory(inspection: Inspection, memory_bytes: int, baseline_bytes: int) -> Inspection:
    return replace(
        inspection,
        size=replace(inspection.size, memory_bytes=memory_bytes),
        baseline_size=replace(inspection.baseline_size, memory_bytes=baseline_bytes),
    )
