"""What best effort may and may not do, on networks that are small and budgets that are counted in steps."""

import copy
from collections.abc import Callable

import pytest
import small_models
import torch
from small_models import Indexed, Small, masks_and_grids, taught, untouched
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel, compress
from optimizer.compression.calibration.statistics import seen_and_held_out
from optimizer.compression.divergence import divergence, prepared
from optimizer.compression.effort import Improved, improve
from optimizer.compression.quantize.held import moved
from optimizer.errors import InputError
from optimizer.model.catalogue import LoadedModel
from optimizer.model.layers import walk
from optimizer.progress import Asker, Cancelled, asked_by
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

HALF = Recipe(PruneSpec(sparsity=0.5))
COARSE = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=3))


def ticks() -> Callable[[], float]:
    """A clock that goes on by one each time it is looked at, a few times a step."""
    now = iter(range(10**9))
    return lambda: float(next(now))


def improved(made: CompressedModel, teacher: nn.Module, images: Tensor, budget: float) -> Improved:
    masks, grids = masks_and_grids(made)
    return improve(made.module, teacher, masks, images, budget, grids=grids, clock=ticks())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [HALF, COARSE], ids=["pruned", "pruned and rounded"])
@pytest.mark.parametrize("name", ["cnn", "encoder", "shared", "tied", "auxiliary"])
def test_it_comes_nearer_and_holds_masks_and_grids_bit_for_bit(
    small: Small, small_images: Tensor, name: str, recipe: Recipe
) -> None:
    teacher = small(name)
    made = compress(teacher, recipe)
    found = improved(made, teacher, small_images, 400 if name == "auxiliary" else 200)
    assert found.after < found.before
    values = {layer.name: found.state[layer.name] for layer in walk(made.module)}
    for layer, one in made.weights.items():
        assert (values[layer][~one.mask] == 0).all()
        if one.codes is not None:
            now = moved(one.codes, values[layer])
            assert torch.equal(now.values, values[layer])
            assert now.stored.min() >= -3
            assert now.stored.max() <= 3


@pytest.mark.slow
def test_both_models_are_left_as_they_were(small: Small, small_images: Tensor) -> None:
    teacher = small("cnn")
    made = compress(teacher, HALF)
    with untouched(teacher, made.module):
        improved(made, teacher, small_images, 500)


@pytest.mark.parametrize("budget", [0, 1e-9, 3, 40])
def test_whatever_the_budget_it_is_never_worse(small: Small, small_images: Tensor, budget: float) -> None:
    teacher = small("cnn")
    made = compress(teacher, HALF)
    found = improved(made, teacher, small_images, budget)
    assert found.after <= found.before
    assert found.seconds <= budget
    if not budget:
        assert all(torch.equal(one, found.state[name]) for name, one in made.module.state_dict().items())


@pytest.mark.slow
def test_what_it_makes_worse_is_not_kept(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.compression.distillation.RATES", (100.0,))
    teacher = small("cnn")
    found = improved(compress(teacher, Recipe()), teacher, small_images, 500)
    assert found.after == found.before == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(found.state[name], one) for name, one in teacher.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("blunt", [0.6, 1.4])
def test_logits_come_out_as_sharp_as_it_says(small: Small, small_images: Tensor, blunt: float) -> None:
    teacher = small("cnn")
    made = compress(teacher, HALF)
    last = list(walk(made.module))[-1]
    last.weight.data *= blunt
    found = improved(made, teacher, small_images, 200)
    made.module.load_state_dict(found.state)
    _, held_out = seen_and_held_out(small_images)
    with torch.no_grad():
        wanted, logits = prepared(teacher(held_out)), made.module(held_out)
        apart = [divergence(prepared(logits * by), wanted).item() / len(held_out) for by in (0.9, 1, 1.1)]
    assert apart[1] == pytest.approx(found.after, rel=1e-3)
    assert apart[1] == min(apart)


@pytest.mark.parametrize("blunt", [0.6, 1.4])
def test_so_do_those_of_what_was_refitted_and_learned_nothing(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch, blunt: float
) -> None:
    teacher = small("cnn")
    made, refitted = compress(teacher, HALF), copy.deepcopy(teacher)
    for one in list(refitted.parameters())[-2:]:
        one.data *= blunt
    monkeypatch.setattr("optimizer.compression.effort.refined", lambda *others: refitted)
    found = improved(made, teacher, small_images, 0)
    made.module.load_state_dict(found.state)
    _, held_out = seen_and_held_out(small_images)
    with torch.no_grad():
        apart = divergence(prepared(made.module(held_out)), prepared(teacher(held_out))).item()
    assert apart / len(held_out) == pytest.approx(found.after, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [HALF, COARSE], ids=["pruned", "pruned and rounded"])
def test_odd_input_is_no_trouble(small: Small, small_images: Tensor, recipe: Recipe) -> None:
    """Constant images, as few as are allowed, a layer of zeros."""
    teacher = small("cnn")
    teacher.project[0].weight.data.zero_()  # type: ignore[union-attr, operator, index]
    made = compress(teacher, recipe)
    for images in (torch.full_like(small_images, 0.5), small_images[:16], torch.zeros_like(small_images)):
        found = improved(made, teacher, images, 150)
        assert found.after <= found.before
        assert all(one.isfinite().all() for one in found.state.values())


@pytest.mark.parametrize("recipe", [HALF, COARSE], ids=["pruned", "pruned and rounded"])
def test_whole_numbers_among_the_parameters_stay(small_images: Tensor, recipe: Recipe) -> None:
    teacher = Indexed().eval()
    found = improved(compress(teacher, recipe), teacher, small_images, 100)
    assert found.after < found.before
    assert torch.equal(found.state["index"], teacher.index)


@pytest.mark.parametrize("count", [0, 1, 8, 15])
def test_too_few_images_are_refused(small: Small, small_images: Tensor, count: int) -> None:
    model = small("cnn")
    with pytest.raises(InputError, match=f"{count} images are too few for best effort: give at least 16"):
        improve(model, model, {}, small_images[:count], 1)


@pytest.mark.slow
def test_who_has_enough_gets_the_best_so_far_and_who_cancels_nothing(
    small: Small, small_images: Tensor
) -> None:
    teacher = small("cnn")
    made = compress(teacher, HALF)
    masks, _ = masks_and_grids(made)
    told: list[str] = []

    def asked(**answers: Callable[[], bool]) -> Improved:
        wanted = {"cancelled": lambda: False} | answers
        with asked_by(Asker(lambda _: None, **wanted)):
            return improve(
                made.module,
                teacher,
                masks,
                small_images,
                4e3,
                lambda _, words: told.append(words),
                clock=ticks(),
            )

    found = asked(satisfied=lambda: len(told) > len(masks) + 2)
    assert found.after < found.before
    assert found.seconds < 4e3
    learning = told[len(masks) :]
    assert learning
    assert all(f"divergence {found.before:.3g} before" in words for words in learning)
    with pytest.raises(Cancelled):
        asked(cancelled=lambda: True)


@pytest.mark.slow
def test_a_bundled_network_pruned_by_magnitude_is_won_back(resnet: LoadedModel) -> None:
    teacher, images, unseen = taught(resnet)
    made = compress(teacher, Recipe(PruneSpec(sparsity=0.85)))
    before = small_models.divergence(teacher, made.module, unseen)
    made.module.load_state_dict(improved(made, teacher, images, 100).state)
    assert small_models.divergence(teacher, made.module, unseen) < 0.5 * before


@pytest.mark.slow
def test_what_is_on_grids_is_rounded_once_more_and_answers_more_nearly(resnet: LoadedModel) -> None:
    teacher, images, unseen = taught(resnet)
    made, told = compress(teacher, Recipe(quantize=QuantizeSpec(weight_bits=3))), list[str]()
    masks, grids = masks_and_grids(made)

    def apart(refine: bool) -> tuple[Improved, float]:
        def report(share: float | None, words: str) -> None:
            told.append(words)

        found = improve(made.module, teacher, masks, images, 120, report, grids, clock=ticks(), refine=refine)
        made.module.load_state_dict(found.state)
        return found, small_models.divergence(teacher, made.module, unseen)

    before = {name: one.clone() for name, one in made.module.state_dict().items()}
    plain, far = apart(refine=False)
    assert not any("rounding once more" in words for words in told)
    made.module.load_state_dict(before)
    again, near = apart(refine=True)
    assert any("best effort: rounding once more, layer 1 of 13, " in words for words in told)
    assert near < 0.5 * far
    assert again.before == pytest.approx(plain.before), "what was there before it was rounded once more"
    assert again.after < plain.after


@pytest.mark.slow
@pytest.mark.parametrize(("further", "budget"), [(0.05, 0), (10.0, 0), (10.0, 500)])
def test_rounding_once_more_that_answers_less_nearly_is_gone_back_on(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch, further: float, budget: float
) -> None:
    teacher = small("cnn")
    made = compress(teacher, COARSE)

    def worse(student: nn.Module, *others: object) -> nn.Module:
        model = copy.deepcopy(student)
        for one, dense in zip(model.parameters(), teacher.parameters(), strict=True):
            one.data += further * (one - dense).detach()
        return model

    monkeypatch.setattr("optimizer.compression.effort.refined", worse)
    found = improved(made, teacher, small_images, budget)
    assert found.after <= found.before
    if not budget:
        assert found.after == pytest.approx(found.before)
        state = made.module.state_dict()
        assert all(torch.allclose(one, found.state[name]) for name, one in state.items())


@pytest.mark.slow
@pytest.mark.parametrize(("share", "taken"), [(2.0, 1.0), (0.8, 0.8), (-0.2, 0.0)])
def test_it_begins_from_the_nearest_of_what_was_there_what_was_refitted_and_between(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch, share: float, taken: float
) -> None:
    teacher = small("cnn")
    made = compress(teacher, HALF)

    def moved(share: float) -> nn.Module:
        model = copy.deepcopy(made.module)
        for one, dense in zip(model.parameters(), teacher.parameters(), strict=True):
            one.data.lerp_(dense.detach(), share)
        return model

    monkeypatch.setattr("optimizer.compression.effort.refined", lambda *others: moved(share))
    found = improved(made, teacher, small_images, 0)
    plain = improve(made.module, teacher, {}, small_images, 0, refine=False)
    assert found.before == pytest.approx(plain.before)
    last = list(made.module.state_dict())[-2:]  # come out as sharp as suits
    for name, one in moved(taken).state_dict().items():
        assert name in last or torch.allclose(found.state[name], one, atol=1e-6)
