"""Attention heads that go: found in whatever module attends, made up for exactly, and really gone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_request import compressed_model, inspect
from small_models import SMALL_SHAPE, made, run
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.compression.calibration.moments import collect
from optimizer.compression.finetune import recover
from optimizer.compression.prune.channels import masked_model, shrink
from optimizer.compression.prune.coupling import groups, without
from optimizer.compression.prune.group import Group
from optimizer.compression.prune.heads import FewerHeads
from optimizer.compression.prune.plan import ORDERS, plan
from optimizer.compression.prune.readers import refit
from optimizer.compression.prune.widths import kept_counts
from optimizer.engine import engine_named
from optimizer.model.architectures import ARCHITECTURES, IMAGE_SHAPE
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request

WIDTH, HEADS = 24, 4


class Attention(nn.Module):
    """Heads by a module's own code: laid out by ``order``, or each projection a layer of its own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.num_heads, self.order = HEADS, order
        sizes = {"q": WIDTH, "k": WIDTH, "v": WIDTH} if order == "apart" else {"qkv": 3 * WIDTH}
        for name, size in sizes.items():
            self.add_module(name, nn.Linear(WIDTH, size))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "apart":
            parts = [layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q, self.k, self.v)]
        elif self.order == "heads first":
            parts = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).unbind(-2)
        else:
            per_head = x.shape[-1] // self.num_heads if self.order == "fixed" else -1
            parts = self.qkv(x).unflatten(-1, (3, self.num_heads, per_head)).unbind(-3)
        q, k, v = (part.transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    """Sixteen tokens of an image through ``body``, and a classifier of their mean."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 4, 2, 1)
        self.body = body
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((tokens + self.body(tokens)).mean(1))


def encoder(norm_first: bool, batch_first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 2 * WIDTH, batch_first=batch_first, norm_first=norm_first, activation="gelu"
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(8, 2, 2, HEADS, WIDTH, 2 * WIDTH, num_classes=10)
    model.conv_proj = nn.Conv2d(1, WIDTH, 2, 2)
    nn.init.normal_(model.heads.head.weight)  # it starts with zeros
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: Tokens(encoder(norm_first=False)),
    "encoder, norm first": lambda: Tokens(encoder(norm_first=True)),
    "torchvision": torchvision_vit,
    "parts first": lambda: Tokens(Attention("parts first")),
    "heads first": lambda: Tokens(Attention("heads first")),
    "apart": lambda: Tokens(Attention("apart")),
}


def free(model: nn.Module, shape: tuple[int, ...] = SMALL_SHAPE) -> list[Group]:
    return [group for group in groups(model, shape) if not group.held]


def heads(model: nn.Module, shape: tuple[int, ...] = SMALL_SHAPE) -> list[Group]:
    return [group for group in free(model, shape) if group.attention]


@pytest.mark.parametrize("name", MODELS)
def test_heads_of_every_attention_are_found(name: str) -> None:
    model = made(MODELS[name])
    found = heads(model)
    attends = [
        path
        for path, module in model.named_modules()
        if isinstance(module, Attention | nn.MultiheadAttention)
    ]
    assert [group.attention for group in found] == attends
    assert all(group.channels == HEADS for group in found)
    hidden = [group.channels for group in free(model) if not group.attention]
    assert hidden == [2 * WIDTH] * (2 if name in ("encoder", "encoder, norm first", "torchvision") else 0)


def test_bundled_transformers_heads_are_found() -> None:
    model, _ = fold_batch_norm(ARCHITECTURES["fashion-vit"]())
    names = [group.name for group in free(model, IMAGE_SHAPE)]
    assert names == [f"blocks.{index}.{layer}.weight" for index in range(4) for layer in ("qkv", "mlp.0")]
    found = heads(model, IMAGE_SHAPE)
    assert [group.producers for group in found] == [(f"blocks.{index}.qkv.weight",) for index in range(4)]
    assert [group.consumers for group in found] == [(f"blocks.{index}.output.weight",) for index in range(4)]


def test_heads_whose_number_the_code_relies_on_are_held() -> None:
    assert not heads(made(lambda: Tokens(Attention("fixed"))))


def test_attention_that_runs_twice_is_held() -> None:
    once = Attention("parts first")
    assert not heads(made(lambda: Tokens(nn.Sequential(once, once))))


@pytest.mark.parametrize("gone", [[0], [3], [1, 2], [0, 2, 3]])
@pytest.mark.parametrize("name", MODELS)
def test_without_some_heads_is_the_same_as_not_reading_them(
    name: str, gone: list[int], small_images: Tensor
) -> None:
    model = made(MODELS[name])
    found = heads(model)
    smaller = without(model, SMALL_SHAPE, {group: torch.tensor(gone) for group in found})
    layers = {layer.name: layer for layer in walk(model)}
    for group in found:
        columns = group.staying(torch.tensor(gone)).repeat_interleave(WIDTH // HEADS)
        layers[group.consumers[0]].weight[:, ~columns] = 0
    torch.testing.assert_close(run(smaller, small_images), run(model, small_images))
    left = WIDTH * (HEADS - len(gone)) // HEADS
    widths = {layer.name: tuple(layer.weight.shape) for layer in walk(smaller)}
    assert all(widths[group.consumers[0]] == (WIDTH, left) for group in found)
    assert all(sum(widths[one][0] for one in group.producers) == 3 * left for group in found)


@pytest.mark.parametrize("batch_first", [False, True])
def test_fewer_heads_take_what_torchs_attention_takes(batch_first: bool) -> None:
    whole = made(lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first))
    whole.in_proj_bias.uniform_(-1, 1)
    columns = torch.arange(WIDTH) < WIDTH // 2
    fewer = FewerHeads(whole, columns.repeat(3), columns, HEADS // 2)
    whole.out_proj.weight[:, ~columns] = 0
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(5, 7, WIDTH, generator=random) for _ in range(3))
    padding = torch.zeros(5 if batch_first else 7, 7 if batch_first else 5, dtype=torch.bool)
    padding[1, 2:] = True
    length = padding.shape[1]
    causal = nn.Transformer.generate_square_subsequent_mask(length)
    with torch.no_grad():
        for inputs in ((query, query, query), (query, key, value)):
            for options in (
                {},
                {"need_weights": False},
                {"key_padding_mask": padding, "attn_mask": causal.isinf()},
                {"attn_mask": causal, "is_causal": True, "need_weights": False},
            ):
                torch.testing.assert_close(fewer(*inputs, **options)[0], whole(*inputs, **options)[0])
        single = query[0], key[0], value[0]
        torch.testing.assert_close(fewer(*single)[0], whole(*single)[0])
    half = made(lambda: nn.MultiheadAttention(WIDTH, HEADS, bias=False))
    assert FewerHeads(half, columns.repeat(3), columns, HEADS // 2)(query, query, query)[1].shape == (7, 5, 5)


@pytest.mark.parametrize("name", ["parts first", "apart", "heads first", "encoder"])
def test_the_output_projection_makes_up_for_them_as_least_squares_does(
    name: str, small_images: Tensor
) -> None:
    """From the statistics alone what a dense solution finds on the inputs themselves."""
    model = made(MODELS[name])
    group = heads(model)[0]
    layer = {one.name: one for one in walk(model)}[group.consumers[0]]
    inputs: list[Tensor] = []
    if isinstance(layer.module, nn.Linear) and name != "encoder":
        layer.module.register_forward_hook(lambda module, seen, output: inputs.append(seen[0]))
        run(model, small_images)
    else:  # torch's own never calls it: with an identity in its place attention gives what it would read
        attention = model.get_submodule(group.attention)
        attention.register_forward_hook(lambda module, seen, output: inputs.append(output[0]))
        weight, bias = layer.weight.clone(), layer.bias.clone()
        layer.weight.copy_(torch.eye(WIDTH))
        layer.bias.zero_()
        run(model, small_images)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    read = inputs[0].reshape(-1, WIDTH).double()
    moments = collect(model, small_images)[layer.name]
    kept = group.staying(torch.tensor([1, 2])).repeat_interleave(WIDTH // HEADS)
    fitted = refit(layer.weight, kept, moments.covariance[0], ridge=1e-5)
    shift = (layer.weight - fitted) @ moments.mean[0]
    wanted = read @ layer.weight.double().T
    known = torch.cat([read[:, kept], torch.ones(len(read), 1, dtype=torch.float64)], 1)
    best = known @ torch.linalg.lstsq(known, wanted).solution
    ours = read @ fitted.double().T + shift.double()
    assert not fitted[:, ~kept].any()
    least = (best - wanted).square().mean()
    assert (ours - wanted).square().mean() < 1.01 * least
    untouched = read[:, kept] @ layer.weight[:, kept].double().T
    assert least < 0.9 * (untouched - wanted).square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", MODELS)
def test_shrunk_equals_masked(name: str, order: str, small_images: Tensor) -> None:
    found = plan(made(MODELS[name]), small_images, order=order)
    counts, shrunk = kept_counts(found, 0.5), shrink(found, 0.5)
    expected = run(masked_model(found, found.gone(counts)), small_images)
    torch.testing.assert_close(run(shrunk.module, small_images), expected, rtol=1e-3, atol=1e-4)
    if order == "magnitude":
        assert all(counts[group.name] == group.channels // 2 for group in found.free)
    widths = {layer.name: len(layer.weight) for layer in walk(shrunk.module)}
    assert shrunk.kept
    assert all(widths[layer] == len(kept) for layer, kept in shrunk.kept.items())


@pytest.mark.parametrize("name", ["encoder", "torchvision"])
def test_what_is_left_is_fine_tuned(name: str, small_images: Tensor) -> None:
    teacher = made(MODELS[name])
    student = shrink(plan(teacher, small_images), 0.5).module
    found = recover(student, teacher, {}, small_images, 60)
    assert found.after < 0.8 * found.before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine"),
    [("encoder", "openvino"), ("encoder", "onnxruntime"), ("encoder", "sparse"), ("torchvision", "openvino")],
)
def test_engines_run_what_is_left(name: str, engine: str, small_images: Tensor) -> None:
    """Both have the same attention where heads went."""
    if problem := engine_named(engine).problem():
        pytest.skip(problem)
    smaller = shrink(plan(made(MODELS[name]), small_images), 0.5).module
    images = small_images[:8]
    build = engine_named(engine).prepare(smaller, SMALL_SHAPE)
    runner = build(compress(smaller, Recipe()), images, threads=1, batch=1)
    np.testing.assert_allclose(runner.score(images.numpy()), run(smaller, images).numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_recipe_takes_heads_and_rounds_what_is_left() -> None:
    data = DataSpec(limit=60)
    recipe = Recipe(PruneSpec("channels", sparsity=0.5), QuantizeSpec("compensated", weight_bits=4))
    made = compressed_model(Request("fashion-vit", recipe, data=data))
    assert made.module.blocks[0].heads == 2
    assert made.weights["blocks.0.qkv.weight"].values.shape == (96, 64)
    counted = inspect(Request("fashion-vit", recipe, data=data))
    tuned = compressed_model(Request("fashion-vit", replace(recipe, finetune_steps=4), data=data))
    for name, weight in tuned.weights.items():
        assert torch.equal(weight.codes.scale, made.weights[name].codes.scale)
        assert torch.equal(weight.codes.values, tuned.module.get_parameter(name))
    assert counted.size.nonzero < 0.6 * counted.baseline_size.nonzero
