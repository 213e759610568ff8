"""Models and data: what there is, from where, what it costs to get, and what the chosen images come to."""

from dataclasses import replace

import pandas as pd
import streamlit as st

from optimizer.analysis import stored
from optimizer.analysis.headline import headlines
from optimizer.analysis.summary import describe_images, summarise
from optimizer.data import uploaded
from optimizer.data.folders import opened_roots
from optimizer.data.selection import recent_fingerprint
from optimizer.formats import MISSING, count, format_bytes
from optimizer.recipe import Recipe
from optimizer.records import ModelCard, Request, digest
from optimizer.store.keys import request_key, weights_version
from optimizer.system.doctor import examine, noisy
from optimizer.system.downloads import refusal
from optimizer.work import ImagesReport
from pages import adding, adding_images, consent, drawing, kept, sidebar, tasks
from pages.markup import plain
from pages.session import SidebarChoice


def main() -> None:
    chosen = sidebar.selection()
    st.header("Models and data")
    catalogue = sidebar.catalogue()
    told: frozenset[str] = frozenset()
    with tasks.errors_in_words():
        told = show_chosen(chosen)
    with tasks.errors_in_words():
        adding.show(chosen.data)
    if not chosen.lacks_images or uploaded.sets():
        st.subheader("Add images")
    if not chosen.lacks_images:  # else they are asked for above
        adding_images.uploader()
    adding_images.show_uploaded()
    st.subheader("Models")
    for problem in catalogue.problems:
        st.warning(plain(problem), icon=":material/extension_off:")
    drawing.table(
        pd.DataFrame([row(card) for card in catalogue.cards.values()]),
        placeholder=MISSING,
        column_config={
            "top-1": st.column_config.NumberColumn(
                format="%.1f %%", help="As published, on ImageNet or the test split"
            ),
            "weights": st.column_config.NumberColumn(format="%.2f M"),
            "download": st.column_config.NumberColumn(format="%.1f MB"),
            "ready": st.column_config.CheckboxColumn(help="Whether its weights are on this machine"),
        },
    )
    show_machine()
    kept.show(told)
    adding.choose_added()


def show_machine() -> None:
    """What makes timings here noisy: a line, and the checks behind it."""
    st.subheader("This machine")
    checks = examine()
    found = noisy(checks)
    names = ", ".join(check.name for check in found)
    st.markdown(
        f"{count(len(found), 'thing')} may make timings noisy here: {names}."
        if found
        else "Nothing makes timings noisy here."
    )
    with st.expander("What was looked at, and what would mend it"):
        rows = [
            {
                "check": check.name,
                "timings": check.state,
                "found": check.found,
                "what it costs": check.costs or MISSING,
                "what would mend it": check.command or MISSING,
            }
            for check in checks
        ]
        st.table(pd.DataFrame(rows).map(plain), hide_index=True)  # its words wrap
        st.caption("The same in a shell: `paretoscope doctor`. It changes nothing.")


def row(card: ModelCard) -> dict[str, object]:
    return {
        "model": card.name,
        "source": card.source,
        "top-1": None if card.published_top1 is None else 100 * card.published_top1,
        "weights": None if card.parameters is None else card.parameters / 1e6,
        "download": None if card.download_bytes is None else card.download_bytes / 1e6,
        "ready": card.ready,
        "input": "×".join(map(str, card.input_shape)),
        "classes": card.classes,
        "description": card.description,
    }


def show_chosen(chosen: SidebarChoice) -> frozenset[str]:
    """The model and the images of the sidebar: get them, read them, score them uncompressed. Gives the keys
    of measurements of which it is said that they failed, or that their images did."""
    told: frozenset[str] = frozenset()
    st.subheader(plain(chosen.card.name))
    st.markdown(plain(chosen.card.description))
    if not chosen.card.ready:
        get(chosen.card)
        return told
    if chosen.card.download_bytes:
        with st.expander("The file on this machine is damaged?"):
            get(chosen.card)
    if sidebar.show_problem(chosen):
        roots = ", ".join(plain(root) for root in opened_roots())
        if roots:
            st.caption(f"Folders open to this page: {roots}")
        return told
    if consent.held_back(consent.images(chosen.data)):
        return told
    request = Request(chosen.card.name, Recipe(), chosen.engine, chosen.data, chosen.settings)
    if read_images(chosen) and score_baseline(request):
        return told
    return frozenset({request_key(request)})


def get(card: ModelCard) -> None:
    """Download on request, never by itself, with its size said before."""
    if card.download_bytes is None:
        st.info(plain(card.description), icon=":material/info:")
        return
    key = f"download {card.name}"
    refused = refusal(card, sidebar.catalogue().cards.values())
    if refused:
        st.info(plain(refused), icon=":material/info:")
    if st.button(
        f"Download {format_bytes(card.download_bytes)}",
        icon=":material/download:",
        type="primary",
        disabled=bool(refused),
    ):
        tasks.start("interactive", "download", card.name, key)
    job = tasks.pool().get(key)
    if job and job.state == "done":
        sidebar.list_anew()
        tasks.pool().forget(key)
        st.rerun()
    elif job and job.over:
        tasks.show_failure(job)
    elif job:
        tasks.refresh_when_over([job])


def read_images(chosen: SidebarChoice) -> bool:
    """Whether nothing stands against it: they are not read yet, or could be."""
    st.markdown("**Images**")
    name, data = chosen.card.name, chosen.data
    key = f"images {digest([name, weights_version(name), data, recent_fingerprint(data)])}"
    if tasks.held_back(key):
        return False
    job = tasks.start("interactive", "images", (name, data), key)
    if not tasks.over_soon(job):
        return True
    if job.state == "failed":
        st.rerun()  # held_back says why
    report = tasks.finished(job, ImagesReport)
    labels = "with labels" if report.labelled else "without labels: agreement is measured"
    images = plain(describe_images(data, report.evaluated))
    st.markdown(f"{images}, {labels}; {report.calibrated:,} for calibration.")
    for note in report.notes:
        st.caption(f":material/info: {plain(note)}")
    if report.mapping.mapped:
        mapped = count(len(report.mapping.mapped), "class", "classes")
        with st.expander(f"{mapped} mapped, {len(report.mapping.unmapped):,} not"):
            drawing.table(pd.DataFrame(report.mapping.mapped))
            if report.mapping.unmapped:
                st.markdown("Not mapped: " + ", ".join(map(plain, report.mapping.unmapped)))
    return True


def score_baseline(request: Request) -> bool:
    """Whether nothing stands against it: it is not measured yet, or could be."""
    st.markdown("**Uncompressed**")
    result = stored.best(tasks.store(), request)
    if result is None:
        held = tasks.held_back(request_key(request))
        if not held:
            tasks.refresh_when_over([tasks.submit(request)])
        return not held
    summary = summarise(result)
    figures = headlines(summary, result.inspection)
    drawing.cards(replace(one, change="") for one in figures)  # nothing has changed in what is the baseline
    drawing.badges(summary)
    return True


main()
