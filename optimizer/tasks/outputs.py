"""How far outputs moved from the uncompressed model's, example by example."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.special import log_softmax

from optimizer.errors import WorkError
from optimizer.records import Accuracy, PerImage


class Outputs(Protocol):
    """An array or a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...


ALIKE_NOISE = 0.01
"""Outputs that are no logits agree where the power of their change is at most this share of their own: they
are within 10 %, at 20 dB."""


def agreeing(outputs: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Boolean ``[N]``: the same first answer for logits ``[N, K]``; for outputs of another shape, or of a
    single number, that they are within 10 % of the uncompressed model's."""
    if is_logits(outputs):
        agrees: np.ndarray = outputs.argmax(1) == baseline.argmax(1)
        return agrees
    noise, signal = powers(outputs, baseline)
    return noise <= ALIKE_NOISE * signal


def is_logits(outputs: Outputs) -> bool:
    """Whether an array or a tensor has one number a class, of two classes or more."""
    return len(outputs.shape) == 2 and outputs.shape[1] > 1


def powers(outputs: np.ndarray, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squares ``[N]`` of the change in an example's outputs, and of the uncompressed model's."""
    rows, before = outputs.reshape(len(outputs), -1), baseline.reshape(len(baseline), -1)
    noise = np.square(rows - before, dtype=np.float64).sum(1)
    return noise, np.square(before, dtype=np.float64).sum(1)


def compared(
    outputs: np.ndarray,
    baseline: np.ndarray,
    images: str,
    correct: np.ndarray,
    reference: str,
    labels: bytes = b"",
) -> Accuracy:
    """What both tasks record beside which examples are ``correct`` ``[N]`` against the ``reference``.

    ``sqnr_db`` is the outputs' signal-to-quantization-noise ratio in dB (None when nothing moved),
    ``cosine`` the mean cosine similarity of an example's outputs, ``kl`` the mean Kullback-Leibler divergence
    of the predicted distribution from the baseline's, in nats (None where outputs are no logits).

    Raises WorkError for outputs that are infinite or not a number.
    """
    finite = np.isfinite(outputs) & np.isfinite(baseline)
    broken = int((~finite.reshape(len(outputs), -1)).any(1).sum())
    if broken:
        raise WorkError(
            f"{broken:,} of {len(outputs):,} images give outputs that are not finite, so nothing is scored: "
            "compress less, or keep 32 bits where 16 overflow"
        )
    noise, signal = powers(outputs, baseline)
    moved = noise.sum() > 0 and signal.sum() > 0
    kl = _divergences(outputs, baseline) if is_logits(outputs) else None
    return Accuracy.of(
        correct,
        reference=reference,
        agreement=int(agreeing(outputs, baseline).sum()),
        sqnr_db=float(10 * np.log10(signal.sum() / noise.sum())) if moved else None,
        kl=None if kl is None else float(kl.mean()),
        images=images,
        kl_images=None if kl is None else PerImage.of(kl),
        noise_images=PerImage.of(noise) if moved else None,
        signal_images=PerImage.of(signal) if moved else None,
        labels=labels,
        cosine=_cosine(outputs, baseline),
    )


def _divergences(logits: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    log_p, log_q = log_softmax(baseline, axis=1), log_softmax(logits, axis=1)
    divergences: np.ndarray = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return divergences


def _cosine(outputs: np.ndarray, baseline: np.ndarray) -> float | None:
    """Mean over the examples whose outputs are not all zero; None where there is none."""
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    before = baseline.reshape(len(baseline), -1).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(before, axis=1)
    some = lengths > 0
    return float(((rows * before).sum(1)[some] / lengths[some]).mean()) if some.any() else None
