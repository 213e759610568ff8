"""Texts that mean something to Markdown, HTML or Streamlit."""

MEANINGFUL = [
    *(
        "![x](http://127.0.0.1:1/a.png)",
        "[x](http://e.org)",
        "<http://e.org>",
        "<img src=x onerror=y>",
        "&lt;",
    ),
    *("http://e.org", "www.e.org", "me@e.org", ":material/home:", ":red[x]", ":streamlit:", ":smile:", "$x$"),
    *("`", "``", "*", "**", "_", "~~", "\\", "# ", "- ", "1. ", "> ", "| ", "---", "===", "    ", "\n", "\t"),
    *(
        "->",
        "<-",
        ":::",
        "[^1]",
        "{x}",
        "::",
        "a",
        "é",
        "2",
        ".",
        ")",
        "\\:",
    ),
]
"""Pieces of what Markdown, its extensions and Streamlit read as something else."""


def as_shown(text: str) -> str:
    """White space as a browser shows it, without what can't be shown."""
    return " ".join(text.split())
