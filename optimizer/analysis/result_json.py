"""One JSON object a result: what ``paretoscope measure --json`` prints."""

from typing import Any

import msgspec
import numpy as np

from optimizer.analysis import fidelity
from optimizer.analysis.outcomes import share_interval
from optimizer.analysis.summary import Summary, summarise
from optimizer.records import Result, Size

JSON_VERSION = 3
"""Version of :func:`as_json`. A key that changes its meaning or goes raises it; a new key does not.
2: latency is that of a network at its steady pace, and ``calls_a_sample`` went. 3: a network without classes
has no accuracy, which was how often the places of its largest values agreed."""


def as_json(result: Result) -> dict[str, Any]:
    """What ``paretoscope measure --json`` prints: plain data, no NaN, missing figures are null.

    ================  ====================================================================================
    ``version``       of this object, 3
    ``key``           name of the result in the store
    ``model``         name
    ``engine``        name
    ``recipe``        as plain data; ``recipe_words`` says it in words
    ``data``          which images, and how many (``images``) were evaluated
    ``accuracy``      shares from 0 to 1: ``value``, 95 % interval ``low``, ``high``; ``correct`` of
                      ``total`` images; ``reference``: right against ``labels``, or against the
                      uncompressed model's answers (``baseline``) where images have none. Where outputs are
                      no logits all but the last two are null, and so are the figures of ``drop``, the shares
                      of ``agreement``, and the accuracy of ``baseline``
    ``agreement``     share of images answered like the uncompressed model: ``value``, ``low``, ``high``;
                      ``sqnr_db`` and ``kl_nats`` of the logits (or of the worst output), with
                      ``sqnr_db_low``, ``sqnr_db_high``, ``kl_nats_low`` and ``kl_nats_high``
    ``outputs``       those that are no logits, one by one: see :func:`optimizer.analysis.fidelity.as_json`
    ``baseline``      the uncompressed model on the same engine: ``accuracy``, ``size_bytes`` and
                      ``latency_median_ns``
    ``drop``          percentage ``points`` lost (positive is worse) with the 95 % interval ``low``, ``high``;
                      ``p`` of McNemar's test, null without labels; ``verdict`` (worse, better, no measurable
                      difference: the interval excludes 0 or not), without labels of the agreement:
                      ``worse`` means that answers changed; images ``lost`` and ``gained``
    ``size_bytes``    by kind: ``file``, ``packed``, ``compressed``, ``memory``; ``packed_coding`` says how
    ``weights``       ``total``, ``nonzero``; ``operations``: multiply-accumulates that meet a non-zero one
    ``latency``       ``median_ns`` of a call with ``low_ns``, ``high_ns``; ``ratio`` to the baseline with
                      ``ratio_low``, ``ratio_high``; ``verdict`` (faster, slower, no measurable difference,
                      noisy); ``detectable``: the share by which a time must change to be told, or null;
                      ``rounds``; ``noise``: reasons; ``p95_ns`` and ``p99_ns`` when there were
                      rounds enough; ``aa_ratio``, ``aa_low``, ``aa_high``: the baseline against itself;
                      ``first_call_ns``, ``first_call_low_ns``, ``first_call_high_ns`` and
                      ``first_call_ratio``, ``first_call_ratio_low``, ``first_call_ratio_high``: of the
                      first call after another network; ``settling_calls``: those before a visit's timed ones;
                      ``processes`` that timed, the ratios that each found (``process_ratios``), and
                      ``processes_lost``; ``instructions`` of a call in each process, of ``baseline`` and
                      ``variant``, null where the kernel counts none; ``quick``, ``batch``, ``threads``;
                      ``shared_with``: the recipe that was timed, when another one with the same instructions
                      was; ``cold_start_ns`` and ``baseline_cold_start_ns``: a fresh process from files to the
                      first answer
    ``execution``     ``realisation``; ``precisions``: layers by the precision they ran in; ``simulated``: in
                      words what the kernels did not do
    ``badges``        names, see :class:`optimizer.analysis.badges.BadgeKind`
    ``environment``   machine and libraries that were timed
    ``scored_on``     those that worked out ``accuracy``, ``drop`` and ``size_bytes``, where that was another
                      machine; else null
    ``notes``         what else to know about model and images
    ``created``       when, UTC
    ================  ====================================================================================
    """
    summary = summarise(result)
    measures, latency, drop = summary.measures, summary.latency, summary.drop
    plain: dict[str, Any] = {
        "version": JSON_VERSION,
        "key": summary.key,
        "model": summary.request.model,
        "engine": summary.request.engine,
        "recipe": summary.recipe.to_dict(),
        "recipe_words": summary.description,
        "data": {**msgspec.to_builtins(summary.request.data), "images": summary.total},
        "accuracy": _accuracy(summary, summary.correct),
        "agreement": {
            **_fraction(summary, result.accuracy.agreement),
            "sqnr_db": measures["sqnr"].value,
            "sqnr_db_low": measures["sqnr"].low,
            "sqnr_db_high": measures["sqnr"].high,
            "kl_nats": measures["kl"].value,
            "kl_nats_low": measures["kl"].low,
            "kl_nats_high": measures["kl"].high,
        },
        "outputs": fidelity.as_json(result.accuracy.outputs),
        "baseline": {
            "accuracy": _accuracy(summary, summary.baseline_correct),
            "size_bytes": _size_bytes(summary.baseline_size),
            "latency_median_ns": measures["latency"].baseline,
        },
        "drop": {
            name: None if summary.fidelity else getattr(drop, name)
            for name in ("points", "low", "high", "p", "verdict", "lost", "gained")
        },
        "size_bytes": _size_bytes(summary.size),
        "packed_coding": summary.size.coding,
        "weights": {
            "total": summary.size.elements,
            "nonzero": summary.size.nonzero,
            "operations": measures["operations"].value,
        },
        "latency": {
            "median_ns": latency.median_ns,
            "low_ns": measures["latency"].low,
            "high_ns": measures["latency"].high,
            "ratio": latency.ratio,
            "ratio_low": latency.ratio_low,
            "ratio_high": latency.ratio_high,
            "verdict": latency.verdict,
            "detectable": latency.detectable,
            "rounds": latency.rounds,
            "noise": list(latency.noise),
            "p95_ns": latency.p95_ns,
            "p99_ns": latency.p99_ns,
            "aa_ratio": latency.aa_ratio,
            "aa_low": latency.aa_low,
            "aa_high": latency.aa_high,
            "first_call_ns": measures["first_call"].value,
            "first_call_low_ns": measures["first_call"].low,
            "first_call_high_ns": measures["first_call"].high,
            "first_call_ratio": measures["first_call_ratio"].value,
            "first_call_ratio_low": measures["first_call_ratio"].low,
            "first_call_ratio_high": measures["first_call_ratio"].high,
            "settling_calls": float(np.median(result.latency.variant.settling)),
            "processes": len(summary.processes),
            "process_ratios": list(summary.process_ratios),
            "processes_lost": result.latency.lost,
            "instructions": result.latency.instructions,
            "quick": summary.quick,
            "batch": summary.batch,
            "threads": summary.threads,
            "shared_with": summary.shared_with,
            "cold_start_ns": measures["cold_start"].value,
            "baseline_cold_start_ns": measures["cold_start"].baseline,
        },
        "execution": {
            "realisation": summary.realisation,
            "precisions": dict(summary.precisions),
            "simulated": list(summary.simulated),
        },
        "badges": [badge.kind for badge in summary.badges],
        "environment": msgspec.to_builtins(result.environment),
        "scored_on": msgspec.to_builtins(result.scored_on),
        "notes": list(summary.notes),
        "created": summary.created,
    }
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(plain, enc_hook=_plain))
    return decoded  # NaN has become null


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def _accuracy(summary: Summary, count: int) -> dict[str, Any]:
    return {
        **_fraction(summary, count),
        "correct": None if summary.fidelity else count,
        "total": summary.total,
        "reference": summary.reference,
    }


def _fraction(summary: Summary, count: int) -> dict[str, float | None]:
    """Of all images; missing where outputs are no logits, so that there are no answers to count."""
    if summary.fidelity:
        return dict.fromkeys(("value", "low", "high"))
    low, high = share_interval(count, summary.total)
    return {"value": count / summary.total, "low": low, "high": high}


def _size_bytes(size: Size) -> dict[str, int | None]:
    return {
        "file": size.file_bytes,
        "packed": size.packed_bytes,
        "compressed": size.compressed_bytes,
        "memory": size.memory_bytes,
    }
