"""Accuracy that compression keeps, beside what other libraries keep on the same images.

    python benchmarks/compression.py [--json] [--images FOLDER] [--peers NAME,...] [--bundled]

EfficientNet-Lite0; calibration on 256 photographs of the classes with an even index, evaluation on the 500 of
those with an odd one, no training. Seconds are processor seconds of one thread for making the weights; the
study of the calibration images, made once, is apart. ``--bundled`` adds every bundled model on its 10,000
test images. Peers that need packages of their own (Brevitas, Model Compression Toolkit) are run in an
environment that has them, with ``--peers`` naming only those.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.compress import compress
from optimizer.data import load_images
from optimizer.engines.openvino import prepare
from optimizer.environment import describe, environment
from optimizer.experiment import Subject, subject
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec
from optimizer.studies import IMAGES, make
from optimizer.study import Study

MODEL = "efficientnet-lite0"
BUNDLED = ("fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit")
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample"


def pruned(sparsity: float, effort: str = "fast") -> PruneSpec:
    return PruneSpec("compensated", sparsity, allocation="measured", effort=effort)


def rounded(bits: int | None = None, average: float | None = None) -> QuantizeSpec:
    return QuantizeSpec("compensated", bits or 32, average_bits=average, symmetric=False, range="mse")


RECIPES = {
    "50 %": Recipe(pruned(0.5)),
    "60 %": Recipe(pruned(0.6)),
    "70 %": Recipe(pruned(0.7)),
    "50 %, best effort": Recipe(pruned(0.5, "best")),
    "60 %, best effort": Recipe(pruned(0.6, "best")),
    "70 %, best effort": Recipe(pruned(0.7, "best")),
    "2:4": Recipe(PruneSpec("compensated", pattern="2:4")),
    "2:4, best effort": Recipe(PruneSpec("compensated", pattern="2:4", effort="best")),
    "4 bits": Recipe(quantize=rounded(4)),
    "3 bits": Recipe(quantize=rounded(3)),
    "4 bits on average": Recipe(quantize=rounded(average=4)),
    "3 bits on average": Recipe(quantize=rounded(average=3)),
    "8 bits, int8 kernels": Recipe(quantize=QuantizeSpec("compensated", 8, activation_bits=8, range="mse")),
    "50 % and 4 bits": Recipe(pruned(0.5), rounded(4)),
    "50 % by magnitude": Recipe(PruneSpec(sparsity=0.5)),
    "4 bits to nearest": Recipe(quantize=QuantizeSpec(weight_bits=4)),
}
ON_BUNDLED = ("50 %", "4 bits", "3 bits", "50 % and 4 bits", "50 % by magnitude", "4 bits to nearest")


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


@dataclass(frozen=True)
class Images:
    """Evaluation images with labels, and calibration images; ``[N, C, H, W]`` each."""

    evaluation: Tensor
    labels: np.ndarray
    calibration: Tensor


def images_of(model: str, spec: DataSpec) -> Images:
    datasets = load_images(subject(model).loaded, spec)
    assert datasets.evaluation.labels is not None
    drawn = np.random.default_rng(0).permutation(len(datasets.calibration.images))[:IMAGES]
    return Images(
        datasets.evaluation.images, datasets.evaluation.labels.numpy(), datasets.calibration.images[drawn]
    )


class Scorer:
    """Right answers of recipes of one model."""

    def __init__(self, model: str, images: Images) -> None:
        self.name, self.images, self.target = model, images, subject(model)
        self.build = prepare(self.target.module, self.target.input_shape)

    def right(self, recipe: Recipe, known: Study | None) -> tuple[int, float]:
        started = time.process_time()
        compressed = compress(self.target.module, recipe, self.target.published, known)
        seconds = time.process_time() - started
        runner = self.build(compressed, self.images.calibration[:128], 0, 1)
        answers = runner.score(self.images.evaluation.numpy()).argmax(1)
        return int((answers == self.images.labels).sum()), seconds


def rows_of(model: str, images: Images, names: tuple[str, ...]) -> list[Row]:
    """The study first, then every recipe by it."""
    torch.set_num_threads(1)
    scorer, total = Scorer(model, images), len(images.labels)
    started = time.process_time()
    known = make(scorer.target.module, images.calibration)
    study_seconds = time.process_time() - started
    rows = [Row(model, "uncompressed", *_right_and(scorer, Recipe(), None, total))]
    rows.append(Row(model, "(study of the calibration images)", rows[0].correct, total, study_seconds))
    for name in names:
        rows.append(Row(model, name, *_right_and(scorer, RECIPES[name], known, total)))
        print(_words(rows[-1]), file=sys.stderr)
    return rows


def _right_and(scorer: Scorer, recipe: Recipe, known: Study | None, total: int) -> tuple[int, int, float]:
    correct, seconds = scorer.right(recipe, known)
    return correct, total, seconds


# Peers: the same model, images and calibration. Each gives the module that is scored in torch.


def magnitude_and_batch_norm(sparsity: float) -> Callable[[Subject, Images], nn.Module]:
    """``torch.nn.utils.prune``, global, then batch norm statistics taken anew on the calibration images."""

    def run(target: Subject, images: Images) -> nn.Module:
        from torch.nn.utils import prune

        module = copy.deepcopy(target.loaded.module)
        layers = [one for one in module.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
        weights = [(layer, "weight") for layer in layers]
        prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=sparsity)
        for layer in layers:
            prune.remove(layer, "weight")
        norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        with torch.no_grad():
            for part in images.calibration.split(32):
                module(part)
        return module.eval()

    return run


def nncf_prune(sparsity: float) -> Callable[[Subject, Images], nn.Module]:
    def run(target: Subject, images: Images) -> nn.Module:
        import nncf

        module = copy.deepcopy(target.loaded.module)
        made = nncf.prune(
            module,
            mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
            ratio=sparsity,
            examples_inputs=images.calibration[:1],
        )
        made = nncf.batch_norm_adaptation(
            made, calibration_dataset=nncf.Dataset(images.calibration.split(32))
        )
        pruned_module: nn.Module = made.eval()
        return pruned_module

    return run


def brevitas_gptq(bits: int) -> Callable[[Subject, Images], nn.Module]:
    def run(target: Subject, images: Images) -> nn.Module:
        from brevitas.graph.gptq import gptq_mode
        from brevitas.graph.quantize import layerwise_quantize
        from brevitas.nn import QuantConv2d, QuantLinear
        from brevitas.quant import Int8WeightPerChannelFloatMSE

        kinds = {
            nn.Conv2d: (
                QuantConv2d,
                {"weight_quant": Int8WeightPerChannelFloatMSE, "weight_bit_width": bits},
            ),
            nn.Linear: (
                QuantLinear,
                {"weight_quant": Int8WeightPerChannelFloatMSE, "weight_bit_width": bits},
            ),
        }
        module: nn.Module = layerwise_quantize(copy.deepcopy(target.module), compute_layer_map=kinds)
        module.eval()
        with torch.no_grad(), gptq_mode(module, use_quant_activations=False) as gptq:
            for _ in range(gptq.num_layers):
                for part in images.calibration.split(32):
                    gptq.model(part)
                gptq.update()
        return module

    return run


PEERS: dict[str, dict[str, Callable[[Subject, Images], nn.Module]]] = {
    "torch": {
        f"torch.nn.utils.prune {share:.0%}, batch norm anew": magnitude_and_batch_norm(share)
        for share in (0.5, 0.6, 0.7)
    },
    "nncf": {f"nncf.prune {share:.0%}, batch norm adapted": nncf_prune(share) for share in (0.5, 0.6)},
    "brevitas": {f"Brevitas GPTQ {bits} bits": brevitas_gptq(bits) for bits in (4, 3)},
}


def peer_rows(images: Images, names: list[str]) -> list[Row]:
    target, rows = subject(MODEL), []
    for name in names:
        for what, run in PEERS[name].items():
            started = time.process_time()
            try:
                module = run(target, images)
            except ImportError as error:
                print(f"{what}: left out, {error}", file=sys.stderr)
                continue
            seconds = time.process_time() - started
            with torch.no_grad():
                answers = torch.cat([module(part).argmax(1) for part in images.evaluation.split(8)]).numpy()
            rows.append(Row(MODEL, what, int((answers == images.labels).sum()), len(images.labels), seconds))
            print(_words(rows[-1]), file=sys.stderr)
    return rows


def photographs(folder: Path) -> Images:
    """The two halves of the photographs, by the parity of their class."""
    index = json.loads((folder.parent / "imagenet_class_index.json").read_text())
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as place:
        halves = [Path(place, name) for name in ("even", "odd")]
        for half in halves:
            half.mkdir()
        for wordnet_id, known in index.items():
            source = folder / wordnet_id
            if source.is_dir():
                (halves[known["index"] % 2] / wordnet_id).symlink_to(source)
        return images_of(MODEL, DataSpec(path=str(halves[1]), calibration=str(halves[0])))


def _words(row: Row) -> str:
    return f"{row.model:<20}{row.what:<44}{row.accuracy:>8.4f}{row.seconds:>9.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--peers", default="torch,nncf,brevitas")
    parser.add_argument("--bundled", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    if options.images.is_dir():
        images = photographs(options.images)
        rows += rows_of(MODEL, images, tuple(RECIPES))
        rows += peer_rows(images, [name for name in options.peers.split(",") if name])
    else:
        print(f"no photographs at {options.images}: give --images FOLDER", file=sys.stderr)
    if options.bundled:
        for model in BUNDLED:
            rows += rows_of(model, images_of(model, DataSpec()), ON_BUNDLED)
    if options.json:
        plain = [{**asdict(row), "accuracy": row.accuracy} for row in rows]
        print(json.dumps({"environment": describe(environment()), "rows": plain}))
    else:
        print("\n".join(_words(row) for row in rows))


if __name__ == "__main__":
    main()
