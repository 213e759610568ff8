"""Two networks against each other: what was measured, and what follows from it. No torch.

What differs is told of the second, B, against the first, A: a ratio of time or size is B's over A's, accuracy
lost is A's less B's. :mod:`optimizer.measurement.two_files` measures it.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from optimizer.analysis.measures import Measure, share_measure
from optimizer.analysis.outcomes import PairedDrop, paired_drop
from optimizer.analysis.statistics import LatencySummary, summarise_visits, time_interval
from optimizer.records import (
    DataSpec,
    Environment,
    Execution,
    Latency,
    LayerExecution,
    OutputFidelity,
    Settings,
    unpacked,
)

SCHEMA = 1
"""Version of the records here and of their JSON."""
SAME_DB, EQUAL_DB = 80.0, 150.0
"""Tensors above the first are the same but for the rounding of float32; equal ones count as the second."""
AGREES_DB = 10.0
"""At which a layer's outputs are still much the same."""


NETWORK_FILES = (".onnx", ".xml", ".zip")
"""What a network's file ends in; anything else names a model."""


def is_network_file(place: str) -> bool:
    return place.lower().endswith(NETWORK_FILES)


@dataclass(frozen=True, slots=True)
class NetworkRef:
    """Which network: ``place`` is a model's name, or the path of a file, with the ``weights`` of an IR where
    they don't lie beside it. Its user knows it as ``called``."""

    place: str
    called: str = ""
    weights: str = ""

    @property
    def name(self) -> str:
        return self.called or self.place.replace("\\", "/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """Two networks, the images, and how to time. Without ``data.path`` the images are those that come with
    the model, or with that which a file says it was made of, else made up. ``engine``: empty is the first
    that runs both.
    ``input_shape`` ``[C, H, W]`` is for files that leave it open; images are preprocessed as for the model
    ``like``, which also names the classes: where none is asked for, that which a file says it was made of."""

    a: NetworkRef
    b: NetworkRef
    data: DataSpec = field(default_factory=DataSpec)
    engine: str = ""
    settings: Settings = field(default_factory=Settings)
    input_shape: tuple[int, ...] = ()
    like: str = ""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its file's size, how its layers ran, and what only it has of outputs. ``correct``:
    packed bits, one an image; empty without labels."""

    name: str
    kind: str
    content: str
    size_bytes: int
    layers: tuple[LayerExecution, ...]
    alone: tuple[str, ...] = ()
    correct: bytes = b""


@dataclass(frozen=True, slots=True, repr=False)
class TwoFiles:
    """``outputs`` of B against A's, over ``total`` images, which were ``made_up`` where none were given;
    ``same`` has a bit for each on which both give the same first answer, and is empty where outputs are no
    logits. ``layers`` are the tensors inside that both have, over ``layer_images``, in A's order."""

    key: str
    request: CompareRequest
    environment: Environment
    created: str
    engine: str
    a: Side
    b: Side
    total: int
    made_up: bool
    outputs: tuple[OutputFidelity, ...]
    same: bytes
    layers: tuple[OutputFidelity, ...]
    layer_images: int
    latency: Latency
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    def __repr__(self) -> str:
        from optimizer.analysis.two_files_words import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Every figure, as :func:`~optimizer.analysis.two_files_words.as_json` says."""
        from optimizer.analysis.two_files_words import as_json

        return as_json(self)


# Figures


def answers_alike(run: TwoFiles) -> Measure | None:
    """Percent of the images on which both give the same first answer; None for outputs that are no logits."""
    if not run.same:
        return None
    return share_measure(int(same_answers(run).sum()), run.total)


def same_answers(run: TwoFiles) -> np.ndarray:
    """Boolean ``[N]``: the images on which both give the same first answer."""
    return unpacked(run.same, run.total)


def accuracies(run: TwoFiles) -> tuple[Measure, Measure] | None:
    """Percent right of A and of B; None without labels."""
    if not run.a.correct:
        return None
    first, second = (
        share_measure(int(unpacked(side.correct, run.total).sum()), run.total) for side in (run.a, run.b)
    )
    return first, second


def accuracy_lost(run: TwoFiles) -> PairedDrop | None:
    """From A to B, image by image; None without labels."""
    if not run.a.correct:
        return None
    return paired_drop(unpacked(run.a.correct, run.total), unpacked(run.b.correct, run.total))


@lru_cache(maxsize=64)
def time_taken(latency: Latency) -> LatencySummary:
    """B's time over A's."""
    return summarise_visits(latency.baseline, latency.variant, latency.stolen_share, latency.processes)


@lru_cache(maxsize=64)
def times_of(latency: Latency) -> tuple[tuple[float, float, float], ...]:
    """Nanoseconds a call of A, by both of its builds, and of B, each with its interval."""
    before = np.stack([build.medians_ns for build in latency.baseline], 1)
    return tuple(time_interval(times, latency.processes) for times in (before, latency.variant.medians_ns))


def size_ratio(run: TwoFiles) -> float:
    return run.b.size_bytes / run.a.size_bytes


def parting(run: TwoFiles) -> OutputFidelity | None:
    """The first layer that differs by more than the rounding of float32, but for those that are
    :func:`undone`; None where none does."""
    return next((layer for layer in _standing(run) if db_of(layer) < SAME_DB), None)


def widest_fall(run: TwoFiles) -> tuple[OutputFidelity, OutputFidelity] | None:
    """The two neighbours between which the SQNR falls most, the later one below that of float32's rounding,
    but for layers that are :func:`undone`; None where it falls nowhere."""
    pairs = [pair for pair in pairwise(_standing(run)) if db_of(pair[1]) < SAME_DB]
    widest = max(pairs, key=lambda pair: db_of(pair[0]) - db_of(pair[1]), default=None)
    return widest if widest and db_of(widest[0]) > db_of(widest[1]) else None


def undone(run: TwoFiles) -> tuple[OutputFidelity, ...]:
    """Layers that differ by more than they hold (below 0 dB) although one after them agrees, at ``AGREES_DB``
    or more: what they give is the same in another order, or rotated, or does not count."""
    agreeing = [place for place, layer in enumerate(run.layers) if db_of(layer) >= AGREES_DB]
    last = agreeing[-1] if agreeing else 0
    return tuple(layer for layer in run.layers[:last] if db_of(layer) < 0)


def _standing(run: TwoFiles) -> list[OutputFidelity]:
    gone = {id(layer) for layer in undone(run)}
    return [layer for layer in run.layers if id(layer) not in gone]


def db_of(layer: OutputFidelity) -> float:
    """Its SQNR in dB, at most ``EQUAL_DB``. Where it has none: that if nothing differs, 0 otherwise."""
    if layer.sqnr_db is not None:
        return min(layer.sqnr_db, EQUAL_DB)
    return 0.0 if layer.was_silent else EQUAL_DB


def precisions(side: Side) -> dict[str, int]:
    """Layers by the precision that they ran in."""
    return Execution(side.layers, ()).precisions
