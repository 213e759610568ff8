"""Weights files that attack or are damaged: each by a name, its suffix, and its bytes."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

RAN = "ran"
"""A file of this name appears where something in a weights file was run."""


class Runs:
    """Unpickled, it calls."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


def weights_files() -> Iterator[tuple[str, str, bytes]]:
    """Over two hundred of them."""
    yield from _safetensors()
    yield from _saved()


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _header(entries: object, data: bytes = b"", size: int | None = None) -> bytes:
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def _entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _safetensors() -> Iterator[tuple[str, str, bytes]]:
    whole = _header({"w": _entry((8, 8), (0, 256)), "b": _entry((8,), (256, 288))}, bytes(288))
    cases: dict[str, bytes] = {}
    for place in range(0, len(whole), 12):
        cases[f"cut off after {place}"] = whole[:place]
    cases["with more behind it"] = whole + b"\0"
    for size in (0, 1, 2**20, 2**31, 2**32, 2**40, 2**63, 2**64 - 1):
        cases[f"header of {size}"] = _header({"w": _entry()}, bytes(8), size)
    for number, header in enumerate(
        (b"[1]", b"{", b"7", b'"w"', b"null", b"\xff\xff", b"[" * 100_000, b'{"a":' * 50_000, b"NaN")
    ):
        cases[f"no header {number}"] = _header(header, bytes(8))
    entry = json.dumps(_entry())
    cases["a name twice"] = _header(f'{{"w": {entry}, "w": {entry}}}'.encode(), bytes(8))
    shapes = (
        *(
            (-2,),
            (2, -1, -1),
            (2.0,),
            ("2",),
            (True, 2),
            2,
            None,
            "2",
            (2**62, 4),
            (3,),
            (1,),
            (1,) * 9,
            [[2]],
        ),
        *((2**64,), (0,), (10**30,), {}, ({},)),
    )
    for shape in shapes:
        cases[f"shape {str(shape)[:30]}"] = _header({"w": _entry(shape)}, bytes(8))
    for offsets in ((8, 0), (-8, 0), (0, 9), (1, 9), (0,), (0, 8, 8), None, ("0", "8"), (0, 2**63), (8, 16)):
        cases[f"offsets {offsets}"] = _header({"w": _entry(offsets=offsets)}, bytes(8))
    for dtype in ("F33", "", None, 4, "STRING", ["F32"], "f32", "F32 " * 1000):
        cases[f"type {str(dtype)[:20]}"] = _header({"w": _entry(dtype=dtype)}, bytes(8))
    for other in ({"w": []}, {"w": 3}, {"w": {}}, {"w": None}, {"w": {"dtype": "F32"}}, {}):
        cases[f"entry {other}"] = _header(other, bytes(8))
    cases["overlapping"] = _header({"v": _entry(), "w": _entry()}, bytes(8))
    cases["a gap"] = _header({"v": _entry(), "w": _entry(offsets=(12, 20))}, bytes(20))
    for name in ("w" * 600, "w\0", "\u202ew", "\n", ""):
        cases[f"named {name[:8]!r}"] = _header({name: _entry()}, bytes(8))
    cases["30,000 tensors"] = _header({f"w{i}": _entry((0,), (0, 0)) for i in range(30_000)})
    cases["value nan"] = _header({"w": _entry()}, struct.pack("<2f", 0, float("nan")))
    for name, content in cases.items():
        yield f"safetensors, {name}", ".safetensors", content


def _zip(
    change: Callable[[str, bytes], tuple[str, bytes]], content: bytes, how: int = zipfile.ZIP_STORED
) -> bytes:
    """What torch.save wrote, with its entries changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w", how) as written:
        for name in archive.namelist():
            written.writestr(*change(name, archive.read(name)))
    return buffer.getvalue()


def _saved() -> Iterator[tuple[str, str, bytes]]:
    tensors = {"w": torch.zeros(8, 8), "b": torch.zeros(8)}
    whole = saved(tensors)
    cases: dict[str, bytes] = {}
    for share in range(20):
        cases[f"cut off at {share} of 20"] = whole[: share * len(whole) // 20]
    for place in (0, 1, len(whole) - 30):
        cases[f"changed at {place}"] = whole[:place] + b"\xa5" * 8 + whole[place + 8 :]
    for name, function, arguments in (
        ("a file made", open, (RAN, "w")),
        ("a call of the system", __import__("os").system, (f"touch {RAN}",)),
        ("a process", __import__("subprocess").Popen, (("touch", RAN),)),
        ("code", exec, (f"open({RAN!r}, 'w')",)),
        ("an expression", eval, (f"open({RAN!r}, 'w')",)),
        ("an import", __import__, ("this",)),
        ("an attribute", getattr, ("w", "upper")),
        ("a module's own", torch.load, (RAN,)),
        ("a module", torch.nn.Linear, (2, 2)),
        ("memory", bytearray, (2**45,)),
    ):
        attack = Runs(function, *arguments)
        for where, content in (("alone", attack), ("in a dict", {"w": torch.zeros(2), "x": attack})):
            cases[f"runs {name}, {where}"] = saved(content)
            cases[f"runs {name}, {where}, as of old"] = saved(content, _use_new_zipfile_serialization=False)
            if where == "alone":
                cases[f"runs {name}, pickled"] = pickle.dumps(content)
    cases["a whole module"] = saved(torch.nn.Linear(2, 2))
    cases["compressed"] = _zip(lambda name, data: (name, data), whole, zipfile.ZIP_DEFLATED)
    bomb = lambda name, data: (name, bytes(2**26) if name.endswith("/0") else data)  # noqa: E731
    cases["a bomb"] = _zip(bomb, whole, zipfile.ZIP_DEFLATED)
    for number, outside in enumerate(("../../x", "/etc/x", "a/../../x", "a\\..\\x")):
        cases[f"entry that leads elsewhere {number}"] = _zip(
            lambda name, data, outside=outside: (outside if name.endswith("/1") else name, data), whole
        )
    cases["no list of tensors"] = _zip(lambda name, data: (name.replace("data.pkl", "list"), data), whole)
    cases["entries that overlap"] = _overlapping(whole)
    cases["TorchScript"] = _zip(lambda name, data: (name.replace("byteorder", "constants.pkl"), data), whole)
    odd: dict[str, Tensor] = {
        "stretched": torch.zeros(1).expand(2**40),
        "not a number": torch.tensor([0.0, float("nan")]),
        "half and not a number": torch.tensor([0.0, float("nan")]).half(),
        "sparse": torch.eye(2).to_sparse(),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "without values": torch.zeros(2, device="meta"),
        "of nine dimensions": torch.zeros((1,) * 9),
    }
    for name, tensor in odd.items():
        cases[f"a tensor {name}"] = saved({"w": tensor})
    for number, name in enumerate(("w" * 600, "w\0", "\u202ew", "\n", "")):
        cases[f"named oddly {number}"] = saved({name: torch.zeros(2)})
    round_and_round: dict[str, object] = {"w": 1}
    round_and_round["model"] = round_and_round
    deep: object = {"w": torch.zeros(2)}
    for _ in range(100):
        deep = {"state_dict": deep}
    others = (
        [torch.zeros(2)],
        torch.zeros(2),
        {},
        {"epoch": 3},
        {"model": {}},
        None,
        "w",
        round_and_round,
        deep,
    )
    for number, content in enumerate(others):
        cases[f"no tensors by name {number}"] = saved(content)
    cases["lists in lists"] = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    cases["text"] = b"weights, please"
    cases["zeros"] = bytes(4096)
    for name, content in cases.items():
        yield f"torch.save, {name}", (".pt", ".pth")[len(name) % 2], content


def _overlapping(whole: bytes) -> bytes:
    """Many names for the same bytes: the directory holds far more than the file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            for name in archive.namelist():
                written.writestr(name, archive.read(name))
        written.writestr("archive/data/2", bytes(2**16))
        last = written.infolist()[-1]
        for number in range(3, 100):
            again = zipfile.ZipInfo(f"archive/data/{number}")
            again.header_offset, again.CRC = last.header_offset, last.CRC
            again.file_size = again.compress_size = last.file_size
            written.filelist.append(again)
            written.NameToInfo[again.filename] = again
    return buffer.getvalue()
