"""Complexity: time is O(n) in the weights that remain; whether a clock shows it depends on what executes."""

import streamlit as st

from optimizer import charts
from optimizer.analysis import growth, scaling
from optimizer.analysis.badges import BadgeKind
from optimizer.analysis.conclusions import as_json, lesson, of_each
from optimizer.analysis.scaling import STACK, ComplexityRequest, ComplexityRun, ExecutionKind
from optimizer.analysis.statistics import LatencyVerdict
from optimizer.charts.complexity import Quantity
from optimizer.charts.spec import Lines
from optimizer.formats import format_ns, format_ratio, format_share
from optimizer.records import ModelCard
from pages import address, consent, drawing, sidebar, tasks
from pages.markup import plain

LABELS = {
    ExecutionKind.DENSE: ("Dense kernels", "zeros are multiplied too"),
    ExecutionKind.SPARSE: ("Sparse kernel", "zeros are skipped"),
    ExecutionKind.CSR: ("torch's CSR", "zeros are skipped"),
    ExecutionKind.ROWS: ("Rows removed", "a smaller dense layer"),
    ExecutionKind.INT8: ("int8 kernels", "zeros are multiplied too"),
}
QUANTITIES: tuple[Quantity, ...] = ("time", "operations")
# Its own control: Latency's, carried along, would start minutes of work that nobody asked for here.
FULL = consent.Work("complexity_full", True, "a full measurement", 30)


def main() -> None:
    model = sidebar.selection().card
    st.header("Complexity")
    st.caption(
        "Time against weights. Inference loops over layers, and in each over the weights with |w| > t: "
        "operations are O(n) in the weights that survive. Removing half of them halves the constant, never "
        "the order, and only where what executes the model skips them. All times are of this machine, on one "
        "thread."
    )
    request = controls(model)
    key = scaling.complexity_key(request)
    runs = stored()
    run = runs.get(key)
    if run is None:
        work = () if request.quick else (FULL,)
        tasks.refresh_when_over(tasks.ask_for("complexity", request, key, work))
        run = alike(request, runs)
        if run is None:
            return
        st.caption(
            f"Shown until then: what was measured with {format_share(run.request.removed_share)} removed, "
            f"and what it predicts for {format_share(request.removed_share)}."
        )
    effects(run, request.removed_share)
    points, fits, n_label = growth.frame(run), growth.fits(run), scaling.n_label(run)
    drawn: dict[str, Lines] = {one: charts.complexity_info(points, fits, one, n_label) for one in QUANTITIES}
    drawing.chart_row(drawn, 380)
    st.subheader("What the numbers say")
    drawing.sentences(lesson(run))
    with st.expander("Each execution in words, and the slopes"):  # which the cards say in short
        drawing.sentences(of_each(run, runs.values()))
    with st.expander("Operations, layer by layer"):
        drawing.table(scaling.counts(run))
        for reason in run.skipped:
            st.caption(plain(reason))
    drawing.take_away("complexity", run, growth.frame, as_json)


def controls(model: ModelCard) -> ComplexityRequest:
    # Without weights it is another control, which has stacks, whatever was chosen or linked before.
    words = {"stacks": "stacks of 10 to 10 M weights", "model": f"{plain(model.name)}'s layers"}.__getitem__
    alone = {"key": "stacks alone", "format_func": words}
    kept = address.in_address("family", words) if model.ready else alone
    with st.container(horizontal=True, vertical_alignment="bottom"):
        what = st.segmented_control(
            "Weights of",
            ["stacks", "model"],
            default="stacks",
            required=True,
            **kept,
            disabled=not model.ready,
            help="Stacks of linear layers made for this, or the layers of the model in the sidebar.",
        )
        percent = st.slider(
            "Share of the weights removed",
            0,
            99,
            50,
            format="%d %%",
            width=300,
            **address.in_address("removed"),
            help="The smallest by magnitude in each layer. Predicted at once, measured a few seconds later.",
        )
        full = st.toggle(
            "Measure in full",
            **address.in_address("complexity_full"),
            **consent.by_hand("complexity_full"),
            help="More sizes and rounds: about half a minute in place of 8 seconds.",
        )
    return ComplexityRequest(
        family=model.name if what == "model" else STACK,
        removed_share=percent / 100,
        quick=not full,
    )


def stored() -> dict[str, ComplexityRun]:
    return tasks.store().documents("complexity", ComplexityRun)


def alike(request: ComplexityRequest, runs: dict[str, ComplexityRun]) -> ComplexityRun | None:
    """The newest run of the same family, threads and batch size that this machine would measure again as it
    is, to predict from while the asked one is measured."""
    wanted = (request.family, request.threads, request.inputs)
    same = [
        run
        for key, run in runs.items()
        if (run.request.family, run.request.threads, run.request.inputs) == wanted
        and key == scaling.complexity_key(run.request)  # no other machine, library or network of that name
    ]
    return same[-1] if same else None


def effects(run: ComplexityRun, share: float) -> None:
    """What removing that share does to each execution: measured, or predicted until it is."""
    measured = run.request.removed_share == share
    predictions = growth.predicted_effects(run, share)
    row = st.container(key="effects")  # whose style has two of them beside each other on a telephone
    for column, execution in zip(row.columns(len(run.executions)), run.executions, strict=True):
        with column, st.container(border=True, height="stretch", gap="xxsmall"):
            against = None if execution == ExecutionKind.DENSE else ExecutionKind.DENSE
            effect = growth.effect(run, execution, against)
            value, interval = (
                format_ratio.parts(effect.ratio, effect.ratio_low, effect.ratio_high)
                if measured
                else format_ratio.parts(predictions[execution].ratio)
            )
            label, words = LABELS[execution]
            st.metric(
                label,
                value,
                help=f"Time with {format_share(share)} of the weights removed, over dense time with none "
                "removed.",
            )
            if measured:
                verdict = "" if effect.noise else f"; {effect.verdict.label}"  # the badge says noisy
                if effect.verdict is LatencyVerdict.SAME:
                    verdict += f", {effect.detectable_words}"
                st.caption(f"unpruned dense time ({interval}){verdict}")
                st.caption(words)
                badge = BadgeKind.NOISY if effect.noise else BadgeKind.MEASURED
                st.badge(badge.label, color=drawing.BADGE_COLOURS[badge])
            else:
                st.caption(
                    f"unpruned dense time: {format_ns(predictions[execution].time_ns)}, by the linear model"
                )
                st.caption(words)
                st.badge("predicted", color="gray")


main()
