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


def _exporter(name: str, label: str, extension: str, mime: str, **can: Any) -> ExporterInfo:
    code = f"optimizer.export.tables:write_{name}"
    return ExporterInfo(name, label, code=code, extension=extension, mime=mime, **can)


EXPORTERS: dict[str, ExporterInfo] = by_name(
    _exporter("csv", "Table as CSV", "csv", "text/csv", compares=True),
    _exporter("json", "Table as JSON", "json", "application/json", compares=True),
    _exporter("latex", "Table as LaTeX", "tex", "application/x-tex", compares=True),
    _exporter("html", "Charts and table as one HTML file", "html", "text/html"),
    _exporter("png", "Charts as PNG", "png", "image/png", needs_chrome=True),
    _exporter("svg", "Charts as SVG", "svg", "image/svg+xml", needs_chrome=True),
)
