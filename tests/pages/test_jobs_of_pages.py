"""What pages ask the pool for."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from factories import make_result
from started import Started

from optimizer.analysis.two_files import CompareRequest, NetworkRef
from optimizer.errors import UnavailableError
from optimizer.recipe import Override, PruneSpec, Recipe
from optimizer.records import DataSpec, Request
from optimizer.store.results import Store
from optimizer.system.paths import JOB_LOG_VARIABLE
from optimizer.system.process_pool import Job, Pool
from optimizer.work import TARGET
from pages import job_log, tasks

NAMING = Request(
    "fashion-vit",
    Recipe(layers=(Override("secret.layer", sparsity=0.5),)),
    data=DataSpec("/secret/images", calibration="/secret/others", class_index="/secret/classes.json"),
)
"""What names more than a model."""


def test_the_pool_calls_tasks_what_the_screen_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class NoPool:
        def __init__(self, target: str, **options: Any) -> None:
            made.append(options)

        def warm(self, request: object) -> None:
            pass

    monkeypatch.setattr(tasks, "Pool", NoPool)
    tasks.pool.__wrapped__()  # type: ignore[attr-defined]
    assert made[0]["labels"]("measure for") == "measuring"


@pytest.mark.parametrize(
    ("task", "asked", "visitors", "priority", "said"),
    [
        ("measure", NAMING, {"ann"}, 0, "measuring (fashion-vit) for another visitor"),
        ("measure", NAMING, {"", "bob"}, 10, "measuring (fashion-vit) for you"),
        ("measure", NAMING, {""}, 10, "measuring (fashion-vit) for a sweep"),
        ("find", 3, {""}, 10, "searching for a configuration"),
        ("anatomy", (NAMING, "secret.layer"), {"ann"}, 0, "compressing (fashion-vit) for another"),
        (
            "compare",
            CompareRequest(NetworkRef("my secret"), NetworkRef("b")),
            {"ann"},
            0,
            "comparing two files",
        ),
    ],
)
def test_what_waits_says_what_it_waits_for(
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    asked: object,
    visitors: set[str],
    priority: int,
    said: str,
) -> None:
    """Of what another visitor named only the model, as all see its name: neither files nor folders nor
    recipes."""
    monkeypatch.setattr(tasks, "visitor", lambda: "bob")
    started.listed["first"] = Job("first", task, asked, "measure", priority, visitors=frozenset(visitors))
    waits = started.submit("measure", "measure", Request("fashion-mlp"), "second", visitor="bob")
    assert tasks.waiting_words(waits) == "queued behind 1 job"
    started.listed["first"].state = "running"
    words = tasks.waiting_words(waits)
    assert words.startswith(f"queued behind 1 job, now: {said}")
    assert "secret" not in words
    started.listed["other lane"] = Job("x", "measure", asked, "interactive", 0, state="running")
    assert tasks.waiting_words(waits) == words


def test_what_a_worker_keeps_under_another_key_is_not_asked_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after an upgrade beneath a dashboard that runs, where a worker is started anew."""
    result, store = make_result(), Store()
    store.put(result)
    forgotten: list[str] = []

    class Done:
        def get(self, key: str) -> Job:
            return Job(key, "measure", result.request, "measure", 0, state="done", result=result.key)

        def forget(self, key: str) -> None:
            forgotten.append(key)

    monkeypatch.setattr(tasks, "pool", Done)
    monkeypatch.setattr(tasks, "store", lambda: store)
    monkeypatch.setattr(tasks, "request_key", lambda request: "today's")
    with pytest.raises(UnavailableError, match="Start it again"):
        tasks.submit_position(result.request)
    assert forgotten == ["today's"], "which is no use any more"


def test_what_a_job_comes_to_is_written_down_for_the_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step has a line, on the clock of the wall; a position says how many images were scored."""
    log, begun = tmp_path / "jobs.jsonl", time.time()
    monkeypatch.setenv(JOB_LOG_VARIABLE, str(log))
    request = Request("fashion-mlp", Recipe(PruneSpec(sparsity=0.5)))
    with Pool(TARGET, lanes=("interactive",), watch=job_log.write) as pool:
        pool.wait(pool.submit("interactive", "measure", request, "position"), 120)
        pool.wait(pool.submit("interactive", "measure", "no request", "broken"), 120)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    position = [line for line in lines if line["key"] == "position"]
    assert [line["state"] for line in lines if line["key"] == "broken"] == ["queued", "running", "failed"]
    assert [position[at]["state"] for at in (0, 1, -1)] == ["queued", "running", "done"]
    scored = [line["images"] for line in position if line["images"] is not None]
    assert scored[0] == 0
    assert scored == sorted(scored)
    assert scored[-1] == 10_000
    times = [line["time"] for line in lines]
    assert begun <= times[0]
    assert times == sorted(times)
    assert {(line["task"], line["lane"]) for line in lines} == {("measure", "interactive")}


def test_a_log_that_can_not_be_written_costs_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_LOG_VARIABLE, str(tmp_path))  # a folder
    with Pool("faults.tasks:run", lanes=("measure",), watch=job_log.write) as pool:
        assert pool.wait(pool.submit("measure", "echo", 1, "k"), 60).state == "done"


def test_without_such_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_LOG_VARIABLE, raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    job_log.write(Job("key", "measure", None, "measure", 0))
    assert not [*empty.iterdir()]
