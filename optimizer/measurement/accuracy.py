"""Accuracy from logits: right or wrong for each image, and how far the outputs moved from the baseline's."""

import numpy as np
from scipy.special import log_softmax

from optimizer.errors import WorkError
from optimizer.records import Accuracy, PerImage


def accuracy_of(
    logits: np.ndarray, baseline: np.ndarray, labels: np.ndarray | None, images: str = ""
) -> Accuracy:
    """Logits ``[N, K]`` of a variant and of its baseline; labels ``[N]``, or None without labels;
    ``images`` is the fingerprint of which they are.

    Without labels "correct" means "predicts what the uncompressed model predicts". ``sqnr_db`` is the
    logits' signal-to-quantization-noise ratio in dB (None when nothing moved), ``kl`` the mean
    Kullback-Leibler divergence of the variant's distribution from the baseline's, in nats.

    Raises WorkError for logits that are infinite or not a number.
    """
    broken = int((~np.isfinite(logits) | ~np.isfinite(baseline)).any(1).sum())
    if broken:
        raise WorkError(
            f"{broken:,} of {len(logits):,} images give logits that are not finite, so there is no accuracy: "
            "compress less, or keep 32 bits where 16 overflow"
        )
    predicted, expected = logits.argmax(1), baseline.argmax(1)
    agrees = predicted == expected
    noise = np.square(logits - baseline, dtype=np.float64).sum(1)
    signal = np.square(baseline, dtype=np.float64).sum(1)
    moved = noise.sum() > 0 and signal.sum() > 0
    log_p, log_q = log_softmax(baseline, axis=1), log_softmax(logits, axis=1)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return Accuracy.of(
        agrees if labels is None else predicted == labels,
        reference="baseline" if labels is None else "labels",
        agreement=int(agrees.sum()),
        sqnr_db=float(10 * np.log10(signal.sum() / noise.sum())) if moved else None,
        kl=float(kl.mean()),
        images=images,
        kl_images=PerImage.of(kl),
        noise_images=PerImage.of(noise) if moved else None,
        signal_images=PerImage.of(signal) if moved else None,
        labels=b"" if labels is None else _unequal(labels),
    )


def _unequal(labels: np.ndarray) -> bytes:
    """Labels to keep; none where every class has as many images, so that balanced accuracy is accuracy."""
    _, images = np.unique(labels, return_counts=True)
    return b"" if images.min() == images.max() else labels.astype("<u2").tobytes()
