"""What a model is for: its outputs, and how an example is scored. One file a task, and the dict that names
them.

A task takes outputs ``[N, ...]`` of a compressed model and of its baseline, and gives an
:class:`optimizer.records.Accuracy` with an entry for each example.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optimizer.records import Accuracy
from optimizer.tasks import classification, fidelity

Score = Callable[[np.ndarray, np.ndarray, np.ndarray | None, str], Accuracy]


@dataclass(frozen=True, slots=True)
class Task:
    """``score`` takes outputs, the baseline's, labels where the task needs them, and the fingerprint of the
    images."""

    name: str
    label: str
    score: Score


def _labelled(outputs: np.ndarray, baseline: np.ndarray, labels: np.ndarray | None, images: str) -> Accuracy:
    assert labels is not None
    return classification.score(outputs, baseline, labels, images)


def _unlabelled(
    outputs: np.ndarray, baseline: np.ndarray, labels: np.ndarray | None, images: str
) -> Accuracy:
    return fidelity.score(outputs, baseline, images)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("classification", "top-1 accuracy", _labelled),
        Task("fidelity", "agreement with the uncompressed model", _unlabelled),
    )
}


def task_for(labels: np.ndarray | None) -> Task:
    """The task of images that have labels, or none."""
    return TASKS["fidelity" if labels is None else "classification"]


def accuracy_of(
    outputs: np.ndarray, baseline: np.ndarray, labels: np.ndarray | None, images: str = ""
) -> Accuracy:
    """Outputs scored by the task that fits the labels ``[N]``, or their absence. Raises InputError,
    WorkError."""
    return task_for(labels).score(outputs, baseline, labels, images)
