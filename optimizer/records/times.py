"""What calls take: raw, every call of every visit."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from optimizer.errors import InputError
from optimizer.recipe import Recipe


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
