import math
import re
import tracemalloc

import numpy as np
import pytest
from factories import make_result, recipe, remade
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimizer.analysis.summary import summarise
from optimizer.errors import WorkError
from optimizer.records import PerImage, Result, decode, encode
from optimizer.tasks import accuracy_of, outputs
from optimizer.tasks.outputs import Differences

BASELINE = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]], np.float32)
VARIANT = np.array([[2.0, 1.0], [1.0, 0.0], [3.0, 1.0]], np.float32)
LABELS = np.array([0, 0, 1])

logits = st.tuples(st.integers(1, 9), st.integers(2, 5)).flatmap(
    lambda shape: hnp.arrays(np.float32, (2, *shape), elements=st.floats(-50, 50, width=32))
)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def test_against_labels_by_hand() -> None:
    accuracy = accuracy_of(VARIANT, BASELINE, LABELS)
    assert accuracy.outcomes.tolist() == [True, True, False]
    assert accuracy.total == 3
    assert accuracy.reference == "labels"
    assert accuracy.agreement == 2
    assert accuracy.sqnr_db == pytest.approx(10 * math.log10(15 / 3))
    kl = [
        sum(math.exp(p) * (p - q) for p, q in zip(log_softmax(before), log_softmax(after), strict=True))
        for before, after in zip(BASELINE.tolist(), VARIANT.tolist(), strict=True)
    ]
    assert accuracy.kl == pytest.approx(sum(kl) / 3, rel=1e-5)


def test_without_labels_correct_means_what_the_baseline_predicts() -> None:
    accuracy = accuracy_of(VARIANT, BASELINE, None)
    assert accuracy.outcomes.tolist() == [True, False, True]
    assert accuracy.reference == "baseline"
    assert accuracy.agreement == 2


@given(logits)
def test_a_model_against_itself_loses_nothing(both: np.ndarray) -> None:
    accuracy = accuracy_of(both[0], both[0].copy(), None)
    assert accuracy.outcomes.all()
    assert accuracy.agreement == len(both[0])
    assert accuracy.sqnr_db is None
    assert accuracy.kl == 0


@pytest.mark.slow
@given(logits)
def test_outcomes_against_a_loop(both: np.ndarray) -> None:
    variant, baseline = both
    labels = np.arange(len(variant)) % variant.shape[1]
    accuracy = accuracy_of(variant, baseline, labels)
    for outcome, row, label in zip(accuracy.outcomes, variant.tolist(), labels, strict=True):
        assert outcome == (row.index(max(row)) == label)
    agreed = [
        a.index(max(a)) == b.index(max(b)) for a, b in zip(variant.tolist(), baseline.tolist(), strict=True)
    ]
    assert accuracy.agreement == sum(agreed)
    assert accuracy.kl >= 0


def test_a_divergence_is_never_below_0() -> None:
    """As rounding makes some, where nothing is different but the last bits."""
    baseline = np.random.default_rng(0).normal(0, 5, (200, 10)).astype(np.float32)
    one_by_one = [accuracy_of(np.nextafter(row, np.inf), row, None).kl for row in baseline[:, None]]
    assert min(one_by_one) == 0


@given(logits, st.floats(-20, 20))
def test_a_shift_of_all_logits_changes_no_probability(both: np.ndarray, shift: float) -> None:
    variant, baseline = both
    moved = accuracy_of(variant + np.float32(shift), baseline, None)
    assert moved.kl == pytest.approx(accuracy_of(variant, baseline, None).kl, abs=1e-4)


def test_the_sqnr_is_20_db_at_a_tenth_of_noise() -> None:
    baseline = np.array([[10.0, 0.0], [0.0, 10.0]], np.float32)
    assert accuracy_of(baseline * np.float32(1.1), baseline, None).sqnr_db == pytest.approx(20, abs=1e-3)


def test_silent_logits_have_no_sqnr() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert accuracy_of(zeros + 1, zeros, None).sqnr_db is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("broken", "words"),
    [((0,), "compress less"), ((1,), "in the uncompressed model itself"), ((0, 1), "itself")],
)
def test_logits_that_are_not_finite_are_a_failure_in_words(
    value: float, broken: tuple[int, ...], words: str
) -> None:
    pair = [VARIANT.copy(), BASELINE.copy()]
    for one in broken:
        pair[one][1, 0] = value
    with pytest.raises(WorkError, match=f"1 of 3 images give outputs that are not finite.*{words}"):
        accuracy_of(pair[0], pair[1], LABELS)


def test_kl_and_sqnr_have_intervals_from_what_each_image_moved() -> None:
    random = np.random.default_rng(3)
    baseline = random.normal(0, 3, (400, 10)).astype(np.float32)
    variant = baseline + random.normal(0, 0.3, (400, 10)).astype(np.float32) * random.gamma(1, 1, (400, 1))
    accuracy = accuracy_of(variant.astype(np.float32), baseline, None)
    assert accuracy.kl_images is not None
    assert accuracy.kl_images.values.mean() == pytest.approx(accuracy.kl, rel=0.01)
    result = remade(make_result(recipe(0.5), images=400), accuracy=accuracy)
    for name in ("kl", "sqnr"):
        measure = summarise(result).measures[name]
        assert measure.value is not None
        assert measure.low is not None
        assert measure.high is not None
        assert measure.low < measure.value < measure.high
    again = decode(encode(result), Result)
    assert again.accuracy == accuracy


def test_an_older_result_has_kl_and_sqnr_without_intervals() -> None:
    accuracy = accuracy_of(np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32), None)
    plain = encode(remade(make_result(), accuracy=accuracy)).decode()
    for name in ("kl", "noise", "signal"):
        plain = re.sub(f'"{name}_images":({{[^}}]*}}|null),?', "", plain)
    old = decode(plain.replace(",}", "}"), Result)
    assert (old.accuracy.kl_images, old.accuracy.kl) == (None, accuracy.kl)
    measures = summarise(old).measures
    assert (measures["kl"].low, measures["sqnr"].low) == (None, None)


def test_a_byte_an_image_is_good_to_4_percent_and_has_no_bias() -> None:
    values = np.random.default_rng(4).lognormal(-6, 2, 10_000)
    values[:5] = 0
    kept = PerImage.of(values)
    assert kept is not None
    assert (len(kept.codes), len(encode(kept)) < 14_000) == (10_000, True)
    told = kept.values
    assert (told[:5] == 0).all()
    assert told[values > 1e-8 * kept.largest] == pytest.approx(
        values[values > 1e-8 * kept.largest], rel=0.042
    )
    assert told.mean() == pytest.approx(values.mean(), rel=0.003)
    assert told.max() == pytest.approx(values.max())
    assert PerImage.of(np.array([0.0, -1e-9])) is None


def test_labels_are_kept_where_classes_have_unequal_numbers_of_images() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 1, 1, 3]]
    kept = accuracy_of(logits, logits, np.array([0, 1, 1, 2]))
    assert kept.classes is not None
    assert kept.classes.tolist() == [0, 1, 1, 2]
    assert accuracy_of(logits, logits, np.array([0, 1, 1, 0])).classes is None
    assert accuracy_of(logits, logits, None).classes is None


def test_labels_that_16_bits_do_not_hold_are_not_kept_as_others() -> None:
    """Two classes would be one, and balanced accuracy wrong."""
    logits = np.zeros((3, 2**16 + 1), np.float32)
    logits[[0, 1, 2], [0, 0, 2**16]] = 1
    assert accuracy_of(logits, logits, np.array([0, 0, 2**16])).classes is None
    assert accuracy_of(logits, logits, np.array([0, 0, 2**16 - 1])).classes is not None


def test_large_outputs_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once in float64 a segmentation network's would take ten times their memory."""
    random = np.random.default_rng(0)
    before, after = random.normal(size=(2, 33, 4, 100, 100)).astype(np.float32)
    whole = Differences.of(after, before)
    monkeypatch.setattr(outputs, "VALUES_AT_ONCE", 100_000)
    tracemalloc.start()
    parts = Differences.of(after, before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < after.nbytes
    assert (parts.low, parts.high) == (whole.low, whole.high)
    for name in ("noise", "signal", "cosine", "largest"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name))


def test_outputs_of_a_network_that_is_no_classifier_are_no_logits_whatever_their_shape() -> None:
    accuracy = accuracy_of(VARIANT, BASELINE, None, classifier=False)
    assert accuracy.is_fidelity
    assert accuracy.kl is None
    assert [one.shape for one in accuracy.outputs] == [VARIANT.shape[1:]]
    near = accuracy_of(BASELINE * np.float32(1.2), BASELINE, None, classifier=False)
    assert near.agreement == 0, "20 % off, though the largest is where it was"
