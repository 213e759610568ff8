from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from small_models import SMALL_MODELS, SMALL_SHAPE, Pooled
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.utils.flop_counter import FlopCounterMode

from optimizer.model import layers
from optimizer.model.architectures import ARCHITECTURES, IMAGE_SHAPE
from optimizer.model.layers import (
    BATCH_NORMS,
    fold_batch_norm,
    multiplications,
    notes_on_others,
    uses,
    walk,
    with_shared_bias,
)

Small = Callable[[str], nn.Module]


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    runs = multiplications(model, shape)
    return sum(layer.weight.numel() * runs[layer.name] for layer in walk(model))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, BATCH_NORMS) for module in model.modules())


def test_the_walk_names_every_weight_that_multiplies_and_nothing_else(small: Small) -> None:
    assert [(layer.name, layer.kind) for layer in walk(small("cnn"))] == [
        ("stem.0.weight", "convolution"),
        ("depthwise.0.weight", "depthwise convolution"),
        ("project.0.weight", "convolution"),
        ("head.weight", "linear"),
    ]
    assert [(layer.name, layer.kind) for layer in walk(small("encoder"))] == [
        ("patches.weight", "convolution"),
        ("attention.in_proj_weight", "attention projection"),
        ("attention.out_proj.weight", "linear"),
        ("head.weight", "linear"),
    ]


def test_a_layer_alone_and_a_layer_deep_inside_are_named_by_their_path() -> None:
    assert [layer.name for layer in walk(nn.Linear(2, 2))] == ["weight"]
    deep = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    (layer,) = walk(deep)
    assert layer.name == "0.0.0.weight"
    assert layer.module_name == "0.0.0"
    assert deep.get_submodule(layer.module_name) is layer.module


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_names_lead_to_the_weights(small: Small, name: str) -> None:
    model = small(name)
    for layer in walk(model):
        assert model.get_parameter(layer.name) is layer.weight


def test_biases_that_something_else_adds_too() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)), nn.LayerNorm(4))
    assert with_shared_bias(model) == set()
    model[1].bias = model[0].bias
    model[2].weight, model[2].bias = model[3].weight, model[3].bias  # one layer, used twice
    model[4].bias = model[6].bias
    assert with_shared_bias(model) == {"0.weight", "1.weight", "4.weight"}


def test_a_weight_of_two_modules_comes_once_and_both_modules_use_it(small: Small) -> None:
    model = small("tied")
    assert [layer.name for layer in walk(model)] == ["first.weight", "left.weight", "head.weight"]
    assert [(layer.name, layer.module) for layer in uses(model)][1:3] == [
        ("left.weight", model.left),
        ("left.weight", model.right),
    ]


def test_a_module_registered_twice_comes_once() -> None:
    linear = nn.Linear(2, 2)
    assert [layer.name for layer in walk(nn.Sequential(linear, nn.ReLU(), linear))] == ["0.weight"]


def test_a_weight_computed_from_others_is_no_layer() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    assert [layer.name for layer in walk(model)] == ["1.weight"]


def test_attention_with_separate_projections_keeps_its_output_projection() -> None:
    model = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    assert [layer.name for layer in walk(model)] == ["out_proj.weight"]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(5, 3), (5,), 1),
        (nn.Linear(5, 3), (7, 5), 7),
        (nn.Conv2d(2, 4, 3), (2, 8, 10), 6 * 8),
        (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 8, 10), 4 * 5),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 8, 10), 8 * 10),
        (nn.Conv2d(2, 4, 3, dilation=2), (2, 8, 10), 4 * 6),
        (nn.Conv1d(2, 4, 3), (2, 9), 7),
        (nn.Conv3d(1, 2, 2), (1, 3, 4, 5), 2 * 3 * 4),
    ],
    ids=str,
)
def test_multiplications_against_hand_counts(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert multiplications(layer, shape) == {"weight": expected}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn", {"stem.0.weight": 16, "depthwise.0.weight": 16, "project.0.weight": 16, "head.weight": 1}),
        (
            "encoder",
            {
                "patches.weight": 16,
                "attention.in_proj_weight": 16,
                "attention.out_proj.weight": 16,
                "head.weight": 1,
            },
        ),
        ("shared", {"first.weight": 1, "again.weight": 2, "head.weight": 1}),
        ("tied", {"first.weight": 1, "left.weight": 2, "head.weight": 1}),
        ("auxiliary", {"body.weight": 1, "auxiliary.weight": 0, "head.weight": 1}),
    ],
)
def test_multiplications_of_models_against_hand_counts(
    small: Small, name: str, expected: dict[str, int]
) -> None:
    assert multiplications(small(name), SMALL_SHAPE) == expected


@pytest.mark.parametrize("batched", [True, False])
def test_a_convolution_is_counted_in_every_frame_that_the_model_makes_a_batch_of(batched: bool) -> None:
    """Or a layer without a batch, in its one."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, video: Tensor) -> Tensor:
            frames = video.flatten(0, 1)
            return self.layer(frames) if batched else torch.stack([self.layer(frame) for frame in frames])

    assert multiplications(Frames(), (5, 3, 8, 10)) == {"layer.weight": 5 * 6 * 8}


class Functional(nn.Module):
    """Multiplies with its layers' weights itself, without calling them, as torchvision's Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(SMALL_SHAPE[0], 4, 3)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.third = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        several = (conv2d(x, self.filters.weight, padding=apart, dilation=apart) for apart in (1, 2))
        pixels = sum(several, self.filters(x)[..., :1, :1]).flatten(2).mT
        x = linear(pixels, self.first.weight, self.first.bias) @ self.second.weight.T
        x = linear(torch.einsum("nto,io->nti", x, self.second.weight), self.third.weight)
        return linear(x, self.third.weight.T).mean(1)  # a decoder that is tied to its encoder


def test_products_that_the_model_s_own_code_makes_are_counted() -> None:
    counts = multiplications(Functional().eval(), SMALL_SHAPE)
    pixels = SMALL_SHAPE[1] * SMALL_SHAPE[2]
    inside = (SMALL_SHAPE[1] - 2) * (SMALL_SHAPE[2] - 2)
    assert counts == {
        "filters.weight": 2 * pixels + inside,
        "first.weight": pixels,
        "second.weight": 2 * pixels,
        "third.weight": 2 * pixels,
    }


def test_swin_s_attention_is_counted() -> None:
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer([2, 2], 8, [2], [2], [4, 4], num_classes=3).eval()
    shape = (3, 16, 16)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape))
    flops = counter.get_flop_counts()["Global"]  # of bmm are those of scores and values
    assert macs(model, shape) == sum(flops[one] for one in flops if one is not torch.ops.aten.bmm) / 2


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_multiplies_with_both_projections_once_a_token(batch_first: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            x = x if batch_first else x.transpose(0, 1)
            return self.attention(query=x, key=x, value=x)[0]

    counts = multiplications(Attention().eval(), (5, 4))
    assert counts == {"attention.in_proj_weight": 5, "attention.out_proj.weight": 5}


def test_attention_to_other_tokens_counts_queries_keys_and_values_apart() -> None:
    counts = multiplications(Pooled().eval(), SMALL_SHAPE)
    assert (counts["attention.in_proj_weight"], counts["attention.out_proj.weight"]) == (12, 4)


def test_torch_s_own_encoder_layer_is_counted_off_its_fused_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    assert set(multiplications(layer, (5, 8)).values()) == {5}


@pytest.mark.parametrize("name", [*ARCHITECTURES, "cnn", "shared", "tied"])
def test_multiply_accumulates_are_half_of_torch_s_own_flop_count(small: Small, name: str) -> None:
    bundled = name in ARCHITECTURES
    model = ARCHITECTURES[name]().eval() if bundled else small(name)
    shape = IMAGE_SHAPE if bundled else SMALL_SHAPE
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape))
    weighted = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
    flops = sum(counter.get_flop_counts()["Global"].get(operation, 0) for operation in weighted)
    assert flops > 0
    assert macs(model, shape) == flops / 2


def test_counting_leaves_no_hook_even_when_the_model_fails(small: Small) -> None:
    model = small("cnn")
    multiplications(model, SMALL_SHAPE)
    with pytest.raises(RuntimeError):
        multiplications(model, (5, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["fashion-resnet", "fashion-mobilenet", "cnn"])
def test_folding_gives_the_same_outputs_without_batch_norm(small: Small, name: str) -> None:
    """Residuals, shortcuts and depthwise convolutions, with statistics other than a fresh model's."""
    if name == "cnn":
        model, images = small("cnn"), torch.randn(4, *SMALL_SHAPE)
    else:
        torch.manual_seed(0)
        model, images = ARCHITECTURES[name](), torch.randn(16, *IMAGE_SHAPE)
        with torch.no_grad():
            model.train()(images)
        model.eval()
    folded, notes = fold_batch_norm(model)
    assert norms(model) > 0
    assert norms(folded) == 0
    assert notes == ()
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)


def test_folding_the_bundled_network_keeps_its_outputs(resnet) -> None:  # type: ignore[no-untyped-def]
    images = torch.randn(8, *IMAGE_SHAPE)
    folded, notes = fold_batch_norm(resnet.module)
    assert (norms(folded), notes) == (0, ())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), resnet.module(images), rtol=1e-4, atol=1e-4)


def test_folding_copies(small: Small) -> None:
    model = small("cnn").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded, _ = fold_batch_norm(model)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in folded.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Block(nn.Module):
    """Convolution and batch norm, put together as each test says."""

    def __init__(self, run: Callable[["Block", Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.other = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda m, x: m.norm(m.conv(m.conv(x))), 2),
        (lambda m, x: m.norm(m.conv(x)) + m.norm(x), 2),
        (lambda m, x: m.norm(y := m.conv(x)) + y, 2),
        (lambda m, x: m.norm(torch.relu(m.conv(x))), 2),
        (lambda m, x: m.other(m.norm(m.conv(x))), 1),
        (lambda m, x: m.norm(input=m.conv(input=x)), 1),
    ],
    ids=["convolution twice", "norm twice", "output used twice", "not adjacent", "two norms", "keywords"],
)
def test_only_a_norm_that_alone_follows_a_convolution_is_folded(
    run: Callable[[Block, Tensor], Tensor], left: int
) -> None:
    torch.manual_seed(1)
    model = Block(run)
    with torch.no_grad():
        for norm in (model.norm, model.other):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    folded, notes = fold_batch_norm(model)
    assert norms(folded) == left
    assert notes == (f"batch norms that can't be folded into a convolution: {left}",)
    images = torch.randn(2, *SMALL_SHAPE)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model.eval()(images))


def test_a_norm_without_running_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    folded, notes = fold_batch_norm(model)
    assert norms(folded) == len(notes) == 1


def test_a_norm_after_a_linear_layer_stays_and_is_noted() -> None:
    folded, notes = fold_batch_norm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    assert norms(folded) == 1
    assert notes == ("batch norms that can't be folded into a convolution: 1",)


def test_a_model_that_cannot_be_traced_is_left_unfolded_and_noted() -> None:
    model = Block(lambda m, x: m.norm(m.conv(x)) if x.sum() > 0 else x)
    folded, notes = fold_batch_norm(model)
    assert norms(folded) == 2
    assert "batch norm is not folded: the model can't be traced" in notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small"])
def test_a_model_that_cannot_be_traced_is_folded_as_it_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    traced, _ = fold_batch_norm(model)
    monkeypatch.setattr(layers, "_traced_pairs", None)
    folded, _ = fold_batch_norm(model, (3, 64, 64))
    assert norms(folded) == norms(traced)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), traced(images))


@pytest.mark.parametrize("how", ["read twice", "returned", "decided"])
def test_a_batch_norm_that_does_not_alone_read_stays_also_as_it_runs(how: str) -> None:
    def run(m: Block, x: Tensor) -> Any:
        assert type(x) is Tensor, "no tracing"
        made = m.conv(x)
        if how == "decided" and x.sum() > 1:
            return made
        answer = m.norm(made)
        return {"read twice": answer + made, "returned": (answer, made), "decided": answer}[how]

    folded, notes = fold_batch_norm(Block(run), SMALL_SHAPE)
    assert norms(folded) == (2 if how == "decided" else 1), "the second never runs"
    assert any("norm" in note and "folded" in note for note in notes)


def test_a_convolution_of_a_library_s_own_class_is_folded_and_keeps_its_class() -> None:
    class SamePadding(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    torch.manual_seed(0)
    model = nn.Sequential(SamePadding(1, 4, 2), nn.BatchNorm2d(4))
    nn.init.normal_(model[1].running_mean)
    folded, notes = fold_batch_norm(model)
    assert type(folded[0]) is SamePadding
    assert (norms(folded), notes) == (0, ())
    images = torch.randn(2, *SMALL_SHAPE)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model.eval()(images))


def test_a_model_without_batch_norm_gets_a_copy_and_no_note(small: Small) -> None:
    model = small("encoder")
    folded, notes = fold_batch_norm(model)
    assert notes == ()
    assert folded is not model
    for name, tensor in model.state_dict().items():
        assert torch.equal(folded.state_dict()[name], tensor)


def busy(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """With statistics and a gain other than a fresh one's."""
    for tensor in (norm.running_mean, norm.bias):
        nn.init.normal_(tensor)
    for tensor in (norm.running_var, norm.weight):
        nn.init.uniform_(tensor, 0.5, 2)
    return norm


def folds(model: nn.Module, shape: tuple[int, ...] | None = SMALL_SHAPE) -> tuple[nn.Module, tuple[str, ...]]:
    """Folded, its answers still the model's."""
    folded, notes = fold_batch_norm(model, shape)
    images = torch.randn(2, *SMALL_SHAPE)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model.eval()(images))
    return folded, notes


class Aliased(nn.Module):
    """What runs stands under a second name too, the first (``early``) or the last."""

    def __init__(self, early: bool, index: int) -> None:
        super().__init__()
        parts = nn.Conv2d(1, 4, 3), busy(nn.BatchNorm2d(4)), nn.ReLU()
        if early:
            self.alias = parts[index]
        self.block = nn.Sequential(*parts)
        if not early:
            self.alias = parts[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("runs", [True, False])
def test_what_the_model_has_under_two_names_is_folded_under_both(
    early: bool, index: int, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runs:
        monkeypatch.setattr(layers, "_traced_pairs", None)
    folded, notes = folds(Aliased(early, index))
    assert (norms(folded), notes) == (0, ())
    assert list(multiplications(folded, SMALL_SHAPE).values()) == [36], (
        "one layer, and it is the one that runs"
    )


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("shape", [SMALL_SHAPE, None])
@pytest.mark.parametrize(
    "pair",
    [
        lambda: (Standardised(4, 4, 3), nn.BatchNorm2d(4)),
        lambda: (nn.Conv2d(4, 4, 3), Activated(4)),
    ],
    ids=["standardised weight", "norm with an activation"],
)
def test_what_is_more_than_a_convolution_and_its_norm_stays_and_the_others_are_folded(
    pair: Callable[[], tuple[nn.Module, nn.BatchNorm2d]], shape: tuple[int, ...] | None
) -> None:
    torch.manual_seed(0)
    convolution, norm = pair()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), busy(nn.BatchNorm2d(4)), convolution, busy(norm))
    folded, notes = folds(model, shape)
    assert isinstance(folded[1], nn.Identity)
    assert notes == ("batch norms that can't be folded into a convolution: 1",)


def test_nothing_is_folded_where_the_outputs_would_be_others() -> None:
    """A list is no place where a module can be replaced."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), busy(nn.BatchNorm2d(4))
            self.order = [self.conv, self.norm]

        def forward(self, x: Tensor) -> Tensor:
            for part in self.order:
                x = part(x)
            return x

    folded, notes = folds(Listed())
    assert notes == ("batch norm is not folded: the outputs would not stay the same",)
    assert norms(folded) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tf_efficientnet_b0"])
def test_a_norm_of_timm_is_folded_and_its_activation_stays(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    folded, notes = fold_batch_norm(model, (3, 32, 32))
    assert (norms(folded), notes) == (0, ())
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-4)


def test_a_weight_that_two_convolutions_share_stays_shared() -> None:
    first, second, norm, other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    second.weight, norm.running_var = first.weight, torch.full((3,), 4.0)
    model = nn.Sequential(first, norm, second, other).eval()
    folded, notes = fold_batch_norm(model, (3, 4, 4))
    assert [layer.name for layer in walk(folded)] == [layer.name for layer in walk(model)]
    assert notes == ("batch norms that can't be folded into a convolution: 2",)
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(folded(images), model(images))


class Transposed(nn.Linear):
    """A linear layer in code of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() + self.bias


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


class Gated(nn.Linear):
    """It takes another input than a linear layer does."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return super().forward(x) * gate


class Standardising(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


@pytest.mark.parametrize(
    ("made", "touched"),
    [
        (lambda: Standardised(4, 4, 3), False),
        (lambda: Standardising(4, 4, 3), False),
        (lambda: Scaled(4, 4), False),
        (lambda: Transposed(4, 4), True),
        (lambda: Gated(4, 4), True),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_library_s_layer_that_multiplies_with_what_its_weight_becomes_is_none_to_touch(
    made: Callable[[], nn.Module], touched: bool, inference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros of its weight are none in what is multiplied. Random numbers are as before, on a GPU too."""
    torch.manual_seed(0)
    layer, state = made(), torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("another device is seeded"))
    layer.register_forward_hook(lambda *_: pytest.fail("a hook of whoever measures"))
    with torch.inference_mode(inference):
        assert [one.name for one in walk(nn.Sequential(layer))] == (["0.weight"] if touched else [])
    assert torch.equal(torch.get_rng_state(), state)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.banks = nn.Parameter(torch.zeros(2, 10, 10))


def test_what_no_recipe_changes_is_named_largest_first_where_it_is_a_considerable_share() -> None:
    plain = nn.Linear(10, 10, bias=False)
    assert notes_on_others(nn.Sequential(plain, nn.BatchNorm1d(2), nn.Flatten())) == ()
    model = nn.ModuleDict(
        {
            "head": plain,
            "gru": nn.GRU(10, 10, bias=False),
            "up": nn.ConvTranspose2d(5, 5, 2, bias=False),
            "moe": Experts(),
            "table": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2, bias=False)),
            "apart": nn.MultiheadAttention(10, 1, kdim=5, vdim=5, bias=False),
        }
    )
    outside = 600 + 100 + 200 + 6 + 200
    percent = 100 * outside / (outside + 100 + 100)
    assert notes_on_others(model) == (
        f"{percent:.0f} % of this model's weights are in layers that no recipe prunes or rounds: "
        "gru (GRU), moe (Experts), apart (MultiheadAttention) and 2 more",
    )
    others = "of this model's weights are in layers that no recipe prunes or rounds:"
    tied = nn.ModuleDict({"head": nn.Linear(4, 9), "table": nn.Embedding(9, 4), "pair": nn.Linear(2, 2)})
    assert notes_on_others(tied) == (f"41 % {others} table (Embedding)",)
    tied["table"].weight = tied["head"].weight
    assert notes_on_others(tied) == (
        "table (Embedding) has head.weight for its own weight: what a recipe prunes and rounds of one is "
        "pruned and rounded in both",
    )
    assert notes_on_others(Experts()) == (f"100 % {others} Experts",)
    assert notes_on_others(nn.Sequential(plain, Standardised(5, 4, 1))) == (
        f"19 % {others} 1 (Standardised)",
    )
