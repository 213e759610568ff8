import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.analysis.metrics import METRICS, metric
from optimizer.errors import InputError
from optimizer.formats import (
    MISSING,
    decimals,
    format_bytes,
    format_change,
    format_count,
    format_ns,
    format_p,
    format_percent,
    format_points,
    format_ratio,
    format_share,
    significant,
)


@pytest.mark.parametrize(
    ("format", "value", "written"),
    [
        *((format_bytes, *one) for one in (
            (0, "0 B"), (512, "512 B"), (999, "999 B"), (999.6, "1.00 kB"), (1_000, "1.00 kB"),
            (427_100, "427 kB"), (999_499, "999 kB"), (999_999, "1.00 MB"), (1_230_000, "1.23 MB"),
            (9_999_000, "10.0 MB"), (44_660_000, "44.7 MB"), (2_500_000_000, "2.50 GB"),
        )),
        *((format_ns, *one) for one in (
            (12, "12.0 ns"), (612_300, "612 µs"), (-999_999, "−1.00 ms"), (1_234_567, "1.23 ms"),
            (5_400_000_000, "5.40 s"), (999_900_000_000_000, "999,900 s"),
        )),
    ],
)  # fmt: skip
def test_bytes_and_times_take_the_decimal_unit_that_fits(
    format: Callable[[float], str], value: int, written: str
) -> None:
    assert format(value) == written


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (92.9, 93.9, "93.4 % (92.9 to 93.9)"),
        (89.4, 97.4, "93 % (89 to 97)"),
        (92.4, 94.4, "93.4 % (92.4 to 94.4)"),
        (93.39, 93.41, "93.40 % (93.39 to 93.41)"),
    ],
)
def test_an_interval_says_how_many_digits_are_earned(low: float, high: float, written: str) -> None:
    assert format_percent(93.4, low, high) == written


@pytest.mark.parametrize(
    ("value", "low", "high", "written"),
    [
        (3.75, 0.17, 8.42, "3.8 points (0.2 to 8.4)"),
        (-3.75, -8.42, -0.03, "−3.75 points (−8.42 to −0.03)"),
        (4.0, 0.0, 8.0, "4 points (0 to 8)"),
        (4.0, 0.001, 8.0, "4 points (0.001 to 8)"),
        (0.21, -0.0027, 0.43, "0.21 points (−0.003 to 0.43)"),
        (0.21, 0.0029, 0.42, "0.21 points (0.003 to 0.42)"),
        (4.0, -1e-17, 8.0, "4 points (0 to 8)"),
    ],
)
def test_whether_zero_is_in_an_interval_can_be_read(
    value: float, low: float, high: float, written: str
) -> None:
    """As far as there are decimals: an end that is not 0 does not read 0."""
    assert format_points(value, low, high) == written


def test_a_change_has_a_sign_unless_it_reads_as_none() -> None:
    assert format_change(1.5, 1.2, 1.8) == "+1.50 points (+1.20 to +1.80)"
    assert format_change(-1.5, -1.8, -1.2) == "−1.50 points (−1.80 to −1.20)"
    assert format_change(-0.004, -0.03, 0.02) == "0.00 points (−0.03 to +0.02)"
    assert format_change(0.0, 0.0, 0.0) == "0 points (0 to 0)"


def test_interval_is_written_in_the_unit_of_the_value() -> None:
    assert format_ns(1_020_000, 980_000, 1_060_000) == "1.02 ms (0.98 to 1.06)"
    assert format_ns(999_700, 994_700, 1_004_700) == "1.000 ms (0.995 to 1.005)"
    assert format_ns(999_700, 999_600, 999_800) == "999.70 µs (999.60 to 999.80)"


def test_no_figure_reads_as_a_value_that_its_interval_excludes() -> None:
    percent, ratio = METRICS["accuracy"].format, METRICS["latency_ratio"].format
    assert percent(0.002, 0.0001, 0.01) == "0.002 % (0.0001 to 0.01)"
    assert percent(99.9977, 99.9965, 99.9985) == "99.998 % (99.996 to 99.999)"
    assert percent(100, 94.3, 100) == "100.0 % (94.3 to 100.0)"
    assert ratio(0.97, 0.941, 0.9996) == "0.970× (0.941 to 0.9996)"
    assert ratio(1.0003, 0.993, 1.007) == "1.000× (0.993 to 1.007)"
    assert ratio(0.9996, 0.9992, 0.9999) == "0.9996× (0.999 to 0.9999)"
    assert METRICS["kl"].format(3.1e-5, 2.9e-5, 3.3e-5) == "0.0000310 nats (0.0000290 to 0.0000330)"
    assert [format_share(one) for one in (0, 0.001, 0.3, 0.996, 1)] == [
        "0 %",
        "under 1 %",
        "30 %",
        "over 99 %",
        "100 %",
    ]


def test_negative_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert METRICS["drop"].format(-0.4, -0.9, 0.1) == "−0.4 points (−0.9 to 0.1)"
    assert METRICS["drop"].format(-0.0001, -0.5, 0.5) == "0.0 points (−0.5 to 0.5)"


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [None, math.nan])
def test_missing_is_a_dash_and_never_zero(name: str, value: float | None) -> None:
    assert METRICS[name].format(value) == MISSING
    assert METRICS[name].format(value, None, None) == MISSING


def test_counts_keep_every_digit() -> None:
    assert format_count(1_070_123) == "1,070,123"
    assert METRICS["operations"].format(13_790_720) == "13.8 M"


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [
        (0.1234, 2, "0.12"),
        (99.4, 2, "99"),
        (99.6, 2, "100"),
        (150.2, 2, "150"),
        (12_345.6, 4, "12,346"),
        (50, 4, "50"),
    ],
)
def test_digits_are_counted_without_an_exponent(value: float, digits: int, written: str) -> None:
    assert significant(value, digits) == written


def test_ratio_and_p() -> None:
    assert format_ratio(0.4503, 0.4461, 0.4549) == "0.450× (0.446 to 0.455)"
    assert format_p(0.03123) == "p = 0.031"
    assert format_p(1e-30) == "p < 0.001"
    assert format_p(1.0) == "p = 1"


def test_names_and_columns_are_unique_and_columns_carry_units() -> None:
    columns = [measured.column for measured in METRICS.values()]
    assert len(set(columns)) == len(columns)
    for measured in METRICS.values():
        suffix = {"%": "percent", "points": "points", "B": "bytes", "ns": "ns", "dB": "db", "nats": "nats"}
        assert measured.column.endswith(suffix.get(measured.unit, ""))


def test_loss_turns_higher_is_better_around_and_keeps_missing() -> None:
    np.testing.assert_array_equal(METRICS["accuracy"].loss([90.0, math.nan]), [-90.0, math.nan])
    np.testing.assert_array_equal(METRICS["latency"].loss([2.0, math.nan]), [2.0, math.nan])


def test_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown metric 'speed': use one of accuracy, balanced_accuracy, "):
        metric("speed")


@given(st.floats(1e-3, 1e12), st.floats(1e-4, 0.5))
def test_written_value_lies_within_its_interval(value: float, share: float) -> None:
    """Rounding never moves a value by more than half of its interval's half-width."""
    half = value * share
    places = decimals(value, value - half, value + half)
    assert abs(round(value, places) - value) <= 0.5 * half + 1e-9 * value
    assert abs(round(value, places) - value) <= 0.5 * 10.0**-places + 1e-9 * value


@given(st.floats(1, 1e11))
def test_three_digits_without_an_interval(value: float) -> None:
    number, unit = format_bytes(value).split()
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert float(number.replace(",", "")) * factor == pytest.approx(value, rel=5.01e-3)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("drop", 1, "1.0 points"),
        ("drop", 1.25, "1.25 points"),
        ("drop", 0.001, "0.001 points"),
        ("latency", 12.3456e6, "12.3456 ms"),
        ("latency_ratio", 0.5, "0.500×"),
        ("file_size", 1.2345e6, "1.2345 MB"),
        ("sqnr", -1e-3, "−0.001 dB"),
    ],
)
def test_what_was_given_is_not_rounded(name: str, given: float, said: str) -> None:
    """1.25 points, as a limit, were told as 1.2."""
    assert metric(name).format.given(given) == said
