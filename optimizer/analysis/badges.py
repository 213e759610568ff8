"""How far a figure can be trusted, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.analysis.labels import Labelled
from optimizer.formats import listed
from optimizer.methods.engines import engine_info
from optimizer.records import Environment
from optimizer.system.environment import describe, environment

NOT_SAID = (
    "Fine-tuning, or more of it, can raise the accuracy.",
    "Accuracy holds for images like those it was measured on. Other images can lose more, and a class more "
    "than the mean.",
    "Times hold for the engine, machine, batch size and thread count named here, and not for other runtimes. "
    "On a busy machine, or behind a server, calls take longer.",
    "Zeros in a dense kernel are multiplied like any other number: unless the kernels are named sparse, "
    "pruning changes accuracy and zstd size, not time.",
    "A precision called simulated shows what accuracy it has, not how fast kernels of it would be.",
)
"""What no figure says, in a report or on a model card."""


class BadgeKind(Labelled):
    """How far a figure can be trusted."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    NOISY = "noisy"
    PRELIMINARY = "preliminary"
    OTHER_ENVIRONMENT = "other machine", "other environment"


BADGES = {
    BadgeKind.MEASURED: "the kernels that ran compute in the precision shown",
    BadgeKind.SIMULATED: "the values are exact, but other kernels than the name suggests computed with them",
    BadgeKind.NOISY: "the machine was not quiet enough for this latency to be trusted",
    BadgeKind.PRELIMINARY: "a short measurement, as behind the sliders: measure it in full before "
    "relying on it",
    BadgeKind.OTHER_ENVIRONMENT: "measured in another environment: its times can't be compared with those "
    "measured here",
}


@dataclass(frozen=True, slots=True)
class Badge:
    """How far a figure can be trusted, and in ``words`` why here."""

    kind: BadgeKind
    words: str

    @property
    def text(self) -> str:
        """``noisy: the machine was not quiet enough``."""
        return f"{self.kind.label}: {self.words}"


def elsewhere(place: str) -> str:
    """That it was measured there."""
    return f"{BADGES[BadgeKind.OTHER_ENVIRONMENT]} ({place})"


def badges_of(
    simulated: Sequence[str] | None, noisy: str, quick: bool, place: Environment
) -> dict[BadgeKind, str]:
    """Of a run of several times, each with why. ``simulated`` is None where that was not recorded."""
    measured = simulated is not None and not simulated
    found = {
        BadgeKind.MEASURED: BADGES[BadgeKind.MEASURED] if measured else "",
        BadgeKind.SIMULATED: "; ".join(simulated or ()),
        BadgeKind.NOISY: noisy,
        BadgeKind.PRELIMINARY: BADGES[BadgeKind.PRELIMINARY] if quick else "",
        BadgeKind.OTHER_ENVIRONMENT: "" if place.key == environment().key else elsewhere(describe(place)),
    }
    return {kind: words for kind, words in found.items() if words}


MAX_NAMED = 6


def describe_skipped(engine: str, names: Sequence[str], skipping: int, layers: int) -> str:
    """How many of so many layers skipped zeros, and the first of them by ``names``: an engine that does so
    decides that for each of them."""
    if not engine_info(engine).skips_zeros:
        return ""
    if not skipping:
        return f"none of {layers} layers skipped zeros: no kernel that does so was faster"
    named = listed([name.removesuffix(".weight") for name in names], MAX_NAMED, skipping)
    rest = layers - skipping
    dense = f"; the other {rest} ran dense, which was faster there" if rest else ""
    return f"{skipping} of {layers} layers skipped zeros: {named}{dense}"
