"""Controls of Explore that say a recipe: drawn, read, and set to one. (Not a page.)"""

from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from optimizer.compression.step_time import step_time
from optimizer.formats import significant
from optimizer.methods.entries import Option
from optimizer.methods.pruners import PRUNE_OPTIONS, PRUNERS, PrunerInfo
from optimizer.methods.quantizers import QUANTIZE_OPTIONS, QUANTIZERS
from optimizer.recipe import (
    ACTIVATION_BITS,
    EFFORT_SECONDS,
    MAX_EFFORT_SECONDS,
    MAX_FINETUNE_STEPS,
    NORMAL,
    PRECISIONS,
    RANGES,
    WEIGHT_BITS,
    PruneSpec,
    QuantizeSpec,
    Recipe,
    best_grid,
)
from optimizer.system.environment import COMPUTES, environment, precisions
from pages import address, consent

MAX_THRESHOLD = 0.5
MAX_PERCENT = 99
"""Of the slider for sparsity."""
PLAIN = PruneSpec().method
THRESHOLD = "threshold"
"""On this page a method of its own: the plain one, given a magnitude in place of a sparsity."""
MAX_BUTTONS = 3
GRIDS = ("automatic", "symmetric", "asymmetric")


def read_recipe(model: str) -> Recipe:
    """The recipe under the sliders for a model. Each has a default that works; the rest is behind *More*."""
    row = st.container(key="recipe")  # whose style says how wide each is
    mode, prune, bits, activations, more = row.columns(5, vertical_alignment="bottom")
    with mode:
        method = st.selectbox(
            "Method",
            list(methods()),
            **address.in_address("method", lambda method: methods()[method][0], methods()),
            help=_methods_words(),
        )
    with more, st.popover("More"):
        details = _more(method, model)
    rounding = details.rounding
    with prune:
        pruning = _amount(method, details.pruning)
    with bits:
        weight_bits = st.select_slider(
            "Average weight bits" if details.mixed else "Weight bits",
            WEIGHT_BITS,
            32,
            **address.in_address("bits"),
            help="2 to 8 round to an integer grid, 16 is half precision, 32 leaves the weights alone.",
        )
    with activations:
        activation_bits = st.select_slider(
            "Activation bits",
            ACTIVATION_BITS,
            32,
            **address.in_address("activations"),
            help="8-bit weights and activations run on int8 kernels; fewer bits are simulated.",
        )
    mixed = details.mixed and weight_bits <= 8
    automatic = best_grid(rounding.method, weight_bits)
    quantize = replace(
        rounding,
        weight_bits=32 if mixed else weight_bits,
        average_bits=float(weight_bits) if mixed else None,
        activation_bits=activation_bits,
        symmetric=automatic if details.grid == "automatic" else details.grid == "symmetric",
    )
    return Recipe(
        pruning, quantize, finetune_steps=details.finetune_steps, effort_seconds=details.effort_seconds
    )


def set_widgets(recipe: Recipe) -> tuple[str, ...]:
    """Sets every control so that ``recipe`` is read from them, or one as near as can be: says where it
    isn't."""
    prune, quantize = recipe.prune, recipe.quantize
    method = THRESHOLD if prune.threshold is not None else prune.method
    bits, percent = round(quantize.bits), min(round(100 * (prune.sparsity or 0)), MAX_PERCENT)
    threshold = min(prune.threshold or 0.0, MAX_THRESHOLD)
    possible = quantize.precision in precisions(environment())
    automatic = best_grid(quantize.method, bits) == quantize.symmetric
    values = {
        "method": method,
        "sparsity": percent,
        "threshold": threshold,
        "pattern": prune.pattern,
        "snap": prune.snap,
        "match": prune.match,
        "effort": float(recipe.effort_seconds),
        "finetune": float(recipe.finetune_steps),
        "bits": bits,
        "activations": quantize.activation_bits,
        "mixed": quantize.average_bits is not None,
        f"{method}_rounding": quantize.method,
        f"{quantize.method}_range": quantize.range,
        "granularity": quantize.granularity,
        "grid": "automatic" if automatic else "symmetric" if quantize.symmetric else "asymmetric",
        "equalise": quantize.equalise,
        "precision": quantize.precision if possible else "f32",
    }
    if prune.allocation in allocations(method):
        values[f"{method}_allocation"] = prune.allocation
    for key, value in values.items():
        st.session_state[key] = value
    asked = 100 * (prune.sparsity or 0)
    reported = {
        f"{asked:.6g} % sparsity, shown as {percent} %": abs(asked - percent) > 1e-9,
        f"a threshold of {prune.threshold or 0:.6g}, shown as {threshold:g}": threshold
        < (prune.threshold or 0),
        f"{quantize.bits:g} average bits, shown as {bits}": quantize.bits != bits,
        f"{PRECISIONS[quantize.precision]}, which this CPU does not support": not possible,
    }
    return tuple(words for words, differs in reported.items() if differs)


def with_defaults(recipe: Recipe) -> Recipe:
    """A canonical recipe as the sliders say it: what it leaves alone is as in a fresh visit."""
    quantize = recipe.quantize
    normal = replace(
        NORMAL.quantize,
        weight_bits=quantize.weight_bits,
        activation_bits=quantize.activation_bits,
        precision=quantize.precision,
    )
    return replace(
        recipe,
        prune=recipe.prune if recipe.prune.active else NORMAL.prune,
        quantize=quantize if quantize.integer else normal,
    )


def methods() -> dict[str, tuple[str, str]]:
    """Ways of pruning, each with its label and what it does: the usual first, a threshold after the plain."""
    found = {NORMAL.prune.method: ("", "")}  # keeps the first place
    for name, pruner in PRUNERS.items():
        found[name] = pruner.label, pruner.help
        if name == PLAIN:
            found[THRESHOLD] = "Threshold", "all with |w| ≤ t go."
    return found


def _methods_words() -> str:
    usual = NORMAL.quantize.method
    label = {pruner.name: pruner.label for pruner in PRUNERS.values() if pruner.rounding == usual}
    *others, last = (label[name] for name in methods() if name in label)
    rounding = f"{', '.join(others)} and {last}" if others else last
    words = " ".join(f"{label}: {does}" for label, does in methods().values())
    return f"{words} With {rounding}, {QUANTIZERS[usual].label} is the default rounding."


def pruner_of(method: str) -> PrunerInfo:
    return PRUNERS[PLAIN if method == THRESHOLD else method]


def allocations(method: str) -> tuple[str, ...]:
    """The ways of sharing a sparsity out over the layers that a method knows."""
    return () if method == THRESHOLD else pruner_of(method).allocations


def _amount(method: str, pruning: PruneSpec) -> PruneSpec:
    """The spec with how much it is to prune."""
    fixed = pruning.fixed_sparsity is not None
    if method == THRESHOLD:
        threshold = st.slider(
            "Threshold",
            0.0,
            MAX_THRESHOLD,
            0.0,
            0.002,
            format="|w| ≤ %.3f",
            **address.in_address("threshold"),
            help="Every weight of at most this magnitude is set to zero.",
        )
        return replace(pruning, threshold=threshold or None)
    shrinks = pruner_of(method).shrinks
    percent = st.slider(
        "Channels removed" if shrinks else "Sparsity",
        0,
        MAX_PERCENT,
        0,
        format="%d %%",
        **address.in_address("sparsity"),
        disabled=fixed,
        help="The share that goes of the channels that can: by sensitivity, of their multiply-accumulates."
        if shrinks
        else "The share of weights that is set to zero. An N:M pattern fixes it.",
    )
    return replace(pruning, sparsity=None if fixed else percent / 100 or None)


@dataclass(frozen=True, slots=True)
class Details:
    """What *More* says: how to prune and to round, without how much; whether ``mixed`` widths are to average
    to the slider's, and one of GRIDS."""

    pruning: PruneSpec
    rounding: QuantizeSpec
    mixed: bool
    grid: str
    effort_seconds: int
    finetune_steps: int


def _more(method: str, model: str) -> Details:
    """What most visitors leave as it is."""
    pruner = pruner_of(method)
    st.markdown("**Pruning**")
    pruning = {}
    if method == THRESHOLD:
        st.caption("A threshold leaves nothing to choose.")
    elif pruner.allocations:
        allocation = PRUNE_OPTIONS["allocation"]
        pruning["allocation"] = st.selectbox(
            allocation.label,
            pruner.allocations,
            index=pruner.allocations.index(pruner.allocation),
            **address.in_address(f"{method}_allocation", allocation.choices.__getitem__, pruner.allocations),
            help=allocation.help,
        )
    for name in pruner.options:
        if name != "pattern" or method != THRESHOLD:
            pruning[name] = _option(name, PRUNE_OPTIONS[name])
    effort = address.whole_number(
        "Best effort, seconds",
        (0, MAX_EFFORT_SECONDS),
        0,
        "effort",
        step=EFFORT_SECONDS,
        **consent.by_hand("effort"),
        help="Layers that were pruned, or rounded to 4 bits or fewer, are fitted once more to the inputs "
        "that they really get, then the network is distilled from the uncompressed one on unlabelled "
        "calibration images, for up to this many seconds. The best so far is kept. 0 turns it off.",
    )
    steps = address.whole_number(
        "Fine-tuning steps",
        (0, MAX_FINETUNE_STEPS),
        0,
        "finetune",
        step=50,
        **consent.by_hand("finetune"),
        help="A network that was pruned, or rounded to 4 bits or fewer, is distilled from the uncompressed "
        "one on unlabelled calibration images, without fitting layers first. The best so far is kept. "
        f"{_step_words(model)} 0 turns it off.",
    )
    st.markdown("**Quantization**")
    rounding = st.segmented_control(
        "Rounding",
        list(QUANTIZERS),
        default=pruner.rounding,
        required=True,
        **address.in_address(f"{method}_rounding", lambda name: QUANTIZERS[name].label, QUANTIZERS),
        help=" ".join(f"{one.label}: {one.help}" for one in QUANTIZERS.values()),
    )
    quantizer = QUANTIZERS[rounding]
    quantizing = {}
    mixed = st.toggle(
        "Mixed precision",
        **address.in_address("mixed"),
        help="The slider is then the average: layers that matter more get more bits, 2 to 8.",
    )
    if "granularity" in quantizer.options:
        quantizing["granularity"] = _option("granularity", QUANTIZE_OPTIONS["granularity"])
    asymmetric = [one for one in QUANTIZERS.values() if one.asymmetric_below]
    grid = st.segmented_control(
        "Grid",
        GRIDS,
        default="automatic",
        required=True,
        **address.in_address("grid", str.capitalize, GRIDS),
        help="Asymmetric grids have a zero point. Automatic takes one "
        + " or ".join(f"below {one.asymmetric_below} bits with {one.label}" for one in asymmetric)
        + ".",
    )
    if "range" in quantizer.options:
        ranges = sorted(RANGES, key=lambda name: name != NORMAL.quantize.range)
        quantizing["range"] = st.selectbox(
            QUANTIZE_OPTIONS["range"].label,
            ranges,
            index=ranges.index(quantizer.range),
            **address.in_address(f"{rounding}_range", QUANTIZE_OPTIONS["range"].choices.__getitem__, ranges),
            help=QUANTIZE_OPTIONS["range"].help,
        )
    precision = _precision()
    if "equalise" in quantizer.options:
        quantizing["equalise"] = _option("equalise", QUANTIZE_OPTIONS["equalise"])
    return Details(
        PruneSpec(pruner.name, **pruning),
        QuantizeSpec(rounding, precision=precision, **quantizing),
        mixed,
        grid,
        effort,
        steps,
    )


def _option(key: str, option: Option) -> Any:
    """A switch for yes or no, buttons for few choices, a menu for many."""
    values, label = list(option.choices), option.choices.__getitem__
    words = option.help or None
    if values == [False, True]:
        return st.toggle(option.label, **address.in_address(key), help=words)
    kept = {**address.in_address(key, label, values), "help": words}
    if len(values) <= MAX_BUTTONS:
        return st.segmented_control(option.label, values, default=option.default, required=True, **kept)
    return st.selectbox(option.label, values, values.index(option.default), **kept)


def _step_words(model: str) -> str:
    """What a step takes: as it was measured of this model on this machine, or about."""
    seconds = step_time(model)
    if seconds is None:
        return (
            "A step takes a few hundredths of a second for thumbnails, about half a second for photographs."
        )
    took = f"A step took {significant(seconds, 2)} s for this model here"
    return f"{took}, so 500 take {consent.in_words(500 * seconds)}."


def _precision() -> str:
    """What layers compute in; only what this CPU has instructions for can be chosen."""
    possible = precisions(environment())
    st.markdown("**Kernels**")
    chosen: str = st.segmented_control(
        "Compute precision",
        possible,
        default="f32",
        required=True,
        **address.in_address("precision", PRECISIONS.__getitem__, possible),
        help="What layers compute in where they have no int8 kernels. The baseline stays in float32.",
    )
    for name in PRECISIONS:
        if name not in possible:
            st.caption(f"Not on this CPU: {PRECISIONS[name]}, which needs {' or '.join(COMPUTES[name])}.")
    return chosen
