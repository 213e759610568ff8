"""What pages ask the pool for."""

from typing import Any

import pytest

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
