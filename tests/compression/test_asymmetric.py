"""Rounding or refitting once more, for the inputs that layers have behind those before them."""

from collections.abc import Callable

import pytest
import torch
from small_models import Pooled, Small, masks_and_grids, untouched
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression import asymmetric
from optimizer.compression.apply import compress
from optimizer.compression.asymmetric import PRUNED, ROUNDED, Pairs, refined
from optimizer.compression.calibration.moments import damped
from optimizer.compression.calibration.statistics import seen_and_held_out
from optimizer.compression.prune.compensated import MAX_SCALE
from optimizer.compression.quantize.compensated import MAX_GAIN, UNBIASED
from optimizer.compression.quantize.held import HeldGrid, moved
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

COARSE = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=3))


def always(done: int, count: int) -> bool:
    return True


@pytest.mark.parametrize("name", ["cnn", "encoder", "shared", "tied", "auxiliary"])
def test_masks_and_grids_stay_and_both_networks_are_left_as_they_were(
    small: Small, small_images: Tensor, name: str
) -> None:
    teacher = small(name)
    made = compress(teacher, COARSE)
    masks, grids = masks_and_grids(made)
    with untouched(teacher, made.module):
        found = refined(made.module, teacher, masks, grids, small_images, always)
    changed = 0
    for layer in walk(found):
        one = made.weights[layer.name]
        assert (layer.weight[~one.mask] == 0).all()
        assert one.codes is not None
        now = moved(one.codes, layer.weight)
        assert torch.equal(now.values, layer.weight)
        assert now.stored.min() >= -3
        assert now.stored.max() <= 3
        changed += int((now.centred != one.codes.centred).sum())
    assert changed


def fine(weight: Tensor) -> HeldGrid:
    """A grid so fine that hardly anything is lost on it."""
    step, last = torch.full_like(weight, 1e-4), torch.full_like(weight, 1e6)
    return HeldGrid(step, -last, last)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_layer_makes_up_for_the_one_before_it_as_least_squares_says(bias: bool, sparse: bool) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias)).eval()
    student = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias)).eval()
    student.load_state_dict(teacher.state_dict())
    student[0].weight.data += 0.2 * torch.randn(5, 6)
    images = torch.randn(128, 6) + 0.5
    mask = torch.ones(3, 5, dtype=torch.bool)
    if sparse:
        mask[:, 2] = False
        student[2].weight.data *= mask
    changed = refined(student, teacher, {"2.weight": mask}, {"2.weight": fine(mask.float())}, images, always)
    assert torch.equal(changed[0].weight, student[0].weight), "it has no grid"  # type: ignore[index, union-attr]

    seen, _ = seen_and_held_out(images)
    x, s = (model[1](model[0](seen)).detach() for model in (teacher, student))
    dense = teacher[2].weight.detach()
    middle, mean = (x.mean(0), s.mean(0)) if bias else (torch.zeros(5), torch.zeros(5))
    matrix = damped(((s - mean).T @ (s - mean) / len(s))[None])[0]
    residual = (x - middle - s + mean).T @ (s - mean) / len(s)
    wanted = dense + ROUNDED[0] * dense @ residual @ torch.linalg.inv(matrix)
    for row, keep, found in zip(wanted, mask, changed[2].weight, strict=True):  # type: ignore[index, union-attr]
        best = torch.linalg.solve(matrix[keep][:, keep], (matrix @ row)[keep])
        gain = (row @ matrix @ row / (best @ (matrix @ row)[keep])).clamp(1, MAX_GAIN) ** UNBIASED
        assert found[keep].tolist() == pytest.approx((gain * best).tolist(), abs=2e-3)
        assert (found[~keep] == 0).all()
    if bias:
        assert changed(seen).mean(0).tolist() == pytest.approx(teacher(seen).mean(0).tolist(), abs=1e-4)
        off = [(model(seen) - teacher(seen)).square().mean().item() for model in (student, changed)]
        assert off[1] < 0.7 * off[0]


@pytest.mark.parametrize("bias", [True, False])
def test_a_pruned_layer_makes_up_for_the_one_before_it_with_outputs_as_wide_as_they_were(bias: bool) -> None:
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias)).eval()
    mask = torch.tensor([[True, True, False, True, True]]).expand(3, 5)
    pruned = [torch.rand(5, 6) > 0.3, mask]
    student = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias)).eval()
    student.load_state_dict(teacher.state_dict())
    masks = {f"{index}.weight": one for index, one in zip((0, 2), pruned, strict=True)}
    for layer in walk(student):
        layer.weight.data *= masks[layer.name]
    images = torch.randn(256, 6) + 0.5
    changed = refined(student, teacher, masks, {}, images, always)

    seen, _ = seen_and_held_out(images)
    x, s = (model[1](model[0](seen)).detach() for model in (teacher, changed))  # type: ignore[index, operator]
    dense = teacher[2].weight.detach()
    middle, mean = (x.mean(0), s.mean(0)) if bias else (torch.zeros(5), torch.zeros(5))
    matrix, before = (
        damped(((one - about).T @ (one - about) / len(one))[None])[0]
        for one, about in ((s, mean), (x, middle))
    )
    residual = (x - middle - s + mean).T @ (s - mean) / len(s)
    wanted = dense + PRUNED[0] * dense @ residual @ torch.linalg.inv(matrix)
    for own, row, keep, found in zip(dense, wanted, mask, changed[2].weight, strict=True):  # type: ignore[index, union-attr]
        best = torch.linalg.solve(matrix[keep][:, keep], (matrix @ row)[keep])
        scale = (own @ before @ own / (best @ matrix[keep][:, keep] @ best)).sqrt().clamp(max=MAX_SCALE)
        assert found[keep].tolist() == pytest.approx((scale * best).tolist(), abs=1e-4)
        assert (found[~keep] == 0).all()
    if bias:
        assert changed(seen).mean(0).tolist() == pytest.approx(teacher(seen).mean(0).tolist(), abs=1e-4)


def test_moments_of_both_inputs_are_those_of_all_images_at_once() -> None:
    torch.manual_seed(0)
    now, wanted = torch.randn(24, 2, 7, 4) + 1, torch.randn(24, 2, 7, 4)
    pairs = Pairs()
    for batch in zip(now.split(16), wanted.split(16), strict=True):
        pairs.add(*batch)
    s, residual = (one.transpose(0, 1).flatten(1, 2) for one in (now, wanted - now))
    moments = pairs.sums.moments()
    for centred in (True, False):
        mean, covariance = pairs.residual(moments, centred)
        torch.testing.assert_close(mean, residual.mean(1))
        about, apart = (s.mean(1, True), residual.mean(1, True)) if centred else (0.0, 0.0)
        expected = (residual - apart).mT @ (s - about) / s.shape[1]
        torch.testing.assert_close(covariance, expected, atol=1e-4, rtol=1e-4)


def test_layers_that_there_is_no_time_for_stay_as_they_are(small: Small, small_images: Tensor) -> None:
    teacher = small("cnn")
    made = compress(teacher, COARSE)
    masks, grids = masks_and_grids(made)
    asked: list[tuple[int, int]] = []

    def twice(done: int, count: int) -> bool:
        asked.append((done, count))
        return done < 2

    found = refined(made.module, teacher, masks, grids, small_images, twice)
    assert asked == [(done, len(grids)) for done in range(3)]
    same = [torch.equal(layer.weight, made.weights[layer.name].values) for layer in walk(found)]
    assert same == [False, False] + [True] * (len(grids) - 2)


class Pyramid(nn.Module):
    """One head for two resolutions, as of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        large = self.first(images).relu()
        small = functional.avg_pool2d(large, 2)
        return self.head(large).mean((2, 3)) + self.head(small).mean((2, 3))


class Repeated(nn.Module):
    """One layer that runs as often as the input's sign says, which can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        values = self.first(images).relu()
        for _ in range(3 if values.sum() > 0 else 2):
            values = self.block(values).relu()
        return values.mean((2, 3))


@pytest.mark.parametrize("kind", [Pyramid, Repeated])
def test_a_layer_that_runs_more_than_once_stays_as_it_is(
    kind: Callable[[], nn.Module], small_images: Tensor
) -> None:
    torch.manual_seed(0)
    teacher = kind().eval()
    made = compress(teacher, COARSE)
    masks, grids = masks_and_grids(made)
    for chosen in (grids, {}):
        found = refined(made.module, teacher, masks, chosen, small_images, always)
        same = [torch.equal(layer.weight, made.weights[layer.name].values) for layer in walk(found)]
        assert same == [False, True]


def test_attention_to_other_tokens_stays_as_it_is(small_images: Tensor) -> None:
    torch.manual_seed(0)
    teacher = Pooled().eval()
    made = compress(teacher, COARSE)
    masks, _ = masks_and_grids(made)
    found = {
        layer.name: layer.weight
        for layer in walk(refined(made.module, teacher, masks, {}, small_images, always))
    }
    same = {name for name, weight in found.items() if torch.equal(weight, made.weights[name].values)}
    assert same == {"attention.in_proj_weight"}


def test_where_nothing_varies_no_weight_is_lost() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.ReLU6()),
        *(nn.Conv2d(12, 12, 3, groups=4, bias=False), nn.ReLU6()),
        *(nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12), nn.ReLU6()),
        *(nn.Conv2d(12, 24, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(24, 10, bias=False),
    ).eval()
    made = compress(teacher, Recipe(quantize=QuantizeSpec(weight_bits=2, symmetric=False)))
    _, grids = masks_and_grids(made)
    for value in (0.0, 0.3, 1.0):
        found = refined(made.module, teacher, {}, grids, torch.full((16, 3, 16, 16), value), always)
        assert all(one.isfinite().all() for one in found.state_dict().values())


def test_a_layer_whose_bias_is_the_student_s_alone_keeps_its_mean(small_images: Tensor) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False)).eval()
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    mask = torch.rand(5, 64) > 0.5
    student[1].weight.data = teacher[1].weight.data * mask
    found = refined(student, teacher, {"1.weight": mask}, {}, small_images + 1, always)
    seen, _ = seen_and_held_out(small_images + 1)
    assert found(seen).mean(0).tolist() == pytest.approx(teacher(seen).mean(0).tolist(), abs=1e-4)


def test_what_does_not_fit_into_memory_at_once_gives_the_same(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = small("cnn")
    made = compress(teacher, COARSE)
    masks, grids = masks_and_grids(made)
    found = []
    for most in (2**30, 1):
        monkeypatch.setattr(asymmetric, "MAX_BYTES", most)
        found.append(refined(made.module, teacher, masks, grids, small_images, always).state_dict())
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())
