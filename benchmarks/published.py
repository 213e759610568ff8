"""Top-1 on ImageNet in the settings of published tables, beside what those tables say.

    python benchmarks/published.py --images VALIDATION --calibration TRAINING [--models NAME,...] [--json]
    python benchmarks/published.py --stand-ins [--json]

For whoever has ImageNet: folders of photographs by class, the validation set, of which 10,000 are scored, and
a few hundred of the training set to calibrate on, which are taken without their labels. torchvision's weights
are downloaded where they are not kept yet. Rows that are ``quoted`` are other people's figures, from their
papers, on all 50,000 validation images; all others are measured here.

``--stand-ins`` runs small networks of the same kinds with random weights on random images in their place: it
shows that all of it runs, and its accuracies say nothing.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from compression import chosen, images_of, pruned, right, rounded
from torch import nn
from torchvision.models import MobileNetV2, ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck

from optimizer.data.memory import in_memory
from optimizer.measurement.compressed import compressed_model
from optimizer.measurement.workspace import Workspace, open_model, open_workspace
from optimizer.model.own import own_model
from optimizer.recipe import Recipe
from optimizer.records import DataSpec
from optimizer.system.environment import describe, environment

BISECTIONS = 8
GPTQ = "arXiv 2210.17323"
OBC = "arXiv 2208.11580"
BREVITAS = "Brevitas' table"
STAND_IN_SIDE, STAND_IN_IMAGES, STAND_IN_CLASSES = 32, 32, 10


@dataclass(frozen=True, slots=True)
class Setting:
    """What a published table does to a model: ``recipe``, or pruning until multiplications are ``fewer`` by
    that factor. ``quoted`` are accuracies in per cent by method, from ``source``."""

    what: str
    source: str
    quoted: Mapping[str, float]
    recipe: Recipe | None = None
    fewer: float = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """Accuracy in per cent, on so many ``images``; None where it is quoted from ``source``."""

    model: str
    what: str
    method: str
    accuracy: float
    source: str
    images: int | None = None


def in_bits(bits: int, **quoted: float) -> Setting:
    """Weights alone, in all layers, a scale and a zero point a channel."""
    return Setting(f"{bits} bits, weights alone", GPTQ, quoted, Recipe(quantize=rounded(bits)))


def with_activations(accuracy: float) -> Setting:
    recipe = Recipe(quantize=replace(rounded(4), activation_bits=8))
    return Setting("4-bit weights, 8-bit activations", BREVITAS, {"Brevitas": accuracy}, recipe)


def fewer(times: float, **quoted: float) -> Setting:
    """Single weights pruned, until so many times fewer are multiplied."""
    return Setting(f"{times:g} times fewer multiplications", OBC, quoted, fewer=times)


TABLES: dict[str, tuple[Setting, ...]] = {
    "resnet18": (
        in_bits(4, OBQ=69.56, GPTQ=69.37, BRECQ=69.37, AdaRound=69.34),
        in_bits(3, OBQ=68.69, GPTQ=67.88, BRECQ=68.47),
        with_activations(68.94),
    ),
    "resnet50.IMAGENET1K_V1": (
        in_bits(4, OBQ=75.72, GPTQ=75.71, BRECQ=75.88, AdaRound=75.84),
        in_bits(3, OBQ=75.24, GPTQ=74.87, BRECQ=75.32),
        fewer(2, ExactOBS=75.64, AdaPrune=75.53, magnitude=74.86),
        fewer(3, ExactOBS=75.01, AdaPrune=74.47, magnitude=71.44),
        fewer(4, ExactOBS=74.05, AdaPrune=72.39, magnitude=64.84),
    ),
    "mobilenet_v2.IMAGENET1K_V1": (with_activations(54.79),),
    "vit_b_32": (with_activations(75.53),),
}
STAND_INS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(BasicBlock, [1, 1, 1, 1], STAND_IN_CLASSES),
    "resnet50.IMAGENET1K_V1": lambda: ResNet(Bottleneck, [1, 1, 1, 1], STAND_IN_CLASSES),
    "mobilenet_v2.IMAGENET1K_V1": lambda: MobileNetV2(STAND_IN_CLASSES, width_mult=0.25),
    "vit_b_32": lambda: VisionTransformer(STAND_IN_SIDE, 8, 2, 2, 32, 64, num_classes=STAND_IN_CLASSES),
}


def stand_in(model: str) -> Workspace:
    """With random weights, on noise; labels are what the network answers."""
    torch.manual_seed(0)
    shape = (3, STAND_IN_SIDE, STAND_IN_SIDE)
    module, images = STAND_INS[model]().eval(), torch.randn(STAND_IN_IMAGES, *shape)
    with torch.inference_mode():
        labels = module(images).argmax(1)
    return Workspace(
        open_model(own_model(module, shape)), given=in_memory((images, labels), torch.randn(16, *shape))
    )


def multiplications(workspace: Workspace, recipe: Recipe) -> float:
    """As a share of the uncompressed network's."""
    times, weights = workspace.model.multiplications, compressed_model(workspace, recipe).weights
    left = sum(times[name] * int(one.mask.sum()) for name, one in weights.items())
    return left / sum(times[name] * one.mask.numel() for name, one in weights.items())


def thinned(workspace: Workspace, times: float) -> Recipe:
    """Pruned until so many times fewer weights are multiplied, found by bisection."""
    low, high = 0.0, 0.98
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = multiplications(workspace, Recipe(pruned(middle))) <= 1 / times
        low, high = (low, middle) if enough else (middle, high)
    return Recipe(pruned(high))


def rows_of(model: str, workspace: Workspace) -> list[Row]:
    images, ours = images_of(workspace), "Paretoscope"
    count = len(images.labels)

    def scored(recipe: Recipe) -> float:
        return 100 * right(workspace, compressed_model(workspace, recipe), images) / count

    rows = [Row(model, "uncompressed", ours, scored(Recipe()), "measured", count)]
    for setting in TABLES[model]:
        recipe = setting.recipe or thinned(workspace, setting.fewer)
        rows.append(Row(model, setting.what, ours, scored(recipe), "measured", count))
        rows += [Row(model, setting.what, *one, setting.source) for one in setting.quoted.items()]
        print("\n".join(_words(row) for row in rows if row.what == setting.what), file=sys.stderr)
    return rows


def _words(row: Row) -> str:
    of = f"quoted, {row.source}" if row.images is None else f"measured on {row.images:,} images"
    return f"{row.model:<28}{row.what:<34}{row.method:<13}{row.accuracy:>7.2f}  {of}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--models", type=chosen("model", TABLES), default=tuple(TABLES))
    parser.add_argument("--stand-ins", action="store_true")
    options = parser.parse_args()
    if not options.stand_ins and not (options.images and options.calibration):
        parser.error("give --images FOLDER and --calibration FOLDER, or --stand-ins")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as home:
        if options.stand_ins:  # nothing of theirs is worth keeping
            os.environ["PARETOSCOPE_HOME"] = home
        for model in options.models:
            if options.stand_ins:
                rows += rows_of(model, stand_in(model))
            else:
                spec = DataSpec(path=str(options.images), calibration=str(options.calibration))
                rows += rows_of(model, open_workspace(model, spec))
    kind = "small networks of random weights on noise" if options.stand_ins else "torchvision's networks"
    if options.json:
        plain = {"networks": kind, "environment": describe(environment()), "rows": [*map(asdict, rows)]}
        print(json.dumps(plain))
    else:
        print("\n".join([f"measured on {kind}:", *(_words(row) for row in rows)]))


if __name__ == "__main__":
    main()
