"""What other libraries make of the same model, images and calibration, each in the setting that keeps most.

``compression.py`` scores it; to run Brevitas or the Model Compression Toolkit see there.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.compression.prune.coupling import groups
from optimizer.measurement.workspace import OpenModel


@dataclass(frozen=True)
class Images:
    """Evaluation images with labels, and calibration images; ``[N, C, H, W]`` each."""

    evaluation: Tensor
    labels: np.ndarray
    calibration: Tensor


Answers = Callable[[Tensor], Any]
"""What turns images ``[N, C, H, W]`` into logits: a module, or a function."""
Peer = Callable[[OpenModel, Images], Answers]


def with_plain_convolutions(module: nn.Module) -> nn.Module:
    """A copy with its padded convolutions as a padding and a convolution: libraries that go by a layer's
    class would pass the model's own by."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and type(child) is not nn.Conv2d:
                plain = nn.Conv2d(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,  # type: ignore[arg-type]
                    child.stride,  # type: ignore[arg-type]
                    child.padding,  # type: ignore[arg-type]
                    child.dilation,  # type: ignore[arg-type]
                    child.groups,
                )
                plain.weight, plain.bias = child.weight, child.bias
                setattr(parent, name, nn.Sequential(*child.children(), plain))
    return module.eval()


def with_batch_norm_anew(module: nn.Module, images: Images) -> nn.Module:
    """Its statistics taken on the calibration images, a plain mean over the batches."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        for part in images.calibration.split(32):
            module(part)
    return module.eval()


def magnitude_and_batch_norm(sparsity: float) -> Peer:
    """``torch.nn.utils.prune``, global, then batch norm anew."""

    def run(target: OpenModel, images: Images) -> Answers:
        from torch.nn.utils import prune

        module = copy.deepcopy(target.loaded.module)
        layers = [one for one in module.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
        weights = [(layer, "weight") for layer in layers]
        prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=sparsity)
        for layer in layers:
            prune.remove(layer, "weight")
        return with_batch_norm_anew(module, images)

    return run


def nncf_prune(sparsity: float) -> Peer:
    """By magnitude over the whole model, then its own batch norm adaptation."""

    def run(target: OpenModel, images: Images) -> Answers:
        import nncf

        made = nncf.prune(
            copy.deepcopy(target.loaded.module),
            mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
            ratio=sparsity,
            examples_inputs=images.calibration[:1],
        )
        batches = nncf.Dataset(images.calibration.split(32))
        adapted: nn.Module = nncf.batch_norm_adaptation(made, calibration_dataset=batches)
        return adapted.eval()

    return run


def nncf_int8(target: OpenModel, images: Images) -> Answers:
    """Post-training quantization of weights and activations as it comes, on OpenVINO's kernels."""
    import nncf
    import openvino

    graph = openvino.convert_model(target.module, example_input=images.calibration[:1])
    graph.reshape([-1, *target.input_shape])
    one_by_one = nncf.Dataset([one.numpy() for one in images.calibration.split(1)])
    quantized = nncf.quantize(graph, one_by_one, subset_size=len(images.calibration))
    compiled = openvino.compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda part: torch.from_numpy(compiled(part.numpy())[0])


def torch_pruning(ratio: float) -> Peer:
    """Channels by the magnitude of their group, then batch norm anew.

    Those that a residual sum ties together stay, as in our own rows: to take them costs more.
    """

    def run(target: OpenModel, images: Images) -> Answers:
        import torch_pruning as library  # type: ignore[import-untyped, import-not-found]

        module = copy.deepcopy(target.loaded.module).requires_grad_()
        held = [group for group in groups(target.module, target.input_shape) if group.held]
        names = {name.removesuffix(".weight") for group in held for name in group.makers}
        library.pruner.MagnitudePruner(
            module,
            images.calibration[:1],
            importance=library.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[module.get_submodule(name) for name in names],
        ).step()
        return with_batch_norm_anew(module, images)

    return run


def brevitas_gptq(bits: int, depthwise: bool) -> Peer:
    """With its own preparation (batch norm merged, 20 rounds of cross-layer equalisation, ReLU6 kept), GPTQ
    on least-squares ranges, then bias correction. Activations are left alone, and so are depthwise layers
    unless they are to be rounded too."""

    def run(target: OpenModel, images: Images) -> Answers:
        from brevitas.graph.calibrate import bias_correction_mode
        from brevitas.graph.gptq import gptq_mode
        from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
        from brevitas.nn import QuantConv2d, QuantLinear
        from brevitas.quant import Int8WeightPerChannelFloatMSE

        how = {"weight_quant": Int8WeightPerChannelFloatMSE, "weight_bit_width": bits}
        prepared = preprocess_for_quantize(
            with_plain_convolutions(target.loaded.module), relu6_to_relu=False, equalize_iters=20
        )
        left = [] if depthwise else [name for name, one in prepared.named_modules() if _is_depthwise(one)]
        module: nn.Module = layerwise_quantize(
            prepared,
            compute_layer_map={nn.Conv2d: (QuantConv2d, how), nn.Linear: (QuantLinear, how)},
            name_blacklist=left,
        ).eval()
        parts = images.calibration.split(32)
        with torch.no_grad():
            module(parts[0])  # the ranges are found at the first call
            with gptq_mode(module, use_quant_activations=False) as gptq:
                for _ in range(gptq.num_layers):
                    for part in parts:
                        gptq.model(part)
                    gptq.update()
            with bias_correction_mode(module):
                for part in parts:
                    module(part)
        return module

    return run


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def mct_mixed(average_bits: float) -> Peer:
    """Each layer in 8, 4 or 2 bits, by an integer program under the memory that so many bits a weight take.

    The platform's activations, 8 bits wide, are left alone, as in our own rows.
    """

    def run(target: OpenModel, images: Images) -> Answers:
        import model_compression_toolkit as mct  # type: ignore[import-untyped, import-not-found]

        def weights_only(options: Any) -> Any:
            return options and options.clone_and_edit(enable_activation_quantization=False)

        platform = mct.get_target_platform_capabilities()
        kinds = [
            kind.model_copy(update={"qc_options": weights_only(kind.qc_options)})
            for kind in platform.operator_set
        ]
        platform = platform.model_copy(
            update={"default_qco": weights_only(platform.default_qco), "operator_set": tuple(kinds)}
        )
        count = sum(weight.numel() for weight in target.published.values())
        module: nn.Module
        module, _ = mct.ptq.pytorch_post_training_quantization(
            with_plain_convolutions(target.loaded.module),
            lambda: ([part] for part in images.calibration.split(32)),
            mct.core.ResourceUtilization(weights_memory=count * average_bits / 8),
            mct.core.CoreConfig(mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig()),
            platform,
        )
        return module.eval()

    return run


@dataclass(frozen=True)
class Library:
    """``needs`` is imported first: it takes its seconds, and may be missing."""

    needs: str
    rows: Mapping[str, Peer]


PEERS = {
    "torch": Library(
        "torch.nn.utils.prune",
        {
            f"torch.nn.utils.prune {share:.0%}, batch norm anew": magnitude_and_batch_norm(share)
            for share in (0.5, 0.6, 0.7)
        },
    ),
    "nncf": Library(
        "nncf.torch",
        {
            **{f"nncf.prune {share:.0%}, batch norm adapted": nncf_prune(share) for share in (0.5, 0.6)},
            "nncf.quantize, int8 weights and activations": nncf_int8,
        },
    ),
    "torch-pruning": Library(
        "torch_pruning",
        {
            f"Torch-Pruning {share:.0%} of channels, batch norm anew": torch_pruning(share)
            for share in (0.1, 0.2)
        },
    ),
    "brevitas": Library(
        "brevitas.graph.gptq",
        {
            f"Brevitas GPTQ {bits} bits{words}": brevitas_gptq(bits, depthwise)
            for bits in (4, 3)
            for words, depthwise in (("", True), (", depthwise in float", False))
        },
    ),
    "mct": Library(
        "model_compression_toolkit",
        {f"MCT mixed precision, {bits} average bits": mct_mixed(bits) for bits in (4, 3)},
    ),
}


@contextmanager
def output_aside() -> Iterator[None]:
    """What libraries print, and the solvers that they start, goes to stderr: stdout is for the table."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
