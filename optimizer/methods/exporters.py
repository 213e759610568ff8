"""Every kind of file that tables and charts of results can be saved as."""

from dataclasses import dataclass
from typing import Any

from optimizer.methods.entries import Entry, by_name


@dataclass(frozen=True, slots=True)
class ExporterInfo(Entry):
    """A kind of file. ``code`` names a function from a list of results to bytes, or is one. With
    ``needs_chrome``, :func:`optimizer.export.pictures.chrome` says whether it can be written; with
    ``compares``, a second result that it takes is the one that all others are compared with."""

    extension: str = ""
    mime: str = ""
    needs_chrome: bool = False
    compares: bool = False

    def write(self, *results: Any) -> bytes:
        """The file's content."""
        content: bytes = self.load()(*results)
        return content


TABLES = "optimizer.export.tables"
EXPORTERS: dict[str, ExporterInfo] = by_name(
    ExporterInfo("csv", "Table as CSV", "", f"{TABLES}:write_csv", "csv", "text/csv", compares=True),
    ExporterInfo(
        "json", "Table as JSON", "", f"{TABLES}:write_json", "json", "application/json", compares=True
    ),
    ExporterInfo(
        "latex", "Table as LaTeX", "", f"{TABLES}:write_latex", "tex", "application/x-tex", compares=True
    ),
    ExporterInfo(
        "html", "Charts and table as one HTML file", "", f"{TABLES}:write_html", "html", "text/html"
    ),
    ExporterInfo("png", "Charts as PNG", "", f"{TABLES}:write_png", "png", "image/png", needs_chrome=True),
    ExporterInfo(
        "svg", "Charts as SVG", "", f"{TABLES}:write_svg", "svg", "image/svg+xml", needs_chrome=True
    ),
)
