"""Results to bytes: tables, pictures, and one HTML file that opens without a network.

Which there are is in :mod:`optimizer.methods.exporters`; pictures are drawn by
:mod:`optimizer.export.pictures`.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
import msgspec
import pandas as pd
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from optimizer import __version__
from optimizer.analysis.frame import frame, table
from optimizer.analysis.metrics import METRICS
from optimizer.charts import (
    accuracy_info,
    alternative,
    compare_info,
    figure,
    frontier_info,
    latency_info,
    size_info,
)
from optimizer.charts.spec import Lines
from optimizer.charts.theme import DARK, FONT, LIGHT
from optimizer.export.pictures import PICTURE_SCALE, render, sheet
from optimizer.formats import count
from optimizer.records import Result
from optimizer.system.environment import describe_cores, describe_memory

TABLE_VERSION = 1
Charts = Mapping[str, Lines]


def file_name(title: str, extension: str) -> str:
    """A name that every file system takes, made of letters, digits, dots, dashes and underscores."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", title)[:80].strip("-._")
    return f"paretoscope-{slug}.{extension}" if slug else f"paretoscope.{extension}"


def are_alike(results: Sequence[Result]) -> bool:
    """Whether they are of one model and one set of images."""
    return len({(result.request.model, result.request.data) for result in results}) <= 1


def charts_of(results: Sequence[Result]) -> dict[str, Lines]:
    """Curves for results of one model on one set of images, else comparisons with one row a result."""
    if are_alike(results):
        return {
            "accuracy": accuracy_info(results),
            "size": size_info(results),
            "latency": latency_info(results),
            "frontier": frontier_info(results),
        }
    return {name: compare_info(results, name) for name in ("accuracy", "drop", "file_size", "latency_ratio")}


# Tables


def write_csv(results: Sequence[Result], against: Result | None = None) -> bytes:
    """The frame, numbers at full precision; text that a spreadsheet would run as a formula is quoted."""
    rows = frame(results, against=against)
    for column in rows.columns:
        if not (pd.api.types.is_numeric_dtype(rows[column]) or pd.api.types.is_bool_dtype(rows[column])):
            rows[column] = rows[column].map(_inert)
    return rows.to_csv(index=False, lineterminator="\n").encode()


def _inert(cell: object) -> object:
    formula = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{cell}" if formula else cell


def write_json(results: Sequence[Result], against: Result | None = None) -> bytes:
    """The frame as ``{"version", "columns", "rows"}``: label and unit of metric columns, missing is null."""
    columns = {
        measured.column: {"label": measured.label, "unit": measured.unit} for measured in METRICS.values()
    }
    rows = frame(results, against=against).to_dict("records")
    return msgspec.json.encode({"version": TABLE_VERSION, "columns": columns, "rows": rows})


_LATEX = {"×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "−": "$-$", "–": "--", "µ": r"$\mu$", "|": "$|$"}


def write_latex(results: Sequence[Result], against: Result | None = None) -> bytes:
    """The table that people read, as a LaTeX tabular; it needs the package booktabs."""
    text = table(results, against).to_latex(index=False, escape=True)
    for character, command in _LATEX.items():
        text = text.replace(character, command)
    return f"% \\usepackage{{booktabs}}\n{text}".encode()


# Pictures


def write_png(results: Sequence[Result]) -> bytes:
    """All charts in one picture, two a row. Raises UnavailableError without a Chrome."""
    charts = list(charts_of(results).values())
    places, size = sheet(charts)
    picture = Image.new("RGB", (size[0] * PICTURE_SCALE, size[1] * PICTURE_SCALE), LIGHT.page)
    for chart, (x, y) in zip(render(charts, "png"), places, strict=True):
        picture.paste(Image.open(io.BytesIO(chart)), (x * PICTURE_SCALE, y * PICTURE_SCALE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write_svg(results: Sequence[Result]) -> bytes:
    """All charts in one vector picture, two a row. Raises UnavailableError without a Chrome."""
    charts = list(charts_of(results).values())
    places, (width, height) = sheet(charts)
    nested = "".join(
        f'<g transform="translate({x},{y})">{chart.decode()}</g>'
        for chart, (x, y) in zip(render(charts, "svg"), places, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">{nested}</svg>'
    ).encode()


# One HTML file


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, and below it paragraphs, a list and a table. Plain text: it is escaped."""

    heading: str
    paragraphs: Sequence[str] = ()
    items: Sequence[str] = ()
    rows: pd.DataFrame | None = None


HOW_TO_READ = Section(
    "How to read this",
    items=(
        "Every interval is a 95 % interval. Accuracy counts images: its interval is Wilson's, with "
        "an exact end next to 0 and 100 %, and says what another draw of as many images could give.",
        "Accuracy lost is paired: both models saw the same images, and only images whose answer changed "
        "count. Worse or better is said where the interval of the difference excludes 0; p is McNemar's "
        "test, and below 0.05 exactly there. Without labels the uncompressed model is right by "
        "definition: what is lost is the share of images answered otherwise, and there is nothing to test.",
        "A latency ratio compares calls of the same round with the uncompressed model in fp32, on the same "
        "engine and threads. Faster or slower is said only when the interval excludes 1 and the change is "
        "larger than 2 % and than what the baseline, built twice, may differ from itself by.",
        "Measured: kernels ran in the precision shown. Simulated (hollow points): the values are exact, but "
        "other kernels computed with them, so the time is those kernels' time.",
        "Noisy (faded points): the machine was not quiet enough for that latency to be trusted. Preliminary: "
        "a short measurement.",
        "Sizes: the file as it would be served, the same file through zstd, and packed: counted at k bits a "
        "surviving weight.",
        "The frontier joins the configurations that no other one beats in both figures: of the same model "
        "and engine, where a figure is against the uncompressed model. Noisy times are left out. Tied ones "
        "are beaten, but by nothing measurably better. In tables it is that of what is lost, zstd size and "
        "latency ratio together; of the first two, where all times are noisy.",
    ),
)


def page(
    title: str,
    results: Sequence[Result],
    charts: Charts,
    before: Sequence[Section] = (),
    after: Sequence[Section] = (),
) -> str:
    """One HTML document: sections, charts, the table, more sections, the environments. It reaches no network:
    plotly.js is inside, and its content security policy forbids everything else."""
    figures = {
        name: {mode: figure(chart, dark=mode == "dark").to_plotly_json() for mode in ("light", "dark")}
        for name, chart in charts.items()
    }
    return _TEMPLATE.render(
        title=title,
        version=__version__,
        measured=sorted({result.created[:10] for result in results}),
        before=before,
        after=[*after, _environments(results)],
        charts=[
            (name, alternative(chart), figures[name]["light"]["layout"]["height"])
            for name, chart in charts.items()
        ],
        figures=_script_json(figures),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")) if charts else "",
        rows=table(results),
        interval=Markup(" <wbr>("),  # where a number may go on in the next line
        light=LIGHT,
        dark=DARK,
        font=Markup(FONT),
    )


def _script_json(value: object) -> Markup:
    """JSON that can't end the script element it stands in."""
    text = json.dumps(value, cls=PlotlyJSONEncoder)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _environments(results: Sequence[Result]) -> Section:
    timed = {result.environment.key: result.environment for result in results}
    scored = {one.key: one for one in (result.scored_on or result.environment for result in results)}
    rows = pd.DataFrame(
        [
            {
                "machine": machine.cpu,
                "measured": " and ".join(
                    what for what, those in (("time", timed), ("accuracy", scored)) if key in those
                ),
                "cores": describe_cores(machine),
                "instruction sets": ", ".join(machine.instruction_sets),
                "governor": machine.governor or "not readable",
                "memory": describe_memory(machine),
                "system": f"{machine.system}, Python {machine.python}",
                "libraries": ", ".join(f"{name} {version}" for name, version in machine.libraries.items()),
                "variables": ", ".join(f"{name}={value}" for name, value in machine.variables.items())
                or "none",
            }
            for key, machine in (timed | scored).items()
        ]
    )
    warning = ("Times of different machines can't be compared with one another.",) if len(timed) > 1 else ()
    return Section("Environment", warning, rows=rows)


def title_of(results: Sequence[Result]) -> str:
    models = sorted({result.request.model for result in results})
    names = ", ".join(models) if len(models) <= 3 else f"{len(models)} models"
    number = count(len(results), "configuration")
    return f"{names}: {number}" if models else "Nothing measured yet"


def write_html(results: Sequence[Result]) -> bytes:
    """Charts, table, environment and how to read them, in one file that opens without a network."""
    return page(title_of(results), results, charts_of(results), after=(HOW_TO_READ,)).encode()


_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{{ title }} · Paretoscope</title>
<style>
{% macro colours(theme) %}
--page: {{ theme.page }}; --text: {{ theme.text }}; --muted: {{ theme.muted }}; --grid: {{ theme.grid }};
--accent: {{ theme.colours.accent }};
{% endmacro %}
:root { {{ colours(light) }} }
@media (prefers-color-scheme: dark) { :root { {{ colours(dark) }} } }
@media print { :root { {{ colours(light) }} } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 32px 24px 64px;
       background: var(--page); color: var(--text); font: 15px/1.5 {{ font }}; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; }
h2 { font-size: 18px; margin: 40px 0 8px; }
p, ul { max-width: 78ch; margin: 8px 0; }
ul { padding-left: 20px; }
li { margin: 6px 0; }
.muted { color: var(--muted); }
.charts { display: grid; gap: 24px; margin-top: 32px;
          grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.chart { min-width: 0; break-inside: avoid; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px 6px 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 600; }
td.number { white-space: nowrap; }
td.words { min-width: 9rem; }
td.long { min-width: 200px; }
.swipe { display: none; }
@media (max-width: 64rem) { td.long { min-width: 26rem; } }
@media screen and (max-width: 36rem) { .swipe { display: block; } }
@media (max-width: 36rem) { .modebar-group:not(:first-child) { display: none; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="muted">
Measured with Paretoscope {{ version }}{% if measured %} on {{ measured | join(", ") }}{% endif %}
</p>
{% macro tabular(frame) %}
<div class="table" role="region" tabindex="0"><table>
<thead><tr>{% for column in frame.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in frame.itertuples(index=False, name=None) %}
<tr>
{% for cell in row %}
{% set text = "–" if cell != cell or cell is none else cell | string %}
{% if text | length > 48 %}
<td class="long">{{ text }}</td>
{% elif text | length < 30 and text[:1] in "−0123456789" %}
<td class="number">{{ text | replace(" (", interval) }}</td>
{% elif text | length > 24 %}
<td class="words">{{ text }}</td>
{% else %}
<td>{{ text }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% if frame.columns | length > 2 %}
<p class="muted swipe">{{ frame.columns | length }} columns: swipe the table sideways to see them all.</p>
{% endif %}
{% endmacro %}
{% macro show(section) %}
<section>
<h2>{{ section.heading }}</h2>
{% for paragraph in section.paragraphs %}
<p>{{ paragraph }}</p>
{% endfor %}
{% if section.items %}
<ul>
{% for item in section.items %}
<li>{{ item }}</li>
{% endfor %}
</ul>
{% endif %}
{% if section.rows is not none %}
{{ tabular(section.rows) }}
{% endif %}
</section>
{% endmacro %}
{% for section in before %}
{{ show(section) }}
{% endfor %}
<div class="charts">
{% for name, words, height in charts %}
<div class="chart" id="chart-{{ name }}" role="img" aria-label="{{ words }}"
 style="min-height: {{ height }}px"></div>
{% endfor %}
</div>
<section>
<h2>All figures</h2>
{{ tabular(rows) }}
</section>
{% for section in after %}
{{ show(section) }}
{% endfor %}
{% if charts %}
<script type="application/json" id="figures">{{ figures }}</script>
<script>{{ plotly }}</script>
<script>
const figures = JSON.parse(document.getElementById("figures").textContent);
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
function draw(mode) {
  for (const [name, modes] of Object.entries(figures)) {
    const { data, layout } = modes[mode];
    Plotly.react("chart-" + name, data, layout, {
      responsive: true,
      displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { filename: "paretoscope-" + name, scale: 2 },
    });
  }
}
const drawForScreen = () => draw(prefersDark.matches ? "dark" : "light");
prefersDark.addEventListener("change", drawForScreen);
addEventListener("beforeprint", () => draw("light"));
addEventListener("afterprint", drawForScreen);
drawForScreen();
</script>
{% endif %}
</body>
</html>
""")
