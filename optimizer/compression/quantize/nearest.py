"""Round to nearest: needs no data."""

from torch import Tensor

from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.pruned import Pruned
from optimizer.compression.quantize.grid import Codes, Rounded, grid_between, nearest_codes, units
from optimizer.compression.quantize.ranges import RANGES
from optimizer.recipe import QuantizeSpec


def quantize(
    original: Tensor, pruned: Pruned, spec: QuantizeSpec, name: str, statistics: Statistics | None = None
) -> Rounded:
    """The pruned weight rounded; biases stay as pruning left them."""
    return Rounded(round_to_nearest(pruned.weight, spec), pruned.bias_change)


def round_to_nearest(weight: Tensor, spec: QuantizeSpec) -> Codes:
    """Codes of ``weight`` ``[out, ...]``, float32, at ``spec.weight_bits`` of 2 to 8."""
    low, high = RANGES[spec.range](units(weight, spec.granularity), spec, None)
    return nearest_codes(weight, *grid_between(low, high, spec), spec)
