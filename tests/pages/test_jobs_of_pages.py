"""What pages ask the pool for."""

from typing import Any

import pytest
from factories import make_result

from optimizer.errors import UnavailableError
from optimizer.store.results import Store
from optimizer.system.process_pool import Job
from pages import tasks


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
