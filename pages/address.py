"""What a page's address holds, so that a link restores it: controls, recipe, layers, pins. (Not a page.)"""

import json
from dataclasses import replace
from typing import Any

import streamlit as st

from optimizer.errors import InputError
from optimizer.recipe import NORMAL, Override, Recipe, steps_of_seconds
from pages.tasks import errors_in_words


def in_address(key: str) -> dict[str, Any]:
    """Arguments of a widget whose value is kept in the page's address, so that a link restores it."""
    return {"key": key, "bind": "query-params"}


def take_earlier_budget() -> None:
    """``training=`` of an older link, a budget in seconds, as ``finetune=``, in steps; before that control is
    drawn."""
    seconds = st.query_params.pop("training", None)
    if seconds is None or "finetune" in st.query_params:
        return
    with errors_in_words():
        try:
            steps = steps_of_seconds(float(seconds))
        except ValueError as error:
            raise InputError(
                "the link's training= is not a number of seconds: give finetune=, a number of steps"
            ) from error
        st.session_state["finetune"] = steps
        st.toast(
            f"This link's fine-tuning budget was in seconds: it is read as {steps:,} steps.",
            icon=":material/info:",
        )


def pin(key: str) -> None:
    """Add a result to Compare's list, which lives in the address of that page."""
    pinned = st.session_state.setdefault("pinned", [])
    if key not in pinned:
        pinned.append(key)
    st.toast(f"Pinned: {len(pinned)} configurations wait under Compare.", icon=":material/keep:")


def way() -> Recipe:
    """How the sliders say to prune and round, for pages without sliders: from the visit or from a link, and
    in the address, so that a link restores it."""
    kept: Recipe | None = st.session_state.get("way")
    if kept is None:  # a link brought it
        kept = NORMAL
        with errors_in_words():
            if "recipe" in st.query_params:
                kept = replace(Recipe.from_json(st.query_params["recipe"]), layers=())
                st.session_state["way of link"] = kept
        st.session_state["way"] = kept
    plain = replace(kept, layers=())
    if plain == NORMAL:
        st.query_params.pop("recipe", None)
    else:
        st.query_params["recipe"] = json.dumps(plain.differences(), separators=(",", ":"))
    return kept


def overrides(model: str) -> tuple[Override, ...]:
    """The layers of a model that have something to themselves: kept for the visit, and in the address."""
    kept = st.session_state.get("overrides")
    if kept is None:  # a link brought them
        text = st.query_params.get("layers", "[]")
        with errors_in_words():
            kept = (model, Recipe.from_json(f'{{"layers": {text}}}').layers)
    named, found = kept or (model, ())
    set_overrides(model, found if named == model else ())
    return found if named == model else ()


def set_overrides(model: str, layers: tuple[Override, ...]) -> None:
    st.session_state["overrides"] = (model, layers)
    if layers:
        given = [
            {field: value for field, value in override.items() if value is not None}
            for override in Recipe(layers=layers).to_dict()["layers"]
        ]
        st.query_params["layers"] = json.dumps(given, separators=(",", ":"))
    else:
        st.query_params.pop("layers", None)
