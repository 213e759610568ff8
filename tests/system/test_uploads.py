"""What is asked of an uploaded file before it is read."""

import zipfile
from pathlib import Path

import pytest

from optimizer.data import uploaded
from optimizer.errors import InputError
from optimizer.model.added import containers
from optimizer.system.uploads import ENTRY_BYTES, check_entries


@pytest.mark.parametrize("entries", [3, 0x10000])
def test_the_entries_of_a_zip_file_are_told_by_its_end(tmp_path: Path, entries: int) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(entries):
            archive.writestr(zipfile.ZipInfo(str(number)), b"")
        archive.comment = b"a comment behind it"
    check_entries(file, "it", entries)
    with pytest.raises(InputError, match=f"^it has {entries:,} entries: at most {entries - 1:,} are read$"):
        check_entries(file, "it", entries - 1)
    file.write_bytes(b"no ZIP file")
    check_entries(file, "it", 0)


def test_a_list_of_entries_is_as_long_as_it_is_whatever_number_stands_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(100):
            archive.writestr(zipfile.ZipInfo(f"{number:099}"), b"")
    end = bytearray(file.read_bytes())
    assert end[-12:-10] == (100).to_bytes(2, "little")
    end[-14:-10] = b"\1\0\1\0"
    file.write_bytes(end)
    assert len(zipfile.ZipFile(file).infolist()) == 100
    check_entries(file, "it", 1 + 100 * 145 // ENTRY_BYTES)
    said = r"^it has a list of entries of 14\.5 kB, and at most 10\.2 kB are read: pack fewer files"
    with pytest.raises(InputError, match=said):
        check_entries(file, "it", 20)


def test_a_list_of_a_million_entries_is_not_read(tmp_path: Path) -> None:
    """It is not even there."""
    record = b"PK\6\6" + bytes(28) + (10**6).to_bytes(8, "little") + bytes(16)
    end = b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)
    file = tmp_path / "00000 a.zip"
    file.write_bytes(record + b"PK\6\7" + bytes(16) + end)
    for read in (containers.check_zip, lambda one: [*uploaded._members(one, uploaded.ExitStack())]):
        with pytest.raises(InputError, match=r"has 1,000,000 entries"):
            read(file)
