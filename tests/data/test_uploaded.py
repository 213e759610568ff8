"""Images that are uploaded: what is kept of them, and where."""

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from optimizer.data import uploaded
from optimizer.data.folders import allowed_roots, check_allowed, list_folder
from optimizer.data.selection import fingerprint
from optimizer.errors import InputError, UnavailableError
from optimizer.records import DataSpec
from optimizer.system import uploads
from optimizer.system.uploads import IMAGES, UPLOADS_VARIABLE


def upload(name: str, content: bytes = b"pixels") -> io.BytesIO:
    file = io.BytesIO(content)
    file.name = name
    return file


def packed(*names: str, name: str = "photos.zip", method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    """A ZIP file; each member holds its own name."""
    file = upload(name, b"")
    with zipfile.ZipFile(file, "w", method) as archive:
        for member in names:
            archive.writestr(member, member)
    return file


def unpack(*uploads: io.BytesIO) -> uploaded.Unpacked:
    return uploaded.unpack(uploaded.stage(uploads))


def keep(*uploads: io.BytesIO) -> Path:
    return Path(unpack(*uploads).path)


def kept(*uploads: io.BytesIO) -> dict[str, str]:
    """Of each class folder and number of a set, what the file holds."""
    listing = list_folder(keep(*uploads))
    return {
        f"{folder or ''} {file.name[:5]}": file.read_text()
        for folder, file in zip(listing.folders, listing.images, strict=True)
    }


def test_images_are_kept_in_a_folder_that_the_page_may_open(home: Path) -> None:
    path = keep(upload("cat 1.JPG", b"a"), upload("notes.txt"), upload("dog.png", b"b"))
    assert path.parent == home / IMAGES
    assert [file.name for file in list_folder(path).images] == ["00000 cat_1.JPG", "00001 dog.png"]
    assert check_allowed(path) == path
    assert allowed_roots() == (home / IMAGES,)


@pytest.mark.parametrize(
    ("members", "held"),
    [
        (("cat/1.jpg", "dog/2.jpg", "read.me"), {"cat 00000": "cat/1.jpg", "dog 00001": "dog/2.jpg"}),
        (
            ("all/cat/1.jpg", "all/dog/x/2.jpg"),
            {"cat 00000": "all/cat/1.jpg", "dog 00001": "all/dog/x/2.jpg"},
        ),
        (("C++\\1.jpg", "C#\\2.jpg"), {"C++ 00000": "C++\\1.jpg", "C# 00001": "C#\\2.jpg"}),
        (("all/1.jpg", "all/2.jpg"), {" 00000": "all/1.jpg", " 00001": "all/2.jpg"}),
        (("a/1.jpg", "__MACOSX/a/._1.jpg", "a/.2.jpg"), {" 00000": "a/1.jpg"}),
    ],
)
def test_folders_of_an_archive_are_classes(members: tuple[str, ...], held: dict[str, str]) -> None:
    assert kept(packed(*members)) == held


@pytest.mark.parametrize(
    "name",
    [
        "../../out.jpg",
        "/out.jpg",
        "a/../../out.jpg",
        "..\\out.jpg",
        "a\0b.jpg",
        "é" * 300 + ".jpg",
        "con.jpg",
    ],
)
def test_names_in_an_archive_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    path = keep(packed("x/first.jpg", f"y/{name}", name))
    files = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert files
    assert all(file.is_relative_to(path) for file in files)


def test_the_same_images_are_kept_once_until_they_are_removed(home: Path) -> None:
    first = keep(packed("cat/1.jpg", "dog/2.jpg"))
    assert keep(packed("cat/1.jpg", "dog/2.jpg")) == first
    other = keep(packed("cat/1.jpg", "cow/2.jpg"))
    assert set(uploaded.sets()) == {first, other}
    uploaded.remove("../models")
    uploaded.remove(other.name)
    assert uploaded.sets() == [first]
    assert [*(home / IMAGES).iterdir()] == [first], "nothing half-written is left"


def test_sets_of_the_same_names_and_sizes_are_told_apart() -> None:
    """Wherever they lie: by these and the times of change they are known, and what was measured with them."""
    first, other = (keep(upload("a.bmp", pixels), upload("b.bmp", b"same")) for pixels in (b"12", b"34"))
    prints = [fingerprint(DataSpec(str(path))) for path in (first, other)]
    assert prints[0] != prints[1]
    uploaded.remove(first.name)
    assert fingerprint(DataSpec(str(keep(upload("a.bmp", b"12"), upload("b.bmp", b"same"))))) == prints[0]


def locked() -> io.BytesIO:
    file = packed("a.jpg")
    content = bytearray(file.getvalue())
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + flags] |= 1
    return upload("locked.zip", bytes(content))


def damaged() -> io.BytesIO:
    content = bytearray(packed("a.jpg").getvalue())
    content[content.index(b"a.jpg") + 6] ^= 0xFF
    return upload("damaged.zip", bytes(content))


def test_what_is_left_out_is_told() -> None:
    file = packed("a/1.jpg", "b/2.jpg", "b/read.me", "b/.hidden")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("a/none.png", b"")
    unpacked = unpack(file)
    assert unpacked.left_out == (
        "1 empty file (a/none.png) left out; 1 file (b/read.me) left out: not an image by name"
    )
    assert list_folder(unpacked.path).others == ()
    assert unpack(packed("a/1.jpg", "b/1.jpg")).left_out == ""
    with pytest.raises(InputError, match=r"x.png holds no image \(1 empty file \(x.png\) left out\): give"):
        keep(upload("x.png", b""))


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (upload("notes.txt"), "notes.txt holds no image"),
        (packed("notes.txt"), "photos.zip holds no image"),
        (upload("no.zip"), "no.zip can't be unpacked .*not a zip file"),
        (locked(), "locked.zip can't be unpacked .*password"),
        (damaged(), "damaged.zip can't be unpacked"),
    ],
)
def test_what_holds_no_image_is_refused(home: Path, refused: io.BytesIO, words: str) -> None:
    with pytest.raises(InputError, match=words):
        keep(refused)
    assert not uploaded.sets()
    assert not [file for file in home.rglob("*") if file.is_file()]


def test_of_several_files_the_one_that_is_too_large_is_named_and_the_others_are_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOAD_MB", 1)
    monkeypatch.setenv(UPLOADS_VARIABLE, "1MB")  # what is left out takes no room

    def large(name: str) -> io.BytesIO:
        return upload(name, bytes(2 * 10**6))

    words = "large.zip has 2.00 MB: a file may have 1 MB"
    for files in ((large("large.zip"), upload("a.png", b"a")), (upload("a.png", b"a"), large("large.zip"))):
        unpacked = unpack(*files)
        assert unpacked.left_out == words
        assert [file.name for file in list_folder(unpacked.path).images] == ["00000 a.png"]
    with pytest.raises(InputError, match=f"{words}; larger.zip has 2.00 MB"):
        unpack(large("large.zip"), large("larger.zip"))
    with pytest.raises(InputError, match=f"notes.txt holds no image .{words}"):
        unpack(large("large.zip"), upload("notes.txt"))
    assert [*(home / IMAGES).iterdir()] == [Path(unpacked.path)], "nothing half-written is left"


def test_what_a_browser_did_not_upload_is_told_at_once_and_in_a_few_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOAD_MB", 1)
    large, other = ("large.PNG", 2 * 10**6), ("photo.heic", 2 * 10**6)
    assert uploaded.why_not_taken([large]) == "large.PNG has 2.00 MB: a file may have 1 MB"
    assert uploaded.why_not_taken([other]) == "1 file (photo.heic) left out: not an image by name"
    both = uploaded.why_not_taken([large, other, ("note.txt", 5)])
    assert both.startswith(
        "2 files (photo.heic, note.txt) left out: not an image by name; large.PNG has 2.00 MB"
    )
    assert len(uploaded.why_not_taken([large] * 1000)) <= uploaded.MAX_WORDS


@pytest.mark.parametrize("bad", [upload("no.zip"), locked(), damaged()], ids=lambda file: file.name)
def test_of_several_archives_the_damaged_one_is_named_and_the_others_are_kept(
    home: Path, bad: io.BytesIO
) -> None:
    wanted = {"a 00000": "a/1.png", "b 00001": "b/2.png"}
    for files in ((packed("a/1.png", "b/2.png"), bad), (bad, packed("a/1.png", "b/2.png"))):
        assert kept(*files) == wanted
        (path,) = uploaded.sets()
        assert path.name.startswith("photos ")
        assert unpack(*files).left_out.startswith(f"{bad.name} can't be unpacked (")
        assert [*(home / IMAGES).iterdir()] == [path], "nothing half-written is left"
    assert unpack(packed("a/1.png", "b/2.png")).left_out == "", "of the same images, given alone"
    assert unpack(packed("a/1.png", "b/2.png"), bad).left_out, "though the set was here"
    bzip = packed("a.jpg", name="b.zip", method=zipfile.ZIP_BZIP2)
    words = unpack(upload("c.png", b"c"), bzip, bad).left_out
    assert "pack it as usual (deflate); " in words
    assert bad.name in words


def test_what_was_refused_is_told_to_who_gave_it_and_not_kept_for_others(home: Path) -> None:
    """They share the folder, and one's upload of the same images changes nothing in it."""

    def content() -> dict[Path, tuple[bytes, int]]:
        files = (path for path in (home / IMAGES).rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_ctime_ns) for path in files}

    secret = upload("salaries.zip", b"no zip")
    words = unpack(packed("a/1.png", "b/2.png"), secret, upload("payroll.txt")).left_out
    assert "salaries.zip" in words
    assert "payroll.txt" in words
    before = content()
    assert sorted(path.name for path in before) == ["00000 1.png", "00001 2.png"]
    assert unpack(packed("a/1.png", "b/2.png")).left_out == ""
    unpack(packed("a/1.png", "b/2.png"), upload("other.txt"))
    assert content() == before


def test_each_archive_is_unpacked_once_however_many_are_damaged(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where images of the whole ones differ in other folders than those of all."""
    copied = list[str]()
    copy = uploaded.shutil.copyfileobj

    def noted(source: IO[bytes], target: IO[bytes]) -> None:
        if isinstance(source, zipfile.ZipExtFile):
            copied.append(f"{source.name}")
        copy(source, target)

    monkeypatch.setattr(uploaded.shutil, "copyfileobj", noted)
    given = [packed(f"all/{name}/{name}.png", name=f"{name}.zip") for name in "xy"]
    unpacked = unpack(given[0], *(damaged() for _ in range(9)), given[1])
    assert unpacked.left_out.count("damaged.zip can't be unpacked") == 9
    listing = list_folder(unpacked.path)
    assert [*zip(listing.folders, (file.name for file in listing.images), strict=True)] == [
        ("x", "00000 x.png"),
        ("y", "00001 y.png"),
    ]
    assert sorted(copied) == [*["a.jpg"] * 9, "all/x/x.png", "all/y/y.png"]


def test_where_every_archive_is_damaged_each_is_named() -> None:
    with pytest.raises(InputError, match=r"no.zip can't be unpacked .*; nor.zip can't be unpacked "):
        keep(upload("no.zip"), upload("nor.zip"))
    with pytest.raises(InputError, match=r"notes.txt holds no image \(no.zip can't be unpacked .*notes.txt"):
        keep(upload("notes.txt"), upload("no.zip"))
    assert not uploaded.sets()


def test_what_an_archive_unpacks_to_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = upload("bomb.zip", b"")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(10**6))
    monkeypatch.setenv(UPLOADS_VARIABLE, "1.5MB")
    keep(bomb)
    with pytest.raises(InputError, match=r"1\.02 MB are here.*--uploads"):
        keep(packed("b.jpg"), bomb)
    monkeypatch.setattr(uploaded, "MAX_IMAGES", 1)
    with pytest.raises(InputError, match="2 images are too many"):
        keep(packed("a.jpg", "b.jpg"))
    assert len(uploaded.sets()) == 1


def test_a_full_disk_is_told_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploaded.shutil, "copyfileobj", full)
    with pytest.raises(UnavailableError, match="No space left on device.*make room"):
        keep(upload("a.jpg"))
    assert [*(home / IMAGES).iterdir()] == []


@pytest.mark.slow
def test_whatever_is_damaged_is_kept_or_refused_in_words() -> None:
    content = packed("a/one.jpg", "b/zwei é.jpg").getvalue()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with suppress(InputError):
            assert list_folder(keep(upload("some.zip", bytes(damaged)))).images


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_may_unpack_to_more_than_it_says_is_refused(method: int) -> None:
    with pytest.raises(InputError, match="pack it as usual"):
        keep(packed("a.jpg", method=method))


def test_a_class_index_beside_the_class_folders_is_kept() -> None:
    path = keep(packed("all/0/1.jpg", "all/1/2.jpg", "all/class_index.json", "all/1/class_index.json"))
    assert [file.name for file in path.iterdir() if file.is_file()] == ["class_index.json"]


def test_nothing_may_be_uploaded_where_the_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UPLOADS_VARIABLE, "0")
    with pytest.raises(InputError, match="--uploads"):
        keep(upload("a.jpg", b""))
    monkeypatch.setenv(UPLOADS_VARIABLE, "100KB")  # each takes a block of the disk
    with pytest.raises(InputError, match="--uploads"):
        keep(packed(*(f"{number}.jpg" for number in range(25))))
    assert not uploaded.sets()
