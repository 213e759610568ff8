import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from small_models import SMALL_MODELS, SMALL_SHAPE, Pooled, Small, Standardised, macs
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.utils.flop_counter import FlopCounterMode

from optimizer.model import products
from optimizer.model.architectures import ARCHITECTURES, IMAGE_SHAPE
from optimizer.model.layers import multiplications, notes_on_others, uses, walk, with_shared_bias


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


def test_of_a_copy_is_known_what_was_found_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Conv2d):
        """What a library's convolutions are: it takes a run to see that they multiply with their weight."""

    model = nn.Sequential(Own(3, 4, 3), nn.ReLU(), Standardised(4, 5, 3))
    names = [layer.name for layer in walk(model)]
    with monkeypatch.context() as changed:
        changed.delattr(products, "_seen_to_multiply")
        assert [layer.name for layer in walk(products.deep_copy(model))] == names == ["0.weight"]
        with pytest.raises(NameError):
            list(walk(copy.deepcopy(model)))


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


def test_a_complex_weight_is_no_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.cfloat), nn.Linear(4, 2))
    assert [layer.name for layer in walk(model)] == ["1.weight"]


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
