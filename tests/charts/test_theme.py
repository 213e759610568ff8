"""Colours and markers can be told apart."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from optimizer.charts.theme import DARK, LIGHT, MARKERS, Theme
from optimizer.recipe import WEIGHT_BITS


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_fewer_bits_are_darker(theme: Theme) -> None:
    ramp = [luminance(theme.colours[f"bits {bits}"]) for bits in WEIGHT_BITS]
    assert ramp == sorted(ramp)
    assert len(set(ramp)) == len(ramp)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_can_be_seen(theme: Theme) -> None:
    assert contrast(theme.text, theme.page) > 7
    assert contrast(theme.muted, theme.page) > 4.5
    assert contrast(theme.colours["accent"], theme.page) > 4.5, "words are written in it, and on it"
    for bits in WEIGHT_BITS[:-2]:
        assert contrast(theme.colours[f"bits {bits}"], theme.page) > 2.5


def test_the_page_has_the_charts_accent() -> None:
    config = tomllib.loads((Path(__file__).parents[2] / ".streamlit" / "config.toml").read_text())["theme"]
    for mode, theme in (("light", LIGHT), ("dark", DARK)):
        assert config[mode]["primaryColor"] == theme.colours["accent"]


def test_realisations_differ_in_hue_and_in_marker() -> None:
    assert len(set(MARKERS.values())) == len(MARKERS)
    for theme in (LIGHT, DARK):
        assert len({theme.colours[name] for name in MARKERS}) == len(MARKERS)
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in theme.colours.values())
