"""What is said of latency under load."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from dependent_rounds import correlated

from optimizer.analysis.badges import BadgeKind
from optimizer.analysis.load import (
    METHOD,
    RECIPE,
    SHARES,
    UNCOMPRESSED,
    Answered,
    LoadPoint,
    LoadRequest,
    LoadRun,
    as_json,
    badges,
    best_rates,
    chosen_rates,
    conclusions,
    frame,
    load_key,
    may_be_one,
    measured_percentiles,
    read_rates,
    table,
    too_few,
)
from optimizer.analysis.measures import Measure
from optimizer.analysis.queueing import PERCENTILES, response_percentiles, response_times
from optimizer.analysis.realisation import Realisation
from optimizer.analysis.rounds import median_interval, quantile_interval
from optimizer.charts import figure, load_info
from optimizer.errors import InputError
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Execution, LayerExecution, Settings, Times, decode, encode
from optimizer.system.environment import environment, threads_available

INT8 = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))


@lru_cache
def answered(service_ms: float, rate: float, requests: int = 2_000, seed: int = 0) -> Answered:
    """As a network whose calls differ by 2 % serves them."""
    busy = service_ms * rate / 1e3
    if busy >= 1:
        return Answered(Times.of([int(1e9)] * 50), 1.0, True)
    random = np.random.default_rng(seed)
    service = 1e6 * service_ms * random.gamma(2_500, 1 / 2_500, requests)
    times = response_times(service, np.cumsum(random.exponential(1e9 / rate, requests)))
    return Answered(Times.of(times), busy, False, Times.of(service), response_percentiles(service, rate))


def made(recipe: Recipe = INT8, rates: tuple[float, ...] = (30.0, 90.0, 150.0)) -> LoadRun:
    points = tuple(
        LoadPoint(rate, {UNCOMPRESSED: answered(10, rate), RECIPE: answered(4, rate)}) for rate in rates
    )
    request = LoadRequest("fashion-mlp", recipe, rates=rates)
    service = {UNCOMPRESSED: 1e7, RECIPE: 4e6}
    return LoadRun(load_key(request), request, environment(), "now", points, service, 0.0)


RUN = made()


def test_what_the_requests_that_came_took_is_beside_what_is_worked_out() -> None:
    answered = RUN.points[0].answered[RECIPE]
    rows = frame(RUN)
    for name, share in PERCENTILES.items():
        came = measured_percentiles(answered)[name]
        assert came == np.quantile(answered.times.values, share)
        assert came == pytest.approx(answered.percentiles[name].value, rel=0.1)
        assert rows[f"{name}_measured_ns"][1] == came
    assert measured_percentiles(RUN.points[2].answered[UNCOMPRESSED])["p50"] is None, "the queue grew"
    hovers = [point.hover for line in load_info(RUN).series for point in line.points]
    assert all("of the 2,000 requests that came: " in hover for hover in hovers)
    assert conclusions(RUN)[-1] == METHOD


def test_where_no_percentile_can_be_given_it_is_said_why() -> None:
    near = made(Recipe(), (30.0,))
    near.points[0].answered[UNCOMPRESSED] = replace(
        near.points[0].answered[UNCOMPRESSED], percentiles=dict.fromkeys(PERCENTILES, Measure(None))
    )
    assert "too close to what it can serve" in too_few(near, UNCOMPRESSED)
    assert "too close to what it can serve" in load_info(near).empty


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("dependence", [0.0, 0.5])
def test_a_quantile_s_interval_covers_it(share: float, dependence: float) -> None:
    draw, random = correlated(dependence), np.random.default_rng(7)
    truth = np.quantile(draw(random, 400_000), share)
    found = [quantile_interval(draw(random, 600), share) for _ in range(400)]
    assert 0.92 <= np.mean([low <= truth <= high for _, low, high in found]) <= 0.995, "rather too wide"


def test_the_median_is_the_quantile_of_a_half() -> None:
    values = np.random.default_rng(8).exponential(1, (50, 2))
    assert median_interval(values) == quantile_interval(values, 0.5)
    assert median_interval(values)[0] == np.median(values)


def test_the_highest_rate_under_a_limit_is_by_the_interval_s_bound() -> None:
    uncompressed, recipe = best_rates(RUN, 30e6)
    assert (uncompressed.network, recipe.network) == (UNCOMPRESSED, RECIPE)
    assert (uncompressed.rate, recipe.rate) == (30.0, 150.0)
    assert recipe.words.endswith("answers 99 % of requests within 30.0 ms at up to 150 requests/s")
    bound = RUN.points[0].answered[UNCOMPRESSED].percentiles["p99"]
    assert bound.value is not None
    assert best_rates(RUN, bound.value * 1.0001)[0].rate is None, "the point is under it, its bound is not"
    none, _ = best_rates(RUN, 9.125e6)
    assert none.words == "the uncompressed model takes 10.0 ms by itself, longer than 9.125 ms"


def test_too_few_requests_are_the_reason_where_there_is_no_99th_percentile() -> None:
    few = made(Recipe(), (30.0,))
    few.points[0].answered[UNCOMPRESSED] = answered(10, 30.0, requests=300)
    reason = "a 99th percentile takes 662 requests at a rate, and at most 300 came"
    assert best_rates(few, 30e6)[0].words.endswith(f"{reason}; measured in full, more do")
    full = replace(few, request=replace(few.request, settings=Settings(quick=False)))
    assert best_rates(full, 30e6)[0].words.endswith(reason)
    info = load_info(few)
    assert {line.name for line in info.series} == {f"p50 {UNCOMPRESSED}", f"p95 {UNCOMPRESSED}"}
    assert not info.note
    assert conclusions(few) == (f"The uncompressed model: {reason}; measured in full, more do.", METHOD)
    few.points[0].answered[UNCOMPRESSED] = answered(10, 30.0, requests=2)
    assert METHOD not in conclusions(few)
    nothing = load_info(few)
    assert not nothing.series
    assert "at most 2 came" in nothing.empty
    assert "queue grows" not in nothing.empty


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("", ()),
        ("50, 100", (50, 100)),
        ("50,100.5", (50, 100.5)),
        ("5,10,20,", (5, 10, 20)),
        ("2500", (2500,)),
    ],
)
def test_rates_are_read(text: str, rates: tuple[float, ...]) -> None:
    assert read_rates(text) == rates


@pytest.mark.parametrize(
    ("text", "unclear"),
    [("2,500", True), ("50,100", True), ("2, 500", False), ("50,1000", False), ("100,200,400", False)],
)
def test_a_comma_may_be_inside_a_number(text: str, unclear: bool) -> None:
    assert may_be_one(text) == unclear
    assert len(read_rates(text)) == 1 + text.count(",")


def test_up_to_a_rate_means_at_every_lower_one_too() -> None:
    """Else of many rates one is under the limit by luck. A rate with too few requests says nothing."""
    lucky, few = made(rates=(30.0, 90.0, 150.0, 160.0)), made()
    answers = [point.answered for point in lucky.points]
    answers[1][RECIPE] = replace(
        answers[1][RECIPE], percentiles=dict.fromkeys(PERCENTILES, Measure(6e7, 6e7, 6e7))
    )
    assert best_rates(lucky, 30e6)[1].rate == 30.0
    few.points[0].answered[RECIPE] = answered(4, 30.0, requests=140)
    assert best_rates(few, 30e6)[1].rate == 150.0


def test_what_falls_behind_is_said() -> None:
    words = conclusions(RUN)
    assert words[0] == (
        "At 150 requests/s they come faster than the uncompressed model answers: the queue grows for as long "
        "as they come."
    )
    assert "The uncompressed model takes 10.0 ms by itself; at 90.0 requests/s, 90 % busy" in words[1]
    assert len(words) == 4
    assert len(conclusions(made(Recipe(), (30.0,)))) == 2, "an uncompressed recipe is the baseline once more"


def test_what_is_so_of_both_networks_is_said_once() -> None:
    both = made(rates=(300.0,))
    assert conclusions(both) == (
        "At 300 requests/s they come faster than either model answers: the queue grows for as long as they "
        "come. Give lower rates.",
    )
    chart = load_info(both)
    assert chart.empty.split("<br>")[1:] == ["either model: the queue grows, first at 300 requests/s"]
    assert not chart.note, "which the empty chart says"
    few = made(rates=(30.0,))
    few.points[0].answered.update(
        {UNCOMPRESSED: answered(10, 30.0, requests=300), RECIPE: answered(4, 30.0, requests=300)}
    )
    reason = "a 99th percentile takes 662 requests at a rate, and at most 300 came; measured in full, more do"
    assert conclusions(few) == (f"Either model: {reason}.", METHOD)
    few.points[0].answered[RECIPE] = answered(4, 30.0, requests=200)
    assert len(conclusions(few)) == 3, "of other numbers each is said"


def test_a_queue_that_grows_at_a_lower_rate_alone_is_not_blamed_on_the_rate() -> None:
    run = made(rates=(30.0, 90.0, 150.0))
    run.points[1].answered[RECIPE] = answered(10, 150)
    assert not any("At 90.0 requests/s they come faster" in sentence for sentence in conclusions(run))
    assert (
        "The queue of the compressed model grew at 90.0 requests/s, and not at 150 requests/s: something "
        "else took its time. Measure again."
    ) in conclusions(run)


def test_badges_say_what_is_simulated() -> None:
    assert not {BadgeKind.MEASURED, BadgeKind.SIMULATED} & set(badges(RUN)), "of a run that did not record it"
    assert BadgeKind.MEASURED in badges(replace(RUN, execution=Execution((), ())))
    rounded = badges(replace(RUN, execution=Execution((), ("4-bit weights: the kernels are float32",))))
    assert rounded[BadgeKind.SIMULATED] == "4-bit weights: the kernels are float32"
    assert BadgeKind.MEASURED not in rounded


def test_where_the_machine_was_not_quiet_badge_and_sentences_say_so() -> None:
    noisy = replace(RUN, stolen_share=0.3)
    assert BadgeKind.NOISY not in badges(RUN)
    assert "took 30 % of the CPU time (limit 2 %)" in badges(noisy)[BadgeKind.NOISY]
    assert conclusions(noisy)[0].startswith("The machine was not quiet, so these times are noisy: other work")
    assert conclusions(noisy)[1:] == conclusions(RUN)
    for one, calm in zip(best_rates(noisy, 9e6), best_rates(RUN, 9e6), strict=True):
        assert one.words == f"{calm.words} (noisy: the machine was not quiet)"


def test_tables_have_a_row_for_each_rate_and_network() -> None:
    rows = frame(RUN)
    assert list(rows["network"]) == [UNCOMPRESSED, RECIPE] * 3
    assert rows["p99_ns"].isna().tolist() == [False] * 4 + [True, False]
    assert (rows["p50_low_ns"].dropna() < rows["p50_ns"].dropna()).all()
    lines = table(RUN).splitlines()
    assert len(lines) == 7
    often = replace(RUN, points=(replace(RUN.points[0], rate=12_345.6),))
    assert table(often).splitlines()[1].split()[0] == "12,346"
    assert "the queue grows" in lines[5]
    plain = as_json(RUN)
    assert plain["rates"][4]["p99_ns"] is None
    assert plain["conclusions"] == list(conclusions(RUN))
    assert decode(encode(RUN), LoadRun) == RUN


def test_the_chart_has_a_line_for_each_percentile_and_leaves_out_what_falls_behind() -> None:
    info = load_info(RUN, 20.125e6)
    assert {line.name: len(line.points) for line in info.series} == {
        **{f"{name} {UNCOMPRESSED}": 2 for name in ("p50", "p95", "p99")},
        **{f"{name} {RECIPE}": 3 for name in ("p50", "p95", "p99")},
    }
    assert info.reference is not None
    assert (info.reference.name, info.reference.y) == ("limit 20.125 ms", 20.125e6)
    assert info.y.span is not None, "without it ticks are powers of ten of a nanosecond"
    assert info.y.span[0] < min(point.low or point.y for line in info.series for point in line.points)
    assert info.y.span[1] > 20.125e6
    assert info.note == "uncompressed: the queue grows, first at 150 requests/s"
    int8 = Execution((LayerExecution("fc", "i8", "brgemm"),), ())
    kinds = {line.colour for line in load_info(replace(RUN, execution=int8)).series}
    assert kinds == {"baseline", Realisation.INT8}, "as in every chart"
    assert load_info(None).empty == "Not measured yet."
    last = RUN.points[-1]
    lost = replace(last, answered=dict.fromkeys(last.answered, last.answered[UNCOMPRESSED]))
    behind = load_info(replace(RUN, points=(lost,)))
    assert not behind.series
    assert "the queue grows" in behind.empty
    far = replace(RUN, points=(*RUN.points, replace(lost, rate=1e5)))
    assert load_info(far).x.span == info.x.span, "a rate that has no points squeezes none"
    for one in (info, behind, load_info(None), load_info(made(Recipe(), (30.0,)))):
        figure(one)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ((0.0,), "a rate of 0 requests a second is not allowed: above 0"),
        ((-5.0,), "-5 requests"),
        ((float("nan"),), "nan requests"),
        ((2e6,), "up to 1,000,000"),
        (tuple(range(1, 14)), "13 rates are too many for one comparison: at most 12"),
    ],
)
def test_rates_that_can_not_be_are_refused(rates: tuple[float, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LoadRequest("fashion-mlp", rates=rates)


@pytest.mark.parametrize("limit_ns", [0.0, -1.0, float("nan")])
def test_a_limit_is_above_0(limit_ns: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        best_rates(RUN, limit_ns)


def test_without_rates_they_are_shares_of_what_the_faster_network_serves() -> None:
    found = chosen_rates(LoadRequest("m"), {UNCOMPRESSED: 1e7, RECIPE: 4e6})
    assert found == pytest.approx([share * 250 for share in SHARES])
    assert chosen_rates(LoadRequest("m", rates=(3.0, 1.0, 3.0)), {}) == (1.0, 3.0)


def test_what_is_asked_is_in_the_key() -> None:
    one = LoadRequest("fashion-mlp", INT8)
    others = [
        replace(one, rates=(5.0,)),
        replace(one, recipe=Recipe()),
        replace(one, settings=Settings(batch=2)),
        replace(one, engine="torch"),
    ]
    assert len({load_key(request) for request in (one, *others)}) == 5
    for asked, same in (((3.0, 1.0, 3.0), (1.0, 3.0)), ((), ())):
        every = replace(one, settings=Settings(threads=threads_available()), rates=same)
        assert load_key(replace(one, rates=asked)) == load_key(every)
