"""What a network learns from: answers of all classes, or of the few that its images show."""

import pytest
import torch
from torch import nn

from optimizer.compression.distillation import DIVERGENCE_WEIGHT, learning
from optimizer.compression.finetune import Steps
from optimizer.progress import quiet

CLASSES = 4


@pytest.mark.parametrize(("shown", "weight"), [(1, 0.0), (2, DIVERGENCE_WEIGHT), (4, DIVERGENCE_WEIGHT)])
def test_divergence_counts_where_most_classes_are_shown(shown: int, weight: float) -> None:
    model = nn.Sequential(nn.Linear(CLASSES, CLASSES))
    model[0].weight.data = torch.eye(CLASSES)
    images = torch.eye(CLASSES)[:shown].repeat(16, 1)
    assert learning(model, model, {}, images, Steps(0, 0), quiet).divergence_weight == weight
