"""What a recipe does to weights: counts, sizes, histograms, and what each layer is worth."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer that a recipe may touch, counted after it. ``pruned`` are the weights that pruning took, not
    those rounded to zero; None in results that were stored before they were counted."""

    name: str
    kind: str
    shape: tuple[int, ...]
    elements: int
    nonzero: int
    threshold: float
    bits: int
    macs: int
    pruned: int | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """Four answers to "how big": each is a different number of bytes.

    ``file_bytes``: the safetensors file as served (weights in the narrowest of int8, half and float32 that
    holds them, with scales). ``packed_bytes``: k bits a surviving weight plus the cheapest way to say which
    survive, named in ``coding``. ``compressed_bytes``: the file through zstd. ``memory_bytes``: growth of
    the resident memory when the engine loads the model and runs once, in a process of its own.
    """

    file_bytes: int
    packed_bytes: int
    compressed_bytes: int
    coding: str
    elements: int
    nonzero: int
    memory_bytes: int | None = None


SAME_PERCENT = 0.05
"""Shares of weights nearer than this are one: what goes are whole weights, or blocks of them."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a recipe does to the weights, known without running an image."""

    layers: tuple[LayerFacts, ...]
    size: Size
    baseline_size: Size

    @property
    def pruned_percent(self) -> float | None:
        """Of all layers' weights, what pruning took; None where it was not counted."""
        pruned = [layer.pruned for layer in self.layers if layer.pruned is not None]
        if not pruned or len(pruned) < len(self.layers):
            return None
        return 100 * sum(pruned) / sum(layer.elements for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """One layer's weights before and after a recipe, as a histogram.

    Bin ``i`` spans ``edges[i]`` to ``edges[i + 1]``, in units of the weights: ``before`` counts what was
    there, ``after`` what is there now, zeros left out. ``threshold`` is the largest magnitude that went (-1
    for none) where magnitude decided; ``levels`` are the values of the grid of the channel with the widest
    range.
    """

    layer: str
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    zeros: int
    threshold: float
    levels: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one layer's change does to the outputs: divergence (KL, nats) from the uncompressed model's.

    ``pruned`` is with the layer pruned as far as in a model of 60 % sparsity and no other layer touched, as
    it was ``measured``, or as expected where that is next to nothing; ``rounded`` is predicted from it for
    each bit width, with compensated rounding.
    """

    layer: str
    pruned: float
    measured: bool
    rounded: dict[int, float]


@dataclass(frozen=True, slots=True)
class GroupSensitivity:
    """Layers that give the same ``channels``, and what a change in all of them does to the outputs (nats).

    ``together`` is the divergence (KL) with each pruned to its share in a model of 60 % sparsity, all at once
    and no other layer touched; ``apart`` is the sum of what they do one at a time. ``tie`` says what couples
    them.
    """

    layers: tuple[str, ...]
    channels: int
    tie: str
    together: float
    apart: float
