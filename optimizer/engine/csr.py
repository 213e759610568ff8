"""torch's own sparse matrices, for a machine without our kernels: linear layers and 1x1 convolutions.

A layer becomes CSR times dense where that was measured to be the faster, and stays as it is elsewhere.
"""

import copy
import timeit
import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel
from optimizer.engine.base import Runner
from optimizer.engine.realised import TAKES_TIME, simulated
from optimizer.engine.torch import RoundActivations, prepare, round_inputs, unreached
from optimizer.model.layers import hooked, uses, walk
from optimizer.recipe import Recipe
from optimizer.records import Execution, LayerExecution
from optimizer.system.threads import thread_count

REPEATS = 5
KERNEL = "torch CSR"


class CsrLayer(nn.Module):
    """A linear layer or 1x1 convolution whose weight is CSR ``[out, in]``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer.weight, Tensor)
        self.weight = to_csr(layer.weight.detach().flatten(1))
        self.bias = layer.bias
        self.convolution = isinstance(layer, nn.Conv2d)

    def forward(self, values: Tensor) -> Tensor:
        channel = 1 if self.convolution else -1
        columns = values.movedim(channel, 0)
        product: Tensor = self.weight @ columns.flatten(1)
        if isinstance(self.bias, Tensor):
            product = product + self.bias[:, None]
        result: Tensor = product.unflatten(1, columns.shape[1:]).movedim(0, channel)
        return result


def fits(layer: nn.Module) -> bool:
    """Whether a layer is a matrix times its input as it is."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.kernel_size == layer.stride == (1, 1) and layer.padding in ((0, 0), 0)
        return plain and layer.groups == 1
    return type(layer) is nn.Linear


def to_csr(weight: Tensor) -> Tensor:
    """``weight`` ``[rows, columns]`` without its zeros, with the 32-bit indices that MKL takes: 64-bit ones
    would be converted in every call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        wide = weight.to_sparse_csr()
        return torch.sparse_csr_tensor(
            wide.crow_indices().int(),
            wide.col_indices().int(),
            wide.values(),
            size=wide.shape,
            check_invariants=True,
        )


@torch.inference_mode()
def build(compressed: CompressedModel, calibration: Tensor, *, threads: int, batch: int, why: str) -> Runner:
    """The eager runner with CSR layers in it, in float32; ``why`` there are no kernels is told."""
    model, bits = copy.deepcopy(compressed.module), compressed.recipe.quantize.activation_bits
    spans = round_inputs(model, calibration, bits) if bits <= 8 else {}
    missed = unreached(model, spans) if bits <= 8 else []
    scored = copy.deepcopy(model)  # which layers are faster may change
    inputs: dict[nn.Module, Tensor] = {}
    candidates = [layer.module for layer in uses(model) if fits(layer.module)]

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[module] = arguments[0]

    with thread_count(threads):
        with hooked(module.register_forward_pre_hook(keep) for module in candidates):
            model(calibration[:1].expand(batch, *[-1] * (calibration.dim() - 1)))
        faster: dict[nn.Module, nn.Module] = {}
        for module, given in inputs.items():
            sparse = CsrLayer(module)
            if module in spans:
                sparse.register_forward_pre_hook(RoundActivations(*spans[module], bits))
            if _seconds(sparse, given) < _seconds(module, given):
                faster[module] = sparse
    for path, module in [*model.named_modules(remove_duplicate=False)]:
        if path and module in faster:
            model.set_submodule(path, faster[module])
    model = faster.get(model, model)
    eager = prepare(compressed.module, tuple(calibration.shape[1:]))
    timed, whole = (
        eager(replace(compressed, module=each, recipe=Recipe()), calibration, threads=threads, batch=batch)
        for each in (model, scored)
    )
    dense = {layer.name for layer in uses(model)}  # of those that share a weight, one may stay
    layers = tuple(
        LayerExecution(
            layer.name,
            "f32",
            "torch" if layer.name in dense else f"{KERNEL}, {layer.weight.count_nonzero()} weights",
            skips_zeros=layer.name not in dense,
        )
        for layer in walk(compressed.module)
    )
    skipping = sum(layer.skips_zeros for layer in layers)
    message = f"no sparse kernels here ({why}): torch's CSR for {skipping} of {len(layers)} layers"
    return replace(
        timed,
        score=whole.score,
        executed=lambda: Execution(
            layers,
            (*simulated(compressed, layers, "sparse", missed, TAKES_TIME), message),
            fallback=why,
        ),
    )


def _seconds(layer: nn.Module, inputs: Tensor) -> float:
    return min(timeit.repeat(lambda: layer(inputs), number=1, repeat=REPEATS))
