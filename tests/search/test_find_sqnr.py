"""Search under limits of a network that is no classifier: SQNR in the place of accuracy."""

import math
from dataclasses import replace

import numpy as np
import pytest
from factories import BEFORE, PARTS, after, loss_points
from hypothesis import given
from hypothesis import strategies as st
from search_bench import BASE, SMALL, Bench, question, winner

from optimizer.analysis import gate
from optimizer.analysis.fidelity import sqnrs
from optimizer.analysis.gate import sqnr_check
from optimizer.analysis.limits import Limits, bound, keeping, loss_of, noise, value_of
from optimizer.analysis.measures import sqnr
from optimizer.analysis.summary import summarise
from optimizer.analysis.two_files import EQUAL_DB
from optimizer.charts import search_info
from optimizer.cli.main import main
from optimizer.errors import InputError
from optimizer.export.report import answer_report
from optimizer.records import OutputFidelity, PerImage, Request, Result, decode, encode
from optimizer.search.answer_data import answer_json, command, trial_frame
from optimizer.search.answers import asked_words, details, headline
from optimizer.search.records import Answer, Outcome, Progress
from optimizer.tasks import accuracy_of


def noise_of(request: Request) -> float:
    return loss_points(request.recipe) / 50


@pytest.fixture
def bench() -> Bench:
    return Bench(noise=noise_of)


@pytest.mark.slow
def test_what_is_found_keeps_to_it_by_the_bound_of_the_worst_output(bench: Bench) -> None:
    limits = Limits(sqnr_db=30, size_mb=1)
    found = bench.ask(limits)
    lows = [one.low for output in winner(found).accuracy.outputs if (one := sqnr(output)).value is not None]
    assert lows
    assert all(low is not None and low >= 30 for low in lows)
    everything = [bench.result(SMALL.request(BASE, position)) for position in SMALL.all()]
    kept = keeping(everything, limits)
    assert bound(winner(found), "latency") == min(bound(one, "latency") for one in kept)
    assert 0 < len(kept) < len(everything)
    assert decode(encode(found.answer), Answer) == found.answer


def test_what_is_too_far_off_is_not_timed(bench: Bench) -> None:
    found = bench.ask(Limits(sqnr_db=30), space=replace(SMALL, engine=("sparse",)))
    lost = [one for one in found.answer.progress.trials if one.outcome is Outcome.LOSES]
    assert lost
    assert len(bench.given_up) >= len(lost)
    for one in lost:
        assert noise(bench.result(found.answer.question.request(one.position)).accuracy) > loss_of("sqnr", 30)


def test_it_is_told_as_sqnr_and_never_as_accuracy(bench: Bench) -> None:
    found = bench.ask(Limits(sqnr_db=30, size_mb=1, latency_ms=0.25))
    asked = found.answer.question
    said = "\n".join([asked_words(asked), headline(found), *details(found)])
    assert "SQNR at least 30" in said
    assert "more than allowed" in said or "less than allowed" in said
    held = bench.ask(Limits(sqnr_db=30))
    said += "\n".join([headline(held), *details(held)])
    assert "SQNR of the outputs" in said
    assert ", at least 30 allowed: pass" in said
    assert "points" not in said
    assert "ccuracy" not in said
    assert "agreement" not in said
    assert "SQNR" in trial_frame(held)
    assert "--min-sqnr=30" in command(asked)
    assert answer_json(held)["checks"][0]["at_least"]
    assert "SQNR at least 30" in answer_report(held)


def test_the_most_sqnr_under_another_limit_is_found(bench: Bench) -> None:
    limits = Limits(size_mb=1)
    asked = question(limits)
    assert limits.usual(0) == "sqnr"
    with pytest.raises(InputError, match="minimise sqnr in place of drop"):
        bench.ask(limits)
    found = Bench(noise=noise_of)
    answer = found.go_on(replace(asked, minimise="sqnr"), Progress())
    kept = keeping(answer.measured, limits)
    assert noise(winner(answer).accuracy) == min(noise(one.accuracy) for one in kept)
    steps = answer.answer.progress.steps
    assert steps[-1].value == summarise(winner(answer)).measures["sqnr"].value
    assert search_info(steps, "sqnr").y.unit == "dB"
    covered = f"{100 * steps[-1].covered:.0f} %"
    assert search_info(steps, "sqnr").note == f"hypervolume: {covered} of what the limits allow is dominated"


def test_equal_outputs_are_the_best_and_what_they_gain_is_kept_as_a_figure() -> None:
    plain = replace(SMALL, pruning=("none",), weight_bits=(32, 8), activation_bits=(32,))
    bench = Bench(
        images=50,  # for keys of its own
        noise=lambda request: 0.0 if request.recipe.identity else noise_of(request),
    )
    small, large = (
        bench.go_on(replace(question(Limits(size_mb=size), space=plain), minimise="sqnr"), Progress())
        for size in (1, 100)
    )
    (gained,) = small.answer.relaxations
    assert small.results[gained.key].request.recipe.identity
    assert gained.gain == EQUAL_DB - (summarise(winner(small)).measures["sqnr"].value or 0)
    assert decode(encode(small.answer), Answer) == small.answer
    assert winner(large).request.recipe.identity
    assert large.answer.progress.steps[-1].value == EQUAL_DB, "not none that keeps to the limits"
    assert "SQNR equal" in headline(large)


def test_accuracy_lost_is_refused_with_the_way_out(bench: Bench) -> None:
    with pytest.raises(
        InputError,
        match=r"is no classifier, .* give --min-sqnr \(min_sqnr_db in Python\) in place of --max-drop",
    ):
        bench.ask(Limits(drop_points=1))


def test_the_shell_refuses_it_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer.model import catalogue

    card = replace(catalogue.card("fashion-mlp"), classes=0)
    monkeypatch.setattr(catalogue, "card", lambda name: card)
    assert main(["find", "fashion-mlp", "--engine", "openvino", "--max-drop", "1"]) == 2
    assert "give --min-sqnr (min_sqnr_db in Python) in place of --max-drop" in capsys.readouterr().err


def test_a_classifier_has_it_too() -> None:
    bench = Bench()
    found = bench.ask(Limits(sqnr_db=59))
    assert sqnr(winner(found).accuracy).value is None or sqnr(winner(found).accuracy).value >= 59  # type: ignore[operator]
    assert len(keeping(found.measured, Limits(sqnr_db=59))) < len(SMALL.all())


def test_noise_is_a_loss_and_equal_outputs_lose_least() -> None:
    assert [loss_of("sqnr", db) for db in (0, 20, 40)] == pytest.approx([1, 0.1, 0.01])
    assert value_of("sqnr", loss_of("sqnr", 33.0)) == pytest.approx(33)
    assert 0 < loss_of("sqnr", math.inf) < loss_of("sqnr", 149)
    assert loss_of("latency", 5) == value_of("latency", 5) == 5


def test_of_several_outputs_the_lowest_of_each_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [(41.0, 40.0, 42.0), (42.0, 38.0, 46.0), (math.inf,) * 3]
    monkeypatch.setattr(gate, "sqnrs", lambda *_: ends)
    check = sqnr_check((), 39)
    assert (check.value, check.low, check.high) == (41, 38, 42)


def made_of(noise: np.ndarray) -> OutputFidelity:
    """An output with a signal of 1 an image."""
    signal = np.ones(len(noise))
    db = -10 * math.log10(noise.mean()) if noise.any() else None
    return OutputFidelity(
        "y", "y", (4,), db, 0.9, 0.1, 1.0, PerImage.of(noise), PerImage.of(signal), None, None
    )


@given(st.integers(1, 40), st.floats(0.1, 3), st.integers(0, 100))
def test_the_more_are_tried_the_less_is_shown(images: int, spread: float, seed: int) -> None:
    output = made_of(np.random.default_rng(seed).lognormal(0, spread, images))
    ends = [sqnrs([output], confidence)[0] for confidence in (0.9, 0.95, 0.99, 0.999)]
    lows, highs = [low for _, low, _ in ends], [high for _, _, high in ends]
    assert lows == sorted(lows, reverse=True)
    assert highs == sorted(highs)
    assert all(low <= value <= high for value, low, high in ends)


def test_of_one_image_nothing_is_shown_and_of_a_silent_output_that_speaks_all_is_lost() -> None:
    assert sqnr_check([made_of(np.array([0.1]))], 1).outcome == "undecided"
    equal = made_of(np.zeros(8))
    assert sqnr_check([replace(equal, largest=0.0)], 100).outcome == "pass"
    silent = replace(equal, largest=0.3, signal_images=None, noise_images=PerImage.of(np.ones(8)))
    assert sqnr_check([silent], 1).outcome == "fail"


class OfOneImage(Bench):
    """A machine that has a single image."""

    def result(self, request: Request) -> Result:
        made = super().result(request)
        one, before = (
            accuracy_of(outputs[:1], BEFORE[:1], None, "", PARTS)
            for outputs in (after(noise_of(request)), BEFORE)
        )
        return replace(made, accuracy=one, baseline_accuracy=before)


def test_a_search_whose_sqnr_has_no_known_end_is_kept_and_answered_all_the_same() -> None:
    bench = OfOneImage(noise=noise_of)
    found = bench.ask(Limits(sqnr_db=30))
    assert found.best is None, "of one image nothing is shown"
    assert decode(encode(found.answer), Answer) == found.answer
    assert decode(encode(bench.kept[-1]), Progress) == bench.kept[-1]
    assert not found.answer.relaxations, "by how much is not known"
