"""``benchmarks/published.py`` on its stand-ins: what is quoted is told from what is measured."""

import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def published() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield runpy.run_path(str(BENCHMARKS / "published.py"))


def test_every_model_of_the_tables_has_a_stand_in(published: Any) -> None:
    assert published["STAND_INS"].keys() == published["TABLES"].keys()


@pytest.mark.slow
def test_quoted_rows_stand_beside_measured_ones_and_say_from_where(published: Any) -> None:
    model = "vit_b_32"
    rows = published["rows_of"](model, published["stand_in"](model))
    measured = [row for row in rows if row.images is not None]
    quoted = [row for row in rows if row.images is None]
    assert {row.what for row in measured} == {row.what for row in quoted} | {"uncompressed"}
    assert {row.method for row in measured} == {"Paretoscope"}
    assert measured[0].accuracy == 100, "labels are what the network answers"
    assert all(row.source not in ("", "measured") for row in quoted)


@pytest.mark.slow
def test_pruning_goes_on_until_so_many_times_fewer_weights_are_multiplied(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(published["thinned"].__globals__, "BISECTIONS", 5)  # to 3 points of sparsity
    workspace = published["stand_in"]("mobilenet_v2.IMAGENET1K_V1")
    share = published["multiplications"](workspace, published["thinned"](workspace, 2))
    assert 0.45 < share <= 0.5
