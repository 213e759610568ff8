"""Moments against inputs that are unrolled by hand."""

import pytest
import torch
from small_models import SMALL_MODELS, SMALL_SHAPE, Pooled, Small, made, untouched
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.calibration import moments
from optimizer.compression.calibration.moments import (
    as_rows,
    channels_last,
    collect,
    damped,
    positions_for,
    quadratic,
)
from optimizer.errors import InputError
from optimizer.model.layers import walk
from optimizer.system.threads import thread_count


def by_hand(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """Every unrolled input ``[G, rows, d]`` of a convolution without padding beyond zeros."""
    columns = functional.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    rows = columns.transpose(1, 2).reshape(-1, layer.groups, columns.shape[1] // layer.groups)
    return rows.transpose(0, 1)


@pytest.fixture
def unshrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position, and covariances as they are."""
    monkeypatch.setattr(moments, "NARROW", 1 << 20)
    monkeypatch.setattr(moments, "DEPTHWISE_POSITIONS", 400)


class Cast(nn.Module):
    """Its layers multiply in bfloat16, with copies of their weights, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(SMALL_SHAPE[1] * SMALL_SHAPE[2], 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.body(self.body(x)).flatten(1)).float()


def test_layers_that_multiply_with_a_copy_of_their_weight_have_the_same_moments(small_images: Tensor) -> None:
    model = made(Cast)
    found = collect(model, small_images)
    with torch.autocast("cpu", enabled=False):
        exact = collect(nn.Sequential(model.body, model.body, nn.Flatten(), model.head), small_images)
    assert len(found) == len(exact) == 2
    for one, other in zip(found.values(), exact.values(), strict=True):
        torch.testing.assert_close(one.second, other.second, rtol=0.02, atol=0.02)


def test_a_copy_of_some_rows_gets_a_layer_no_moments(small_images: Tensor) -> None:
    class InPart(Cast):
        def forward(self, x: Tensor) -> Tensor:
            rows = functional.linear(x.flatten(1).bfloat16(), self.head.weight[:4].bfloat16())
            return super().forward(x) + rows.sum(1, keepdim=True)

    assert "head.weight" not in collect(made(InPart), small_images)


@pytest.mark.usefixtures("unshrunk")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=(2, 1)),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 6, (1, 3), groups=2),
        nn.Conv2d(4, 6, 1, stride=2, bias=False),
    ],
)
def test_moments_of_convolutions_are_those_of_the_unrolled_inputs(layer: nn.Conv2d) -> None:
    images = torch.randn(10, 4, 7, 5) + 1
    rows = by_hand(layer, images)
    mean = rows.mean(1)
    covariance = (rows - mean[:, None]).mT @ (rows - mean[:, None]) / rows.shape[1]
    found = collect(nn.Sequential(layer), images)["0.weight"]
    torch.testing.assert_close(found.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.second, rows.mT @ rows / rows.shape[1], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unshrunk")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [4, moments.SOLVED_TOGETHER + 64])
def test_several_matrices_are_solved_with_on_several_threads(size: int) -> None:
    random = torch.Generator().manual_seed(0)
    factors = torch.randn(2, size, size, generator=random)
    matrices, right = factors @ factors.mT / size + torch.eye(size), torch.randn(2, size, 3, generator=random)
    with thread_count(2):
        found = moments.solved(matrices, right)
    torch.testing.assert_close(matrices @ found, right, rtol=1e-3, atol=1e-3)


def test_what_a_change_costs_is_what_it_does_to_the_outputs() -> None:
    layer, images = nn.Conv2d(3, 5, 3, padding="same"), torch.randn(12, 3, 6, 6)
    change = 0.1 * torch.randn_like(layer.weight)
    found = collect(nn.Sequential(layer), images)["0.weight"]
    done = functional.conv2d(images, change, padding="same")
    told = quadratic(as_rows(change, 1), found.second).sum()
    torch.testing.assert_close(told, done.square().mean((0, 2, 3)).sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_layer_that_runs_has_moments(small: Small, small_images: Tensor, name: str) -> None:
    model = small(name)
    found = collect(model, small_images)
    expected = {layer.name for layer in walk(model)} - {"auxiliary.weight"}  # which runs in training only
    assert set(found) == expected
    for layer in walk(model):
        if layer.name in found:
            groups, columns = found[layer.name].mean.shape
            assert as_rows(layer.weight, groups).shape[2] == columns


@pytest.mark.usefixtures("unshrunk")
def test_attention_is_seen_into(small: Small, small_images: Tensor) -> None:
    """Its output projection is inside torch's own code: what it gets is told by what it gives."""
    model = small("encoder")
    with torch.no_grad():
        model.attention.out_proj.weight.copy_(torch.eye(12))
        model.attention.out_proj.bias.zero_()
    tokens = model.norm(model.patches(small_images).flatten(2).transpose(1, 2))
    attended = model.attention(tokens, tokens, tokens, need_weights=False)[0].detach().reshape(-1, 12)
    found = collect(model, small_images)
    torch.testing.assert_close(found["attention.out_proj.weight"].mean[0], attended.mean(0))
    torch.testing.assert_close(
        found["attention.in_proj_weight"].covariance[0],
        torch.cov(tokens.detach().reshape(-1, 12).T, correction=0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_attention_to_other_tokens_gets_no_moments_of_its_queries_alone(small_images: Tensor) -> None:
    found = collect(Pooled().eval(), small_images)
    assert set(found) == {"patches.weight", "attention.out_proj.weight", "head.weight"}


class Tied(nn.Module):
    """Decodes with the encoder's weight, the other way round."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.encoder = nn.Linear(64, 16), nn.Linear(16, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.encoder(self.first(x.flatten(1))), self.encoder.weight.t())


@pytest.mark.parametrize("hidden", [12, 16, 20])
def test_a_weight_that_is_also_used_the_other_way_round_gets_no_moments(
    small_images: Tensor, hidden: int
) -> None:
    assert set(collect(Tied(hidden).eval(), small_images)) == {"first.weight"}


class Flattened(nn.Module):
    """Multiplies patches with a convolution's weight, as one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = functional.unfold(x, 2, stride=2).mT
        return functional.linear(rows, self.patches.weight.view(4, -1), self.patches.bias)


def test_a_weight_may_be_used_in_another_shape(small_images: Tensor) -> None:
    model = Flattened().eval()
    found = collect(model, small_images)["patches.weight"]
    expected = collect(model.patches, small_images)["weight"]
    torch.testing.assert_close(found.covariance, expected.covariance)
    torch.testing.assert_close(found.mean, expected.mean)


class Gated(nn.Module):
    """Scales channels by what a layer makes of a learnt vector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(1, 8, 3), nn.Linear(32, 8)
        self.vector = nn.Parameter(torch.arange(32.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3)) * self.gate(self.vector)


def test_a_layer_may_read_a_vector_that_no_image_is_in(small_images: Tensor) -> None:
    model = Gated().eval()
    found = collect(model, small_images)["gate.weight"]
    torch.testing.assert_close(found.mean[0], model.vector.detach())
    assert found.covariance.abs().max() == 0


def test_what_few_images_say_of_many_columns_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(80, 4))
    mixing = torch.randn(12, 80, generator=torch.Generator().manual_seed(1))
    images = torch.randn(4_000, 12, generator=torch.Generator().manual_seed(2)) @ mixing
    truth = mixing.T @ mixing
    few = collect(model, images[:40])["1.weight"]
    many = collect(model, images)["1.weight"]
    assert 0 < many.shrinkage < 0.2 < few.shrinkage < 1
    monkeypatch.setattr(moments, "NARROW", 1 << 20)
    plain = collect(model, images[:40])["1.weight"]
    assert (few.covariance - truth).norm() < 0.9 * (plain.covariance - truth).norm()


def test_one_image_says_nothing_of_how_columns_go_together() -> None:
    found = collect(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), torch.randn(1, 100))["1.weight"]
    assert found.shrinkage == 1
    assert (found.covariance == found.covariance.diagonal(dim1=1, dim2=2).diag_embed()).all()


def test_constant_images_cost_nothing_and_break_nothing() -> None:
    found = collect(nn.Sequential(nn.Conv2d(1, 3, 3)), torch.ones(20, 1, 8, 8))["0.weight"]
    assert found.covariance.abs().max() < 1e-6
    assert torch.linalg.cholesky(damped(found.covariance)).isfinite().all()


def test_few_images_leave_it_open_how_far_a_mean_varies() -> None:
    inputs = torch.cat([torch.full((12, 1), 3.0), torch.zeros(12, 1)], 1)
    for count, variance in {1: 4.5, 2: 3.0, 8: 0.0, 12: 0.0}.items():
        found = collect(nn.Sequential(nn.Linear(2, 3)), inputs[:count])["0.weight"]
        torch.testing.assert_close(found.covariance[0], torch.tensor([[variance, 0.0], [0.0, 0.0]]))


def test_positions_are_drawn_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "MIN_POSITIONS", 60)
    layer, images = nn.Conv2d(2, 3, 3), torch.randn(200, 2, 20, 20)
    drawn = collect(nn.Sequential(layer), images)["0.weight"]
    rows = by_hand(layer, images)
    assert (drawn.covariance[0] - torch.cov(rows[0].T)).abs().max() < 0.05


def test_more_columns_get_more_positions_within_bounds() -> None:
    found = [positions_for(columns) for columns in range(1, moments.MAX_COLUMNS + 1)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (moments.MIN_POSITIONS, moments.MAX_POSITIONS)


class Viewer(nn.Module):
    """Its own code takes for granted how activations lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x.view(len(x), -1))


def test_channels_last_is_a_copy_that_tells_the_same(small: Small, small_images: Tensor) -> None:
    model = small("cnn")
    twin, images = channels_last(model, small_images)
    assert twin is not model
    assert torch.equal(images, small_images)
    assert twin.project[0].weight.data_ptr() != model.project[0].weight.data_ptr()
    found, expected = collect(twin, images), collect(model, small_images)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name].covariance, wanted.covariance, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[name].mean, wanted.mean, rtol=1e-3, atol=1e-4)


class Centred(nn.Module):
    """Has channels last by itself: on images that lie so already, it would write into them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.contiguous(memory_format=torch.channels_last).sub_(0.5)).mean((2, 3))


def test_models_that_take_no_other_layout_stay_as_they_are(small_images: Tensor) -> None:
    viewer, linear, two = Viewer(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.randn(4, 2, 8, 8)
    for model, images in ((viewer, two), (Centred(), two), (linear, small_images)):
        left, same = channels_last(model, images)
        assert (left, same.data_ptr()) == (model, images.data_ptr())


class Deep(nn.Module):
    """A convolution of volumes after one of images."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(1, 4, 3), nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(self.flat(x).unsqueeze(1)).mean((3, 4)).flatten(1)


def test_a_model_with_weights_of_five_dimensions_stays_as_it_is(small_images: Tensor) -> None:
    model = Deep().eval()
    same, images = channels_last(model, small_images)
    assert same is model
    assert images is small_images
    assert set(collect(model, small_images)) == {"flat.weight", "deep.weight"}


def test_layers_that_are_too_wide_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "MAX_COLUMNS", 20)
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 10), nn.Linear(10, 2))
    assert set(collect(model, torch.randn(8, 30))) == {"2.weight"}


def test_the_model_is_left_as_it_was(small: Small, small_images: Tensor) -> None:
    model = small("encoder")
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with untouched(model):
        collect(model, small_images)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_bad_images_are_refused(small: Small, small_images: Tensor) -> None:
    with pytest.raises(InputError, match="no calibration images: give a folder"):
        collect(small("cnn"), small_images[:0])
    small_images[3, 0, 2, 2] = torch.nan
    with pytest.raises(InputError, match="not finite: look at the preprocessing"):
        collect(small("cnn"), small_images)
