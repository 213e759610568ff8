"""Makes and scores a recipe of each method, and prints digests of the weights and of the predictions.

    python tests/rerun_recipes.py ENGINE...

Run as a script by ``test_rerun``, in processes of their own. (Not a test.)
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from by_request import build_of, compressed_model, opened

from optimizer.compression.calibration import cache
from optimizer.engine import engine_named
from optimizer.measurement import workspace
from optimizer.methods.engines import ENGINES
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request, Settings

DATA_AWARE = PruneSpec("compensated", 0.6, allocation="measured")
GPTQ = QuantizeSpec("compensated", 3, range="mse", symmetric=False)
MIXED = QuantizeSpec("compensated", average_bits=3, range="mse", symmetric=False)
RECIPES = {
    "magnitude": Recipe(PruneSpec(sparsity=0.6), QuantizeSpec(weight_bits=4)),
    "by sensitivity": Recipe(PruneSpec(sparsity=0.6, allocation="measured")),
    "N:M": Recipe(PruneSpec("compensated", pattern="2:4")),
    "mixed precision": Recipe(quantize=MIXED),
    "channels by magnitude": Recipe(PruneSpec("channels", 0.3, allocation="uniform")),
    "channels by sensitivity": Recipe(PruneSpec("channels", 0.3, allocation="measured", match=True)),
    "batch norm re-estimated": Recipe(PruneSpec(sparsity=0.7, match=True), GPTQ),
    "equalised": Recipe(quantize=QuantizeSpec(weight_bits=4, granularity="tensor", equalise=True)),
    "fine-tuned": Recipe(PruneSpec(sparsity=0.8), QuantizeSpec(weight_bits=8), finetune_steps=6),
    "int8": Recipe(DATA_AWARE, QuantizeSpec(weight_bits=8, activation_bits=8)),
    "data-aware": Recipe(DATA_AWARE, GPTQ),
}
ON_ENGINES = {
    **dict.fromkeys(RECIPES, ("openvino",)),
    "int8": ("openvino", "onnxruntime"),
    "data-aware": tuple(sorted(ENGINES, key="compile".__eq__)),
}
"""Those on several engines come one after the other, and another network last: what an engine prepared (an
export to ONNX takes seconds) is kept for the last few only."""
KEEP_NOTHING = ("onnxruntime", "sparse", "torch")
"""Engines that keep nothing for another process: they make the same of the same weights, whether those were
made anew or read."""


def digest(arrays: Iterable[np.ndarray]) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(array.tobytes())
    return whole.hexdigest()


COMPILED = "fashion-mlp"
"""What torch.compile runs: it takes a tenth of the time that the residual network takes to compile."""


def request(name: str, engine: str = "openvino") -> Request:
    model = COMPILED if engine == "compile" else "fashion-resnet"
    return Request(model, RECIPES[name].canonical(), engine, DataSpec(limit=60), Settings(threads=1))


def main(engines: Sequence[str]) -> None:
    # Calibration takes most of the time, and no other path with more images.
    cache.IMAGES = workspace.STATISTICS_IMAGES = workspace.ACTIVATION_CALIBRATION_IMAGES = 16
    found: dict[str, object] = {"threads": torch.get_num_threads()}
    for name in RECIPES:
        made = compressed_model(request(name)).module.state_dict()
        found[name] = digest(tensor.numpy() for tensor in made.values())
        for engine in ON_ENGINES[name]:
            if engine in engines and engine_named(engine).problem() is None:
                asked = request(name, engine)
                there = opened(asked)
                calibration = there.images_for(asked.recipe)
                runner = build_of(asked)(compressed_model(asked), calibration, threads=1, batch=1)
                scored = runner.score(there.images.evaluation.images.numpy())
                found[f"{name}, predictions on {engine}"] = digest([scored])
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
