"""Quantization: where weights are rounded to. One file an algorithm, and an entry in
:mod:`optimizer.methods.quantizers`.

A quantizer takes an original weight ``[out, ...]``, what pruning made of it, a spec of 2 to 8 bits, the
layer's name, and the statistics of the model where it needs one. It returns codes on an integer grid (real
value = scale x (code - zero point), one scale a channel, a group, or one in all), and what the bias changes
by.
"""

from collections.abc import Callable

from torch import Tensor

from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.pruned import Pruned
from optimizer.compression.quantize.grid import Rounded
from optimizer.recipe import QuantizeSpec

Quantizer = Callable[[Tensor, Pruned, QuantizeSpec, str, Statistics | None], Rounded]
