"""Classification: one logit a class for each example, right where the largest is that of the label."""

import numpy as np

from optimizer.errors import InputError
from optimizer.records import Accuracy
from optimizer.tasks.outputs import compared


def score(outputs: np.ndarray, baseline: np.ndarray, labels: np.ndarray, images: str = "") -> Accuracy:
    """Logits ``[N, K]`` of a compressed model and of its baseline, and labels ``[N]`` from 0 to K - 1.

    ``images`` is the fingerprint of which they are. Raises InputError for outputs that are no logits or
    labels out of range, WorkError for logits that are infinite or not a number.
    """
    if outputs.ndim != 2:
        raise InputError(
            f"outputs of shape {list(outputs.shape)} are no logits: labels need one number a class for each "
            "example, [N, K]. Without labels any outputs are compared"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < outputs.shape[1]):
        raise InputError(
            f"labels from {labels.min()} to {labels.max()} are out of range: the model has "
            f"{outputs.shape[1]:,} outputs, so give 0 to {outputs.shape[1] - 1:,}"
        )
    return compared(outputs, baseline, images, "labels", outputs.argmax(1) == labels, _unequal(labels))


def _unequal(labels: np.ndarray) -> bytes:
    """Labels to keep; none where every class has as many images, so that balanced accuracy is accuracy, and
    where 16 bits don't hold them."""
    _, images = np.unique(labels, return_counts=True)
    held = images.min() < images.max() and labels.max() <= np.iinfo(np.uint16).max
    return labels.astype("<u2").tobytes() if held else b""
