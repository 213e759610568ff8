"""What failed and what can't be read, on the page that lists what there is."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from faults.storing import make_result
from page_runs import press
from started import Started
from streamlit.testing.v1 import AppTest

from optimizer.records import DataSpec, Request, Settings
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.process_pool import Job

MARKUP = ":red[no] network <b>here</b> ![](http://elsewhere/x.png)"


class NoPool:
    """What was submitted and forgotten, instead of workers."""

    def __init__(self) -> None:
        self.submitted: list[object] = []
        self.forgotten: list[str] = []

    def get(self, key: str) -> Job | None:
        return None

    def forget(self, key: str) -> None:
        self.forgotten.append(key)

    def submit(
        self, lane: str, task: str, request: object, key: str, priority: int = 0, visitor: str = ""
    ) -> None:
        self.submitted.append(request)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoPool]:
    from pages import tasks

    tasks.store.clear()
    pool = NoPool()
    monkeypatch.setattr(tasks, "pool", lambda: pool)
    yield pool
    tasks.store.clear()


def script() -> None:
    from pages import kept

    kept.show()
    kept.note_unreadable(0, 10)


def texts(page: AppTest) -> list[str]:
    return [element.value for element in page.text]


def test_nothing_is_shown_where_there_is_nothing_to_say(pool: NoPool) -> None:
    page = AppTest.from_function(script).run()
    assert not page.exception
    assert len(page.main) == 0


def test_what_failed_is_shown_without_markup_and_tried_again_or_forgotten(pool: NoPool) -> None:
    store, requests = Store(), [Request("fashion-vit", settings=Settings(batch=batch)) for batch in (1, 2)]
    for number, request in enumerate(requests):
        store.put_failure(f"{number} old", request, MARKUP)
    store.put_failure("third", Request("fashion-mlp"), "later")
    page = AppTest.from_function(script).run()
    assert not page.exception
    assert [*page.dataframe[0].value["why"]] == ["later", MARKUP, MARKUP]
    assert {*page.dataframe[0].value["engine"]} == {"OpenVINO"}
    assert all(" · OpenVINO · " in option for option in page.selectbox[0].options)
    assert texts(page) == ["later"]
    assert not page.markdown, "nothing that draws markup has words from the store"
    page.selectbox[0].set_value("1 old").run()
    assert texts(page) == [MARKUP]
    page.button(key="failed again").click().run()
    assert pool.submitted == [requests[1]]
    assert request_key(requests[1]) in pool.forgotten
    assert [failure.key for failure in store.failures()] == ["0 old", "third"]
    page.selectbox[0].set_value("0 old").run()
    page.button(key="failed forget").click().run()
    assert [failure.key for failure in store.failures()] == ["third"]
    page.button(key="failed forget all").click().run()
    assert store.failures() == []
    assert len(page.dataframe) == 0


def test_what_failed_on_images_in_memory_is_not_tried_on_others(pool: NoPool) -> None:
    given, other = Request("fashion-mlp", data=DataSpec(content="0" * 20)), Request("fashion-vit")
    for request in (given, other):
        Store().put_failure(request.model, request, "no")
    page = AppTest.from_function(script).run()
    assert not page.button(key="failed again").disabled
    page.selectbox[0].set_value(given.model).run()
    assert page.button(key="failed again").disabled
    assert "given in memory" in page.button(key="failed again").help
    assert not page.button(key="failed forget").disabled


def test_what_cannot_be_read_is_said_and_removed(pool: NoPool, home: Path) -> None:
    store = Store()
    store.put(make_result("bad"))
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("UPDATE results SET json = x'00'")
    page = AppTest.from_function(script).run()
    assert not page.exception
    assert "1 result." in page.warning[0].value
    assert "Models and data" in page.caption[0].value
    page.button[0].click().run()
    assert store.count() == 0
    assert not page.warning
    assert not page.caption


def test_many_results_are_read_by_a_worker_and_when_it_is_asked_for(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages import kept, tasks

    monkeypatch.setattr(kept, "MAX_READ_AT_ONCE", 1)
    for key in ("good", "bad"):
        tasks.store().put(make_result(key))
    with closing(sqlite3.connect(tasks.store().path)) as connection, connection:
        connection.execute("UPDATE results SET json = x'00' WHERE key = 'bad'")
    page = AppTest.from_function(script).run()
    assert not page.warning
    assert started.tasks() == []
    page.button[0].click().run()
    assert started.tasks() == ["check"]
    started.do("check")
    page.run()
    assert not page.exception
    assert "1 result." in page.warning[0].value
    press(page, "Remove what can't be read")
    assert [result.key for result in tasks.store().results()] == ["good"]
    assert not page.warning
