"""``paretoscope find``: the best configuration under limits."""

import argparse
import json

from optimizer import work
from optimizer.analysis.limits import MINIMISED, Limits
from optimizer.cli.options import add_image_options, numbers, request_of
from optimizer.cli.terminal import end_of_line, tell
from optimizer.methods.engines import ENGINES
from optimizer.methods.pruners import PRUNERS
from optimizer.recipe import Recipe
from optimizer.search.answers import answer_json, details, headline
from optimizer.search.find import DEFAULT_BUDGET_SECONDS, Question
from optimizer.search.space import UNPRUNED, Space, subspace
from optimizer.search.strategies import STRATEGIES
from optimizer.store.results import Store

NOT_FOUND = 3
AXES = {"prune": "pruning"}
"""Axes of the space that options have another name for."""


def add_find_options(parser: argparse.ArgumentParser) -> None:
    add_image_options(parser)
    limits = parser.add_argument_group("limits, kept by the bound of the 95 % interval")
    limits.add_argument("--max-drop", type=float, metavar="POINTS", help="accuracy that may be lost")
    limits.add_argument(
        "--max-latency-ms", type=float, metavar="MS", help="median time of a call, at its steady pace"
    )
    limits.add_argument("--max-size-mb", type=float, metavar="MB", help="size of the file")
    limits.add_argument(
        "--minimise",
        choices=MINIMISED,
        help="what is to be as low as possible (latency; without --max-drop: drop)",
    )
    usual = Space()
    space = parser.add_argument_group("what is searched, each a list such as 8,4")
    engines = f"of {', '.join(ENGINES)} (those of {', '.join(usual.engine)} that run here)"
    space.add_argument("--engine", type=numbers(str), metavar="E,E", help=engines)
    for name, kind, words in (
        ("threads", int, "0: every core"),
        ("prune", str, f"of {', '.join((UNPRUNED, *PRUNERS))}"),
        ("sparsity", float, "shares of the weights"),
        ("weight-bits", int, ""),
        ("activation-bits", int, ""),
        ("precision", str, "what layers outside int8 compute in"),
    ):
        default = list(usual.axes[AXES.get(name, name.replace("-", "_"))])
        shown = f"{default[0]} to {default[-1]}" if len(default) > 8 else ", ".join(map(str, default))
        space.add_argument(
            f"--{name}", type=numbers(kind), default=default, metavar="X,X", help=f"{words} ({shown})".strip()
        )
    parser.add_argument(
        "--search", choices=tuple(STRATEGIES), default="guided", help="how the next one is chosen (guided)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=DEFAULT_BUDGET_SECONDS,
        metavar="SECONDS",
        help=f"in all, with timing the winner afresh ({DEFAULT_BUDGET_SECONDS:g})",
    )
    parser.add_argument(
        "--batch-size", "--batch", type=int, dest="batch", default=1, help="images a call (1)"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="time the winner in five fresh processes, half a minute or more beyond the budget",
    )
    parser.add_argument("--seed", type=int, default=0, help="of image draws, timing order and search (0)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run_find(options: argparse.Namespace) -> int:
    """Exit codes: 0 found, 3 nothing is shown to keep to the limits."""
    limits = Limits(options.max_drop, options.max_latency_ms, options.max_size_mb)
    axes = {
        "engine": options.engine or work.engines_to_search(),
        "threads": options.threads,
        "pruning": options.prune,
        "sparsity": options.sparsity,
        "weight_bits": options.weight_bits,
        "activation_bits": options.activation_bits,
        "precision": options.precision,
    }
    question = Question(
        limits, options.minimise or limits.usual, subspace(Space(), axes), options.search, options.budget
    )
    options.quick = not options.full
    options.engine, options.threads = question.space.engine[0], question.space.threads[0]
    found = work.answer(question, request_of(options, Recipe()), Store(), tell)
    end_of_line()
    if options.json:
        print(json.dumps(answer_json(found)))
    else:
        print("\n  ".join([headline(found), *details(found)]))
    return 0 if found.best else NOT_FOUND
