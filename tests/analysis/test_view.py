"""Results as a notebook shows them."""

import numpy as np
from factories import detector, make_latency, make_result, recipe, remade

from optimizer.analysis.view import Results, ResultView


def test_results_say_which_are_too_noisy_to_be_ranked() -> None:
    clean = make_result(recipe(0.5), ratio=0.5)
    noisy = remade(make_result(recipe(0.7)), latency=make_latency(0.3, noisy=True))
    results = Results((ResultView(clean), ResultView(noisy)))
    shown = results._shown()
    np.testing.assert_array_equal(shown["noisy"], [False, True])
    np.testing.assert_array_equal(shown["frontier"], [True, False])
    words = "noisy: 1 of 2 results, which are not ranked for the frontier"
    assert words in repr(results)
    assert words in results._repr_html_()
    assert "not ranked" not in repr(results[:1])
    assert results[1].latency.noise


def test_what_is_told_against_the_uncompressed_model_has_no_value_of_its_own_there() -> None:
    lines = repr(ResultView(detector(recipe(0.5), 0.1))).splitlines()
    assert ["uncompressed" in line for line in lines if "cosine similarity" in line] == [False]
    assert ["uncompressed" in line for line in lines if "file size" in line] == [True]


def test_whose_time_it_is_is_said() -> None:
    own = make_result(recipe(0.5))
    shared = remade(own, latency=make_latency(0.5, timed=recipe(0.25)))
    assert f"\n  note: time shared with {recipe(0.25).describe()}, which runs" in repr(ResultView(shared))
    alone = remade(own, latency=make_latency(0.5, timed=recipe(0.5)))
    assert "time shared" not in repr(ResultView(alone))


def test_notes_are_shown_beside_the_figures() -> None:
    view = ResultView(remade(detector(recipe(0.5), 0.1), notes=("43 % of it: gru <GRU>",)))
    assert repr(view).endswith("\n  note: 43 % of it: gru <GRU>")
    assert "note: 43 % of it: gru &lt;GRU&gt;</p>" in view._repr_html_()
