"""Studies, plans and fine-tuned networks: made once, kept on disk by content, thrown away oldest first."""

import copy
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import Indexed, half_gone, half_never_on
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.compression.asymmetric import refined
from optimizer.compression.calibration import cache
from optimizer.compression.calibration.cache import (
    fine_tuned,
    improved,
    make,
    plan_of,
    statistics_of,
)
from optimizer.compression.calibration.sensitivity import Trial, divergences
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.finetune import look_steps, recover
from optimizer.compression.prune.channels import shrink
from optimizer.compression.prune.compensated import prune
from optimizer.compression.prune.matching import matched
from optimizer.compression.prune.plan import ChannelPlan, plan
from optimizer.compression.quantize.held import HeldGrid
from optimizer.errors import InputError
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.progress import Asker, asked_by
from optimizer.recipe import PruneSpec, Recipe
from optimizer.system import disk_cache
from optimizer.system.disk_cache import beside, kept, read, write

Small = Callable[[str], nn.Module]


def files(home: Path) -> list[Path]:
    return sorted((home / "studies").glob("*.safetensors"))


def assert_equal(one: Statistics, other: Statistics) -> None:
    assert one.effects.keys() == other.effects.keys()
    assert all(torch.equal(effects, other.effects[name]) for name, effects in one.effects.items())
    assert one.biased == other.biased
    assert one.growth == other.growth
    assert one.moments.keys() == other.moments.keys()
    for name, moments in one.moments.items():
        assert torch.equal(moments.covariance, other.moments[name].covariance)
        assert torch.equal(moments.mean, other.moments[name].mean)
        assert moments.shrinkage == other.moments[name].shrinkage


@pytest.fixture
def model(small: Small) -> nn.Module:
    return fold_batch_norm(small("cnn"))[0]


def test_a_study_is_made_once_and_read_back_bit_for_bit(
    model: nn.Module, small_images: Tensor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = statistics_of(model, small_images)
    assert_equal(made, make(model, small_images))
    assert len(files(home)) == 1
    monkeypatch.setattr(cache, "make", lambda *_: pytest.fail("it was made again"))
    assert_equal(statistics_of(model, small_images.clone()), made)


def test_other_weights_or_images_are_another_study(
    model: nn.Module, small_images: Tensor, home: Path
) -> None:
    statistics_of(model, small_images)
    statistics_of(model, small_images[:20])
    with torch.no_grad():
        next(walk(model)).weight[0] += 1
    statistics_of(model, small_images)
    assert len(files(home)) == 3


class Activated(nn.Module):
    """Of one class and with the same weights, whatever its code is told to do."""

    def __init__(self, act: Callable[[Tensor], Tensor], stride: int = 1) -> None:
        super().__init__()
        self.act = act
        self.layer = nn.Conv2d(1, 4, 3, stride, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.layer(x)).mean((2, 3))


def test_networks_that_compute_something_else_with_the_same_weights_are_kept_apart(
    small_images: Tensor,
) -> None:
    made = [Activated(torch.relu), Activated(torch.tanh), Activated(torch.relu, 2)]
    graphs = [torch.fx.symbolic_trace(one) for one in made]  # as graphs of ONNX files are
    digests = [cache.digest("study", one, small_images) for one in (*made, *graphs)]
    assert len({*digests}) == len(digests)
    again = [cache.digest("study", copy.deepcopy(one), small_images.clone()) for one in (*made, *graphs)]
    assert again == digests


def test_a_damaged_study_is_made_again(model: nn.Module, small_images: Tensor, home: Path) -> None:
    made = statistics_of(model, small_images)
    (path,) = files(home)
    path.write_bytes(path.read_bytes()[:200])
    assert_equal(statistics_of(model, small_images), made)
    assert_equal(statistics_of(model, small_images), made)


def zeros_at_the_end(whole: bytes) -> bytes:
    """As after a power cut: the file has its length, and its last blocks were never written."""
    return whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)


def one_bit_flipped(whole: bytes) -> bytes:
    return whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]


def another_fact(whole: bytes) -> bytes:
    place = whole.index(b"shrinkage")
    return whole[:place] + b"shRinkage" + whole[place + 9 :]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [zeros_at_the_end, one_bit_flipped, another_fact, lambda whole: b""])
def test_a_file_that_is_not_as_it_was_written_is_none(
    model: nn.Module, small_images: Tensor, home: Path, damage: Callable[[bytes], bytes]
) -> None:
    made = statistics_of(model, small_images)
    (path,) = files(home)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert read(path) is None
    assert_equal(statistics_of(model, small_images), made)
    assert read(path) is not None


def test_every_kind_of_tensor_comes_back(tmp_path: Path) -> None:
    tensors = {
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "counts": torch.arange(5),
    }
    write(tmp_path / "all.safetensors", (tensors, {"words": "für \U0001f600"}))
    found, facts = read(tmp_path / "all.safetensors") or pytest.fail("it can't be read")
    assert facts == {"words": "für \U0001f600"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(one, found[name]) for name, one in tensors.items())


def test_what_is_kept_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "one.safetensors", []
    sync = os.fsync

    def noted(file: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(file).st_mode), path.exists()))
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    write(path, ({"one": torch.ones(3)}, {}))
    assert synced == [(False, False), (True, True)] if os.name == "posix" else [(False, False)]
    write(path, ({"one": torch.zeros(3)}, {}), durable=False)  # what comes every second during a training
    assert len(synced) <= 2


@pytest.mark.slow
def test_those_that_were_not_used_for_longest_go_first(
    model: nn.Module, small_images: Tensor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, count in enumerate((20, 24, 28)):
        statistics_of(model, small_images[:count])
        newest = max(files(home), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (age, age))
    statistics_of(model, small_images[:20])  # used again: the second is the oldest now
    size = files(home)[0].stat().st_size
    monkeypatch.setattr(disk_cache, "KEPT_BYTES", int(3.5 * size))
    statistics_of(model, small_images[:32])
    assert len(files(home)) == 3
    made = []
    monkeypatch.setattr(cache, "make", lambda *_: made.append(1) or make(model, small_images[:24]))
    statistics_of(model, small_images[:20])
    assert not made
    statistics_of(model, small_images[:24])
    assert made


def test_without_a_folder_to_write_to_a_study_is_made_and_not_kept(
    model: nn.Module, small_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("PARETOSCOPE_HOME", str(file / "home"))
    assert_equal(statistics_of(model, small_images), make(model, small_images))


def test_every_layer_that_matters_has_an_effect(model: nn.Module, small_images: Tensor) -> None:
    made = make(model, small_images)
    assert made.biased == {"stem.0.weight", "depthwise.0.weight", "project.0.weight", "head.weight"}
    for name in made.moments:
        assert (made.effects[name] > 0).all(), name


class SharedBias(nn.Module):
    """Two convolutions of one bias, whose errors it can't both make up for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))


def test_a_bias_that_layers_share_takes_up_nothing(small_images: Tensor) -> None:
    torch.manual_seed(5)
    model, images = SharedBias().eval().requires_grad_(False), small_images + 1
    statistics = make(model, images)
    assert statistics.biased == {"head.weight"}
    wanted = model(images)
    for recipe in (Recipe.of(sparsity=0.4), Recipe.of(weight_bits=3)):
        made = compress(model, recipe, statistics=statistics).module
        assert made.b.bias is made.a.bias
        assert torch.equal(made.b.bias, model.b.bias)
        assert (made(images) - wanted).norm() < 0.05 * wanted.norm()


def test_what_changes_the_bias_of_one_layer_leaves_those_that_share_it(small_images: Tensor) -> None:
    torch.manual_seed(5)
    model, images = SharedBias().eval().requires_grad_(False), small_images + 1
    pruned = copy.deepcopy(model)
    for layer in (pruned.a, pruned.b, pruned.head):
        layer.weight.mul_(layer.weight.abs() > layer.weight.abs().median())
    masks = {f"{name}.weight": getattr(pruned, name).weight != 0 for name in ("a", "b", "head")}
    refitted = refined(pruned, model, masks, {}, images, lambda done, count: True)
    better = matched(model, pruned, images)
    assert better is not None
    for made in (refitted, better):
        assert torch.equal(made.b.bias, model.b.bias)
        assert not torch.equal(made.head.bias, model.head.bias)
    smaller = shrink(plan(model, images), 0.4).module
    model.b.bias = nn.Parameter(model.b.bias.clone(), requires_grad=False)
    assert torch.equal(smaller(images), shrink(plan(model, images), 0.4).module(images))


def test_progress_is_reported(model: nn.Module, small_images: Tensor) -> None:
    told: list[str] = []
    make(model, small_images, report=lambda share, words: told.append(words))
    assert {words.split(":")[0] for words in told} == {
        "reading layer inputs",
        "measuring sensitivities",
    }


def test_bad_images_are_refused_and_nothing_is_kept(
    model: nn.Module, small_images: Tensor, home: Path
) -> None:
    with pytest.raises(InputError, match="no calibration images"):
        statistics_of(model, small_images[:0])
    assert not files(home)


@pytest.mark.parametrize("images", [torch.zeros(4, 1, 8, 8), torch.ones(1, 1, 8, 8)])
def test_constant_images_and_a_single_one_are_survived(model: nn.Module, images: Tensor) -> None:
    made = make(model, images)
    assert all(torch.isfinite(one.covariance).all() for one in made.moments.values())
    assert all((effects >= 0).all() and effects.isfinite().all() for effects in made.effects.values())


@pytest.mark.parametrize("count", [1, 2])
def test_the_classifier_is_not_wiped_where_few_images_say_that_its_inputs_never_change(
    model: nn.Module, small_images: Tensor, count: int
) -> None:
    made = make(model, small_images[:count])
    assert (made.effects["head.weight"] > 0).all()
    weights = {layer.name: layer.weight.detach() for layer in walk(model)}
    pruned = prune(weights, weights, PruneSpec("compensated", 0.3, allocation="measured"), made)
    assert pruned["head.weight"].mask.float().mean() > 0.5


def test_few_images_that_no_layer_seems_to_matter_to_correct_what_is_expected_by_little(
    model: nn.Module, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 images two are held out; networks are sure of the class of most."""
    monkeypatch.setattr(
        cache, "divergences", lambda model, images, trials, report: dict.fromkeys(trials, 0.0)
    )
    corrected = make(model, small_images[:16]).effects
    monkeypatch.setattr(cache, "divergences", lambda *_: {})
    expected = make(model, small_images[:16]).effects
    assert any(not torch.equal(one, expected[name]) for name, one in corrected.items())
    assert all((one >= 0.49 * expected[name]).all() for name, one in corrected.items())


def test_copies_of_an_image_tell_what_it_tells(model: nn.Module, small_images: Tensor) -> None:
    one = small_images[:1]
    assert_equal(make(model, one.repeat(24, 1, 1, 1)), make(model, one))


class Probe(nn.Module):
    """A linear head on what a backbone gives, in a ``way`` that gradients don't pass; a layer of its own is
    for nothing."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.way = way
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.unread = nn.Linear(8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
        with contexts.get(self.way, nullcontext)():
            x = self.backbone(x).mean((2, 3))
        self.unread(x)
        answers: Tensor = self.head(x.detach() if self.way == "detached" else x)
        return answers.detach() if self.way == "nowhere" else answers


def probe(way: str = "") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Probe(way).eval()


def test_what_a_model_runs_without_gradients_has_the_same_effects(small_images: Tensor) -> None:
    made = make(probe("no_grad"), small_images)
    assert_equal(made, make(probe(), small_images))
    assert not made.effects["unread.weight"].any()


@pytest.mark.parametrize("way", ["detached", "inference"])
def test_layers_that_no_gradient_reaches_are_measured(small_images: Tensor, way: str) -> None:
    made = make(probe(way), small_images)
    for name in ("backbone.0.weight", "backbone.2.weight"):
        assert (made.effects[name] > 0).all()
    assert not made.effects["unread.weight"].any()


def test_a_model_that_has_no_gradients_at_all_is_measured_whole(small_images: Tensor) -> None:
    made = make(probe("nowhere"), small_images)
    assert all(effects.all() for name, effects in made.effects.items() if name != "unread.weight")


def test_parameters_may_be_whole_numbers(small_images: Tensor) -> None:
    made = make(Indexed().eval(), small_images)
    assert all((effects > 0).all() for effects in made.effects.values())


class Branched(nn.Module):
    """Adds what a second layer makes of a first one that gives the same for every image."""

    def __init__(self, zeros: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.constant = nn.Conv2d(8, 8, 3, padding=1)
        self.after = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)
        self.vector = nn.Parameter(torch.randn(8, 1, 1))
        self.zeros = zeros
        if zeros:
            nn.init.zeros_(self.constant.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        same = torch.relu(self.constant(x)) if self.zeros else self.vector.expand_as(x)
        answers: Tensor = self.head(torch.relu(x + self.after(same)).mean((2, 3)))
        return answers


@pytest.mark.parametrize("zeros", [True, False])
def test_a_layer_that_sees_a_constant_is_free_and_the_others_are_measured(
    small_images: Tensor, zeros: bool
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make(Branched(zeros).eval(), small_images)
    assert made.effects["after.weight"].max() < 1e-6 < made.effects["stem.weight"].min()
    assert all(effects.isfinite().all() for effects in made.effects.values())


def test_channels_that_are_never_on_hide_no_layer_that_matters(
    small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the made-up inputs of theirs that make a matrix one that can be inverted, the layer that reads them
    would matter so much more than all others that those were not measured."""
    measured: list[str] = []

    def spied(model: nn.Module, images: Tensor, trials: dict[str, Trial], report: object) -> dict[str, float]:
        measured.extend(trials)
        return divergences(model, images, trials)

    monkeypatch.setattr(cache, "divergences", spied)
    make(half_never_on(), small_images)
    assert "5.weight" in measured


@pytest.fixture
def plain() -> nn.Module:
    """Whose channels can go."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [
            nn.Conv2d(1, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        ]
        return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("order", ["magnitude", "compensated"])
def test_a_plan_is_made_once_and_removes_the_same_channels(
    plain: nn.Module, small_images: Tensor, home: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    moments = statistics_of(plain, small_images).moments if order == "compensated" else None
    made = plan_of(plain, small_images, order, moments)
    monkeypatch.setattr(cache, "plan", lambda *_, **__: pytest.fail("it was made again"))
    again = plan_of(plain, small_images, order, moments)
    assert (again.groups, again.order, again.macs) == (made.groups, order, made.macs)
    assert again.moments.keys() == made.moments.keys()
    for name, ranking in made.rankings.items():
        assert torch.equal(again.rankings[name].order, ranking.order)
        assert torch.equal(again.rankings[name].losses, ranking.losses)
    states = [shrink(one, 0.5).module.state_dict() for one in (made, again)]
    for name, tensor in states[1].items():
        assert torch.equal(tensor, states[0][name])


def test_plans_of_two_orders_are_kept_apart(plain: nn.Module, small_images: Tensor, home: Path) -> None:
    moments = statistics_of(plain, small_images).moments
    plans: list[ChannelPlan] = [
        plan_of(plain, small_images, order, moments) for order in ("magnitude", "compensated")
    ]
    assert [plan.order for plan in plans] == ["magnitude", "compensated"]
    assert len(files(home)) == 3


def halved(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy without every second weight, and the masks."""
    student = copy.deepcopy(model)
    return student, half_gone(student)


def test_fine_tuning_is_done_once(
    model: nn.Module, small_images: Tensor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, masks = halved(model)
    took: list[float] = []
    first, steps = fine_tuned(student, model, masks, small_images, 60, took=took.append)
    assert steps == 60
    assert len(took) == 1
    monkeypatch.setattr(cache, "recover", lambda *_, **__: pytest.fail("it was done again"))
    again, steps = fine_tuned(student, model, masks, small_images, 60, took=took.append)
    assert steps == 60
    assert all(torch.equal(first.state_dict()[name], one) for name, one in again.state_dict().items())
    assert len(files(home)) == 1, "what was begun is gone when it is done"
    assert len(took) == 1


def test_what_learnt_under_other_masks_or_on_other_grids_is_kept_apart(
    model: nn.Module, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In few bits what was pruned and what was not may round to the same student."""
    asked: list[str] = []

    def note(content: str, *_: object) -> tuple[nn.Module, float]:
        asked.append(content)
        return model, 0.0

    monkeypatch.setattr(cache, "_kept_state", note)
    student, masks = halved(model)
    all_stay = {name: torch.ones_like(mask) for name, mask in masks.items()}
    name, mask = next(iter(masks.items()))
    grid = HeldGrid(*(torch.full([len(mask), 1, 1, 1], value) for value in (0.5, -4.0, 3.0)))
    grids = [{}, {name: grid}, {name: replace(grid, last=grid.last + 1)}]
    for some, on in ((masks, grids[0]), (all_stay, grids[0]), (masks, grids[1]), (masks, grids[2])):
        fine_tuned(student, model, some, small_images, 10, grids=on)
        improved(student, model, some, small_images, 10, grids=on)
    assert len({*asked}) == len(asked) == 8


def test_fine_tuning_that_is_stopped_is_gone_on_with_bit_for_bit(
    model: nn.Module, small_images: Tensor, home: Path
) -> None:
    student, masks = halved(model)
    steps = 3 * look_steps(30)
    expected = recover(student, model, masks, small_images, steps).state

    class Stopped(BaseException):
        """As a killed worker's process: nothing of ours catches it."""

    told: list[str] = []

    def stop(share: float | None, words: str) -> None:
        told.append(words)
        if share is not None and share > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        fine_tuned(student, model, masks, small_images, steps, stop)
    (path,) = files(home)
    assert path.name.endswith("-begun.safetensors")
    _, facts = read(path) or pytest.fail("it can't be read")
    assert facts["step"] == 2 * look_steps(steps)

    told.clear()
    found, _ = fine_tuned(student, model, masks, small_images, steps, lambda _, words: told.append(words))
    assert len(told) == 2, "only the steps that were left"
    assert all(f"going on from step {2 * look_steps(steps)}" in words for words in told)
    assert all(torch.equal(expected[name], one) for name, one in found.state_dict().items())
    assert not [path for path in files(home) if "begun" in path.name]


def test_what_was_ended_with_the_best_so_far_is_the_result(
    model: nn.Module, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, masks = halved(model)
    with asked_by(Asker(lambda _: None, lambda: False, lambda: True)):
        tuned, steps = fine_tuned(student, model, masks, small_images, 500)
        better, seconds = improved(student, model, masks, small_images, 500)
    assert steps < 500
    assert 0 < seconds < 500
    for name in ("recover", "improve"):
        monkeypatch.setattr(cache, name, lambda *_, **__: pytest.fail("it was done again"))
    for (first, took), (again, told) in (
        ((tuned, steps), fine_tuned(student, model, masks, small_images, 500)),
        ((better, seconds), improved(student, model, masks, small_images, 500)),
    ):
        assert took == told
        assert all(torch.equal(first.state_dict()[name], one) for name, one in again.state_dict().items())


@pytest.mark.slow
def test_a_damaged_beginning_is_no_beginning(model: nn.Module, small_images: Tensor, home: Path) -> None:
    student, masks = halved(model)
    expected = fine_tuned(student, model, masks, small_images, 20)[0].state_dict()
    (path,) = files(home)
    for tensors, facts in (
        ({"other": torch.zeros(3)}, {"step": 10, "divergence": 0.1, "rate": 0.1, "updates": 9}),
        (
            {"state other": torch.zeros(3), "random": torch.zeros(2)},
            {"step": 10, "divergence": 0.1, "rate": 0.1, "updates": 9},
        ),
        ({"other": torch.zeros(3)}, {"spent": 0.1}),
    ):
        write(beside(path), (tensors, facts))
        path.unlink()
        told: list[str] = []
        found, _ = fine_tuned(student, model, masks, small_images, 20, lambda _, words: told.append(words))  # noqa: B023
        assert told
        assert not any("going on" in words for words in told)
        assert all(torch.equal(expected[name], one) for name, one in found.state_dict().items())


def test_what_is_read_again_lies_in_memory_as_what_was_made(
    model: nn.Module, small_images: Tensor, home: Path
) -> None:
    """Where a tensor begins decides how sums over it are rounded."""
    statistics_of(model, small_images)
    again = statistics_of(model, small_images)
    assert all(one.covariance.data_ptr() % 64 == 0 for one in again.moments.values())
    assert all(one.mean.data_ptr() % 64 == 0 for one in again.moments.values())


def test_the_caller_s_threads_do_not_change_a_study(model: nn.Module, small_images: Tensor) -> None:
    threads = torch.get_num_threads()
    made = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            made.append(make(model, small_images))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert_equal(*made)


def test_what_making_raises_comes_through_and_leaves_nothing(home: Path) -> None:
    tries: list[Path | None] = []

    def fail(path: Path | None) -> Tensor:
        tries.append(path)
        raise OSError("a disk of the model's own")

    with pytest.raises(OSError, match="of the model's own"):
        kept("content", fail, lambda one: ({"one": one}, {}), lambda parts: parts[0]["one"])
    assert len(tries) == 1
    assert not files(home)


def test_writings_that_were_never_finished_are_cleared_away(
    model: nn.Module, small_images: Tensor, home: Path
) -> None:
    statistics_of(model, small_images[:20])
    for name in ("half.123", "gone.lock", "recent.456"):
        (home / "studies" / name).write_text("")
    for name in ("half.123", "gone.lock"):
        os.utime(home / "studies" / name, (0, 0))
    statistics_of(model, small_images[:20])
    assert {path.suffix for path in (home / "studies").iterdir()} == {".safetensors", ".lock", ".456"}
