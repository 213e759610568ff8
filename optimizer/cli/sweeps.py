"""``paretoscope sweep`` and ``paretoscope sweeps``: grids of configurations, and what is in the ledger."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from optimizer import on_demand
from optimizer.analysis.result_json import as_json
from optimizer.cli.options import add_experiment_options, check_alone, recipe_of, request_of
from optimizer.cli.parser import ListOf
from optimizer.cli.terminal import print_result, say, tell
from optimizer.cluster.addresses import connect
from optimizer.cluster.nodes import Nodes
from optimizer.cluster.remote import check
from optimizer.cluster.spread import work_off as by_nodes
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.formats import count
from optimizer.progress import Cancelled
from optimizer.records import Request, encode
from optimizer.search.answers import describe, outcome_of
from optimizer.search.drain import drain, until_over
from optimizer.search.sweep import Grid
from optimizer.store import ledger
from optimizer.store.items import Item, Sweep
from optimizer.store.results import Store
from optimizer.system.processes import user


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    add_experiment_options(parser, model="?", amounts=False)
    parser.add_argument(
        "--sparsities",
        "--sparsity",
        type=ListOf(float),
        default=[0.0, 0.3, 0.5, 0.7, 0.9],
        metavar="S,S",
        help="shares of the weights to remove, or of the channels that can go, each 0 to below 1 "
        "(default: 0,0.3,0.5,0.7,0.9)",
    )
    parser.add_argument(
        "--bits",
        "--weight-bits",
        type=ListOf(int),
        default=[32, 8, 4],
        metavar="B,B",
        help="bits of a weight (default: 32,8,4)",
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="measure on the nodes of a Dask scheduler (tcp://HOST:8786), or as jobs (slurm:PARTITION)",
    )
    parser.add_argument(
        "--on",
        default="",
        metavar="NODE",
        help="time on nodes like this one, of those of a cluster",
    )
    parser.add_argument(
        "--frontier-only",
        action="store_true",
        help="measure what can be on the frontier of accuracy, zstd size and latency, and leave "
        "the rest out as soon as it has too many errors: the same frontier, sooner; not on a cluster",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line, of each that is measured or screened out",
    )
    parser.add_argument(
        "--resume",
        type=int,
        metavar="ID",
        help="in place of a model and all else: go on with a sweep that `paretoscope sweeps` lists and "
        "that was stopped, or try what failed again",
    )


def run_sweep(options: argparse.Namespace) -> None:
    if options.on and not options.cluster:
        raise InputError(f"--on {options.on} names a node of a cluster: give its --cluster ADDRESS too")
    if options.cluster and options.frontier_only:
        raise InputError("--frontier-only works on this machine alone: leave it out, or leave --cluster out")
    if not options.cluster:
        _run(options, None)
        return
    with connect(options.cluster, options.on, lambda share, words: say(words)) as nodes:
        _run(options, nodes)


def _run(options: argparse.Namespace, nodes: Nodes | None) -> None:
    """On this machine, or by nodes."""
    store = Store()
    sweep = _created(store, options, nodes) if options.resume is None else _resumed(store, options, nodes)
    again = how_to_resume(sweep, options)
    try:
        found = work_off(store, sweep, _printing(store, sweep, options.json), nodes)
    except (KeyboardInterrupt, Cancelled):
        ledger.cancel(store, sweep)
        say(f"sweep {sweep} is cancelled; {again}")
        raise
    except UnavailableError as error:
        raise UnavailableError(f"{error}; {again}") from error
    if failed := found.counts.get("failed", 0):
        raise WorkError(f"{failed} of {found.total} configurations could not be measured: see above; {again}")
    if found.state == "cancelled":
        raise WorkError(f"sweep {sweep} was cancelled; {again}")


def _created(store: Store, options: argparse.Namespace, nodes: Nodes | None) -> int:
    """The number of the sweep that is asked for. Raises InputError for what would fail all of it."""
    if options.model is None:
        raise InputError("say which model to sweep, or which sweep to go on with: --resume ID")
    recipe = recipe_of(options)  # not canonical: as long as it prunes nothing, that would forget how
    base = replace(request_of(options, recipe), recipe=recipe)
    activations = (recipe.quantize.activation_bits,)
    on, device = (nodes.environment.cpu, nodes.environment.key) if nodes else ("", "")
    axes = tuple(options.sparsities), tuple(options.bits), activations, (options.engine,)
    asked = Grid(base, *axes, on, options.frontier_only)
    requests = asked.requests()
    if nodes:
        check(base)
    else:
        on_demand.check_request(requests[0], store, tell)
    return ledger.create(store, encode(asked), requests, user(), device)


def _resumed(store: Store, options: argparse.Namespace, nodes: Nodes | None) -> int:
    """The number of a sweep that waits again. Raises InputError for one that is no sweep, or is timed
    elsewhere."""
    check_alone(options, add_sweep_options, "sweep", {"json", "cluster", "on"})
    sweep: int = options.resume
    found = ledger.find(store, sweep)
    if found.answer is not None:
        raise InputError(f"{sweep} is a question: `paretoscope find --resume {sweep}` goes on with it")
    if found.device != (nodes.environment.key if nodes else ""):
        where = "this machine alone"
        if found.device:
            where = "another kind of machine: give its --cluster"
        if found.device and nodes:
            where = f"another kind of machine than {nodes.environment.cpu}: say --on which node instead"
        raise InputError(f"sweep {sweep} ({describe(found)}) is timed on {where}")
    ledger.resume(store, sweep)
    return sweep


def how_to_resume(sweep: int, options: argparse.Namespace) -> str:
    """The command that goes on with a sweep. A store's address is not repeated: it may have a password."""
    command = ["paretoscope", "sweep", "--resume", str(sweep)]
    for name, given in (("--cluster", options.cluster), ("--on", options.on)):
        command += [name, given] if given else []
    return f"`{shlex.join(command)}`{', with the same --store,' if options.store else ''} goes on with it"


def work_off(
    store: Store, sweep: int, news: Callable[[], None] = lambda: None, nodes: Nodes | None = None
) -> Sweep:
    """Do what is left of a sweep or a question, here or by nodes, or wait for others who do, until nothing
    is; ``news`` is called whenever there may be some. Raises InputError for one that others are left."""
    ledger.check_not_left(store, sweep)
    news()
    do = on_demand.do_here(store, tell)
    work = partial(by_nodes, store, nodes, sweep) if nodes else partial(drain, store, do, sweep)
    for _ in until_over(store, sweep, work):
        news()
    return ledger.find(store, sweep)


def _printing(store: Store, sweep: int, as_lines: bool) -> Callable[[], None]:
    """Prints each result as soon as it is there."""
    printed: set[int] = set()

    def print_new() -> None:
        items = ledger.items(store, sweep)
        for item in items:
            if item.number not in printed and item.state in ("done", "screened out", "failed"):
                printed.add(item.number)
                _print_item(store, item, len(items), as_lines)

    return print_new


def _print_item(store: Store, item: Item, total: int, as_lines: bool) -> None:
    words = item.request.recipe.describe() if item.request else "what can't be read"
    print(f"{item.number + 1} of {total}: {words}", file=sys.stderr)
    result = store.get(item.key) if item.state == "done" else None
    if result is None:
        say(f"{item.state if item.state == 'screened out' else 'not measured'}: {item.message}")
        if as_lines and item.state == "screened out" and item.request:
            print(json.dumps(_screened_json(item, item.request)), flush=True)
    elif as_lines:
        print(json.dumps(as_json(result)), flush=True)
    else:
        print_result(result)


def _screened_json(item: Item, request: Request) -> dict[str, object]:
    """What was asked, as of a result that was measured, and ``why`` it is none: how many errors it had on how
    many images, and what beats it."""
    return {
        "screened_out": True,
        "key": item.key,
        "model": request.model,
        "engine": request.engine,
        "recipe": request.recipe.to_dict(),
        "recipe_words": request.recipe.describe(),
        "why": item.message,
    }


def add_sweeps_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cancel", type=int, metavar="ID", help="end this one first, wherever it runs")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, of each")


def run_sweeps(options: argparse.Namespace) -> None:
    store = Store()
    if options.cancel is not None:
        items = ledger.cancel(store, options.cancel)
        found = ledger.find(store, options.cancel)
        words = f"{count(items, 'configuration')} cancelled" if found.answer is None else found.state
        print(f"{found.title}: {words}", file=sys.stderr)
    lacking = ledger.lacking(store)
    for sweep in ledger.sweeps(store):
        if options.json:
            print(json.dumps(_sweep_json(store, sweep, lacking.get(sweep.id))))
            continue
        when = sweep.created[:16].replace("T", " ")
        waits = f"; waits for a server that has {lacking[sweep.id]}" if sweep.id in lacking else ""
        print(f"{sweep.id}  {when}  {sweep.who}  {describe(sweep)}: {outcome_of(store, sweep)}{waits}")


def _sweep_json(store: Store, sweep: Sweep, lacking: str | None) -> dict[str, object]:
    return {
        "id": sweep.id,
        "kind": "sweep" if sweep.answer is None else "question",
        "created": sweep.created,
        "who": sweep.who,
        "asked": describe(sweep),
        "state": sweep.state,
        "counts": dict(sweep.counts),
        "outcome": outcome_of(store, sweep),
        "waits_for": lacking,
    }
