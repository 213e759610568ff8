"""Fidelity: outputs of any shape against the uncompressed model's, where there are no labels."""

from collections.abc import Sequence

import numpy as np

from optimizer.records import Accuracy, Part
from optimizer.tasks.outputs import compared


def score(
    outputs: np.ndarray,
    baseline: np.ndarray,
    images: str = "",
    parts: Sequence[Part] = (),
    classifier: bool = True,
) -> Accuracy:
    """Outputs ``[N, ...]`` of a compressed model and of its baseline, which consist of ``parts``.

    An example is right where it agrees with the uncompressed model
    (:func:`optimizer.tasks.outputs.compared`). ``images`` is the fingerprint of which they are. Outputs
    ``[N, K]`` are a ``classifier``'s logits, or none. Raises WorkError for outputs that are infinite or not a
    number.
    """
    return compared(outputs, baseline, images, "baseline", parts=parts, classifier=classifier)
