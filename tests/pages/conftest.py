"""The pages run from the entry without a browser, ask for real work, and show it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from factories import make_result
from page_runs import DEADLINE_SECONDS, HALF, PLAIN, SMALL
from PIL import Image
from started import Idle, Started, entry
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime.pages_manager import PagesManager
from streamlit.testing.v1 import AppTest

from optimizer import on_demand, work
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.work import Catalogue
from pages import backlog, tasks


@pytest.fixture(scope="session", autouse=True)
def scanned_once() -> Iterator[None]:
    """A server looks through all installed packages for components when it starts, AppTest at every run: half
    of what most of them take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests)
        )
        yield


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, statistics: Path) -> Iterator[Path]:
    """A data folder with a result, the uncompressed network, and with the statistics that others share.

    The pages' tests share it and the workers, as visitors of one server do.
    """
    folder = tmp_path_factory.mktemp("measured")
    (folder / "studies").symlink_to(statistics)
    on_demand.load_or_measure(SMALL, Store(folder / "results.sqlite"))
    st.cache_resource.clear()
    yield folder
    tasks.pool().close()
    st.cache_resource.clear()


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    found = work.run("catalogue", None, lambda progress, message: None)
    assert isinstance(found, Catalogue)
    return found


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue) -> Started:
    """No workers: a page is drawn, and what it asks for is only listed."""
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path))
    prepare = PagesManager.__init__

    def prepare_known(manager: PagesManager, *options: Any, **more: Any) -> None:
        """As on a server that has come to ``st.navigation`` once: no file in ``pages/`` is run bare."""
        PagesManager.uses_pages_directory = False
        prepare(manager, *options, **more)

    monkeypatch.setattr(PagesManager, "__init__", prepare_known)
    pool = Started(catalogue)
    store = Store(tmp_path / "results.sqlite")
    monkeypatch.setattr(tasks, "pool", lambda: pool)
    monkeypatch.setattr(tasks, "store", lambda: store)
    monkeypatch.setattr(backlog, "fill_first", lambda: None)
    monkeypatch.setattr(backlog, "background", Idle)
    return pool


@pytest.fixture
def stored(started: Started) -> AppTest:
    """The dashboard with no workers, and with made-up results of what ``measured`` has."""
    for request in (PLAIN, HALF):
        made = make_result(request.recipe, quick=True)
        tasks.store().put(replace(made, key=request_key(request), request=request))
    return entry()


@pytest.fixture
def clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images that a link may ask for by its name."""
    folder = tmp_path / "images" / "clothes"
    (folder / "Bag").mkdir(parents=True)
    Image.new("L", (28, 28), 60).save(folder / "Bag" / "one.png")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(folder.parent))
    return folder


@pytest.fixture(autouse=True)
def entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a folder named pages, AppTest takes its second run for one of a bare page, without the entry and
    its sidebar. A server forgets that folder at the first st.navigation."""
    forgotten = property(lambda page: "", lambda page, value: None)
    monkeypatch.setattr(AppTest, "_finished_page_script_hash", forgotten, raising=False)


@pytest.fixture
def app(measured: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    monkeypatch.setenv("PARETOSCOPE_HOME", str(measured))
    page = entry()
    page.query_params["model"] = SMALL.model
    yield page
    pool = tasks.pool()
    for job in pool.jobs():  # what nobody waits for any more would keep the next test waiting
        if job.state == "queued":
            pool.cancel(job.key)
            pool.forget(job.key)
    busy = {job.lane for job in pool.jobs() if job.state == "running"}
    for job in pool.warm():  # a worker that was killed begins anew here, not in another test's data folder
        if job.lane not in busy:
            assert pool.wait(job, DEADLINE_SECONDS).state == "done"
            pool.forget(job.key)
