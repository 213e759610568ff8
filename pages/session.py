"""What a visit knows beside its widgets: one value for each browser session. (Not a page.)

Widgets keep their own keys in ``st.session_state``; everything else that pages remember is a field here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from optimizer.recipe import NORMAL, Recipe
from optimizer.records import DataSpec, ModelCard, Settings
from optimizer.system.process_pool import Job

KEY = "session"


@dataclass(frozen=True, slots=True)
class Notice:
    """Words that are shown for some seconds in a corner of the page, with a Material icon's name."""

    words: str
    icon: str


@dataclass(frozen=True, slots=True)
class SidebarChoice:
    """What the sidebar says: every page works on it.

    ``problem`` says why it can't be measured yet; ``images_refused`` whether that is an error in the images,
    in whose place ``data`` has the bundled ones, and ``lacks_images`` whether the model is ready and none are
    chosen.
    """

    card: ModelCard
    data: DataSpec
    engine: str
    settings: Settings
    problem: str = ""
    images_refused: bool = False
    lacks_images: bool = False


@dataclass(slots=True)
class Session:
    """``recipe`` is what the sliders ask for, with the layer overrides of ``model``; ``linked_recipe`` what a
    link brought that the sliders are yet to be set to, and ``from_link`` that one did.

    ``pins`` are keys of results. Of jobs by their keys: ``asked`` is the position of the sliders, ``stopped``
    are those that this visitor stopped and has not asked for again, ``shown`` those that the page shows,
    ``ahead`` those of the positions beside that one, once asked for. ``asked_at`` is when the sliders came to
    it, in seconds of the monotonic clock, and ``seen_at`` when its result was there, 0 before; ``marked`` is
    the result that Explore's charts mark.
    ``chosen`` is a model that the sidebar is yet to be set to, and ``chosen_images`` a folder of images, with
    what was uploaded beside those and left out, in words, as ``images_left_out``; ``images_removed`` says
    that the chosen ones were removed. ``upload`` is the file that lies in the uploader, by Streamlit's name
    and by ours, or "" and the id on the hub that is given in its place, after ``uploads`` that became models,
    and ``image_uploads`` that became sets of images; ``trial`` is the key of the job that tries its
    preprocessing; ``adding`` are the jobs that make models for this visitor, until they are told what came of
    each, with what its file is called here, or its id on the hub; ``notices`` are shown once a page is drawn;
    ``kept_uploads`` are where those of Compare lie, by Streamlit's names.
    ``swept`` is the result of a sweep that was clicked, ``extends`` the sweep that the controls are to
    extend.
    ``usual_goal`` is what a search is to optimise for, as the limits given last suggest.
    ``page`` is the address of the page that was drawn last.
    ``linked`` is what the address said when the visit began, until the controls were compared with it;
    ``in_address`` says by the keys of controls what their values are called there.
    ``wanted`` is the largest value of each control of long work that the visitor set or agreed to.
    """

    selection: SidebarChoice | None = None
    address_read: bool = False
    page: str | None = None
    model: str = ""
    recipe: Recipe = NORMAL
    linked_recipe: Recipe | None = None
    from_link: bool = False
    pins: tuple[str, ...] = ()
    preset: Job | None = None
    asked: str = ""
    asked_at: float = 0.0
    seen_at: float = 0.0
    marked: str = ""
    ahead: frozenset[str] | None = None
    stopped: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)
    linked: dict[str, tuple[str, ...]] = field(default_factory=dict)
    in_address: dict[str, Callable[[Any], str]] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)
    bundled_images: bool | None = None
    layer_edits: int = 0
    chosen: str = ""
    chosen_images: str = ""
    images_left_out: str = ""
    images_removed: bool = False
    upload: tuple[str, str] = ("", "")
    adding: list[tuple[Job, str]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    uploads: int = 0
    image_uploads: int = 0
    kept_uploads: dict[str, str] = field(default_factory=dict)
    swept: str = ""
    extends: int | None = None
    trial: str = ""
    usual_goal: str = ""


def session() -> Session:
    """The visit of this script run."""
    if KEY not in st.session_state:
        st.session_state[KEY] = Session()
    found: Session = st.session_state[KEY]
    return found
