"""What was asked, what was run and what was measured: frozen, versioned, and raw.

A result holds the raw latency samples and one bit an image; medians, intervals and verdicts are derived
when it is read (:mod:`optimizer.analysis.statistics`, :mod:`optimizer.analysis.frame`). No torch here.

All records are in one file, since SCHEMA is the version of them all.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from optimizer.errors import InputError
from optimizer.methods.engines import DEFAULT_ENGINE
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.recipe.specs import take_numbers

T = TypeVar("T")

SCHEMA = 3
"""Version of everything in this file. A change of meaning raises it, and old results are measured anew.
3: latency is timed in visits; up to 2 a sample was the second call after another network's."""

MAX_INTEGER = 2**63 - 1
"""Larger ones can't be stored."""


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Which images. No path is the bundled set; a path is a folder with one subfolder a class.

    ``calibration`` is a folder of its own; without it ``calibration_share`` of the images, chosen with
    ``seed``, is set aside and never evaluated on. ``class_index`` is a file that maps folder names to the
    model's outputs. At most ``limit`` images, drawn with ``seed``, are evaluated. ``content`` is the digest
    of images that were given in memory, which no path leads to.
    """

    path: str | None = None
    calibration: str | None = None
    class_index: str | None = None
    calibration_share: float = 0.2
    limit: int = 10_000
    seed: int = 0
    content: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.calibration_share < 1:
            raise InputError(
                f"calibration share {self.calibration_share:g} is out of range: between 0 and 1, such as 0.2"
            )
        if not 1 <= self.limit <= MAX_INTEGER:
            raise InputError(f"image limit {self.limit} is not allowed: from 1 to {MAX_INTEGER:,}")
        check_seed(self.seed)


@dataclass(frozen=True, slots=True)
class Settings:
    """How latency is measured. ``quick`` is the short mode behind the sliders."""

    threads: int = 0
    batch: int = 1
    quick: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        take_numbers(self, whole=("threads", "batch", "seed"))
        if self.batch < 1:
            raise InputError(f"batch size {self.batch} is too small: at least 1 image")
        check_threads(self.threads)
        check_seed(self.seed)


def check_seed(seed: int) -> None:
    """Raises InputError for one that no generator takes, or that can't be stored."""
    if not 0 <= seed <= MAX_INTEGER:
        raise InputError(f"seed {seed} is not allowed: from 0 to {MAX_INTEGER:,}")


def check_threads(threads: int) -> None:
    """Raises InputError for a number below 0."""
    if threads < 0:
        raise InputError(f"threads {threads} is not allowed: 1 or more, or 0 for every core")


@dataclass(frozen=True, slots=True)
class Request:
    """One experiment: a model, its images, a recipe, an engine, and how to time it."""

    model: str
    recipe: Recipe = field(default_factory=Recipe)
    engine: str = DEFAULT_ENGINE
    data: DataSpec = field(default_factory=DataSpec)
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model before it is loaded. ``None`` is "not published", never 0; 0 ``classes`` is a
    network that is no classifier."""

    name: str
    source: str
    description: str
    parameters: int | None
    input_shape: tuple[int, ...]
    classes: int
    published_top1: float | None = None
    download_bytes: int | None = None
    ready: bool = True
    version: str = ""
    bundled_images: bool = False
    licence: str = ""

    @property
    def output_name(self) -> str:
        """What its one output is called in graphs, and in code that runs them."""
        return "logits" if self.classes else "output"


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and the libraries that gave a number.

    ``threads`` can run at once where this machine's cores run several each (SMT). None where each runs one,
    so that they are ``cores``, and in what was stored before they were counted. ``variables`` are those set
    in the process that libraries read when they choose kernels or how threads wait.
    """

    cpu: str
    instruction_sets: tuple[str, ...]
    cores: int
    governor: str | None
    memory_bytes: int
    system: str
    python: str
    libraries: dict[str, str]
    threads: int | None = None
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal for two results whose latencies may share an axis."""
        later = [one for one in (self.threads, self.variables) if one]
        return digest([self.cpu, self.instruction_sets, self.cores, self.governor, self.libraries, *later])


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer that a recipe may touch, counted after it. ``pruned`` are the weights that pruning took, not
    those rounded to zero; None in results that were stored before they were counted."""

    name: str
    kind: str
    shape: tuple[int, ...]
    elements: int
    nonzero: int
    threshold: float
    bits: int
    macs: int
    pruned: int | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """Four answers to "how big": each is a different number of bytes.

    ``file_bytes``: the safetensors file as served (weights in the narrowest of int8, half and float32 that
    holds them, with scales). ``packed_bytes``: k bits a surviving weight plus the cheapest way to say which
    survive, named in ``coding``. ``compressed_bytes``: the file through zstd. ``memory_bytes``: growth of
    the resident memory when the engine loads the model and runs once, in a process of its own.
    """

    file_bytes: int
    packed_bytes: int
    compressed_bytes: int
    coding: str
    elements: int
    nonzero: int
    memory_bytes: int | None = None


Part = tuple[str, tuple[int, ...]]
"""One of a network's outputs by its name, and its shape for one image."""

STEPS, SPAN = 254, 1e-9
"""A byte's steps from SPAN times the largest value to that one: 8.5 % each."""


@dataclass(frozen=True, slots=True)
class PerImage:
    """One value an image, not negative, in a byte: code 0 is 0, the others are steps on a logarithm.

    Good to 4 %, without bias: enough for an interval, at 13 kB in the store for 10,000 images. Figures are
    kept in full beside it.
    """

    largest: float
    codes: bytes

    @classmethod
    def of(cls, values: np.ndarray) -> "PerImage | None":
        """From ``[N]``; None where nothing is above 0. What rounding left below 0 counts as 0."""
        largest = float(values.max(initial=0))
        if not largest > 0:
            return None
        with np.errstate(divide="ignore"):
            steps = STEPS * (1 - np.log(np.maximum(values, 0) / largest) / np.log(SPAN))
        return cls(
            largest, np.where(steps < 0, 0, 1 + np.rint(np.maximum(steps, 0))).astype(np.uint8).tobytes()
        )

    @property
    def values(self) -> np.ndarray:
        """Float ``[N]``."""
        codes = np.frombuffer(self.codes, np.uint8).astype(float)
        return np.where(codes == 0, 0.0, self.largest * SPAN ** (1 - (codes - 1) / STEPS))


@dataclass(frozen=True, slots=True)
class OutputFidelity:
    """How far one output of a network, or a tensor inside it, lies from a reference's, over all images.

    ``shape`` is one image's; ``reference`` what the tensor is called there. ``sqnr_db`` is the
    signal-to-quantization-noise ratio (None where nothing moved, or nothing was there), ``cosine`` the mean
    cosine similarity of an image's values (None where all are zero), ``largest`` the largest difference of
    all, in the values' unit, and ``span`` the range of the reference's values. An image each have
    ``noise_images`` and ``signal_images`` (sums of squares), ``angle_images`` (1 - cosine) and
    ``largest_images``.
    """

    name: str
    reference: str
    shape: tuple[int, ...]
    sqnr_db: float | None
    cosine: float | None
    largest: float
    span: float
    noise_images: PerImage | None
    signal_images: PerImage | None
    angle_images: PerImage | None
    largest_images: PerImage | None

    @property
    def was_silent(self) -> bool:
        """Whether the reference is zero everywhere and this is not: no ratio says how far that is."""
        return self.sqnr_db is None and self.largest > 0

    @property
    def largest_share(self) -> float:
        """The largest difference as a share of the reference's range."""
        return self.largest / self.span if self.span > 0 else float(self.largest > 0)


def unpacked(outcomes: bytes, total: int) -> np.ndarray:
    """Boolean ``[total]`` of one bit an image."""
    return np.unpackbits(np.frombuffer(outcomes, np.uint8), count=total).astype(bool)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Per-image outcomes. ``correct`` is packed bits, one an image, by ``numpy.packbits``.

    ``reference`` says what "correct" is against: ``labels``, or ``baseline`` (the uncompressed model's own
    prediction) where the images have none. ``agreement`` counts images whose prediction is the baseline's.
    ``images`` is equal for the same images in the same order; empty where it was not recorded yet.
    ``kl_images``, ``noise_images`` and ``signal_images`` are what ``kl`` (their mean) and ``sqnr_db`` (the
    ratio of their sums) are made of; None where nothing moved or they were not recorded yet. ``labels`` has
    the class of each image as ``uint16``; empty without labels, where each class has as many images, or where
    they were not recorded yet. ``cosine`` is the outputs' mean cosine similarity, ``kl`` None where those
    are no logits. ``outputs`` has those that are no logits, one by one; none for logits, or where they were
    not recorded yet.
    """

    correct: bytes
    total: int
    reference: Literal["labels", "baseline"]
    agreement: int
    sqnr_db: float | None
    kl: float | None
    images: str = ""
    kl_images: PerImage | None = None
    noise_images: PerImage | None = None
    signal_images: PerImage | None = None
    labels: bytes = b""
    cosine: float | None = None
    outputs: tuple[OutputFidelity, ...] = ()

    @classmethod
    def of(cls, correct: np.ndarray, **others: Any) -> "Accuracy":
        """From a boolean array ``[N]``."""
        return cls(np.packbits(correct).tobytes(), len(correct), **others)

    @property
    def outcomes(self) -> np.ndarray:
        """Boolean ``[N]``: whether each image was right."""
        return unpacked(self.correct, self.total)

    @property
    def is_fidelity(self) -> bool:
        """Whether the outputs are no logits, so that how far they moved is all there is to say."""
        return self.reference == "baseline" and self.kl is None

    @property
    def classes(self) -> np.ndarray | None:
        """Integers ``[N]``: the class of each image; None where ``labels`` is empty."""
        return np.frombuffer(self.labels, "<u2").astype(int) if self.labels else None


@dataclass(frozen=True, slots=True)
class Times:
    """Whole nanoseconds ``[N]``, packed by zlib: a result has thousands. Raises InputError where damaged."""

    packed: bytes
    checksum: int

    def __post_init__(self) -> None:
        if zlib.crc32(self.packed) != self.checksum:
            raise InputError("damaged times: measure again")

    @classmethod
    def of(cls, times_ns: ArrayLike) -> "Times":
        packed = zlib.compress(np.asarray(times_ns, "<i8").tobytes())
        return cls(packed, zlib.crc32(packed))

    @property
    def values(self) -> np.ndarray:
        """Integers ``[N]``."""
        return np.frombuffer(zlib.decompress(self.packed), "<i8")


@dataclass(frozen=True, slots=True)
class Visits:
    """All calls of one build, a visit a round, in nanoseconds.

    A visit follows another network's, which has emptied the caches: its first ``settling[i]`` calls are on
    the way back to the steady time, the ``timed[i]`` calls after them are at it. ``calls`` has all of them in
    the order in which they ran.
    """

    calls: Times
    settling: tuple[int, ...]
    timed: tuple[int, ...]

    @classmethod
    def of(cls, visits: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Visits":
        """From the times of the settling calls and of the timed ones, visit by visit."""
        calls = [time for settling, timed in visits for time in (*settling, *timed)]
        return cls(
            Times.of(calls),
            tuple(len(settling) for settling, _ in visits),
            tuple(len(timed) for _, timed in visits),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Visits]") -> "Visits":
        """Those of several series, one after the other."""
        return cls(
            Times.of(np.concatenate([part.calls.values for part in parts])),
            tuple(count for part in parts for count in part.settling),
            tuple(count for part in parts for count in part.timed),
        )

    @property
    def each(self) -> list[np.ndarray]:
        """The calls of each visit."""
        lengths = np.add(self.settling, self.timed)
        return np.split(self.calls.values, np.cumsum(lengths)[:-1])

    @property
    def steady(self) -> list[np.ndarray]:
        """The timed calls of each visit."""
        return [calls[settling:] for calls, settling in zip(self.each, self.settling, strict=True)]

    @property
    def medians_ns(self) -> np.ndarray:
        """Float ``[R]``: of each visit's timed calls. Raises InputError where damaged."""
        calls, starts = self._timed_calls()
        counts = np.array(self.timed)
        ordered = calls[np.lexsort((calls, np.repeat(np.arange(len(counts)), counts)))]
        # Halves, since a sum may be too large.
        medians: np.ndarray = ordered[starts + (counts - 1) // 2] / 2 + ordered[starts + counts // 2] / 2
        return medians

    @property
    def means_ns(self) -> np.ndarray:
        """Float ``[R]``: of each visit's timed calls. Raises InputError where damaged."""
        calls, starts = self._timed_calls()
        return np.add.reduceat(calls, starts) / self.timed

    def _timed_calls(self) -> tuple[np.ndarray, np.ndarray]:
        """The timed calls of all visits, as floats, and where those of each visit begin: every view of
        results asks for them, and a loop over visits takes ten times as long."""
        calls, counts = self.calls.values, np.stack([self.settling, self.timed], axis=1).ravel()
        if counts.sum() != len(calls) or min(self.timed, default=0) < 1 or min(self.settling) < 0:
            raise InputError("damaged times: measure again")
        is_timed = np.repeat(np.arange(counts.size) % 2 == 1, counts)
        return calls[is_timed].astype(float), np.cumsum(self.timed) - self.timed

    @property
    def first_ns(self) -> np.ndarray:
        """Integers ``[R]``: each visit's first call, right after another network's."""
        return np.array([calls[0] for calls in self.each])


@dataclass(frozen=True, slots=True)
class Instructions:
    """Retired in user space by one call of a batch, by all threads: of the baseline and of the variant, one
    of each process that timed."""

    baseline: tuple[float, ...]
    variant: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """Raw times of one comparison, in nanoseconds a call of ``batch`` images.

    Round ``i`` visited two builds of the baseline and the variant, in an order shuffled from ``seed``.
    ``recipe`` is the one that ran: configurations of one execution signature run the same instructions and
    share a measurement. ``processes`` are the rounds of each process, in each of which all three were built
    anew: fresh ones in full; of a quick measurement the one that asked, and two more where it found a small
    difference. ``lost`` ones ended before their time. ``instructions`` is None where the kernel gives no
    count of them.
    """

    signature: str
    recipe: Recipe
    baseline: tuple[Visits, Visits]
    variant: Visits
    batch: int
    threads: int
    quick: bool
    seed: int
    warmup_calls: int
    stolen_share: float
    attempts: int
    processes: tuple[int, ...]
    lost: int = 0
    instructions: Instructions | None = None

    @property
    def checksum(self) -> int:
        """Of the variant's calls: equal for one measurement, whichever configurations share it."""
        return self.variant.calls.checksum

    @property
    def seconds(self) -> float:
        """What all calls took."""
        return 1e-9 * float(sum(build.calls.values.sum() for build in (*self.baseline, self.variant)))


@dataclass(frozen=True, slots=True)
class LayerExecution:
    """How the engine really ran one layer, read off its executed graph.

    ``others`` are the precisions of a layer's other calls, where these differ from that of its first.
    """

    name: str
    precision: str
    kernel: str
    others: tuple[str, ...] = ()
    skips_zeros: bool = False

    @property
    def precisions(self) -> tuple[str, ...]:
        """Every precision that it ran in."""
        return (self.precision, *self.others)


@dataclass(frozen=True, slots=True)
class Execution:
    """What ran, layer by layer, and in words what was only simulated. ``fallback``: why torch's own sparse
    matrices stood in for the sparse engine's kernels; empty where they didn't."""

    layers: tuple[LayerExecution, ...]
    simulated: tuple[str, ...]
    fallback: str = ""

    @property
    def precisions(self) -> dict[str, int]:
        """Layers by the precisions they ran in."""
        return dict(Counter(" and ".join(layer.precisions) for layer in self.layers))


Role = Literal["layer", "conversion", "between", "other"]


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One operation of an executed graph: how it ran, and nanoseconds a call, one sample a profile.

    ``layers`` are those that it is where ``role`` is ``layer`` (several may run as one kernel); ``name`` is
    theirs, else its own. A ``conversion`` is what a change of precision or layout adds: re-quantization,
    reorders. ``between`` is what a call takes beside its operations, so that the rows add up to it, and
    ``other`` all the rest. ``kernel`` is the engine's own word.
    """

    name: str
    role: Role
    precision: str
    kernel: str
    times_ns: tuple[int, ...]
    layers: tuple[str, ...] = ()
    skips_zeros: bool = False

    @classmethod
    def of_layers(
        cls, layers: Iterable[str], precision: str, kernel: str, time_ns: int, skips_zeros: bool = False
    ) -> "KernelTime":
        """One sample of a kernel that is these layers."""
        names = tuple(layers)
        return cls(" + ".join(names), "layer", precision, kernel, (time_ns,), names, skips_zeros)

    @classmethod
    def between_operations(cls, time_ns: int, what: str = "scheduling, and the call itself") -> "KernelTime":
        """What a call takes beside its operations, and what that is."""
        return cls("between operations", "between", "", what, (max(0, time_ns),))


SAME_PERCENT = 0.05
"""Shares of weights nearer than this are one: what goes are whole weights, or blocks of them."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a recipe does to the weights, known without running an image."""

    layers: tuple[LayerFacts, ...]
    size: Size
    baseline_size: Size

    @property
    def pruned_percent(self) -> float | None:
        """Of all layers' weights, what pruning took; None where it was not counted."""
        pruned = [layer.pruned for layer in self.layers if layer.pruned is not None]
        if not pruned or len(pruned) < len(self.layers):
            return None
        return 100 * sum(pruned) / sum(layer.elements for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """One layer's weights before and after a recipe, as a histogram.

    Bin ``i`` spans ``edges[i]`` to ``edges[i + 1]``, in units of the weights: ``before`` counts what was
    there, ``after`` what is there now, zeros left out. ``threshold`` is the largest magnitude that went (-1
    for none) where magnitude decided; ``levels`` are the values of the grid of the channel with the widest
    range.
    """

    layer: str
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    zeros: int
    threshold: float
    levels: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one layer's change does to the outputs: divergence (KL, nats) from the uncompressed model's.

    ``pruned`` is with the layer pruned as far as in a model of 60 % sparsity and no other layer touched, as
    it was ``measured``, or as expected where that is next to nothing; ``rounded`` is predicted from it for
    each bit width, with compensated rounding.
    """

    layer: str
    pruned: float
    measured: bool
    rounded: dict[int, float]


@dataclass(frozen=True, slots=True)
class GroupSensitivity:
    """Layers that give the same ``channels``, and what a change in all of them does to the outputs (nats).

    ``together`` is the divergence (KL) with each pruned to its share in a model of 60 % sparsity, all at once
    and no other layer touched; ``apart`` is the sum of what they do one at a time. ``tie`` says what couples
    them.
    """

    layers: tuple[str, ...]
    channels: int
    tie: str
    together: float
    apart: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Nanoseconds from files on the disk to the first answer, in a fresh process with its libraries imported:
    reading, preparing or compiling, and one call. One measurement each."""

    variant_ns: int
    baseline_ns: int


@dataclass(frozen=True, slots=True)
class Scores:
    """All of a result that may be worked out on another machine than the one that times it: what a recipe
    does to weights and answers.

    ``environment`` is that of the machine that worked it out, ``files`` the fingerprint of the images
    (:func:`optimizer.data.selection.fingerprint`).
    """

    environment: Environment
    files: str
    inspection: Inspection
    accuracy: Accuracy
    baseline_accuracy: Accuracy
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One experiment, whole: what was run and what was measured.

    ``environment`` is the machine that timed it. ``scored_on`` is the one that worked out its accuracy and
    counts, where that is another; None where it is the same. ``weights`` tells networks apart that had the
    same name one after the other (:func:`optimizer.store.keys.weights_version`, its beginning); empty where
    it is not known.
    """

    key: str
    request: Request
    environment: Environment
    created: str
    inspection: Inspection
    accuracy: Accuracy
    baseline_accuracy: Accuracy
    latency: Latency
    execution: Execution
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA
    cold_start: ColdStart | None = None
    scored_on: Environment | None = None
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a request that is being measured: counts first, then accuracy on a growing part of the
    images and on all of them, ``images`` in number; times come with the result. While it is ``learning``, it
    can end with the best so far."""

    request: Request
    inspection: Inspection
    images: int = 0
    accuracy: Accuracy | None = None
    baseline_accuracy: Accuracy | None = None
    learning: bool = False


def encode(record: object) -> bytes:
    """JSON bytes of any record in this file."""
    return msgspec.json.encode(record, order="deterministic")


def decode(data: bytes | str, kind: type[T]) -> T:
    """Read back what :func:`encode` wrote. Raises InputError for anything else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"not a {kind.__name__} record: {error}") from error


LATER: dict[type, dict[str, tuple[object, dict[str, object]]]] = {
    Recipe: {"finetune_steps": (0, {"training_seconds": 0.0}), "effort_seconds": (0, {})},
    PruneSpec: {"match": (False, {})},
    QuantizeSpec: {"precision": ("f32", {}), "equalise": (False, {})},
    DataSpec: {"content": ("", {})},
    Environment: {"threads": (None, {}), "variables": ({}, {})},
    LayerExecution: {"precision": ("f32", {}), "others": ((), {}), "skips_zeros": (False, {})},
}
"""Fields that came after results were stored: the value that those have, and what a digest has in its place
(the field whose place it took, or nothing). With any other value a field is part of it like all others. Of a
layer's execution the first digests left out f32 as well. Nothing goes from here: it would change the keys.
Records of other modules are added there."""
GONE: dict[type, dict[str, dict[str, object]]] = {PruneSpec: {"snap": {"effort": "fast"}}}
"""Fields that there are no more: what digests have of them before another field. Nothing goes from here
either."""


def digest(value: object) -> str:
    """A short, stable name for any value made of records and plain data.

    Fields that came later count only where they differ from what came before (:data:`LATER`), so that what is
    stored is still found.
    """
    return hashlib.sha256(msgspec.json.encode(_digested(value))).hexdigest()[:20]


def _digested(value: object) -> object:
    if is_dataclass(value):
        later, plain = LATER.get(type(value), {}), dict[str, object]()
        for one in fields(value):
            content = getattr(value, one.name)
            plain |= GONE.get(type(value), {}).get(one.name, {})
            if one.name in later and content == later[one.name][0]:
                plain |= later[one.name][1]
            else:
                plain[one.name] = _digested(content)
        return plain
    if isinstance(value, dict):
        return {key: _digested(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_digested(one) for one in value]
    return value
