"""Grids of configurations and what follows from their times, from made-up samples: nothing is timed here."""

import re
from dataclasses import replace

import numpy as np
import pytest
from factories import OTHER_MACHINE, recipe, times_ns

from optimizer.analysis.afresh import alone, timed_afresh
from optimizer.analysis.noise import SMALL_CHANGE, NoiseKind
from optimizer.analysis.served import EAGER_EVERY, Configuration, Served, ServedPoint, Side, compare_served
from optimizer.analysis.serving import (
    MAX_CONFIGURATIONS,
    MAX_SERVED_BATCH,
    ServingRequest,
    ServingRun,
    as_json,
    badges,
    best_under,
    comparisons,
    conclusions,
    configurations,
    frame,
    serving_key,
    table,
)
from optimizer.analysis.statistics import SAME, LatencyVerdict, summarise_latency
from optimizer.errors import InputError
from optimizer.formats import format_ns
from optimizer.recipe import Recipe
from optimizer.records import Execution, LayerExecution, decode, encode
from optimizer.system.environment import environment, threads_available

INT8 = recipe(0, 8, 8)
REQUEST = ServingRequest("fashion-resnet", INT8)
GRID = (Configuration(1, 1, 1), Configuration(4, 1, 1), Configuration(4, 2, 2))


def served(center_ns: float, copies: int, random: np.random.Generator, rounds: int, streams: int) -> Served:
    intervals = [times_ns(center_ns, rounds, random, 0.01) for _ in range(copies)]
    return Served(
        tuple(tuple(map(int, one)) for one in intervals),
        tuple(int(time * streams) for time in intervals[0]),
    )


def make_run(
    made: Recipe = INT8,
    *,
    ratio: float = 0.5,
    rounds: int = 200,
    grid: tuple[Configuration, ...] = GRID,
    eager: bool = True,
    noisy: bool = False,
    **changes: object,
) -> ServingRun:
    """An image takes 1 ms uncompressed, a little less in a batch; streams answer so many more and as late."""
    random = np.random.default_rng(5)
    points = []
    for one in grid:
        interval = 1e6 * one.batch**0.9 / one.streams
        points.append(
            ServedPoint(
                one,
                8,
                served(interval, 2, random, rounds, one.streams),
                served(ratio * interval, 1, random, rounds, one.streams),
                served(4 * interval, 1, random, len(range(0, rounds, EAGER_EVERY)), 1) if eager else None,
            )
        )
    kernels = tuple(LayerExecution(f"{number}.weight", "u8", "brgconv_avx512_I8") for number in range(3))
    run = ServingRun(
        key="key",
        request=replace(REQUEST, recipe=made),
        environment=environment(),
        created="2026-11-02T10:00:00+00:00",
        points=tuple(points),
        execution=Execution(kernels, ()),
        warmup_calls=10,
        stolen_share=0.4 if noisy else 0.0,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


# What can be asked for


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"batches": (0,)}, f"batch size 0 is not allowed: 1 to {MAX_SERVED_BATCH}"),
        ({"batches": (1, MAX_SERVED_BATCH + 1)}, f"batch size {MAX_SERVED_BATCH + 1} is not allowed"),
        ({"batches": ()}, "no batch sizes given: at least one, such as 1"),
        ({"threads": (-1,)}, "threads -1 is not allowed: 1 or more, or 0 for every core"),
        ({"streams": (0,)}, "streams 0 is not allowed: 1 or more requests at once"),
    ],
)
def test_what_can_not_be_is_refused(asked: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ServingRequest("fashion-resnet", **asked)  # type: ignore[arg-type]


def test_what_this_machine_or_engine_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.system.environment.threads_available", lambda: 2)
    with pytest.raises(InputError, match="3 threads are more than this machine's 2 cores: use 1 to 2"):
        configurations(replace(REQUEST, threads=(1, 3)))
    with monkeypatch.context() as patch:
        patch.setattr("optimizer.system.environment.threads_available", lambda: 1)
        with pytest.raises(InputError, match="2 threads are more than this machine's 1 core: use 1$"):
            configurations(replace(REQUEST, threads=(2,)))
    with pytest.raises(InputError, match="2 streams are more than 1 thread, and each needs one: use 1 to 1"):
        configurations(replace(REQUEST, threads=(1,), streams=(1, 2)))
    with pytest.raises(
        InputError, match="2 streams are not possible on torch eager.*use 1, or engine openvino"
    ):
        configurations(replace(REQUEST, engine="torch", streams=(2,)))
    many = tuple(range(1, MAX_CONFIGURATIONS + 2))
    with pytest.raises(
        InputError, match=f"{len(many)} configurations are too many .* at most {MAX_CONFIGURATIONS}"
    ):
        configurations(replace(REQUEST, batches=many))


def test_a_grid_passes_over_more_streams_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.system.environment.threads_available", lambda: 2)
    asked = replace(REQUEST, batches=(4, 1, 4), threads=(2, 1, 0), streams=(1, 2))
    assert configurations(asked) == (
        Configuration(1, 1, 1),
        Configuration(1, 2, 1),
        Configuration(1, 2, 2),
        Configuration(4, 1, 1),
        Configuration(4, 2, 1),
        Configuration(4, 2, 2),
    )
    assert Configuration(1, 2, 1).words == "batch size 1, 2 threads, 1 stream"


def test_no_thread_count_is_every_core() -> None:
    assert {one.threads for one in configurations(REQUEST)} == {threads_available()}


def test_the_key_changes_with_what_would_be_measured() -> None:
    others = [
        replace(REQUEST, batches=(1,)),
        replace(REQUEST, streams=(1, 2)),
        replace(REQUEST, recipe=Recipe()),
        replace(REQUEST, quick=False),
    ]
    assert len({serving_key(one) for one in (REQUEST, *others)}) == 5
    assert serving_key(REQUEST) == serving_key(ServingRequest("fashion-resnet", INT8))


def test_the_same_grid_has_one_key() -> None:
    key = serving_key(replace(REQUEST, batches=(1, 4), streams=(1, 2)))
    assert serving_key(replace(REQUEST, batches=(4, 1, 4), streams=(2, 1))) == key
    every = replace(REQUEST, threads=(threads_available(),))
    assert serving_key(every) == serving_key(REQUEST) == serving_key(replace(every, threads=(0, 0)))
    assert serving_key(replace(REQUEST, threads=(4096,))) != key, "of a larger machine"


# What follows from the times


def test_throughput_counts_images_and_latency_is_of_a_request() -> None:
    run = make_run(eager=False)
    one = comparisons(run)[2]
    assert one.configuration == Configuration(4, 2, 2)
    interval = np.mean(run.points[2].variant.interval_ns)
    assert one.variant.throughput == pytest.approx(4e9 / interval)
    assert one.variant.latency_ns == pytest.approx(2 * interval, rel=0.01)
    assert one.variant.throughput_low <= one.variant.throughput <= one.variant.throughput_high
    assert one.variant.latency_low <= one.variant.latency_ns <= one.variant.latency_high
    assert one.variant.p95_ns is not None
    assert one.variant.p95_ns > one.variant.latency_ns
    assert one.eager is None


def test_throughput_is_images_over_all_the_time_and_slow_requests_are_flagged() -> None:
    run = make_run(grid=GRID[:1], eager=False)
    (point,) = run.points
    slow = tuple(
        3 * one if number % 5 == 0 else one for number, one in enumerate(point.variant.interval_ns[0])
    )
    spoilt = replace(run, points=(replace(point, variant=Served((slow,), slow)),))
    (one,) = comparisons(spoilt)
    assert one.variant.throughput == pytest.approx(1e9 * len(slow) / sum(slow))
    assert one.variant.throughput < 0.75 * 1e9 / np.median(slow)
    assert NoiseKind.TAIL in {reason.kind for reason in one.fair.reasons}
    assert one.fair.verdict == LatencyVerdict.NOISY


def test_few_requests_have_no_95th_percentile() -> None:
    assert comparisons(make_run(rounds=100))[0].variant.p95_ns is None


def test_the_ratio_is_to_the_same_configuration_uncompressed() -> None:
    for point, one in zip(make_run().points, comparisons(make_run()), strict=True):
        expected = summarise_latency(
            point.baseline.interval_ns, point.variant.interval_ns[0], smallest_change=SMALL_CHANGE
        )
        assert one.fair == expected
        assert one.fair.verdict == "faster"
        assert one.fair.ratio == pytest.approx(0.5, rel=0.02)
        assert one.eager == pytest.approx(0.125, rel=0.02)


def test_builds_of_one_process_that_scatter_by_three_percent_are_not_told_apart() -> None:
    """Each network was built once: rounds of one build don't say what builds differ by."""
    random, told = np.random.default_rng(49), []
    for _ in range(300):
        builds = np.exp(random.normal(0, 0.03, 3))
        times = (1e6 * builds[:, None] * np.exp(random.normal(0, 0.01, (3, 40)))).round().astype(int)
        first, again, variant = (tuple(one) for one in times.tolist())
        point = ServedPoint(GRID[0], 8, Served((first, again), first), Served((variant,), variant), None)
        told.append(compare_served(point, 0.0).fair.verdict)
    assert {*told} == {LatencyVerdict.SAME, LatencyVerdict.NOISY}


def test_torch_eager_is_paired_with_the_rounds_of_the_recipe_that_it_took_part_in() -> None:
    """A machine whose speed changes from round to round changes it for both."""
    (point,) = make_run(grid=GRID[:1]).points
    times = 1_000 * np.random.default_rng(3).integers(100, 10_000, 200)
    taken = tuple((4 * times[::EAGER_EVERY]).tolist())
    eager = replace(point, variant=Served((tuple(times.tolist()),), taken), eager=Served((taken,), taken))
    assert compare_served(eager, 0.0).eager == pytest.approx(0.25)


def test_the_best_under_a_limit_has_the_highest_throughput_of_those_in_time() -> None:
    run = make_run()
    tight, wide = best_under(run, 0.6001e6), best_under(run, 60e6)
    assert (tight.met, tight.network, tight.comparison.configuration) == (True, Side.RECIPE, GRID[0])
    assert (wide.met, wide.comparison.configuration) == (True, GRID[2])
    assert tight.performance.latency_high <= 0.6e6
    bound = tight.performance.latency_high
    between = (bound + tight.performance.latency_ns) / 2
    assert not best_under(run, between).met, "the point is under it, its bound is not"
    assert not best_under(run, 1.0001 * bound).met, (
        "its own bound is under it, not the one for all six at once"
    )
    assert tight.words.startswith(
        "Under 600.1 µs, most images a second: the compressed model at batch size 1, 1 thread, 1 stream, "
        "best of 6 tried: "
    )


def test_the_best_is_timed_afresh_alone_and_both_figures_are_told() -> None:
    run = make_run()
    best = best_under(run, 0.6e6)
    wanted = alone(run, best)
    assert configurations(wanted) == (best.comparison.configuration,)
    assert serving_key(wanted) != serving_key(replace(wanted, seed=run.request.seed)), (
        "by nobody's own choice"
    )
    again = replace(run, request=wanted, points=run.points[:1])
    words = timed_afresh(best, again, 0.6e6)
    assert words.startswith("Timed afresh: ")
    assert format_ns(best.performance.latency_ns) in words
    assert "no longer" not in words
    assert "no longer shown to be under 100.5 µs" in timed_afresh(best, again, 0.1005e6)


def test_under_a_limit_the_baseline_can_be_the_best() -> None:
    assert best_under(make_run(ratio=2.0), 60e6).network == Side.UNCOMPRESSED
    unpruned = best_under(make_run(Recipe(), ratio=0.99), 60e6)
    assert unpruned.network == Side.UNCOMPRESSED, "an uncompressed recipe is the baseline once more"


def test_where_nothing_is_in_time_the_quickest_is_reported() -> None:
    found = best_under(make_run(), 1_000.5)
    assert not found.met
    assert found.comparison.configuration == GRID[0]
    assert found.words.startswith(
        "Nothing here is shown to answer within 1.0005 µs. The quickest is the compressed model at "
    )
    few = found.performance
    told = format_ns(few.latency_ns, few.latency_low, few.latency_high)
    assert found.words.endswith(f": {told} a request."), "one under the limit may have a bound beyond it"
    with pytest.raises(InputError, match="above 0"):
        best_under(make_run(), 0)


def test_conclusions() -> None:
    gain, batching, eager = conclusions(make_run())
    assert gain.startswith(
        "Compressed, against the uncompressed model on OpenVINO, configuration by configuration: "
    )
    assert re.search(r"faster in 3 of 3, from 0\.5.* of the time at .* to 0\.5.* at ", gain)
    assert "batch size 4, 2 threads, 2 streams brings" in batching
    assert "times as many as batch size 1, 1 thread, 1 stream" in batching
    assert eager.startswith("Against torch eager, which is another engine and no baseline: 0.12")
    assert "× to 0.1" in eager
    gain, *_, eager = conclusions(make_run(grid=GRID[:1]))
    assert "no baseline: 0.12" in eager
    assert "faster in 1 of 1, 0.5" in gain
    assert "× to " not in gain + eager, "a range from a value to itself"


def test_conclusions_claim_nothing_that_can_not_be_reported() -> None:
    (same, *_) = conclusions(make_run(ratio=1.0))
    assert re.search(rf": {SAME} \(could have detected changes above [\d.]+ % everywhere\)\.$", same)
    (slower, *_) = conclusions(make_run(ratio=1.5))
    assert slower.endswith("slower in 3 of 3.")
    words = conclusions(make_run(noisy=True))
    assert words[0].endswith("too noisy to tell.")
    assert any("Noisy in 3 of 3 configurations, first of all: other work" in one for one in words)
    alone = conclusions(make_run(Recipe(), eager=False))
    assert len(alone) == 1
    assert alone[0].startswith("The uncompressed model: ")
    one_way = make_run(grid=GRID[:1], eager=False)
    assert re.search(r"answers soonest, [\d.]+ .s \([\d.]+ to [\d.]+\), and no", conclusions(one_way)[1])


def test_what_was_asked_for_and_left_out_is_said() -> None:
    run = make_run()
    asked = replace(run.request, batches=(1, 4), threads=(1, 2), streams=(1, 2))
    words = conclusions(replace(run, request=asked))[-1]
    assert words == "2 configurations left out: more streams than threads."
    assert "left out" not in conclusions(replace(run, request=replace(asked, streams=(1,))))[-1]


def test_none_answers_soonest_where_intervals_overlap() -> None:
    first = make_run().points[0]
    more = replace(first.configuration, threads=first.configuration.threads + 1)
    alike = replace(make_run(), points=(first, replace(first, configuration=more)))
    batching = next(one for one in conclusions(alike) if one.startswith("The compressed model"))
    assert "has the lowest median" in batching
    assert "soonest" not in batching


def test_badges() -> None:
    assert set(badges(make_run())) == {"measured", "preliminary"}
    rounded = make_run(execution=Execution((), ("4-bit weights: the kernels are float32",)))
    assert badges(rounded)["simulated"] == "4-bit weights: the kernels are float32"
    assert "measured" not in badges(rounded)
    assert "3 of 3" in badges(make_run(noisy=True))["noisy"]
    assert "other machine" in badges(make_run(environment=OTHER_MACHINE))
    assert set(badges(make_run(request=replace(REQUEST, quick=False)))) == {"measured"}


def test_the_table_has_a_row_for_each_network_and_configuration() -> None:
    rows = frame(make_run())
    assert rows.network.tolist() == [*Side] * 3
    assert rows.fair_ratio.notna().tolist() == [True, False] * 3
    lines = table(make_run(eager=False)).splitlines()
    assert len(lines) == 4
    assert lines[1].split()[:3] == ["1", "1", "1"]
    assert lines[1].endswith("–")


def test_a_run_comes_back_from_its_json() -> None:
    run = make_run()
    assert decode(encode(run), ServingRun) == run
    plain = as_json(run)
    assert len(plain["configurations"]) == 3
    assert plain["configurations"][0]["fair"]["verdict"] == "faster"
    assert plain["configurations"][0][Side.RECIPE]["latency_ns"] == comparisons(run)[0].variant.latency_ns
    documented = str(as_json.__doc__)
    assert all(
        f"``{name}``" in documented for name in (*plain, *plain["configurations"][0]) if name != "schema"
    )
