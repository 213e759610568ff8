"""The workers' tasks, as the pages ask for them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from by_request import close_all
from factories import make_result

from optimizer import on_demand
from optimizer.analysis.stored import timed_again
from optimizer.engine import Engine, kernels
from optimizer.errors import InputError, UnavailableError
from optimizer.measurement import workspace
from optimizer.methods.artifacts import ARTIFACTS
from optimizer.methods.engines import ENGINES
from optimizer.on_demand import measure_unless
from optimizer.progress import (
    Asker,
    Cancelled,
    Report,
    asked_by,
    progress_line,
    quiet,
    stop_if_cancelled,
    uninterrupted,
    while_wanted,
)
from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import DataSpec, Inspection, Known, Latency, Request
from optimizer.store.results import Store
from optimizer.work import JOB_KINDS, Catalogue, ImagesReport, label_of, limits, run

SMALL = Request("fashion-mlp", Recipe(PruneSpec(sparsity=0.5)), data=DataSpec(limit=64))


@pytest.mark.slow
def test_a_measurement_is_in_the_store_when_its_key_comes_back_and_counts_what_an_inspection_does() -> None:
    counted = run("inspect", SMALL, quiet)
    assert isinstance(counted, Inspection)
    key = run("measure", SMALL, quiet)
    result = Store().get(str(key))
    assert result is not None
    assert result.request == SMALL
    assert counted == result.inspection


def test_a_time_is_taken_afresh_once_unless_it_is_to_last_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    store, result = Store(), make_result(quick=True)
    taken: list[Latency] = []

    def time_again(request: Request, report: Report, workspace: object, seconds: float) -> Latency:
        rounds = 10 + round(1000 * seconds)
        taken.append(make_result(quick=True, rounds=rounds, seed=len(taken) + 1).latency)
        return taken[-1]

    monkeypatch.setattr(on_demand, "time_again", time_again)
    first = on_demand.time_afresh(result, store)
    assert on_demand.time_afresh(result, store) == first
    assert on_demand.time_afresh(result, store, seconds=first.seconds) == first
    longer = on_demand.time_afresh(result, store, seconds=0.5)
    assert taken == [first, longer]
    newest = timed_again(store, result)
    assert newest is not None
    assert newest.latency == longer
    assert on_demand.time_afresh(result, store) == longer, "the newest, whatever it says"


def test_a_failure_is_recorded_and_raised() -> None:
    bad = Request("efficientnet-lite0")
    with pytest.raises(InputError, match="the bundled images are .* not for efficientnet-lite0"):
        run("measure", bad, quiet)
    (failure,) = Store().failures()
    assert failure.request == bad
    assert "not for efficientnet-lite0" in failure.message


def test_the_catalogue_lists_bundled_and_torchvision_models() -> None:
    catalogue = run("catalogue", None, quiet)
    assert isinstance(catalogue, Catalogue)
    assert catalogue.cards["fashion-resnet"].bundled_images
    assert catalogue.cards["resnet18"].download_bytes
    assert catalogue.engines.keys() == ENGINES.keys()
    assert catalogue.files.keys() == ARTIFACTS.keys()
    assert catalogue.files["packed"] == ""


def test_the_catalogue_says_which_kinds_of_files_cannot_be_written_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> str:
        raise ValueError("broken")

    for kind, needs in (("onnx", lambda: "no package onnx"), ("packed", fails)):
        monkeypatch.setitem(ARTIFACTS, kind, replace(ARTIFACTS[kind], needs=needs))
    catalogue = run("catalogue", None, quiet)
    assert isinstance(catalogue, Catalogue)
    assert catalogue.files["onnx"] == "no package onnx"
    assert catalogue.files["packed"] == "its code fails (ValueError: broken)"


def test_the_catalogue_says_what_each_engine_lacks_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = replace(ENGINES["onnxruntime"], code=Engine(lambda: "no package onnxruntime", pytest.fail))
    monkeypatch.setitem(ENGINES, "onnxruntime", missing)
    monkeypatch.setattr(kernels, "REASON", tmp_path / "not-built.txt")
    (tmp_path / "not-built.txt").write_text("no compiler was found")
    catalogue = run("catalogue", None, quiet)
    assert isinstance(catalogue, Catalogue)
    assert catalogue.engines["onnxruntime"] == "no package onnxruntime"
    assert catalogue.engines["torch"] == catalogue.engines["sparse"] == ""
    assert catalogue.lacking == {"sparse": "no compiler was found"}


def test_images_are_counted_before_anything_is_measured() -> None:
    report = run("images", ("fashion-resnet", DataSpec(limit=100)), quiet)
    assert isinstance(report, ImagesReport)
    assert (report.evaluated, report.calibrated, report.labelled) == (100, 1000, True)


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=", ".join(JOB_KINDS)):
        run("dance", None, quiet)
    with pytest.raises(InputError, match=", ".join(JOB_KINDS)):
        limits("dance", None)
    with pytest.raises(InputError, match=", ".join(JOB_KINDS)):
        label_of("dance")


@pytest.mark.parametrize("task", JOB_KINDS)
def test_every_task_has_limits_and_words(task: str) -> None:
    found = limits(task, None)
    assert 0 < found.silent <= found.total <= 24 * 3600
    assert label_of(task) == JOB_KINDS[task].label != ""


def test_fine_tuning_comes_on_top_of_a_tasks_minutes() -> None:
    plain = limits("measure", SMALL)
    tuned = replace(SMALL, recipe=replace(SMALL.recipe, finetune_steps=60))
    for task, request in (("measure", tuned), ("anatomy", (tuned, "layer")), ("artifact", ("onnx", tuned))):
        assert limits(task, request).total == limits(task, SMALL).total + 600
    assert limits("measure", tuned).silent == plain.silent + 600
    assert limits("measure", SMALL) == plain


def test_a_failure_is_told_also_where_it_can_not_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(Store, "put_failure", full)
    with pytest.raises(InputError, match="no-such-model"):
        run("measure", Request("no-such-model"), quiet)


@pytest.mark.slow
def test_a_measurement_ends_early_by_what_is_known_by_its_time_and_by_whoever_asked() -> None:
    request = Request("fashion-mlp", Recipe(PruneSpec(sparsity=0.9)), data=DataSpec(limit=500))
    heard: list[Known | None] = []

    def small_enough(known: Known | None) -> bool:
        heard.append(known)
        return known is not None and known.inspection.size.nonzero < known.inspection.size.elements

    told: list[object] = []
    with asked_by(Asker(told.append, lambda: False)):
        assert measure_unless(request, small_enough, Store()) is None
    assert Store().count() == 0
    assert not told
    assert [one.accuracy for one in heard if one] == [None], "before an image was scored"
    with asked_by(Asker(told.append, lambda: True)), pytest.raises(Cancelled):
        measure_unless(request, lambda known: False, Store())
    found = measure_unless(request, lambda known: False, Store())
    assert found is not None
    assert Store().get(found.key) == found


@pytest.mark.slow
def test_what_is_over_ends_in_statistics_too_and_what_is_known_of_a_position_ends_that_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A search keeps to its time; what all positions need is made to its end as long as it goes on."""
    monkeypatch.setattr(workspace, "STATISTICS_IMAGES", 16)
    channels = Request(
        "fashion-resnet", Recipe(PruneSpec("channels", 0.3, allocation="measured")), data=DataSpec(limit=64)
    )
    begun: list[str] = []

    def report(share: float | None, words: str) -> None:
        begun.append(words.partition(":")[0])
        stop_if_cancelled()

    def over_in(step: str) -> Callable[[Known | None], bool]:
        return lambda known: known is None and step in begun

    assert measure_unless(channels, over_in("reading layer inputs"), Store(), report) is None
    assert "measuring sensitivities" not in begun
    assert measure_unless(channels, over_in("ranking channels"), Store(), report) is None
    assert begun.count("ranking channels") == 1
    begun.clear()
    assert measure_unless(channels, lambda known: known is not None, Store(), report) is None
    assert "reading layer inputs" not in begun, "they were kept"
    assert begun.count("ranking channels") > 1
    close_all()


def test_who_asked_for_it_all_may_say_that_it_is_over() -> None:
    def work() -> None:
        with uninterrupted(unless_over=True):
            stop_if_cancelled()

    with asked_by(Asker(lambda _: None, lambda: True)):
        work()
    with asked_by(Asker(lambda _: None, lambda: False, over=lambda: True)):
        with uninterrupted():
            stop_if_cancelled()
        with while_wanted(lambda _: False) as was_unwanted, pytest.raises(Cancelled):
            work()
        assert not was_unwanted()


def test_in_a_notebook_the_line_is_empty_in_the_end_of_work_that_fails_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("IPython.display")
    shown: list[str] = []
    line = SimpleNamespace(update=lambda words, raw: shown.extend(words.values()))
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: line)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)

    def fail() -> None:
        with progress_line(True) as report:
            report(0.5, "scoring")
            raise InputError("no such layer")

    with pytest.raises(InputError, match="no such layer"):
        fail()
    assert shown == ["50 %, scoring", ""]
