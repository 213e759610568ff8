"""Text of others stays text: by a Markdown parser here, by Streamlit's own renderer in ``tests/browser``."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markup_texts import MEANINGFUL, as_shown

from pages.markup import MAX_SHOWN, plain

markdown_it = pytest.importorskip("markdown_it")

TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(MEANINGFUL), max_size=8).map("".join))


@pytest.mark.slow
@given(TEXTS)
def test_any_text_stays_text(text: str) -> None:
    parser = markdown_it.MarkdownIt("commonmark").enable(["strikethrough", "table"])
    tokens = parser.parse(plain(text))
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    assert [token.type for token in tokens if token.type not in ("paragraph_open", "paragraph_close")] == (
        ["inline"] if inline else []
    )
    assert {token.type for token in inline} <= {"text", "text_special", "code_inline", "softbreak"}
    parsed = "".join(token.content for token in inline)
    visible = re.sub("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", "\ufffd", text)
    assert parsed == as_shown(visible)


@pytest.mark.slow
@given(TEXTS)
def test_what_is_read_after_markdown_stands_in_code(text: str) -> None:
    """Backslashes don't keep addresses, emoji and icons from being read: those stay in code, or in pieces."""
    outside = re.sub(r"(?<!\\)(`+)(?!`).*?(?<!`)\1(?!`)", "\0", plain(text))
    outside = re.sub(r"\\([\\`*_\[\]<&$~:#+=>|.)-])", r"\1", outside)
    assert not re.search(r"https?://|www\.|[-.\w+]@[-\w]|:[\w+-]+:|:material[/_]\w+:", outside)
    assert ":material/" not in plain(text).replace("\\", "")


def test_what_turns_the_direction_of_writing_is_shown() -> None:
    assert plain("photos\u202egpj.exe") == "photos\ufffdgpj.exe"
    assert plain("a\ud800b").encode() == "a\ufffdb".encode()


def test_a_long_text_is_cut() -> None:
    assert plain("x" * 10 * MAX_SHOWN) == "x" * MAX_SHOWN + "…"
