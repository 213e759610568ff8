"""Recipes to begin with: how the dashboard prunes and rounds, and presets for people in a hurry."""

from dataclasses import dataclass, replace

from optimizer.recipe.recipe import Recipe
from optimizer.recipe.specs import NORMAL_PRUNE, NORMAL_QUANTIZE, QuantizeSpec, best_grid


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe to be found: the first of ``candidates`` that loses at most ``points`` of accuracy, or of a
    network that is no classifier, keeps its outputs at an SQNR of ``sqnr_db`` or more.

    They come from the one that gains most to the one that loses least; ``tries`` says what they are. 40 dB is
    noise of 1 % of the outputs (root mean square), 30 dB of 3 %, 25 dB of 6 %, and 20 dB of 10 %, within
    which outputs count as the same.
    """

    label: str
    points: float
    sqnr_db: float
    candidates: tuple[Recipe, ...]
    tries: str = ""

    @property
    def sqnr_label(self) -> str:
        return f"SQNR of {self.sqnr_db:g} dB or more"

    @property
    def help(self) -> str:
        """Its limit, of whichever network, and what is tried."""
        limits = f"{self.label}; of a network that is no classifier: {self.sqnr_label}"
        return f"{limits}. Tries {self.tries}"


NORMAL = Recipe(NORMAL_PRUNE, NORMAL_QUANTIZE)
"""How the dashboard prunes and rounds unless it is told otherwise; as it stands it does neither."""


def _rounded(bits: int, activation_bits: int = 32, sparsity: float | None = None) -> Recipe:
    prune = replace(NORMAL.prune, sparsity=sparsity)
    quantize = replace(NORMAL.quantize.at(bits), activation_bits=activation_bits)
    return Recipe(prune, quantize).canonical()


def _mixed(bits: float) -> Recipe:
    quantize = replace(NORMAL.quantize, average_bits=bits, symmetric=best_grid(NORMAL.quantize.method, bits))
    return Recipe(NORMAL.prune, quantize).canonical()


_INT8 = tuple(_rounded(bits, 8) for bits in (4, 6, 8))
_HALF = Recipe(quantize=QuantizeSpec(weight_bits=16))
PRESETS = {
    "safe": Preset(
        "At most 0.5 points lost",
        0.5,
        40,
        (*_INT8[1:], _rounded(8), _HALF),
        "8-bit activations with 6- and 8-bit weights, then 8- and 16-bit weights alone",
    ),
    "balanced": Preset(
        "At most 1 point lost",
        1.0,
        30,
        (*_INT8, _rounded(6), _rounded(8)),
        "8-bit activations with 4- to 8-bit weights, then 6- and 8-bit weights alone",
    ),
    "small": Preset(
        "At most 3 points lost",
        3.0,
        20,
        (
            _rounded(3, sparsity=0.5),
            _rounded(4, sparsity=0.5),
            _mixed(3),
            _mixed(4),
            _rounded(4),
            _rounded(6),
        ),
        "3- and 4-bit weights of which half are pruned, then 3 to 6 bits without pruning",
    ),
    "fast": Preset(
        "At most 2 points lost",
        2.0,
        25,
        (*_INT8, _HALF),
        "8-bit activations with 4- to 8-bit weights, then 16-bit weights alone",
    ),
}
"""For people in a hurry. Each is found on the user's own images (:mod:`optimizer.search.presets`)."""
