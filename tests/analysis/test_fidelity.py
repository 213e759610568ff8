"""Networks that tell no classes: each output against numpy, and SQNR wherever accuracy would stand."""

from dataclasses import replace

import numpy as np
import pytest
from factories import BEFORE, NOISE, PARTS, after, detector, make_result, recipe, remade

from optimizer.analysis import fidelity
from optimizer.analysis.comparison import NotComparable
from optimizer.analysis.frame import frame, table
from optimizer.analysis.gate import sqnr_check
from optimizer.analysis.headline import headlines
from optimizer.analysis.measures import Measure
from optimizer.analysis.result_json import as_json
from optimizer.analysis.summary import quality, summarise, summarise_scores
from optimizer.analysis.view import Results, ResultView
from optimizer.charts import accuracy_info, compare_info, frontier_info, parallel_info
from optimizer.cli.terminal import print_result
from optimizer.export.report import accuracy_sentence, report
from optimizer.formats import MISSING
from optimizer.recipe import Recipe
from optimizer.records import Known
from optimizer.tasks import accuracy_of

PLAIN, HALF, MORE = detector(Recipe(), 0), detector(recipe(0.5), 0.1), detector(recipe(0.7), 0.4)


def test_each_output_is_that_of_numpy() -> None:
    boxes, scores = HALF.accuracy.outputs
    x, y = (one.reshape(50, -1)[:, :12].astype(float) for one in (after(0.1), BEFORE))
    assert (boxes.name, boxes.shape, scores.name, scores.shape) == ("boxes", (4, 3), "scores", (5,))
    assert boxes.sqnr_db == pytest.approx(10 * np.log10((y**2).sum() / ((x - y) ** 2).sum()))
    angle = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert boxes.cosine == pytest.approx(angle.mean())
    assert boxes.largest == pytest.approx(np.abs(x - y).max())
    assert boxes.largest_share == pytest.approx(np.abs(x - y).max() / np.ptp(y))
    assert scores.sqnr_db is None
    assert scores.largest == 0
    assert fidelity.rows((scores,))[0]["SQNR"] == "equal"


@pytest.mark.parametrize(
    ("figure", "values"),
    [
        (
            fidelity.cosine,
            lambda x, y: (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1),
        ),
        (fidelity.largest_of_an_image, lambda x, y: np.abs(x - y).max(1)),
    ],
)
def test_intervals_hold_the_mean_of_images(figure: object, values: object) -> None:
    x, y = (one.reshape(50, -1)[:, :12].astype(float) for one in (after(0.1), BEFORE))
    each = values(x, y)  # type: ignore[operator]
    found = figure(HALF.accuracy.outputs[0])  # type: ignore[operator]
    assert found.value == pytest.approx(each.mean(), rel=0.02)
    error = each.std() / np.sqrt(50)
    assert found.low == pytest.approx(each.mean() - 2 * error, abs=1.3 * error)
    assert found.high == pytest.approx(each.mean() + 2 * error, abs=1.3 * error)


def test_a_figure_of_any_size_has_three_digits_zeros_too() -> None:
    assert fidelity._significant(Measure(0.111, 0.11, 0.113)) == "0.111 (0.110 to 0.113)"
    assert fidelity._significant(Measure(123.4, 120.0, 130.2)) == "123 (120 to 130)"
    assert fidelity._significant(Measure(2e-5)) == "2.00e-05"


def test_cards_and_charts_say_fidelity_in_place_of_agreement() -> None:
    card = headlines(summarise(HALF), HALF.inspection)[0]
    assert card.label == "Fidelity (SQNR)"
    assert card.value.endswith("dB")
    assert "largest difference" in card.basis
    assert headlines(summarise(PLAIN), PLAIN.inspection)[0].value == "equal"
    results = [PLAIN, HALF, MORE]
    assert quality("drop", map(summarise, results)) == "sqnr"
    chart = accuracy_info(results)
    assert chart.title == "Fidelity against sparsity"
    assert chart.y.unit == "dB"
    points = [point.y for series in chart.series for point in series.points]
    worst = [min(one.sqnr_db for one in result.accuracy.outputs if one.sqnr_db) for result in (HALF, MORE)]
    assert sorted(points) == pytest.approx(sorted(worst)), "as a search and a gate judge them"
    assert accuracy_info([PLAIN]).empty.startswith("No recipe has changed the outputs")
    for info in (frontier_info(results), compare_info(results)):
        assert "SQNR" in f"{info.title} {info.x.title} {info.y.title}"
        assert any(series.points for series in info.series)
    hovers = [point.hover for series in chart.series for point in series.points]
    assert all("cosine similarity" in hover and "accuracy" not in hover for hover in hovers)


@pytest.mark.parametrize("boxes", [0.0, 0.1])
def test_an_output_that_was_silent_and_is_no_more_is_not_called_equal(boxes: float) -> None:
    """It is the worst, whatever the others' figures are, and has no SQNR."""
    silent = BEFORE.copy()
    silent[..., 12:] = 0
    before = accuracy_of(silent, silent, None, "", PARTS)
    spoke = silent + boxes * NOISE
    spoke[..., 12:] = 0.3
    result = remade(HALF, accuracy=accuracy_of(spoke, silent, None, "", PARTS), baseline_accuracy=before)
    summary = summarise(result)
    assert summary.measures["sqnr"].value is None
    card = headlines(summary, result.inspection)[0]
    assert (card.value, card.interval) == (MISSING, "")
    assert "largest difference 100 % of its output's range" in card.basis
    assert "equal" not in accuracy_sentence(summary)
    assert f"SQNR {MISSING}, " in accuracy_sentence(summary)
    whole = summarise(remade(PLAIN, accuracy=before, baseline_accuracy=before))
    assert "equal to the uncompressed ones" in accuracy_sentence(whole)
    assert (summary.text("sqnr"), whole.text("sqnr")) == (MISSING, "equal")


def test_they_have_no_accuracy_in_frames_comparisons_and_charts() -> None:
    rows = frame([HALF, MORE], against=PLAIN)
    figures = ("accuracy_percent", "drop_points", "agreement_percent", "baseline_accuracy_percent")
    counts = ("correct", "lost_images", "gained_images", "p_value")
    lost = [name for name in rows.columns if name.startswith("against_lost") or name in (*figures, *counts)]
    assert len(lost) == 11
    assert rows[lost].isna().all(axis=None)
    assert {*rows["accuracy_verdict"], *rows["against_accuracy_verdict"]} == {""}
    assert rows["sqnr_db"].notna().all()
    told = table([HALF, MORE], against=PLAIN)
    assert {*told["lost against reference"]} == {MISSING}
    assert {*told["accuracy differs"]} == {NotComparable.CLASSES.label}
    mixed = [HALF, MORE, *(make_result(recipe(one), images=50) for one in (0, 0.5))]
    classifiers = {one.key for one in mixed[2:]}
    for info in (compare_info(mixed), frontier_info(mixed), accuracy_info(mixed)):
        assert {point.key for series in info.series for point in series.points} - {""} == classifiers
    assert len(parallel_info(mixed).rows) == 2
    assert frame(mixed)["frontier_chance"][:2].tolist() == [0, 0]


def test_they_have_no_accuracy_in_json_either() -> None:
    told = as_json(HALF)
    assert [one["name"] for one in told["outputs"]] == ["boxes", "scores"]
    lost = {"points", "low", "high", "p", "verdict", "lost", "gained"}
    assert told["drop"] == dict.fromkeys(lost)
    for accuracy in (told["accuracy"], told["baseline"]["accuracy"]):
        assert accuracy.pop("total") == 50
        assert accuracy.pop("reference") == "baseline"
        assert accuracy == dict.fromkeys(("value", "low", "high", "correct"))
    agreement = told["agreement"]
    assert {name for name, value in agreement.items() if value is None} >= {"value", "low", "high"}
    assert agreement["sqnr_db"] == summarise(HALF).measures["sqnr"].value


def test_what_equals_the_uncompressed_network_is_ranked_before_all_others() -> None:
    lossless = detector(recipe(0, 16), 0)
    results = [PLAIN, lossless, HALF, MORE, detector(recipe(0, 16), 0.1)]
    rows = frame(results, ("sqnr", "file_size"))
    assert rows["frontier"].tolist() == [False, True, False, False, False]
    assert rows["frontier_tied"].tolist() == [False] * 5
    assert rows["frontier_chance"].tolist() == [0, 1, 0, 0, 0]
    assert table([PLAIN, HALF])["frontier"].tolist() == ["yes", "yes"]
    info = frontier_info(results, cost="file_size")
    assert "2 equal the uncompressed network" in info.note
    assert len({point.key for series in info.series for point in series.points}) == 3
    assert frontier_info([PLAIN, lossless]).empty.startswith("No recipe has changed the outputs")
    assert len(parallel_info(results).rows) == 3


def test_a_result_and_results_show_fidelity_of_themselves() -> None:
    view = ResultView(HALF)
    assert "SQNR" in repr(view)
    assert "accuracy" not in repr(view)
    assert (view.accuracy.value.value, view.accuracy.drop.value, view.accuracy.verdict) == (None, None, "")
    heads = list(Results((view,))._shown().columns[2:6])
    assert heads == ["sqnr_db", "cosine", "largest_percent", "file_bytes"]
    both = Results((view, ResultView(make_result(recipe(0.3)))))._shown()
    assert {"accuracy_percent", "drop_points", "sqnr_db"} <= {*both.columns}


def test_of_some_images_they_have_no_accuracy_either() -> None:
    known = Known(HALF.request, HALF.inspection, 100, HALF.accuracy, HALF.baseline_accuracy)
    scores = summarise_scores(known)
    assert scores is not None
    assert scores.partial
    assert scores.measures["accuracy"] == scores.measures["drop"] == Measure(None)


def test_sqnr_has_no_interval_while_images_are_scored() -> None:
    known = Known(HALF.request, HALF.inspection, 50, HALF.accuracy, HALF.baseline_accuracy)
    whole, growing = (summarise_scores(replace(known, images=images)) for images in (50, 100))
    assert whole is not None
    assert growing is not None
    value, interval = whole.parts("sqnr")
    assert " to " in interval
    assert growing.parts("sqnr") == (value, "")


def test_tables_reports_and_the_command_line_say_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    columns = list(table([PLAIN, HALF]).columns)
    assert columns[5:8] == ["SQNR", "cosine", "largest difference"]
    assert "accuracy" not in columns
    assert "accuracy" in table([HALF, make_result(recipe(0.3))]).columns
    assert accuracy_sentence(summarise(HALF)).startswith("outputs: SQNR ")
    assert "equal to the uncompressed ones" in accuracy_sentence(summarise(PLAIN))
    assert "agreement" not in report([PLAIN, HALF]).lower()
    print_result(HALF)
    said = capsys.readouterr().out
    assert "agreement" not in said
    assert "boxes" in said


def test_few_images_give_no_sqnr_interval_and_it_is_said_why() -> None:
    few = accuracy_of(after(0.1)[:19], BEFORE[:19], None, "", PARTS)
    boxes, scores = few.outputs
    assert fidelity.rows(few.outputs)[0]["SQNR"].endswith("dB (an interval takes 20 images)")
    assert fidelity.no_interval(scores) == fidelity.no_interval(HALF.accuracy.outputs[0]) == ""
    assert fidelity.cosine(boxes).low is None
    check = sqnr_check(few, 1)
    assert check.outcome == "undecided"
    assert check.said == "undecided; an interval takes 20 images"
    summary = summarise(remade(HALF, accuracy=few, baseline_accuracy=few))
    card = headlines(summary, HALF.inspection)[0]
    assert (card.interval, card.basis.endswith("an interval takes 20")) == ("", True)


def test_where_few_images_carry_the_change_the_best_end_is_not_known_and_it_is_said_why() -> None:
    moved = BEFORE.copy()
    moved[7] += 1
    boxes = accuracy_of(moved, BEFORE, None, "", PARTS).outputs[0]
    assert "few images carry most of the change, so no upper end is known" in fidelity.sqnr_text(boxes)
    _, low, high = fidelity.sqnrs([boxes])[0]
    assert np.isfinite(low)
    assert high == np.inf
    assert sqnr_check([boxes], low - 0.1).outcome == "pass"
