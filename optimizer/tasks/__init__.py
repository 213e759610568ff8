"""What a model is for: its outputs, and how an example is scored. One file a task.

A task takes outputs ``[N, ...]`` of a compressed model and of its baseline, and gives an
:class:`optimizer.records.Accuracy` with an entry for each example.
"""

from collections.abc import Sequence

import numpy as np

from optimizer.records import Accuracy, Part
from optimizer.tasks import classification, fidelity

NO_CLASSES = "fidelity"
"""The task of a network that is no classifier, whatever the shape of its outputs."""
TASKS = ("classification", NO_CLASSES)


def accuracy_of(
    outputs: np.ndarray,
    baseline: np.ndarray,
    labels: np.ndarray | None,
    images: str = "",
    parts: Sequence[Part] = (),
    classifier: bool = True,
) -> Accuracy:
    """Outputs, which consist of ``parts``, scored against the labels ``[N]``, else against the baseline's;
    ``images`` is the fingerprint of which they are. Unless they are a ``classifier``'s, outputs ``[N, K]``
    are no logits. Raises InputError, WorkError."""
    if labels is None:
        return fidelity.score(outputs, baseline, images, parts, classifier)
    return classification.score(outputs, baseline, labels, images)
