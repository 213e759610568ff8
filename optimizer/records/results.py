"""One experiment, whole, as it is stored, and the parts of it that come before the whole."""

from dataclasses import dataclass

from optimizer.records.accuracy import Accuracy
from optimizer.records.asked import Request
from optimizer.records.environment import Environment
from optimizer.records.execution import Execution
from optimizer.records.times import Latency
from optimizer.records.weights import Inspection

SCHEMA = 3
"""Version of all records. A change of meaning raises it, and old results are measured anew.
3: latency is timed in visits; up to 2 a sample was the second call after another network's."""


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
