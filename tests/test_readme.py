"""The README is held against the code."""

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
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
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
    (cells,) = re.findall(rf"^\| ?{folder} \|.*?\|(.*)", README[README.index("## Architecture") :], re.M)
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


def test_every_engine_execution_and_benchmark_is_named() -> None:
    words = " ".join(README.split())
    assert all(engine.label in words for engine in ENGINES.values())
    reading = words[words.index("**Complexity**") :].partition("**The address")[0].lower()
    assert all(execution.label.lower() in reading for execution in ExecutionKind)
    assert all(f"benchmarks/{path.name}" in words for path in (ROOT / "benchmarks").glob("[!_]*.py"))


def test_every_badge_is_explained() -> None:
    assert all(f"*{badge}*" in README for badge in BADGES)


def test_files_that_are_named_exist() -> None:
    for path in re.findall(r"`((?:optimizer|benchmarks|assets|tools)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`python (\S+)`", README):
        assert (ROOT / path).exists(), path


def test_the_screenshot_is_a_picture_of_a_page() -> None:
    (path,) = re.findall(r"!\[.*?\]\((.*?)\)", README)
    with Image.open(ROOT / path) as picture:
        assert picture.width >= 1200


def test_names_that_users_type_are_the_codes_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert HOME_VARIABLE in README
    assert STORE_VARIABLE in README
    assert f'[project.entry-points."{GROUP}"]' in README
    assert GROUP in project["entry-points"]
    assert f'[project.entry-points."{architectures.GROUP}"]' in README
    assert f'[project.entry-points."{plugins.GROUP}"]' in README
    assert "imagenet" in project["optional-dependencies"]
