"""How far a figure can be trusted, and why."""

from dataclasses import dataclass
from functools import cache

from optimizer.analysis.labels import Labelled
from optimizer.analysis.realisation import skipping
from optimizer.analysis.statistics import LatencySummary
from optimizer.methods.engines import engine_info
from optimizer.records import Result
from optimizer.system.environment import environment


class BadgeKind(Labelled):
    """How far a figure can be trusted."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    NOISY = "noisy"
    PRELIMINARY = "preliminary"
    OTHER_MACHINE = "other machine"


BADGES = {
    BadgeKind.MEASURED: "the kernels that ran work in the precision that is shown",
    BadgeKind.SIMULATED: "the values are exact, but other kernels than the name suggests computed with them",
    BadgeKind.NOISY: "the machine was not quiet enough for this latency to be trusted",
    BadgeKind.PRELIMINARY: "a short measurement, as behind the sliders: measure it in full before "
    "relying on it",
    BadgeKind.OTHER_MACHINE: "measured in another environment: its times can't be compared with those "
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


MAX_NAMED = 6


def _skipped(result: Result) -> str:
    """Which layers skipped zeros: an engine that does so decides that for each of them."""
    layers, names = result.execution.layers, skipping(result.execution)
    if not engine_info(result.request.engine).skips_zeros:
        return ""
    if not names:
        return f"none of {len(layers)} layers skipped zeros: dense kernels were faster, with so few of them"
    listed = ", ".join(name.removesuffix(".weight") for name in names[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    rest = len(layers) - len(names)
    dense = f"; the other {rest} ran dense, which was faster there" if rest else ""
    return f"{len(names)} of {len(layers)} layers skipped zeros: {listed}{more}{dense}"


def badges(result: Result, latency: LatencySummary) -> tuple[Badge, ...]:
    """How far the figures of a result can be trusted, wherever one looks at them."""
    simulated, skipped = result.execution.simulated, _skipped(result)
    reasons = {
        BadgeKind.MEASURED: not simulated and (BADGES[BadgeKind.MEASURED], skipped),
        BadgeKind.SIMULATED: simulated and (*simulated, skipped),
        BadgeKind.NOISY: latency.noise,
        BadgeKind.PRELIMINARY: result.latency.quick and (BADGES[BadgeKind.PRELIMINARY],),
    }
    return tuple(Badge(kind, "; ".join(filter(None, words))) for kind, words in reasons.items() if words)


@cache
def _here() -> str:
    return environment().key


def elsewhere(key: str, described: str) -> tuple[Badge, ...]:
    """The badge of what was measured in another environment than this one, by its ``key`` and in words."""
    if key == _here():
        return ()
    return (Badge(BadgeKind.OTHER_MACHINE, f"{BADGES[BadgeKind.OTHER_MACHINE]} ({described})"),)
