"""Labels and sentences are made last: with every one of them reworded, nothing but the words changes."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pandas as pd
import pytest
from factories import make_result, make_sweep, recipe, remade
from test_coverage import between, conversion, layer, profile
from test_growth import run as complexity_run
from test_serving import make_run

from optimizer import charts
from optimizer.analysis import (
    badges,
    comparison,
    conclusions,
    coverage,
    frame,
    growth,
    headline,
    noise,
    realisation,
    scaling,
    serving,
    statistics,
    summary,
)
from optimizer.analysis.coverage import Coverage
from optimizer.analysis.frontier import Frontier, frontier_of
from optimizer.analysis.labels import Labelled
from optimizer.analysis.metrics import METRICS
from optimizer.analysis.scaling import ComplexityRun
from optimizer.analysis.serving import ServingRun
from optimizer.analysis.summary import summarise
from optimizer.charts import families, points
from optimizer.charts.spec import Lines, Stacks
from optimizer.export.report import report
from optimizer.methods.engines import ENGINES
from optimizer.recipe import PRECISIONS, Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Result
from optimizer.store.keys import request_key

TRAPS = (
    "no sparse kernels here (", "sparse", "csr", "uncompressed", "activations", " (", ")", " · ", ", ",
    " and ", " + ", "between operations", "noisy", "faster", "measured", "dense fp32", "i8", "1 %", " n",
)  # fmt: skip
"""What something was once decided by."""


def wording(seed: int) -> Callable[[object], str]:
    """New words, with traps among them: the same for the same thing, others for any other."""

    def words(of: object) -> str:
        drawn = random.Random(f"{seed} {of}")
        parts = [drawn.choice((*TRAPS, "lorem", "ipsum")) for _ in range(drawn.randint(1, 4))]
        return f"{''.join(parts)} {drawn.getrandbits(48):x}"

    return words


def states(kind: type[Labelled] = Labelled) -> Iterator[Labelled]:
    for one in kind.__subclasses__():
        yield from one


def reword(monkeypatch: pytest.MonkeyPatch, words: Callable[[object], str]) -> None:
    for state in states():
        monkeypatch.setattr(state, "label", words((type(state).__name__, state.value)))
    for name, engine in ENGINES.items():
        monkeypatch.setitem(ENGINES, name, replace(engine, label=words(name), help=words(f"help of {name}")))
    for table in (badges.BADGES, PRECISIONS):
        for name in table:
            monkeypatch.setitem(table, name, words(name))  # type: ignore[arg-type]
    for name, metric in METRICS.items():
        monkeypatch.setitem(METRICS, name, replace(metric, label=words(name), help=words(f"help of {name}")))
    for module in (headline, realisation):
        monkeypatch.setattr(module, "FALLBACK", words("fallback"))
    monkeypatch.setattr(Recipe, "describe", lambda self, details=True: words((self, details)))
    monkeypatch.setattr(families.Options, "words", property(lambda self: words(tuple(self))))
    monkeypatch.setattr(noise.Noise, "words", property(lambda self: words(self.kind.value)))
    monkeypatch.setattr(statistics.LatencySummary, "detectable_words", property(lambda self: words("least")))
    monkeypatch.setattr(serving.Configuration, "words", property(lambda self: words(asdict(self))))
    for name in ("may_be", "_thresholds"):
        monkeypatch.setattr(headline, name, lambda *_: words("a sentence"))
    monkeypatch.setattr(summary, "describe_images", lambda *_: words("images"))
    monkeypatch.setattr(summary, "describe", lambda *_: words("machine"))
    monkeypatch.setattr(scaling, "n_is", lambda *_: words("n"))
    summary._summaries.clear()


def said_otherwise(result: Result, words: Callable[[object], str]) -> Result:
    """With other notes of the engine, and kernels of other names."""
    execution = replace(
        result.execution,
        layers=tuple(replace(one, kernel=words(one.kernel)) for one in result.execution.layers),
        simulated=tuple(map(words, result.execution.simulated)),
        fallback=result.execution.fallback and words(result.execution.fallback),
    )
    return replace(result, execution=execution, notes=tuple(map(words, result.notes)))


def results() -> list[Result]:
    """Of every kind that a word once told apart."""
    made = [*make_sweep(sparsities=(0.0, 0.5, 0.8), bits=(32, 8, 4)), *_ways()]
    sparse = make_result(recipe(0.8), engine="sparse", ratio=0.7)
    layers = tuple(replace(one, skips_zeros=True) for one in sparse.execution.layers)
    skipped = remade(sparse, execution=replace(sparse.execution, layers=layers))
    stood_in = remade(sparse, execution=replace(skipped.execution, fallback="none was built"))
    return [
        *made,
        sparse,
        skipped,
        stood_in,
        make_result(recipe(0.5), engine="torch", ratio=1.2),
        make_result(recipe(0.6), noisy=True),
        make_result(recipe(0.6), other_machine=True),
        make_result(recipe(0.7), quick=True, rounds=40, notes=("2 images skipped",)),
        make_result(recipe(0.7), labelled=False, images=500),
    ]


def _ways() -> Iterator[Result]:
    pruned = PruneSpec(sparsity=0.5)
    for one in (
        Recipe(pruned, finetune_steps=100),
        Recipe(pruned, finetune_steps=900),
        Recipe(replace(pruned, match=True)),
        Recipe(replace(pruned, method="compensated"), effort_seconds=60),
        Recipe(PruneSpec("channels", 0.2)),
        Recipe(PruneSpec("channels", 0.4, snap=16)),
        Recipe(pruned, QuantizeSpec(weight_bits=8, equalise=True)),
        Recipe(pruned, QuantizeSpec(precision="bf16")),
        Recipe(pruned, QuantizeSpec(average_bits=4.0)),
        Recipe(pruned, layers=(Override("9.weight", sparsity=0.1),)),
    ):
        yield make_result(one, ratio=0.9)


PROFILE = profile(layer("first", 30, "u8"), layer("second", 20, skips=True), conversion(9), between(30))


def drawn(info: Lines | Stacks) -> Any:
    """A chart without its words: the title, names, notes and hovers."""
    if isinstance(info, Stacks):
        bars = [[(one.part, one.value) for one in segments] for _, segments in info.rows]
        return [(part, one.colour) for part, one in info.parts.items()], bars
    lines = [
        (line.colour, line.line, line.markers, line.small, line.legend, tuple(map(bare, line.points)))
        for line in info.series
    ]
    spans = [(axis.unit, axis.better, axis.log, axis.span, len(axis.categories)) for axis in (info.x, info.y)]
    reference = info.reference and (info.reference.y, info.reference.end)
    selected = info.selected and bare(info.selected)
    return lines, spans, reference, selected, info.cursor, info.limit and info.limit.x


def bare(point: Any) -> Any:
    return {name: value for name, value in asdict(point).items() if name not in ("hover", "label", "key")}


def shape(made: list[Result], profiled: Coverage, served: ServingRun, grown: ComplexityRun) -> dict[str, Any]:
    """All that is found and drawn, but no words."""
    told = [summarise(one) for one in made]
    key = made[0].key
    best = serving.best_under(served, 2e6)
    infos: list[Lines | Stacks] = [
        charts.accuracy_info(made, key),
        charts.size_info(made, key),
        charts.latency_info(made, key),
        *(charts.latency_info(made, key, engine=engine) for engine in ("openvino", "sparse", "torch")),
        charts.frontier_info(made, key),
        charts.compare_info(made, "latency_ratio", made[1]),
        charts.samples_info(made[0]),
        charts.parts_info(profiled),
        charts.kernels_info(profiled),
        charts.serving_info(served, 2e6, best),
        charts.gains_info(served),
        charts.complexity_info(growth.frame(grown), growth.fits(grown)),
        charts.complexity_info(growth.frame(grown), growth.fits(grown), "operations"),
    ]
    return {
        "keys": [request_key(one.request) for one in made],
        "figures": [dict(one.measures) for one in told],
        "verdicts": [(one.latency.verdict.value, one.drop.verdict.value) for one in told],
        "badges": [[badge.kind.value for badge in one.badges] for one in told],
        "did": [(one.realisation.value, one.skipping, bool(one.fallback)) for one in told],
        "shared": [one.shared_with is not None for one in told],
        "moods": [[card.mood for card in headline.headlines(one, None)] for one in told],
        "frontier": asdict_of_arrays(frontier_of(told)),
        "against": [
            (one.ratio, one.time_verdict, *(why.value for why in one.missing))
            for one in (comparison.compare(each, told[1]) for each in told)
        ],
        "table": without_words(frame.frame(made, against=made[1])),
        "charts": [drawn(info) for info in infos],
        "parts": {part.value: time for part, time in coverage.parts(profiled.kernels).items()},
        "served": [(one.fair.verdict.value, one.fair.ratio) for one in serving.comparisons(served)],
        "best": (best.network.value, best.met, best.comparison.configuration),
        "trust": [kind.value for kind in serving.badges(served)],
        "grown": [(kind.value, fit.growth.value, fit.slope) for kind, fit in growth.fits(grown).items()],
    }


def asdict_of_arrays(found: Frontier) -> dict[str, list[bool]]:
    return {name: value.tolist() for name, value in asdict(found).items()}


WORDS = ("recipe", "images", "shared_with", "noise", "simulated", "environment")


def without_words(table: pd.DataFrame) -> str:
    return table.drop(columns=list(WORDS)).to_csv()


def sentences(
    made: list[Result], profiled: Coverage, served: ServingRun, grown: ComplexityRun
) -> Iterable[str]:
    """Some of what is said, each on its own: all of it is worded anew."""
    told = [summarise(one) for one in made]
    yield from (badge.text for one in told for badge in one.badges)
    yield from (points.hover(one) for one in told)
    yield from (line.name for line in charts.latency_info(made).series if line.name != "others")
    yield from (one.name for one in charts.parts_info(profiled).parts.values())
    yield from ("".join(map(str, row)) for row in frame.table(made).to_numpy())
    yield from coverage.conclusions(profiled)[:1]
    yield from conclusions.conclusions(grown)[-2:-1]
    yield report(made)
    yield from serving.conclusions(served)[:1]


@cache
def as_worded() -> tuple[list[Result], ServingRun, ComplexityRun, dict[str, Any], set[str]]:
    """What is read, and what is found of it and said in today's words."""
    made, served, grown = results(), make_run(), complexity_run()
    return (
        made,
        served,
        grown,
        shape(made, PROFILE, served, grown),
        {*sentences(made, PROFILE, served, grown)},
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_reworded_nothing_but_the_words_changes(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    made, served, grown, before, said = as_worded()
    words = wording(seed)
    reword(monkeypatch, words)
    try:
        otherwise = [said_otherwise(one, words) for one in made]
        profiled = replace(
            PROFILE, kernels=tuple(replace(one, kernel=words(one.kernel)) for one in PROFILE.kernels)
        )
        after = shape(otherwise, profiled, served, grown)
        told = {*sentences(otherwise, profiled, served, grown)}
    finally:
        summary._summaries.clear()
    for name, value in before.items():
        assert after[name] == value, name
    assert said & told == set(), "each of these is worded anew"
