"""Which output of a model a class folder stands for."""

import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.data.folders import INDEX_NAMES, expand, is_within, list_folder, open_file
from optimizer.errors import InputError

INDEX_MAX_BYTES = 10_000_000
JSON_FORMATS = (
    'use JSON such as ["tench", "goldfish"] in the order of the outputs, {"tench": 0}, '
    '{"n01440764": {"index": 0, "name": "tench"}} or {"0": ["n01440764", "tench"]}'
)
INDEX_FORMATS = (
    f"{JSON_FORMATS}, or a text file with one class name a line, or one and its output from 0 on: tench 0"
)


@dataclass(frozen=True, slots=True)
class MappedFolder:
    """A class folder, the model's output that it stands for, that output's name, and what told so."""

    folder: str
    index: int
    name: str
    by: str


@dataclass(frozen=True, slots=True)
class ClassMapping:
    """Class folders and the model's outputs. A subset of the model's classes is normal."""

    mapped: tuple[MappedFolder, ...] = ()
    unmapped: tuple[str, ...] = ()


def read_class_index(path: str | Path, folders: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Pairs of a name (of a folder or a class) and the output it stands for, from the usual kinds of file.

    JSON: ``{"n01440764": {"index": 0, "name": "tench"}}``, ``{"0": ["n01440764", "tench"]}``,
    ``{"0": "tench"}``, ``{"tench": 0}`` or, in the order of the outputs, ``["tench"]``. Text: one class a
    line, in the order of the outputs, as a name or as a WordNet id and names; or in any order as a name and
    its output, ``tench 0`` or ``0: tench``, unless more of the ``folders`` are called as whole lines. Raises
    InputError, which says where in the file and never what stands there: any file may be named.
    """
    file = expand(path)
    is_json = file.suffix.lower() == ".json"
    try:
        with open_file(file) as opened:
            content = opened.read(INDEX_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"the class index file {str(path)!r} does not exist: {INDEX_FORMATS}") from error
    except (OSError, InputError) as error:
        raise InputError(f"the class index file {str(path)!r} can't be read ({error})") from error
    if len(content) > INDEX_MAX_BYTES:
        raise InputError(f"{file} has more than {INDEX_MAX_BYTES:,} bytes, too many for a class index file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start:,}"
        raise InputError(f"{file} is not a class index file ({reason}): {INDEX_FORMATS}") from error
    return _pairs(text, is_json, f"{file} is not a class index file", folders)


def _pairs(text: str, is_json: bool, refused: str, folders: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Names and outputs of a class index. Raises InputError, which begins with ``refused``."""
    if not is_json:
        return _pairs_of_lines(text.splitlines(), refused, folders)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{refused} ({error}): {INDEX_FORMATS}") from error
    if isinstance(entries, list):
        return _pairs_of_list(entries, refused)
    if not isinstance(entries, dict):
        raise InputError(f"{refused} (not a JSON object or list): {INDEX_FORMATS}")
    pairs = []
    for number, (key, value) in enumerate(entries.items(), 1):
        names = _entry_names(key, value)
        if names is None:
            raise InputError(f"{refused} (entry {number:,} says no output): {INDEX_FORMATS}")
        pairs += names
    return pairs


def _pairs_of_list(entries: list[object], refused: str) -> list[tuple[str, int]]:
    """Names in the order of the outputs. Raises InputError."""
    for number, name in enumerate(entries, 1):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{refused} (entry {number:,} of the list is not a name): {INDEX_FORMATS}")
    return _line_names(_numbered(str(name).strip() for name in entries))


FIRST = re.compile(r"(?P<output>\d{1,8})(?:\s*\)\s*|\s*[.–—-]\s+|[\s,;:=]+)(?P<name>\S.*)")
"""A line such as ``0: airplane``, ``0) airplane`` or ``0 - airplane``."""
LAST = re.compile(r"(?P<name>.*[^\s,;:=–—-])(?:\s*[–—-]\s+|[\s,;:=]+)(?P<output>\d{1,8})")
"""A line such as ``airplane 0`` or ``"airplane",0``."""
LIST = re.compile(r"\[\s*[\[{'\"]")
"""How a list of names begins that is written as JSON, or meant to be, as Python prints one."""
QUOTED = re.compile(r"""(["'])((?:(?!\1).)+)\1""")
"""A name in quotes, with none of them in it."""


def _pairs_of_lines(lines: Sequence[str], refused: str, folders: Sequence[str]) -> list[tuple[str, int]]:
    """Names with the outputs that their lines say, where all do; else in the order of the outputs, and so too
    where more of the ``folders`` are called as whole lines. Raises InputError for outputs from 1 on."""
    lines = [_unquoted(line.strip()) for line in lines if line.strip()]
    placed, said = _line_names(_numbered(lines)), _line_names(_said(lines))
    own = set(map(_plain, folders))
    if not said or len(own & _plain_names(placed)) > len(own & _plain_names(said)):
        return placed
    if {output for _, output in said} == set(range(1, len(lines) + 1)):
        reason = "the outputs are numbered from 1; they begin at 0"
        raise InputError(f"{refused} ({reason}): {INDEX_FORMATS}")
    return said


def _said(lines: Sequence[str]) -> list[tuple[str, int]]:
    """Names and outputs where each line says both; none where a number may belong to a name."""
    readings = []
    for sides in ((FIRST, LAST), (LAST, FIRST)):  # of "3 musketeers 0" the lower numbers are the outputs
        found = [next(filter(None, (side.fullmatch(line) for side in sides)), None) for line in lines]
        pairs = [(_unquoted(one["name"]), int(one["output"])) for one in found if one]
        if len(pairs) == len(lines) and _are_outputs(pairs):
            readings.append(pairs)
    return min(readings, key=lambda pairs: max(output for _, output in pairs), default=[])


def _are_outputs(pairs: Sequence[tuple[str, int]]) -> bool:
    """Whether numbers beside names are outputs: all from 0 or 1 on, or some of them with a name of its own
    each. Not those of ``class 0`` and ``class 1``, nor high ones, as of types and years."""
    names, outputs = {name for name, _ in pairs}, {output for _, output in pairs}
    if len(pairs) < 2:
        return outputs == {0}
    if len(names) == 1 or len(outputs) < len(pairs):
        return False
    begins, ends = min(outputs), max(outputs)
    return (begins < 2 and ends < begins + len(pairs)) or (len(names) == len(pairs) and begins < len(pairs))


def class_names(path: str | Path) -> tuple[str, ...]:
    """A name for each of a model's outputs: from a class index file, or a folder whose subfolders are
    classes, in alphabetical order. Raises InputError for a file that leaves one out."""
    if expand(path).is_dir():
        return tuple(sorted(list_folder(path).classes))
    return _names_of_all(read_class_index(path), str(expand(path)))


def written_names(text: str) -> tuple[str, ...]:
    """A name for each of a model's outputs, as somebody wrote or pasted them: what a class index file holds.
    Raises InputError for JSON that is none of it, and for names that leave an output out."""
    written = text.strip()
    is_json = written.startswith("{") or LIST.match(written) is not None or _is_json_list(written)
    pairs = _pairs(written, is_json, "what is written is no list of class names")
    return _names_of_all(pairs, "what is written")


def describe_names(names: Sequence[str]) -> str:
    """How names were read: ``10 names, from airplane (output 0) to truck (output 9)``."""
    if len(names) < 2:
        return "".join(f"1 name: {name} (output 0)" for name in names)
    return f"{len(names):,} names, from {names[0]} (output 0) to {names[-1]} (output {len(names) - 1:,})"


def _names_of_all(pairs: Sequence[tuple[str, int]], where: str) -> tuple[str, ...]:
    names = {index: name for name, index in pairs}  # of several the last: a WordNet id comes before the name
    if sorted(names) != list(range(len(names))):
        raise InputError(f"{where} leaves outputs out: a name is needed for each, from 0 on")
    return tuple(names[index] for index in range(len(names)))


def map_classes(
    folders: Sequence[str],
    classes: Sequence[str],
    wordnet_ids: Sequence[str] = (),
    class_index: str | None = None,
    beside: Path | None = None,
) -> ClassMapping:
    """Find the model's output for each class folder.

    Asked in this order: the class index file, the WordNet ids, the class names (case, spaces and punctuation
    don't matter, and any of several names with commas between will do), then a class index file found in the
    folder ``beside`` or next to it. A name that two outputs share maps to neither. Raises InputError for a
    class index file that can't be read or points past the model's outputs.
    """
    finders = [("WordNet id", _finder(_numbered(wordnet_ids))), ("name", _finder(_numbered(classes)))]
    if class_index is not None:
        entries = read_class_index(class_index, folders)
        for index in (index for _, index in entries if not 0 <= index < len(classes)):
            raise InputError(
                f"the class index file {class_index} names the output {index}, but the model has outputs 0 "
                f"to {len(classes) - 1}: is the file for another model?"
            )
        finders.insert(0, ("class index file", _finder(entries)))

    def found(folder: str) -> MappedFolder | None:
        hits = ((by, find(folder)) for by, find in finders)
        return next((MappedFolder(folder, i, classes[i], by) for by, i in hits if i is not None), None)

    found_file = index_file(beside) if beside is not None and class_index is None else None
    if found_file is not None and not all(map(found, folders)):
        entries = read_class_index(found_file)
        if all(0 <= index < len(classes) for _, index in entries):  # else it belongs to another model
            finders.append((found_file.name, _finder(entries)))
    mapped = {folder: found(folder) for folder in folders}
    return ClassMapping(
        mapped=tuple(entry for entry in mapped.values() if entry is not None),
        unmapped=tuple(folder for folder, entry in mapped.items() if entry is None),
    )


def index_file(folder: Path) -> Path | None:
    """A class index file of a usual name, in a folder or next to it; of what a visitor may give, inside the
    allowed roots."""
    places = (place / name for place in (folder, folder.absolute().parent) for name in INDEX_NAMES)
    return next((file for file in places if os.path.isfile(file) and is_within(file, folder)), None)


def _line_names(pairs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Of lines such as ``tench`` or ``n01440764 tench, Tinca tinca``."""
    found = ((re.fullmatch(r"(n\d{8})\s+(.+)", line), line, index) for line, index in pairs)
    return [
        (name, index) for wordnet, line, index in found for name in (wordnet.groups() if wordnet else (line,))
    ]


def _unquoted(name: str) -> str:
    quoted = QUOTED.fullmatch(name)
    return quoted[2] if quoted else name


def _is_json_list(text: str) -> bool:
    """``["tench"]`` is one, the name ``[background]`` is none."""
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _entry_names(key: str, value: object) -> list[tuple[str, int]] | None:
    is_number = key.isdecimal() and len(key) < 9  # of more digits there is no output
    match value:
        case {"index": int(index), "name": str(name)} if not isinstance(index, bool):
            return [(key, index), (name, index)]
        case int(index) | {"index": int(index)} if not isinstance(index, bool):
            return [(key, index)]
        case str(name) if is_number:
            return [(name, int(key))]
        case [str(), *_] if is_number:
            return [(str(name), int(key)) for name in value]
    return None


def _numbered(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, index) for index, name in enumerate(names)]


def _finder(entries: list[tuple[str, int]]) -> Callable[[str], int | None]:
    """Look a folder up, looser and looser: as written, plain, as any of the names between commas."""
    exact = _unambiguous(entries)
    whole = _unambiguous([(_plain(name), index) for name, index in entries])
    parts = _unambiguous([(_plain(part), index) for name, index in entries for part in name.split(",")])

    def find(folder: str) -> int | None:
        plain = _plain(folder)
        return exact.get(folder, whole.get(plain, parts.get(plain)))

    return find


def _unambiguous(entries: list[tuple[str, int]]) -> dict[str, int]:
    outputs: dict[str, set[int]] = defaultdict(set)
    for name, index in entries:
        outputs[name].add(index)
    return {name: indices.pop() for name, indices in outputs.items() if name and len(indices) == 1}


def _plain_names(pairs: Iterable[tuple[str, int]]) -> set[str]:
    return {_plain(name) for name, _ in pairs}


def _plain(name: str) -> str:
    """Letters and digits in one case: ``Ankle boot``, ``ankle_boot`` and ``ankle-boot`` are one name."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))
