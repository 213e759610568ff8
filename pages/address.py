"""What a page's address holds, so that a link or a reload restores it. (Not a page.)

Widgets whose values are bound to the address (:func:`in_address`) are restored by Streamlit. The recipe for
pages without sliders, the layer overrides and the pins are read once a visit and written after every run.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import streamlit as st

from optimizer.errors import InputError, ParetoscopeError
from optimizer.formats import count
from optimizer.methods.pruners import PRUNE_OPTIONS, PRUNERS
from optimizer.methods.quantizers import QUANTIZE_OPTIONS, QUANTIZERS
from optimizer.recipe import NORMAL, Recipe, steps_of_seconds
from pages.session import Notice, session

T = TypeVar("T")
MAX_PINS = 64
"""In an address: so many take 1,350 of the 2,000 characters that every program passes on. A result's key is
shorter than any recipe, and says which of several measurements of one recipe is meant."""
KEY = re.compile(r"[0-9a-f]{20}")
SEPARATOR = "."
"""Of pins: it needs no escape in an address, as a comma does."""
MAX_TOLD = 80
"""Characters of each thing of an address that is said."""
EARLIER_PINS = "configurations"
"""As links to Compare once named them, one key each."""


def in_address(
    key: str, words: Callable[[Any], str] | None = None, names: Collection[object] = ()
) -> dict[str, Any]:
    """Arguments of a widget whose value is kept in the page's address, so that a link restores it; with what
    its options are in ``words``, which the address says too. It may also say one of their ``names``, as the
    command line does (``engine=sparse``), or what they were once called: it is then put into words."""
    session().in_address[key] = words or str
    text = st.query_params.get(key, "")
    if words and text and key not in st.session_state:
        name = earlier_names().get(key, {}).get(text, text)
        if name in names and text != words(name):
            st.query_params[key] = words(name)
            st.rerun()
    return {"key": key, "bind": "query-params", **({"format_func": words} if words else {})}


def whole_number(
    label: str, bounds: tuple[int, int], value: int, key: str, *, step: int = 1, **more: Any
) -> int:
    """A control of a whole number from ``bounds[0]`` to ``bounds[1]``, kept in the page's address.

    It is drawn as one of floats: one of ints fails at an address that says infinity, before it looks at its
    limits (Streamlit 1.67).
    """
    low, high = map(float, bounds)
    number = st.number_input(
        label, low, high, float(value), float(step), format="%.0f", **in_address(key), **more
    )
    return int(number)


def choice(label: str, words: Mapping[T, str], default: T, key: str, **more: Any) -> T:
    """A control of one of several options, each in its ``words``, kept in the page's address."""
    chosen: T = st.segmented_control(
        label,
        list(words),
        default=default,
        required=True,
        **in_address(key, words.__getitem__, words),
        **more,
    )
    return chosen


def pills(
    label: str,
    options: Sequence[T],
    default: Collection[T],
    key: str,
    words: Callable[[T], str] = str,
    help: str | None = None,
) -> list[T]:
    """A control of several options, kept in the page's address; those of ``default`` to begin with."""
    return st.pills(
        label,
        options,
        selection_mode="multi",
        default=[one for one in options if one in default],
        wrap=True,
        help=help,
        **in_address(key, words),
    )


def note() -> None:
    """Remember what the address asks for, at the first run of a visit, before a control is drawn: Streamlit
    drops from it what the control can't be set to."""
    visit = session()
    if not visit.address_read:
        visit.linked = {name: tuple(st.query_params.get_all(name)) for name in st.query_params}


def read(model: str, page: str) -> None:
    """Take over what the address says, at the first run of a visit; later the address follows the visit, but
    for the recipe of Explore, ``page`` "", where the browser's Back or Forward led there.

    What is malformed is said and left out. Layer overrides are of the model that comes with them, which the
    address may have named, and go with it: to the ``model`` that is chosen, or not at all.
    """
    visit = session()
    entered, visit.page = visit.page != page, page
    if not visit.address_read:
        linked = visit.linked.get("model", ("",))[-1]
        apart = linked not in ("", model) and not visit.model  # which a result that is opened has set
        visit.address_read, visit.model = True, model
        for words, part in PARTS.items():
            _said(words, part)
        if apart and visit.recipe.layers:
            visit.model = linked
            _tell(LAYERS_LEFT_OUT, f"they are of {linked[:80]!r}, which is not among the models here")
    elif entered and not page and "recipe" in st.query_params and visit.linked_recipe is None:
        for words in (RECIPE_LEFT_OUT, LAYERS_LEFT_OUT):
            _said(words, PARTS[words])
        st.rerun()  # in the run in which a page is entered Streamlit sets controls by the address alone
    if visit.model != model:
        visit.model, visit.recipe = model, replace(visit.recipe, layers=())


def tell_left_out(sliders: bool) -> None:
    """Say once, when a page was drawn, which settings of the link its controls were not set to, and what they
    are set to instead; of one without ``sliders``, which are theirs."""
    visit = session()
    linked, visit.linked = visit.linked, {}
    if not linked or "open" in linked:  # a result, which sets them all
        return
    earlier, wrong = earlier_names(), []
    for name, words in visit.in_address.items():
        asked = [text for text in linked.get(name, ()) if text and text not in earlier.get(name, {})]
        if not asked or name not in st.session_state:  # as of a control of a page that was left
            continue
        value = st.session_state[name]
        values = value if isinstance(value, list) else [value] * (value is not None)
        shown = list(map(words, values))
        known = (*shown, *map(str, values))
        if missing := [text for text in asked if not _among(text, known)]:
            instead = ", ".join(shown) or "nothing"
            verb = "are" if len(shown) > 1 else "is"
            wrong.append(f"{name}={', '.join(missing)[:MAX_TOLD]} ({instead[:MAX_TOLD]} {verb} shown)")
    if wrong:
        _tell(SETTINGS_LEFT_OUT, ", ".join(wrong))
    unknown = sorted(linked.keys() - names() - visit.in_address.keys())
    # Beside a recipe they are what Explore left there when the visitor went on from it.
    apart = not sliders and "recipe" not in linked
    theirs = sorted(linked.keys() & slider_names()) if apart else []
    for why, left_out in ((UNKNOWN, unknown), (SLIDERS_ALONE, theirs)):
        if left_out:
            _tell(why, ", ".join(left_out)[:MAX_TOLD])
        for name in left_out:  # else it is told again whenever the page is loaded anew
            st.query_params.pop(name, None)


def names() -> set[str]:
    """All that an address may say, on whichever page."""
    return {*SETTINGS, *NO_CONTROLS, *slider_names()}


def slider_names() -> set[str]:
    """The keys of controls that only Explore has: those of a recipe."""
    return {
        *SLIDERS,
        *PRUNE_OPTIONS,
        *QUANTIZE_OPTIONS,
        *(f"{method}_{what}" for method in (*PRUNERS, "threshold") for what in ("allocation", "rounding")),
        *(f"{rounding}_range" for rounding in QUANTIZERS),
    }


def write(sliders: bool) -> None:
    """Put the visit's recipe, layer overrides and pins into the address of the page that was drawn.

    A page with ``sliders`` has their values in its address already. Sliders that a link's recipe set are the
    exception: Streamlit writes them when they are moved.
    """
    visit = session()
    plain_recipe = replace(visit.recipe, layers=())
    named = plain_recipe != NORMAL and (visit.from_link or not sliders)
    overrides = [
        {field: value for field, value in override.items() if value is not None}
        for override in Recipe(layers=visit.recipe.layers).to_dict()["layers"]
    ]
    put("recipe", _compact(plain_recipe.differences()) if named else "")
    put("layers", _compact(overrides) if overrides else "")
    put("pins", SEPARATOR.join(visit.pins))
    put(EARLIER_PINS, "")


def put(name: str, text: str) -> None:
    """Have the address say something else than before, or nothing.

    What changes nothing is not written: whatever is written replaces the browser's whole address by the one
    that came with the visitor's click, which the browser may have sent before it put the new value of a
    control into it (Streamlit 1.67).
    """
    if not text:
        st.query_params.pop(name, None)
    elif st.query_params.get(name) != text:
        st.query_params[name] = text


def pin(key: str) -> None:
    """Add a result to Compare's list."""
    visit = session()
    if key not in visit.pins and len(visit.pins) == MAX_PINS:
        st.toast(f"{MAX_PINS} are pinned, which is all: drop one under Compare.", icon=":material/info:")
        return
    visit.pins = tuple(dict.fromkeys((*visit.pins, key)))
    st.toast(f"Pinned: {count(len(visit.pins), 'configuration')} under Compare.", icon=":material/keep:")


def _read_recipe() -> None:
    if text := st.query_params.get("recipe"):
        visit = session()
        visit.recipe = visit.linked_recipe = replace(Recipe.from_json(text), layers=())
        visit.from_link = True


def _read_layers() -> None:
    if text := st.query_params.get("layers"):
        layers = Recipe.from_json(f'{{"layers": {text}}}').layers
        session().recipe = replace(session().recipe, layers=layers)


def _read_pins() -> None:
    named = [*st.query_params.get("pins", "").split(SEPARATOR), *st.query_params.get_all(EARLIER_PINS)]
    keys = list(dict.fromkeys(filter(None, named)))
    good = [key for key in keys if KEY.fullmatch(key)]
    session().pins = tuple(good[:MAX_PINS])
    if len(good) < len(keys):
        raise InputError(f"a pin is the key of a result, and {len(keys) - len(good):,} of them can't be one")
    if len(good) > MAX_PINS:
        raise InputError(f"an address holds {MAX_PINS} pins, and there are {len(good):,}")


def _read_earlier_budget() -> None:
    """``training=`` of an older link, a budget in seconds, as ``finetune=``, in steps; before that control is
    drawn."""
    seconds = st.query_params.pop("training", None)
    if seconds is None or "finetune" in st.query_params:
        return
    try:
        steps = steps_of_seconds(float(seconds))
    except ValueError as error:
        raise InputError("training= is not a number of seconds: give finetune=, a number of steps") from error
    st.session_state["finetune"] = float(steps)
    st.toast(
        f"This link's fine-tuning budget was in seconds: it is read as {steps:,} steps.",
        icon=":material/info:",
    )


def earlier_names() -> dict[str, dict[str, str]]:
    """By the key of a control: values by the names that they once had."""
    methods = ("compensated", "magnitude", "channels")
    allocations = {
        f"{method}_allocation": {
            name: value for name, value in EARLIER_ALLOCATIONS.items() if value in PRUNERS[method].allocations
        }
        for method in methods
    }
    roundings = {f"{method}_rounding": EARLIER_ROUNDINGS for method in (*methods, "threshold")}
    ranges = {f"{rounding}_range": EARLIER_RANGES for rounding in ("nearest", "compensated")}
    return EARLIER_LABELS | allocations | roundings | ranges


EARLIER_ALLOCATIONS = {
    "by measured effect": "measured",
    "by magnitude": "global",
    "by relative magnitude": "normalised",
    "the same in each layer": "uniform",
}
EARLIER_ROUNDINGS = {"to nearest": "nearest", "compensated": "compensated"}
EARLIER_RANGES = {"least squares": "mse", "largest |w|": "absmax", "99.9th percentile": "percentile"}
EARLIER_LABELS = {
    "method": {"Compensated": "compensated"},
    "granularity": {"a tensor": "tensor", "a channel": "channel", "a group": "group"},
}

SLIDERS = frozenset(
    (
        *("method", "sparsity", "threshold", "bits", "activations", "mixed", "grid", "precision"),
        *("effort", "finetune"),
    )
)
"""The keys of Explore's controls, but for those that are a method's own."""
SETTINGS = frozenset(
    (
        *("model", "engine", "timed_threads", "images", "calibration", "class_index", "limit"),
        *("layer", "of", "metric", "view", "family", "removed"),
        *("full", "complexity_full"),
        *("what", "batches", "threads", "streams", "limit_ms", "rates"),
        *("ask", "find_drop", "find_sqnr", "find_ms", "find_ratio", "find_mb"),
        *("find_minimise", "find_seconds", "find_engines"),
        *("sweep_method", "sweep_shares", "sweep_bits", "sweep_engines", "sweep_activations"),
        *("sweep_frontier_only", "sweep_on"),
    )
)
"""The keys of the other controls, on all pages."""
NO_CONTROLS = frozenset(
    (
        *("recipe", "layers", "pins", "configurations", "open", "training", "sweep", "sweep_against"),
        *("against", "times", "files", "preset"),
    )
)
"""What else an address says, and said."""
UNKNOWN = "This link says what no page has a setting for"
SLIDERS_ALONE = "Only Explore has these settings of this link"
SETTINGS_LEFT_OUT = "Settings of this link are left out"
RECIPE_LEFT_OUT = "The recipe of this link is left out"
LAYERS_LEFT_OUT = "The layer overrides of this link are left out"
PARTS: dict[str, Callable[[], None]] = {
    RECIPE_LEFT_OUT: _read_recipe,
    LAYERS_LEFT_OUT: _read_layers,
    "Some pins of this link are left out": _read_pins,
    "The fine-tuning of this link is left out": _read_earlier_budget,
}
"""What is said where a part can't be read, and what reads it."""


def _said(words: str, part: Callable[[], None]) -> None:
    try:
        part()
    except ParetoscopeError as error:
        _tell(words, str(error))


def _tell(words: str, problem: str) -> None:
    """Once the page is drawn: a run that ends before would take the words along, and the next has nothing
    left to complain of."""
    session().notices.append(Notice(f"{words}: {problem}.", "error"))


def _among(text: str, shown: Collection[str]) -> bool:
    """Whether a control shows what an address asks for, where 5 and 5.0 are the same."""
    number = _number(text)
    return any(text.casefold() == one.casefold() or number == _number(one) for one in shown)


def _number(text: str) -> float:
    with suppress(ValueError):
        return float(text)
    return float("nan")  # which equals nothing


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
