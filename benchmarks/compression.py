"""Accuracy that compression keeps, beside what other libraries keep on the same images.

    python benchmarks/compression.py [--json] [--images FOLDER] [--bundled] \\
        [--recipes NAME,...] [--peers NAME,...]

EfficientNet-Lite0; calibration on 256 photographs of the classes with an even index, evaluation on the 500 of
those with an odd one, no training. Seconds are processor seconds of one thread for making the weights; the
statistics of the calibration images, made once, are apart. ``--bundled`` adds every bundled model on its
10,000 test images.

``--recipes`` and ``--peers`` take names from the tables, or ``none``. Brevitas and the Model Compression
Toolkit hold other packages back, so each has an environment of its own, with paretoscope and that one in it::

    pip install 'paretoscope[imagenet]' brevitas
    python benchmarks/compression.py --recipes none --peers brevitas

and the same with model-compression-toolkit and ``--peers mct``. What isn't installed is left out, and said.
"""

import argparse
import copy
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel
from optimizer.compression.prune.coupling import groups
from optimizer.errors import unknown
from optimizer.measurement.compressed import build_of, compressed_model
from optimizer.measurement.workspace import OpenModel, Workspace, open_workspace
from optimizer.model.layers import walk
from optimizer.recipe import EFFORT_SECONDS, Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec
from optimizer.system.environment import describe, environment, threads_available

MODEL = "efficientnet-lite0"
BUNDLED = ("fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit")
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample"


def pruned(sparsity: float) -> PruneSpec:
    return PruneSpec("compensated", sparsity, allocation="measured")


def narrowed(ratio: float) -> Recipe:
    return Recipe(PruneSpec("channels", ratio, allocation="measured"))


def rounded(bits: int | None = None, average: float | None = None) -> QuantizeSpec:
    return QuantizeSpec("compensated", bits or 32, average_bits=average, symmetric=False, range="mse")


RECIPES = {
    "50 %": Recipe(pruned(0.5)),
    "60 %": Recipe(pruned(0.6)),
    "70 %": Recipe(pruned(0.7)),
    "2:4": Recipe(PruneSpec("compensated", pattern="2:4")),
    "4 bits": Recipe(quantize=rounded(4)),
    "3 bits": Recipe(quantize=rounded(3)),
    "4 average bits": Recipe(quantize=rounded(average=4)),
    "3 average bits": Recipe(quantize=rounded(average=3)),
    "8 bits int8 kernels": Recipe(quantize=QuantizeSpec("compensated", 8, activation_bits=8, range="mse")),
    "50 % and 4 bits": Recipe(pruned(0.5), rounded(4)),
    "10 % of channels": narrowed(0.1),
    "20 % of channels": narrowed(0.2),
    "50 % by magnitude": Recipe(PruneSpec(sparsity=0.5)),
    "50 % by magnitude batch norm re-estimated": Recipe(PruneSpec(sparsity=0.5, match=True)),
    "4 bits to nearest": Recipe(quantize=QuantizeSpec(weight_bits=4)),
    "4 bits to nearest equalised": Recipe(quantize=QuantizeSpec(weight_bits=4, equalise=True)),
}
RECIPES |= {
    f"{name} best effort": replace(RECIPES[name], effort_seconds=EFFORT_SECONDS)
    for name in ("50 %", "60 %", "70 %", "2:4", "4 bits", "3 bits", "50 % and 4 bits", "20 % of channels")
}
DEPTHWISE_IN_FLOAT = {f"{name}, depthwise in float": RECIPES[name] for name in ("4 bits", "3 bits")}
"""The setting that other libraries keep most in."""
ON_BUNDLED = (
    "50 %",
    "4 bits",
    "3 bits",
    "50 % and 4 bits",
    "50 % by magnitude",
    "50 % by magnitude batch norm re-estimated",
    "4 bits to nearest",
    "4 bits to nearest equalised",
)


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


def images_of(workspace: Workspace) -> Images:
    evaluation = workspace.images.evaluation
    assert evaluation.labels is not None
    return Images(evaluation.images, evaluation.labels.numpy(), workspace.statistics_images)


def recipe_for(model: nn.Module, name: str) -> Recipe:
    """One of RECIPES or of DEPTHWISE_IN_FLOAT."""
    if name in RECIPES:
        return RECIPES[name]
    depthwise = (layer.name for layer in walk(model) if layer.kind == "depthwise convolution")
    layers = tuple(Override(layer, weight_bits=32) for layer in depthwise)
    return replace(DEPTHWISE_IN_FLOAT[name], layers=layers)


def rows_of(model: str, spec: DataSpec, names: Collection[str]) -> list[Row]:
    """The statistics first, then every recipe by them, made and scored as everywhere in the product."""
    workspace = open_workspace(model, spec)
    images = images_of(workspace)
    correct = right(workspace, compressed_model(workspace, Recipe()), images)
    started = time.process_time()
    workspace.statistics()
    study_seconds = time.process_time() - started
    total = len(images.labels)
    rows = [
        Row(model, "uncompressed", correct, total, 0.0),
        Row(model, "(calibration statistics)", correct, total, study_seconds),
    ]
    for name in names:
        recipe = recipe_for(workspace.model.module, name)
        started = time.process_time()
        compressed = compressed_model(workspace, recipe)
        seconds = time.process_time() - started
        rows.append(Row(model, name, right(workspace, compressed, images), total, seconds))
        print(_words(rows[-1]), file=sys.stderr)
    return rows


def right(workspace: Workspace, compressed: CompressedModel, images: Images) -> int:
    """Right answers on OpenVINO."""
    build = build_of(workspace, compressed.recipe, "openvino")
    runner = build(compressed, workspace.activation_images, threads=threads_available(), batch=1)
    answers = runner.score(images.evaluation.numpy()).argmax(1)
    return int((answers == images.labels).sum())


# Peers: the same model, images and calibration. Each gives what turns images [N, C, H, W] into logits: a
# module, or a function.

Answers = Callable[[Tensor], Any]
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


def peer_rows(images: Images, names: Collection[str]) -> list[Row]:
    target, rows = open_workspace(MODEL).model, []
    for library in (PEERS[name] for name in names):
        for what, run in library.rows.items():
            try:
                with output_aside():
                    importlib.import_module(library.needs)
                    started = time.process_time()
                    answers = run(target, images)
                    seconds = time.process_time() - started
                with torch.no_grad():
                    parts = [answers(part).argmax(1) for part in images.evaluation.split(8)]
            except Exception as error:  # other people's code, on versions that it may not know
                print(f"{what}: left out, {type(error).__name__}: {error}", file=sys.stderr)
                continue
            correct = int((torch.cat(parts).numpy() == images.labels).sum())
            rows.append(Row(MODEL, what, correct, len(images.labels), seconds))
            print(_words(rows[-1]), file=sys.stderr)
    return rows


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


def photographs(folder: Path, place: Path) -> DataSpec:
    """The two halves of the photographs, by the parity of their class, as folders of links in ``place``."""
    index = json.loads((folder.parent / "imagenet_class_index.json").read_text())
    halves = [place / name for name in ("even", "odd")]
    for half in halves:
        half.mkdir()
    for wordnet_id, known in index.items():
        source = folder / wordnet_id
        if source.is_dir():
            (halves[known["index"] % 2] / wordnet_id).symlink_to(source)
    return DataSpec(path=str(halves[1]), calibration=str(halves[0]))


def chosen(kind: str, known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads ``a,b`` or ``none``, for argparse."""

    def read(text: str) -> tuple[str, ...]:
        names = () if text == "none" else tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{unknown(kind, name, known)}, or none")
        return names

    return read


def _words(row: Row) -> str:
    return f"{row.model:<20}{row.what:<44}{row.accuracy:>8.4f}{row.seconds:>9.1f} s"


def measured(options: argparse.Namespace, place: Path) -> list[Row]:
    rows: list[Row] = []
    if options.images.is_dir():
        spec = photographs(options.images.resolve(), place)
        rows += rows_of(MODEL, spec, options.recipes) if options.recipes else []
        rows += peer_rows(images_of(open_workspace(MODEL, spec)), options.peers) if options.peers else []
    else:
        print(f"no photographs at {options.images}: give --images FOLDER", file=sys.stderr)
    if options.bundled:
        names = [name for name in ON_BUNDLED if name in options.recipes]
        for model in BUNDLED if names else ():
            rows += rows_of(model, DataSpec(), names)
    return rows


def main() -> None:
    known = (*RECIPES, *DEPTHWISE_IN_FLOAT)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--recipes", type=chosen("recipe", known), default=known)
    parser.add_argument("--peers", type=chosen("peer", PEERS), default=tuple(PEERS))
    parser.add_argument("--bundled", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as place:
        os.environ["PARETOSCOPE_HOME"] = str(Path(place, "home"))  # statistics of an earlier run take no time
        rows = measured(options, Path(place))
    if options.json:
        plain = [{**asdict(row), "accuracy": row.accuracy} for row in rows]
        print(json.dumps({"environment": describe(environment()), "rows": plain}))
    else:
        print("\n".join(_words(row) for row in rows))


if __name__ == "__main__":
    main()
