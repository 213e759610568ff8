"""Complexity, without a browser."""

import pytest
from page_runs import settled, try_again, words
from streamlit.testing.v1 import AppTest

from optimizer.analysis import scaling
from optimizer.analysis.scaling import ComplexityRequest
from pages import tasks


@pytest.mark.slow
def test_complexity_measures_and_concludes(app: AppTest) -> None:
    page = app.switch_page("pages/complexity.py").run()
    settled(page, lambda page: "What the numbers say" in words(page))
    assert "dense execution" in words(page)
    assert {"Dense kernels", "torch's CSR", "Rows removed"} <= {metric.label for metric in page.metric}


@pytest.mark.slow
def test_complexity_that_failed_is_tried_again_when_asked(app: AppTest) -> None:
    share = 0.37
    key = scaling.complexity_key(ComplexityRequest(removed_share=share, quick=True))
    bad = ComplexityRequest("no such model", share)
    tasks.pool().wait(tasks.pool().submit("measure", "complexity", bad, key))
    app.query_params["removed"] = "37"
    try_again(app.switch_page("pages/complexity.py").run(), key)
