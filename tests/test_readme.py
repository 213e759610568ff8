"""The README and the documents that it leads to are held against the code."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from optimizer.analysis.badges import BADGES
from optimizer.analysis.scaling import ExecutionKind
from optimizer.cli.main import parser
from optimizer.methods import plugins
from optimizer.methods.engines import ENGINES
from optimizer.model.added import architectures
from optimizer.model.sources.plugins import GROUP
from optimizer.system.paths import HOME_VARIABLE, STORE_VARIABLE

ROOT = Path(__file__).parent.parent
DOCUMENTS = {path.name: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
README, ARCHITECTURE = DOCUMENTS["README.md"], DOCUMENTS["architecture.md"]
EVERYTHING = "\n".join(DOCUMENTS.values())
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", EVERYTHING, re.S)
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("paretoscope")])
def test_every_command_parses(line: str) -> None:
    options = parser().parse_args(shlex.split(line)[1:])
    assert callable(options.run)


def test_the_workflow_of_the_gate_parses() -> None:
    (command,) = re.findall(
        r"- run: >\n\s+paretoscope (.*?) >> ", (ROOT / "docs" / "gate.yml").read_text(), re.S
    )
    options = parser().parse_args(shlex.split(command))
    assert (options.max_drop, options.max_slowdown, options.junit) == (1, 0, "gate.xml")


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make")])
def test_every_make_target_exists(line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_dashboard_is_installed_with_all_that_its_page_offers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rule = (ROOT / "Makefile").read_text().partition("$(VENV)/installed:")[2].partition("\n\n")[0]
    (asked,) = re.findall(r"--editable '\.\[([\w,]+)\]'", rule)
    assert set(asked.split(",")) == extras.keys() - {
        "dev",
        "timm",
        "mcp",
        "hub",
        "cluster",
        "slurm",
        "postgres",
    }


def row(folder: str) -> set[str]:
    """Names in the row of a folder of the architecture's table."""
    (cells,) = re.findall(rf"^\| ?{folder} \|.*?\|(.*)", ARCHITECTURE, re.M)
    return {name.partition(".")[0] for name in re.findall(r"`([\w.]+)`", cells)}


def test_the_architecture_names_every_module() -> None:
    modules = {path.stem for path in (ROOT / "optimizer").glob("*.py")} - {"__init__"}
    assert modules == row("") | {"work", "on_demand"}


@pytest.mark.parametrize(
    "folder",
    [path.parent for path in (ROOT / "optimizer").glob("*/**/__init__.py")],
    ids=lambda path: path.name,
)
def test_the_architecture_names_every_file_of_a_folder(folder: Path) -> None:
    named = row(f"`{folder.relative_to(ROOT / 'optimizer')}/`")
    files = {path.stem for kind in ("*.py", "*.cpp", "*.h") for path in folder.glob(kind)}
    assert files - {"__init__", "__main__"} == named - {"work", "on_demand"}


def test_the_readme_names_every_folder_as_the_architecture_does() -> None:
    rows = [re.findall(r"^\| ?(.*?) \| (.*?) \|", text, re.M) for text in (README, ARCHITECTURE)]
    short, long = ({name: about for name, about in found if name.endswith("/`")} for found in rows)
    assert short == long


def test_every_engine_execution_and_benchmark_is_named() -> None:
    assert all(engine.label in " ".join(README.split()) for engine in ENGINES.values())
    assert all(f"| {engine.label} |" in DOCUMENTS["engines.md"] for engine in ENGINES.values())
    words = " ".join(DOCUMENTS["reading.md"].split())
    reading = words[words.index("**Complexity**") :].partition("**The address")[0].lower()
    assert all(execution.label.lower() in reading for execution in ExecutionKind)
    files = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert files == set(re.findall(r"`(benchmarks/\w+\.py)`", DOCUMENTS["benchmarks.md"]))


@pytest.mark.parametrize("name", ["README.md", "reading.md"])
def test_every_badge_is_explained(name: str) -> None:
    assert all(f"*{badge.label}*" in DOCUMENTS[name] for badge in BADGES)


def test_files_that_are_named_exist() -> None:
    for path in re.findall(r"`((?:optimizer|benchmarks|assets|tools)/[\w./]+)`", EVERYTHING):
        assert (ROOT / path).exists() or "NAME" in path, path
    for path in re.findall(r"`python (\S+)`", EVERYTHING):
        assert (ROOT / path).exists(), path


def test_links_lead_to_a_file_and_a_heading() -> None:
    for name, text in DOCUMENTS.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\((?!https:)([^)]+)\)", text):
            path, _, heading = link.partition("#")
            place = (folder / path).resolve() if path else folder / name
            assert place.is_relative_to(ROOT), (name, link)
            assert place.exists(), (name, link)
            headings = re.findall(r"^#+ (.*)", place.read_text(), re.M) if heading else []
            known = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
            assert not heading or heading in known, (name, link)


def test_the_readme_leads_to_every_document() -> None:
    """A newcomer who reads on finds all of them."""
    found = re.findall(r"\(docs/(\w+\.md)\)", README)
    assert set(found) == DOCUMENTS.keys() - {"README.md"}


def test_the_screenshot_is_a_picture_of_a_page() -> None:
    (path,) = re.findall(r"!\[.*?\]\((.*?)\)", README)
    with Image.open(ROOT / path) as picture:
        assert picture.width >= 1200


def test_names_that_users_type_are_the_codes_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert HOME_VARIABLE in EVERYTHING
    assert STORE_VARIABLE in EVERYTHING
    assert f'[project.entry-points."{GROUP}"]' in EVERYTHING
    assert GROUP in project["entry-points"]
    assert f'[project.entry-points."{architectures.GROUP}"]' in EVERYTHING
    assert f'[project.entry-points."{plugins.GROUP}"]' in EVERYTHING
    assert "imagenet" in project["optional-dependencies"]
