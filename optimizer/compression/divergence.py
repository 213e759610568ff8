"""How far outputs are from what they were: what every step of compression is judged by.

For logits ``[N, K]`` that is the Kullback-Leibler divergence of the predicted distribution, in nats. For
outputs of any other shape, or of a network that is said to be no classifier, it is half the square of the
change relative to the outputs themselves: the divergence of normal distributions whose variance is the
outputs' power.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from optimizer.tasks.outputs import is_logits

NO_CLASSIFIER = "is_no_classifier"
"""The attribute of a module, and of all that are copied from it, whose outputs ``[N, K]`` are no logits."""


def is_classifier(model: nn.Module) -> bool:
    """Whether outputs ``[N, K]`` of it are logits."""
    return not getattr(model, NO_CLASSIFIER, False)


def prepared(outputs: Tensor, classifier: bool = True) -> Tensor:
    """Outputs ``[N, ...]`` as :func:`divergence` takes them: in float32, of a ``classifier``'s logits the
    log-probabilities."""
    outputs = outputs.float()  # a model may give halves, of which the sums below would be noise
    return functional.log_softmax(outputs, 1) if classifier and is_logits(outputs) else outputs


def divergence(after: Tensor, before: Tensor, classifier: bool = True) -> Tensor:
    """The sum over the examples, of prepared outputs; what ``before`` is compared with may have gradients."""
    if classifier and is_logits(before):
        nats: Tensor = functional.kl_div(after, before, reduction="sum", log_target=True)
        return nats
    rows, expected = after.flatten(1), before.flatten(1)
    power = expected.square().sum(1).clamp(min=torch.finfo(expected.dtype).tiny)
    shares = (rows - expected).square().sum(1) / power
    total: Tensor = 0.5 * shares.sum()
    return total


def direction(outputs: Tensor, generator: torch.Generator, classifier: bool = True) -> Tensor:
    """A random ``v`` of one example's outputs, with ``E[v v^T]`` the curvature of the divergence there: for
    a ``classifier``'s logits ``diag(p) - p p^T``, else the identity over the outputs' power."""
    outputs = outputs.float()
    signs: Tensor = torch.randint(0, 2, outputs.shape, generator=generator) * 2.0 - 1
    if not (classifier and is_logits(outputs.unsqueeze(0))):
        length: Tensor = outputs.norm().clamp(min=torch.finfo(outputs.dtype).tiny)
        return signs / length
    chances: Tensor = outputs.softmax(0)
    roots: Tensor = chances.sqrt()
    return roots * signs - chances * (roots @ signs)
