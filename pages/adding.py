"""A user's own model file: uploaded, looked into, and added to the models of this machine. (Not a page.)"""

import pandas as pd
import streamlit as st

from optimizer.data.classes import describe_names, written_names
from optimizer.data.example import example_image
from optimizer.data.selection import recent_fingerprint
from optimizer.errors import InputError, ParetoscopeError
from optimizer.model.added import cards, uploads
from optimizer.model.added.cards import Choices, Examined, Refused, Trial
from optimizer.model.added.containers import MODEL_FILES, check_kind
from optimizer.model.added.hub import check_id
from optimizer.model.preprocessing import CHANNELS, INTERPOLATIONS, MAX_SIDE, PRESETS, RANGES, Preprocessing
from optimizer.records import DataSpec, digest
from optimizer.system.uploads import MAX_UPLOAD_MB
from pages import drawing, sidebar, tasks
from pages.markup import plain
from pages.session import session

PICTURE_PIXELS = 165
"""Two of them fit beside each other on a telephone."""
GUESS = "a guess (ImageNet's): the file says nothing of it"


def show(data: DataSpec) -> None:
    """The uploader, and the hub; what the file holds; what is to be decided; and what was added before."""
    st.subheader("Add a model")
    uploaded = st.file_uploader(
        f"A model file of yours ({', '.join(MODEL_FILES)})",
        key=f"model file {session().uploads}",
        max_upload_size=MAX_UPLOAD_MB,
        help="Weights as .safetensors, or as .pt and .pth that hold nothing but tensors; or a network of "
        "images as .onnx. It is read in a process of its own, nothing in it is run, and it stays on this "
        f"machine. A file of more than {MAX_UPLOAD_MB} MB comes in by a shell there: `paretoscope add NAME "
        "--checkpoint FILE`, or `--onnx FILE`.",
    )
    below = st.container()
    named = st.text_input(
        "Or a classifier of the Hugging Face hub",
        key=f"hub {session().uploads}",
        placeholder="its id, such as timm/resnet18.a1_in1k",
        max_chars=200,
        help="From the hub's cache on this machine, or downloaded. Its configuration names an architecture "
        "of timm or transformers, its own preprocessing and its classes; nothing in it is run.",
    ).strip()
    with below if uploaded is not None else st.container(), tasks.errors_in_words():
        if uploaded is not None:
            _add("examine", _upload(uploaded), data)
        else:
            session().upload = "", named
            if named:
                check_id(named)
                _add("examine hub", named, data)
    _show_added()


def choose_added() -> None:
    """Choose the model that was added, of several the one asked for last: at the end of the page, since what
    was clicked in this run was meant for the one before."""
    if names := sidebar.take_added():
        session().chosen = names.pop()
        sidebar.note_added(names)
        st.rerun()


def _upload(uploaded: st.runtime.uploaded_file_manager.UploadedFile) -> tuple[str, str, str]:
    """What is asked of a file: its name here, its name, and an architecture. Raises InputError."""
    check_kind(uploaded.name)
    visit = session()
    if visit.upload[0] != uploaded.file_id:
        visit.upload = uploaded.file_id, uploads.keep_upload(uploaded.name, uploaded.size, uploaded)
    return visit.upload[1], uploaded.name, st.session_state.get("architecture", "").strip()


def _add(task: str, asked: object, data: DataSpec) -> None:
    visit = session()
    key = f"{task} {digest([asked, visit.upload[0]])}"
    if tasks.held_back(key):
        return
    job = tasks.start("interactive", task, asked, key)
    if not tasks.over_soon(job):
        return
    about = tasks.finished(job, object)
    if isinstance(about, Refused):
        st.error(plain(about.words), icon=":material/error:")
        return
    assert isinstance(about, Examined)
    if not about.problem and not cards.content_path(about.file).is_file():  # removed since
        tasks.pool().forget(key)
        st.rerun()
    st.dataframe(pd.DataFrame(about.facts, columns=["field", "value"]), hide_index=True)
    if about.problem:
        st.warning(plain(about.problem), icon=":material/info:")
    choices = _choose(about, data)
    if choices is None:
        return
    trial = None if about.problem or data.path is None else _try(about, choices, data)
    key = f"add {digest([about, choices])}"
    if st.button("Add", icon=":material/add:", type="primary", disabled=bool(about.problem)):
        tasks.move_on([trial] if trial else [])
        tasks.pool().forget(key)  # it may have been removed since
        visit.adding = [one for one in visit.adding if one[0].key != key]  # pressed twice
        visit.adding.append((tasks.start("interactive", "add", (about, choices), key), visit.upload[1]))
    adding = tasks.pool().get(key)
    if adding and adding.over:
        tasks.show_failure(adding)
    elif adding:
        tasks.refresh_when_over([adding])


def _try(about: Examined, choices: Choices, data: DataSpec) -> str:
    """Whether the images, where they are labelled, speak against the preprocessing. Gives the job's key."""
    visit = session()
    chosen = choices.preprocessing, choices.class_names, choices.classifier
    key = f"try {digest([about, *chosen, data, recent_fingerprint(data)])}"
    if visit.trial not in ("", key):
        tasks.move_on([visit.trial])
    visit.trial = key
    known = tasks.pool().get(key)
    if known is not None and known.state == "failed":
        return key  # nothing can be said
    job = tasks.start("interactive", "try", (about, choices, data), key)
    if tasks.over_soon(job) and job.state == "done" and (found := tasks.finished(job, Trial)).total:
        if found.better:
            st.warning(f"{plain(found.words)}.", icon=":material/rule:")
        else:
            st.caption(f":material/rule: {plain(found.words)}.")
    return key


def _choose(about: Examined, data: DataSpec) -> Choices | None:
    """What a user decides. None where that can't be."""
    left, right = st.columns(2)
    with left:
        name = st.text_input("Name", about.name, key=f"name {about.file}", max_chars=64)
        if about.kind == "checkpoint" and not about.config:
            st.text_input(
                "Architecture",
                placeholder=about.architecture or "such as resnet50",
                key="architecture",
                help="Empty: found by the weights. Else a name of torchvision's, timm/NAME, or a plugin's.",
            )
        classes = st.text_area(
            "Class names",
            key=f"classes {about.file}",
            placeholder=f"Those in the file: {', '.join(about.class_names[:20])}"
            if about.class_names
            else "One a line, in the order of the outputs, or each with its output from 0 on: tench 0. "
            "Without them, as many class folders as the model has outputs are taken in alphabetical order.",
        )
        classifier = st.checkbox(
            "It is a classifier",
            about.may_classify,
            disabled=not about.may_classify,
            key=f"classifier {about.file}",
            help="Otherwise its outputs are compared with the uncompressed network's, whatever the folders "
            "of the images are called. A network that does not give one logit per class is never one.",
        )
    with right:
        try:
            preprocessing = _preprocess(about)
            _show_picture(preprocessing, data)
        except ParetoscopeError as error:
            st.error(plain(error), icon=":material/error:")
            return None
    try:
        names = written_names(classes)
    except InputError as error:
        left.error(plain(error), icon=":material/error:")
        return None
    if names:
        left.caption(f"{plain(describe_names(names))}.")
    return Choices(name.strip(), "", preprocessing, names, classifier)


def _preprocess(about: Examined) -> Preprocessing:
    """Raises InputError."""
    offered = about.preprocessing
    own = f"as {about.preprocessing_of}" if about.preprocessing_of else GUESS
    preset = st.selectbox("Preprocessing", [own, *PRESETS], key=f"preset {about.file}")
    if preset != own:
        offered = PRESETS[preset].at_size_of(offered)
    with st.popover("Size, crop, channels, range, mean and std"):
        key = f"{about.file} {preset}"
        height, width = (
            int(st.number_input(label, 1, MAX_SIDE, side, key=f"{label} {key}"))
            for label, side in zip(("Height", "Width"), offered.size, strict=True)
        )
        resize = int(
            st.number_input(
                "Resize the shorter side to",
                0,
                MAX_SIDE,
                offered.at_size((height, width)).resize or 0,
                key=f"resize {height} {width} {key}",
                help="before the middle is cropped; 0 stretches the whole image",
            )
        )
        channels = st.selectbox(
            "Channels", list(CHANNELS), list(CHANNELS).index(offered.channels), key=f"channels {key}"
        )
        white = st.selectbox("White pixel", RANGES, RANGES.index(offered.range), key=f"range {key}")
        usual = offered.with_channels(channels)
        mean, std = (
            st.text_input(label, ", ".join(f"{one:g}" for one in values), key=f"{label} {channels} {key}")
            for label, values in (("Mean", usual.mean), ("Standard deviation", usual.std))
        )
        interpolation = st.selectbox(
            "Interpolation",
            list(INTERPOLATIONS),
            list(INTERPOLATIONS).index(offered.interpolation),
            key=f"interpolation {key}",
        )
    if about.asks_shape:
        st.caption("The file leaves its input size open: this one is a guess.")
    return Preprocessing.written(
        mean,
        std,
        size=(height, width),
        resize=resize or None,
        channels=channels,
        range=white,
        interpolation=interpolation,
    )


def _show_picture(preprocessing: Preprocessing, data: DataSpec) -> None:
    """An image, and what the network will see of it."""
    image = example_image(data)
    with st.container(horizontal=True):  # beside each other also where columns would not be
        st.image(image, "An image", width=PICTURE_PIXELS)
        st.image(preprocessing.picture(image), "What the network will see", width=PICTURE_PIXELS)
    st.caption(plain(preprocessing.describe()))


def _show_added() -> None:
    """What was added, each with a button that removes it."""
    for name, model in cards.added_models().items():
        if drawing.removable(name, model.description, name):
            cards.remove(name)
            if sidebar.selection().card.name == name:
                session().chosen = tasks.FIRST_MODEL
            st.rerun()
