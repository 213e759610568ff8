"""What a network answers: one bit an image, and how far each output moved."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

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
