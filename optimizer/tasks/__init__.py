"""What a model is for: its outputs, and how an example is scored. One file a task, and the dict that names
them.

A task takes outputs ``[N, ...]`` of a compressed model and of its baseline, and gives an
:class:`optimizer.records.Accuracy` with an entry for each example.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.records import Accuracy, Part
from optimizer.tasks import classification, fidelity

NO_CLASSES = "fidelity"
"""The task of a network that is no classifier, whatever the shape of its outputs."""
Score = Callable[[np.ndarray, np.ndarray, np.ndarray | None, str, Sequence[Part], bool], Accuracy]


@dataclass(frozen=True, slots=True)
class Task:
    """``score`` takes outputs, the baseline's, labels where the task needs them, the fingerprint of the
    images, the parts of which outputs consist, and whether outputs ``[N, K]`` are logits."""

    name: str
    label: str
    score: Score


def _labelled(
    outputs: np.ndarray,
    baseline: np.ndarray,
    labels: np.ndarray | None,
    images: str,
    parts: Sequence[Part],
    classifier: bool,
) -> Accuracy:
    assert labels is not None
    return classification.score(outputs, baseline, labels, images)


def _unlabelled(
    outputs: np.ndarray,
    baseline: np.ndarray,
    labels: np.ndarray | None,
    images: str,
    parts: Sequence[Part],
    classifier: bool,
) -> Accuracy:
    return fidelity.score(outputs, baseline, images, parts, classifier)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("classification", "top-1 accuracy", _labelled),
        Task(NO_CLASSES, "agreement with the uncompressed model", _unlabelled),
    )
}


def task_for(labels: np.ndarray | None) -> Task:
    """The task of images that have labels, or none."""
    return TASKS[NO_CLASSES if labels is None else "classification"]


def accuracy_of(
    outputs: np.ndarray,
    baseline: np.ndarray,
    labels: np.ndarray | None,
    images: str = "",
    parts: Sequence[Part] = (),
    classifier: bool = True,
) -> Accuracy:
    """Outputs, which consist of ``parts``, scored by the task that fits the labels ``[N]``, or their absence.
    Unless they are a ``classifier``'s, outputs ``[N, K]`` are no logits. Raises InputError, WorkError."""
    return task_for(labels).score(outputs, baseline, labels, images, parts, classifier)
