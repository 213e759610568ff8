"""Who is evaluated and who calibrates, and what a change of the files changes."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import CLASSES, IDS, Fill, write

from optimizer.data import selection
from optimizer.data.folders import check_allowed
from optimizer.data.selection import fingerprint, recent_fingerprint, select
from optimizer.errors import InputError
from optimizer.records import DataSpec, Request, Settings
from optimizer.store.keys import request_key, request_keys
from optimizer.system.uploads import IMAGES


def test_nothing_that_maps_says_how_to_map(fill: Fill) -> None:
    top = fill("dog/1.jpg", "cat/2.jpg")
    with pytest.raises(
        InputError, match=r"none of the 2 folders \(cat, dog\).*T-shirt/top.*class index file"
    ):
        select(DataSpec(str(top)), CLASSES)


def test_folders_with_numbers_for_names_are_mended_as_it_is_said(fill: Fill) -> None:
    """A text file with the classes' names, as many have it, has none of theirs."""
    top = fill("1/1.jpg", "1/2.jpg", "0/3.jpg")
    names, numbers = top.parent / "names.txt", top.parent / "numbers.json"
    names.write_text("\n".join(CLASSES))
    with pytest.raises(InputError, match="a class index file with these names") as raised:
        select(DataSpec(str(top), class_index=str(names)), CLASSES)
    example = re.search(r"JSON such as ({.*})", str(raised.value))
    assert example
    numbers.write_text(example[1])
    mapping = select(DataSpec(str(top), class_index=str(numbers)), CLASSES).mapping
    assert [(one.folder, one.index) for one in mapping.mapped] == [("0", 0), ("1", 1)]


def test_folders_of_a_model_without_class_names_are_counted(fill: Fill) -> None:
    top = fill("a/1.jpg", "b/2.jpg", "c/3.jpg")
    with pytest.raises(
        InputError, match=r"the 3 folders .* the model's 5 outputs: .* give 5 class folders .*\(0 to 4\)"
    ):
        select(DataSpec(str(top)), tuple("01234"), unnamed=True)


@pytest.mark.parametrize("unnamed", [True, False])
def test_what_was_uploaded_is_mended_in_its_zip_file(home: Path, unnamed: bool) -> None:
    top = home / IMAGES / "photos 0123"
    for folder in ("a", "b"):
        (top / folder).mkdir(parents=True)
        (top / folder / "1.jpg").touch()
    with pytest.raises(InputError) as raised:
        select(DataSpec(str(top)), CLASSES, unnamed=unnamed)
    words = str(raised.value)
    assert "in the uploaded set photos 0123" in words
    assert "class_index.json beside them into the ZIP file" in words
    assert "Give the folder" not in words
    assert "text file" not in words
    assert str(home) not in words


def test_unmapped_folders_are_left_out_and_named(fill: Fill) -> None:
    top = fill("dog/1.jpg", "n00000002/2.jpg", "n00000004/3.jpg", "n00000004/4.jpg")
    chosen = select(DataSpec(str(top), calibration_share=0.4), CLASSES, IDS)
    assert chosen.mapping.unmapped == ("dog",)
    assert "1 class folder (dog) left out" in "; ".join(chosen.notes)
    names = {file.name for file in (*chosen.evaluation, *chosen.calibration)}
    assert names == {"2.jpg", "3.jpg", "4.jpg"}
    assert chosen.labels is not None
    right = {"n00000002": 1, "n00000004": 3}
    assert [right[file.parent.name] for file in chosen.evaluation] == list(chosen.labels)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("flat")
    for number in range(60):
        (top / f"{number}.jpg").write_text(f"{number:02}")
    return top


@pytest.mark.slow
@settings(max_examples=40)
@given(share=st.floats(0.01, 0.95), limit=st.integers(1, 80), seed=st.integers(0, 2**32))
def test_a_share_is_set_aside_and_never_evaluated(flat: Path, share: float, limit: int, seed: int) -> None:
    chosen = select(DataSpec(str(flat), calibration_share=share, limit=limit, seed=seed), CLASSES)
    assert len(chosen.calibration) == max(1, round(share * 60))
    assert len(chosen.evaluation) == min(limit, 60 - len(chosen.calibration))
    assert not set(chosen.evaluation) & set(chosen.calibration)
    assert chosen.labels is None
    assert chosen == select(DataSpec(str(flat), calibration_share=share, limit=limit, seed=seed), CLASSES)
    fewer = select(DataSpec(str(flat), calibration_share=share, limit=max(1, limit // 2), seed=seed), CLASSES)
    assert fewer.evaluation == chosen.evaluation[: len(fewer.evaluation)]
    assert fewer.calibration == chosen.calibration


def test_another_seed_draws_other_images(flat: Path) -> None:
    first, second = (select(DataSpec(str(flat), limit=10, seed=seed), CLASSES) for seed in (0, 1))
    assert set(first.evaluation) != set(second.evaluation)
    assert any("10 of 48 images are evaluated, drawn with seed 0" in note for note in first.notes)


def test_too_few_images_to_share_out(fill: Fill) -> None:
    with pytest.raises(InputError, match=r"too few images to set a share of 0\.2 aside"):
        select(DataSpec(str(fill("1.jpg"))), CLASSES)


def test_a_class_index_file_goes_with_classes(fill: Fill) -> None:
    top = fill("a/1.jpg", "b/2.jpg")
    index = write(top.parent / "index.json", {"a": 0, "b": 1})
    with pytest.raises(InputError, match="goes with a network that tells classes: leave it out"):
        select(DataSpec(str(top), class_index=index), None)


def test_the_evaluation_folder_does_not_calibrate(fill: Fill) -> None:
    top = fill("set/1.jpg", "set/2.jpg")
    (top / "link").symlink_to(top / "set")
    for calibration in (top / "set", top / "link", top / "set" / ".." / "set"):
        with pytest.raises(InputError, match="is the evaluation folder"):
            select(DataSpec(str(top / "set"), str(calibration)), CLASSES)


def test_files_shared_with_the_evaluation_do_not_calibrate(fill: Fill) -> None:
    top = fill("set/1.jpg", "set/2.jpg", "other/own.jpg")
    fill("other/copy.jpg", content="content of set/1.jpg")
    (top / "other" / "link.jpg").symlink_to(top / "set" / "2.jpg")
    chosen = select(DataSpec(str(top / "set"), str(top / "other")), CLASSES)
    assert [file.name for file in chosen.calibration] == ["own.jpg"]
    assert any("2 calibration images left out" in note for note in chosen.notes)
    assert len(chosen.evaluation) == 2
    (top / "other" / "own.jpg").unlink()
    with pytest.raises(InputError, match="every calibration image is also evaluated"):
        select(DataSpec(str(top / "set"), str(top / "other")), CLASSES)


def test_a_copy_within_the_folder_is_not_on_both_sides(fill: Fill) -> None:
    names = [f"{number}.jpg" for number in range(12)]
    top = fill(*names)
    fill(*(f"copy-{name}" for name in names[:4]), content="one content")
    for seed in range(20):
        chosen = select(DataSpec(str(top), calibration_share=0.5, seed=seed), CLASSES)
        assert not {file.read_text() for file in chosen.evaluation} & {
            file.read_text() for file in chosen.calibration
        }


def test_many_calibration_images_are_cut_with_a_note(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CALIBRATION_LIMIT", 3)
    top = fill("set/1.jpg", *(f"other/{number}.jpg" for number in range(8)))
    chosen = select(DataSpec(str(top / "set"), str(top / "other")), CLASSES)
    assert len(chosen.calibration) == 3
    assert "3 of 8 calibration images are used" in chosen.notes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX")
def test_a_pipe_or_a_dead_link_is_never_waited_for(fill: Fill) -> None:
    top = fill("set/1.jpg", "other/2.jpg")
    for folder in ("set", "other"):
        os.mkfifo(top / folder / "pipe.jpg")
        (top / folder / "dead.jpg").symlink_to(top / "gone")
    spec = DataSpec(str(top / "set"), str(top / "other"))
    assert len(select(spec, CLASSES).calibration) == 3
    assert fingerprint(spec)


# Whether anything changed


def test_the_fingerprint_sees_every_change_of_the_files(fill: Fill) -> None:
    top = fill("set/a/1.jpg", "set/a/2.jpg", "other/3.jpg")
    spec = DataSpec(str(top / "set"), str(top / "other"))
    seen = [fingerprint(spec)]
    assert fingerprint(spec) == seen[0]

    def changed() -> bool:
        seen.append(fingerprint(spec))
        return len(set(seen)) == len(seen)

    fill("set/a/4.jpg")
    assert changed()
    fill("set/a/1.jpg", content="other")
    assert changed()
    os.utime(top / "set" / "a" / "2.jpg", ns=(1, 1))
    assert changed()
    (top / "set" / "a" / "4.jpg").rename(top / "set" / "a" / "5.jpg")
    assert changed()
    (top / "other" / "3.jpg").rename(top / "other" / "6.jpg")
    assert changed()
    write(top / "class_index.json", {"a": 1})
    assert changed()
    write(top / "class_index.json", {"a": 1, "b": 2})
    assert changed()


def test_a_page_and_its_visitors_share_one_look_for_seconds(
    fill: Fill, wait: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(str(fill("set/1.jpg") / "set"))
    looks: list[object] = []
    look = selection.list_folder

    def slow(path: str | Path) -> object:
        looks.append(path)
        time.sleep(0.05)  # so that the visitors come while the first one's look lasts
        return look(path)

    monkeypatch.setattr(selection, "list_folder", slow)
    requests = [Request("fashion-resnet", data=spec, settings=Settings(seed=seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as visitors:
        keys = list(visitors.map(request_key, requests))
    assert len(set(keys)) == 4
    assert request_keys(requests) == keys
    assert len(looks) == 1
    recent_fingerprint(replace(spec, limit=7, seed=3))  # the same files
    assert len(looks) == 1
    fill("set/2.jpg")
    assert fingerprint(spec) != recent_fingerprint(spec)  # what measures looks anew
    wait()
    assert fingerprint(spec) == recent_fingerprint(spec)


def test_a_folder_that_vanishes_is_an_error_in_words(fill: Fill, wait: Callable[[], None]) -> None:
    top = fill("set/a/1.jpg")
    request = Request("fashion-resnet", data=DataSpec(str(top / "set")))
    request_key(request)
    shutil.rmtree(top / "set")
    wait()
    with pytest.raises(InputError, match=r"set' does not exist: check the path"):
        request_key(request)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o000, 0o444])
@pytest.mark.parametrize("inner", ["set", "set/a"])
def test_a_folder_that_may_not_be_entered_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch, mode: int, inner: str
) -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as top:  # not below pytest's, which nobody else may enter
        os.chmod(top, 0o755)
        folder = Path(top) / "set"
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "1.jpg").touch()
        monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", top)
        folder.chmod(mode)
        try:
            if user == 0:  # whom no mode stops
                os.seteuid(65534)
            with pytest.raises(InputError, match="can't be read"):
                fingerprint(DataSpec(str(check_allowed(Path(top) / inner))))
        finally:
            os.seteuid(user)
            folder.chmod(0o700)


def test_the_fingerprint_of_the_bundled_images_is_theirs(fill: Fill) -> None:
    assert fingerprint(DataSpec()) == fingerprint(DataSpec())
    assert fingerprint(DataSpec()) != fingerprint(DataSpec(str(fill("1.jpg"))))
    with pytest.raises(InputError, match="does not exist"):
        fingerprint(DataSpec("/no/such/folder"))
