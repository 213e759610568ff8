"""What changing one layer alone does to the outputs."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import replace

from optimizer.analysis.realisation import Realisation
from optimizer.charts.axes import rows_axis
from optimizer.charts.spec import Axis, Lines, Point, Series
from optimizer.records import Sensitivity


def sensitivity_info(sensitivities: Sequence[Sensitivity], selected: str | None = None) -> Lines:
    """What each layer's change alone does to the outputs, in the order of the network.

    The ``selected`` layer's points are in the accent.
    """
    names = tuple(one.layer.removesuffix(".weight") for one in sensitivities)

    def points(values: Iterable[float | None], words: str, marker: str) -> tuple[Point, ...]:
        return tuple(
            Point(
                value,
                row,
                names[row],
                hover=f"<b>{html.escape(names[row])}</b><br>{words}: {value:.3g} nats",
                marker=marker,
                simulated=True,
            )
            for row, value in enumerate(values)
            if value  # a log axis has no place for none
        )

    pruned = tuple(
        replace(point, simulated=not sensitivities[int(point.y)].measured)
        for point in points((one.pruned for one in sensitivities), "its share of 60 % pruned", "circle")
    )
    found = [Series("pruned to its share of 60 % sparsity", Realisation.DENSE, pruned, line="none")]
    for bits, marker in {4: "square", 3: "diamond", 2: "triangle-up"}.items():
        rounded = (one.rounded.get(bits) for one in sensitivities)
        placed = points(rounded, f"{bits} bits, predicted", marker)
        found.append(Series(f"{bits} bits", f"bits {bits}", placed, line="none"))
    rows = [row for row, one in enumerate(sensitivities) if one.layer == selected]
    chosen = tuple(point for series in found for point in series.points if point.y in rows)
    return Lines(
        "Sensitivity of each layer alone",
        Axis("divergence of the outputs", "nats", "lower", log=True),
        rows_axis(names),
        (*found, Series("this layer", "accent", chosen, line="none")),
        note="filled: measured · hollow: predicted from it",
        empty="No layer of this model has been measured.",
    )
