"""Colours and markers, the same on every page, in exports and in the report. No plotly here.

Realisations are hues of Okabe and Ito's palette, which colour-blind readers tell apart, and differ in marker
too. Bit widths are one ordered ramp, fewer bits darker. The accent is for the configuration under the
sliders and nothing else.
"""

from dataclasses import dataclass

from optimizer.analysis.realisation import Realisation
from optimizer.recipe import WEIGHT_BITS

FONT = '"Source Sans", "Source Sans Pro", "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

MARKERS = {
    Realisation.DENSE: "circle",
    Realisation.INT8: "square",
    Realisation.SPARSE: "diamond",
    Realisation.SHRUNK: "triangle-up",
    Realisation.HALF: "pentagon",
    Realisation.UNKNOWN: "x",
}
"""Every realisation (what the kernels really did) and its marker."""


@dataclass(frozen=True)
class Theme:
    """Colours of one mode; ``colours`` has one a role, such as ``bits 4``, ``int8 kernels``, ``accent``."""

    page: str
    text: str
    muted: str
    grid: str
    colours: dict[str, str]


def _theme(
    page: str, text: str, muted: str, grid: str, accent: str, baseline: str, faint: str,
    bits: tuple[str, ...], realisations: tuple[str, ...],
) -> Theme:  # fmt: skip
    return Theme(
        page,
        text,
        muted,
        grid,
        {
            "accent": accent,
            "baseline": baseline,
            "faint": faint,
            "file": text,
            "compressed": baseline,
            "packed": faint,
            **{f"bits {width}": colour for width, colour in zip(WEIGHT_BITS, bits, strict=True)},
            **dict(zip(MARKERS, realisations, strict=True)),
        },
    )


LIGHT = _theme(
    page="#ffffff", text="#1f2933", muted="#5b6774", grid="#e7ebef",
    accent="#d6117c", baseline="#7b8794", faint="#a3aebb",
    bits=("#2f1f52", "#3a3a76", "#355488", "#2d6c94", "#28829b", "#2c959c", "#3aa89f", "#68bca4", "#8fcbae"),
    realisations=("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#7b8794"),
)  # fmt: skip
DARK = _theme(
    page="#171614", text="#e6eaef", muted="#a3adb8", grid="#262c36",
    accent="#ea4f9f", baseline="#8d99a6", faint="#66727f",
    bits=("#7d66b0", "#6f78b8", "#638bbf", "#5d9dc3", "#60aec5", "#6fbdc4", "#85cbc3", "#afe0cd", "#d8f3e2"),
    realisations=("#3f9fe0", "#ee7a3b", "#1fbf8f", "#f2b632", "#8fd0f5", "#8d99a6"),
)  # fmt: skip


def theme(dark: bool) -> Theme:
    return DARK if dark else LIGHT
