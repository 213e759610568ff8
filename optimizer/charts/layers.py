"""The weights of each layer, and what is left of them."""

import html

from optimizer.figures import Axis, Bar, Bars
from optimizer.frame import summarise
from optimizer.metrics import format_count
from optimizer.records import LayerFacts, Result


def layers_info(result: Result) -> Bars:
    """The weights of each layer and how many of them are not zero, in the order of the network."""
    summary = summarise(result)
    return Bars(
        f"Non-zero weights by layer: {summary.text('nonzero')} of {format_count(summary.size.elements)}",
        Axis("weights, from 0"),
        tuple(_bar(layer) for layer in result.inspection.layers),
        note="coloured: not zero · grey: zero",
    )


def _bar(layer: LayerFacts) -> Bar:
    share = 100 * layer.nonzero / layer.elements if layer.elements else 0.0
    words = [
        f"<b>{html.escape(layer.name)}</b>",
        html.escape(f"{layer.kind}, {' × '.join(map(str, layer.shape))}"),
        f"{format_count(layer.nonzero)} of {format_count(layer.elements)} not zero ({share:.3g} %)",
        f"{layer.bits} bits a weight",
        f"{format_count(layer.macs * share / 100)} of {format_count(layer.macs)} multiply-accumulates",
    ]
    if layer.threshold >= 0:
        words.insert(4, f"|w| ≤ {layer.threshold:.3g} removed")
    return Bar(
        layer.name.removesuffix(".weight"),
        layer.elements,
        layer.nonzero,
        f"bits {layer.bits}",
        "<br>".join(words),
    )
