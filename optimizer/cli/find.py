"""``paretoscope find``: the best configuration under limits."""

import argparse
import json

from optimizer import on_demand
from optimizer.analysis.limits import MINIMISED, Limits
from optimizer.cli.options import add_image_options, add_limits, check_alone, data_of, settings_of
from optimizer.cli.parser import ListOf
from optimizer.cli.sweeps import work_off
from optimizer.cli.terminal import end_of_line, first_interrupt, say
from optimizer.errors import InputError, WorkError
from optimizer.methods.engines import ENGINES
from optimizer.methods.pruners import PRUNERS
from optimizer.methods.quantizers import QUANTIZERS
from optimizer.progress import Cancelled, ended_by
from optimizer.recipe import PRECISIONS
from optimizer.search.answer_data import OPTIONS, answer_json
from optimizer.search.answers import details, headline
from optimizer.search.drain import works_on
from optimizer.search.questions import answer_of, ask, question_of
from optimizer.search.records import DEFAULT_BUDGET_SECONDS, Question
from optimizer.search.space import UNPRUNED, Space, subspace
from optimizer.search.strategies import STRATEGIES
from optimizer.store import ledger
from optimizer.store.results import Store
from optimizer.system.processes import identity, user

NOT_FOUND = 3


def add_find_options(parser: argparse.ArgumentParser) -> None:
    add_image_options(parser, "?")
    limits = add_limits(parser, "limits, kept by the bound of the 95 % interval")
    limits.add_argument(
        "--max-latency-ms", type=float, metavar="MS", help="largest median time of a call, at its steady pace"
    )
    limits.add_argument(
        "--max-latency-ratio",
        type=float,
        metavar="X",
        help="largest time of a call divided by the uncompressed model's on the same engine: 0.5 is twice "
        "as fast. A busy machine changes it less than the time itself",
    )
    limits.add_argument("--max-size-mb", type=float, metavar="MB", help="largest size of the file")
    limits.add_argument(
        "--minimise",
        choices=MINIMISED,
        help="what is to be as good as possible (latency; without --max-drop and --min-sqnr: drop, or sqnr, "
        "the noise in the outputs, of a network that is no classifier)",
    )
    axes = {OPTIONS.get(name, name.replace("_", "-")): choices for name, choices in Space().axes.items()}
    space = parser.add_argument_group("what is searched, each a list such as 8,4")
    engines = (
        f"what runs it: {', '.join(ENGINES)} (those of {', '.join(map(str, axes['engine']))} that run here)"
    )
    space.add_argument("--engine", type=ListOf(str), metavar="E,E", help=engines)
    for name, kind, words in (
        ("threads", int, "CPU threads; 0: every core"),
        ("prune", str, f"pruning methods: {', '.join((UNPRUNED, *PRUNERS))}"),
        ("sparsity", float, "shares of the weights to remove, or of the channels that can go"),
        ("weight-bits", int, "bits of a weight; 32: as they are"),
        ("activation-bits", int, "bits of activations; 8 with 8-bit weights is int8"),
        ("rounding", str, f"rounding methods: {', '.join(QUANTIZERS)}"),
        ("precision", str, f"what layers outside int8 compute in: {', '.join(PRECISIONS)}"),
    ):
        default = list(axes[name])
        shown = f"{default[0]} to {default[-1]}" if len(default) > 8 else ", ".join(map(str, default))
        space.add_argument(
            f"--{name}", type=ListOf(kind), default=default, metavar="X,X", help=f"{words} (default: {shown})"
        )
    parser.add_argument(
        "--search",
        choices=tuple(STRATEGIES),
        default="guided",
        help="how the next one is chosen (default: guided)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=DEFAULT_BUDGET_SECONDS,
        metavar="SECONDS",
        help=f"for the whole search, with timing the winner afresh (default: {DEFAULT_BUDGET_SECONDS:g})",
    )
    parser.add_argument(
        "--batch-size", "--batch", type=int, dest="batch", default=1, help="images a timed call (default: 1)"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="time the winner in five fresh processes, half a minute or more beyond the budget",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of image draws, timing order and search (default: 0)"
    )
    parser.add_argument(
        "--resume",
        type=int,
        metavar="ID",
        help="in place of a model and all else: show the answer to a question that "
        "`paretoscope sweeps` lists, or go on with it where it has none",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_find(options: argparse.Namespace) -> int:
    """Exit codes: 0 found, 3 nothing is shown to keep to the limits. Ctrl-C ends a search with the best so
    far, and drops it the second time; one that others work on goes on."""
    store = Store()
    if options.resume is not None:
        check_alone(options, add_find_options, "find", {"json"})
        number = options.resume
        asked = question_of(sweep := ledger.find(store, number))  # of a sweep there is no answer
        if answer_of(store, sweep.answer, tried=False) is None:
            on_demand.check_can_go_on(asked)
        ledger.resume(store, number)
    elif options.model is None:
        raise InputError("say which model, or which question to go on with: --resume ID")
    else:
        question = question_from(options)
        on_demand.check(question)
        number = ask(store, question, user())
    (item,) = ledger.items(store, number)
    if item.state == "running" and not ledger.is_left(item):
        say(f"question {number} is being worked on; Ctrl-C leaves it at that")
    words = "ending with the best so far; Ctrl-C again drops the question"
    again = f"`paretoscope find --resume {number}` goes on with it"
    with first_interrupt(words, lambda: works_on(number)) as interrupted:
        try:
            with ended_by(lambda: False, interrupted):
                done = work_off(store, number)
        except (KeyboardInterrupt, Cancelled):
            (item,) = ledger.items(store, number)
            if interrupted() or item.state != "running" or item.owner == identity():
                ledger.cancel(store, number)
                say(f"question {number} is cancelled; {again}")
            raise
    end_of_line()
    if done.state == "failed":
        raise WorkError(f"{ledger.items(store, number)[0].message}; {again}")
    found = answer_of(store, done.answer) if done.state == "done" else None
    if found is None:
        raise WorkError(f"{done.title} was cancelled, or what it rests on was dropped; {again}")
    if options.json:
        print(json.dumps({"question": number} | answer_json(found)))
    else:
        print("\n  ".join([headline(found), *details(found)]))
    if found.answer.is_early:
        say(again)
    return 0 if found.best else NOT_FOUND


def question_from(options: argparse.Namespace) -> Question:
    """What the options ask. Raises InputError for what can't be asked."""
    from optimizer.model import catalogue

    limits = Limits(
        options.max_drop,
        options.max_latency_ms,
        options.max_size_mb,
        options.min_sqnr,
        options.max_latency_ratio,
    )
    axes = {name: getattr(options, OPTIONS.get(name, name)) for name in Space().axes}
    space = subspace(Space(), axes | {"engine": options.engine or on_demand.engines_to_search()})
    options.quick, options.threads = not options.full, space.threads[0]
    return Question(
        options.model,
        limits,
        options.minimise or limits.usual(catalogue.card(options.model).classes),
        space,
        options.search,
        options.budget,
        data_of(options),
        settings_of(options),
    )
