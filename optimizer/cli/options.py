"""From a command line to a recipe and a request: the options that commands share.

Over 400 lines: each option is said with its help in the one place from which every command takes it.
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from optimizer.cli.parser import ListOf
from optimizer.data.folders import absolute, expand
from optimizer.errors import InputError, unknown
from optimizer.methods.engines import DEFAULT_ENGINE, ENGINES
from optimizer.methods.pruners import PRUNERS, PrunerInfo, pruner_info
from optimizer.methods.quantizers import QUANTIZERS, QuantizerInfo, quantizer_info
from optimizer.recipe import (
    ACTIVATION_BITS,
    ALLOCATIONS,
    EFFORT_SECONDS,
    GRANULARITIES,
    MAX_EFFORT_SECONDS,
    MAX_FINETUNE_STEPS,
    PATTERNS,
    PRECISIONS,
    RANGES,
    WEIGHT_BITS,
    PruneSpec,
    QuantizeSpec,
    Recipe,
    best_grid,
    steps_of_seconds,
)
from optimizer.records import DataSpec, Request, Settings

OF_BUNDLED = "those that come with a bundled model"
MODEL = "a name from `paretoscope models`"
SPARSITY = "share of the weights to remove, or with channels of the channels that can go; 0 to below 1"


def engine_help() -> str:
    return f"what runs the model: {', '.join(ENGINES)} (default: {DEFAULT_ENGINE})"


def _named(methods: Mapping[str, PrunerInfo] | Mapping[str, QuantizerInfo]) -> str:
    """The names, with labels that say more."""
    named = (name if one.label.lower() == name else f"{name} ({one.label})" for name, one in methods.items())
    return ", ".join(named).replace("%", "%%")  # argparse would take it for a format


def add_image_options(parser: argparse.ArgumentParser, model: str | None = None) -> None:
    """``model`` is how many there have to be, as in argparse: one unless it is given."""
    parser.add_argument("model", nargs=model, help=MODEL)
    add_data_options(parser, OF_BUNDLED)


def add_data_options(parser: argparse.ArgumentParser, default: str) -> None:
    images = parser.add_argument_group("images")
    images.add_argument(
        "--data",
        metavar="PATH",
        help=f"images to evaluate, in one subfolder a class or without labels (default: {default})",
    )
    images.add_argument("--calibration", metavar="PATH", help="calibration images, which need no labels")
    images.add_argument(
        "--class-index",
        metavar="FILE",
        help="which output is right for which subfolder: JSON of each folder's output, or text with a folder "
        "a line, in the order of the outputs or with its output from 0 on, such as `tench 0`",
    )
    images.add_argument(
        "--limit", type=int, default=10_000, help="evaluate at most so many images (default: 10000)"
    )


def add_experiment_options(
    parser: argparse.ArgumentParser,
    recipe: bool = True,
    grid: bool = False,
    model: str | None = None,
    amounts: bool = True,
) -> None:
    add_image_options(parser, model)
    if recipe:
        add_recipe_options(parser, amounts)
    add_timing_options(parser, engine_help(), DEFAULT_ENGINE, grid)


def add_limits(
    parser: argparse.ArgumentParser, title: str, drop: str = "most accuracy that may be lost"
) -> argparse._ArgumentGroup:
    """A group of limits, which begins with those of what may be lost; ``drop`` is said of accuracy."""
    limits = parser.add_argument_group(title)
    limits.add_argument("--max-drop", type=float, metavar="POINTS", help=drop)
    limits.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="smallest SQNR of the outputs allowed; with several outputs, of the worst",
    )
    return limits


def add_timing_options(
    parser: argparse.ArgumentParser, engines: str, engine: str = "", grid: bool = False
) -> None:
    timing = parser.add_argument_group("timing")
    timing.add_argument("--engine", default=engine, help=engines)
    if grid:
        timing.add_argument(
            "--batch-sizes",
            "--batches",
            type=ListOf(int),
            dest="batches",
            default=[1, 4, 16],
            metavar="B,B",
            help="images in one request (default: 1,4,16)",
        )
        timing.add_argument(
            "--threads",
            type=ListOf(int),
            dest="thread_counts",
            default=[0],
            metavar="T,T",
            help="total CPU threads; 0 (default) is every core",
        )
        timing.add_argument(
            "--streams", type=ListOf(int), default=[1], metavar="S,S", help="requests at once (default: 1)"
        )
        parser.set_defaults(threads=0, batch=1)
    else:
        timing.add_argument("--threads", type=int, default=0, help="CPU threads; 0 (default) is every core")
        timing.add_argument(
            "--batch-size",
            "--batch",
            type=int,
            dest="batch",
            default=1,
            help="images a timed call (default: 1)",
        )
    timing.add_argument("--quick", action="store_true", help="short timing, as behind the sliders")
    timing.add_argument("--seed", type=int, default=0, help="of image draws and timing order (default: 0)")


def add_recipe_options(parser: argparse.ArgumentParser, amounts: bool = True) -> None:
    """Without ``amounts`` where a command has options of its own for several of them."""
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--recipe",
        metavar="JSON",
        help="a recipe as JSON, such as a result has: the path of a file, or the text itself; in place of "
        "the other options for pruning and quantizing",
    )
    recipe.add_argument(
        "--prune", metavar="METHOD", help=f"pruning method: {_named(PRUNERS)} (default: magnitude)"
    )
    if amounts:
        recipe.add_argument("--sparsity", type=float, metavar="S", help=SPARSITY)
        recipe.add_argument("--threshold", type=float, metavar="T", help="remove weights with |w| <= T")
    usual = "; ".join(f"{pruner.name}: {pruner.allocation}" for pruner in PRUNERS.values())
    recipe.add_argument(
        "--allocation",
        help=f"sparsity allocation over layers: {', '.join(ALLOCATIONS)} (default: {usual})",
        metavar="HOW",
    )
    recipe.add_argument("--scope", help=argparse.SUPPRESS)
    recipe.add_argument(
        "--pattern",
        help=f"which weights go together: {', '.join(PATTERNS)} (default: {PruneSpec().pattern})",
        metavar="P",
    )
    recipe.add_argument("--snap", type=int, metavar="N", help="channels left: a multiple of 1, 8 or 16")
    recipe.add_argument(
        "--match",
        action="store_true",
        help="give layers' outputs their mean and variance back where it helps (batch-norm re-estimation)",
    )
    recipe.add_argument(
        "--best-effort",
        type=int,
        metavar="SECONDS",
        help=f"repair what was pruned or coarsely rounded for up to so many seconds ({EFFORT_SECONDS} "
        f"are usual, {MAX_EFFORT_SECONDS} the most), and keep the best",
    )
    recipe.add_argument(
        "--finetune",
        type=int,
        metavar="STEPS",
        help="teach the pruned network to answer as the dense one, in at most "
        f"{MAX_FINETUNE_STEPS:,} steps of 16 images (half a second each for photographs on two cores)",
    )
    recipe.add_argument("--train", type=float, help=argparse.SUPPRESS)
    recipe.add_argument(
        "--rounding", metavar="METHOD", help=f"rounding method: {_named(QUANTIZERS)} (default: nearest)"
    )
    equalising = [quantizer.name for quantizer in QUANTIZERS.values() if "equalise" in quantizer.options]
    recipe.add_argument(
        "--equalise",
        action="store_true",
        help="give channels one range in the layer that makes them and the one that reads "
        f"({' or '.join(equalising)} only)",
    )
    if amounts:
        recipe.add_argument(
            "--weight-bits",
            type=int,
            help=f"bits of a weight: {', '.join(map(str, WEIGHT_BITS))} (default: 32)",
            metavar="B",
        )
    else:
        parser.set_defaults(sparsity=None, threshold=None, weight_bits=None)
    recipe.add_argument(
        "--average-bits", type=float, metavar="B", help="average bits of a weight, allocated by sensitivity"
    )
    recipe.add_argument(
        "--activation-bits",
        type=int,
        help=f"bits of activations: {', '.join(map(str, ACTIVATION_BITS))} (default: 32); 8 and "
        "8-bit weights: int8",
        metavar="B",
    )
    recipe.add_argument(
        "--granularity",
        help=f"weights that share a quantization grid: {', '.join(GRANULARITIES)} (default: channel)",
        metavar="G",
    )
    asymmetric = [
        f"{quantizer.name} below {quantizer.asymmetric_below} bits"
        for quantizer in QUANTIZERS.values()
        if quantizer.asymmetric_below
    ]
    recipe.add_argument(
        "--asymmetric",
        action="store_true",
        help=f"quantization grids with a zero point (usual for {', '.join(asymmetric)})",
    )
    recipe.add_argument(
        "--symmetric", action="store_true", help="quantization grids without a zero point (usual otherwise)"
    )
    usual = "; ".join(f"{quantizer.name}: {quantizer.range}" for quantizer in QUANTIZERS.values())
    recipe.add_argument(
        "--range", help=f"range of a quantization grid: {', '.join(RANGES)} (default: {usual})", metavar="R"
    )
    recipe.add_argument(
        "--precision",
        help=f"what layers outside int8 compute in: {', '.join(PRECISIONS)} (default: f32)",
        metavar="P",
    )


def check_alone(
    options: argparse.Namespace,
    add_options: Callable[[argparse.ArgumentParser], None],
    command: str,
    allowed: Collection[str],
) -> None:
    """Raises InputError for what is given beside ``--resume``, which goes on with what was asked, but
    ``allowed``."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    usual = vars(parser.parse_args([]))
    given = [
        name
        for name, value in usual.items()
        if name not in ("resume", *allowed) and getattr(options, name) != value
    ]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" if name != "model" else "a model" for name in given)
        raise InputError(
            f"--resume goes on with what was asked, and {words} would change it: leave that out, or ask anew "
            f"with `paretoscope {command}`, where what was measured is at hand"
        )


SCOPES = {"layer": "uniform", "global": "global"}
"""What ``--scope`` says, as an allocation."""

RECIPE_OPTIONS = (
    *("best_effort", "finetune", "train"),
    *("prune", "sparsity", "threshold", "allocation", "scope", "pattern", "snap", "match"),
    *("rounding", "weight_bits", "average_bits", "activation_bits", "granularity", "asymmetric", "symmetric"),
    *("range", "precision", "equalise"),
)


def recipe_to_run(options: argparse.Namespace) -> Recipe:
    """:func:`recipe_of`, with a line on standard error for options that have no effect on it, such as a range
    of grids where nothing is rounded."""
    recipe = recipe_of(options)
    names = [f"--{name.replace('_', '-')}" for name in _of_no_effect(options, recipe)]
    if names:
        verb = "has" if len(names) == 1 else "have"
        said = f"no effect on this recipe ({recipe.canonical().describe()})"
        print(f"paretoscope: {', '.join(names)} {verb} {said}", file=sys.stderr)
    return recipe


def _of_no_effect(options: argparse.Namespace, recipe: Recipe) -> list[str]:
    """The given options without which the recipe says something else, and does the same."""
    found: list[str] = []
    if options.recipe is not None:
        return found
    for name in _given_of(options):
        none = False if getattr(options, name) is True else None
        with suppress(InputError):  # without it there is no recipe
            without = recipe_of(argparse.Namespace(**vars(options) | {name: none}))
            if without != recipe and without.canonical() == recipe.canonical():
                found.append(name)
    return found


def _given_of(options: argparse.Namespace) -> list[str]:
    return [name for name in RECIPE_OPTIONS if not any(getattr(options, name) is no for no in (None, False))]


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe of a file, or of the options; of both would leave open which one counts."""
    if options.recipe is not None:
        if given := _given_of(options):
            raise InputError(
                f"--recipe and --{given[0].replace('_', '-')} both say what to do: change the file, or leave "
                "it out"
            )
        is_text = options.recipe.lstrip().startswith("{")
        return Recipe.from_json(
            options.recipe.encode()
            if is_text
            else read_file(options.recipe, "that holds a recipe, or its text")
        )
    if options.scope is not None and options.allocation is not None:
        raise InputError("--scope is an older word for --allocation: give only one of them")
    if options.scope not in (None, *SCOPES):
        raise unknown("scope", options.scope, SCOPES)
    if options.train and options.finetune:
        raise InputError("--train is an older way to say --finetune, in seconds: give only --finetune")
    if options.symmetric and options.asymmetric:
        raise InputError("--symmetric and --asymmetric exclude each other: give only one of them")
    pruner = pruner_info(_given(options.prune, PruneSpec().method))
    quantizer = quantizer_info(_given(options.rounding, QuantizeSpec().method))
    bits = _given(options.average_bits, _given(options.weight_bits, 32))
    symmetric = best_grid(quantizer.name, bits)
    return Recipe(
        PruneSpec(
            pruner.name,
            options.sparsity,
            options.threshold,
            allocation=_given(options.allocation, SCOPES.get(options.scope, pruner.allocation)),
            pattern=_given(options.pattern, "unstructured"),
            snap=_given(options.snap, 1),
            match=options.match,
        ),
        QuantizeSpec(
            quantizer.name,
            weight_bits=_given(options.weight_bits, 32),
            average_bits=options.average_bits,
            activation_bits=_given(options.activation_bits, 32),
            granularity=_given(options.granularity, "channel"),
            symmetric=options.symmetric or (symmetric and not options.asymmetric),
            equalise=options.equalise,
            range=_given(options.range, quantizer.range),
            precision=_given(options.precision, "f32"),
        ),
        finetune_steps=steps_of_seconds(options.train) if options.train else options.finetune or 0,
        effort_seconds=options.best_effort or 0,
    )


def _given(value: Any, default: Any) -> Any:
    """The option, or what holds without it. (0 was given too, and is for the recipe to refuse.)"""
    return default if value is None else value


def read_file(path: str, which: str) -> bytes:
    """Raises InputError, which asks for a file ``which`` is meant."""
    try:
        return expand(path).read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path} ({error.strerror}): give a file {which}") from error


def request_of(options: argparse.Namespace, recipe: Recipe) -> Request:
    return Request(options.model, recipe.canonical(), options.engine, data_of(options), settings_of(options))


def data_of(options: argparse.Namespace) -> DataSpec:
    return DataSpec(
        path=_absolute(options.data),
        calibration=_absolute(options.calibration),
        class_index=_absolute(options.class_index),
        limit=options.limit,
        seed=options.seed,
    )


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(threads=options.threads, batch=options.batch, quick=options.quick, seed=options.seed)


def _absolute(path: str | None) -> str | None:
    return None if path is None else absolute(path)


def check_writable(option: str, path: Path) -> None:
    """Raises InputError where no file can be written: before there is anything to write."""
    # Methods of Path raise where a folder above can't be entered.
    if os.path.isdir(path):
        problem = "it is a folder"
    elif not os.path.isdir(path.parent):
        problem = f"there is no folder {path.parent}"
    elif not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        problem = "permission denied"
    else:
        return
    raise InputError(f"{option} {path} can't be written: {problem}. Give another file")
