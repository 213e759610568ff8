"""Two networks against each other in words, tables and JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from optimizer.analysis import fidelity
from optimizer.analysis.labels import engine_label
from optimizer.analysis.measures import Measure, sqnr
from optimizer.analysis.outcomes import AccuracyVerdict
from optimizer.analysis.statistics import LatencyVerdict
from optimizer.analysis.summary import describe_images
from optimizer.analysis.two_files import (
    SAME_DB,
    Side,
    TwoFiles,
    accuracies,
    accuracy_lost,
    answers_alike,
    db_of,
    parting,
    precisions,
    size_ratio,
    time_taken,
    times_of,
    undone,
    widest_fall,
)
from optimizer.formats import (
    columns,
    count,
    format_bytes,
    format_ns,
    format_p,
    format_percent,
    format_ratio,
)

if TYPE_CHECKING:
    import pandas as pd


def names(run: TwoFiles) -> tuple[str, str]:
    """What the two are called: files of one name are told apart."""
    a, b = run.a.name, run.b.name
    return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")


def sentence(run: TwoFiles) -> str:
    """What a colleague would be told first."""
    said = [*_answer_words(run), *_accuracy_words(run), _time_words(run)]
    ratio = size_ratio(run)
    large = "as large" if ratio == 1 else f"{format_ratio(ratio)} as large"
    return f"{names(run)[1]} {', '.join(said)}, and its file is {large}."


def _time_words(run: TwoFiles) -> str:
    taken = time_taken(run.latency)
    if taken.verdict is LatencyVerdict.SAME:
        return f"takes as long, as far as can be measured ({taken.detectable_words})"
    if taken.verdict is LatencyVerdict.NOISY:
        return "takes a time that is too noisy to compare"
    return f"is {taken.verdict.label}, at {taken.ratio_words} of its time"


def _answer_words(run: TwoFiles) -> Iterator[str]:
    images = count(run.total, "made-up image" if run.made_up else "image")
    alike, (other, _) = answers_alike(run), names(run)
    if all(one.largest == 0 for one in run.outputs):
        yield f"gives the outputs of {other} exactly on {images}"
    elif alike is not None:
        share = format_percent(alike.value, alike.low, alike.high)
        yield f"gives the answer of {other} on {share} of {images}"
    else:
        worst = min(run.outputs, key=db_of)
        which = "its output" if len(run.outputs) == 1 else f"the worst of its outputs, {worst.name},"
        yield f"keeps {which} at an SQNR of {fidelity.sqnr_text(worst)} to that of {other} on {images}"


def _accuracy_words(run: TwoFiles) -> Iterator[str]:
    drop = accuracy_lost(run)
    if drop is None:
        return
    match drop.verdict:
        case AccuracyVerdict.SAME:
            yield "has no measurable difference in accuracy"
        case AccuracyVerdict.WORSE:
            yield f"loses {drop.words} of accuracy"
        case _:
            yield f"gains {drop.turned.words} of accuracy"


def conclusions(run: TwoFiles) -> tuple[str, ...]:
    """What follows the first sentence."""
    return (*_accuracy(run), *_parting(run), *_kernels(run), *_alone(run), *run.notes)


def _accuracy(run: TwoFiles) -> Iterator[str]:
    both, drop = accuracies(run), accuracy_lost(run)
    if both is None or drop is None or drop.p is None:
        return
    (first, second), (a, b) = (format_percent(one.value, one.low, one.high) for one in both), names(run)
    yield (
        f"Accuracy {first} of {a}, {second} of {b}: {drop.verdict.label}. Right in the first "
        f"alone: {count(drop.lost, 'image')}, in the second alone: {count(drop.gained, 'image')}; McNemar's "
        f"test, {format_p(drop.p)}."
    )


def _parting(run: TwoFiles) -> Iterator[str]:
    if not run.layers:
        yield "No layer was found in both, by its name or by its order and shape."
        return
    total, first, fall = count(len(run.layers), "layer"), parting(run), widest_fall(run)
    if some := undone(run):
        yield (
            f"{len(some)} of {total}, the first {some[0].reference}, lie below 0 dB though later ones agree: "
            "their channels stand in another order, or rotated, as data-aware methods leave them, "
            "and what reads them takes that back. They are left out of what follows."
        )
    if first is None:
        all_of_them = "All others" if some else f"All {total} that both have"
        yield f"{all_of_them} agree but for the rounding of float32 (above {SAME_DB:g} dB)."
        return
    yield (
        f"Of {total} that both have, the two part ways first at {first.reference}: "
        f"{fidelity.sqnr_text(first)}."
    )
    if fall and fall[1] != first:
        yield (
            f"The widest fall is at {fall[1].reference}, from {fidelity.sqnr_text(fall[0])} to "
            f"{fidelity.sqnr_text(fall[1])}."
        )


def _kernels(run: TwoFiles) -> Iterator[str]:
    a, b = names(run)
    ran = (f"{name} {_ran(side) or 'unknown'}" for name, side in ((a, run.a), (b, run.b)))
    yield f"Layers by the precision that they ran in: {'; '.join(ran)}."


def _alone(run: TwoFiles) -> Iterator[str]:
    a, b = names(run)
    for name, side, other in ((a, run.a, b), (b, run.b, a)):
        if side.alone:
            yield f"{name} has outputs that {other} lacks: {', '.join(side.alone)}."


def images_words(run: TwoFiles) -> str:
    if run.made_up:
        return f"{count(run.total, 'made-up image')} (noise, and smooth shapes)"
    return describe_images(run.request.data, run.total)


def figures(run: TwoFiles) -> list[dict[str, str]]:
    """The two beside each other, and B against A: a row a figure."""
    taken, both, alike = time_taken(run.latency), accuracies(run), answers_alike(run)
    before, own = times_of(run.latency)
    drop = accuracy_lost(run)
    found = [
        (
            "file",
            format_bytes(run.a.size_bytes),
            format_bytes(run.b.size_bytes),
            format_ratio(size_ratio(run)),
        ),
        (
            "latency",
            format_ns(*before),
            format_ns(*own),
            f"{taken.ratio_words}, {taken.verdict.label}",
        ),
        ("layers ran in", _ran(run.a), _ran(run.b), ""),
    ]
    if both and drop:
        first, second = (format_percent(one.value, one.low, one.high) for one in both)
        found.insert(0, ("accuracy", first, second, f"{drop.words} lost, {drop.verdict.label}"))
    if alike:
        found.insert(0, ("same top-1 class", "", "", format_percent(alike.value, alike.low, alike.high)))
    heads = ("", f"A: {run.a.name}", f"B: {run.b.name}", "B against A")
    return [dict(zip(heads, row, strict=True)) for row in found]


def _ran(side: Side) -> str:
    return ", ".join(f"{number} in {precision}" for precision, number in precisions(side).items())


def layer_frame(run: TwoFiles) -> "pd.DataFrame":
    """One row a layer that both have. Columns: ``layer``, ``in B``, ``shape``, ``SQNR`` in dB (NaN where the
    two are equal), ``interval``, ``cosine``, ``A ran in``, ``B ran in``."""
    import pandas as pd

    ran = [{layer.name: layer for layer in side.layers} for side in (run.a, run.b)]
    found = []
    for layer in run.layers:
        how = [
            " and ".join(side[name].precisions) if name in side else ""
            for side, name in zip(ran, (layer.reference, layer.name), strict=True)
        ]
        measure = sqnr(layer)
        found.append(
            {
                "layer": layer.reference,
                "in B": layer.name if layer.name != layer.reference else "",
                "shape": " × ".join(map(str, layer.shape)),
                "SQNR": measure.value,
                "interval": "" if measure.low is None else f"{measure.low:.1f} to {measure.high:.1f}",
                "cosine": layer.cosine,
                "A ran in": how[0],
                "B ran in": how[1],
            }
        )
    return pd.DataFrame(found)


def text(run: TwoFiles) -> str:
    """All of it, as a terminal shows it."""
    blocks = [
        sentence(run),
        "\n".join(conclusions(run)),
        f"On {images_words(run)}, by {engine_label(run.engine)}:",
    ]
    tables: list[Sequence[Mapping[Any, str]]] = [figures(run), fidelity.rows(run.outputs)]
    frame = layer_frame(run)
    if len(frame):
        shown = frame.assign(SQNR=[fidelity.sqnr_text(layer) for layer in run.layers])
        shown = shown.drop(columns=["interval", "cosine"])
        tables.append(shown.astype(str).to_dict("records"))
    blocks += [columns([tuple(rows[0]), *(tuple(row.values()) for row in rows)]) for rows in tables]
    return "\n\n".join(blocks)


def as_json(run: TwoFiles) -> dict[str, Any]:
    """The comparison as a JSON object versioned by ``schema``. Times are ns, sizes bytes, shares 0 to 1.

    - ``sentence``, ``conclusions``: in words
    - ``a``, ``b``: ``name``, ``kind``, ``content`` (a digest), ``size_bytes``, ``precisions`` (layers by the
      precision that they ran in), ``layers`` (``name``, ``precision``, ``kernel``), ``outputs_alone``
    - ``engine``, ``threads``, ``batch``, ``images``, ``made_up``, ``created``, ``environment``
    - ``outputs``, ``layers``: as :func:`optimizer.analysis.fidelity.as_json` says; ``layer_images``
    - ``same_answer``: ``value``, ``low``, ``high``; null for outputs that are no logits
    - ``accuracy``: ``a``, ``b``, and ``drop_points`` with ``low``, ``high``, ``p``, ``verdict``; null
      without labels
    - ``size_ratio``; ``latency``: ``a_ns``, ``b_ns``, ``ratio``, ``low``, ``high``, ``verdict``, ``noise``
    - ``parting``, ``widest_fall``: names of layers, or null
    """
    taken, alike, drop, both = (
        time_taken(run.latency),
        answers_alike(run),
        accuracy_lost(run),
        accuracies(run),
    )
    first, fall = parting(run), widest_fall(run)
    before, own = times_of(run.latency)
    plain: dict[str, Any] = msgspec.to_builtins(
        {
            "schema": run.schema,
            "sentence": sentence(run),
            "conclusions": conclusions(run),
            **{
                name: {
                    "name": side.name,
                    "kind": side.kind,
                    "content": side.content,
                    "size_bytes": side.size_bytes,
                    "precisions": precisions(side),
                    "layers": side.layers,
                    "outputs_alone": side.alone,
                }
                for name, side in (("a", run.a), ("b", run.b))
            },
            "engine": run.engine,
            "threads": run.latency.threads,
            "batch": run.latency.batch,
            "images": run.total,
            "made_up": run.made_up,
            "created": run.created,
            "environment": run.environment,
            "outputs": fidelity.as_json(run.outputs),
            "layers": fidelity.as_json(run.layers),
            "layer_images": run.layer_images,
            "same_answer": None if alike is None else _shares(alike),
            "accuracy": None
            if both is None or drop is None
            else {
                "a": _shares(both[0]),
                "b": _shares(both[1]),
                "drop_points": drop.points,
                "low": drop.low,
                "high": drop.high,
                "p": drop.p,
                "verdict": drop.verdict,
            },
            "size_ratio": size_ratio(run),
            "latency": {
                "a_ns": before[0],
                "b_ns": own[0],
                "ratio": taken.ratio,
                "low": taken.ratio_low,
                "high": taken.ratio_high,
                "verdict": taken.verdict,
                "noise": taken.noise,
            },
            "parting": first and first.reference,
            "widest_fall": fall and fall[1].reference,
        }
    )
    return plain


def _shares(percent: Measure) -> dict[str, float]:
    ends = {"value": percent.value, "low": percent.low, "high": percent.high}
    return {name: end / 100 for name, end in ends.items() if end is not None}
