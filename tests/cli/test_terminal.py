"""What stands in a terminal while work goes on."""

import os
import sys
from collections.abc import Callable

import pytest

from optimizer.cli.terminal import end_of_line, tell

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], str]:
    """What progress writes to a terminal of so many columns (0 of one that does not know)."""

    def write(columns: int) -> str:
        import fcntl
        import struct
        import termios

        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            tell(0.125, "measuring 8-bit weights, 50 % of layer weights pruned")
            end_of_line()
            print("end", file=terminal, flush=True)
            said = b""
            while not said.endswith(b"end\r\n"):  # what was written in three goes arrives so
                said += os.read(ours, 10_000)
        os.close(ours)
        return said.decode()

    return write


def test_progress_is_wiped_whole_also_in_a_narrow_terminal(
    shown: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wiped is one line: a longer text would leave its beginning."""
    monkeypatch.setenv("TERM", "xterm")
    whole = "\r\033[Kmeasuring 8-bit weights, 50 % of layer weights pruned 12 %\r\033[Kend\r\n"
    assert shown(0) == shown(80) == whole
    assert shown(40) == "\r\033[Kmeasuring 8-bit weights, 50 % of l 12 %\r\033[Kend\r\n"


def test_a_terminal_that_can_wipe_nothing_shows_no_progress(
    shown: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert shown(80) == "end\r\n"
