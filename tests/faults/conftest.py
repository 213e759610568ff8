"""What tests of faults share."""

from collections.abc import Iterator

import pytest

from optimizer.system.process_pool import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("tasks:run") as pool:
        yield pool
