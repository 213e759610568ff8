"""What a test needs of the machine, and what becomes of it where that is lacking."""

import os
from typing import NoReturn

import pytest

REQUIRED = "PARETOSCOPE_TESTS_NEED_ALL"
"""Set where everything must be there: a test that would be skipped fails."""


def skip_for(reason: str) -> NoReturn:
    """This machine lacks what the test needs."""
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)
