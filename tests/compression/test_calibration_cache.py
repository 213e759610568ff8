"""Statistics, plans and fine-tuned networks: made once, kept on disk by content, thrown away oldest first."""

import copy
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from small_models import Small, assert_same_statistics, half_gone
from torch import Tensor, nn

from optimizer.compression.calibration import cache
from optimizer.compression.calibration.cache import (
    fine_tuned,
    improved,
    make,
    plan_of,
    statistics_of,
)
from optimizer.compression.finetune import look_steps, recover
from optimizer.compression.prune.channels import shrink
from optimizer.compression.prune.plan import ChannelPlan
from optimizer.compression.quantize.held import HeldGrid
from optimizer.errors import InputError
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.progress import Asker, Cancelled, asked_by, ended_by
from optimizer.system import disk_cache
from optimizer.system.disk_cache import beside, kept, read, write


def files(home: Path) -> list[Path]:
    return sorted((home / "studies").glob("*.safetensors"))


@pytest.fixture
def model(small: Small) -> nn.Module:
    return fold_batch_norm(small("cnn"))[0]


def test_statistics_are_made_once_and_read_back_bit_for_bit(
    model: nn.Module, small_images: Tensor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = statistics_of(model, small_images)
    assert_same_statistics(made, make(model, small_images))
    assert len(files(home)) == 1
    monkeypatch.setattr(cache, "make", lambda *_: pytest.fail("it was made again"))
    assert_same_statistics(statistics_of(model, small_images.clone()), made)


def test_other_weights_or_images_have_statistics_of_their_own(
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


def zeros_at_the_end(whole: bytes) -> bytes:
    """As after a power cut: the file has its length, and its last blocks were never written."""
    return whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)


def one_bit_flipped(whole: bytes) -> bytes:
    return whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]


def another_fact(whole: bytes) -> bytes:
    place = whole.index(b"shrinkage")
    return whole[:place] + b"shRinkage" + whole[place + 9 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:200],
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in (zeros_at_the_end, one_bit_flipped, another_fact, lambda whole: b"")
        ),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_none(
    model: nn.Module, small_images: Tensor, home: Path, damage: Callable[[bytes], bytes]
) -> None:
    made = statistics_of(model, small_images)
    (path,) = files(home)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert read(path) is None
    assert_same_statistics(statistics_of(model, small_images), made)
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


def test_who_waits_for_what_another_makes_may_go(home: Path) -> None:
    (home / "studies").mkdir(parents=True)
    with FileLock(home / "studies" / "digest.lock"), ended_by(lambda: True), pytest.raises(Cancelled):
        kept("digest", pytest.fail, pytest.fail, pytest.fail)


def test_without_a_folder_to_write_to_statistics_are_made_and_not_kept(
    model: nn.Module, small_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("PARETOSCOPE_HOME", str(file / "home"))
    assert_same_statistics(statistics_of(model, small_images), make(model, small_images))


def test_bad_images_are_refused_and_nothing_is_kept(
    model: nn.Module, small_images: Tensor, home: Path
) -> None:
    with pytest.raises(InputError, match="no calibration images"):
        statistics_of(model, small_images[:0])
    assert not files(home)


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
    plain: nn.Module, small_images: Tensor, monkeypatch: pytest.MonkeyPatch, order: str
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


def test_what_is_read_again_lies_in_memory_as_what_was_made(model: nn.Module, small_images: Tensor) -> None:
    """Where a tensor begins decides how sums over it are rounded."""
    statistics_of(model, small_images)
    again = statistics_of(model, small_images)
    assert all(one.covariance.data_ptr() % 64 == 0 for one in again.moments.values())
    assert all(one.mean.data_ptr() % 64 == 0 for one in again.moments.values())


def test_the_caller_s_threads_do_not_change_statistics(model: nn.Module, small_images: Tensor) -> None:
    threads = torch.get_num_threads()
    made = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            made.append(make(model, small_images))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert_same_statistics(*made)


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
