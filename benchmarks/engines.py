"""Pruned networks on kernels that skip zeros, against the same network dense on OpenVINO.

    python benchmarks/engines.py [--parts networks kernel int8] [--models NAME ...] [--seconds 20] [--json]

Three parts, each interleaved in one series, batch 1 and one thread, with 95 % intervals of the ratios:

- networks: every 1x1 and 3x3 convolution and linear layer loses the same share of its weights by magnitude
  (depthwise convolutions keep theirs); OpenVINO float32, whole, is the baseline, built once before the
  sparse ones and once after. ``resnet50`` has random weights: how long it takes does not depend on them.
- kernel: the sparse path alone on these networks' layers, each shape once, against torch's float32 matrix
  product; how straight time is in the weights that survive (r squared, 50 % to 98 % removed); and how far
  this machine's memory lets it come.
- int8: each model in OpenVINO's int8 kernels, as this package builds it against as NNCF does by itself. Ours
  is built twice, before NNCF's and after: what is built later may be some 3 % slower, and so much is allowed.

A ratio counts by the lower end of its interval, a noisy one not at all. Ends with 1 where one falls short of
what is claimed.
"""

import argparse
import copy
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from scipy import stats
from torch import Tensor, nn

from optimizer.analysis.statistics import LatencyVerdict
from optimizer.compression.apply import CompressedModel, compress
from optimizer.engine import engine_named
from optimizer.engine.base import Runner
from optimizer.engine.kernels import Kernels, Step, kernels
from optimizer.engine.kernels.matrix import DENSE, chain
from optimizer.engine.kernels.plan import Choice, plan
from optimizer.engine.kernels.trace import trace
from optimizer.errors import InputError
from optimizer.measurement.latency import EFFORTS, time_interleaved
from optimizer.model.catalogue import load
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import hooked, walk
from optimizer.progress import quiet
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Execution, Settings
from optimizer.system.environment import describe, environment
from optimizer.system.machine_lock import exclusive
from optimizer.system.threads import thread_count

Shape = tuple[int, ...]
THREADS = 1
SHARES = (0.0, 0.5, 0.8, 0.9, 0.95)
NETWORKS = ("efficientnet-lite0", "resnet50", "fashion-mlp")
LEAST = {
    "efficientnet-lite0": {0.5: 1.05, 0.8: 1.6, 0.9: 2.4, 0.95: 3.1},
    "resnet50": {0.5: 1.0, 0.8: 2.0, 0.9: 3.3, 0.95: 5.0},
    "fashion-mlp": {0.5: 1.0, 0.95: 3.0},
}
KERNEL_SHARES = (0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
KERNEL_LEAST = {0.65: 1.0, 0.8: 2.0, 0.9: 3.5, 0.95: 6.0}
MOST = max(KERNEL_LEAST)
LARGE = 1 << 18
"""Bytes of inputs and outputs from which on memory, and not a nearby cache, may set the time."""
STRAIGHT = 0.98
INT8_LEAST = 0.97
"""Of NNCF's speed: as fast as it, but for what the order of building may make."""
INT8_MODELS = ("fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit", "efficientnet-lite0")


def network(name: str) -> tuple[nn.Module, Shape]:
    """A model with batch norm folded, and the shape of its input."""
    if name == "resnet50":
        import torchvision

        torch.manual_seed(0)
        return fold_batch_norm(torchvision.models.resnet50(weights=None))[0], (3, 224, 224)
    loaded = load(name)
    return fold_batch_norm(loaded.module)[0], loaded.card.input_shape


@torch.no_grad()
def pruned(model: nn.Module, share: float) -> CompressedModel:
    """Every layer but depthwise convolutions loses the same share of its weights, the smallest."""
    compressed = compress(model, Recipe())
    for layer in walk(compressed.module):
        if layer.kind == "depthwise convolution" or not share:
            continue
        gone = round(share * layer.weight.numel())
        limit = layer.weight.abs().flatten().kthvalue(gone).values
        layer.weight[layer.weight.abs() <= limit] = 0
    return compressed


def compared(
    baselines: tuple[Runner, Runner],
    variants: dict[str, Runner],
    images: np.ndarray,
    seconds: float,
    least: Iterable[float | None],
) -> list[dict[str, Any]]:
    """A row a variant: how many times as fast as the baseline, with its interval, what was noisy, and whether
    the whole interval reaches the ``least`` that is claimed, and can be trusted."""
    effort = replace(EFFORTS[False], seconds=seconds, processes=0)
    series = time_interleaved(baselines, variants, images, Settings(threads=THREADS), effort)
    rows = []
    for (name, told), claimed in zip(series.summaries.items(), least, strict=True):
        low = 1 / told.ratio_high
        rows.append(
            {
                "variant": name,
                "baseline_ms": float(np.median([build.medians_ns for build in series.baseline])) / 1e6,
                "ms": told.median_ns / 1e6,
                "speedup": 1 / told.ratio,
                "low": low,
                "high": 1 / told.ratio_low,
                "verdict": told.verdict,
                "noise": list(told.noise),
                "rounds": told.rounds,
                "least": claimed,
                "reached": claimed is None or (low >= claimed and told.verdict != LatencyVerdict.NOISY),
            }
        )
    return rows


def networks(names: Iterable[str], seconds: float) -> Iterable[dict[str, Any]]:
    for name in names:
        model, shape = network(name)
        images = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))

        def runner(
            engine: str, share: float, model: nn.Module = model, shape: Shape = shape, images: Tensor = images
        ) -> Runner:
            prepared = engine_named(engine).prepare(model, shape)
            return begun(prepared(pruned(model, share), images, threads=THREADS, batch=1), images)

        first = runner("openvino", 0.0)
        variants = {f"{share:.0%}": runner("sparse", share) for share in SHARES}
        dense = first, runner("openvino", 0.0)
        least = [LEAST.get(name, {}).get(share) for share in SHARES]
        for row in compared(dense, variants, images.numpy(), seconds, least):
            yield {"model": name, **row}


def begun(runner: Runner, images: Tensor) -> Runner:
    """After its first call: whatever it compiles or reserves then, it does in its turn."""
    runner.infer(images[:1].numpy())
    return runner


def layers_of(name: str) -> Iterable[tuple[nn.Module, tuple[int, ...], int]]:
    """The layers that the kernels take as matrices, each shape once: a layer, the shape of one input, and the
    pixels of its output."""
    model, shape = network(name)
    found: dict[tuple[int, ...], tuple[nn.Module, tuple[int, ...], int]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pixels = output[0, 0].numel()
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if pixels > 1 and weight.shape[1] > 1:
            key = (len(weight), weight[0].numel(), pixels)
            found.setdefault(key, (layer, tuple(inputs[0].shape), pixels))

    convolutions = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    with hooked(layer.register_forward_hook(note) for layer in convolutions):
        model(torch.zeros(1, *shape))
    return found.values()


def alone(layer: nn.Module, shape: tuple[int, ...], library: Kernels) -> Callable[[], object]:
    """The sparse path of a layer as the engine runs it, by itself and on its fastest tile."""
    module = nn.Sequential(layer)
    planned = plan(trace(module, shape), dict(module.named_parameters()), library)
    (steps,) = (item.work.algorithms for item in planned.items if isinstance(item.work, Choice))
    taken = {}
    for tile in set(steps) - {DENSE}:
        array, shortest = (Step * 1)(steps[tile]), (ctypes.c_int64 * 1)()
        library.functions.time_steps(array, 1, THREADS, 50, shortest)
        taken[shortest[0]] = array
    array = taken[min(taken)]
    return lambda kept=planned: library.functions.run(array, 1, THREADS)  # type: ignore[misc]


def fastest(call: Callable[[], object], seconds: float = 0.01) -> float:
    """The shortest of the calls that fit into the time."""
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
    return best


def kernel(names: Iterable[str], rounds: int = 20) -> Iterable[dict[str, Any]]:
    """Each layer at several shares and torch's product, in turns; the shortest counts.

    A layer is a matrix over unrolled inputs, as torch multiplies it. A window is also timed as the engine
    runs it, its taps found in the planes in place: it reads a ninth of the memory, but across cache lines.
    Where inputs and outputs are large, beside it what memory alone takes at the largest share that has a
    figure to reach: torch reads once what the surviving weights multiply, and fills the output once.
    """
    library = kernels()
    for name in names:
        for layer, shape, pixels in layers_of(name):
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(layer.weight.shape, generator=generator)  # type: ignore[arg-type]
            thinned = {
                share: weight * (torch.rand(weight.shape, generator=generator) >= share)
                for share in KERNEL_SHARES
            }
            matrix = weight.flatten(1)
            unrolled = torch.randn(matrix.shape[1], pixels, generator=generator)
            read = unrolled[thinned[MOST].flatten(1).any(0)]
            product = torch.empty(len(matrix), pixels)
            calls: dict[Any, Callable[[], object]] = {
                "dense": partial(torch.mm, matrix, unrolled),
                "read": read.sum,
                "fill": partial(product.fill_, 0.0),
            }
            for share, thin in thinned.items():
                calls["matrix", share] = chain([thin.flatten(1)], unrolled.numpy(), library, THREADS)
                if weight[0, 0].numel() > 1:
                    calls["in place", share] = alone(with_weight(layer, thin), shape, library)
            taken = dict.fromkeys(calls, float("inf"))
            for _ in range(rounds):
                taken = {share: min(taken[share], fastest(call)) for share, call in calls.items()}
            kept = [int(thin.count_nonzero()) for thin in thinned.values()]
            large = read.nbytes + product.nbytes > LARGE
            for form in dict.fromkeys(call[0] for call in calls if isinstance(call, tuple)):
                spent = {share: taken[form, share] for share in KERNEL_SHARES}
                straight = float(stats.linregress(kept, list(spent.values())).rvalue ** 2)
                yield {
                    "model": name,
                    "shape": f"{len(matrix)} x {matrix.shape[1]} x {pixels}",
                    "form": form,
                    "dense_us": taken["dense"] * 1e6,
                    "r_squared": straight,
                    **{f"{share:.0%}": taken["dense"] / spent[share] for share in KERNEL_SHARES},
                    "at_most": taken["dense"] / (taken["read"] + taken["fill"]) if large else None,
                    "reached": straight >= STRAIGHT
                    and all(taken["dense"] / spent[share] >= least for share, least in KERNEL_LEAST.items()),
                }


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    layer = copy.deepcopy(layer)
    layer.weight = nn.Parameter(weight)
    return layer


def by_nncf(model: nn.Module, shape: Shape, images: Tensor) -> Runner:
    """What NNCF's documentation has one do: convert, quantize, compile."""
    graph = openvino.convert_model(model, example_input=images[:1])
    graph.reshape([1, *shape])
    dataset = nncf.Dataset([images[index : index + 1].numpy() for index in range(len(images))])
    quantized = nncf.quantize(graph, dataset, subset_size=len(images))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(quantized, "CPU", {**settings, "INFERENCE_NUM_THREADS": THREADS})
    request = compiled.create_infer_request()

    def infer(batch: np.ndarray) -> np.ndarray:
        logits: np.ndarray = request.infer([batch], share_inputs=True)[0]
        return logits

    return Runner(infer, infer, lambda: Execution((), ()))


def int8(names: Iterable[str], seconds: float) -> Iterable[dict[str, Any]]:
    for name in names:
        model, shape = network(name)
        images = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
        recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
        prepared, compressed = engine_named("openvino").prepare(model, shape), compress(model, recipe)
        ours = {"built first": begun(prepared(compressed, images, threads=THREADS, batch=1), images)}
        theirs = begun(by_nncf(model, shape, images), images), begun(by_nncf(model, shape, images), images)
        ours["built last"] = begun(prepared(compressed, images, threads=THREADS, batch=1), images)
        for row in compared(theirs, ours, images.numpy(), seconds, [INT8_LEAST] * len(ours)):
            yield {"model": name, **row}


def lack(row: dict[str, Any]) -> str:
    """What a row that is not ``reached`` lacks, in words."""
    if "r_squared" not in row:
        noisy = f"; noisy: {row['noise'][0]}" if row["noise"] else ""
        return (
            f"{row['model']}, {row['variant']}: {row['speedup']:.2f}x, of which {row['low']:.2f}x is sure, "
            f"and {row['least']:g}x is claimed{noisy}"
        )
    ends = [(f"x at {share:.0%}", row[f"{share:.0%}"], least) for share, least in KERNEL_LEAST.items()]
    ends.append((" r squared", row["r_squared"], STRAIGHT))
    words = [f"{found:.4g}{what} ({least:g} is claimed)" for what, found, least in ends if found < least]
    return f"{row['model']}, {row['shape']}, {row['form']}: {', '.join(words)}"


def not_reached(found: dict[str, Any]) -> list[str]:
    """A sentence for each claim that is not reached."""
    return [
        f"not reached, {part}: {lack(row)}"
        for part in PARTS
        for row in found.get(part, ())
        if not row["reached"]
    ]


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        mark = "" if row["reached"] else "  <- not reached"
        if "r_squared" in row:
            speedups = "  ".join(
                f"{share} {row[share]:.2f}x" for share in map("{:.0%}".format, KERNEL_SHARES)
            )
            bounded = row["form"] == "matrix" and row["at_most"] is not None
            bound = f"  memory allows {row['at_most']:.1f}x at {MOST:.0%}" if bounded else ""
            print(
                f"{row['model']:20} {row['shape']:18} {row['form']:8} r2 {row['r_squared']:.4f}  "
                f"{speedups}{bound}{mark}"
            )
            continue
        least = f", at least {row['least']:g}" if row["least"] else ""
        noise = f", noisy: {row['noise'][0]}" if row["noise"] else ""
        print(
            f"{row['model']:20} {row['variant']:>5}  {row['ms']:.3f} of {row['baseline_ms']:.3f} ms  "
            f"{row['speedup']:.2f}x ({row['low']:.2f} to {row['high']:.2f}){least}{mark}{noise}"
        )


PARTS = ("networks", "kernel", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", help="in place of each part's own")
    parser.add_argument("--seconds", type=float, default=20.0, help="of one comparison")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.seconds <= 0:
        raise InputError(f"{arguments.seconds:g} seconds are too few: more than 0")
    nncf.set_log_level(40)
    found: dict[str, Any] = {"environment": describe(environment())}
    with exclusive(quiet), thread_count(THREADS), torch.inference_mode():
        if "networks" in arguments.parts:
            found["networks"] = list(networks(arguments.models or NETWORKS, arguments.seconds))
        if "kernel" in arguments.parts:
            found["kernel"] = list(kernel(arguments.models or NETWORKS[:2]))
        if "int8" in arguments.parts:
            found["int8"] = list(int8(arguments.models or INT8_MODELS, arguments.seconds))
    if arguments.json:
        print(json.dumps(found))
    else:
        print(found["environment"])
        for part in arguments.parts:
            print(f"\n{part}")
            show(found[part])
    sys.exit("\n".join(not_reached(found)) or None)


if __name__ == "__main__":
    main()
