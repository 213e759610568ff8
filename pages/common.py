"""The pieces that pages share: the pool and the store, the sidebar, and how results are shown."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import streamlit as st
from streamlit.navigation.page import Page

from optimizer.environment import describe, environment
from optimizer.errors import ParetoscopeError
from optimizer.executors import Job, Pool
from optimizer.export import EXPORTERS, MODEL_FILES, chrome, file_name
from optimizer.figures import alternative, figure
from optimizer.folders import allowed_roots, check_allowed, image_folders
from optimizer.headline import Headline, Mood
from optimizer.keys import request_key
from optimizer.marks import Lines, Stacks
from optimizer.metrics import format_bytes
from optimizer.recipe import NORMAL, Override, Recipe
from optimizer.records import DataSpec, ModelCard, Request, Result
from optimizer.resources import asset
from optimizer.store import Store
from optimizer.summary import Summary
from optimizer.sweep import STARTER_BITS, STARTER_SPARSITIES, grid
from optimizer.theme import ENGINE_LABELS
from optimizer.work import TARGET, Catalogue

T = TypeVar("T")
POLL_SECONDS = 0.25
INTERACTIVE, BACKGROUND = 0, 10
"""Priorities: what a slider asks for goes before what a sweep asks for."""

FIRST_MODEL = "fashion-resnet"
ENGINE_WORDS = {
    "openvino": "int8 where weights and activations have 8 bits; zeros take as long",
    "onnxruntime": "int8 by its own kernels; zeros take as long",
    "sparse": "skips zeros, layer by layer where that is faster; float32",
    "compile": "kernels compiled for this network, in up to a minute; int8 only simulated",
    "torch": "the reference; int8 only simulated; zeros take as long",
}
"""What is special about each engine, in one short phrase."""

BUNDLED = "bundled test images"
Colour = Literal["red", "orange", "green", "violet", "gray"]
BADGE_COLOURS: dict[str, Colour] = {
    "measured": "green",
    "simulated": "orange",
    "noisy": "red",
    "preliminary": "gray",
    "other machine": "violet",
}


@dataclass(frozen=True, slots=True)
class Selection:
    """What the sidebar says: every page works on it. ``problem`` says why it can't be measured yet."""

    card: ModelCard
    data: DataSpec
    engine: str
    problem: str = ""


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Show what this package refuses as a message; a page never ends in a stack trace for it."""
    try:
        yield
    except ParetoscopeError as error:
        st.error(str(error), icon=":material/error:")


# Work


@st.cache_resource
def pool() -> Pool:
    """The workers of this server, shared by all its visitors, warmed up once."""
    workers = Pool(TARGET)
    first = Request(FIRST_MODEL, NORMAL)
    workers.warm(Request(FIRST_MODEL))
    if not store().count():  # the very first start: fill the curves while the visitor looks around
        for request in grid(first, STARTER_SPARSITIES, STARTER_BITS):
            workers.submit("measure", "measure", request, request_key(request), BACKGROUND)
    return workers


@st.cache_resource
def store() -> Store:
    return Store()


@st.cache_resource(show_spinner="Listing the models…")
def catalogue() -> Catalogue:
    job = pool().submit("inspect", "catalogue", None, "catalogue")
    return finished(pool().wait(job), Catalogue)


def finished(job: Job, kind: type[T]) -> T:
    """The result of a job that is over. Raises ParetoscopeError with its words when it failed."""
    if job.state == "done":
        assert isinstance(job.result, kind)
        return job.result
    raise ParetoscopeError(job.error or f"{job.task} was cancelled")


def in_address(key: str) -> dict[str, Any]:
    """Arguments of a widget whose value is kept in the page's address, so that a link restores it."""
    return {"key": key, "bind": "query-params"}


def has_failed(key: str) -> bool:
    """Whether a job failed. The error is shown, and what failed is tried again when asked for, not by itself:
    it would fail for ever."""
    job = pool().get(key)
    if job is None or job.state != "failed":
        return False
    st.error(job.error, icon=":material/error:")
    if st.button("Try again", icon=":material/refresh:"):
        pool().forget(key)
        st.rerun()  # without the error
    return True


def ask_for(task: str, asked: object, key: str) -> list[Job]:
    """Have something measured that the store has not. No job where it failed, until it is asked for again."""
    if has_failed(key):
        return []
    job = pool().submit("measure", task, asked, key, INTERACTIVE)
    if job.state == "done":  # the store was emptied since
        pool().forget(key)
        st.rerun()
    return [job]


def submit(request: Request, priority: int = INTERACTIVE) -> Job:
    """Have a request measured that has no stored result: one that was done once was forgotten since."""
    key = request_key(request)
    job = pool().get(key)
    if job and job.state == "done":
        pool().forget(key)
    return pool().submit("measure", "measure", request, key, priority)


def refresh_when_over(shown: Sequence[Job], unseen: Sequence[Job] = ()) -> None:
    """Show what runs, and draw the page anew when one of the jobs ends."""
    jobs = [*shown, *unseen]
    if not jobs:
        return
    over = sum(job.over for job in jobs)

    @st.fragment(run_every=None if over == len(jobs) else POLL_SECONDS)
    def watch() -> None:
        if sum(job.over for job in jobs) > over:
            st.rerun()
        for job in shown:
            show_job(job)

    watch()


def show_job(job: Job) -> None:
    """One line: what a job is doing, with its share done where it can tell."""
    if job.state == "failed":
        st.error(job.error, icon=":material/error:")
    elif job.progress is not None:
        st.progress(job.progress, job.message)
    elif not job.over:
        words = job.message if job.state == "running" and job.message else "waiting for its turn"
        st.caption(f":material/hourglass_top: {words}…")


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


# Navigation and sidebar


def navigation() -> Page:
    """Declare the pages, and give the one that is asked for."""
    st.set_page_config(
        page_icon=str(asset("logo.png")),  # before the pages: their icons would be fetched from a font server
        layout="wide",
        menu_items={
            "About": "Prune and quantize a pretrained model, and see what it costs and buys on this machine."
        },
    )
    page = st.navigation(
        [
            st.Page("pages/explore.py", title="Explore", icon=":material/tune:", default=True),
            st.Page("pages/layers.py", title="Layers", icon=":material/layers:"),
            st.Page("pages/latency.py", title="Latency", icon=":material/speed:"),
            st.Page("pages/compare.py", title="Compare", icon=":material/compare_arrows:"),
            st.Page("pages/complexity.py", title="Complexity", icon=":material/show_chart:"),
            st.Page("pages/models_and_data.py", title="Models and data", icon=":material/database:"),
        ]
    )
    st.set_page_config(page_title=f"{page.title} · Paretoscope")
    return page


def sidebar() -> None:
    """Model, images and engine; kept in the address, so that a link restores them."""
    with st.sidebar:
        cards = catalogue().cards
        name = st.selectbox(
            "Model",
            list(cards),
            index=list(cards).index(FIRST_MODEL),
            **in_address("model"),
            help="Bundled models need no download. Models and data shows accuracy and size of them all.",
        )
        st.caption(describe_card(cards[name]))
        data = _choose_images(cards[name])
        engine = _choose_engine(catalogue())
        st.divider()
        st.caption(
            f"Measured on {environment().cpu}, {environment().cores} cores. Nothing leaves this machine.",
            help=describe(environment()),
        )
    st.session_state["selection"] = Selection(cards[name], data, engine, _problem(cards[name], data))


def selection() -> Selection:
    """What the sidebar says.

    Until a server has come to ``st.navigation`` once, Streamlit serves the files in ``pages/`` bare: when a
    link into one of them is a server's first request, it is run again from the entry.
    """
    if "selection" not in st.session_state:
        navigation()
        st.rerun()
    chosen = st.session_state["selection"]
    assert isinstance(chosen, Selection)
    return chosen


def describe_card(card: ModelCard) -> str:
    """A model in one line: where it is from, what it was published with and what it costs to get."""
    parts = [card.source]
    if card.published_top1 is not None:
        parts.append(f"{100 * card.published_top1:.1f} % top-1")
    if card.parameters is not None:
        parts.append(f"{card.parameters / 1e6:.1f} M weights")
    if not card.ready and card.download_bytes:
        parts.append(f"{format_bytes(card.download_bytes)} to download")
    return " · ".join(parts)


def _choose_engine(found: Catalogue) -> str:
    """Only an engine that runs here can be chosen; why the others can't is told."""
    possible = [name for name in ENGINE_LABELS if not found.engines[name]]
    engine: str = st.selectbox(
        "Engine",
        possible,
        format_func=ENGINE_LABELS.__getitem__,
        **in_address("engine"),
        help="What executes the model. The baseline always runs on the same engine and threads.\n\n"
        + "\n".join(f"- **{ENGINE_LABELS[name]}**: {ENGINE_WORDS[name]}" for name in possible),
    )
    st.caption(ENGINE_WORDS[engine])
    if engine == "sparse" and found.fallback:
        st.caption(f"No sparse kernels here, so torch's CSR takes their place: {found.fallback}")
    for name, problem in found.engines.items():
        if problem:
            st.caption(f"Not here: {ENGINE_LABELS[name]}, since {problem}.")
    return engine


def _choose_images(card: ModelCard) -> DataSpec:
    folders = [str(folder) for root in allowed_roots() for folder in image_folders(root)]
    often = Counter(Path(folder).name for folder in folders)
    names = {folder: name for folder in folders if often[name := Path(folder).name] == 1}
    options = [*([BUNDLED] if card.bundled_images else []), *folders]
    kept = st.session_state.get("images", "")  # of the model before
    before = st.session_state.get("bundled_images", card.bundled_images)
    st.session_state["bundled_images"] = card.bundled_images
    foreign = kept == BUNDLED and not card.bundled_images
    if foreign or before != card.bundled_images or (kept is None and card.bundled_images):
        st.session_state["images"] = next(iter(options), None)
    path = st.selectbox(
        "Images",
        options,
        format_func=lambda path: names.get(path, path),
        **in_address("images"),
        accept_new_options=True,
        placeholder="Path of an image folder",
        help="The bundled set, or a folder with one subfolder a class. Folders are open to this page when "
        "the dashboard was started with --images FOLDER.",
    )
    if path in (None, BUNDLED):
        return DataSpec()
    with st.expander("Calibration and classes"):
        calibration = st.text_input(
            "Calibration folder",
            **in_address("calibration"),
            help="Without one, a fifth of the images is set aside and never evaluated.",
        )
        class_index = st.text_input(
            "Class index file",
            **in_address("class_index"),
            help="Maps folder names to the model's outputs. WordNet ids and class names need none.",
        )
        limit = st.number_input(
            "Most images to evaluate",
            1,
            100_000,
            1_000,
            **in_address("limit"),
        )
    return DataSpec(
        path=str(check_allowed(path)),
        calibration=str(check_allowed(calibration)) if calibration else None,
        class_index=str(check_allowed(class_index)) if class_index else None,
        limit=limit,
    )


def _problem(card: ModelCard, data: DataSpec) -> str:
    if not card.ready:
        return f"{card.name} is not on this machine yet: get it under *Models and data*."
    if data.path is None and not card.bundled_images:
        return (
            f"{card.name} needs images of yours: start the dashboard with `--images FOLDER`, and choose one "
            "with one subfolder a class in the sidebar."
        )
    return ""


# Showing


def heading(recipe: Recipe) -> str:
    """A recipe in words, bold."""
    words = recipe.describe()
    return f"**{words[0].upper()}{words[1:]}**"


MOODS: dict[Mood, Colour] = {"better": "green", "worse": "red", "same": "gray"}


def card(headline: Headline) -> None:
    """One figure: large, with its interval, its change, and what it rests on."""
    with st.container(border=True, height="stretch", gap="xxsmall"):
        st.metric(
            headline.label,
            headline.value,
            headline.change or None,
            delta_color=MOODS[headline.mood],
            delta_arrow="off",
            help=headline.help,
        )
        st.caption(headline.caption)


def dark() -> bool:
    return st.context.theme.type == "dark"


FOLLOW = """
export default ({ data, parentElement, setTriggerValue }) => {
    const host = parentElement.host ?? parentElement;
    const scheme = getComputedStyle(host).colorScheme;
    if (data && scheme !== data) setTriggerValue("switched", scheme);
}
"""
"""Runs when it is mounted and whenever the theme changes."""


def follow_theme() -> None:
    """Draw the page anew when its visitor switches between light and dark: charts bring their own colours."""
    component = st.components.v2.component("paretoscope_theme", js=FOLLOW)
    component(data=st.context.theme.type, key="theme", on_switched_change=lambda: None)


def chart(info: Lines | Stacks, key: str, height: int = 240) -> None:
    """A chart with its description for screen readers; its toolbar saves the picture from the browser."""
    st.plotly_chart(
        figure(info, dark=dark(), height=height),
        theme=None,
        key=key,
        alt=alternative(info),
        config={
            "displaylogo": False,
            "modeBarButtonsToRemove": ["select2d", "lasso2d"],
            "toImageButtonOptions": {
                "format": st.session_state.get("picture", "png"),
                "filename": f"paretoscope-{key}",
                "scale": 2,
            },
        },
    )


def badges(summary: Summary) -> None:
    """How far the figures can be trusted, each badge with its reason."""
    with st.container(horizontal=True, gap="xsmall"):
        for badge in summary.badges:
            st.badge(badge.name, color=BADGE_COLOURS[badge.name], help=badge.words)


def export_menu(results: Sequence[Result], name: str, request: Request | None = None) -> None:
    """What to take away: charts, table, the format of the charts' camera button, and a request's model."""
    with st.popover("Export", icon=":material/download:", disabled=not results):
        if request:
            st.caption(f"The model: {request.recipe.describe()}")
            for kind, label in MODEL_FILES.items():
                st.download_button(
                    label,
                    data=_model_file(kind, request),
                    file_name=file_name(f"{request.model} {kind}", "zip"),
                    mime="application/zip",
                    key=f"model {kind}",
                    on_click="ignore",
                    help=MODEL_HELP[kind],
                    width="stretch",
                )
            st.caption("What was measured")
        st.segmented_control(
            "Camera button of each chart saves",
            ["png", "svg"],
            format_func=str.upper,
            default="png",
            required=True,
            key="picture",
        )
        for kind, exporter in EXPORTERS.items():
            reason = chrome().problem if exporter.needs_chrome else ""
            st.download_button(
                exporter.label,
                data=_writer(exporter.write, results),
                file_name=file_name(name, exporter.extension),
                mime=exporter.mime,
                key=f"export {kind}",
                on_click="ignore",
                disabled=bool(reason),
                help=reason or None,
                width="stretch",
            )


MODEL_HELP = {
    "safetensors": "In the narrowest types that hold it; `optimizer.artifacts.load` restores it bit for bit.",
    "packed": "k bits a surviving weight; `optimizer.artifacts.load` restores it bit for bit.",
    "onnx": "Quantized weights as int8 with DequantizeLinear. Takes some seconds; needs the extra `onnx`.",
    "openvino": "The very graph that was measured here, at batch 1.",
}


def _model_file(kind: str, request: Request) -> Callable[[], bytes]:
    """Written by a worker when it is asked for, with recipe and model card."""

    def written() -> bytes:
        key = f"artifact {kind} {request_key(request)}"
        job = pool().wait(pool().submit("inspect", "artifact", (kind, request), key))
        pool().forget(key)  # megabytes
        return finished(job, bytes)

    return written


def _writer(write: Callable[[Sequence[Result]], bytes], results: Sequence[Result]) -> Callable[[], bytes]:
    return lambda: write(results)
