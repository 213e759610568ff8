"""What the chart of a comparison's raw times says."""

from dataclasses import replace

import pytest
from factories import make_result, recipe, remade

from optimizer.charts import samples_info


@pytest.mark.parametrize("view", ["rounds", "distribution"])
def test_samples_show_every_call_or_say_how_many_are_left_out(view: str) -> None:
    result = make_result(recipe(0.5, 8, 8))
    info = samples_info(result, view)  # type: ignore[arg-type]
    assert sum(len(line.points) for line in info.series) == 3 * 200
    top = (info.y if view == "rounds" else info.x).span[1]  # type: ignore[index]
    beyond = sum(
        time > top for times in (*result.latency.baseline_ns, result.latency.variant_ns) for time in times
    )
    assert info.note == f"faster · {beyond} call{'' if beyond == 1 else 's'} took longer"


def test_samples_of_the_baseline_itself_are_shown_too() -> None:
    info = samples_info(make_result())
    assert [line.name for line in info.series] == ["baseline", "baseline again", "uncompressed"]


@pytest.mark.parametrize(("slow", "beyond"), [(8, "8 calls took longer"), (0, "")])
def test_a_few_calls_that_waited_do_not_squeeze_the_others(slow: int, beyond: str) -> None:
    result = make_result()
    calm = (600_000,) * 200
    waited = (*calm[slow:], *[10**9] * slow)
    timed = replace(result.latency, baseline_ns=(calm, calm), variant_ns=waited)
    info = samples_info(remade(result, latency=timed))
    assert info.y.span == (0, 900_000)
    assert info.note.partition(" · ")[2] == beyond
