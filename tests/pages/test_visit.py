"""One visit that goes from page to page."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, permutations

import pytest
from page_runs import HALF, PLAIN, results
from started import PAGES
from streamlit.testing.v1 import AppTest

from optimizer.records import encode
from optimizer.search.sweep import Grid
from optimizer.store import ledger
from pages import tasks


def tour(pages: Sequence[str]) -> Iterator[str]:
    """From the first back to it, so that each page follows each other one once."""
    for index, one in enumerate(pages):
        for other in pages[index + 1 :]:
            yield one
            yield other
    yield pages[0]


def test_each_page_follows_each_other_one_once_in_a_tour() -> None:
    assert Counter(pairwise(tour(PAGES))) == Counter(permutations(PAGES, 2))


@pytest.mark.parametrize(
    "visited",
    [[*PAGES, *reversed(PAGES)], pytest.param([*tour(PAGES)], marks=pytest.mark.slow)],
    ids=["out and back", "tour"],
)
def test_pages_can_follow_each_other(stored: AppTest, visited: Iterable[str]) -> None:
    """What a page leaves in the session is what the next one finds. With two pinned results and a sweep,
    all have something to show."""
    both = results().values()
    asked = Grid(PLAIN, (0.0, 0.5), (32,), (32,), ("openvino",))
    ledger.create(tasks.store(), encode(asked), asked.requests(), "ann")
    stored.query_params |= {"sparsity": "50", "bits": "4", "pins": ".".join(one.key for one in both)}
    stored.run()
    for name in visited:
        stored.switch_page(f"pages/{name}.py").run()
        assert not stored.exception, name
        assert not stored.error, name
        assert stored.session_state["session"].recipe == HALF.recipe
        assert len(stored.session_state["session"].pins) == len(both)
