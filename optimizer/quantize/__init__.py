"""Quantization: where weights are rounded to. One file an algorithm, and the dict that names them.

A quantizer takes a weight ``[out, ...]`` and a spec of 2 to 8 bits, and returns its codes on a grid.
"""

from collections.abc import Callable

from torch import Tensor

from optimizer.quantize import nearest
from optimizer.quantize.grid import Codes
from optimizer.recipe import QuantizeSpec

Quantizer = Callable[[Tensor, QuantizeSpec], Codes]

QUANTIZERS: dict[str, Quantizer] = {"nearest": nearest.quantize}
