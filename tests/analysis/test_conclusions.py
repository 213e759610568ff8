"""What is said of a complexity run, on synthetic runs whose truth is known."""

import json
import re
from dataclasses import replace

import pytest
from test_growth import COSTS, run

from optimizer.analysis.conclusions import as_json, conclusions
from optimizer.analysis.growth import effect, fits, frame, predicted_break_even
from optimizer.analysis.scaling import ExecutionKind

DENSE, KERNEL, CSR, ROWS, INT8 = EXECUTIONS = tuple(ExecutionKind)


def one_sentence(sentences: tuple[str, ...], start: str) -> str:
    (found,) = [sentence for sentence in sentences if sentence.startswith(start)]
    return found


def test_what_halving_does_is_told_for_each_execution() -> None:
    told = conclusions(run())
    dense = one_sentence(told, "Halving the weights at n = 10,000,000, dense")
    assert "no measurable difference" in dense
    assert re.search(r"could have detected changes above 3(\.\d)? %", dense)
    assert "10,000,000 of 10,000,000 visits" in dense
    assert "faster, 0.5" in one_sentence(told, "CSR: ")
    assert "5,000,000 of 10,000,000 visits" in one_sentence(told, "CSR: ")
    assert "faster, 0.5" in one_sentence(told, "Rows removed: ")
    assert effect(run(), ROWS).ratio == pytest.approx(0.5, abs=0.01)


def test_csr_slower_than_dense_is_said_and_where_it_would_break_even() -> None:
    slow = one_sentence(conclusions(run()), "CSR with 50 % removed against dense")
    assert "slower, 1.5" in slow
    assert "predicted, not measured: break-even at 67 % removed" in slow


def test_csr_faster_than_dense_is_said() -> None:
    fast = one_sentence(conclusions(run(share=0.9)), "CSR with 90 % removed against dense")
    assert "faster, 0.3" in fast


def test_csr_that_never_catches_up_is_said() -> None:
    hopeless = run(costs={**COSTS, CSR: 200.0})
    assert predicted_break_even(hopeless) is None
    assert "would not catch up" in one_sentence(conclusions(hopeless), "CSR with 50 % removed against dense")


def test_other_shares_bracket_the_break_even() -> None:
    others = [run(share=0.8), run(share=0.6), run(share=0.9)]
    sentence = one_sentence(conclusions(run(), others), "CSR with 50 %")
    assert "between 60 % and 80 % removed" in sentence
    assert "predicted" not in sentence


def test_runs_of_other_settings_bracket_nothing() -> None:
    foreign = [replace(run(share=0.8), threads=2), run(share=0.8, sizes=(10, 1_000, 1_000_000))]
    assert "predicted" in one_sentence(conclusions(run(), foreign), "CSR with 50 %")


def test_pruning_leaves_the_order() -> None:
    sentence = one_sentence(conclusions(run()), "Pruning does not make the time constant")
    assert "10 times the weights (1,000,000 to 10,000,000)" in sentence
    factors = dict(re.findall(r"(dense|sparse kernel|csr|rows removed|int8) ([\d.]+)×", sentence))
    assert {execution: float(factor) for execution, factor in factors.items()} == pytest.approx(
        dict.fromkeys(EXECUTIONS, 10), rel=0.01
    )
    assert "The constant falls (sparse kernel, csr, rows removed); the order stays (dense, " in sentence


@pytest.mark.parametrize("power", [0.5, 1.1, 1.5])
def test_the_order_is_not_said_to_stay_where_it_is_not_shown(power: float) -> None:
    costs = {execution: 1e3 * cost for execution, cost in COSTS.items()}
    told = conclusions(run(power=power, costs=costs))
    sentence = one_sentence(told, "Pruning does not make the time constant")
    assert "the order stays" not in sentence.replace("that the order stays is not shown", "")
    assert "that the order stays is not shown" in sentence
    assert one_sentence(told, "Linear growth is not shown for dense, ")
    assert not [one for one in told if one.startswith("Linear growth is shown")]


@pytest.mark.slow
def test_a_line_that_is_bent_is_said_to_be() -> None:
    smooth = run()
    largest = smooth.points[-1]
    longer = tuple(
        replace(timing, samples_ns=tuple(tuple(3 * one for one in series) for series in timing.samples_ns))
        for timing in largest.timings
    )
    told = conclusions(replace(smooth, points=(*smooth.points[:-1], replace(largest, timings=longer))))
    assert re.search(r"\(\d+ % (above|below) the fit at n = ", one_sentence(told, "Not a straight line"))
    assert as_json(smooth)["growth"] == dict.fromkeys(EXECUTIONS, "linear")
    assert as_json(smooth)["order_stays"] == dict.fromkeys(EXECUTIONS, True)


def test_time_that_does_not_grow_refutes_nothing() -> None:
    told = conclusions(run(power=0.001, costs={**dict.fromkeys(EXECUTIONS, 5e3), CSR: 5e4}, noise=0.01))
    assert not [sentence for sentence in told if sentence.startswith("Pruning does not")]


def test_nothing_removed_claims_nothing_of_a_removal() -> None:
    told = conclusions(run(share=0.0))
    assert not re.search("Halving|Removing|After the removal|Pruning", " ".join(told))
    assert one_sentence(told, "With every weight, time above the overhead grows as")
    assert one_sentence(told, "With every weight, 10 times")


def test_noise_is_said() -> None:
    told = conclusions(run(noise=0.3))
    assert "but noisy: " in one_sentence(told, "Halving the weights")
    assert "No fall of the constant is shown, as times are noisy (" in " ".join(told)


def test_the_json_for_others_is_plain_and_agrees_with_the_frame() -> None:
    original = run()
    plain = json.loads(json.dumps(as_json(original)))
    assert plain["schema"] == original.schema
    assert plain["after"] == frame(original).to_dict("records")
    assert len(plain["layers"]) == len(original.points)
    assert plain["effects"]["csr against dense"]["ratio"] == effect(original, CSR, DENSE).ratio
    assert plain["fits_after"][DENSE]["slope"] == fits(original)[DENSE].slope
    assert plain["conclusions"] == list(conclusions(original))
