"""Image folders, without opening an image."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from image_folders import Fill

from optimizer.data import folders
from optimizer.data.folders import check_allowed, list_folder, open_file
from optimizer.data.selection import fingerprint
from optimizer.errors import InputError
from optimizer.records import DataSpec
from optimizer.system.uploads import IMAGES


def test_an_uploaded_set_that_was_removed_is_said_to_be_gone() -> None:
    with pytest.raises(InputError, match=r"uploaded set 'images 3cd8059eac9e' is not here any more"):
        check_allowed("images 3cd8059eac9e")


def test_class_folders_are_listed_sorted_and_deep(fill: Fill) -> None:
    top = fill("b/2.PNG", "b/1.jpg", "a/deeper/x.jpeg", "a/.hidden.jpg", ".cache/y.jpg")
    listing = list_folder(top)
    assert [str(file.relative_to(top)) for file in listing.images] == [
        "a/deeper/x.jpeg",
        "b/1.jpg",
        "b/2.PNG",
    ]
    assert listing.folders == ("a", "b", "b")
    assert listing.classes == ("a", "b")


def test_images_without_class_folders_have_no_class(fill: Fill) -> None:
    listing = list_folder(fill("1.jpg", "2.jpg", "empty/readme.md"))
    assert listing.folders == (None, None)
    assert listing.classes == ()
    assert listing.loose == 0


def test_what_is_left_out_is_counted(fill: Fill) -> None:
    listing = list_folder(fill("a/1.jpg", "a/notes.txt", "beside.jpg", "class_index.json", "todo.md"))
    assert [file.name for file in listing.others] == ["notes.txt", "todo.md"]
    assert listing.loose == 1


def test_links_are_followed_and_a_loop_ends(fill: Fill) -> None:
    top = fill("real/1.jpg", "set/a/2.jpg")
    (top / "set" / "b").symlink_to(top / "real")
    (top / "set" / "a" / "up").symlink_to(top / "set" / "a")
    listing = list_folder(top / "set")
    assert [(file.name, folder) for file, folder in zip(listing.images, listing.folders, strict=True)] == [
        ("2.jpg", "a"),
        ("1.jpg", "b"),
    ]


def test_unusable_folders_are_refused_in_words(fill: Fill) -> None:
    top = fill("text/a.txt", "text/deep/b.csv", "file.jpg")
    (top / "empty").mkdir()
    (top / "hollow" / "class").mkdir(parents=True)
    for path, words in (
        (top / "missing", "does not exist"),
        (top / "file.jpg", "is a file"),
        (top / "empty", "holds nothing: give one with images"),
        (top / "hollow", "holds nothing"),
        (top / "text", r"holds no image, only 2 other files \(b\.csv, a\.txt\)"),
        ("nul\0byte", "can't be read"),
        ("~nobody-of-this-name/x", "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            list_folder(path)


@pytest.fixture
def roots(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = fill("open/set/a/1.jpg", "also/2.jpg", "open-not/3.jpg", "secret/4.jpg")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", os.pathsep.join([str(top / "open"), str(top / "also")]))
    return top


def test_below_an_allowed_root_is_allowed(roots: Path, home: Path) -> None:
    assert folders.opened_roots() == (roots / "open", roots / "also")
    assert folders.allowed_roots() == (*folders.opened_roots(), home / IMAGES)
    assert check_allowed(roots / "open") == roots / "open"
    assert check_allowed(str(roots / "open" / "set" / ".." / "set")) == roots / "open" / "set"
    assert check_allowed(roots / "open" / "not there yet") == roots / "open" / "not there yet"
    (roots / "open" / "link").symlink_to(roots / "also")
    assert check_allowed(roots / "open" / "link") == roots / "also"


@pytest.mark.parametrize("path", ["secret", "open-not", "open/../secret", ".", "nul\0byte"])
def test_outside_is_refused_naming_the_roots(roots: Path, path: str) -> None:
    with pytest.raises(InputError) as caught:
        check_allowed(f"{roots}/{path}")
    assert str(roots / "also") in str(caught.value) or "not a path" in str(caught.value)


def test_a_link_that_leads_outside_is_refused_wherever_it_is(roots: Path, wait: Callable[[], None]) -> None:
    (roots / "open" / "out").symlink_to(roots / "secret")
    (roots / "also" / "deep").mkdir()
    (roots / "also" / "deep" / "x.jpg").symlink_to(roots / "secret" / "4.jpg")
    for path in ("open/out", "open", "also", "also/deep/x.jpg"):
        with pytest.raises(InputError, match="leads outside the folders that are allowed"):
            check_allowed(roots / path)
    assert check_allowed(roots / "open" / "set") == roots / "open" / "set"
    (roots / "open" / "set" / "hop").symlink_to(roots / "also")  # allowed, but a link in there is not
    wait()
    with pytest.raises(InputError, match="leads outside"):
        check_allowed(roots / "open" / "set")


def test_a_link_put_in_place_after_the_check_is_not_followed(roots: Path) -> None:
    """Of a file, of a folder, and of a folder above: in each the secret has the image's own name."""
    file = check_allowed(roots / "open" / "set") / "a" / "1.jpg"
    with open_file(file) as opened:
        assert opened.read() == b"content of open/set/a/1.jpg"
    secret = roots / "secret"
    (secret / "a").mkdir()
    (secret / "a" / "1.jpg").write_text("secret")
    for place, target in (
        (file, secret / "a" / "1.jpg"),
        (file.parent, secret / "a"),
        (file.parent.parent, secret),
    ):
        aside = place.rename(place.with_name("aside"))
        place.symlink_to(target)
        with pytest.raises(InputError, match="leads outside the folders that are allowed here"):
            open_file(file)
        place.unlink()
        aside.rename(place)
    (roots / "open" / "link.jpg").symlink_to(roots / "also" / "2.jpg")  # one that stays inside is followed
    with open_file(roots / "open" / "link.jpg") as opened:
        assert opened.read() == b"content of also/2.jpg"


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="this system opens no file below a folder")
def test_a_link_put_in_place_while_a_file_is_opened_is_not_followed(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = roots / "open" / "set" / "a" / "1.jpg"
    resolve = os.path.realpath

    def then_replaced(path: object, **options: bool) -> str:
        real = resolve(path, **options)  # type: ignore[call-overload]
        if real == str(file):
            file.unlink()
            file.symlink_to(roots / "secret" / "4.jpg")
        return str(real)

    monkeypatch.setattr(os.path, "realpath", then_replaced)
    with pytest.raises(OSError, match="symbolic link"):
        open_file(file)


def test_outside_the_roots_a_command_line_may_follow_links(roots: Path) -> None:
    (roots / "mine.jpg").symlink_to(roots / "secret" / "4.jpg")
    with open_file(roots / "mine.jpg") as opened:
        assert opened.read() == b"content of secret/4.jpg"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX")
def test_a_pipe_is_not_waited_for(roots: Path) -> None:
    for folder in (roots, roots / "open"):
        os.mkfifo(folder / "pipe.jpg")
        with pytest.raises(InputError, match=r"pipe\.jpg is not a file"):
            open_file(folder / "pipe.jpg")


def test_a_page_that_asks_often_looks_once(
    roots: Path, wait: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    reached = folders._reached
    monkeypatch.setattr(folders, "_reached", lambda real: looked.append(real) or reached(real))
    for _ in range(3):
        check_allowed(roots / "open")
    assert len(looked) == 1
    wait()
    check_allowed(roots / "open")
    assert len(looked) == 2


def test_without_roots_nothing_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARETOSCOPE_IMAGE_ROOTS", raising=False)
    with pytest.raises(InputError, match="none, until the operator sets PARETOSCOPE_IMAGE_ROOTS"):
        check_allowed(tmp_path)


def test_image_folders_to_offer(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    top = fill("sets/flowers/rose/1.jpg", "sets/flowers/tulip/2.jpg", "sets/flat/3.png", "sets/text/4.txt")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(top))
    assert folders.image_folders(top / "sets") == [
        top / "sets",
        top / "sets" / "flat",
        top / "sets" / "flowers",
    ]
    assert folders.image_folders(top) == [top / "sets"]
    fill("holiday/calibration/1.jpg", "holiday/evaluation/2.jpg")
    holiday = top / "holiday"
    assert folders.image_folders(holiday) == [holiday, holiday / "calibration", holiday / "evaluation"]
    fill("indexed/cat/1.jpg", "indexed/dog/2.jpg", "indexed/class_index.json")
    assert folders.image_folders(top / "indexed") == [top / "indexed"]
    fill("ids/n01440764/1.jpg", "ids/n01443537/2.jpg")
    assert folders.image_folders(top / "ids") == [top / "ids"]
    assert folders.image_folders(top / "missing") == []
    fill(*(f"many/{number}/x.jpg" for number in range(folders.OFFERED_SUBFOLDERS + 1)))
    assert folders.image_folders(top / "many") == [top / "many"]  # classes, not sets of their own


def test_a_folder_that_would_be_refused_is_not_offered(roots: Path, fill: Fill) -> None:
    fill("open/inner/b/5.jpg", "open/near/c/6.jpg")
    (roots / "open" / "out").symlink_to(roots / "secret")
    (roots / "open" / "inner" / "b" / "6.jpg").symlink_to(roots / "secret" / "4.jpg")
    (roots / "open" / "near" / "link").symlink_to(roots / "also")  # stays within the allowed roots
    assert folders.image_folders(roots / "open") == [roots / "open" / "near", roots / "open" / "set"]


def test_names_that_are_not_utf8_are_refused_and_not_offered(
    fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As unpacked archives leave them. No record holds such a name, and a page can't show it."""
    top, latin = fill("good/a/1.jpg", "bad/a/1.jpg"), os.fsdecode(b"caf\xe9")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(top))
    try:
        (top / "bad" / "a" / f"{latin}.jpg").touch()
    except OSError:
        pytest.skip("this file system takes no such names")
    (top / latin).mkdir()
    (top / latin / "1.jpg").touch()
    with pytest.raises(InputError, match=r"'/bad/a/caf\\udce9\.jpg' is not UTF-8: rename it"):
        fingerprint(DataSpec(str(top)))
    with pytest.raises(InputError, match=r"'/a/caf\\udce9\.jpg' is not UTF-8: rename it"):
        fingerprint(DataSpec(str(top / "bad")))
    assert folders.image_folders(top) == [top, top / "bad", top / "good"]


def test_no_torch_is_needed_to_look_at_folders() -> None:
    code = "import sys, optimizer.data.folders, optimizer.system.paths; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_folders_that_the_operator_names_are_read_as_they_were_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", f"photos{os.pathsep}2024"):
        (tmp_path / name).mkdir()
    both = [str(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setenv(folders.ROOTS_VARIABLE, folders.joined_roots(both, "--images"))
    assert folders.opened_roots() == (tmp_path.resolve() / "one", tmp_path.resolve() / "two")
    with pytest.raises(InputError, match="--images .* can't be opened: .* stands between folders"):
        folders.joined_roots([str(tmp_path / f"photos{os.pathsep}2024")], "--images")
    with pytest.raises(InputError, match="--allow .*absent is not a folder"):
        folders.joined_roots([str(tmp_path / "absent")], "--allow")
