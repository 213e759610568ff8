"""Commands about single recipes and what is stored: measured, saved, exported."""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from optimizer import on_demand, work
from optimizer.analysis import stored
from optimizer.analysis.result_json import as_json
from optimizer.cli.options import add_experiment_options, check_writable, recipe_to_run, request_of
from optimizer.cli.terminal import first_interrupt, print_result, say, tell
from optimizer.data.folders import expand
from optimizer.errors import InputError, unknown
from optimizer.formats import count
from optimizer.methods.artifacts import ARTIFACTS
from optimizer.methods.engines import ENGINES
from optimizer.methods.entries import format_of
from optimizer.methods.exporters import EXPORTERS
from optimizer.progress import Asker, asked_by
from optimizer.recipe import PRESETS, Recipe
from optimizer.records import Result
from optimizer.search.documents import DOCUMENTS
from optimizer.search.presets import find
from optimizer.store.keys import of_today
from optimizer.store.results import Store
from optimizer.store.rows import describe_unreadable
from optimizer.system.whole_files import write_whole


def add_measure_options(parser: argparse.ArgumentParser) -> None:
    add_experiment_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_measure(options: argparse.Namespace) -> None:
    """Ctrl-C ends learning with the best network so far, which is measured; else, and the second time, it
    stops."""
    request, learning = request_of(options, recipe_to_run(options)), False

    def note(known: object) -> None:
        nonlocal learning
        learning = False  # it has not begun, or is over

    def is_enough() -> bool:
        nonlocal learning
        learning = True  # this is asked where there is a best so far
        return pressed()

    words = "taking the best network so far; Ctrl-C again stops"
    with ExitStack() as stack:
        if request.recipe.learns:
            pressed = stack.enter_context(first_interrupt(words, lambda: learning))
            stack.enter_context(asked_by(Asker(note, lambda: False, is_enough)))
        result = on_demand.load_or_measure(request, Store(), tell)
    if options.json:
        print(json.dumps(as_json(result)))
    else:
        print_result(result)


def add_preset_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", help=", ".join(PRESETS))
    add_experiment_options(parser, recipe=False)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_preset(options: argparse.Namespace) -> None:
    store = Store()
    if options.preset not in PRESETS:
        raise unknown("preset", options.preset, PRESETS)
    found = find(
        PRESETS[options.preset],
        request_of(options, Recipe()),
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


def add_save_options(parser: argparse.ArgumentParser) -> None:
    add_experiment_options(parser)
    parser.add_argument(
        "--format",
        choices=tuple(ARTIFACTS),
        help="by default that of FILE's extension, or safetensors; unless activations have 8 bits, "
        "OpenVINO's files hold float32 weights, and are larger than the size shown",
    )
    parser.add_argument(
        "--output",
        "-o",
        metavar="FILE",
        help="a .zip has the recipe and a model card too (default: MODEL.zip)",
    )


def run_save(options: argparse.Namespace) -> None:
    from optimizer.export.artifacts import saving

    request, path = request_of(options, recipe_to_run(options)), _output(options, "zip")
    kind = saving.format_of(path, options.format)
    content = work.run("artifact", (kind, request), tell)
    assert isinstance(content, bytes)
    print(saving.save(content, kind, path), file=sys.stderr)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    add_report_options(parser)
    parser.add_argument(
        "--format", choices=tuple(EXPORTERS), help="by default that of FILE's extension, or html"
    )


def run_export(options: argparse.Namespace) -> None:
    file = expand(options.output or "")
    format = options.format or (None if file.suffix else "html")
    name = format_of(file, format, {one.name: (f".{one.extension}",) for one in EXPORTERS.values()})
    exporter = EXPORTERS[name]
    path = _output(options, exporter.extension)
    _write(path, exporter.write(_selected(options)))


def add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("--engine", help="only this engine's results")
    parser.add_argument("--output", "-o", metavar="FILE", help="otherwise MODEL with the extension")


def run_report(options: argparse.Namespace) -> None:
    from optimizer.export.report import report

    path = _output(options, "report.html")
    _write(path, report(_selected(options)).encode())


def _selected(options: argparse.Namespace) -> list[Result]:
    store = Store()
    measured = stored.known(store, store.results(model=options.model, engine=options.engine))
    results = of_today(options.model, measured)
    if earlier := len(measured) - len(results):
        say(f"{count(earlier, 'result')} of another network that had this name before left out")
    if not results:
        raise _nothing(store, options.model, options.engine)
    return results


def _nothing(store: Store, model: str, engine: str | None) -> InputError:
    """What there is to say where there are no results. Raises InputError for an unknown model."""
    from optimizer.model import catalogue

    if engine and engine not in ENGINES:
        return unknown("engine", engine, ENGINES)
    others = dict.fromkeys(one.request.engine for one in of_today(model, store.results(model=model)))
    if not others:  # a module of one's own is none of the catalogue's, and has results
        catalogue.card(model)
    if not engine:
        return InputError(f"nothing is measured yet for {model}: run `paretoscope sweep {model}` first")
    there = f", or leave --engine out: there are results on {', '.join(others)}" if others else ""
    return InputError(
        f"nothing is measured yet for {model} on {engine}: run `paretoscope sweep {model} --engine {engine}` "
        f"first{there}"
    )


def _output(options: argparse.Namespace, extension: str) -> Path:
    """Raises InputError where nothing can be written."""
    path = expand(options.output or f"{options.model.replace('/', '-')}.{extension}")
    check_writable("--output", path)
    return path


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"can't write {path} ({error.strerror}): give another --output") from error
    print(path, file=sys.stderr)


def add_stored_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--forget-failures", action="store_true", help="drop what failed")
    parser.add_argument("--forget-unreadable", action="store_true", help="drop what can't be read")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_stored(options: argparse.Namespace) -> None:
    store = Store()
    if options.forget_failures:
        print(f"{count(store.forget_failures(), 'failure')} dropped", file=sys.stderr)
    if options.forget_unreadable:
        dropped = store.forget_unreadable(store.unreadable(DOCUMENTS))
        print(f"{count(dropped, 'row')} dropped that can't be read", file=sys.stderr)
    if options.json:
        print(json.dumps(_stored_json(store)))
        return
    print(f"{count(store.count(), 'result')} in {store.place}")
    for failure in store.failures():
        print(
            f"failed {failure.created[:16]}: {failure.request.model} on {failure.request.engine},"
            f" {failure.request.recipe.describe()}: {failure.message}"
        )
    if rows := store.unreadable(DOCUMENTS):
        print(f"{describe_unreadable(rows)} `paretoscope stored --forget-unreadable` drops it.")


def _stored_json(store: Store) -> dict[str, object]:
    failures = [
        {
            "created": failure.created,
            "model": failure.request.model,
            "engine": failure.request.engine,
            "recipe": failure.request.recipe.to_dict(),
            "recipe_words": failure.request.recipe.describe(),
            "message": failure.message,
        }
        for failure in store.failures()
    ]
    unreadable = [{"kind": row.kind, "reason": row.reason} for row in store.unreadable(DOCUMENTS)]
    return {"results": store.count(), "place": store.place, "failures": failures, "unreadable": unreadable}
