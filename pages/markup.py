"""Text of others, shown as text: names, paths, error messages, and what came with the address. (Not a page.)

Streamlit reads nearly every string as Markdown, with links, pictures, formulas, icons and colours. What is
not our own passes through :func:`plain` first, wherever it is shown.
"""

import re
import unicodedata

MAX_SHOWN = 2_000
"""Characters of a text that are shown; the rest is cut off."""

_READ_LATE = re.compile(r"://|@|www\.|:material/|:[\w+-]+:", re.IGNORECASE)
"""What Streamlit looks for once Markdown is parsed and backslashes are gone: web and mail addresses, emoji
and icons. Only code is left alone then."""
_ARROWS = frozenset(("<->", "->", "<-", "--", ">=", "<=", "~="))
"""Words for which it then puts a sign."""
_MEANT = re.compile(r"[\\`*_\[\]<&$~]|:(?=\S)")
"""What has a meaning within a line."""
_MEANT_FIRST = re.compile(r"^(|\d+(?=[.)](?:\s|$)))([-#+=>|.)])")
"""What has one at its beginning: headings, lists, quotes."""
_TURNS_WRITING = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def plain(text: object) -> str:
    """Markdown that shows ``text`` as it is: its characters, and nothing that they could stand for.

    Runs of white space become one space, as a browser shows them. Control characters, and those that turn the
    direction of writing, become the replacement character. At most MAX_SHOWN characters are shown.
    """
    shown = str(text)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
    words = "".join(map(_visible, shown)).split()
    escaped = " ".join(_code(word) if _read_late(word) else _MEANT.sub(r"\\\g<0>", word) for word in words)
    return _MEANT_FIRST.sub(r"\1\\\2", escaped)


def _visible(character: str) -> str:
    if character.isspace():
        return character
    hidden = unicodedata.category(character) in ("Cc", "Cs") or character == "\N{ZERO WIDTH NO-BREAK SPACE}"
    turns = unicodedata.bidirectional(character) in _TURNS_WRITING
    return "\N{REPLACEMENT CHARACTER}" if hidden or turns else character


def _read_late(word: str) -> bool:
    return bool(_READ_LATE.search(word)) or word in _ARROWS


def _code(word: str) -> str:
    """The word as code. The beginning of an icon's name means something even there, so it is taken apart."""
    parts = re.split(r"(?<=:)material(?=/)", word)
    return "material".join(_fenced(part) for part in parts)


def _fenced(code: str) -> str:
    fence = "`" * (1 + max(map(len, re.findall("`+", code)), default=0))
    padding = " " if code.startswith("`") or code.endswith("`") else ""
    return f"{fence}{padding}{code}{padding}{fence}"
