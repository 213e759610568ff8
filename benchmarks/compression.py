"""Accuracy that compression keeps, beside what other libraries keep on the same images.

    python benchmarks/compression.py [--json] [--images FOLDER] [--bundled] \\
        [--recipes NAME,...] [--peers NAME,...]

EfficientNet-Lite0; calibration on 256 photographs of the classes with an even index, evaluation on the 500 of
those with an odd one, no training. Seconds are processor seconds of one thread for making the weights; the
statistics of the calibration images, made once, are apart, and nothing else that one row works out is there
for the next. Where activations are rounded as well, the engine's conversion and its ranges are included, as
they are for NNCF. ``--bundled`` adds every bundled model on its 10,000 test images.

``--recipes`` and ``--peers`` take names from the tables, or ``none``. Brevitas and the Model Compression
Toolkit hold other packages back, so each has an environment of its own, with paretoscope and that one in it::

    pip install 'paretoscope[imagenet]' brevitas
    python benchmarks/compression.py --recipes none --peers brevitas

and the same with model-compression-toolkit and ``--peers mct``. What isn't installed is left out, and said.
Ends with 1 without the photographs, or where none of the ``--peers`` ran.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from notebook import MODEL, PHOTOGRAPHS, halves
from peers import PEERS, Images, output_aside
from torch import nn

from optimizer.compression.apply import CompressedModel
from optimizer.engine import Runner
from optimizer.errors import unknown
from optimizer.measurement.compressed import build_of, compressed_model
from optimizer.measurement.workspace import Workspace, open_workspace
from optimizer.model.layers import walk
from optimizer.recipe import EFFORT_SECONDS, Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec
from optimizer.system.environment import describe, environment, threads_available
from optimizer.system.paths import HOME_VARIABLE, home

BUNDLED = ("fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit")


def pruned(sparsity: float) -> PruneSpec:
    return PruneSpec("compensated", sparsity, allocation="measured")


def narrowed(ratio: float) -> Recipe:
    return Recipe(PruneSpec("channels", ratio, allocation="measured"))


def rounded(bits: int | None = None, average: float | None = None) -> QuantizeSpec:
    return QuantizeSpec("compensated", bits or 32, average_bits=average, symmetric=False, range="mse")


RECIPES = {
    "50 %": Recipe(pruned(0.5)),
    "60 %": Recipe(pruned(0.6)),
    "70 %": Recipe(pruned(0.7)),
    "2:4": Recipe(PruneSpec("compensated", pattern="2:4")),
    "4 bits": Recipe(quantize=rounded(4)),
    "3 bits": Recipe(quantize=rounded(3)),
    "4 average bits": Recipe(quantize=rounded(average=4)),
    "3 average bits": Recipe(quantize=rounded(average=3)),
    "8 bits int8 kernels": Recipe(quantize=QuantizeSpec("compensated", 8, activation_bits=8, range="mse")),
    "50 % and 4 bits": Recipe(pruned(0.5), rounded(4)),
    "10 % of channels": narrowed(0.1),
    "20 % of channels": narrowed(0.2),
    "50 % by magnitude": Recipe(PruneSpec(sparsity=0.5)),
    "50 % by magnitude batch norm re-estimated": Recipe(PruneSpec(sparsity=0.5, match=True)),
    "2:4 by magnitude": Recipe(PruneSpec(pattern="2:4")),
    "4 bits to nearest": Recipe(quantize=QuantizeSpec(weight_bits=4)),
    "4 bits to nearest equalised": Recipe(quantize=QuantizeSpec(weight_bits=4, equalise=True)),
}
RECIPES |= {
    f"{name} best effort": replace(RECIPES[name], effort_seconds=EFFORT_SECONDS)
    for name in (
        *("50 %", "60 %", "70 %", "2:4", "4 bits", "3 bits", "50 % and 4 bits"),
        *("4 average bits", "3 average bits", "20 % of channels"),
    )
}
DEPTHWISE_IN_FLOAT = {f"{name} depthwise in float": RECIPES[name] for name in ("4 bits", "3 bits")}
"""The setting that other libraries keep most in."""
ON_BUNDLED = (
    "50 %",
    "4 bits",
    "3 bits",
    "50 % and 4 bits",
    "50 % by magnitude",
    "50 % by magnitude batch norm re-estimated",
    "4 bits to nearest",
    "4 bits to nearest equalised",
)


@dataclass(frozen=True, slots=True)
class Row:
    """What one configuration kept of ``total`` images, and the processor seconds of making it."""

    model: str
    what: str
    correct: int
    total: int
    seconds: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


def images_of(workspace: Workspace) -> Images:
    evaluation = workspace.images.evaluation
    assert evaluation.labels is not None
    return Images(evaluation.images, evaluation.labels.numpy(), workspace.statistics_images)


def recipe_for(model: nn.Module, name: str) -> Recipe:
    """One of RECIPES or of DEPTHWISE_IN_FLOAT."""
    if name in RECIPES:
        return RECIPES[name]
    depthwise = (layer.name for layer in walk(model) if layer.kind == "depthwise convolution")
    layers = tuple(Override(layer, weight_bits=32) for layer in depthwise)
    return replace(DEPTHWISE_IN_FLOAT[name], layers=layers)


def rows_of(model: str, spec: DataSpec, names: Collection[str]) -> list[Row]:
    """The statistics first, then every recipe by them alone, made and scored as everywhere in the product."""
    workspace = open_workspace(model, spec)
    images = images_of(workspace)
    correct = right(workspace, compressed_model(workspace, Recipe()), images)
    started = time.process_time()
    workspace.statistics()
    statistics_seconds = time.process_time() - started
    total = len(images.labels)
    rows = [
        Row(model, "uncompressed", correct, total, 0.0),
        Row(model, "(calibration statistics)", correct, total, statistics_seconds),
    ]
    for name in names:
        recipe = recipe_for(workspace.model.module, name)
        with anew(workspace) as fresh:
            started = time.process_time()
            compressed = compressed_model(fresh, recipe)
            seconds = time.process_time() - started
            runner = runner_of(fresh, compressed)
            if recipe.quantize.rounds_activations:  # by ranges that are found as it is built
                seconds = time.process_time() - started
        rows.append(Row(model, name, answered(runner, images), total, seconds))
        print(_words(rows[-1]), file=sys.stderr)
    return rows


@contextmanager
def anew(workspace: Workspace) -> Iterator[Workspace]:
    """The workspace with its statistics and nothing else that earlier recipes left, in memory or on disk:
    pruned weights, what rounding aims at, channel plans, converted graphs."""
    before = home()
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        shutil.copytree(before / "studies", Path(folder, "studies"))
        os.environ[HOME_VARIABLE] = folder
        try:
            fresh = replace(workspace, model=replace(workspace.model))
            fresh.statistics()
            yield fresh
        finally:
            os.environ[HOME_VARIABLE] = str(before)


def right(workspace: Workspace, compressed: CompressedModel, images: Images) -> int:
    """Right answers on OpenVINO."""
    return answered(runner_of(workspace, compressed), images)


def runner_of(workspace: Workspace, compressed: CompressedModel) -> Runner:
    build = build_of(workspace, compressed.recipe, "openvino")
    made = build(compressed, workspace.activation_images, threads=threads_available(), batch=1)
    return made.ready()


def answered(runner: Runner, images: Images) -> int:
    """How many of the images it answers rightly."""
    answers = runner.score(images.evaluation.numpy()).argmax(1)
    return int((answers == images.labels).sum())


def peer_rows(images: Images, names: Collection[str]) -> list[Row]:
    target, rows = open_workspace(MODEL).model, []
    for library in (PEERS[name] for name in names):
        for what, run in library.rows.items():
            try:
                with output_aside():
                    importlib.import_module(library.needs)
                    started = time.process_time()
                    answers = run(target, images)
                    seconds = time.process_time() - started
                with torch.no_grad():
                    parts = [answers(part).argmax(1) for part in images.evaluation.split(8)]
            except Exception as error:  # other people's code, on versions that it may not know
                print(f"{what}: left out, {type(error).__name__}: {error}", file=sys.stderr)
                continue
            correct = int((torch.cat(parts).numpy() == images.labels).sum())
            rows.append(Row(MODEL, what, correct, len(images.labels), seconds))
            print(_words(rows[-1]), file=sys.stderr)
    return rows


def chosen(kind: str, known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads ``a,b`` or ``none``, for argparse."""

    def read(text: str) -> tuple[str, ...]:
        names = () if text == "none" else tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{unknown(kind, name, known)}, or none")
        return names

    return read


def _words(row: Row) -> str:
    return f"{row.model:<20}{row.what:<44}{row.accuracy:>8.4f}{row.seconds:>9.1f} s"


def not_measured(options: argparse.Namespace, rows: Collection[Row]) -> list[str]:
    """A sentence for what was asked for and is not in the rows."""
    if (options.recipes or options.peers) and not options.images.is_dir():
        return [f"no photographs at {options.images}: give --images FOLDER"]
    asked = {what for name in options.peers for what in PEERS[name].rows}
    if asked and asked.isdisjoint(row.what for row in rows):
        return [f"nothing to compare with: none of {', '.join(options.peers)} ran"]
    return []


def measured(options: argparse.Namespace, place: Path) -> list[Row]:
    rows: list[Row] = []
    if options.images.is_dir():
        spec = halves(options.images, place)
        rows += rows_of(MODEL, spec, options.recipes) if options.recipes else []
        rows += peer_rows(images_of(open_workspace(MODEL, spec)), options.peers) if options.peers else []
    if options.bundled:
        names = [name for name in ON_BUNDLED if name in options.recipes]
        for model in BUNDLED if names else ():
            rows += rows_of(model, DataSpec(), names)
    return rows


def main() -> None:
    known = (*RECIPES, *DEPTHWISE_IN_FLOAT)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--recipes", type=chosen("recipe", known), default=known)
    parser.add_argument("--peers", type=chosen("peer", PEERS), default=tuple(PEERS))
    parser.add_argument("--bundled", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as place:
        os.environ[HOME_VARIABLE] = str(Path(place, "home"))  # statistics of an earlier run take no time
        rows = measured(options, Path(place))
    if options.json:
        plain = [{**asdict(row), "accuracy": row.accuracy} for row in rows]
        print(json.dumps({"environment": describe(environment()), "rows": plain}))
    else:
        print("\n".join(_words(row) for row in rows))
    sys.exit("\n".join(not_measured(options, rows)) or None)


if __name__ == "__main__":
    main()
