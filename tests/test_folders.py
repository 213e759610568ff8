"""Image folders, class mapping and the draw, without opening an image."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer import folders
from optimizer.errors import InputError
from optimizer.folders import check_allowed, fingerprint, list_folder, map_classes, select
from optimizer.records import DataSpec

CLASSES = ("T-shirt/top", "Ankle boot", "great white shark, white shark", "cardigan", "Cardigan")
IDS = ("n00000001", "n00000002", "n00000003", "n00000004", "n00000005")
Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Make files of distinct content below a folder of the test's own."""

    def make(*names: str, content: str | None = None) -> Path:
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"content of {name}" if content is None else content)
        return tmp_path

    return make


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def targets(folder_names: list[str], **options: object) -> dict[str, int]:
    mapping = map_classes(folder_names, CLASSES, **options)  # type: ignore[arg-type]
    return {entry.folder: entry.index for entry in mapping.mapped}


# What lies in a folder


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


# Which class is which


@pytest.mark.parametrize(
    ("folder", "index"),
    [
        ("n00000003", 2),
        ("N00000003", 2),
        ("T-shirt_top", 0),
        ("tshirt top", 0),
        ("ANKLE-BOOT", 1),
        ("white_shark", 2),
        ("Great White Shark", 2),
        ("cardigan", 3),
        ("Cardigan", 4),
    ],
)
def test_a_folder_maps_by_wordnet_id_or_name(folder: str, index: int) -> None:
    assert targets([folder], wordnet_ids=IDS) == {folder: index}


def test_an_ambiguous_or_unknown_name_is_listed_and_not_guessed() -> None:
    mapping = map_classes(["CARDIGAN", "boot", "Ankle boot", "-"], CLASSES, IDS)
    assert mapping.unmapped == ("CARDIGAN", "boot", "-")
    assert [entry.name for entry in mapping.mapped] == ["Ankle boot"]


@given(st.lists(st.text("aZ9é_- /"), min_size=1, max_size=6, unique=True))
def test_a_class_s_own_name_maps_to_it_whatever_the_others_are(names: list[str]) -> None:
    for entry in map_classes(names, names).mapped:
        assert entry.name == entry.folder


@pytest.mark.parametrize(
    "content",
    [
        {"shoe": 1, "shark": 2},
        {"shoe": {"index": 1, "name": "boot"}, "shark": {"index": 2, "name": "fish"}},
        {"x": {"index": 1, "name": "shoe"}, "y": {"index": 2, "name": "shark"}},
        {"1": ["shoe", "boot"], "2": ["n1", "shark"]},
        {"1": "shoe", "2": "a fish, shark"},
        "first\nshoe\nshark\n\n",
        "first\nn12345678 shoe, boot\nn12345679 a fish, shark\n",
    ],
)
def test_every_kind_of_class_index_file_is_read(tmp_path: Path, content: object) -> None:
    suffix = ".txt" if isinstance(content, str) else ".json"
    path = write(tmp_path / f"index{suffix}", content)
    assert targets(["shoe", "SHARK", "n12345678"], class_index=path) in (
        {"shoe": 1, "SHARK": 2},
        {"shoe": 1, "SHARK": 2, "n12345678": 1},
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a class index file"),
        ([1, 2], "not a JSON object"),
        ({"shoe": "boot"}, "entry 'shoe' says no output"),
        ({"shoe": 1.5}, "entry 'shoe' says no output"),
        ({"shoe": True}, "entry 'shoe' says no output"),
        ({"shoe": 5}, "gives 'shoe' the output 5, but the model has outputs 0 to 4"),
        ({"shoe": -1}, "the output -1"),
        ("[" * 100_000, "is not a class index file"),
    ],
)
def test_a_wrong_class_index_file_is_refused_in_words(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        targets(["shoe"], class_index=write(tmp_path / "index.json", content))


def test_a_missing_or_binary_class_index_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        targets(["shoe"], class_index=str(tmp_path / "no.json"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="is not a class index file"):
        targets(["shoe"], class_index=str(tmp_path / "binary.txt"))


def test_the_class_index_file_given_goes_before_the_names(tmp_path: Path) -> None:
    path = write(tmp_path / "index.json", {"cardigan": 0})
    mapping = map_classes(["cardigan", "ankle boot"], CLASSES, IDS, path)
    assert [(entry.index, entry.by) for entry in mapping.mapped] == [(0, "class index file"), (1, "name")]


def test_a_class_index_file_in_the_folder_or_beside_it_is_found(fill: Fill) -> None:
    top = fill("set/shoe/1.jpg")
    write(top / "imagenet_class_index.json", {"shoe": 1, "cardigan": 0})
    mapping = map_classes(["shoe", "cardigan"], CLASSES, IDS, beside=top / "set")
    assert [(entry.index, entry.by) for entry in mapping.mapped] == [
        (1, "imagenet_class_index.json"),
        (3, "name"),  # a file that nobody named does not overrule the model's own names
    ]
    write(top / "set" / "class_index.json", {"shoe": 2})
    assert targets(["shoe"], beside=top / "set") == {"shoe": 2}
    write(top / "set" / "class_index.json", {"shoe": 2, "other": 999})  # of a larger model
    assert targets(["shoe"], beside=top / "set") == {}


# Who is evaluated


def test_nothing_that_maps_says_how_to_map(fill: Fill) -> None:
    top = fill("dog/1.jpg", "cat/2.jpg")
    with pytest.raises(
        InputError, match=r"none of the 2 folders \(cat, dog\).*T-shirt/top.*class index file"
    ):
        select(DataSpec(str(top)), CLASSES)


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
    monkeypatch.setattr(folders, "CALIBRATION_LIMIT", 3)
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


def test_the_fingerprint_of_the_bundled_images_is_theirs(fill: Fill) -> None:
    assert fingerprint(DataSpec()) == fingerprint(DataSpec())
    assert fingerprint(DataSpec()) != fingerprint(DataSpec(str(fill("1.jpg"))))
    with pytest.raises(InputError, match="does not exist"):
        fingerprint(DataSpec("/no/such/folder"))


# Who may look where


@pytest.fixture
def roots(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = fill("open/set/a/1.jpg", "also/2.jpg", "open-not/3.jpg", "secret/4.jpg")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", os.pathsep.join([str(top / "open"), str(top / "also")]))
    return top


def test_below_an_allowed_root_is_allowed(roots: Path) -> None:
    assert folders.allowed_roots() == (roots / "open", roots / "also")
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


def test_a_link_that_leads_outside_is_refused_wherever_it_is(roots: Path) -> None:
    (roots / "open" / "out").symlink_to(roots / "secret")
    (roots / "also" / "deep").mkdir()
    (roots / "also" / "deep" / "x.jpg").symlink_to(roots / "secret" / "4.jpg")
    for path in ("open/out", "open", "also", "also/deep/x.jpg"):
        with pytest.raises(InputError, match="leads outside the folders that are allowed"):
            check_allowed(roots / path)
    assert check_allowed(roots / "open" / "set") == roots / "open" / "set"
    (roots / "open" / "set" / "hop").symlink_to(roots / "also")  # allowed, but a link in there is not
    with pytest.raises(InputError, match="leads outside"):
        check_allowed(roots / "open" / "set")


def test_without_roots_nothing_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARETOSCOPE_IMAGE_ROOTS", raising=False)
    with pytest.raises(InputError, match="none, until the operator sets PARETOSCOPE_IMAGE_ROOTS"):
        check_allowed(tmp_path)


def test_image_folders_to_offer(fill: Fill) -> None:
    top = fill("sets/flowers/rose/1.jpg", "sets/flowers/tulip/2.jpg", "sets/flat/3.png", "sets/text/4.txt")
    assert folders.image_folders(top / "sets") == [
        top / "sets",
        top / "sets" / "flat",
        top / "sets" / "flowers",
    ]
    assert folders.image_folders(top) == [top / "sets"]
    assert folders.image_folders(top / "missing") == []
    fill(*(f"many/{number}/x.jpg" for number in range(folders.OFFERED_SUBFOLDERS + 1)))
    assert folders.image_folders(top / "many") == [top / "many"]  # classes, not sets of their own


def test_no_torch_is_needed_to_look_at_folders() -> None:
    code = "import sys, optimizer.folders, optimizer.resources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
