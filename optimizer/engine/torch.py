"""torch eager, the reference: weights of every recipe are exact float32, activations are rounded in place."""

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel
from optimizer.engine.base import Array, Build, Engine, Load, Runner, Service, one_by_one
from optimizer.engine.realised import TAKES_TIME, simulated
from optimizer.model.layers import hooked, uses, walk
from optimizer.model.unused import values_decide
from optimizer.records import Execution, KernelTime, LayerExecution, Role
from optimizer.system.threads import pinned_threads, thread_count

# torch's profiler tells the terminal when it starts and stops, unless only worse is to be told.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

SCORING_BATCH = 32
SCOPE = "paretoscope "
NAMING_CALLS = 3
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
FAKE_QUANTIZE = "aten::fake_quantize_per_tensor_affine"
FACTORS = 3
"""What a layer multiplies comes first: one input, or an attention's query, key and value."""


class RoundActivations:
    """A forward pre-hook that rounds a layer's input to an asymmetric grid of ``bits``. Picklable."""

    def __init__(self, low: float, high: float, bits: int = 8) -> None:
        self.bits = bits
        self.last = 2**bits - 1
        self.scale = max((high - low) / self.last, 1e-12)
        self.zero_point = round(-low / self.scale)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rounded = (
            torch.fake_quantize_per_tensor_affine(
                tensor.float(), self.scale, self.zero_point, 0, self.last
            ).to(tensor.dtype)
            for tensor in inputs[:FACTORS]
        )
        return (*rounded, *inputs[FACTORS:])


@pinned_threads()
@torch.inference_mode()
def activation_ranges(model: nn.Module, images: Tensor) -> dict[nn.Module, tuple[float, float]]:
    """Lowest and highest input of each layer over ``images`` ``[N, C, H, W]``; 0 is always covered. Of those
    that are called: where the model's own code multiplies with a layer's weight, no hook sees its input."""
    layers = {layer.module for layer in uses(model)}
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for tensor in inputs[:FACTORS]:
            low, high = ranges.get(module, (0.0, 0.0))
            ranges[module] = (min(low, tensor.min().item()), max(high, tensor.max().item()))

    with hooked(module.register_forward_pre_hook(observe) for module in layers):
        for batch in torch.split(images, SCORING_BATCH):
            model(batch)
    return ranges


def round_inputs(model: nn.Module, images: Tensor, bits: int) -> dict[nn.Module, tuple[float, float]]:
    """Has ``model`` round its layers' inputs to ``bits``; gives the :func:`activation_ranges`."""
    ranges = activation_ranges(model, images)
    for module, span in ranges.items():
        module.register_forward_pre_hook(RoundActivations(*span, bits))
    return ranges


def unreached(model: nn.Module, ranges: Mapping[nn.Module, tuple[float, float]]) -> list[str]:
    """Names of the layers without any of the ``ranges``: what their inputs are no hook sees."""
    return [layer.name for layer in walk(model) if layer.module not in ranges]


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every path that they have."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def prepare(model: nn.Module, input_shape: tuple[int, ...]) -> Build:
    """A model that looks at values may look at those of all images that it is given together: it scores one
    at a time."""
    together = cache(lambda: 1 if values_decide(model, input_shape) else SCORING_BATCH)
    return partial(build, together=together)


def build(
    compressed: CompressedModel,
    calibration: Tensor,
    *,
    threads: int,
    batch: int,
    together: Callable[[], int],
) -> Runner:
    """A module takes any batch, so ``batch`` needs no preparation here; so many are scored ``together``."""
    model = compressed.module
    bits, precision = compressed.recipe.quantize.activation_bits, compressed.recipe.quantize.precision
    missed: list[str] = []
    if bits <= 8:
        model = copy.deepcopy(model)
        missed = unreached(model, round_inputs(model, calibration, bits))
    if precision != "f32":
        model = copy.deepcopy(model).to(DTYPES[precision])

    dtype = taken_in(model, calibration[:1], precision)
    infer = partial(_one_call, model, dtype)
    layers = tuple(LayerExecution(layer.name, precision, "torch eager") for layer in walk(model))

    def score(images: Array) -> Array:
        with thread_count(threads):
            count = together()
            parts = range(0, len(images), count)
            return np.concatenate([infer(images[start : start + count]) for start in parts])

    return Runner(
        infer=infer,
        score=score,
        executed=lambda: Execution(layers, simulated(compressed, layers, "torch", missed, TAKES_TIME)),
        memory_probe=lambda folder: torch.save((model, dtype), Path(folder) / "model.pt"),
        loader=saved,
        session=lambda: thread_count(threads),
        profile=partial(_profile, model, precision, infer),
        serve=lambda *, batch, threads, streams: Service(one_by_one(infer), lambda: thread_count(threads)),
    )


def taken_in(model: nn.Module, image: Tensor, precision: str) -> torch.dtype:
    """What a ``model`` that computes in ``precision`` is given its images in: float32 where it takes that, as
    networks of tokens do, whose numbers are others once they are rounded."""
    if precision != "f32":
        with suppress(Exception), torch.inference_mode():  # of the model's own code
            model(image.clone())
            return torch.float32
    return DTYPES[precision]


def _one_call(model: nn.Module, dtype: torch.dtype, images: Array) -> Array:
    with torch.inference_mode():
        logits: Tensor = model(torch.from_numpy(images).to(dtype))
    return logits.float().numpy()


def _profile(
    model: nn.Module, precision: str, infer: Callable[[Array], Array], images: Array, calls: int
) -> tuple[KernelTime, ...]:
    """Each module's time, by hooks; which operation it is, by torch's profiler in one call more.

    What is computed outside of modules (additions, functions) is in the last row.
    """
    units = _units(model)
    times: dict[tuple[str, Role], list[int]] = {}
    begun = spent = call = 0

    def start(module: nn.Module, inputs: object) -> None:
        nonlocal begun
        begun = time.perf_counter_ns()

    def take(name: str, role: Role) -> None:
        nonlocal begun, spent
        now = time.perf_counter_ns()
        times.setdefault((name, role), [0] * calls)[call] += now - begun
        spent += now - begun
        begun = time.perf_counter_ns()

    def ready(module: nn.Module, inputs: object) -> None:
        if bits := _rounding(module):
            take(f"{units[module][0]}: input to {bits} bits", "conversion")

    def end(module: nn.Module, inputs: object, output: object) -> None:
        take(*units[module])

    between: list[int] = []
    timed = (
        handle
        for module in units
        for handle in (
            module.register_forward_pre_hook(start, prepend=True),
            module.register_forward_pre_hook(ready),
            module.register_forward_hook(end, prepend=True),
        )
    )
    with hooked(timed):
        while call < calls:
            spent, before = 0, time.perf_counter_ns()
            infer(images)
            between.append(time.perf_counter_ns() - before - spent)
            call += 1
    kernels = _kernels(units, infer, images)
    rows = []
    for (name, role), taken in times.items():
        kernel = FAKE_QUANTIZE if role == "conversion" else kernels.get(name, "no operation")
        time_ns = round(np.median(taken))
        rows.append(
            KernelTime.of_layers([name], precision, kernel, time_ns)
            if role == "layer"
            else KernelTime(name, role, "f32" if role == "conversion" else precision, kernel, (time_ns,))
        )
    rest = KernelTime.between_operations(
        round(np.median(between)), "functions, scheduling, and the call itself"
    )
    return (*rows, rest)


def _units(model: nn.Module) -> dict[nn.Module, tuple[str, Role]]:
    """What is timed as one: layers, and other modules without modules in them; each with its name and role.

    An attention is one, under its first projection's name: its second runs inside torch's own code.
    """
    layers = {layer.module: layer.name for layer in uses(model)}
    found: dict[nn.Module, tuple[str, Role]] = {}
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in inside or (module not in layers and next(module.children(), None)):
            continue
        inside |= {*module.modules()}
        if not isinstance(module, nn.Identity):
            found[module] = (layers[module], "layer") if module in layers else (path, "other")
    return found


def _rounding(module: nn.Module) -> int:
    """The bits that the module's inputs are rounded to; 0 if they are not."""
    hooks = module._forward_pre_hooks.values()
    return next((hook.bits for hook in hooks if isinstance(hook, RoundActivations)), 0)


def _kernels(
    units: Mapping[nn.Module, tuple[str, Role]], infer: Callable[[Array], Array], images: Array
) -> dict[str, str]:
    """The operation in which each unit spends the most time, by name; of a few calls the shortest counts."""
    open_scopes: list[Any] = []

    def enter(module: nn.Module, inputs: object) -> None:
        open_scopes.append(torch.profiler.record_function(SCOPE + units[module][0]))
        open_scopes[-1].__enter__()

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        open_scopes.pop().__exit__(None, None, None)

    scoped = (
        handle
        for module in units  # after what rounds the inputs
        for handle in (
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, prepend=True),
        )
    )
    activities = [torch.profiler.ProfilerActivity.CPU]
    with hooked(scoped), torch.profiler.profile(activities=activities) as profiled:
        for _ in range(NAMING_CALLS):
            infer(images)
    shortest: dict[str, dict[str, float]] = {}
    for event in profiled.events() or ():
        scope = event.cpu_parent
        while scope is not None and not scope.name.startswith(SCOPE):
            scope = scope.cpu_parent
        if scope is not None:
            times = shortest.setdefault(scope.name.removeprefix(SCOPE), {})
            times[event.name] = min(event.self_cpu_time_total, times.get(event.name, math.inf))
    return {name: max(times, key=times.__getitem__) for name, times in shortest.items()}


def saved() -> Load:
    """The loader of what a runner's ``memory_probe`` writes."""

    def load(folder: Path, threads: int, shape: tuple[int, ...]) -> Callable[[Array], Array]:
        torch.set_num_threads(threads)
        model, dtype = torch.load(folder / "model.pt", weights_only=False)  # ours, written a moment ago
        return partial(_one_call, model, dtype)

    return load


ENGINE = Engine(lambda: None, prepare)
