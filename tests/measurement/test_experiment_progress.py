"""What is told while a request is measured, and what is left of it where it is ended."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_request import close_all, measure, score
from small_requests import FOUR_BITS, HALF, IMAGES, MLP, Own, request

from optimizer import on_demand
from optimizer.analysis.headline import headlines
from optimizer.analysis.outcomes import growing_drop, growing_share_interval, paired_drop
from optimizer.analysis.summary import summarise, summarise_scores
from optimizer.data.memory import in_memory
from optimizer.data.selection import fingerprint
from optimizer.engine import Runner
from optimizer.engine.memory import Start
from optimizer.measurement import experiment, latency
from optimizer.measurement.workspace import Workspace
from optimizer.measurement.workspace import open_model as make_open
from optimizer.model.own import own_model
from optimizer.progress import Asker, Cancelled, asked_by
from optimizer.recipe import QuantizeSpec
from optimizer.records import ColdStart, Known, Latency, Request, Result, Settings, encode
from optimizer.store.results import UNFINISHED, Store

pytestmark = pytest.mark.usefixtures("few_rounds")


def test_progress_is_reported_from_loading_to_timing() -> None:
    messages: list[str] = []
    measure(request(HALF), lambda share, message: messages.append(message))
    steps = [
        "loading the model",
        "preparing OpenVINO",
        "compressing",
        "reading the images",
        f"scoring {IMAGES} images",
        "timing",
    ]
    assert [message for message in messages if message in steps] == steps


def test_scores_are_published_before_anything_is_timed() -> None:
    told: list[object] = []
    with asked_by(Asker(told.append, lambda: False)):
        result = measure(request(FOUR_BITS), lambda share, message: told.append(message))
    counted, *_, scores = known = [one for one in told if isinstance(one, Known)]
    assert told.index(scores) < told.index("timing")
    assert (scores.accuracy, scores.baseline_accuracy) == (result.accuracy, result.baseline_accuracy)
    assert {one.inspection for one in known} == {result.inspection}
    assert summarise_scores(counted) is None
    early, whole = summarise_scores(scores), summarise(result)
    assert early is not None
    for name in early.measures:
        assert (early.text(name), early.parts(name)) == (whole.text(name), whole.parts(name))
    assert headlines(None, scores.inspection, early)[0] == headlines(whole, result.inspection)[0]
    assert headlines(None, scores.inspection, early)[2].basis == "being measured"


def test_what_a_timed_call_needs_is_made_after_accuracy_is_known_and_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, ready = list[object](), Runner.ready

    def noted(runner: Runner) -> Runner:
        told.append("made")
        return ready(runner)

    def timed(builds: tuple[Runner, Runner], runner: Runner, *others: Any) -> Latency:
        assert all("execution" in vars(one) for one in (*builds, runner))
        return time_latency(builds, runner, *others)

    time_latency = experiment.time_latency
    monkeypatch.setattr(Runner, "ready", noted)
    monkeypatch.setattr(experiment, "time_latency", timed)
    with asked_by(Asker(told.append, lambda: False)):
        result = measure(request(FOUR_BITS, model=MLP))
    known = [at for at, one in enumerate(told) if isinstance(one, Known)]
    last = told[known[-1]]
    assert isinstance(last, Known)
    assert last.accuracy == result.accuracy
    assert known[-1] < told.index("made")


@pytest.mark.slow
def test_a_noisy_latency_is_published_with_its_result_before_it_is_timed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(latency, "stolen_share", lambda: nullcontext(lambda: 0.5))
    monkeypatch.setitem(latency.EFFORTS, True, replace(latency.EFFORTS[True], attempts=2))
    with asked_by(Asker(told.append, lambda: False)):
        result = measure(request(FOUR_BITS), lambda share, message: told.append(message))
    (before,) = [one for one in told if isinstance(one, Result)]
    assert told[told.index(before) + 1] == "timing for longer, since it was noisy"
    assert (before.latency.attempts, result.latency.attempts) == (1, 2)
    assert summarise(before).noise
    assert replace(before, latency=result.latency, created=result.created) == result


def test_accuracy_of_more_images_is_not_told_at_once_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(experiment, "TOLD_SECONDS", 60.0)
    with asked_by(Asker(told.append, lambda: False)):
        scored = score(request(FOUR_BITS))
    first, whole = [one.accuracy for one in told if isinstance(one, Known) and one.accuracy]
    assert first.total < whole.total
    assert whole == scored.accuracy


def test_accuracy_grows_in_a_random_order_with_an_interval_for_every_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(experiment, "TOLD_SECONDS", 0.0)
    with asked_by(Asker(told.append, lambda: False)):
        scored = score(request(FOUR_BITS))
    *grown, whole = [one for one in told if isinstance(one, Known) and one.accuracy]
    sizes = [one.accuracy.total for one in grown if one.accuracy]
    assert sizes == sorted(set(sizes))
    assert len(sizes) >= 2
    assert whole.accuracy == scored.accuracy
    assert {one.images for one in (*grown, whole)} == {scored.accuracy.total}
    order = np.random.default_rng(0).permutation(scored.accuracy.total)
    for one, size in zip(grown, sizes, strict=True):
        assert one.accuracy is not None
        assert np.array_equal(one.accuracy.outcomes, scored.accuracy.outcomes[order[:size]])
        summary = summarise_scores(one)
        assert summary is not None
        assert summary.partial
        low, high = growing_share_interval(int(one.accuracy.outcomes.sum()), size)
        assert summary.measures["accuracy"].low == 100 * low
        assert summary.measures["accuracy"].high == 100 * high
        assert summary.drop == growing_drop(
            paired_drop(scored.baseline_accuracy.outcomes[order[:size]], one.accuracy.outcomes)
        )


@pytest.mark.slow
@pytest.mark.parametrize(("last", "bits"), [("compressing", 5), ("scoring", 6), ("timing", 7)])
def test_work_that_is_not_wanted_any_more_ends_and_the_next_is_as_without_it(last: str, bits: int) -> None:
    asked = request(replace(HALF, quantize=QuantizeSpec(weight_bits=bits)), model=MLP)
    reached = [""]
    with pytest.raises(Cancelled), asked_by(Asker(lambda known: None, lambda: reached[-1] == last)):
        measure(asked, lambda share, message: reached.append(message.split()[0]))
    assert reached[-1] == last
    after = measure(asked)
    close_all()
    anew = measure(asked)
    assert (after.accuracy, after.inspection, after.notes) == (anew.accuracy, anew.inspection, anew.notes)


@pytest.mark.parametrize("ended", [Cancelled, KeyboardInterrupt])
def test_what_is_ended_while_starts_are_measured_is_gone_on_with(
    ended: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*others: object) -> None:
        assert store.documents(UNFINISHED, Result), (
            "a kill, which nothing can be done about, loses it neither"
        )
        raise ended

    monkeypatch.setattr(experiment, "measure_start", end)
    monkeypatch.setitem(latency.EFFORTS, False, replace(latency.EFFORTS[False], processes=0))
    images = in_memory(torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    asked = Request("own", HALF, "torch", settings=Settings(threads=1, quick=False))
    workspace = Workspace(make_open(own_model(Own(), (3, 2, 2))), files=fingerprint(asked.data), given=images)
    store, told = Store(tmp_path / "results.sqlite"), list[object]()
    with asked_by(Asker(told.append, lambda: False)), pytest.raises(ended):
        on_demand.load_or_measure(asked, store, workspace=workspace)
    (shown,) = [one for one in told if isinstance(one, Result)]
    assert "memory and cold start are not known" in shown.notes[-1]
    assert store.get(shown.key) is None, "asked again, memory is measured"
    monkeypatch.setattr(experiment, "measure_start", lambda *_: Start(1, 2))
    for name in ("score", "time_latency"):
        monkeypatch.setattr(experiment, name, lambda *_: pytest.fail("it was done again"))
    result = on_demand.load_or_measure(asked, store, workspace=workspace)
    assert (result.latency, result.accuracy) == (shown.latency, shown.accuracy)
    assert (result.notes, result.cold_start) == (shown.notes[:-1], ColdStart(2, 2))
    assert result.inspection.size.memory_bytes == 1
    assert store.get(result.key) == result
    assert not store.documents(UNFINISHED, Result)
    store.put_document(UNFINISHED, result.key, encode(result))
    store.forget([result.key])
    assert not store.documents(UNFINISHED, Result)
