"""What the chart of a comparison's raw times says."""

from dataclasses import replace

import numpy as np
import pytest
from factories import make_result, recipe, remade, visits
from test_charts import span

from optimizer.charts import samples_info
from optimizer.records import Visits


def test_rounds_show_every_visit_or_say_how_many_are_left_out() -> None:
    result = make_result(recipe(0.5, 8, 8))
    info = samples_info(result)
    assert sum(len(line.points) for line in info.series) == 3 * 200
    builds = (*result.latency.baseline, result.latency.variant)
    beyond = sum(time > span(info.y)[1] for build in builds for time in build.medians_ns)
    assert info.note == f"faster · {beyond} visit{'' if beyond == 1 else 's'} took longer"
    assert 0 < span(info.x)[0] < 1, "rounds begin at 1: no 0 across meets that of the times"


def test_a_distribution_is_of_all_timed_calls_and_has_few_points() -> None:
    settling, timed = [20] * 3, [*range(1, 1001)]
    many = Visits.of([(settling, timed)] * 20)
    latency = replace(make_result().latency, baseline=(many, many), variant=many, processes=(20,))
    info = samples_info(remade(make_result(), latency=latency), "distribution")
    for line in info.series:
        assert len(line.points) == 400
        shares, times = (np.array([getattr(point, axis) for point in line.points]) for axis in ("y", "x"))
        assert times == pytest.approx(1 + 9.99 * shares, abs=1)


def test_settling_is_the_median_call_of_the_visits_while_most_have_one() -> None:
    slow, quick = ([90, 60, 40], [30, 30]), ([70, 40, 20], [10])
    variant = Visits.of([slow, quick, slow])
    latency = replace(make_result().latency, baseline=(variant, variant), variant=variant, processes=(3,))
    info = samples_info(remade(make_result(), latency=latency), "settling")
    assert [[point.y for point in line.points] for line in info.series] == [[90, 60, 40, 30, 30]] * 2
    assert info.note == "settled after 3 calls"


def test_samples_of_the_baseline_itself_are_shown_too() -> None:
    info = samples_info(make_result())
    assert [line.name for line in info.series] == ["baseline", "baseline again", "uncompressed"]


@pytest.mark.parametrize(("slow", "beyond"), [(8, "8 visits took longer"), (0, "")])
def test_a_few_visits_that_waited_do_not_squeeze_the_others(slow: int, beyond: str) -> None:
    result = make_result()
    calm = [600_000] * 200
    timed = replace(
        result.latency, baseline=(visits(calm),) * 2, variant=visits([*calm[slow:], *[10**9] * slow])
    )
    info = samples_info(remade(result, latency=timed))
    assert info.y.span == (0, 900_000)
    assert info.note.partition(" · ")[2] == beyond
