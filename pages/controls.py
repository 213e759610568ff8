"""Controls of Explore that say a recipe: drawn, read, and set to one. (Not a page.)"""

from dataclasses import dataclass, replace

import streamlit as st

from optimizer.compression.step_time import step_time
from optimizer.recipe import (
    ACTIVATION_BITS,
    EFFORTS,
    GRANULARITIES,
    MAX_FINETUNE_STEPS,
    NORMAL,
    PATTERNS,
    PRECISIONS,
    ROUNDING,
    SNAPS,
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
METHODS = {
    "compensated": "Compensated",
    "magnitude": "Magnitude",
    "threshold": "Threshold",
    "channels": "Channels",
}
ALLOCATION_WORDS = {
    "measured": "by measured effect",
    "global": "by magnitude",
    "normalised": "by relative magnitude",
    "uniform": "the same in each layer",
}
RANGE_WORDS = {"mse": "least squares", "absmax": "largest |w|", "percentile": "99.9th percentile"}
GRIDS = ("automatic", "symmetric", "asymmetric")


def read_recipe(model: str) -> Recipe:
    """The recipe under the sliders for a model. Each has a default that works; the rest is behind *More*."""
    mode, prune, bits, activations, more = st.columns([6, 8, 8, 6, 4], vertical_alignment="bottom")
    with mode:
        method = st.selectbox(
            "Method",
            list(METHODS),
            **address.in_address("method"),
            format_func=METHODS.__getitem__,
            help="Compensated: calibration images tell which weights matter, and those that stay make up for "
            "those that go. Magnitude: the smallest weights go; no images needed. Threshold: all with "
            "|w| ≤ t go. Channels: whole channels go, and a smaller network that runs faster everywhere is "
            "left. Compensated and Channels also round so that later weights make up for earlier ones.",
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
    return Recipe(pruning, quantize, finetune_steps=details.finetune_steps)


def set_widgets(recipe: Recipe) -> tuple[str, ...]:
    """Sets every control so that ``recipe`` is read from them, or one as near as can be: says where it
    isn't."""
    prune, quantize = recipe.prune, recipe.quantize
    method = "threshold" if prune.threshold is not None else prune.method
    bits, percent = round(quantize.bits), min(round(100 * (prune.sparsity or 0)), MAX_PERCENT)
    threshold = min(prune.threshold or 0.0, MAX_THRESHOLD)
    possible = quantize.precision in precisions(environment())
    automatic = best_grid(quantize.method, bits) == quantize.symmetric
    values = {
        "method": method,
        "sparsity": percent,
        "threshold": threshold,
        "pattern": prune.pattern,
        "effort": prune.effort,
        "snap": prune.snap,
        "match": prune.match,
        "finetune": recipe.finetune_steps,
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
        f"{quantize.bits:g} bits on average, shown as {bits}": quantize.bits != bits,
        f"{PRECISIONS[quantize.precision]}, which this CPU has not": not possible,
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


def allocations(method: str) -> list[str]:
    """The ways of sharing a sparsity out over the layers that a method knows."""
    if method == "threshold":
        return []
    return ["measured", "uniform"] if method == "channels" else list(ALLOCATION_WORDS)


def _amount(method: str, pruning: PruneSpec) -> PruneSpec:
    """The spec with how much it is to prune."""
    fixed = pruning.fixed_sparsity is not None
    if method == "threshold":
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
    percent = st.slider(
        "Channels removed" if method == "channels" else "Sparsity",
        0,
        MAX_PERCENT,
        0,
        format="%d %%",
        **address.in_address("sparsity"),
        disabled=fixed,
        help="The share of channels that go, of those that can."
        if method == "channels"
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
    finetune_steps: int


def _more(method: str, model: str) -> Details:
    """What most visitors leave as it is."""
    pattern, allocation, effort, snap, match = "unstructured", "global", "fast", 1, False
    st.markdown("**Pruning**")
    if method == "threshold":
        st.caption("A threshold leaves nothing to choose.")
    else:
        ways = allocations(method)
        allocation = st.selectbox(
            "Shared out over the layers",
            ways,
            index=ways.index("global" if method == "magnitude" else "measured"),
            **address.in_address(f"{method}_allocation"),
            format_func=ALLOCATION_WORDS.__getitem__,
        )
    if method == "channels":
        snap = st.segmented_control(
            "Channels left are a multiple of",
            SNAPS,
            default=1,
            required=True,
            **address.in_address("snap"),
            help="One channel past a multiple of 16 can cost more time than it saves.",
        )
    elif method != "threshold":
        pattern = st.selectbox(
            "Pattern",
            PATTERNS,
            **address.in_address("pattern"),
            help="N:M keeps N of every M inputs in a row, as sparse tensor cores want it. Blocks are "
            "outputs × inputs that go together.",
        )
    if method == "compensated":
        effort = st.segmented_control(
            "Effort",
            EFFORTS,
            default="fast",
            required=True,
            **address.in_address("effort"),
            format_func=str.capitalize,
            help="Best searches longer for which weights to keep: several times the seconds.",
        )
    else:
        match = st.toggle(
            "Match outputs to the whole network's",
            **address.in_address("match"),
            help="On calibration images, each channel gets the mean and variance back that it had: what "
            "taking batch norm's statistics anew does. Kept only where it brings the answers closer.",
        )
    steps = st.number_input(
        "Fine-tuning steps",
        0,
        MAX_FINETUNE_STEPS,
        0,
        50,
        **address.in_address("finetune"),
        **consent.by_hand("finetune"),
        help="The pruned network learns to answer as the uncompressed one, on unlabelled calibration images; "
        f"the best so far is kept. {_step_words(model)} 0 does none.",
    )
    st.markdown("**Rounding**")
    by_method = "nearest" if method in ("magnitude", "threshold") else "compensated"
    rounding = st.segmented_control(
        "Weights are rounded",
        ROUNDING,
        default=by_method,
        required=True,
        **address.in_address(f"{method}_rounding"),
        format_func={"nearest": "to nearest", "compensated": "compensated"}.__getitem__,
    )
    mixed = st.toggle(
        "Widths differ by layer",
        **address.in_address("mixed"),
        help="The slider is then the average: layers that matter more get more bits, 2 to 8.",
    )
    granularity = st.segmented_control(
        "One grid",
        GRANULARITIES,
        default="channel",
        required=True,
        **address.in_address("granularity"),
        format_func="a {}".format,
    )
    grid = st.segmented_control(
        "Grid",
        GRIDS,
        default="automatic",
        required=True,
        **address.in_address("grid"),
        format_func=str.capitalize,
        help="Asymmetric grids have a zero point. Automatic takes one below 8 bits when compensated.",
    )
    range_ = st.selectbox(
        "Range of a grid",
        list(RANGE_WORDS),
        index=0 if rounding == "compensated" else 1,
        **address.in_address(f"{rounding}_range"),
        format_func=RANGE_WORDS.__getitem__,
    )
    precision = _precision()
    equalise = rounding == "nearest" and st.toggle(
        "Equalise channels across layers",
        **address.in_address("equalise"),
        help="A channel gets one range in the layer that makes it and the one that reads it, where only ReLU "
        "or pooling stands between; of most use with one grid a tensor.",
    )
    return Details(
        PruneSpec(
            "magnitude" if method == "threshold" else method,
            allocation=allocation,
            pattern=pattern,
            effort=effort,
            snap=snap,
            match=match,
        ),
        QuantizeSpec(
            rounding,
            granularity=granularity,
            range=range_,
            equalise=equalise,
            precision=precision,
        ),
        mixed=mixed,
        grid=grid,
        finetune_steps=int(steps),
    )


def _step_words(model: str) -> str:
    """What a step takes: as it was measured of this model on this machine, or about."""
    seconds = step_time(model)
    if seconds is None:
        return "A step takes a few hundredths of a second for thumbnails, about a second for photographs."
    return f"A step took {seconds:.2g} s for this model here, so 500 take {500 * seconds / 60:.2g} minutes."


def _precision() -> str:
    """What layers compute in; only what this CPU has instructions for can be chosen."""
    possible = precisions(environment())
    st.markdown("**Kernels**")
    chosen: str = st.segmented_control(
        "Computed in",
        possible,
        default="f32",
        required=True,
        **address.in_address("precision"),
        format_func=PRECISIONS.__getitem__,
        help="What layers compute in where they have no int8 kernels. The baseline stays in float32.",
    )
    for name in PRECISIONS:
        if name not in possible:
            st.caption(f"Not on this CPU: {PRECISIONS[name]}, which needs {' or '.join(COMPUTES[name])}.")
    return chosen
