"""Kernels that skip zeros: time in proportion to the weights that survive.

A layer with too few zeros takes the dense path; which one is the faster is measured when the network is
built, layer by layer, in its place among the others, and a network that is faster dense as a whole is left to
OpenVINO. Operations that the kernels don't know run in torch, on the same memory. Everything is float32.
Without kernels, torch's own sparse matrices are used.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel
from optimizer.engine import csr, kernels, openvino
from optimizer.engine.base import (
    Array,
    Build,
    Engine,
    Load,
    Runner,
    Service,
    in_batches,
    one_by_one,
    scoring_batch,
)
from optimizer.engine.faster import is_faster
from optimizer.engine.kernels.network import Network, fixed
from optimizer.engine.kernels.plan import plan
from optimizer.engine.kernels.trace import Trace, trace
from optimizer.engine.realised import TAKES_TIME, simulated
from optimizer.engine.torch import parameters_of, round_inputs, unreached
from optimizer.errors import WorkError
from optimizer.model.examples import examples
from optimizer.model.layers import walk
from optimizer.records import Execution, LayerExecution
from optimizer.system.threads import thread_count

SCORING_ELEMENTS, MAX_BATCH = 160_000, 64
"""Images are scored in batches of about so many input values: one photograph, 64 thumbnails."""
SURELY_SPARSE = 0.25
"""Share of the weights up to which no dense execution of the whole network is tried."""


def prepare(model: nn.Module, input_shape: tuple[int, ...]) -> Build:
    """A network is traced once for each batch; recipes differ in the weights."""
    traced = cache(lambda batch: trace(model, (batch, *input_shape)))

    @cache
    def dense() -> Build | None:
        """Of OpenVINO, where it can run the network."""
        with suppress(WorkError):
            return None if openvino.problem() else openvino.prepare(model, input_shape)
        return None

    def build(compressed: CompressedModel, calibration: Tensor, *, threads: int, batch: int) -> Runner:
        missing = kernels.problem()
        if missing:
            return csr.build(compressed, calibration, threads=threads, batch=batch, why=missing)
        own, kept = _build(compressed, calibration, threads, batch, traced)
        in_float32 = compressed.recipe.quantize.computes_in_float32
        whole = dense() if kept > SURELY_SPARSE and in_float32 else None
        if whole is None:
            return own
        try:
            other = whole(compressed, calibration, threads=threads, batch=batch).ready()
        except WorkError:  # OpenVINO may take this network for a single image only
            return own
        return faster(own, other, examples(model, input_shape, batch).numpy())

    return build


def faster(own: Runner, whole: Runner, images: Array) -> Runner:
    """``own``, unless OpenVINO's dense kernels are faster for the network as a whole.

    So nothing is slower here than dense execution, and a speed-up here is one over the best dense execution
    that there is, not over dense kernels of our own. What is served with another batch size, other threads
    or streams is compared anew. Images are scored by ``own`` in any case: the answers must not depend on who
    was faster.
    """
    serve = partial(_faster_service, own, whole, images)
    with own.session(), whole.session():
        if is_faster(lambda: own.infer(images), lambda: whole.infer(images)):
            return replace(own, serve=serve)
    layers = tuple(
        replace(layer, kernel=f"OpenVINO {layer.kernel}, dense: the fastest here")
        for layer in whole.execution.layers
    )
    execution = Execution(layers, whole.execution.simulated)
    return replace(whole, score=own.score, scored=own.scored, executed=lambda: execution, serve=serve)


def _faster_service(
    own: Runner, whole: Runner, images: Array, *, batch: int, threads: int, streams: int
) -> Service:
    assert own.serve
    assert whole.serve
    ours = own.serve(batch=batch, threads=threads, streams=streams)
    try:
        dense = whole.serve(batch=batch, threads=threads, streams=streams)
    except WorkError:  # OpenVINO may take this network for a single image only
        return ours
    images = images[np.arange(batch) % len(images)]
    with ours.session(), dense.session():
        first = is_faster(lambda: ours.run(images, streams), lambda: dense.run(images, streams))
    return ours if first else dense


def _build(
    compressed: CompressedModel,
    calibration: Tensor,
    threads: int,
    batch: int,
    traced: Callable[[int], Trace],
) -> tuple[Runner, float]:
    """The runner on our kernels, and the share of its layers' weights that they multiply."""
    module, bits = compressed.module, compressed.recipe.quantize.activation_bits
    missed: list[str] = []
    if bits <= 8:
        module = rounding = copy.deepcopy(module)
        missed = unreached(module, round_inputs(module, calibration, bits))
        shape = tuple(calibration.shape[1:])
        traced = cache(lambda batch: trace(rounding, (batch, *shape)))

    @cache
    def built(size: int) -> Network:
        return Network(traced(size), parameters_of(module), kernels.kernels(), threads)

    @cache
    def scorer(size: int) -> Network:
        found, values, library = traced(size), parameters_of(module), kernels.kernels()
        return Network(found, values, library, threads, taken=fixed(plan(found, values, library)))

    scoring = scoring_batch(calibration.shape[1:], SCORING_ELEMENTS, MAX_BATCH)

    def infer(images: Array) -> Array:
        return built(batch).infer(images)

    def score(images: Array) -> Array:
        with thread_count(threads):
            return in_batches(scorer(scoring).infer, images, scoring)

    def serve(*, batch: int, threads: int, streams: int) -> Service:
        network = Network(traced(batch), parameters_of(module), kernels.kernels(), threads)
        return Service(one_by_one(network.infer), lambda: thread_count(threads))

    used = built(batch).kernels
    names = {id(value): used[path] for path, value in parameters_of(module).items() if path in used}
    layers = tuple(
        LayerExecution(layer.name, "f32", kernel, skips_zeros=skips)
        for layer in walk(module)
        for kernel, skips in (names.get(id(layer.weight), ("torch", False)),)
    )
    runner = Runner(
        infer=infer,
        score=score,
        executed=lambda: Execution(layers, simulated(compressed, layers, "sparse", missed, TAKES_TIME)),
        memory_probe=lambda folder: torch.save(module, Path(folder) / "model.pt"),
        loader=saved,
        session=lambda: thread_count(threads),
        profile=lambda images, calls: built(batch).profile(images, calls),
        serve=serve,
    )
    return runner, built(batch).share


def saved() -> Load:
    """The loader of what a runner's ``memory_probe`` writes."""

    def load(folder: Path, threads: int, shape: tuple[int, ...]) -> Callable[[Array], Array]:
        torch.set_num_threads(threads)
        module = torch.load(folder / "model.pt", weights_only=False)  # our own file, written a moment ago
        return Network(trace(module, shape), parameters_of(module), kernels.kernels(), threads).infer

    return load


ENGINE = Engine(lambda: None, prepare, kernels.problem)  # without kernels: torch's sparse matrices
