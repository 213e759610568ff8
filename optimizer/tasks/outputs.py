"""How far outputs moved from the uncompressed model's, example by example."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy

from optimizer.errors import WorkError
from optimizer.records import Accuracy, OutputFidelity, Part, PerImage


class Outputs(Protocol):
    """An array or a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...


ALIKE_NOISE = 0.01
"""Outputs that are no logits agree where the power of their change is at most this share of their own: they
are within 10 %, at 20 dB."""
VALUES_AT_ONCE = 1 << 22
"""In float64 they are 32 MB."""


def is_logits(outputs: Outputs) -> bool:
    """Whether an array or a tensor has one number a class, of two classes or more."""
    return len(outputs.shape) == 2 and outputs.shape[1] > 1


@dataclass(frozen=True, slots=True)
class Differences:
    """Of outputs from a reference's, an image each ``[N]``: the sums of squares of what changed and of the
    reference, the cosine between the two (NaN where one is all zero), and the largest difference. The
    reference's values lie between ``low`` and ``high``."""

    noise: np.ndarray
    signal: np.ndarray
    cosine: np.ndarray
    largest: np.ndarray
    low: float
    high: float

    @classmethod
    def of(cls, outputs: np.ndarray, reference: np.ndarray) -> "Differences":
        """From outputs ``[N, ...]`` of both, image by image: some at a time, as all in float64 would take
        many times their memory."""
        step = max(1, VALUES_AT_ONCE // max(1, math.prod(outputs.shape[1:])))
        starts = range(0, max(1, len(outputs)), step)
        parts = [cls._of(outputs[one : one + step], reference[one : one + step]) for one in starts]
        return cls.joined(parts)

    @classmethod
    def _of(cls, outputs: np.ndarray, reference: np.ndarray) -> "Differences":
        rows, before = (
            each.reshape(len(each), -1).astype(np.float64, copy=False) for each in (outputs, reference)
        )
        change = rows - before
        signal = np.square(before).sum(1)
        lengths = np.sqrt(np.square(rows).sum(1) * signal)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.where(lengths > 0, (rows * before).sum(1) / lengths, np.nan)
        return cls(
            np.square(change).sum(1),
            signal,
            cosine,
            np.abs(change).max(1, initial=0),
            float(before.min(initial=0 if not before.size else np.inf)),
            float(before.max(initial=0 if not before.size else -np.inf)),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Differences]") -> "Differences":
        """Those of several parts of the images, one after the other."""
        noise, signal, cosine, largest = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("noise", "signal", "cosine", "largest")
        )
        low, high = min(part.low for part in parts), max(part.high for part in parts)
        return cls(noise, signal, cosine, largest, low, high)

    @property
    def sqnr_db(self) -> float | None:
        """Over all images; None where nothing moved, or nothing was there."""
        noise, signal = float(self.noise.sum()), float(self.signal.sum())
        return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None

    @property
    def mean_cosine(self) -> float | None:
        """Over the images whose outputs are not all zero; None where there is none."""
        some = self.cosine[np.isfinite(self.cosine)]
        return float(some.mean()) if len(some) else None

    def recorded(self, name: str, reference: str, shape: Sequence[int]) -> OutputFidelity:
        some = self.cosine[np.isfinite(self.cosine)]
        return OutputFidelity(
            name,
            reference,
            tuple(shape),
            self.sqnr_db,
            self.mean_cosine,
            float(self.largest.max(initial=0)),
            self.high - self.low,
            PerImage.of(self.noise),
            PerImage.of(self.signal),
            PerImage.of(1 - some),
            PerImage.of(self.largest),
        )


def compared(
    outputs: np.ndarray,
    baseline: np.ndarray,
    images: str,
    reference: str,
    correct: np.ndarray | None = None,
    labels: bytes = b"",
    parts: Sequence[Part] = (),
    classifier: bool = True,
) -> Accuracy:
    """What both tasks record beside which examples are ``correct`` ``[N]`` against the ``reference``: without
    them those that agree with the uncompressed model. They do with the same first answer for a
    ``classifier``'s logits ``[N, K]``; other outputs where they are within 10 % of its own.

    ``sqnr_db`` is the outputs' signal-to-quantization-noise ratio in dB (None when nothing moved),
    ``cosine`` the mean cosine similarity of an example's outputs, ``kl`` the mean Kullback-Leibler divergence
    of the predicted distribution from the baseline's, in nats (None where outputs are no logits). Those are
    recorded one by one: the ``parts`` of which an example's row consists, one behind the other.

    Raises WorkError for outputs that are infinite or not a number.
    """
    check_finite(outputs, baseline)
    whole = Differences.of(outputs, baseline)
    moved = whole.sqnr_db is not None
    logits = classifier and is_logits(outputs)
    kl = _divergences(outputs, baseline) if logits else None
    agrees: np.ndarray = (
        outputs.argmax(1) == baseline.argmax(1) if logits else whole.noise <= ALIKE_NOISE * whole.signal
    )
    return Accuracy.of(
        agrees if correct is None else correct,
        reference=reference,
        agreement=int(agrees.sum()),
        sqnr_db=whole.sqnr_db,
        kl=None if kl is None else float(kl.mean()),
        images=images,
        kl_images=None if kl is None else PerImage.of(kl),
        noise_images=PerImage.of(whole.noise) if moved else None,
        signal_images=PerImage.of(whole.signal) if moved else None,
        labels=labels,
        cosine=whole.mean_cosine,
        outputs=() if logits else tuple(_one_by_one(outputs, baseline, parts)),
    )


def _one_by_one(outputs: np.ndarray, baseline: np.ndarray, parts: Sequence[Part]) -> Iterator[OutputFidelity]:
    rows, before = (each.reshape(len(each), -1) for each in (outputs, baseline))
    start = 0
    for name, shape in parts or [("output", outputs.shape[1:])]:
        taken = slice(start, start := start + math.prod(shape))
        yield Differences.of(rows[:, taken], before[:, taken]).recorded(name, name, shape)


def check_finite(
    outputs: np.ndarray, baseline: np.ndarray, reference: str = "the uncompressed model"
) -> None:
    """Raises WorkError where an image gives outputs ``[N, ...]`` that are infinite or not a number;
    ``reference`` is what gave ``baseline``."""
    broken, before = (~np.isfinite(one).reshape(len(one), -1).all(1) for one in (outputs, baseline))
    if before.any():
        raise WorkError(
            f"{int(before.sum()):,} of {len(before):,} images give outputs that are not finite in "
            f"{reference} itself, so nothing is scored: look at these images, at its weights, and for "
            "outputs that it masks with -inf, which a large negative number such as -1e4 masks as well"
        )
    if broken.any():
        raise WorkError(
            f"{int(broken.sum()):,} of {len(broken):,} images give outputs that are not finite, so nothing "
            "is scored: compress less, or keep 32 bits where 16 overflow"
        )


def _divergences(logits: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    log_p, log_q = scipy.special.log_softmax(baseline, axis=1), scipy.special.log_softmax(logits, axis=1)
    divergences: np.ndarray = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return divergences.clip(min=0)  # below it by rounding alone
