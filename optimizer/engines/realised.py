"""What was asked of an engine and what its kernels did: the difference, in words."""

from collections.abc import Sequence

from optimizer.compress import CompressedModel, width_words
from optimizer.records import LayerExecution

INT8_OR_IDLE = {"i8", "u8", "unknown"}
"""Precisions of int8 kernels, and that of a layer which never runs."""


def simulated(compressed: CompressedModel, layers: Sequence[LayerExecution]) -> list[str]:
    """What the kernels did not do of a recipe, in words, by what was really executed."""
    weights = compressed.weights.values()
    widths = width_words(weights)
    activation_bits = compressed.recipe.quantize.activation_bits
    if activation_bits == 32:
        return [f"{widths}: the values are exact, the kernels are float32"] if widths else []
    if activation_bits < 8:
        rounded = f"{activation_bits}-bit activations: rounded between float32 kernels"
        return [*([f"{widths}: the values are exact, the kernels are float32"] if widths else []), rounded]
    if not any(weight.fits_int8 for weight in weights):
        reason = (
            "asymmetric 8-bit weights do" if any(weight.codes for weight in weights) else "the weights do"
        )
        words = [f"{widths}: the values are exact, the kernels are float32"] if widths else []
        return [*words, f"8-bit activations: rounded between float32 kernels, since {reason} not fit int8"]
    words = []
    if any(weight.bits < 8 for weight in weights):
        words.append(f"{widths}: the values are exact, the kernels are int8")
    others = [layer.name for layer in layers if not set(layer.precision.split(" and ")) <= INT8_OR_IDLE]
    if others:
        named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        words.append(f"{len(others)} of {len(layers)} layers did not run on int8 kernels: {named}")
    return words
