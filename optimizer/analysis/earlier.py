"""Whether an earlier result says anything of another one, or of one that is still to be measured."""

from dataclasses import dataclass, replace

from optimizer.analysis.comparison import same_baseline
from optimizer.errors import InputError
from optimizer.formats import count
from optimizer.records import Request, Result, Settings


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which a result was measured, or will be: what decides whether another can be compared with it.

    ``request`` has the threads that 0 stands for. ``images`` is the fingerprint of the evaluated ones, of
    which there are ``total``; ``reference`` is as in :class:`~optimizer.records.Accuracy`, ``environment``
    the key of the machine and its libraries, ``weights`` as in a result.
    """

    request: Request
    environment: str
    weights: str
    images: str
    total: int
    reference: str

    @classmethod
    def of(cls, result: Result) -> "Conditions":
        scored, timed = result.accuracy, result.latency
        settings = replace(
            result.request.settings, batch=timed.batch, threads=timed.threads, quick=timed.quick
        )
        return cls(
            replace(result.request, settings=settings),
            result.environment.key,
            result.weights,
            scored.images,
            scored.total,
            scored.reference,
        )

    @property
    def scored_on(self) -> tuple[object, ...]:
        """Which images in which order, wherever they lie, and what their answers are held against."""
        data = self.request.data
        return self.images, self.total, self.reference, data.seed, data.calibration_share


def check_scored_alike(now: Conditions, before: Conditions) -> None:
    """Whether the answers of two results can be compared image by image. Raises InputError where they can't;
    ``before`` is the earlier one."""
    if now.scored_on != before.scored_on:
        raise InputError(
            f"the earlier result was scored on {count(before.total, 'image')} against {before.reference}, "
            f"this one on {count(now.total, 'image')} against {now.reference}, which are not the same: "
            "give the same --data, --limit and --seed"
        )
    if now.reference == "baseline" and not same_baseline(now, before):
        here, earlier = (f"{one.request.model} on {one.request.engine}" for one in (now, before))
        raise InputError(
            "without labels the answers are held against those of the uncompressed model, which is another "
            f"one here ({here}) than in the earlier result "
            f"({earlier if earlier != here else 'other weights of that name'}): give images with labels, or "
            "an earlier result of the same model and engine"
        )


def check_timed_alike(now: Conditions, before: Conditions, options: str) -> None:
    """Whether the times of two results say anything of each other. Raises InputError where they don't;
    ``before`` is the earlier one, ``options`` are those that ask for it."""
    if now.environment != before.environment:
        raise InputError(
            "the earlier result was timed on another machine or with other libraries: leave out "
            f"{options}, or time it here"
        )
    for name in ("engine", "model"):
        earlier, here = getattr(before.request, name), getattr(now.request, name)
        if earlier != here:
            raise InputError(
                f"the earlier result is of {name} {earlier}, this one of {here}: times are compared through "
                f"the same uncompressed model. Leave out {options}, or give an earlier result of {here}"
            )
    timed, asked = before.request.settings, now.request.settings
    in_full = "give --quick, or an earlier result that was timed in full"
    ways = [
        *_apart("with batch size {}", timed.batch, asked.batch, f"give --batch-size {timed.batch}"),
        *_apart("with --threads {}", timed.threads, asked.threads, f"give --threads {timed.threads}"),
        *_apart("{}", _length(timed), _length(asked), in_full if timed.quick else "leave out --quick"),
    ]
    if ways:
        earlier, here, to_do = (", ".join(words) for words in zip(*ways, strict=True))
        raise InputError(f"the earlier result was timed {earlier}, this one {here}: {to_do}")


def _apart(words: str, earlier: object, here: object, to_do: str) -> list[tuple[str, str, str]]:
    """Of one way in which two results may be timed otherwise: both in words, and what to do."""
    return [(words.format(earlier), words.format(here), to_do)] if earlier != here else []


def _length(settings: Settings) -> str:
    return "quickly" if settings.quick else "in full"


def check_same_network(result: Result, against: Result) -> None:
    """Whether the uncompressed models that two results of one name were timed beside are one network. Raises
    InputError where another one had the name before."""
    before, now = (
        sorted((layer.shape, layer.macs) for layer in one.inspection.layers) for one in (against, result)
    )
    if before != now:
        raise InputError(
            f"the earlier result is of another network that had the name {result.request.model}: times are "
            "compared through the same uncompressed model. Leave out --max-slowdown, or give both networks "
            "as files"
        )
