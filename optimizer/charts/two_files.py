"""Where two networks part ways: the SQNR of each layer that both have."""

import html

from optimizer.analysis import fidelity
from optimizer.analysis.measures import sqnr
from optimizer.analysis.two_files import EQUAL_DB, SAME_DB, TwoFiles, db_of, parting
from optimizer.charts.axes import padded, rows_axis
from optimizer.charts.spec import Axis, Limit, Lines, Point, Series
from optimizer.formats import count

MARKED = "where the two part first"


def parting_info(run: TwoFiles) -> Lines:
    """The layers in A's order, the first at the top. Equal ones are at the right end; what differs from
    nothing but zeros is at 0 dB."""
    first, points = parting(run), []
    for row, layer in enumerate(run.layers):
        measure = sqnr(layer)
        points.append(
            Point(
                db_of(layer),
                row,
                layer.reference,
                x_low=measure.low,
                x_high=measure.high,
                hover=f"<b>{html.escape(layer.reference)}</b><br>SQNR {fidelity.sqnr_text(layer)}",
            )
        )
    values = [point.x for point in points]
    marked = tuple(point for point in points if first and point.key == first.reference)
    return Lines(
        "What each layer gives, against the other's",
        Axis("SQNR", "dB", "higher", span=padded(min([0.0, *values]), max([SAME_DB, *values]))),
        rows_axis(layer.reference for layer in run.layers),
        (
            Series("layers", "dense fp32", tuple(points), line="none", legend=False),
            Series(MARKED, "accent", marked, line="none"),
        ),
        limit=Limit("float32's rounding", SAME_DB),
        note=f"on {count(run.layer_images, 'image')}"
        + f" · at {EQUAL_DB:g} dB: equal" * (EQUAL_DB in values),
        empty="No layer was found in both.",
    )
