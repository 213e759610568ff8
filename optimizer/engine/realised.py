"""What was asked of an engine and what its kernels did: the difference, in words."""

from collections.abc import Iterable, Sequence

from optimizer.compression.apply import CompressedModel, width_words
from optimizer.methods.engines import engine_info
from optimizer.recipe import PRECISIONS
from optimizer.records import LayerExecution

INT8 = {"i8", "u8"}
UNTOLD = "unknown", "unknown"
"""Precision and kernel of a layer that is not found among what an engine says it executes."""
TAKES_TIME = ", which takes time of its own"
"""Said of activations that are rounded by steps between the kernels."""


def execution_of(name: str, kernels: Iterable[tuple[str, str]]) -> LayerExecution:
    """How a layer ran, by the precision and the kernel of each of its calls."""
    precisions, names = (tuple(dict.fromkeys(each)) for each in zip(*kernels, strict=True))
    return LayerExecution(name, precisions[0], " and ".join(names), precisions[1:])


def simulated(
    compressed: CompressedModel,
    layers: Sequence[LayerExecution],
    engine: str,
    unrounded: Sequence[str] = (),
    rounding: str = "",
) -> tuple[str, ...]:
    """What an engine's kernels did not do of a recipe, in words, by what was really executed.

    ``unrounded`` are the layers that take activations as they are, since no rounding reaches them;
    ``rounding`` is what else is to be said where activations are rounded between kernels.
    """
    int8 = engine_info(engine).int8
    weights = list(compressed.weights.values())
    quantize = compressed.recipe.quantize
    ran = {layer.name: {*layer.precisions} - INT8 - {*UNTOLD} for layer in layers}
    others = [name for name, precisions in ran.items() if precisions]
    floats = dict.fromkeys(PRECISIONS.get(one, one) for name in others for one in sorted(ran[name]))
    kernels = " and ".join(floats) or PRECISIONS[quantize.precision]
    values = "the values are exact" if kernels == "float32" else f"the values are held in {kernels}"
    if kernels == "float16":
        weights = [weight for weight in weights if weight.bits != 16]
    widths = width_words(weights)
    words = []
    fit = any(weight.fits_int8 for weight in compressed.weights.values())
    if int8 and quantize.activation_bits == 8 and fit:
        if any(weight.bits < 8 for weight in weights):
            words.append(f"{widths}: the values are exact, the kernels are int8")
        if others:
            words.append(f"{some_of(others, layers)} did not run on int8 kernels: {named(others)}")
        if untold := [layer.name for layer in layers if UNTOLD[0] in layer.precisions]:
            words.append(f"{some_of(untold, layers)} ran on kernels that are not told: {named(untold)}")
    else:
        if widths:
            words.append(f"{widths}: {values}, the kernels are {kernels}")
        if quantize.rounds_activations:
            between = f"{quantize.activation_bits}-bit activations: rounded between {kernels} kernels"
            unfit = _unfit(compressed) if int8 and quantize.activation_bits == 8 else ""
            words.append(between + unfit + rounding)
    if quantize.precision != "f32":
        missed = [name for name in others if ran[name] != {quantize.precision}]
        if missed:
            asked = PRECISIONS[quantize.precision]
            words.append(f"{asked}: {some_of(missed, layers)} did not run in it: {named(missed)}")
    if unrounded:
        activations = f"{quantize.activation_bits}-bit activations"
        words.append(f"{activations}: {some_of(unrounded, layers)} take them in float32: {named(unrounded)}")
    return tuple(words)


def _unfit(compressed: CompressedModel) -> str:
    """Why 8-bit activations alone do not make int8 kernels."""
    whole = not any(weight.codes for weight in compressed.weights.values())
    reason = "the weights do" if whole else "asymmetric 8-bit weights do"
    return f", since {reason} not fit int8"


def some_of(names: Sequence[str], layers: Sequence[object]) -> str:
    return f"{len(names)} of {len(layers)} layers"


def named(names: Sequence[str]) -> str:
    """The first three."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
