"""How many bytes may be downloaded."""

from dataclasses import replace

import pytest

from optimizer.cli.main import main
from optimizer.errors import InputError, UnavailableError
from optimizer.records import ModelCard
from optimizer.system.downloads import (
    DEFAULT_DOWNLOADS,
    DOWNLOADS_VARIABLE,
    check_allowed,
    limit_visitors,
    parse_bytes,
    refusal,
)

SMALL = ModelCard("small", "here", "", 10, (3, 8, 8), 10, download_bytes=4_000, ready=False)
LARGE = replace(SMALL, name="large", download_bytes=9_000)
BUNDLED = replace(SMALL, name="bundled", download_bytes=None, ready=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1234", 1234), ("2GB", 2 * 10**9), ("1.5 MiB", 1_572_864), (" 3kb ", 3_000), ("1T", 10**12)],
)
def test_numbers_of_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "none", "-1", "2 XB", "1iB", "inf", "nan", "1e9", "9" * 400, "2GB 3"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=rf"is not a number of bytes .* {DOWNLOADS_VARIABLE}"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("allowed", "ready", "asked", "refused"),
    [
        (None, {"large"}, "small", False),
        ("13kB", {"large"}, "small", False),
        ("12999", {"large"}, "small", True),
        ("12999", set(), "small", False),
        ("3999", set(), "small", True),
        ("1", {"small", "large"}, "small", False),  # fetched again, in its own place
        ("0", {"small", "large"}, "small", True),
    ],
)
def test_what_is_here_counts(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, ready: set[str], asked: str, refused: bool
) -> None:
    if allowed is not None:
        monkeypatch.setenv(DOWNLOADS_VARIABLE, allowed)
    cards = {card.name: replace(card, ready=card.name in ready) for card in (SMALL, LARGE)}
    assert bool(refusal(cards[asked], [*cards.values(), BUNDLED])) == refused


def test_a_refusal_names_size_limit_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DOWNLOADS_VARIABLE, "10kB")
    with pytest.raises(UnavailableError) as refused:
        check_allowed(SMALL, [SMALL, replace(LARGE, ready=True)])
    for words in ("small (4.00 kB)", "10.0 kB", "9.00 kB are here", "--downloads BYTES", DOWNLOADS_VARIABLE):
        assert words in str(refused.value)


def test_a_dashboard_has_a_limit_unless_its_operator_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DOWNLOADS_VARIABLE, "1")  # is taken back after the test
    limit_visitors()
    assert refusal(SMALL, [SMALL])
    monkeypatch.delenv(DOWNLOADS_VARIABLE)
    limit_visitors()
    assert not refusal(SMALL, [SMALL])
    assert refusal(replace(SMALL, download_bytes=parse_bytes(DEFAULT_DOWNLOADS) + 1), [])


@pytest.mark.parametrize("what", ["downloads", "uploads"])
def test_a_dashboard_does_not_start_with_what_is_no_number(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", "--headless", "--port", "0", f"--{what}", "much"]) == 2
    said = capsys.readouterr().err
    assert f"'much' is not a number of bytes for {what}" in said
    assert f"with --{what} or PARETOSCOPE_{what.upper()}" in said
