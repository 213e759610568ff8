"""The dashboard's verbs from a shell, on the same store.

``--json`` prints JSON on standard output and nothing else there; progress and errors go to standard error.
Exit codes: 0 done, 1 failed, 2 bad input or something that this machine lacks; 3 a gate that can't tell,
or a search that found nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from optimizer import __version__, on_demand, work
from optimizer.analysis import stored
from optimizer.cli.compare import add_compare_options, run_compare
from optimizer.cli.dashboard import add_dashboard_options, open_dashboard
from optimizer.cli.find import add_find_options, run_find
from optimizer.cli.gate import add_gate_options, run_gate
from optimizer.cli.mcp_server import add_mcp_options, run_mcp
from optimizer.cli.models import add_add_options, add_models_options, run_add, run_models, run_remove
from optimizer.cli.options import (
    Parser,
    add_experiment_options,
    add_store_option,
    numbers,
    rates,
    recipe_of,
    request_of,
)
from optimizer.cli.sweeps import run_sweep, run_sweeps
from optimizer.cli.terminal import print_result, tell
from optimizer.cli.timing import run_complexity, run_coverage, run_doctor, run_throughput
from optimizer.errors import InputError, ParetoscopeError, UnavailableError, unknown
from optimizer.formats import count
from optimizer.methods.artifacts import ARTIFACTS
from optimizer.methods.exporters import EXPORTERS
from optimizer.recipe import PRESETS, Recipe
from optimizer.records import Result
from optimizer.search.documents import DOCUMENTS
from optimizer.store.results import Store
from optimizer.store.rows import describe_unreadable
from optimizer.system.paths import STORE_VARIABLE

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    if options.store is not None:
        os.environ[STORE_VARIABLE] = options.store  # workers and the dashboard's server read it too
    try:
        return options.run(options) or 0
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ParetoscopeError as error:
        print(f"paretoscope: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError | UnavailableError) else 1
    except KeyboardInterrupt:
        print("paretoscope: stopped; what was measured before is in the store", file=sys.stderr)
        return 130
    return 0


# Commands


def _measure(options: argparse.Namespace) -> None:
    request = request_of(options, recipe_of(options))
    result = on_demand.load_or_measure(request, Store(), tell)
    if options.json:
        from optimizer.analysis.result_json import as_json

        print(json.dumps(as_json(result)))
    else:
        print_result(result)


def _preset(options: argparse.Namespace) -> None:
    from optimizer.analysis.result_json import as_json
    from optimizer.search.presets import find

    store = Store()
    if options.preset not in PRESETS:
        raise unknown("preset", options.preset, PRESETS)
    base = request_of(options, Recipe())
    found = find(
        PRESETS[options.preset],
        base,
        lambda one: on_demand.load_or_measure(one, store, tell),
        lambda chosen: on_demand.time_afresh(chosen, store, tell),
        tell,
    )
    if options.json:
        said = {"preset": options.preset, "met": found.met, "words": found.words}
        print(json.dumps(said | as_json(found.result)))
        return
    print(found.words)
    print_result(found.result)


def _export(options: argparse.Namespace) -> None:
    exporter = EXPORTERS[options.format]
    _write(options, exporter.write(_selected(options)), exporter.extension)


def _save(options: argparse.Namespace) -> None:
    request = request_of(options, recipe_of(options))
    content = work.run("artifact", (options.format, request), tell)
    assert isinstance(content, bytes)
    _write(options, content, "zip")


def _report(options: argparse.Namespace) -> None:
    from optimizer.export.report import report

    _write(options, report(_selected(options)).encode(), "html")


def _stored(options: argparse.Namespace) -> None:
    store = Store()
    if options.forget_failures:
        print(f"{count(store.forget_failures(), 'failure')} dropped", file=sys.stderr)
    if options.forget_unreadable:
        dropped = store.forget_unreadable(store.unreadable(DOCUMENTS))
        print(f"{count(dropped, 'row')} dropped that can't be read", file=sys.stderr)
    print(f"{count(store.count(), 'result')} in {store.place}")
    for failure in store.failures():
        print(
            f"failed {failure.created[:16]}: {failure.request.model} on {failure.request.engine},"
            f" {failure.request.recipe.describe()}: {failure.message}"
        )
    if rows := store.unreadable(DOCUMENTS):
        print(f"{describe_unreadable(rows)} `paretoscope stored --forget-unreadable` drops it.")


def _selected(options: argparse.Namespace) -> list[Result]:
    results = stored.known(Store(), Store().results(model=options.model, engine=options.engine))
    if not results:
        raise InputError(
            f"nothing is measured yet for {options.model}: run `paretoscope sweep {options.model}` first"
        )
    return results


def _write(options: argparse.Namespace, content: bytes, extension: str) -> None:
    path = Path(options.output or f"{options.model.replace('/', '-')}.{extension}")
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"can't write {path} ({error.strerror}): give another --output") from error
    print(path, file=sys.stderr)


# Options


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="paretoscope",
        description="Prune and quantize a pretrained model; see accuracy, size and latency, measured here.",
    )
    parser.add_argument("--version", action="version", version=f"paretoscope {__version__}")
    add_store_option(parser)
    commands = parser.add_subparsers(required=True, metavar="command")

    models = _command(commands, "models", run_models, "list the models that can be picked")
    add_models_options(models)

    add = _command(
        commands, "add", run_add, "add a model of your own, of a file, to those that can be picked"
    )
    add_add_options(add)

    remove = _command(commands, "remove", run_remove, "remove a model that was added")
    remove.add_argument("name")

    doctor = _command(
        commands, "doctor", run_doctor, "say what makes timings on this machine noisy, and what would mend it"
    )
    doctor.add_argument("--json", action="store_true", help="one JSON array")

    measure = _command(commands, "measure", _measure, "measure one recipe against the uncompressed model")
    add_experiment_options(measure)
    measure.add_argument("--json", action="store_true", help="one JSON object on standard output")

    sweep = _command(commands, "sweep", run_sweep, "measure a grid of sparsities and bit widths")
    add_experiment_options(sweep, model="?")
    sweep.add_argument("--sparsities", type=numbers(float), default=[0.0, 0.3, 0.5, 0.7, 0.9], metavar="S,S")
    sweep.add_argument("--bits", type=numbers(int), default=[32, 8, 4], metavar="B,B")
    sweep.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="measure on the nodes of a Dask scheduler (tcp://HOST:8786), or as jobs (slurm:PARTITION)",
    )
    sweep.add_argument(
        "--on",
        default="",
        metavar="NODE",
        help="time on nodes like this one, of those of a cluster",
    )
    sweep.add_argument("--json", action="store_true", help="one JSON object a line")
    sweep.add_argument(
        "--resume",
        type=int,
        metavar="ID",
        help="go on with a sweep that was stopped, or try what failed again",
    )

    sweeps = _command(
        commands, "sweeps", run_sweeps, "list sweeps and questions: who asked for what, when, what came of it"
    )
    sweeps.add_argument("--cancel", type=int, metavar="ID", help="end this one first, wherever it runs")

    preset = _command(commands, "preset", _preset, "find a recipe for people in a hurry, on your own images")
    preset.add_argument("preset", help=", ".join(PRESETS))
    add_experiment_options(preset, recipe=False)
    preset.add_argument("--json", action="store_true", help="one JSON object on standard output")

    find = _command(
        commands,
        "find",
        run_find,
        "find the best configuration under limits: exit code 0 found, 3 nothing is shown to keep to them",
    )
    add_find_options(find)

    compare = _command(
        commands, "compare", run_compare, "hold two files or models against each other, as they are"
    )
    add_compare_options(compare)

    gate = _command(
        commands,
        "gate",
        run_gate,
        "say whether a recipe keeps to limits: exit code 0 it does, 1 it does not, 3 it can't be told",
    )
    add_gate_options(gate)

    complexity = _command(commands, "complexity", run_complexity, "time against the number of weights")
    complexity.add_argument("family", nargs="?", default="stack", help="stack (default), or a model's name")
    complexity.add_argument("--removed", type=float, default=0.5, help="share of the weights removed (0.5)")
    complexity.add_argument(
        "--batch-size",
        "--batch",
        type=int,
        dest="batch",
        metavar="B",
        help="inputs a call (32 for stacks, 1 for a model)",
    )
    complexity.add_argument(
        "--threads", type=int, default=1, help="1 (default) shows the work; 0 is every core"
    )
    complexity.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    complexity.add_argument("--json", action="store_true", help="one JSON object on standard output")

    coverage = _command(
        commands, "coverage", run_coverage, "each layer's precision, kernel and share of the time, as it ran"
    )
    add_experiment_options(coverage)
    coverage.add_argument("--json", action="store_true", help="one JSON object on standard output")

    throughput = _command(
        commands, "throughput", run_throughput, "throughput against latency: batch sizes, threads and streams"
    )
    add_experiment_options(throughput, grid=True)
    throughput.add_argument("--limit-ms", type=float, metavar="MS", help="name the best under this latency")
    throughput.add_argument(
        "--rate",
        type=rates,
        metavar="R,R",
        help="requests a second that come at random moments, timed with their queue, at the first batch size "
        "and number of threads; auto: up to what can be served",
    )
    throughput.add_argument("--json", action="store_true", help="one JSON object on standard output")

    export = _command(commands, "export", _export, "write the charts and the table of what was measured")
    _add_selection(export)
    export.add_argument("--format", choices=tuple(EXPORTERS), default="html")

    save = _command(
        commands, "save", _save, "write the compressed model, its recipe and a model card as a zip"
    )
    add_experiment_options(save)
    save.add_argument("--format", choices=tuple(ARTIFACTS), default="safetensors")
    save.add_argument("--output", "-o", metavar="FILE")

    report = _command(commands, "report", _report, "write one HTML report that opens without a network")
    _add_selection(report)

    stored = _command(commands, "stored", _stored, "say what is stored, what failed and what can't be read")
    stored.add_argument("--forget-failures", action="store_true", help="drop what failed")
    stored.add_argument("--forget-unreadable", action="store_true", help="drop what can't be read")

    mcp = _command(
        commands, "mcp", run_mcp, "serve commands as tools (Model Context Protocol) to an assistant"
    )
    add_mcp_options(mcp)
    mcp.set_defaults(parsers=commands.choices)

    dashboard = _command(commands, "dashboard", open_dashboard, "serve the dashboard")
    add_dashboard_options(dashboard)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], words: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=words, description=words)
    parser.set_defaults(run=run)
    add_store_option(parser, command=True)
    return parser


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("--engine", help="only this engine's results")
    parser.add_argument("--output", "-o", metavar="FILE")
