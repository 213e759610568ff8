"""torch eager, the reference: weights of every recipe are exact float32, activations are rounded in place."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.compress import CompressedModel, width_words
from optimizer.engines.base import Array, Engine, Runner
from optimizer.layers import uses, walk
from optimizer.records import Execution, LayerExecution

SCORING_BATCH = 32
FACTORS = 3
"""What a layer multiplies comes first: one input, or an attention's query, key and value."""


class RoundActivations:
    """A forward pre-hook that rounds a layer's input to an asymmetric grid of ``bits``. Picklable."""

    def __init__(self, low: float, high: float, bits: int = 8) -> None:
        self.last = 2**bits - 1
        self.scale = max((high - low) / self.last, 1e-12)
        self.zero_point = round(-low / self.scale)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rounded = (
            torch.fake_quantize_per_tensor_affine(tensor, self.scale, self.zero_point, 0, self.last)
            for tensor in inputs[:FACTORS]
        )
        return (*rounded, *inputs[FACTORS:])


@torch.inference_mode()
def activation_ranges(model: nn.Module, images: Tensor) -> dict[nn.Module, tuple[float, float]]:
    """Lowest and highest input of each layer over ``images`` ``[N, C, H, W]``; 0 is always covered."""
    ranges = {layer.module: (0.0, 0.0) for layer in uses(model)}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for tensor in inputs[:FACTORS]:
            low, high = ranges[module]
            ranges[module] = (min(low, tensor.min().item()), max(high, tensor.max().item()))

    handles = [module.register_forward_pre_hook(observe) for module in ranges]
    try:
        for batch in torch.split(images, SCORING_BATCH):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run torch with ``threads`` threads, and put the old count back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(compressed: CompressedModel, calibration: Tensor, threads: int, batch: int) -> Runner:
    """A module takes any batch, so ``batch`` needs no preparation here."""
    model = compressed.module
    bits = compressed.recipe.quantize.activation_bits
    if bits <= 8:
        model = copy.deepcopy(model)
        for module, span in activation_ranges(model, calibration).items():
            module.register_forward_pre_hook(RoundActivations(*span, bits))

    def infer(images: Array) -> Array:
        with torch.inference_mode():
            logits: Tensor = model(torch.from_numpy(images))
        return logits.numpy()

    def score(images: Array) -> Array:
        with thread_count(threads):
            parts = range(0, len(images), SCORING_BATCH)
            return np.concatenate([infer(images[start : start + SCORING_BATCH]) for start in parts])

    return Runner(
        infer=infer,
        score=score,
        execution=Execution(
            tuple(LayerExecution(layer.name, "f32", "torch eager") for layer in walk(model)),
            tuple(_simulated(compressed, model)),
        ),
        memory_probe=lambda folder: torch.save(model, Path(folder) / "model.pt"),
        session=lambda: thread_count(threads),
    )


def _simulated(compressed: CompressedModel, model: nn.Module) -> Iterator[str]:
    widths, bits = width_words(compressed.weights.values()), compressed.recipe.quantize.activation_bits
    if widths:
        yield f"{widths}: the values are exact, the kernels are float32"
    if bits < 32:
        yield f"{bits}-bit activations: rounded between float32 kernels, which takes time of its own"
        if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
            yield (
                f"{bits}-bit activations: attention's output projection, inside torch's own code, is left out"
            )


ENGINE = Engine(
    name="torch",
    label="torch eager",
    problem=lambda: None,
    prepare=lambda model, input_shape: build,
)
