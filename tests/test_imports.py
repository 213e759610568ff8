"""The import rule: a stage imports only stages above it, and what shows results never reaches torch."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "optimizer"

STAGES = (
    *("errors", "formats", "progress", "methods", "recipe", "records"),
    *("system", "model", "data", "tasks", "store", "analysis"),
    *("compression", "engine", "measurement", "search"),
    *("charts", "export", "on_demand", "cluster", "work", "api", "cli"),
)
"""From the top down; a folder is one entry."""

NEVER_TORCH = (
    *("errors", "formats", "progress", "methods", "recipe", "records", "store", "analysis", "search"),
    *(
        "charts",
        "tasks",
        "export.tables",
        "export.pictures",
        "export.report",
        "data.folders",
        "data.classes",
        "data.selection",
    ),
    *("system.environment", "system.paths", "system.recent", "system.machine_lock", "system.downloads"),
    *("system.processes", "system.process_pool", "system.worker", "compression.step_time"),
)
"""Not even inside a function."""

TORCH_WHEN_CALLED = ("on_demand", "cluster", "work", "api", "cli")
"""Importing them is cheap; a task or a command imports what it needs."""

TORCH = {"torch", "torchvision", "safetensors", "openvino", "nncf"}
ARITHMETIC = {*TORCH, "numpy", "scipy", "math", "statistics"}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "_bundle" not in path.parts)


def name_of(path: Path) -> str:
    """``optimizer.engine.torch`` of a path, ``optimizer.engine`` of a folder's ``__init__``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in files(PACKAGE)}


def imported(tree: ast.AST, lazy: bool) -> Iterator[str]:
    """Modules that a file names; with ``lazy`` also those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(node, lazy)


@cache
def imports(path: Path, lazy: bool = True) -> set[str]:
    return set(imported(ast.parse(path.read_bytes()), lazy))


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def ours(names: set[str]) -> set[str]:
    """The files of the package that an import runs: the module, and every folder on the way."""
    parts = [name.split(".") for name in names]
    return {".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)} & MODULES.keys()


@cache
def direct(module: str, lazy: bool) -> tuple[set[str], set[str]]:
    """What a file of the package imports: of others, and of ours."""
    names = imports(MODULES[module], lazy)
    return names - MODULES.keys(), ours(names)


def reached(start: set[str], lazy: bool) -> set[str]:
    """Everything imported by files of the package from ``start`` on, ours and others'."""
    found: set[str] = set()
    queue = [*ours(start)]
    while queue:
        module = queue.pop()
        if module not in found:
            found.add(module)
            others, own = direct(module, lazy)
            found |= others
            queue += own - found
    return found


def within(name: str) -> set[str]:
    """A module of the package, or all of a folder."""
    return {module for module in MODULES if f"{module}.".startswith(f"optimizer.{name}.")}


def stage(module: str) -> str:
    """``engine`` of ``optimizer.engine.torch``."""
    return module.split(".")[1]


def test_every_file_has_its_stage() -> None:
    assert {stage(module) for module in MODULES if module != "optimizer"} == set(STAGES)
    assert len(STAGES) == len(set(STAGES))
    assert len([*PACKAGE.glob("*.py")]) <= 8


@pytest.mark.slow
def test_a_stage_imports_only_stages_above_it() -> None:
    from_below = {
        (module, other)
        for module in MODULES.keys() - {"optimizer"}
        for other in ours(imports(MODULES[module])) - {"optimizer"}
        if STAGES.index(stage(other)) > STAGES.index(stage(module))
    }
    assert not from_below


def test_nothing_in_the_package_imports_streamlit() -> None:
    upwards = {"streamlit", "pages", "app"}
    assert not {module for module, path in MODULES.items() if roots(imports(path)) & upwards}


@pytest.mark.parametrize("name", NEVER_TORCH)
def test_torch_is_never_reached(name: str) -> None:
    assert not roots(reached(within(name), lazy=True)) & TORCH


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH_WHEN_CALLED)
def test_torch_is_reached_only_when_called(name: str) -> None:
    assert not roots(reached(within(name), lazy=False)) & TORCH
    assert roots(reached(within(name), lazy=True)) & TORCH


@pytest.mark.parametrize("path", [ROOT / "app.py", *files(ROOT / "pages")], ids=lambda path: path.stem)
def test_pages_draw_and_do_no_arithmetic(path: Path) -> None:
    names = imports(path)
    assert not roots(names) & ARITHMETIC
    assert not roots(reached(names, lazy=False)) & TORCH


def loaded_by(code: str, **variables: str) -> set[str]:
    """The modules of a fresh interpreter once it has run ``code``."""
    run = f"{code}; import sys; print(*sys.modules)"
    command = [sys.executable, "-c", run]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


LIGHT = {"torch", "numpy", "pandas", "scipy", "plotly", "streamlit", "msgspec", "sqlalchemy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("import optimizer", LIGHT),
        ("from optimizer.cli.main import parser; parser().format_help()", LIGHT),
        # What every worker process and every command that measures begins with.
        (
            "import optimizer.work, optimizer.cli.results",
            {*TORCH, "pandas", "plotly", "scipy.stats", "scipy.optimize", "scipy.special"},
        ),
    ],
    ids=["package", "help", "worker"],
)
def test_the_beginning_is_light(code: str, never: set[str]) -> None:
    assert not loaded_by(code) & never


@pytest.mark.slow
def test_a_bundled_model_is_measured_without_torchvision_and_torchs_compiler(tmp_path: Path) -> None:
    """Each takes as long to import as torch, in every process that measures."""
    code = (
        "import numpy, optimizer as px; images = numpy.random.rand(40, 1, 28, 28).astype('f4'); "
        "from optimizer.measurement import latency; from quick_timing import A_FEW_CALLS; "
        "latency.EFFORTS[True] = A_FEW_CALLS; "
        "px.measure('fashion-mlp', px.Recipe.of(sparsity=0.5, weight_bits=4), data=images)"
    )
    found = loaded_by(code, PARETOSCOPE_HOME=str(tmp_path), PYTHONPATH=str(ROOT / "tests"))
    assert {"torch", "openvino"} <= found
    assert not found & {"torchvision", "torch._dynamo"}


@pytest.mark.slow
def test_what_shows_results_is_imported_without_torch_or_streamlit() -> None:
    """Other packages are followed too: this asks the interpreter."""
    names = sorted(set().union(*map(within, (*NEVER_TORCH, *TORCH_WHEN_CALLED))))
    found = loaded_by(f"import {', '.join(names)}")
    assert not found & {*TORCH, "streamlit"}
    assert {"optimizer", "pandas", "plotly"} <= found


def test_type_checkers_read_the_package_s_types() -> None:
    """Without this file, which the wheel takes along, they take what it gives for Any (PEP 561)."""
    assert (PACKAGE / "py.typed").is_file()
