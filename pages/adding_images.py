"""Images of a visitor's own: uploaded, chosen in the sidebar, and removed. (Not a page.)"""

from pathlib import Path

import streamlit as st

from optimizer.data import uploaded
from optimizer.data.folders import INDEX_NAMES, list_folder, named
from optimizer.errors import InputError
from optimizer.formats import count
from optimizer.records import digest
from optimizer.system.uploads import MAX_UPLOAD_MB
from pages import drawing, tasks
from pages.session import Notice, session

REFUSED = """
export default ({ data, setTriggerValue }) => {
    const look = event => {
        if (!event.target.parentElement?.closest(".st-key-given-images")) return;
        const files = [...(event.dataTransfer ?? event.target).files ?? []];
        const isTaken = file => file.size <= data.bytes
            && data.kinds.some(kind => file.name.toLowerCase().endsWith(kind));
        const refused = files.filter(file => !isTaken(file)).map(file => [file.name, file.size]);
        if (refused.length) setTimeout(() => setTriggerValue("refused", refused), 1000);
    };
    const kinds = ["change", "drop"];
    kinds.forEach(kind => window.addEventListener(kind, look, true));
    return () => kinds.forEach(kind => window.removeEventListener(kind, look, true));
}
"""
"""Streamlit takes no file of more bytes or another kind, says so beside it in the browser alone, and forgets
that with the uploader once the others are taken. A page that is drawn anew before it has told where to upload
these loses them: hence it waits for a second."""


def note_refused() -> None:
    """Have it told, once a page is drawn, which files a browser did not upload: too large, or no images."""

    def refused() -> None:
        files = [(name, int(size)) for name, size in st.session_state[key].refused]
        session().notices.append(Notice(uploaded.why_not_taken(files), "warning"))

    key = "refused images"
    component = st.components.v2.component("paretoscope_refused", js=REFUSED)
    limits = {"bytes": MAX_UPLOAD_MB * 10**6, "kinds": list(uploaded.TAKEN)}
    component(data=limits, key=key, on_refused_change=refused)


def uploader() -> None:
    """Where images are given; they are chosen at once."""
    visit = session()
    with st.container(key="given-images"):
        files = _given()
    if not files:
        return
    key = f"unpack {digest([file.file_id for file in files])}"
    with tasks.errors_in_words():
        if tasks.held_back(key):
            return
        job = tasks.pool().get(key) or tasks.start("interactive", "unpack", uploaded.stage(files), key)
        if not tasks.over_soon(job):
            return
        unpacked = tasks.finished(job, uploaded.Unpacked)
        visit.chosen_images, visit.images_left_out = unpacked.path, unpacked.left_out
        visit.image_uploads += 1  # an uploader of its own, with nothing in it
        tasks.pool().forget(key)
        st.rerun()


def _given() -> list[st.runtime.uploaded_file_manager.UploadedFile]:
    return st.file_uploader(
        "Your images",
        [suffix.removeprefix(".") for suffix in uploaded.TAKEN],
        accept_multiple_files=True,
        key=f"images {session().image_uploads}",
        max_upload_size=MAX_UPLOAD_MB,
        help="Images, or a ZIP file of them. With a folder for each class in it they have labels, and a "
        f"{INDEX_NAMES[-1]} beside those may say which output each is; without, answers are compared with "
        "the uncompressed model's. They stay on the machine that serves this page, where its other visitors "
        "can use them too, until somebody removes them. A folder of more than "
        f"{MAX_UPLOAD_MB} MB is opened to this page where it is started: `paretoscope dashboard --images "
        "FOLDER`.",
    )


def show_uploaded() -> None:
    """What was uploaded, each with a button that removes it."""
    sets = uploaded.sets()
    for path in sets:
        if drawing.removable(path.name, _describe(path), str(path)):
            uploaded.remove(path.name)
            session().images_removed = st.session_state.get("images") == str(path)
            st.rerun()
    if sets:
        st.caption(
            "Counted by their names. Which of them can't be read is told under Images, at the top of this "
            "page, once they are chosen."
        )


def _describe(path: Path) -> str:
    try:
        found = list_folder(path)
    except InputError as error:
        return str(error)
    classes = f" in {named(found.classes, 'class', 'classes')}" if found.classes else ""
    return count(len(found.images), "image") + classes
