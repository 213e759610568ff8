from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from small_models import SMALL_SHAPE, Small, Standardised, untouched
from torch import Tensor, nn

from optimizer.model import folding, layers
from optimizer.model.architectures import ARCHITECTURES, IMAGE_SHAPE
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import BATCH_NORMS, multiplications, tensors, walk


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, BATCH_NORMS) for module in model.modules())


def folds(model: nn.Module, shape: tuple[int, ...] | None = SMALL_SHAPE) -> tuple[nn.Module, tuple[str, ...]]:
    """Folded, its answers still the model's."""
    folded, notes = fold_batch_norm(model, shape)
    images = torch.randn(2, *SMALL_SHAPE)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model.eval()(images))
    return folded, notes


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


def test_cards_of_earlier_versions_find_it_where_it_was(small: Small) -> None:
    before, now = (fold(small("cnn"), SMALL_SHAPE)[0] for fold in (layers.fold_batch_norm, fold_batch_norm))
    assert all(map(torch.equal, tensors(before).values(), tensors(now).values()))


def test_folding_copies(small: Small) -> None:
    model = small("cnn").train()
    with untouched(model), torch.no_grad():
        folded, _ = fold_batch_norm(model)
        for parameter in folded.parameters():
            parameter.zero_()
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


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
    folded, notes = folds(model, None)
    assert norms(folded) == left
    assert notes == (f"batch norms that can't be folded into a convolution: {left}",)


def test_a_norm_without_running_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    folded, notes = fold_batch_norm(model)
    assert norms(folded) == len(notes) == 1


def test_a_norm_after_a_linear_layer_stays_and_is_noted() -> None:
    folded, notes = fold_batch_norm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    assert norms(folded) == 1
    assert notes == ("batch norms that can't be folded into a convolution: 1",)


class Perceptron(nn.Module):
    """Linear layers with batch norm, with or without bias and gain, read as a traced graph or as it runs."""

    def __init__(self, traced: bool) -> None:
        super().__init__()
        self.traced = traced
        self.first, self.norm = nn.Linear(64, 12, bias=False), nn.BatchNorm1d(12)
        self.second, self.plain = nn.Linear(12, 8), nn.BatchNorm1d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.traced:
            x = x.reshape([int(side) for side in x.shape])
        return self.plain(self.second(torch.relu(self.norm(self.first(x.flatten(1))))))


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "as it runs"])
def test_a_norm_after_a_linear_layer_is_folded_where_answers_can_be_compared(traced: bool) -> None:
    torch.manual_seed(1)
    model = Perceptron(traced)
    with torch.no_grad():
        model.train()(torch.randn(16, *SMALL_SHAPE))
    folded, notes = folds(model)
    assert (norms(folded), notes) == (0, ())


@pytest.mark.parametrize("tokens", [5, 6])
def test_a_norm_over_tokens_is_not_folded_into_a_linear_layer(tokens: int) -> None:
    """It scales tokens, be there as many of them as the layer has outputs."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(tokens)).eval()
    model[1].running_var.uniform_(0.5, 2)
    folded, notes = fold_batch_norm(model, (tokens, 4))
    assert (norms(folded), len(notes)) == (1, 1)


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
    monkeypatch.setattr(folding, "_traced_pairs", None)
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
    folded, notes = folds(model, None)
    assert type(folded[0]) is SamePadding
    assert (norms(folded), notes) == (0, ())


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
        monkeypatch.setattr(folding, "_traced_pairs", None)
    folded, notes = folds(Aliased(early, index))
    assert (norms(folded), notes) == (0, ())
    assert list(multiplications(folded, SMALL_SHAPE).values()) == [36], (
        "one layer, and it is the one that runs"
    )


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
