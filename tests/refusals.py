"""Commands that end with a line on what is wrong."""

import pytest

from optimizer.cli.main import main


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line on standard error of a command that ends with ``code``."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("paretoscope: ")
    return lines[0]
