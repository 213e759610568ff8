"""A sweep of EfficientNet-Lite0 against the loop that a user would write in a notebook.

    python benchmarks/notebook.py [--json] [--images FOLDER] [--configurations 24]

6 sparsities x 4 bit widths over the photographs of the classes with an odd index, accuracy and size. The
loop copies the model, prunes with ``torch.nn.utils.prune``, fake-quantizes the weights and scores in eager
mode at batch 32, and again at the batch size at which eager mode is fastest here. It is given the model and
the images as tensors; ours pays for loading, reading and converting inside. All take turns, configuration by
configuration.
"""

import argparse
import copy
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from optimizer.data.loading import load_images
from optimizer.measurement.experiment import score
from optimizer.measurement.workspace import open_workspace
from optimizer.model.catalogue import load
from optimizer.model.sources.imagenet import wordnet_ids
from optimizer.records import DataSpec, Request
from optimizer.search.sweep import grid
from optimizer.system.environment import describe, environment

T = TypeVar("T")
MODEL = "efficientnet-lite0"
SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
BITS = (32, 8, 6, 4)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample"


@torch.no_grad()
def notebook(
    model: nn.Module, sparsity: float | None, bits: int, images: Tensor, batch: int
) -> tuple[Tensor, int]:
    """Predictions ``[N]`` and the bytes of the saved weights, as a notebook would get them."""
    variant = copy.deepcopy(model).eval()
    layers = [module for module in variant.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if sparsity:
        weights = [(layer, "weight") for layer in layers]
        prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=sparsity)
        for layer in layers:
            prune.remove(layer, "weight")
    if bits < 32:
        for layer in layers:
            top = 2 ** (bits - 1) - 1
            scale = (layer.weight.flatten(1).abs().amax(1) / top).clamp(min=1e-12)
            zero = torch.zeros_like(scale, dtype=torch.int32)
            layer.weight.copy_(
                torch.fake_quantize_per_channel_affine(layer.weight, scale, zero, 0, -top, top)
            )
    file = io.BytesIO()
    torch.save(variant.state_dict(), file)
    predictions = torch.cat([variant(part).argmax(1) for part in images.split(batch)])
    return predictions, file.tell()


def timed(function: Callable[..., T], *arguments: object) -> tuple[T, float]:
    """What a function returns, and the seconds it took."""
    started = time.perf_counter()
    return function(*arguments), time.perf_counter() - started


def fastest_batch(model: nn.Module, images: Tensor) -> int:
    """The batch size at which eager mode scores 64 images fastest, best of three."""
    sample = images[:64]
    seconds = {
        batch: min(timed(notebook, model, 0, 32, sample, batch)[1] for _ in range(3)) for batch in BATCHES
    }
    return min(seconds, key=seconds.__getitem__)


def halves(photographs: Path, folder: Path) -> DataSpec:
    """Folders of links: classes with an odd index are evaluated, those with an even one calibrate."""
    both = folder / "even", folder / "odd"
    for half in both:
        half.mkdir()
    for index, wordnet_id in enumerate(wordnet_ids()):
        source = photographs.resolve() / wordnet_id
        if source.is_dir():
            (both[index % 2] / wordnet_id).symlink_to(source, target_is_directory=True)
    return DataSpec(path=str(both[1]), calibration=str(both[0]))


def ours(request: Request) -> tuple[Tensor, float, int]:
    """Predictions ``[N]``, accuracy and bytes of the file."""
    scored = score(open_workspace(request.model, request.data), request)
    accuracy = scored.accuracy.outcomes.mean()
    return torch.from_numpy(scored.logits.argmax(1)), accuracy, scored.inspection.size.file_bytes


def compare(data: DataSpec, configurations: int) -> dict[str, object]:
    requests = grid(Request(MODEL, data=data), SPARSITIES, BITS)
    chosen = [requests[i] for i in np.linspace(0, len(requests) - 1, configurations).round().astype(int)]
    loaded = load(MODEL)
    evaluation = load_images(loaded, data).evaluation.images
    model = loaded.module
    best = fastest_batch(model, evaluation)
    loops = {"loop at batch 32": 32, "loop at its best batch": best}
    seconds = dict.fromkeys(["paretoscope", *loops], 0.0)
    agree = images = 0
    for number, request in enumerate(chosen, 1):
        recipe = request.recipe
        (found, _, _), elapsed = timed(ours, request)
        seconds["paretoscope"] += elapsed
        for name, batch in loops.items():
            (expected, _), elapsed = timed(
                notebook, model, recipe.prune.sparsity, recipe.quantize.weight_bits, evaluation, batch
            )
            seconds[name] += elapsed
        agree += int((found == expected).sum())
        images += len(found)
        print(f"{number} of {len(chosen)}: {recipe.describe()} {seconds}", file=sys.stderr)
    return {
        "configurations": len(chosen),
        "images": len(evaluation),
        "threads": torch.get_num_threads(),
        "best_batch": best,
        "seconds": seconds,
        "times_faster_than_batch_32": seconds["loop at batch 32"] / seconds["paretoscope"],
        "times_faster_than_best_batch": seconds["loop at its best batch"] / seconds["paretoscope"],
        "same_predictions": agree / images,
        "environment": describe(environment()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS, help="folder of WordNet-id class folders")
    parser.add_argument("--configurations", type=int, default=len(SPARSITIES) * len(BITS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.images.is_dir():
        sys.exit(f"{options.images} is not there: give --images FOLDER with one WordNet-id subfolder a class")
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(halves(options.images, Path(folder)), options.configurations)
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
