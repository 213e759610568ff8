"""What the tests of the pages share: two measured requests, and how a page that runs is read."""

import re
import time
from collections.abc import Callable
from dataclasses import replace

from streamlit.testing.v1 import AppTest

from optimizer.analysis.headline import headlines
from optimizer.analysis.summary import summarise
from optimizer.formats import MISSING
from optimizer.recipe import NORMAL, Recipe
from optimizer.records import Request, Result
from optimizer.store import ledger
from optimizer.store.items import Sweep
from optimizer.store.results import Store
from pages import tasks

PLAIN = Request("fashion-resnet")
HALF = replace(
    PLAIN,
    recipe=Recipe(replace(NORMAL.prune, sparsity=0.5), NORMAL.quantize.at(4)),
)
SMALL = replace(PLAIN, model="fashion-mlp")
"""What is measured for real: the smallest network that comes along."""


DEADLINE_SECONDS = 180
POLL_SECONDS = 5.0


def results(model: str = PLAIN.model) -> dict[Recipe, Result]:
    """By recipe, as they are measured where nothing but the recipe is chosen."""
    found = Store().results(model)
    usual = [one for one in found if one.request == replace(PLAIN, model=model, recipe=one.request.recipe)]
    return {result.request.recipe: result for result in usual}


def shown(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def words(page: AppTest) -> str:
    """What the page says, as it is read: without the backslashes that keep it from being Markdown."""
    kinds = (page.error, page.warning, page.info, page.caption, page.markdown, page.header, page.subheader)
    said = "\n".join(element.value for kind in kinds for element in kind)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", said)


def settled(page: AppTest, condition: Callable[[AppTest], bool]) -> AppTest:
    """Run the page again, as its poll would, until ``condition(page)`` holds: when there is news of a job,
    and seldom between, since each run takes a core from the work that it waits for."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition(page):
        assert time.monotonic() < deadline, words(page)
        live = [job for job in tasks.pool().jobs() if not job.over]
        if live:
            tasks.pool().wait_news(live, [job.known for job in live], POLL_SECONDS)
        page.run()
    assert not page.exception
    return page


def running(page: AppTest, key: str) -> AppTest:
    """The page as it is once a worker has begun with a job."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (job := tasks.pool().get(key)) is None or job.state == "queued":
        assert time.monotonic() < deadline, words(page)
        time.sleep(0.05)
    page.run()
    assert job.state == "running"
    assert not page.exception
    return page


def stands(page: AppTest) -> bool:
    """Whether every figure is there, and for good: a noisy latency is shown while it is timed again."""
    running = [button for button in page.main.button if button.label == "Stop measuring"]
    return MISSING not in shown(page).values() and not running


def expected(result: Result) -> dict[str, str]:
    return {card.label: card.value for card in headlines(summarise(result), result.inspection)}


def press(page: AppTest, label: str) -> AppTest:
    """Press the button of that name."""
    next(button for button in page.button if button.label == label).click().run()
    assert not page.exception
    return page


def newest() -> Sweep:
    """The sweep or question that was asked for last."""
    return ledger.sweeps(tasks.store())[0]


def try_again(page: AppTest, key: str) -> None:
    """What failed is not tried again by itself, but when it is asked for."""
    page.run()
    assert not page.exception
    assert "no such model" in page.error[0].value
    assert tasks.pool().get(key).state == "failed"  # type: ignore[union-attr]
    press(page, "Try again")
    assert not page.error
    assert tasks.pool().get(key).state in ("queued", "running", "done")  # type: ignore[union-attr]
    tasks.pool().cancel(key)
