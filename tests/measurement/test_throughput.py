"""Real networks, served: what ran and how often, never how fast."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import recipe
from simulated_clock import Clock

from optimizer import work
from optimizer.analysis.rounds import confidence_of_each, median_interval
from optimizer.analysis.served import EAGER_EVERY, Configuration
from optimizer.analysis.serving import ServingRequest, ServingRun, comparisons
from optimizer.compression.apply import compress
from optimizer.engine.base import Service, one_by_one
from optimizer.errors import InputError
from optimizer.measurement import throughput, visits
from optimizer.measurement.throughput import BASELINE, EAGER_MODEL, VARIANT, ServingEffort, measure
from optimizer.measurement.workspace import open_workspace
from optimizer.methods.engines import ENGINES
from optimizer.model.folding import fold_batch_norm
from optimizer.progress import Asker, Cancelled, Report, asked_by, quiet
from optimizer.recipe import Recipe

SHORT = ServingEffort(
    warmup_calls=2,
    warmup_seconds=0,
    seconds=0,
    min_rounds=6,
    max_rounds=6,
    settle_seconds=0.005,
    sample_seconds=1e-4,
)
IMAGES = torch.rand(6, 1, 8, 8)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(throughput.EFFORTS, True, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "streams"), [(1, 1), (3, 1), (2, 2)])
def test_openvino_answers_every_request_with_the_network_s_logits(batch: int, streams: int, small) -> None:  # type: ignore[no-untyped-def]
    model, _ = fold_batch_norm(small("cnn"))
    built = (
        ENGINES["openvino"]
        .load()
        .prepare(model, (1, 8, 8))(compress(model, Recipe()), IMAGES, threads=1, batch=1)
    )
    assert built.serve is not None
    service = built.serve(batch=batch, threads=2, streams=streams)
    images = np.ascontiguousarray(IMAGES[:batch].numpy())
    for requests in (1, 5):
        times = service.run(images, requests)
        assert times.shape == (requests, 2)
        assert (np.diff(times) > 0).all()


def test_torch_serves_with_so_many_threads_and_puts_them_back(small) -> None:  # type: ignore[no-untyped-def]
    model = small("cnn")
    built = (
        ENGINES["torch"]
        .load()
        .prepare(model, (1, 8, 8))(compress(model, Recipe()), IMAGES, threads=1, batch=1)
    )
    assert built.serve is not None
    before = torch.get_num_threads()
    with built.serve(batch=2, threads=before + 1, streams=1).session():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_every_round_serves_all_in_an_order_of_its_own() -> None:
    log: list[str] = []
    sessions: list[str] = []

    def service(name: str) -> Service:
        def run(images: np.ndarray, requests: int) -> np.ndarray:
            log.append(name)
            return np.cumsum(np.full((requests, 2), 20_000_000)).reshape(-1, 2)

        @contextmanager
        def session() -> Iterator[None]:
            sessions.append(name)
            yield

        return Service(run, session)

    one, two = Configuration(1, 1, 1), Configuration(2, 2, 2)
    names = (*BASELINE, VARIANT)
    services = {(where, name): service(f"{where.batch} {name}") for where in (one, two) for name in names}
    images = {1: [np.zeros((1, 1))], 2: [np.zeros((2, 1))]}
    series = throughput._rounds(services, images, SHORT, 3, quiet)
    visits = sessions[len(services) :]  # after those that warmed up
    rounds = [visits[start : start + 6] for start in range(0, 36, 6)]
    assert all(
        sorted(order) == sorted(f"{where.batch} {name}" for where in (one, two) for name in names)
        for order in rounds
    )
    assert len({tuple(order) for order in rounds}) > 3
    assert set(sessions) == set(log)
    assert series.requests[one, VARIANT] == 1
    assert series.requests[two, VARIANT] == 4, "whole rounds of both streams"
    assert series.served(one, BASELINE).request_ns == (20_000_000,) * 6
    assert [len(samples) for samples in series.served(two, BASELINE).interval_ns] == [6, 6]


def test_the_requests_that_are_kept_are_of_the_whole_run() -> None:
    few, many = np.arange(2_000), np.arange(64_000)
    assert throughput.thin(few, 0).tolist() == few.tolist()
    kept = throughput.thin(many, 0)
    assert len(kept) == throughput.KEPT_REQUESTS
    assert (np.diff(kept) > 0).all()
    assert np.histogram(kept, 8, (0, 64_000))[0].min() > 200
    assert np.bincount(kept % 64, minlength=64).min() > 10, "and of every place in a round of 64"


def test_requests_are_timed_one_by_one() -> None:
    calls: list[int] = []
    times = one_by_one(lambda images: calls.append(len(images)) or images)(np.zeros((3, 1)), 4)
    assert calls == [3] * 4
    assert times.shape == (4, 2)
    assert (np.diff(times.ravel()) >= 0).all()


Draw = Callable[[np.random.Generator, int], np.ndarray]
SCATTER: dict[str, Draw] = {
    "by 10 %": lambda random, number: np.exp(random.normal(-0.005, 0.1, number)),
    "exponential": lambda random, number: random.exponential(1, number),
    "one in twenty is ten times as long": lambda random, number: (
        np.where(random.random(number) < 0.05, 10, 1) / 1.45
    ),
}
"""Milliseconds of so many requests, 1 in the mean."""


def streamed(taken: Iterable[float], streams: int, pause: float = 0.0) -> np.ndarray:
    """When requests that take so many milliseconds began and ended: the next begins a ``pause`` after any
    stream is free."""
    free, times = [0.0] * streams, []
    for one in taken:
        begun = heapq.heappop(free)
        times.append((begun, begun + one))
        heapq.heappush(free, begun + one + pause)
    return np.round(1e6 * np.array(times)).astype(int)


@pytest.mark.parametrize("scatter", SCATTER)
@pytest.mark.parametrize("streams", [1, 2, 4, 16])
@pytest.mark.parametrize("each", [2, 3, 20])
def test_streams_that_end_at_different_moments_are_as_fast_as_they_are(
    scatter: str, streams: int, each: int
) -> None:
    """Until all were answered, 16 streams took 12 % longer than they need for three requests each that
    scatter by 10 %; up to the first answer after the last one began, a quarter less where one in twenty was
    long."""
    random = np.random.default_rng(streams)
    rounds = [
        streamed(SCATTER[scatter](random, streams * each), streams) for _ in range(12_000 // streams // each)
    ]
    intervals = [throughput.interval_ns(times, streams) for times in rounds]
    assert np.mean(intervals) == pytest.approx(1e6 / streams, rel=0.01 if scatter == "by 10 %" else 0.06)


def test_equal_requests_of_streams_take_their_time_over_the_streams() -> None:
    for streams, each in (1, 1), (1, 5), (2, 2), (4, 3):
        times = streamed([1.0] * streams * each, streams)
        assert throughput.interval_ns(times, streams) == pytest.approx(1e6 / streams)


def test_from_an_answer_to_the_stream_s_next_request_is_time_too() -> None:
    for streams in (1, 2, 4):
        times = streamed([1.0] * streams * 3, streams, pause=0.2)
        assert throughput.interval_ns(times, streams) == pytest.approx(1.2e6 / streams)


def test_the_last_request_of_a_stream_does_not_count_since_it_had_fewer_beside_it() -> None:
    times = np.array([[0, 10], [0, 14], [10, 20], [14, 22]])  # alone from 20 on, and twice as fast
    assert throughput.interval_ns(times, 2) == 6
    assert throughput.beside_all(times, 2).tolist() == [[0, 10], [0, 14]]
    assert throughput.beside_all(times[:2], 1).tolist() == [[0, 10], [0, 14]]


def test_a_sample_of_several_streams_lasts_as_long_as_that_of_one() -> None:
    """It was cut down by the number of streams."""
    one, eight = Configuration(1, 8, 1), Configuration(1, 8, 8)
    times = np.array([[0, 100_000]])
    services = {
        (where, name): Service(lambda images, requests: np.repeat(times, requests, 0))
        for where in (one, eight)
        for name in (*BASELINE, VARIANT)
    }
    long = replace(SHORT, sample_seconds=1e-3)
    series = throughput._rounds(services, {1: [np.zeros((1, 1))]}, long, 0, quiet)
    assert series.requests[one, VARIANT] == 10
    assert series.requests[eight, VARIANT] == 8 * 11


def test_networks_that_take_seconds_have_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds an image at batch sizes 1, 4 and 16 took two hours in full, one of them for warming up."""
    clock = Clock()
    monkeypatch.setattr(visits, "clock", lambda: clock.now_ns)

    def run(images: np.ndarray, requests: int) -> np.ndarray:
        begun = clock.now_ns + round(2e9) * len(images) * np.arange(requests)
        clock.now_ns += round(2e9) * len(images) * requests
        return np.stack([begun, begun + round(2e9) * len(images)], axis=1)

    grid = [Configuration(batch, 1, 1) for batch in (1, 4, 16)]
    services = {(one, name): Service(run) for one in grid for name in (*BASELINE, VARIANT, EAGER_MODEL)}
    images = {one.batch: [np.zeros((one.batch, 1))] for one in grid}
    series = throughput._rounds(services, images, throughput.EFFORTS[False], 0, quiet)
    assert series.warmup_calls == 2
    assert {len(taken) for (_, name), taken in series.intervals_ns.items() if name != EAGER_MODEL} == {8}
    assert clock.now_ns < 50 * 60e9
    few = {key: service for key, service in services.items() if key[0].batch == 1}
    series = throughput._rounds(few, images, throughput.EFFORTS[False], 0, quiet)
    assert len(series.intervals_ns[grid[0], VARIANT]) >= throughput.EFFORTS[False].min_rounds


def test_however_few_rounds_there_are_a_limit_is_kept_by_all_medians_at_once() -> None:
    for grid in (1, 3, 24):
        rounds = throughput.fewest_rounds(grid)
        confidence = confidence_of_each(2 * grid)
        random, beyond = np.random.default_rng(grid), 0
        for _ in range(1_000):
            requests = random.normal(size=(2 * grid, rounds))
            beyond += min(median_interval(one, confidence)[2] for one in requests) < 0
        assert 6 <= rounds <= throughput.EFFORTS[False].min_rounds
        assert beyond <= 0.05 * 1_000


def test_serving_ends_between_two_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def run(images: np.ndarray, requests: int) -> np.ndarray:
        calls.append(requests)
        if len(calls) == 4:
            wanted.clear()
        return np.array([[0, 1_000_000]] * requests)

    wanted, brief = [True], replace(SHORT, settle_seconds=0.0)
    services = {(Configuration(1, 1, 1), name): Service(run) for name in (*BASELINE, VARIANT)}
    monkeypatch.setattr(throughput, "_warm_up", lambda *_: (1, 0.001))
    with asked_by(Asker(lambda known: None, lambda: not wanted)), pytest.raises(Cancelled):
        throughput._rounds(services, {1: [np.zeros((1, 1))]}, brief, 0, quiet)
    assert len(calls) < 20


def serve(request: ServingRequest, report: Report) -> ServingRun:
    return measure(open_workspace(request.model, request.data), request, report)


@pytest.mark.slow
def test_a_recipe_is_served_beside_its_baseline_and_torch_eager() -> None:
    told: list[str] = []
    request = ServingRequest(
        "fashion-mlp", recipe(0, 8, 8), batches=(1, 2), threads=(1, 2), streams=(1, 2), seed=1
    )
    try:
        run = serve(request, lambda share, words: told.append(words))
    except InputError as error:  # a machine of one core
        pytest.skip(str(error))
    assert [point.configuration for point in run.points] == [
        Configuration(batch, threads, streams)
        for batch in (1, 2)
        for threads, streams in ((1, 1), (2, 1), (2, 2))
    ]
    for point in run.points:
        assert [len(samples) for samples in point.baseline.interval_ns] == [6, 6]
        assert len(point.variant.interval_ns) == 1
        assert point.eager is not None
        assert len(point.eager.interval_ns[0]) == len(range(0, 6, EAGER_EVERY))
        assert point.requests % point.configuration.streams == 0
    assert {layer.precision for layer in run.execution.layers} <= {"u8", "i8"}
    assert len(comparisons(run)) == 6
    assert "compiling batch size 1, 1 thread, 1 stream" in told
    assert any(words.startswith("serving, round") for words in told)


@pytest.mark.slow
def test_torch_is_its_own_baseline_and_has_no_eager_beside_it() -> None:
    run = serve(ServingRequest("fashion-mlp", recipe(0.5), "torch", batches=(1,), threads=(1,)), quiet)
    assert run.points[0].eager is None


@pytest.mark.slow
def test_an_engine_that_can_only_be_built_is_built_for_each_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    pair = throughput.pair

    def without_serve(workspace, asked, report=quiet):  # type: ignore[no-untyped-def]
        made.append((asked.settings.batch, asked.settings.threads))
        found = pair(workspace, asked, report)
        return replace(
            found, runner=replace(found.runner, serve=None), baseline=replace(found.baseline, serve=None)
        )

    monkeypatch.setattr(throughput, "pair", without_serve)
    request = ServingRequest("fashion-mlp", recipe(0.5), "openvino", batches=(1, 2), threads=(1,))
    run = serve(request, quiet)
    assert made[1:] == [(1, 1), (2, 1)]
    assert len(run.points) == 2
    assert run.points[0].eager is not None


def test_a_grid_that_can_not_be_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="9999 threads"):
        work.run("throughput", ServingRequest("no such model", threads=(9999,)), quiet)
