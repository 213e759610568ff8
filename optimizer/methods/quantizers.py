"""Every way of rounding weights, and the options that a quantize spec has."""

from dataclasses import dataclass
from typing import Any

from optimizer.methods.entries import Entry, Option, by_name, load, named

QUANTIZE_OPTIONS: dict[str, Option] = {
    "granularity": Option(
        "Granularity",
        {"tensor": "per tensor", "channel": "per channel", "group": "per group"},
        "channel",
        "How many weights share a scale.",
    ),
    "range": Option(
        "Range",
        {"absmax": "min-max", "mse": "MSE", "percentile": "percentile"},
        "absmax",
        "What a grid covers: every weight, what makes the squared error least, or up to the 99.9th "
        "percentile.",
    ),
    "equalise": Option(
        "Cross-layer equalisation",
        {False: "no", True: "yes"},
        False,
        "A channel gets one range in the layer that makes it and the one that reads it, where only ReLU or "
        "pooling stands between; of most use per tensor.",
    ),
}
"""By the field of :class:`optimizer.recipe.QuantizeSpec`."""


@dataclass(frozen=True, slots=True)
class QuantizerInfo(Entry):
    """A way of rounding. ``code`` names an :data:`optimizer.compression.quantize.Quantizer`, or is one.

    ``costs``, named likewise, predicts what rounding costs at several widths
    (:func:`optimizer.compression.quantize.bits.nearest_costs`): average bits are allocated by it.
    ``options`` are those of ``QUANTIZE_OPTIONS`` that it reads; ``range`` is the one it takes unless it is
    told. Below ``asymmetric_below`` bits a grid with a zero point is the better default. ``needs_data``: it
    works from calibration images. ``words`` is what descriptions of recipes say of it; None is its label.
    """

    costs: object = "optimizer.compression.quantize.bits:nearest_costs"
    options: tuple[str, ...] = ("granularity", "range")
    range: str = "absmax"
    asymmetric_below: int = 0
    needs_data: bool = False
    words: str | None = None

    def load_costs(self) -> Any:
        """The function that predicts costs, imported now."""
        return load(self.costs)

    @property
    def described(self) -> str:
        return self.label.lower() if self.words is None else self.words


QUANTIZERS: dict[str, QuantizerInfo] = by_name(
    QuantizerInfo(
        "nearest",
        "Round to nearest",
        "each weight goes to the nearest value of its grid; no images needed.",
        "optimizer.compression.quantize.nearest:quantize",
        options=("granularity", "range", "equalise"),
        words="",
    ),
    QuantizerInfo(
        "compensated",
        "GPTQ",
        "on calibration images, weights that are yet to be rounded make up for those that were.",
        "optimizer.compression.quantize.compensated:quantize",
        "optimizer.compression.quantize.bits:compensated_costs",
        range="mse",
        asymmetric_below=8,  # at 8 a zero point gains nothing and keeps int8 kernels from being used
        needs_data=True,
        words="GPTQ",
    ),
)


def quantizer_info(name: str) -> QuantizerInfo:
    """The entry of that name. Raises InputError for an unknown one."""
    return named("rounding", name, QUANTIZERS)
