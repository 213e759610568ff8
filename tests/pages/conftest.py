"""The dashboard without workers: a page is drawn, and what it asks for is only listed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from started import Started
from streamlit.runtime.pages_manager import PagesManager
from streamlit.testing.v1 import AppTest

from optimizer.store.results import Store
from optimizer.work import Catalogue
from pages import sidebar, tasks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    from optimizer import work

    found = work.run("catalogue", None, lambda progress, message: None)
    assert isinstance(found, Catalogue)
    return found


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue) -> Iterator[Started]:
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path))
    prepare = PagesManager.__init__

    def prepare_known(manager: PagesManager, *options: Any, **more: Any) -> None:
        """As on a server that has come to ``st.navigation`` once: no file in ``pages/`` is run bare."""
        PagesManager.uses_pages_directory = False
        prepare(manager, *options, **more)

    monkeypatch.setattr(PagesManager, "__init__", prepare_known)
    st.cache_resource.clear()
    pool = Started(catalogue)
    store = Store(tmp_path / "results.sqlite")
    monkeypatch.setattr(tasks, "pool", lambda: pool)
    monkeypatch.setattr(sidebar, "pool", lambda: pool)
    monkeypatch.setattr(tasks, "store", lambda: store)
    yield pool
    st.cache_resource.clear()


@pytest.fixture
def app(started: Started) -> AppTest:
    return AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
