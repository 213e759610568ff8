"""What the chart of where two networks part says."""

from types import SimpleNamespace
from typing import Any

from optimizer.analysis.two_files import EQUAL_DB
from optimizer.charts.two_files import MARKED, parting_info
from optimizer.records import OutputFidelity


def test_a_layer_that_differs_from_zeros_alone_is_not_drawn_as_equal() -> None:
    def layer(name: str, sqnr_db: float | None, largest: float) -> OutputFidelity:
        return OutputFidelity(name, name, (4,), sqnr_db, None, largest, 0.0, None, None, None, None)

    run: Any = SimpleNamespace(
        layers=(layer("equal", None, 0.0), layer("silent", None, 0.5), layer("near", 200.0, 1e-9)),
        layer_images=2,
    )
    points, marked = (line.points for line in parting_info(run).series)
    assert [(point.key, point.x) for point in points] == [
        ("equal", EQUAL_DB),
        ("silent", 0.0),
        ("near", EQUAL_DB),
    ]
    assert parting_info(run).note == "on 2 images · at 150 dB: equal"
    assert parting_info(run).series[1].name == MARKED
    assert [point.key for point in marked] == ["silent"]
