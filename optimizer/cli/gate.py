"""``paretoscope gate``: a release stops where limits are not kept."""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from optimizer import on_demand
from optimizer.analysis.gate import GateLimits, Outcome
from optimizer.analysis.two_files import TwoFiles, is_network_file
from optimizer.cli.compare import add_files_options, compare_request
from optimizer.cli.options import (
    MODEL,
    OF_BUNDLED,
    add_data_options,
    add_limits,
    add_recipe_options,
    add_timing_options,
    check_writable,
    engine_help,
    read_file,
    recipe_to_run,
    request_of,
)
from optimizer.cli.terminal import end_of_line, tell
from optimizer.data.folders import expand
from optimizer.errors import InputError, UnavailableError
from optimizer.formats import capital
from optimizer.methods.artifacts import ARTIFACTS
from optimizer.methods.engines import DEFAULT_ENGINE
from optimizer.records import Result, decode, encode
from optimizer.search.gate import Verdict, judge, judge_files
from optimizer.store.results import Store
from optimizer.system.counters import counting
from optimizer.system.whole_files import write_whole

EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.UNDECIDED: 3}
NO_VERDICT = 2
"""The exit code of every error, whichever it is: 1 says that a limit is broken."""
DEFAULT_BUDGET_SECONDS = 300.0


def add_gate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"{MODEL}, or, with a network as --against, a network's file")
    add_data_options(parser, OF_BUNDLED)
    add_recipe_options(parser)
    add_timing_options(parser, engine_help(), DEFAULT_ENGINE)
    limits = add_limits(parser, "limits", "most accuracy that may be lost; below 0: the gain required")
    limits.add_argument(
        "--max-slowdown",
        type=float,
        metavar="PERCENT",
        help="largest slowdown allowed; below 0: the speed-up required",
    )
    limits.add_argument(
        "--max-instructions",
        type=float,
        metavar="PERCENT",
        help="most CPU instructions that may be added to a call: other programs hardly change their number; "
        "needs Linux performance counters (rare in virtual machines), and no --quick",
    )
    limits.add_argument(
        "--max-size",
        type=float,
        metavar="MB",
        help="largest size of the file; of a recipe with its weights packed, as `measure` counts it",
    )
    limits.add_argument(
        "--against",
        metavar="WHAT",
        help="the measure, in place of the uncompressed model: an earlier result, a file that --save has "
        "written (its accuracy on the same images, its time on the machine that it was taken on); or a "
        "network, run beside this one: an .onnx file, an OpenVINO .xml, a .zip that `paretoscope save` "
        "has written, a model's name. If MODEL is a file, give a file or a model's name here",
    )
    limits.add_argument(
        "--budget",
        type=float,
        default=DEFAULT_BUDGET_SECONDS,
        metavar="SECONDS",
        help=f"time again until it is decided, for at most this long (default: {DEFAULT_BUDGET_SECONDS:g})",
    )
    add_files_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object on standard output")
    output.add_argument("--markdown", action="store_true", help="a table, for a job's summary")
    output.add_argument("--junit", metavar="FILE", help="write a JUnit test report, a case a limit")
    output.add_argument("--save", metavar="FILE", help="write the result, for a later --against")
    parser.set_defaults(failed=NO_VERDICT)


def run_gate(options: argparse.Namespace) -> int:
    """Exit codes: 0 all limits are kept, 1 one is broken, 3 it can't be told. Raises InputError before
    anything is measured where a file can't be written, UnavailableError where that fails afterwards."""
    limits = GateLimits(
        drop_points=options.max_drop,
        slowdown_percent=options.max_slowdown,
        size_mb=options.max_size,
        sqnr_db=options.min_sqnr,
        instructions_percent=options.max_instructions,
    )
    if limits.instructions_percent is not None:
        with counting():  # before anything is measured: whether there is a count at all
            pass
    if not options.budget > 0:
        raise InputError(f"--budget {options.budget:g} is not allowed: give seconds above 0")
    network = _is_network(options.against, options.model)
    if network and options.save:
        raise InputError("--save writes the result of a recipe, and two networks give none: leave it out")
    for option, path in (("--save", options.save), ("--junit", options.junit)):
        if path:
            check_writable(option, expand(path))
    verdict = _against_network(options, limits) if network else _against_result(options, limits)
    end_of_line()
    if options.json:
        print(json.dumps(as_json(verdict)))
    elif options.markdown:
        print(markdown(verdict))
    else:
        print(f"{verdict.outcome.upper()}: {described(verdict)}")
        print("\n".join(f"  {check.words}" for check in verdict.checks))
        for note in verdict.result.notes:
            print(f"  note: {note}")
    if options.save and isinstance(verdict.result, Result):
        _write(options.save, encode(verdict.result))
    if options.junit:
        _write(options.junit, junit(verdict))
    return EXIT_CODES[verdict.outcome]


def _write(path: str, content: bytes) -> None:
    try:
        write_whole(expand(path), content)
    except OSError as error:
        raise UnavailableError(
            f"the verdict is above, but {path} can't be written ({error.strerror}): run it again with a file "
            "that can; what was measured is in the store"
        ) from error


def _against_result(options: argparse.Namespace, limits: GateLimits) -> Verdict:
    against = _earlier(options.against) if options.against else None
    request, store = request_of(options, recipe_to_run(options)), Store()
    on_demand.check_gate(request, limits, against, store, tell)
    return judge(
        request,
        limits,
        lambda request: on_demand.load_or_measure(request, store, tell),
        lambda request: on_demand.time_again(request, tell),
        options.budget,
        against,
        tell,
    )


def _is_network(against: str | None, model: str) -> bool:
    """Whether the measure is a network: a file of one, or the name of a model where no file has it. Raises
    InputError for a ``model`` that is a file, where it is none."""
    if against and is_network_file(against):
        return True
    is_file = is_network_file(model)
    if against is None or os.path.isfile(expand(against)):
        given = f"{against} is none" if against else "none is given"
        if is_file:
            raise InputError(
                f"{model} has to be compared with a network, and {given}: give --against a file of one, or a "
                "model's name"
            )
        return False
    from optimizer.model.catalogue import catalogue

    return is_file or against in catalogue()  # of a name that is mistyped `opened` says so


def _against_network(options: argparse.Namespace, limits: GateLimits) -> Verdict:
    """A model or a file, or the file of a recipe of a model, as the engine runs it, against another."""
    recipe = recipe_to_run(options).canonical()
    place, called, size_bytes = options.model, "", None
    if is_network_file(place) and not recipe.identity:
        raise InputError(f"{place} is compared as it is: leave the recipe out, or add it as a model first")
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        if not recipe.identity:
            kind = next((name for name, one in ARTIFACTS.items() if one.engine == options.engine), "onnx")
            request = request_of(options, recipe)
            path, called = Path(folder, "model.zip"), f"{request.model}, {recipe.describe()}"
            path.write_bytes(on_demand.artifact(kind, request, None, None, tell))
            place, size_bytes = str(path), on_demand.file_size(request, tell)  # an engine's is not packed
        asked = compare_request(options, options.against, place, called)
        if not options.like and not is_network_file(options.model):
            asked = replace(asked, like=options.model)
        return judge_files(
            limits, lambda: on_demand.comparison(asked, tell), options.budget, tell, size_bytes
        )


def _earlier(path: str) -> Result:
    content = read_file(path, "that --save has written, or a network: a file of one or a model's name")
    try:
        return decode(content, Result)
    except InputError as error:
        raise InputError(f"{path} is no result that --save has written ({error})") from error


def described(verdict: Verdict) -> str:
    if isinstance(verdict.result, TwoFiles):
        run = verdict.result
        return f"{run.b.name} against {run.a.name} on {run.engine}"
    against = f" against {_named(verdict.against)}" if verdict.against else ""
    return f"{_named(verdict.result)}{against}"


def _named(result: Result) -> str:
    request = result.request
    return f"{request.model} on {request.engine}, {request.recipe.describe()}"


def as_json(verdict: Verdict) -> dict[str, object]:
    """Plain data: the outcome, and each limit with its figure, its interval and what it came to."""
    result = verdict.result
    if isinstance(result, TwoFiles):
        what: dict[str, object] = {"model": result.b.name, "against": result.a.name, "engine": result.engine}
    else:
        earlier = verdict.against
        what = _parts(result) | {"against": earlier and _parts(earlier) | {"key": earlier.key}}
    return {
        "outcome": verdict.outcome,
        **what,
        "key": result.key,
        "series": verdict.series,
        "seconds": round(verdict.seconds, 1),
        "checks": [check.to_dict() for check in verdict.checks],
        "notes": verdict.result.notes,
    }


def _parts(result: Result) -> dict[str, object]:
    asked = result.request
    return {"model": asked.model, "engine": asked.engine, "recipe": asked.recipe.to_dict()}


def markdown(verdict: Verdict) -> str:
    rows = [
        f"| {capital(one.name)}, {one.unit} | {value} | {'' if one.equal else f'{low} to {high}'} "
        f"| {one.allowed} | {one.said} |"
        for one in verdict.checks
        for value, low, high in [one.written]
    ]
    heading = f"**{verdict.outcome.upper()}**: {described(verdict)}"
    header = ["| | value | 95 % interval | allowed | |", "|---|---|---|---|---|"]
    notes = ["", *(f"- {note}" for note in verdict.result.notes)] if verdict.result.notes else []
    return "\n".join([heading, "", *header, *rows, *notes])


def junit(verdict: Verdict) -> bytes:
    """A suite of one case a limit, in the form that CI servers read; what can't be told is an error."""
    suite = ElementTree.Element(
        "testsuite",
        name="paretoscope gate",
        tests=str(len(verdict.checks)),
        failures=str(sum(check.outcome is Outcome.FAIL for check in verdict.checks)),
        errors=str(sum(check.outcome is Outcome.UNDECIDED for check in verdict.checks)),
        time=f"{verdict.seconds:.1f}",
    )
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=described(verdict), name=check.name)
        if check.outcome is not Outcome.PASS:
            kind = "failure" if check.outcome is Outcome.FAIL else "error"
            ElementTree.SubElement(case, kind, message=check.words)
    found: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return found
