import html
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from factories import OTHER_MACHINE, make_latency, make_result, make_sweep, recipe, remade

from optimizer.analysis.badges import NOT_SAID
from optimizer.analysis.frame import frame
from optimizer.analysis.headline import headlines
from optimizer.analysis.outcomes import AccuracyVerdict, paired_drop
from optimizer.analysis.result_json import as_json
from optimizer.analysis.summary import summarise
from optimizer.charts.points import hover
from optimizer.export.report import accuracy_sentence, findings, latency_sentence, report, size_sentence
from optimizer.records import Accuracy, Result
from optimizer.system.environment import environment


def with_flips(lost: int, gained: int, images: int = 1_000, right: int = 900) -> Result:
    """A result whose baseline is right on ``right`` images, with so many flips."""
    before = np.arange(images) < right
    after = before.copy()
    after[:lost] = False
    after[right : right + gained] = True
    result = make_result(recipe(0.5))

    def accuracy(outcomes: np.ndarray) -> Accuracy:
        return Accuracy.of(outcomes, reference="labels", agreement=images, sqnr_db=None, kl=0.0)

    return remade(result, accuracy=accuracy(after), baseline_accuracy=accuracy(before))


def words_of(text: str) -> str:
    body = re.sub(r"<script.*?</script>|<style.*?</style>", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


@pytest.mark.parametrize("several", [False, True])
def test_no_chart_is_drawn_twice(several: bool) -> None:
    results = make_sweep()[:5]
    if several:
        other = replace(results[-1].request, model="fashion-mlp")
        results = [*results[:-1], remade(results[-1], request=other)]
    drawn = re.findall(r'id="chart-([^"]*)" role', report(results))
    assert sum("latency_ratio" in name for name in drawn) == 1
    assert ("accuracy" in drawn, "compare-accuracy" in drawn) == (True, not several)


def test_every_table_says_how_to_come_to_its_other_columns_and_none_has_figures_in_a_narrow_pile() -> None:
    text = report(make_sweep()[:3])
    tables = text.count("<table>")
    hints = re.findall(r'<p class="muted swipe">(\d+) columns: swipe the table sideways', text)
    assert len(hints) == tables >= 3
    assert all(int(hint) > 2 for hint in hints)
    plain = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", text)]
    assert max(map(len, plain)) <= 24, "longer ones have a width of their own"
    assert '<td class="words">' in text


def test_a_loss_is_said_with_its_interval_and_p() -> None:
    sentence = accuracy_sentence(summarise(with_flips(30, 6)))
    assert re.fullmatch(
        r"accuracy falls by 2\.4 points \(1\.3 to 3\.7\), p < 0\.001, "
        r"to 87\.6 % \(85\.4 to 89\.5\) on 1,000 bundled images",
        sentence,
    ), sentence


def test_a_gain_is_said_as_a_gain() -> None:
    sentence = accuracy_sentence(summarise(with_flips(2, 20)))
    assert sentence.startswith("accuracy rises by 1.8 points (1.0 to 2.9), p < 0.001, to 91.8 %")
    assert "−" not in sentence


def test_a_difference_by_chance_is_not_called_one() -> None:
    sentence = accuracy_sentence(summarise(with_flips(5, 2)))
    assert sentence.startswith("accuracy: no measurable difference, 89.7 %")
    assert "loses 0.30 points; may be a loss of up to 1.02, p = 0.3" in sentence
    assert "falls" not in sentence


def test_without_labels_it_is_agreement() -> None:
    sentence = accuracy_sentence(summarise(make_result(recipe(0.8), labelled=False)))
    assert sentence.startswith("agreement with the uncompressed model falls by")


@pytest.mark.parametrize(
    ("lost", "gained", "verdict", "mood"),
    [
        (4, 0, AccuracyVerdict.SAME, "same"),
        (5, 0, AccuracyVerdict.WORSE, "worse"),
        (7, 1, AccuracyVerdict.WORSE, "worse"),
        (0, 5, AccuracyVerdict.BETTER, "better"),
    ],
)
def test_every_place_judges_alike(lost: int, gained: int, verdict: AccuracyVerdict, mood: str) -> None:
    result = with_flips(lost, gained, images=500, right=450)
    summary = summarise(result)
    card = headlines(summary, result.inspection)[0]
    assert card.mood == mood
    assert (str(verdict) in card.change) == (verdict is AccuracyVerdict.SAME)
    assert (str(AccuracyVerdict.SAME) in accuracy_sentence(summary)) == (verdict is AccuracyVerdict.SAME)
    assert f", {verdict}, p = " in hover(summary)
    assert as_json(result)["drop"]["verdict"] == verdict
    assert list(frame([result])["accuracy_verdict"]) == [verdict]


def test_without_labels_nothing_is_tested_and_nothing_gained() -> None:
    result = make_result(recipe(0.3), labelled=False, images=500)
    agrees = Accuracy.of(np.ones(500, bool), reference="baseline", agreement=500, sqnr_db=None, kl=0.0)
    summary = summarise(remade(result, accuracy=agrees))
    assert (summary.drop.low, summary.drop.p) == (0, None)
    assert summary.text("drop") == "0.0 points (0.0 to 0.8)"
    assert "p = " not in accuracy_sentence(summary) + hover(summary)
    assert as_json(remade(result, accuracy=agrees))["drop"]["p"] is None


def test_too_few_images_to_promise_are_said_to_be_too_few() -> None:
    words = words_of(report([with_flips(1, 1, images=200, right=180)]))
    assert "too few images to promise 1 point: 200 here, 429 needed even if no answer changes" in words
    assert "too few images" not in words_of(report([with_flips(300, 0)]))


def test_size_is_said_as_it_is() -> None:
    assert size_sentence(summarise(make_result(recipe(0.5, 8)))).startswith(
        "the file shrinks from 2.35 MB to 593 kB (0.252×), "
    )
    assert size_sentence(summarise(make_result(recipe(0.5)))).startswith("the file is 2.35 MB, as before, ")
    grown = make_result(recipe(0.5))
    size = replace(grown.inspection.size, file_bytes=3_000_000)
    grown = remade(grown, inspection=replace(grown.inspection, size=size))
    assert "the file grows from 2.35 MB to 3.00 MB (1.28×)" in size_sentence(summarise(grown))


def test_latency_is_said_by_its_verdict() -> None:
    faster = latency_sentence(summarise(make_result(recipe(0, 8, 8))))
    assert re.match(r"a call takes 27\d\.?\d* µs instead of 60\d\.?\d* µs: 0\.4\d+× \(.*\), faster", faster)
    same = latency_sentence(summarise(make_result()))
    assert same.startswith("latency: no measurable difference, ")
    noisy = latency_sentence(summarise(make_result(noisy=True, ratio=0.5)))
    assert noisy.startswith("the latency is not to be trusted (")
    assert "faster" not in noisy
    assert latency_sentence(summarise(make_result(quick=True))).endswith(", preliminary")
    assert "shared with uncompressed" in latency_sentence(summarise(make_result(recipe(0.5))))


@pytest.mark.slow
def test_report_finds_the_fastest_and_the_smallest_that_are_sure() -> None:
    words = words_of(report(make_sweep()))
    assert re.search(r"\d+ of 29 compressed configurations surely lost at most 1 point", words)
    assert (
        "The fastest of these, best of 29 tried, is 8-bit weights · 8-bit activations (fashion-resnet on "
        "OpenVINO, 2 threads): " in words
    )
    smallest = "50 % of layer weights pruned · 8-bit weights"
    assert f"The smallest of these through zstd, best of 29 tried, is {smallest} (" in words
    assert "the bounds hold for all of them at once" in words
    alone = words_of(report([make_result(), make_result(recipe(0.3))]))
    assert "1 of 1 compressed configuration surely lost" in alone
    assert "best of" not in alone


def test_half_of_a_slow_engine_is_not_called_faster_than_most_of_a_fast_one() -> None:
    """A ratio ranks what was timed against one uncompressed model, so each has a fastest of its own."""
    timed = (("torch", 0.5, 20e6), ("torch", 0.6, 20e6), ("openvino", 0.9, 5e6))
    results = [
        remade(
            make_result(recipe(0.3), engine=engine, ratio=ratio),
            latency=make_latency(ratio, center_ns=center_ns, rounds=400),
        )
        for engine, ratio, center_ns in timed
    ]
    section = findings([summarise(result) for result in results])
    assert section
    fastest = [item for item in section.items if item.startswith("The fastest")]
    assert len(fastest) == 2
    assert fastest[0].startswith(
        "The fastest of these for fashion-resnet on torch eager, 2 threads, best of 2 tried, is 30 %"
    )
    assert "0.50" in fastest[0]
    assert fastest[1].startswith("The fastest of these for fashion-resnet on OpenVINO, 2 threads is 30 %")
    elsewhere = remade(results[2], environment=OTHER_MACHINE)
    section = findings([summarise(result) for result in (results[2], elsewhere)])
    assert section
    assert ["Another CPU" in item for item in section.items] == [False, True, False]


def test_what_was_measured_on_other_images_is_ranked_by_itself() -> None:
    both = [
        make_result(recipe(0.3), labelled=labelled, images=images, path="/holiday")
        for labelled, images in ((True, 500), (False, 200))
    ]
    words = words_of(report(both))
    assert re.findall(r"What was found on (\d+ images of \w+)", words) == [
        "500 images of holiday",
        "200 images of holiday",
    ]
    assert "best of" not in words
    assert words.count("What was found") == 2
    assert words_of(report([make_result(recipe(0.3)), make_result(recipe(0.5))])).count("What was found") == 1


def findings_of(flips: Sequence[tuple[int, int]], images: int) -> str:
    """What a report says first of recipes with so many images lost and gained."""
    drops = [paired_drop(*outcomes_of(lost, gained, images)) for lost, gained in flips]
    section = findings([replace(SUMMARY, drop=drop, total=images) for drop in drops])
    assert section
    return section.paragraphs[0]


SUMMARY = summarise(make_result(recipe(0.5)))


def outcomes_of(lost: int, gained: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.arange(images) >= gained
    after = np.arange(images) < images - lost
    return before, after


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0.01, 0.03])
def test_of_many_that_lose_a_little_too_much_hardly_any_is_called_sure(lost: float) -> None:
    """24 recipes lose 1 point and a hair each, so that every one called sure is wrong: in 1 of 20 reports at
    most. By their own intervals it would be in a quarter of them and more."""
    random, images = np.random.default_rng(0), 1_000
    shares = [lost + 1e-6, lost - 0.01, 1 - 2 * lost + 0.01 - 1e-6]
    wrong, alone = 0, 0
    for _ in range(200):
        flips = [(int(drawn[0]), int(drawn[1])) for drawn in random.multinomial(images, shares, size=24)]
        words = findings_of(flips, images)
        wrong += not words.startswith("No configuration surely lost")
        alone += "printed below, 0 would pass" not in words
    assert wrong <= 0.05 * 200
    assert alone >= 0.2 * 200


def test_many_that_lose_nothing_are_all_sure() -> None:
    assert findings_of([(3, 3)] * 24, 10_000).startswith("24 of 24 compressed configurations surely lost")
    assert findings_of([(3, 3)] * 23 + [(900, 0)], 10_000).startswith("23 of 24 ")


def test_the_images_needed_are_those_for_as_many_as_were_tried() -> None:
    words = findings_of([(0, 0)] * 24, 500)
    assert "too few images to promise 1 point: 500 here, 988 needed" in words
    assert "by their own intervals, as printed below, 24 would pass" in words


def test_report_says_so_when_nothing_is_sure_or_faster() -> None:
    nothing = words_of(report([make_result(), make_result(recipe(0.9)), make_result(recipe(0.8))]))
    assert "No configuration surely lost at most 1 point" in nothing
    assert "The surest, best of 2 tried, is 80 % of layer weights pruned" in nothing
    slow = words_of(report([make_result(), make_result(recipe(0.3))]))
    assert "None of these is measurably faster than the uncompressed model" in slow


@pytest.mark.slow
def test_report_of_few_tells_each_and_of_many_the_frontier() -> None:
    few = make_sweep()[:4]
    words = words_of(report(few))
    for result in few:
        assert words.count(result.request.recipe.describe()) >= 2
    assert "The configurations on the frontier" not in words
    for many, lost in ((make_sweep(), "accuracy lost"), (make_sweep(labelled=False), "agreement lost")):
        assert f"The configurations on the frontier of {lost}, zstd size and" in words_of(report(many))


def test_report_says_how_and_what_it_does_not_say() -> None:
    result = make_result(recipe(0.5, 4), noisy=True, notes=("3 images could not be read",))
    words = words_of(report([result]))
    for part in (
        "How each number was measured",
        "10 layers f32",
        "3 images could not be read",
        "simulated: 4-bit weights",
        "What these figures do not say",
        *map(html.escape, NOT_SAID),
        "How to read this",
        "Environment",
        "time shared with uncompressed",
    ):
        assert part in words, part


def test_how_each_number_was_measured_names_the_engine_too() -> None:
    """The rows of one recipe on two engines would be alike."""
    text = report([make_result(recipe(0.5), engine=engine) for engine in ("openvino", "torch")])
    table = html.unescape(words_of(text)).split("How each number was measured")[1]
    for engine in ("OpenVINO", "torch eager"):
        assert f" {engine} 50 % of layer weights pruned" in table
    assert "fashion-resnet OpenVINO" not in table, "where it is the only model, the title names it"


def test_report_says_which_machine_timed_and_which_worked_out_the_accuracy() -> None:
    elsewhere = (remade(make_result(recipe(0, bits)), scored_on=OTHER_MACHINE) for bits in (32, 4))
    results = [make_result(recipe(0.5)), *elsewhere]
    words = html.unescape(words_of(report(results)))
    assert words.count("accuracy was worked out on another machine") == 2
    assert f"{environment().cpu} time and accuracy" in words
    assert f"{OTHER_MACHINE.cpu} accuracy" in words
    assert "machine measured cores" in words
    assert "Times of different machines" not in words
    timed = [results[0], make_result(other_machine=True)]
    assert "Times of different machines" in words_of(report(timed))


def test_report_escapes_everything() -> None:
    evil = "<img src=x onerror=alert(1)>"
    result = make_result(model=evil, path=f"/photos/{evil}", notes=(evil,), other_machine=True)
    latency = replace(make_latency(), recipe=recipe(0.5))
    text = report([remade(result, latency=latency)], title=evil)
    assert "<img" not in text
    assert "&lt;img" in text


def test_report_of_nothing_is_a_page() -> None:
    assert "Nothing measured yet" in words_of(report([]))
