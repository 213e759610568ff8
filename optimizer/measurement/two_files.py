"""Two networks run as they are on the same images and timed in turns, and their tensors held against each
other. What is recorded, and what it says, is in :mod:`optimizer.analysis.two_files`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from optimizer.analysis.two_files import SCHEMA, CompareRequest, NetworkRef, Side, TwoFiles
from optimizer.data.selection import fingerprint
from optimizer.engine.base import Array, Runner
from optimizer.engine.opened import Answer, Opened
from optimizer.measurement.runners import TIMED_IMAGES
from optimizer.measurement.timing import time_latency
from optimizer.measurement.two_files_layers import clipped, matching
from optimizer.measurement.two_files_prepared import Candidate, Comparison, Pair, compiled
from optimizer.model.added.cards import version_of
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.recipe import Recipe
from optimizer.records import Latency, OutputFidelity, digest
from optimizer.system.environment import environment, resolve_threads, timestamp
from optimizer.system.machine_lock import exclusive
from optimizer.tasks.outputs import Differences, check_finite

VERSION = 5
"""Of the figures: raised when the same two files come to others."""
LAYER_IMAGES = 16
"""Images on which the tensors inside are compared."""
MAX_HELD_BYTES = 32 * 2**20
"""Outputs that are held at a time."""


def measure(made: Comparison, report: Report = quiet) -> TwoFiles:
    """Outputs, the tensors inside, and time. Raises WorkError where a network fails."""
    pair, images = made.pair, made.images
    with exclusive(report):
        outputs, same, correct = _scored(pair, images, made.labels, report)
        layers = _layers(pair, images[:LAYER_IMAGES], report)
    latency = time_again(made, report)
    a, b = (
        Side(one.name, one.kind, one.content, one.size_bytes, opened.runner.execution.layers, alone, right)
        for one, opened, alone, right in zip(
            (made.a, made.b), (pair.a, pair.b), pair.alone, correct, strict=True
        )
    )
    return TwoFiles(
        key_of(made.a, made.b, made.request),
        made.request,
        environment(),
        timestamp(),
        pair.engine,
        a,
        b,
        len(images),
        made.made_up,
        outputs,
        same,
        layers,
        min(len(images), LAYER_IMAGES),
        latency,
        made.notes,
    )


def time_again(made: Comparison, report: Report = quiet) -> Latency:
    """The time of B against A's, in turns. Raises InputError, WorkError."""
    settings = replace(made.request.settings, threads=resolve_threads(made.request.settings.threads))
    pair = made.pair

    def runner(one: Candidate, opened: Opened | None) -> Runner:
        if opened and settings.batch == 1:
            return opened.runner
        return compiled(one, pair.engine, pair.shape, settings.threads, settings.batch).runner

    builds = runner(made.a, pair.a), runner(made.a, None)
    variant, images = runner(made.b, pair.b), made.images[:TIMED_IMAGES]
    key = key_of(made.a, made.b, made.request)
    with exclusive(report):
        return time_latency(builds, variant, images, settings, key, Recipe(), report)


def key_of(a: Candidate, b: Candidate, request: CompareRequest) -> str:
    """Equal for the same contents under the same names, images and settings on this machine. Another model
    may have been added under the name that images are preprocessed for, or that a file's weights are of."""
    plain = replace(request, a=NetworkRef(a.content, a.name), b=NetworkRef(b.content, b.name))
    named = [request.like, *(one.loaded.card.name for one in (a, b) if one.loaded)]
    added = [version for version in map(version_of, named) if version not in ("", a.content, b.content)]
    said = [[one.preprocessing, one.class_names] for one in (a, b)]
    return digest(
        ["two files", VERSION, SCHEMA, plain, fingerprint(request.data), environment().key, said, *added]
    )


# Outputs and the tensors inside


def _scored(
    pair: Pair, images: Array, labels: Array | None, report: Report
) -> tuple[tuple[OutputFidelity, ...], bytes, tuple[bytes, bytes]]:
    """The outputs of both against each other; packed bits of the images that both answer alike, and of those
    that each answers right."""
    answers: list[list[Array]] = [[], []]

    def firsts(side: int, outputs: list[Array]) -> None:
        if pair.logits:
            answers[side].append(outputs[0].reshape(len(outputs[0]), -1).argmax(1))

    found = _compared(pair.a.answer, pair.b.answer, pair.outputs, images, report, "comparing outputs", firsts)
    fidelities = tuple(
        one.recorded(pair.b.outputs[second][0], pair.a.outputs[first][0], pair.a.outputs[first][1])
        for one, (first, second) in zip(found, pair.outputs, strict=True)
    )
    if not pair.logits:
        return fidelities, b"", (b"", b"")
    a, b = map(np.concatenate, answers)
    right = [b"" if labels is None else np.packbits(one == labels).tobytes() for one in (a, b)]
    return fidelities, np.packbits(a == b).tobytes(), (right[0], right[1])


def _compared(
    a: Answer,
    b: Answer,
    outputs: Sequence[tuple[int, int]],
    images: Array,
    report: Report,
    words: str,
    told: Callable[[int, list[Array]], None] = lambda side, outputs: None,
) -> list[Differences]:
    """Of the ``outputs`` of both, image by image; a part of the images at a time."""
    parts: list[list[Differences]] = [[] for _ in outputs]
    size = sum(one.nbytes for one in a(images[:1]))
    step = max(1, min(256, MAX_HELD_BYTES // max(1, size)))
    for start in range(0, len(images), step):
        report(start / len(images), words)
        chunk = images[start : start + step]
        both = [_answers(answer, chunk) for answer in (a, b)]
        for side, rows in enumerate(both):
            told(side, rows)
        for place, (first, second) in enumerate(outputs):
            check_finite(both[1][second], both[0][first], "the first network")
            parts[place].append(Differences.of(both[1][second], both[0][first]))
    return [Differences.joined(one) for one in parts]


def _answers(answer: Answer, images: Array) -> list[Array]:
    """Every output ``[N, ...]``, of images given one by one."""
    rows = []
    for number in range(len(images)):
        stop_if_cancelled()
        rows.append(answer(images[number : number + 1]))
    return [np.concatenate(several) for several in zip(*rows, strict=True)]


def _layers(pair: Pair, images: Array, report: Report) -> tuple[OutputFidelity, ...]:
    """The layers that both have, by what they give, in A's order."""
    matched = matching(pair.a.layers, pair.b.layers)
    if not matched:
        return ()
    clips = [first.clip or second.clip for first, second in matched]
    a, b = (
        clipped(opened.inside([layer.name for layer in layers]), clips)
        for opened, layers in zip((pair.a, pair.b), zip(*matched, strict=True), strict=True)
    )
    places = [(place, place) for place in range(len(matched))]
    found = _compared(a, b, places, images, report, "comparing layers")
    return tuple(
        one.recorded(second.name, first.name, first.shape)
        for one, (first, second) in zip(found, matched, strict=True)
    )
