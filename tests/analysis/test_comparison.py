"""Two results against each other, neither of them the other's baseline."""

from dataclasses import replace

import numpy as np
import pytest
from factories import make_latency, make_result, recipe, remade

from optimizer.analysis.comparison import NotComparable, compare, measurably_better
from optimizer.analysis.outcomes import AccuracyVerdict, paired_drop
from optimizer.analysis.statistics import SAME, LatencyVerdict
from optimizer.analysis.stored import pack, unpack
from optimizer.analysis.summary import Summary, summarise
from optimizer.records import Accuracy, Result, decode, encode


def against(one: Result, other: Result) -> tuple[Summary, Summary]:
    return summarise(one), summarise(other)


def scored(result: Result, outcomes: np.ndarray, images: str = "", reference: str = "labels") -> Result:
    accuracy = Accuracy.of(
        outcomes, reference=reference, agreement=int(outcomes.sum()), sqnr_db=1.0, kl=0.1, images=images
    )
    return remade(result, accuracy=accuracy)


def test_two_recipes_are_paired_by_image_with_each_other() -> None:
    mild, heavy = make_result(recipe(0.9, 4)), make_result(recipe(0.9, 3))
    drop = compare(*against(heavy, mild)).drop
    assert drop == paired_drop(mild.accuracy.outcomes, heavy.accuracy.outcomes)
    assert drop is not None
    assert drop.verdict is AccuracyVerdict.WORSE
    reverse = compare(*against(mild, heavy)).drop
    assert reverse is not None
    assert (reverse.verdict, reverse.points) == (AccuracyVerdict.BETTER, -drop.points)


def test_what_is_faster_by_the_median_and_slower_by_all_the_time_spent_is_neither() -> None:
    quick, slow = (summarise(make_result(recipe(0.5), ratio=ratio)) for ratio in (0.5, 0.8))
    assert compare(quick, slow).time_verdict is LatencyVerdict.FASTER
    latency = replace(quick.latency, mean_ratio=0.9)
    stalls = replace(quick, latency=latency)
    assert compare(stalls, slow).time_verdict is LatencyVerdict.NOISY
    assert not measurably_better(stalls, slow, "throughput")


def test_only_the_same_images_are_paired() -> None:
    result = make_result(recipe(0.5))
    right = result.accuracy.outcomes
    one, other = scored(result, right, "files a"), scored(result, right, "files b")
    assert compare(*against(one, one)).drop is not None
    found = compare(*against(one, other))
    assert found.drop is None
    assert "not the same images" in found.missing
    folder, elsewhere = (make_result(recipe(0.5), path=path) for path in ("/photographs", "/others"))
    assert compare(*against(folder, elsewhere)).drop is None


def test_results_from_before_images_were_recorded_are_compared_where_that_is_safe() -> None:
    old = decode(encode(make_result(recipe(0.5), path="/a")).replace(b'"images":"",', b""), Result)
    assert old.accuracy.images == ""
    later = make_result(recipe(0.7), path="/a")
    assert compare(*against(old, later)).drop is not None
    other_answers = ~old.baseline_accuracy.outcomes
    changed = remade(
        later,
        baseline_accuracy=replace(later.baseline_accuracy, correct=np.packbits(other_answers).tobytes()),
    )
    assert compare(*against(old, changed)).drop is None


def test_without_labels_one_baseline_is_needed_and_it_is_right_by_definition() -> None:
    whole = make_result(labelled=False)
    pruned = make_result(recipe(0.9), labelled=False)
    loses = compare(*against(pruned, whole)).drop
    gains = compare(*against(whole, pruned)).drop
    assert loses is not None
    assert gains is not None
    assert (loses.p, loses.low > 0, gains.verdict) == (None, True, AccuracyVerdict.BETTER)
    assert (gains.low, gains.high) == (-loses.high, -loses.low)
    elsewhere = make_result(recipe(0.9), labelled=False, engine="torch")
    assert compare(*against(pruned, elsewhere)).drop is None


def test_times_are_compared_only_where_timed_alike() -> None:
    slow, fast = make_result(recipe(0.5), ratio=0.8), make_result(recipe(0.7), ratio=0.5)
    found = compare(*against(fast, slow))
    assert found.time_verdict == "faster"
    assert found.ratio.value == pytest.approx(0.5 / 0.8, rel=0.02)
    assert found.ratio.low is not None
    assert found.ratio.high is not None
    assert found.ratio.low < found.ratio.value < found.ratio.high < 1
    for other in (
        make_result(recipe(0.5), ratio=0.8, engine="torch"),
        make_result(recipe(0.5), ratio=0.8, other_machine=True),
        remade(slow, latency=replace(slow.latency, threads=1)),
        remade(slow, latency=replace(slow.latency, batch=8)),
    ):
        missing = compare(*against(fast, other))
        assert (missing.ratio.value, missing.time_verdict) == (None, None)
        assert missing.no_ratio is NotComparable.TIMING


def test_another_network_of_the_same_name_is_another_baseline() -> None:
    """Removed and added anew. Of results from before weights were kept it is taken for the same."""
    slow, fast = (
        make_result(recipe(sparsity), ratio=ratio, labelled=False)
        for sparsity, ratio in ((0.5, 0.8), (0.7, 0.5))
    )
    before, after = remade(slow, weights="one"), remade(fast, weights="two")
    found = compare(*against(after, before))
    assert (found.no_drop, found.no_ratio) == (NotComparable.BASELINES, NotComparable.TIMING)
    for other in (slow, remade(slow, weights="two")):
        assert compare(*against(after, other)).missing == ()
    labelled = [remade(make_result(recipe(0.5)), weights=weights) for weights in ("one", "two")]
    assert compare(*against(*labelled)).drop is not None, "labels are nobody's answers"


def test_a_shared_measurement_differs_in_nothing_and_noise_says_nothing() -> None:
    one, other = make_result(recipe(0.3)), make_result(recipe(0.5))
    shared = compare(*against(one, other))
    assert (shared.ratio.value, shared.ratio.low, shared.ratio.high) == (1, 1, 1)
    assert shared.time_verdict == SAME
    noisy = make_result(recipe(0.7), ratio=0.3, noisy=True)
    assert compare(*against(noisy, one)).time_verdict == "noisy"
    assert compare(*against(one, noisy)).time_verdict == "noisy"


def test_both_results_say_how_large_a_change_is_told() -> None:
    def timed(ratio: float, processes: tuple[int, ...] = (8,) * 5, **others: float) -> Summary:
        summary = summarise(make_result(recipe(ratio)))
        latency = replace(
            summary.latency,
            **{"ratio": ratio, "ratio_low": ratio / 1.01, "ratio_high": 1.01 * ratio, "mean_ratio": ratio},
            **{"aa_low": 0.999, "aa_high": 1.001, "rounds": 40, "checksum": int(1e6 * ratio), "reasons": ()},
        )
        return replace(summary, processes=processes, latency=replace(latency, **others))

    slow, fast = timed(0.8), timed(0.75)
    assert compare(fast, slow).time_verdict is LatencyVerdict.FASTER
    ratio = compare(fast, slow).ratio
    assert (ratio.low, ratio.high) == pytest.approx([0.9375 * 1.01 ** (sign * 2**0.5) for sign in (-1, 1)])
    for doubt in ({"aa_low": 0.92}, {"aa_high": 1.08}, {"rounds": 5}, {"processes": (30,)}):
        assert compare(timed(0.75, **doubt), slow).time_verdict is SAME, doubt
        assert compare(fast, timed(0.8, **doubt)).time_verdict is SAME, doubt
    wide = timed(0.8, ratio_low=0.7)
    assert compare(fast, wide).ratio.high == pytest.approx(
        0.9375 * np.exp(np.hypot(np.log(1.01), np.log(8 / 7)))
    )
    assert compare(timed(0.6, (30,)), timed(0.8, (30,))).time_verdict is LatencyVerdict.FASTER, (
        "builds differ less"
    )


@pytest.mark.slow
def test_a_noisy_measurement_is_shared_also_by_summaries_that_were_stored() -> None:
    one, other = (
        unpack(pack(summarise(make_result(recipe(sparsity), noisy=True)))) for sparsity in (0.5, 0.6)
    )
    assert one.latency.noise
    shared = compare(one, other)
    assert (shared.ratio.value, shared.ratio.low, shared.ratio.high) == (1, 1, 1)
    assert shared.time_verdict == SAME


def test_the_interval_of_two_independent_runs_covers() -> None:
    """Both runs have a baseline of their own: the ratio of ratios is 1 where the two are alike."""
    held, told = [], []
    reference = make_result(recipe(0.5))
    for seed in range(80):
        pair = [
            summarise(remade(reference, latency=make_latency(0.8, rounds=60, seed=seed + offset)))
            for offset in (1_000, 2_000)
        ]
        found = compare(*pair)
        assert found.ratio.low is not None
        assert found.ratio.high is not None
        held.append(found.ratio.low <= 1 <= found.ratio.high)
        told.append(found.time_verdict in ("faster", "slower"))
    assert np.mean(held) >= 0.92
    assert np.mean(told) <= 0.02
