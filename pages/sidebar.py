"""Navigation, and the sidebar: model, images, engine and threads. (Not a page.)"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import streamlit as st
from streamlit.navigation.page import Page

from optimizer.analysis.summary import describe_images
from optimizer.data import uploaded
from optimizer.data.folders import check_allowed, image_folders, opened_roots
from optimizer.data.selection import recent_fingerprint
from optimizer.errors import ParetoscopeError
from optimizer.formats import count, format_bytes, format_large
from optimizer.methods.engines import ENGINES, engine_info
from optimizer.model.added import cards as added
from optimizer.model.added import uploads
from optimizer.model.added.cards import AddedModel
from optimizer.records import DataSpec, ModelCard, Request, Settings, digest
from optimizer.system.environment import describe, environment, threads_available
from optimizer.system.paths import asset
from optimizer.work import Catalogue
from pages import adding_images, backlog, tasks
from pages.address import MAX_TOLD, in_address, whole_number
from pages.consent import by_hand
from pages.controls import with_defaults
from pages.markup import plain
from pages.session import Notice, SidebarChoice, session

OPEN = "open"
"""In an address: the key of a result that Explore is to show."""
BUNDLED = "bundled test images"
MAX_IMAGES = 100_000
"""To evaluate, as the control has it."""


def catalogue() -> Catalogue:
    """Every model, also those that were added or removed a moment ago, wherever that was."""
    return _catalogue(added.changed())


@st.cache_resource(show_spinner="Listing the models…", max_entries=8)
def _catalogue(changed: object) -> Catalogue:
    pool = tasks.pool()
    job = pool.submit("interactive", "catalogue", None, f"catalogue {digest(changed)}")
    return tasks.finished(pool.wait(job), Catalogue)


def list_anew() -> None:
    """Weights were downloaded, or removed."""
    tasks.pool().forget(f"catalogue {digest(added.changed())}")
    _catalogue.clear()


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
        {
            "Paretoscope": [
                st.Page("pages/explore.py", title="Explore", icon=":material/tune:", default=True),
                st.Page("pages/layers.py", title="Layers", icon=":material/layers:"),
                st.Page("pages/latency.py", title="Latency", icon=":material/speed:"),
                st.Page("pages/sweep.py", title="Sweep", icon=":material/grid_on:"),
                st.Page("pages/compare.py", title="Compare", icon=":material/compare_arrows:"),
                st.Page("pages/complexity.py", title="Complexity", icon=":material/show_chart:"),
                st.Page("pages/models_and_data.py", title="Models and data", icon=":material/database:"),
            ]
        }
    )
    st.set_page_config(page_title=f"{page.title} · Paretoscope")
    return page


def sidebar() -> None:
    """Model, images, engine and threads; kept in the address, so that a link restores them."""
    with st.sidebar:
        cards = catalogue().cards
        if (chosen := session().chosen) and chosen in cards:
            st.session_state["model"], session().chosen = chosen, ""
        name = st.selectbox(
            "Model",
            list(cards),
            index=list(cards).index(tasks.FIRST_MODEL),
            **in_address("model"),
            on_change=forget_sweep,
            help="Bundled models need no download. Models and data shows accuracy and size of them all.",
        )
        st.caption(plain(describe_card(cards[name])))
        data, refused = DataSpec(), ""
        try:
            data = _choose_images(cards[name])
            recent_fingerprint(data)  # of images that vanished, or can't be read
        except ParetoscopeError as error:
            refused = str(error)
            st.caption(":red[:material/error: These images can't be used.]", help=plain(refused))
        engine = _choose_engine()
        settings = Settings(threads=_choose_threads())
        st.divider()
        st.caption(
            f"Measured on {plain(environment().cpu)}, {count(environment().cores, 'core')}. {leaves()}",
            help=plain(describe(environment())),
        )
    problem = refused or _problem(cards[name], data)
    lacks_images = not refused and _lacks_images(cards[name], data)
    session().selection = SidebarChoice(
        cards[name], data, engine, settings, problem, bool(refused), lacks_images
    )


def show_notices() -> None:
    """After a page is drawn: what this visitor is still to be told, and, once they have left Models and data,
    which of their models are added. None is chosen for them: they may be about to start something of
    another."""
    visit = session()
    note_added(take_added())
    for notice in visit.notices:
        st.toast(plain(notice.words), icon=f":material/{notice.icon}:", duration="long")
    visit.notices.clear()


def note_added(names: Iterable[str]) -> None:
    """Have it told, once a page is drawn, that these models are added."""
    words = (f"{name} is added: choose it in the sidebar." for name in names)
    session().notices += [Notice(one, "check") for one in words]


def take_added() -> list[str]:
    """The names of models that this visitor had added, each once, in the order in which they were asked for.
    Why nothing came of another is told later, unless they stopped it."""
    visit = session()
    over = [one for one in visit.adding if one[0].over]
    visit.adding = [one for one in visit.adding if one not in over]
    names, read = [], set[str]()
    for job, upload in over:
        if not tasks.asked_for(job):  # any more
            continue
        try:
            names.append(tasks.finished(job, AddedModel).name)
        except ParetoscopeError as error:
            visit.notices.append(Notice(str(error), "error"))
            continue
        read.add(upload)
    if visit.upload[1] in read:  # else another file lies in the uploader by now
        visit.uploads += 1  # one of its own, with nothing in it
        visit.upload = "", ""
    for upload in filter(None, read - {upload for _, upload in visit.adding}):
        uploads.forget_upload(upload)
    return names


def forget_sweep() -> None:
    """Have the address name no sweep any more: Sweep shows the newest of the model that is chosen."""
    st.query_params.pop("sweep", None)


def leaves() -> str:
    """What goes to other machines, in words."""
    if backlog.cluster() is None:
        return "Nothing leaves this machine."
    return "Only sweeps timed on the cluster send their model and images to it."


def selection() -> SidebarChoice:
    """What the sidebar says.

    Until a server has come to ``st.navigation`` once, Streamlit serves the files in ``pages/`` bare: when a
    link into one of them is a server's first request, it is run again from the entry.
    """
    chosen = session().selection
    if chosen is None:
        navigation()
        st.rerun()
    return chosen


def why_not_open(request: Request) -> str:
    """Why Explore can't be set to a result: its sliders would measure another model, on other images or
    another engine."""
    if request.data.content:
        return f"{request.model} was measured from Python, on images in memory: Explore has not got them."
    if request.model not in catalogue().cards:
        return f"{request.model} is not among the models here: Explore can't be set to it."
    if problem := catalogue().engines.get(request.engine, "it is not among the engines here"):
        label = engine_info(request.engine).label
        return f"It was measured on {label}, which does not run here ({problem}): Explore can't be set to it."
    return ""


def no_control_for(request: Request) -> list[str]:
    """What else a result was measured with than Explore measures with, in words."""
    settings, data, usual = request.settings, request.data, DataSpec()
    found = {
        count(settings.batch, "image") + " a call": settings.batch != 1,
        count(settings.threads, "thread"): settings.threads not in (0, *thread_counts()[:-1]),
        f"seed {settings.seed}": settings.seed != 0,
        f"images drawn with seed {data.seed}": data.seed != usual.seed,
        f"{100 * data.calibration_share:g} % of the images for calibration": data.calibration is None
        and data.calibration_share != usual.calibration_share,
        f"{data.limit:,} of the bundled images": data.path is None and data.limit != usual.limit,
        f"up to {data.limit:,} images": data.path is not None and data.limit > MAX_IMAGES,
        "a calibration folder beside the bundled images": data.path is None and data.calibration is not None,
    }
    return [words for words, applies in found.items() if applies]


def open_result() -> None:
    """Set this and the sliders to the result that the address names, before they are drawn."""
    key = st.query_params.pop(OPEN, None)
    result = tasks.store().get(key) if key else None
    if result is None:
        if key:
            words = f"The result {key[:MAX_TOLD]} is not stored here: measured elsewhere, or removed since."
            st.info(plain(words), icon=":material/info:")
        return
    if problem := why_not_open(result.request):
        st.info(plain(problem), icon=":material/info:")
        return
    request, visit = result.request, session()
    data = request.data
    st.session_state["model"], st.session_state["engine"] = request.model, request.engine
    threads = request.settings.threads
    st.session_state["timed_threads"] = threads if threads in thread_counts()[:-1] else 0
    if apart := no_control_for(request):
        words = f"It was measured with {', '.join(apart)}, for which Explore has no control."
        st.toast(plain(words), icon=":material/info:", duration="long")
    st.session_state["images"] = BUNDLED if data.path is None else data.path
    visit.bundled_images = None  # no other model's images are to be replaced
    if data.path is not None:
        st.session_state["limit"] = float(min(data.limit, MAX_IMAGES))
        st.session_state["calibration"] = data.calibration or ""
        st.session_state["class_index"] = data.class_index or ""
    visit.model, visit.recipe = request.model, request.recipe
    visit.linked_recipe, visit.from_link = with_defaults(request.recipe), True


def show_problem(chosen: SidebarChoice) -> bool:
    """Say why nothing can be measured of what is chosen, and take images where they are what is lacking:
    whether that is so."""
    if chosen.images_refused:
        st.error(plain(chosen.problem), icon=":material/error:")
    elif chosen.problem:
        st.info(plain(chosen.problem), icon=":material/info:")
    if chosen.lacks_images:
        adding_images.uploader()
    return bool(chosen.problem)


def name_chosen(chosen: SidebarChoice, engine: str | None = None) -> None:
    """What a page's figures are of, in a quiet line that is shown while the sidebar, which says it, is folded
    away; "" for an ``engine`` that the page itself asks for."""
    engine = engine_info(chosen.engine).label if engine is None else engine
    parts = filter(None, (chosen.card.name, engine, describe_images(chosen.data)))
    with st.container(key="chosen"):
        st.caption(plain(" · ".join(parts)))


def describe_card(card: ModelCard) -> str:
    """A model in one line: where it is from, what it was published with and what it costs to get."""
    parts = [card.source]
    if card.published_top1 is not None:
        parts.append(f"{100 * card.published_top1:.1f} % top-1")
    if card.parameters is not None:
        parts.append(f"{format_large(card.parameters)} weights")
    if not card.ready and card.download_bytes:
        parts.append(f"{format_bytes(card.download_bytes)} to download")
    return " · ".join(parts)


def runnable_engines() -> list[str]:
    """The names of those that run here."""
    found = catalogue().engines
    return [name for name in ENGINES if found.get(name) == ""]


def _choose_engine() -> str:
    """Only an engine that runs here can be chosen; why the others can't is told."""
    found, possible = catalogue(), runnable_engines()
    engine: str = st.selectbox(
        "Engine",
        possible,
        **in_address("engine", lambda name: ENGINES[name].label, possible),
        help="What executes the model. The baseline always runs on the same engine and threads.\n\n"
        + "\n".join(f"- **{ENGINES[name].label}**: {ENGINES[name].help}" for name in possible),
    )
    st.caption(ENGINES[engine].help)
    if engine in found.lacking:
        st.caption(f"{ENGINES[engine].fallback}: {plain(found.lacking[engine])}")
    for name, problem in found.engines.items():
        if problem:
            st.caption(f"Not here: {engine_info(name).label}, since {plain(problem)}.")
    return engine


def thread_counts() -> list[int]:
    """Numbers of threads that are worth a comparison: powers of two, and every core."""
    cores = threads_available()
    return [count for count in (1, 2, 4, 8, 16, 32, 64, 128) if count < cores] + [cores]


def _choose_threads() -> int:
    """As in Settings: 0 is every core, on whichever machine a link is opened."""
    counts = thread_counts()
    cores = counts.pop()
    chosen: int = st.selectbox(
        "Threads",
        [0, *counts],
        **in_address("timed_threads", lambda count: str(count) if count else f"every core ({cores})"),
        help="Threads of the model and its baseline. With few cores, one thread leaves the others to the "
        "browser, and timings are less noisy. The Latency page compares several numbers.",
    )
    return chosen


def _choose_images(card: ModelCard) -> DataSpec:
    offered = (folder for root in opened_roots() for folder in image_folders(root))
    folders = list(dict.fromkeys(str(folder) for folder in (*offered, *uploaded.sets())))  # a root in a root
    often = Counter(Path(folder).name for folder in folders)
    names = {folder: name for folder in folders if often[name := Path(folder).name] == 1}
    options = [*([BUNDLED] if card.bundled_images else []), *folders]
    kept = st.session_state.get("images", "")  # of the model before
    visit = session()
    changed = visit.bundled_images not in (None, card.bundled_images)
    visit.bundled_images = card.bundled_images
    foreign = kept == BUNDLED and not card.bundled_images
    if foreign or changed or visit.images_removed or (kept is None and card.bundled_images):
        st.session_state["images"], visit.images_removed = next(iter(options), None), False
    if visit.chosen_images:
        if visit.images_left_out:
            st.toast(plain(visit.images_left_out), icon=":material/warning:", duration="long")
        st.session_state["images"], visit.chosen_images, visit.images_left_out = visit.chosen_images, "", ""
    path = st.selectbox(
        "Images",
        options,
        **in_address("images", lambda path: names.get(path, path)),
        accept_new_options=True,
        placeholder="Path of an image folder",
        help="The bundled set, images that were uploaded under Models and data, or a folder with one "
        "subfolder a class. Folders are open to this page when the dashboard was started with --images "
        "FOLDER.",
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
            help='Which output each folder is: JSON such as `{"tench": 0}` or `["tench", "goldfish"]`, or '
            "text with a name a line, in the order of the outputs, or with a name and its output from 0 on, "
            "`tench 0`. WordNet ids and class names need none.",
        )
        limit = whole_number(
            "Maximum images to evaluate", (1, MAX_IMAGES), 1_000, "limit", **by_hand("limit")
        )
    return DataSpec(
        path=str(check_allowed(path)),
        calibration=str(check_allowed(calibration)) if calibration else None,
        class_index=str(check_allowed(class_index)) if class_index else None,
        limit=limit,
    )


def _problem(card: ModelCard, data: DataSpec) -> str:
    if not card.ready:
        return f"{card.name} is not on this machine yet: get it under Models and data."
    if _lacks_images(card, data):
        return (
            f"{card.name} needs images of yours: upload some here, or start the dashboard with --images "
            "FOLDER and choose one in the sidebar. With one subfolder a class they have labels."
        )
    return ""


def _lacks_images(card: ModelCard, data: DataSpec) -> bool:
    return card.ready and data.path is None and not card.bundled_images
