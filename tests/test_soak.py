"""The dashboard with many visits, killed workers and bad links."""

import os
import random
from pathlib import Path
from urllib.parse import unquote_plus

import pytest

from tools.soak import link, soak

MINUTES, SERVER_KILLS = 0.3, 1


def test_links_are_of_every_kind_and_the_same_again() -> None:
    links = [link(random.Random(seed)) for seed in range(100)]
    assert links == [link(random.Random(seed)) for seed in range(100)]
    assert any("fashion-mlp" in one for one in links)
    assert any("recipe=" in one for one in links)
    assert any("../../etc" in unquote_plus(one) for one in links)
    assert max(map(len, links)) > 10_000


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_the_dashboard_is_as_well_after_kills_and_bad_links(tmp_path: Path) -> None:
    report = soak(tmp_path, 60 * MINUTES, visitors=3, kill_every=5, seed=0, server_kills=SERVER_KILLS)
    assert report.problems == []
    assert report.counts["pages opened"] > 3
    assert report.counts["workers killed"] > 2
    assert report.counts["servers killed"] == SERVER_KILLS
