"""Commands about time: where it goes, what it grows with, how requests are served, and what disturbs it."""

import argparse
import json
from dataclasses import asdict, replace
from typing import Any, TypeVar

from optimizer import work
from optimizer.analysis import serving
from optimizer.analysis.afresh import alone, timed_afresh
from optimizer.cli.options import add_experiment_options, recipe_to_run, request_of
from optimizer.cli.parser import ListOf
from optimizer.cli.terminal import end_of_line, tell
from optimizer.errors import InputError, WorkError
from optimizer.formats import capital
from optimizer.records import Request
from optimizer.store.results import Store

T = TypeVar("T")


def add_doctor_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON array")


def run_doctor(options: argparse.Namespace) -> None:
    from optimizer.system.doctor import State, examine

    checks = examine()
    if options.json:
        print(json.dumps([asdict(check) for check in checks]))
        return
    for check in checks:
        print(f"{check.name:<20}{check.state:<9}{check.found}")
        if check.state is State.NOISY:
            print(f"{'':<20}costs: {check.costs}")
            print(f"{'':<20}mend:  {check.command}")


def add_complexity_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", nargs="?", default="stack", help="stack (default), or a model's name")
    parser.add_argument(
        "--removed", type=float, default=0.5, help="share of the weights removed (default: 0.5)"
    )
    parser.add_argument(
        "--batch-size",
        "--batch",
        type=int,
        dest="batch",
        metavar="B",
        help="inputs a call (32 for stacks, 1 for a model)",
    )
    parser.add_argument("--threads", type=int, default=1, help="1 (default) shows the work; 0 is every core")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_complexity(options: argparse.Namespace) -> None:
    from optimizer.analysis.conclusions import as_json, conclusions
    from optimizer.analysis.scaling import ComplexityRequest, ComplexityRun

    request = ComplexityRequest(
        family=options.family,
        removed_share=options.removed,
        batch=options.batch,
        threads=options.threads,
        quick=options.quick,
    )
    run = _run("complexity", request, ComplexityRun, Store())
    if options.json:
        print(json.dumps(as_json(run)))
    else:
        print("\n".join(conclusions(run)))


def add_coverage_options(parser: argparse.ArgumentParser) -> None:
    add_experiment_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_coverage(options: argparse.Namespace) -> None:
    from optimizer.analysis import coverage

    store, request = Store(), request_of(options, recipe_to_run(options))
    key = coverage.coverage_key(request)
    run = _stored_or_run("coverage", request, key, coverage.Coverage, store)
    if options.json:
        print(json.dumps(coverage.as_json(run)))
        return
    end_of_line()
    print(coverage.table(run))
    print("\n".join(coverage.conclusions(run, _latency(store, request))))


def _stored_or_run(task: str, request: object, key: str, record: type[T], store: Store) -> T:
    """The document of that key, or what a worker's task of that name makes and stores."""
    return store.get_document(task, key, record) or _run(task, request, record, store)


def _run(task: str, request: object, record: type[T], store: Store) -> T:
    """Under its own key: images may have changed since one was asked for."""
    made = store.get_document(task, str(work.run(task, request, tell)), record)
    if made is None:
        raise WorkError("what was measured was dropped meanwhile: ask again")
    return made


def _latency(store: Store, request: Request) -> Any:
    """What was measured of the same recipe, if anything."""
    from optimizer.analysis.summary import summarise

    result = store.best(request)
    return None if result is None else summarise(result).latency


def add_throughput_options(parser: argparse.ArgumentParser) -> None:
    add_experiment_options(parser, grid=True)
    parser.add_argument("--limit-ms", type=float, metavar="MS", help="name the best under this latency")
    parser.add_argument(
        "--rate",
        type=rates,
        metavar="R,R",
        help="requests a second that come at random moments, timed with their queue, at the first batch size "
        "and number of threads; auto: up to what can be served",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def rates(text: str) -> list[float]:
    """``auto``, which is none in particular, or a list of numbers."""
    found: list[float] = [] if text == "auto" else ListOf(float)(text)
    return found


def run_throughput(options: argparse.Namespace) -> None:
    asked = request_of(options, recipe_to_run(options))
    if options.limit_ms is not None and not options.limit_ms > 0:
        raise InputError(f"--limit-ms {options.limit_ms:g} is not allowed: above 0")
    if options.rate is not None:
        if options.streams != [1]:
            raise InputError("requests at a --rate are served by one stream: leave --streams out")
        _load(options, asked)
        return
    request = serving.ServingRequest(
        asked.model,
        asked.recipe,
        asked.engine,
        asked.data,
        tuple(options.batches),
        tuple(options.thread_counts),
        tuple(options.streams),
        options.quick,
        options.seed,
    )
    run = _served(request)
    best = None if options.limit_ms is None else serving.best_under(run, 1e6 * options.limit_ms)
    afresh = ""
    if best and best.met:
        afresh = timed_afresh(best, _served(alone(run, best)), 1e6 * options.limit_ms)
    if options.json:
        chosen = best and {"met": best.met, "network": best.network, "words": best.words, "afresh": afresh}
        print(json.dumps(serving.as_json(run) | ({"best": chosen} if best else {})))
        return
    end_of_line()
    print(serving.table(run))
    named = [words for words in (best.words if best else "", afresh) if words]
    print("\n".join((*serving.conclusions(run), *named)))


def _served(request: serving.ServingRequest) -> serving.ServingRun:
    return _stored_or_run("throughput", request, serving.serving_key(request), serving.ServingRun, Store())


def _load(options: argparse.Namespace, asked: Request) -> None:
    """Requests as they come, at the rates of ``--rate``."""
    from optimizer.analysis import load

    settings = replace(asked.settings, threads=options.thread_counts[0], batch=options.batches[0])
    request = load.LoadRequest(
        asked.model, asked.recipe, asked.engine, asked.data, settings, tuple(options.rate)
    )
    run = _stored_or_run("load", request, load.load_key(request), load.LoadRun, Store())
    best = () if options.limit_ms is None else load.best_rates(run, 1e6 * options.limit_ms)
    if options.json:
        chosen = [asdict(one) for one in best]
        print(json.dumps(load.as_json(run) | ({"best": chosen} if best else {})))
        return
    end_of_line()
    print(load.table(run))
    print("\n".join((*load.conclusions(run), *(f"{capital(one.words)}." for one in best))))
