"""What the chart of time against the number of weights says."""

import re
from dataclasses import replace

import numpy as np
import pytest
from test_charts import FITS, complexity_points, series

from optimizer.analysis.slopes import Residual
from optimizer.charts import complexity_info
from optimizer.errors import InputError


def test_complexity_shows_points_slope_and_floor() -> None:
    info = complexity_info(complexity_points(), FITS)
    assert [line.name for line in info.series if line.markers] == [
        "dense, slope 1.00 (0.98 to 1.02)",
        "csr, slope 1.00 (0.98 to 1.02)",
        "rows removed, slope 1.00 (0.98 to 1.02)",
    ]
    assert info.reference is not None
    assert info.reference.name == "call overhead (csr) 2.00 µs"
    assert info.x.log
    assert info.y.log
    assert "log" in info.x.title
    assert "log" in info.y.title


def test_a_bent_line_has_no_interval_for_its_slope_and_a_hover_tells_the_residual() -> None:
    bent = replace(FITS["dense"], residuals=(Residual(1_000_000, -0.3, 0.01),))
    info = complexity_info(complexity_points(), {**FITS, "dense": bent})
    named = series(info, "dense, slope 1.0, not a straight line")
    assert re.search(r"<br>[\d.]+ % (above|below) the fit$", named.points[-1].hover)
    assert "the fit" not in complexity_info(complexity_points(), FITS, "operations").series[0].points[0].hover


def test_fitted_line_is_the_power_law_above_the_overhead() -> None:
    fitted = series(complexity_info(complexity_points(), FITS), "dense, fitted")
    assert fitted.line == "dot"
    first, last = fitted.points
    assert (first.x, last.x) == (100_000, 10_000_000)
    assert last.y == pytest.approx(0.1 * 10_000_000)
    assert np.log(last.y / first.y) / np.log(last.x / first.x) == pytest.approx(1.0)


def test_operations_are_counted_not_fitted() -> None:
    info = complexity_info(complexity_points(), FITS, "operations", n_label="weights × output pixels n")
    assert [line.name for line in info.series] == ["dense", "csr", "rows removed"]
    assert [point.y for point in series(info, "csr").points] == [5, 500, 50_000, 5_000_000]
    assert info.reference is None
    assert info.x.title.startswith("weights × output pixels n")


def test_unknown_execution_is_refused() -> None:
    points = complexity_points().assign(execution="magic")
    with pytest.raises(InputError, match="unknown execution 'magic': use one of dense, sparse kernel, csr"):
        complexity_info(points, {})
