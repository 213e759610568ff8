"""Class folders and the outputs that they stand for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_folders import CLASSES, IDS, Fill, write

from optimizer.data.classes import class_names, describe_names, map_classes, read_class_index, written_names
from optimizer.errors import InputError


def targets(folder_names: list[str], **options: object) -> dict[str, int]:
    mapping = map_classes(folder_names, CLASSES, **options)  # type: ignore[arg-type]
    return {entry.folder: entry.index for entry in mapping.mapped}


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
        ["first", "shoe", "shark"],
        ["first", "n12345678 shoe, boot", " a fish, shark "],
        "first\nshoe\nshark\n\n",
        "first\nn12345678 shoe, boot\nn12345679 a fish, shark\n",
        "shoe 1\nshark 2\nboot 4\n",
        'first\n\n"shoe"\n\nshark\n',
        "2: shark\n1: shoe\n4: boot\n",
        "shoe,1\nfirst,0\n\nshark,2\n",
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
        ([1, 2], r"class index file .entry 1 of the list is not a name."),
        (["shoe", "  "], "entry 2 of the list is not a name"),
        (["a", "b", "c", "d", "e", "shoe"], "names the output 5, but the model has outputs 0 to 4"),
        ("7", "not a JSON object or list"),
        ({"shoe": "boot"}, "entry 1 says no output"),
        ({"shoe": 1.5}, "entry 1 says no output"),
        ({"shoe": True}, "entry 1 says no output"),
        ({"n01": {"index": True, "name": "boot"}}, "entry 1 says no output"),
        ({"1" * 5_000: "shoe"}, "entry 1 says no output"),
        ({"shoe": 5}, "names the output 5, but the model has outputs 0 to 4"),
        ({"shoe": -1}, "names the output -1"),
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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("private.txt", b"key = hunter2\n" * 9),
        ("private.txt", b"hunter2\n\xff hunter2"),
        ("private.json", b'{"hunter2": "x"}'),
        ("private.json", b'{"a": 0, "hunter2": 99}'),
        ("private.json", b"{hunter2"),
    ],
)
def test_an_error_tells_nothing_of_what_stands_in_a_file(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError) as caught:
        map_classes(["shoe"], CLASSES, class_index=str(tmp_path / name))
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_class_index_file_outside_the_roots_is_not_looked_at(
    fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = fill("open/shoe/1.jpg", "open/set/shoe/1.jpg")
    write(top / "class_index.json", {"shoe": 1})  # beside the root
    assert targets(["shoe"], beside=top / "open") == {"shoe": 1}
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(top / "open"))
    assert targets(["shoe"], beside=top / "open") == {}
    (top / "open" / "class_index.json").symlink_to(top / "class_index.json")
    assert targets(["shoe"], beside=top / "open" / "set") == {}
    with pytest.raises(InputError, match="leads outside the folders that are allowed here"):
        targets(["shoe"], class_index=str(top / "open" / "class_index.json"))
    (top / "open" / "class_index.json").unlink()
    write(top / "open" / "class_index.json", {"shoe": 2})
    assert targets(["shoe"], beside=top / "open" / "set") == {"shoe": 2}


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


def test_a_list_names_the_outputs_in_order_whatever_the_names_are(tmp_path: Path) -> None:
    path = write(tmp_path / "classes.json", ["crane", "Apollo 1", "crane"])
    assert class_names(path) == ("crane", "Apollo 1", "crane")
    assert read_class_index(write(tmp_path / "empty.json", [])) == []


@pytest.mark.parametrize(
    "lines",
    [
        "Boeing 707\nAirbus 320\n",
        "class 0\nclass 1\n",
        "class 1\nclass 2\n",
        "1st 0\n2nd\n",
        "Apollo 1\n",
        "0.5mm bolt\n1.5mm bolt\n",
    ],
)
def test_numbers_that_belong_to_names_stay_with_them(tmp_path: Path, lines: str) -> None:
    path = write(tmp_path / "classes.txt", lines)
    assert read_class_index(path) == [(name, place) for place, name in enumerate(lines.splitlines())]


@pytest.mark.parametrize(
    "lines",
    [
        "2: crane\n0: tench\n1: crane\n",  # ImageNet has two cranes, a bird and a machine
        "crane 2\ntench 0\ncrane 1\n",
        "2) crane\n0) tench\n1) crane\n",
        "2. crane\n0. tench\n1. crane\n",
        "2 - crane\n0 - tench\n1 - crane\n",
        "crane - 2\ntench - 0\ncrane - 1\n",
        '"crane",2\n"tench",0\n"crane",1\n',
        "2,'crane'\n0,'tench'\n1,'crane'\n",
    ],
)
def test_a_name_that_two_outputs_share_is_read_with_each(tmp_path: Path, lines: str) -> None:
    (tmp_path / "classes.txt").write_text(lines)
    assert written_names(lines) == class_names(tmp_path / "classes.txt") == ("tench", "crane", "crane")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tench 0", ("tench",)),
        ("0: tench", ("tench",)),
        ("crane (bird) 1\ncrane (machine) 0", ("crane (machine)", "crane (bird)")),
        ("3 musketeers 1\n7 dwarfs 0", ("7 dwarfs", "3 musketeers")),
        ("0: Audi 2001\n1: BMW 2001", ("Audi 2001", "BMW 2001")),
        ("\"crane\"\n'tench'\ncrane", ("crane", "tench", "crane")),
        ("[background]\ncat", ("[background]", "cat")),
        ("[background]", ("[background]",)),
    ],
)
def test_names_are_read_without_their_outputs_and_quotes(text: str, names: tuple[str, ...]) -> None:
    assert written_names(text) == names


@pytest.mark.parametrize(
    ("lines", "folders"),
    [
        ("00 airplane\n01 bird\n02 cat\n", ["00 airplane", "01 bird", "02 cat"]),
        ("Apollo 1\nSaturn 2\nGemini 3\n", ["Apollo 1", "Saturn 2", "Gemini 3"]),
        ("Gemini 2\nApollo 0\nSaturn 1\n", ["Gemini_2", "Apollo_0", "Saturn_1"]),
        ("2 cat\n0 airplane\n1 bird\n", ["airplane", "bird", "cat"]),
        ("2, cat\n0, airplane\n1, bird\n", ["airplane", "bird", "cat"]),
    ],
)
def test_a_folder_with_a_number_in_its_name_is_found_by_its_line(
    tmp_path: Path, lines: str, folders: list[str]
) -> None:
    path = write(tmp_path / "index.txt", lines)
    expected = {folder: place for place, folder in enumerate(folders)}
    assert targets(folders, class_index=path) == expected


@pytest.mark.parametrize("lines", ["1 airplane\n2 bird\n3 cat\n", "crane 3\ncrane 1\ntench 2\n"])
def test_outputs_that_are_numbered_from_1_are_refused_with_the_reason(tmp_path: Path, lines: str) -> None:
    path = write(tmp_path / "classes.txt", lines)
    words = "the outputs are numbered from 1; they begin at 0"
    with pytest.raises(InputError, match=f"classes.txt is not a class index file .{words}.: use JSON"):
        targets(["airplane", "tench"], class_index=path)
    with pytest.raises(InputError, match=words):
        class_names(path)
    with pytest.raises(InputError, match=f"what is written is no list of class names .{words}."):
        written_names(lines)


def test_names_that_somebody_pasted_are_read_as_a_class_index_file() -> None:
    names = ("airplane", "great white shark", "cat")
    for text in (
        "airplane\n\n great white shark \ncat",
        "cat 2\nairplane 0\ngreat white shark 1\n",
        '{"cat": 2, "airplane": 0, "great white shark": 1}',
        '["airplane", "great white shark", "cat"]',
    ):
        assert written_names(text) == names
    assert describe_names(names) == "3 names, from airplane (output 0) to cat (output 2)"
    assert written_names(" \n") == ()
    assert written_names("[background]\ncat") == ("[background]", "cat")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat 1\nairplane 3\n", "leaves outputs out: a name is needed for each, from 0 on"),
        ('{"cat": "dog"}', "what is written is no list of class names .entry 1 says no output."),
        ('["cat", 1]', "what is written is no list of class names .entry 2 of the list is not a name."),
        ("['cat', 'dog']", r'what is written is no list of class names .*use JSON such as \["tench"'),
        ('["cat", "dog",]', "what is written is no list of class names"),
        ('[\n  "cat"\n  "dog"\n]', "what is written is no list of class names"),
        ("{", "what is written is no list of class names"),
    ],
)
def test_names_that_can_not_be_read_as_meant_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        written_names(text)
