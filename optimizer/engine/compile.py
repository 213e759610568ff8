"""torch.compile: kernels that inductor writes in C++ for one network, batch and thread count.

Compiling takes seconds to a minute, and a recipe changes only values. So a network is exported once for each
batch into a graph that takes its parameters as inputs, and one compiled function runs every recipe of it:
nothing is compiled anew when the sliders move.
"""

import copy
import logging
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel
from optimizer.engine import inductor
from optimizer.engine.base import Array, Build, Engine, Load, Runner, in_batches, scoring_batch
from optimizer.engine.exporting import advice, exporting, logged_from
from optimizer.engine.realised import simulated
from optimizer.engine.torch import (
    DTYPES,
    FACTORS,
    RoundActivations,
    activation_ranges,
    parameters_of,
    taken_in,
    unreached,
)
from optimizer.errors import WorkError, one_line
from optimizer.model.examples import examples
from optimizer.model.layers import uses, walk
from optimizer.records import Execution, KernelTime, LayerExecution
from optimizer.system.paths import home, private
from optimizer.system.threads import thread_count

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
KERNEL = "inductor"
TRIAL = "#include <Python.h>\n#include <omp.h>\nint main() { return 0; }\n"
MAX_TRIAL_SECONDS = 120.0
SCALE, ZERO_POINT = "paretoscope_scale", "paretoscope_zero_point"


@cache
def problem() -> str | None:
    """Tried once a process: inductor needs a C++ compiler, OpenMP and Python's headers."""
    compiler, headers = cpp_compiler(), sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        source = Path(folder) / "trial.cpp"
        source.write_text(TRIAL)
        command = [compiler, f"-I{headers}", "-fopenmp", "-c", str(source), "-o", f"{source}.o"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=MAX_TRIAL_SECONDS
            )
        except OSError:
            return f"there is no C++ compiler {compiler} (install g++ or clang, or set CXX)"
        except subprocess.TimeoutExpired:
            return (
                f"the C++ compiler {compiler} took more than {MAX_TRIAL_SECONDS:g} s for an empty program: "
                "restart when this machine has less to do"
            )
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        return f"the C++ compiler {compiler} can't compile what inductor writes: {reason[:300]}"
    return None


def cpp_compiler() -> str:
    """The one that inductor takes (``cpp.cxx`` of its settings) unless it is to install one. It isn't asked:
    importing it takes seconds, in every process that lists the engines."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


@dataclass(frozen=True)
class Prepared:
    """A network, and the functions that were compiled of it so far."""

    model: nn.Module
    input_shape: tuple[int, ...]
    compiled: dict[tuple[int, int, int, str, bool], "Compiled"] = field(default_factory=dict)

    def function(
        self, batch: int, threads: int, bits: int, precision: str, marked: bool = False
    ) -> "Compiled":
        """Compiled when it is first wanted; ``marked``: with marks for a profiler. Raises WorkError."""
        key = batch, threads, bits, precision, marked
        if key not in self.compiled:
            from torch._inductor import config

            with config.patch({"cpp.enable_kernel_profile": marked}):
                self.compiled[key] = compiled(
                    self.model, (batch, *self.input_shape), threads, bits, precision
                )
        return self.compiled[key]


@dataclass(frozen=True)
class Compiled:
    """A function of tensors, in the order of ``names`` (parameters and buffers by path), and last the images
    ``[N, C, H, W]`` as ``dtype``; ``constants`` are those that the exporter made."""

    function: Callable[..., tuple[Tensor, ...]]
    names: tuple[str, ...]
    constants: dict[str, Tensor]
    dtype: torch.dtype

    def arguments(self, module: nn.Module) -> list[Tensor]:
        """The values of ``module``, which is the network after a recipe."""
        own = parameters_of(module)
        return [(own[name] if name in own else self.constants[name]).detach() for name in self.names]

    def infer(self, arguments: Sequence[Tensor], images: Array) -> Array:
        """What it gives for images, with these values of all else."""
        # Outside of inference mode: it makes another kind of tensor, which would be compiled for anew.
        given = torch.from_numpy(images).to(self.dtype)
        with torch.inference_mode():
            logits: Tensor = self.function(*arguments, given)[0]
        return logits.float().numpy()


def prepare(model: nn.Module, input_shape: tuple[int, ...]) -> Build:
    _keep_code_at_home()
    return partial(build, Prepared(model, input_shape))


def _keep_code_at_home() -> None:
    """Inductor loads code from its cache: by default that has a known name in the temporary folder, where
    anybody can be first to make it, and importing torch's compiler writes that default into the environment.
    Another folder that the user named stays."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):
        os.environ[CACHE_VARIABLE] = str(private(home() / "inductor"))


def compiled(
    model: nn.Module, shape: tuple[int, ...], threads: int, bits: int, precision: str = "f32"
) -> Compiled:
    """Compile for images of ``shape`` ``[N, C, H, W]``, layers' inputs rounded to ``bits`` below 32. Raises
    WorkError."""
    images = examples(model, shape[1:], shape[0])
    model = in_precision(rounding(model, bits) if bits < 32 else model, precision)
    try:
        with _settings(threads):
            made = function_of(model, images, precision)
            made.infer([*made.constants.values()], images.numpy())
            return made
    except Exception as error:  # whatever the model, dynamo, inductor or the compiler raise
        raise WorkError(
            f"torch.compile can't compile this model: {one_line(error, 300)}. {advice('compile', error)}"
        ) from error


def function_of(model: nn.Module, images: Tensor, precision: str) -> Compiled:
    """Of a model in ``precision``: traced here, and compiled when it is first called."""
    dtype = taken_in(model, images, precision)
    with exporting():
        exported = torch.export.export(model, (images.to(dtype),))
    names = [spec.target for spec in exported.graph_signature.input_specs if spec.target]
    known: dict[str, Any] = {**exported.state_dict, **exported.constants}
    function = torch.compile(exported.graph_module, dynamic=False)
    return Compiled(function, tuple(names), {name: known[name].detach() for name in names}, dtype)


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """Kernels hold the thread count; one process compiles, and none is left behind. What dynamo and inductor
    say of their own workings is no concern of a user's."""
    from torch._inductor import config

    settings = config.patch(compile_threads=1, freezing=False)
    with logged_from(logging.ERROR), thread_count(threads), settings:
        yield


def rounding(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose layers round their inputs, over grids in buffers of theirs: values, to be exchanged."""
    copied = copy.deepcopy(model)
    for module in {layer.module for layer in uses(copied)}:
        module.register_buffer(SCALE, torch.ones(()))
        module.register_buffer(ZERO_POINT, torch.zeros(()))
        module.register_forward_pre_hook(partial(_round, 2**bits - 1))
    return copied


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """A copy that computes in ``precision``; grids of activations stay in float32."""
    if precision == "f32":
        return model
    copied = copy.deepcopy(model).to(DTYPES[precision])
    for before, after in zip(model.modules(), copied.modules(), strict=True):
        for name in (SCALE, ZERO_POINT):
            if hasattr(before, name):
                setattr(after, name, getattr(before, name))
    return copied


def _round(last: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As torch's fake quantization does it, in operations that inductor makes one kernel of."""
    scale, zero_point = getattr(module, SCALE), getattr(module, ZERO_POINT)
    rounded = (
        ((torch.clamp(torch.round(tensor * (1 / scale)) + zero_point, 0, last) - zero_point) * scale).to(
            tensor.dtype
        )
        for tensor in inputs[:FACTORS]
    )
    return (*rounded, *inputs[FACTORS:])


def _with_grids(module: nn.Module, calibration: Tensor, bits: int) -> tuple[nn.Module, list[str]]:
    """``module`` with the grids of its layers' inputs on the calibration images, and the names of the layers
    that this does not reach."""
    ranges = activation_ranges(module, calibration)
    order = [layer.module for layer in uses(module)]
    copied = rounding(module, bits)
    for before, layer in zip(order, uses(copied), strict=True):
        if before not in ranges:
            continue
        grid = RoundActivations(*ranges[before], bits)
        getattr(layer.module, SCALE).fill_(grid.scale)
        getattr(layer.module, ZERO_POINT).fill_(grid.zero_point)
    return copied, unreached(module, ranges)


def build(
    prepared: Prepared, compressed: CompressedModel, calibration: Tensor, *, threads: int, batch: int
) -> Runner:
    bits, precision = compressed.recipe.quantize.activation_bits, compressed.recipe.quantize.precision
    module, missed = compressed.module, list[str]()
    if bits < 32:
        module, missed = _with_grids(module, calibration, bits)
    module = in_precision(module, precision)
    at_once = scoring_batch(prepared.input_shape)

    @cache
    def runs(size: int, marked: bool = False) -> Callable[[Array], Array]:
        """Compiled when it is first wanted: configurations that share a measurement are never timed."""
        made = prepared.function(size, threads, bits, precision, marked)
        return partial(made.infer, made.arguments(module))

    def score(images: Array) -> Array:
        with thread_count(threads):
            return in_batches(runs(at_once), images, at_once)

    def profile(images: Array, calls: int) -> tuple[KernelTime, ...]:
        run = runs(len(images), marked=True)
        run(images)
        return inductor.profile(partial(run, images), module, precision, calls)

    layers = tuple(LayerExecution(layer.name, precision, KERNEL) for layer in walk(module))
    return Runner(
        infer=lambda images: runs(batch)(images),
        score=score,
        executed=lambda: Execution(layers, simulated(compressed, layers, "compile", missed)),
        memory_probe=partial(_save, module, precision),
        loader=saved,
        loads_slowly=True,
        session=lambda: thread_count(threads),
        profile=profile,
    )


def _save(module: nn.Module, precision: str, folder: str) -> None:
    torch.save(module, Path(folder) / "model.pt")
    (Path(folder) / "precision").write_text(precision)


def saved() -> Load:
    """The loader of what a runner's ``memory_probe`` writes. It compiles from nothing, as a first start does:
    what inductor has kept on this machine is not used."""
    import torch._inductor.compile_fx

    def load(folder: Path, threads: int, shape: tuple[int, ...]) -> Callable[[Array], Array]:
        os.environ[CACHE_VARIABLE] = str(folder / "inductor")
        module = torch.load(folder / "model.pt", weights_only=False)  # our own file, written a moment ago
        images = examples(module, shape[1:], shape[0])
        with _settings(threads):
            with torch.inference_mode():
                made = function_of(module, images, (folder / "precision").read_text())
                arguments = made.arguments(module)
            made.infer(arguments, images.numpy())
        torch.set_num_threads(threads)
        return partial(made.infer, arguments)

    return load


ENGINE = Engine(problem, prepare)
