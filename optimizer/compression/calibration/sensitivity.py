"""What a change in one layer does to the outputs of the whole model, without labels.

The model is run once with every intermediate value kept, a few images at a time; each changed layer is then
replayed from where it stands: only what depends on it runs again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from optimizer.compression.divergence import divergence, is_classifier, prepared
from optimizer.model.layers import Layer, walk
from optimizer.model.tracing import traced
from optimizer.progress import Report, quiet

BATCH = 4
"""Images a replay: more leave the cache, and every intermediate value of theirs is kept."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Another weight for a layer, in its shape, and what its bias ``[out]`` changes by, if it has one."""

    weight: Tensor
    bias_change: Tensor | None = None


def divergences(
    model: nn.Module, images: Tensor, trials: Mapping[str, Trial], report: Report = quiet
) -> dict[str, float]:
    """Each trial alone: mean divergence (KL, nats) of the model's outputs from what they were.

    ``model`` takes ``images`` ``[N, C, H, W]`` and gives outputs ``[N, ...]``; it is left as it was.
    """
    return divergences_together(model, images, {name: {name: one} for name, one in trials.items()}, report)


@torch.inference_mode()
def divergences_together(
    model: nn.Module, images: Tensor, trials: Mapping[str, Mapping[str, Trial]], report: Report = quiet
) -> dict[str, float]:
    """As :func:`divergences`, each with several layers changed at once: ``trials`` by a name of their own."""
    layers = {layer.name: layer for layer in walk(model)}
    replay, classifier = _replay(model, images[:1]), is_classifier(model)
    totals = dict.fromkeys(trials, 0.0)
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        words = f"measuring sensitivities: image {start} of {len(images)}"
        report(start / len(images), words)
        outputs, run = replay(batch)
        before = prepared(outputs, classifier)
        for done, (name, parts) in enumerate(trials.items()):
            report((start + len(batch) * done / len(trials)) / len(images), words)
            with ExitStack() as stack:
                for part, trial in parts.items():
                    stack.enter_context(changed(layers[part], trial))
                after = prepared(run([layers[part] for part in parts]), classifier)
            totals[name] += divergence(after, before, classifier).item()
    # Below 0 by rounding alone.
    return {name: max(0.0, total) / len(images) for name, total in totals.items()}


@contextmanager
def changed(layer: Layer, trial: Trial) -> Iterator[None]:
    """The layer with a trial in place of its weight, put back in the end."""
    weight = layer.weight.data
    bias = None if layer.bias is None else layer.bias.data
    try:
        layer.weight.data = trial.weight
        if layer.bias is not None and bias is not None and trial.bias_change is not None:
            layer.bias.data = bias + trial.bias_change
        yield
    finally:
        layer.weight.data = weight
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias


def _replay(model: nn.Module, image: Tensor) -> Any:
    """A function of images that gives logits, and a function of layers that runs the rest again."""
    try:
        graph = torch.fx.GraphModule(model, traced(model, image))
    except Exception:  # tracing runs the model's own code; untraceable models run whole each time
        return lambda images: (model(images), lambda layers: model(images))
    interpreter = torch.fx.Interpreter(graph, garbage_collect_values=False)
    everything = set(graph.graph.nodes)
    changed_at: dict[torch.fx.Node, int] | None = None

    @cache
    def behind(path: str) -> set[torch.fx.Node]:
        return _downstream(graph.graph, path)

    def start(images: Tensor) -> tuple[Tensor, Any]:
        nonlocal changed_at
        if changed_at is None:
            changed_at = _changed_at(graph, images[:1])
        logits = interpreter.run(images)
        values = dict(interpreter.env)

        def run(changed: Sequence[Layer]) -> Tensor:
            again = set().union(*(behind(layer.module_name) or everything for layer in changed))
            again |= {node for node in graph.graph.nodes if node.op == "output"}
            if _reads_what_changed(graph.graph, again, changed_at or {}):
                again = everything
            kept = {node: value for node, value in values.items() if node not in again}
            result: Tensor = interpreter.run(images, initial_env=kept)
            return result

        return logits, run

    return start


class _Changes(torch.fx.Interpreter):
    """Notes in ``at`` after how many nodes each value was last changed in place, of those that were."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.at: dict[torch.fx.Node, int] = {}
        self.versions: dict[torch.fx.Node, int] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if any(_version(self.env[one]) != self.versions[one] for one in n.all_input_nodes):
            for one, version in self.versions.items():  # views of it too
                if (now := _version(self.env[one])) != version:
                    self.at[one], self.versions[one] = len(self.versions), now
        self.versions[n] = _version(result)
        return result


def _version(value: Any) -> int:
    """Rises with each change in place."""
    return sum(
        one._version for one in tree_leaves(value) if isinstance(one, Tensor) and not one.is_inference()
    )


def _changed_at(graph: torch.fx.GraphModule, image: Tensor) -> dict[torch.fx.Node, int]:
    """By node, the place of the last node that changes its value in place, where one does."""
    changes = _Changes(graph)
    with torch.inference_mode(False), torch.no_grad(), suppress(RuntimeError):  # which counts changes
        changes.run(image)
    return changes.at


def _reads_what_changed(
    graph: torch.fx.Graph, again: set[torch.fx.Node], changed_at: Mapping[torch.fx.Node, int]
) -> bool:
    """Whether some of ``again`` would read a value of another node, and not as it was when they first did:
    they or later ones changed it in place."""
    return any(
        changed_at.get(source, -1) >= place
        for place, node in enumerate(graph.nodes)
        if node in again
        for source in node.all_input_nodes
        if source not in again
    )


def _downstream(graph: torch.fx.Graph, path: str) -> set[torch.fx.Node]:
    """Every node that depends on what the module at ``path`` gives; empty for one that is never called."""
    found: set[torch.fx.Node] = set()
    for node in graph.nodes:
        called = node.op == "call_module" and (node.target == path or path.startswith(f"{node.target}."))
        if called or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found
