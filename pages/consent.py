"""Long work that only an address asks for: it waits until the visitor wants it. (Not a page.)

What visitors set themselves starts at once: the controls that can ask for long work tell so, by
:func:`by_hand`. What a link brought along moves no control by hand, however it got there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from optimizer.compression.step_time import step_time
from optimizer.records import DataSpec, ModelCard, Request
from pages.session import session

LONG_SECONDS = 20.0
"""Work that is expected to take longer is long."""
IMAGE_SECONDS = 0.02
"""What reading and evaluating a photograph takes, about: 1,000 of them, the limit to begin with, are not
long."""
MEASURE_SECONDS = 3.0
"""What measuring a configuration takes beside its images, about."""
STEP_SECONDS = {"thumbnail": 0.06, "photograph": 0.5}
"""What a fine-tuning step takes on two cores where none was measured yet, about."""
THUMBNAIL_PIXELS = 64
"""Height and width of the largest image that is one."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a control asks for: its value, and in words, and about how many seconds that takes."""

    control: str
    value: int
    words: str
    seconds: float


def by_hand(control: str) -> dict[str, Any]:
    """Arguments of a widget that can ask for long work: moving it says that the work is wanted."""
    return {"on_change": _want_what_stands, "args": (control,)}


def step_seconds(card: ModelCard) -> float:
    """Seconds that a fine-tuning step takes: as measured here, or about."""
    size = "thumbnail" if max(card.input_shape[-2:]) <= THUMBNAIL_PIXELS else "photograph"
    return step_time(card.name) or STEP_SECONDS[size]


def images(data: DataSpec) -> tuple[Work, ...]:
    """What evaluating images of one's own takes; the bundled ones are no work to speak of."""
    if data.path is None:
        return ()
    return (Work("limit", data.limit, f"up to {data.limit:,} images", data.limit * IMAGE_SECONDS),)


def work_of(request: Request, card: ModelCard) -> tuple[Work, ...]:
    """What a request can take long for."""
    recipe = request.recipe
    if not recipe.learns:
        return images(request.data)
    seconds, steps = recipe.effort_seconds, recipe.finetune_steps
    return (
        Work("effort", seconds, f"{seconds} seconds of best effort", seconds),
        Work("finetune", steps, f"{steps:,} fine-tuning steps", steps * step_seconds(card)),
        *images(request.data),
    )


def seconds_of(requests: Sequence[Request], each: float | None, card: ModelCard) -> float:
    """What measuring all of them takes, about: ``each`` as long as others did lately, where that is known."""
    if each is None:
        each = MEASURE_SECONDS + (
            requests[0].data.limit * IMAGE_SECONDS if requests and requests[0].data.path else 0
        )
    return len(requests) * each + training(requests, card)[1]


def training(requests: Sequence[Request], card: ModelCard) -> tuple[int, float]:
    """How many networks that learn the requests need, each trained once, and about how many seconds that
    takes."""
    learning = {one.recipe.learnt for one in requests if one.recipe.learns}
    step = step_seconds(card) if learning else 0.0
    return len(learning), sum(one.effort_seconds + one.finetune_steps * step for one in learning)


def waiting(work: Sequence[Work]) -> list[Work]:
    """The long work among it that this visitor has not asked for."""
    wanted = session().wanted
    return [one for one in work if one.seconds > LONG_SECONDS and one.value > wanted.get(one.control, 0)]


def held_back(work: Sequence[Work], key: str = "") -> bool:
    """Whether there is such work. It is told then, with a button that starts it; ``key`` tells the buttons of
    a page apart."""
    asked = waiting(work)
    if not asked:
        return False
    words = " and ".join(one.words for one in asked)
    took = in_words(sum(one.seconds for one in work))
    st.info(
        f"This link asks for {words}, which can take {took} here. That starts when you say so.",
        icon=":material/pan_tool:",
    )
    if st.button("Start", type="primary", icon=":material/play_arrow:", key=f"start {key}"):
        for one in asked:
            _want(one.control, one.value)
        st.rerun()
    return True


def in_words(seconds: float) -> str:
    """About how long: in seconds up to two minutes, in minutes beyond."""
    return f"about {seconds:.0f} seconds" if seconds < 120 else f"about {seconds / 60:,.0f} minutes"


def _want_what_stands(control: str) -> None:
    _want(control, int(st.session_state[control] or 0))


def _want(control: str, value: int) -> None:
    """Up to that value, for the rest of the visit."""
    wanted = session().wanted
    wanted[control] = max(value, wanted.get(control, 0))
