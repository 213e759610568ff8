"""A network as a chain of segments, each of which takes one tensor and gives one.

Between two of them nothing but that tensor is passed on, so a segment can be run, and learn, from what was
kept of the one before it: the rest of the network does not run.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from optimizer.compression.blocks import blocks
from optimizer.model.tracing import traced

BATCH = 16
PROBES = (2, 3)
"""Batch sizes that tell a number that is the batch's size from one that is not."""

Node = torch.fx.Node


@torch.no_grad()
def segments(model: nn.Module, image: Tensor) -> list[nn.Module]:
    """The segments of ``model`` in order, each with at least one of its blocks; they hold its own modules.

    ``image`` ``[1, C, H, W]`` is any input. A single one where there is no place to part it, or its code
    can't be traced.
    """
    try:
        graph = traced(model, image)
        values, others = (_values(model, graph, image, count) for count in PROBES)
    except Exception:  # tracing runs the model's own code: anything may come out of it
        return [model]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    computed = [node for node in graph.nodes if node.op.startswith("call")]
    if len(inputs) != 1 or not computed:
        return [model]
    numbers = {
        node: None if (one, others[node]) == PROBES else one
        for node, one in values.items()
        if isinstance(one, int) and (one == others[node] or (one, others[node]) == PROBES)
    }
    ends, place = _ends(graph, blocks(model)), {node: index for index, node in enumerate(graph.nodes)}
    parts: list[nn.Module] = []
    source, part, passed = inputs[0], list[Node](), False
    alive: set[Node] = set(inputs)
    for node in computed:
        part.append(node)
        passed = passed or node in ends
        alive = {one for one in (*alive, node) if any(place[user] > place[node] for user in one.users)}
        batched = isinstance(values[node], Tensor) and values[node].dim() and len(values[node]) == PROBES[0]
        if node is computed[-1] or (passed and batched and alive - numbers.keys() == {node}):
            parts.append(_part(model, source, part, numbers))
            source, part, passed = node, [], False
    return parts


def _values(model: nn.Module, graph: torch.fx.Graph, image: Tensor, count: int) -> Mapping[Node, Any]:
    """What each node gives for a batch of ``count``."""
    run = torch.fx.Interpreter(torch.fx.GraphModule(model, graph), garbage_collect_values=False)
    run.run(image.repeat(count, *[1] * (image.dim() - 1)))
    return {node: run.env.get(mine) for node, mine in zip(graph.nodes, run.graph.nodes, strict=True)}


def _ends(graph: torch.fx.Graph, paths: tuple[str, ...]) -> set[Node]:
    """The last node of each of the modules at ``paths``."""
    last = {path: node for node in graph.nodes for path in node.meta.get("nn_module_stack", ())}
    return {last[path] for path in paths if path in last}


def _part(model: nn.Module, source: Node, nodes: list[Node], numbers: Mapping[Node, int | None]) -> nn.Module:
    graph = torch.fx.Graph()
    copies: dict[Node, Any] = {source: graph.placeholder("x")}

    def copied(node: Node) -> Any:
        if node not in copies and node in numbers:  # of an earlier part; None is the batch's size
            number = numbers[node]
            copies[node] = graph.call_method("size", (copies[source], 0)) if number is None else number
        if node not in copies:  # a parameter or buffer, read wherever it is used
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copied)
    graph.output(copies[nodes[-1]])
    return torch.fx.GraphModule(model, graph)


def outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """What ``module`` gives for ``inputs`` ``[N, ...]``, a few at a time."""
    with torch.no_grad():
        return torch.cat([module(part.clone()) for part in inputs.split(BATCH)])


def chains(model: nn.Module, teacher: nn.Module, image: Tensor) -> tuple[list[nn.Module], list[nn.Module]]:
    """The segments of both, joined where their outputs differ in shape (channels were removed)."""
    chains = segments(model, image), segments(teacher, image)
    if len(chains[0]) != len(chains[1]):
        return [model], [teacher]
    joined: tuple[list[nn.Module], list[nn.Module]] = [], []
    parts: tuple[list[nn.Module], list[nn.Module]] = [], []
    values = [image, image]
    for index, pair in enumerate(zip(*chains, strict=True)):
        for side, part in enumerate(pair):
            values[side] = outputs(part, values[side])
            parts[side].append(part)
        if values[0].shape == values[1].shape or index + 1 == len(chains[0]):
            for side in (0, 1):
                joined[side].append(nn.Sequential(*parts[side]))
                parts[side].clear()
    return joined
