"""Two files or models held against each other. (Not a page.)"""

import json
from pathlib import Path

import streamlit as st

from optimizer import charts
from optimizer.analysis import fidelity, two_files_words
from optimizer.analysis.labels import engine_label
from optimizer.analysis.two_files import CompareRequest, NetworkRef, TwoFiles
from optimizer.errors import InputError
from optimizer.formats import MISSING
from optimizer.model.added import cards, uploads
from optimizer.model.preprocessing import image_shape
from optimizer.records import digest
from optimizer.system.uploads import MAX_UPLOAD_MB
from pages import drawing, sidebar, tasks
from pages.address import MAX_TOLD, put
from pages.markup import plain
from pages.session import SidebarChoice, session

FILE = "a file of yours"
KINDS = ("onnx", "zip", "xml", "bin", "safetensors")
AS_USUAL = "the default"
"""No model: their names have no spaces."""
ROW_PIXELS, AROUND_ROWS_PIXELS = 20, 150


def show(chosen: SidebarChoice) -> None:
    """The two, and what was found of them."""
    models = sidebar.catalogue().cards
    ready = [name for name, card in models.items() if card.ready]
    with tasks.errors_in_words():
        left, right = st.columns(2)
        with left:
            first = _side("A", ready)
        with right:
            second = _side("B", ready)
        with st.popover("Images and size"):
            like = st.selectbox(
                "Preprocess images as for",
                [AS_USUAL, *ready],
                help="Also sets the class names. By default as for A or B, where one is a model, else as for "
                "the model that a file was saved from, or as a file says.",
            )
            written = st.text_input(
                "Input shape",
                placeholder="3x224x224",
                help="Of files that leave it open: channels, height, width.",
            )
        if chosen.images_refused:  # no others take their place
            sidebar.show_problem(chosen)
        elif first and second:
            request = CompareRequest(
                first,
                second,
                chosen.data,
                settings=chosen.settings,
                input_shape=image_shape(written) if written.strip() else (),
                like="" if like == AS_USUAL else like,
            )
            _compare(request)
        elif "files" not in st.query_params:
            st.info(
                "Give two: an ONNX file, an OpenVINO IR (its .xml and its .bin together), a zip that was "
                "exported here, or a model. Results are B relative to A, on the folder of images in the "
                "sidebar. Without a folder: on the images that come with the model, which may be the one "
                "that a file was saved from, else on made-up ones.",
                icon=":material/info:",
            )
    named = st.query_params.get("files", "")
    run = tasks.store().get_document("compare", named, TwoFiles)
    if run is not None:
        _show(run)
    elif named:
        words = f"The comparison {named[:MAX_TOLD]} is not stored here: made elsewhere, or removed since."
        st.info(plain(words), icon=":material/info:")


def _side(name: str, ready: list[str]) -> NetworkRef | None:
    """Which network is chosen. Raises InputError for uploads that can't be one."""
    picked = st.selectbox(name, [FILE, *ready], key=f"side {name}")
    if picked != FILE:
        return NetworkRef(picked)
    given = st.file_uploader(
        f"File {name}",
        KINDS,
        accept_multiple_files=True,
        key=f"file {name}",
        label_visibility="collapsed",
        max_upload_size=MAX_UPLOAD_MB,
        help="Read in a process of its own; nothing in it is run as code, and it stays on this machine. "
        f"A file of more than {MAX_UPLOAD_MB} MB is compared in a shell there: `paretoscope compare A B`.",
    )
    if weights_alone := next((one.name for one in given if one.name.lower().endswith(".safetensors")), ""):
        raise InputError(f"{weights_alone} has weights and no network: give its zip, or ONNX")
    kept = {Path(file.name).suffix.lower(): (file.name, _kept(file)) for file in given}
    networks = [suffix for suffix in kept if suffix != ".bin"]
    if not networks:
        return None
    if len(networks) > 1 or len(kept) < len(given):
        raise InputError(f"{name} is {len(given)} files: give one network, an .xml with its .bin")
    called, place = kept[networks[0]]
    _, weights = kept.get(".bin", ("", ""))
    return NetworkRef(place, called, weights)


def _kept(file: st.runtime.uploaded_file_manager.UploadedFile) -> str:
    """Where an upload lies here; it is written once."""
    known = session().kept_uploads
    if file.file_id not in known:
        known[file.file_id] = str(cards.content_path(uploads.keep_upload(file.name, file.size, file)))
    return known[file.file_id]


def _compare(request: CompareRequest) -> None:
    versions = [cards.version_of(one.place) for one in (request.a, request.b)]
    key = f"compare {digest([request, versions])}"
    job = tasks.pool().get(key)
    if job is None or job.over:
        if st.button("Compare", type="primary", icon=":material/compare_arrows:"):
            tasks.pool().forget(key)
            tasks.start("measure", "compare", request, key)
            st.query_params.pop("files", None)  # what is shown is of other files
            st.rerun()
        tasks.show_failure(job)
        if job is not None and job.state == "done":
            put("files", tasks.finished(job, str))
        return
    tasks.refresh_when_over([job])


def _show(run: TwoFiles) -> None:
    st.markdown(f"**{plain(two_files_words.sentence(run))}**")
    drawing.table(two_files_words.figures(run), alt="The two beside each other")
    drawing.sentences(two_files_words.conclusions(run))
    st.subheader("Outputs")
    drawing.table(fidelity.rows(run.outputs), alt="How far each output lies from the other's")
    where = f"On {two_files_words.images_words(run)}, by {engine_label(run.engine)}"
    st.caption(plain(f"{where}. Intervals are of 95 %, over the images."))
    if run.layers:
        st.subheader("Layer by layer")
        height = AROUND_ROWS_PIXELS + ROW_PIXELS * len(run.layers)
        drawing.chart(charts.parting_info(run), "parting", height)
        with st.expander("Every layer that both have"):
            drawing.table(
                two_files_words.layer_frame(run),
                placeholder=MISSING,
                alt="Every layer that both have",
                column_config={"SQNR": st.column_config.NumberColumn("SQNR, dB", format="%.1f")},
            )
    drawing.download(
        "JSON", lambda: json.dumps(two_files_words.as_json(run)), "two-files.json", "application/json"
    )
