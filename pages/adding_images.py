"""Images of a visitor's own: uploaded, chosen in the sidebar, and removed. (Not a page.)"""

import streamlit as st

from optimizer.data import uploaded
from optimizer.data.folders import EXTENSIONS, list_folder
from optimizer.formats import count
from optimizer.system.uploads import MAX_UPLOAD_MB
from pages import tasks
from pages.markup import plain
from pages.session import session


def uploader() -> None:
    """Where images are given; they are chosen at once."""
    visit = session()
    files = st.file_uploader(
        "Images of yours",
        sorted(suffix.removeprefix(".") for suffix in (*EXTENSIONS, uploaded.ARCHIVE)),
        accept_multiple_files=True,
        key=f"images {visit.image_uploads}",
        max_upload_size=MAX_UPLOAD_MB,
        help="Images, or a ZIP file of them. With a folder for each class in it they have labels; without, "
        "answers are compared with the uncompressed network's. They stay on the machine that serves this "
        "page, where its other visitors can use them too, until somebody removes them.",
    )
    if not files:
        return
    with tasks.errors_in_words():
        with st.spinner("Keeping the images…"):
            visit.chosen_images = str(uploaded.keep(files))
        visit.image_uploads += 1  # an uploader of its own, with nothing in it
        st.rerun()


def show_uploaded() -> None:
    """What was uploaded, each with a button that removes it."""
    for path in uploaded.sets():
        name = path.name
        with st.container(horizontal=True, vertical_alignment="center"), tasks.errors_in_words():
            found = list_folder(path)
            classes = f" in {count(len(found.classes), 'class', 'classes')}" if found.classes else ""
            words = f"**{plain(name)}**: {count(len(found.images), 'image')}{classes}"
            st.markdown(words, width="stretch")
            if st.button(
                "Remove", icon=":material/delete:", key=f"remove {path}", help=f"Remove {plain(name)}"
            ):
                uploaded.remove(name)
                session().images_removed = st.session_state.get("images") == str(path)
                st.rerun()
