"""Summaries of what is in the store, kept beside the results: whoever needs figures decodes no raw samples.

A result is put with its summary in one transaction. What has none yet, one of another VERSION or a damaged
one is summarised anew when it is first asked for, and kept then.
"""

import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from functools import lru_cache

import msgspec
import numpy as np

from optimizer.analysis.measures import Measure
from optimizer.analysis.metrics import METRICS
from optimizer.analysis.outcomes import PairedDrop
from optimizer.analysis.statistics import LatencySummary
from optimizer.analysis.summary import Summary, derive, remember
from optimizer.errors import UnavailableError
from optimizer.records import DataSpec, Latency, Request, Result, Size, decode
from optimizer.store.results import Store
from optimizer.store.rows import NOT_A_RECORD

VERSION = 11
"""Of what a summary says. A change of that raises it, and all are made anew."""
AFRESH = "afresh"
"""The kind of document of times that were taken once more, by the key of the result and the checksum of the
measurement that was doubted."""
AT_ONCE = 100
"""Summaries made anew before they are kept: a page that is left meanwhile has not worked for nothing."""


def put(store: Store, result: Result) -> None:
    """Keep a result with its summary."""
    summary = None
    with suppress(Exception):  # what was measured is kept, whatever it comes to
        summary = VERSION, pack(remember(result, derive(result)))
    store.put(result, summary)


def summaries(
    store: Store, model: str | None = None, data: DataSpec | None = None, limit: int | None = None
) -> list[Summary]:
    """Those that :meth:`Store.summaries` is asked for, newest last."""
    return _read(store, store.summaries(VERSION, model, data, limit))


def summaries_of(store: Store, keys: Sequence[str]) -> list[Summary]:
    """Those of the keys that have a result, in their order."""
    return _read(store, store.summaries_of(VERSION, keys))


def best(store: Store, request: Request) -> Result | None:
    """What :meth:`Store.best` gives, its summary known to :func:`summarise`."""
    found = store.best(request)
    return known(store, [found])[0] if found else None


def several(store: Store, keys: Sequence[str]) -> list[Result]:
    """What :meth:`Store.several` gives, their summaries known to :func:`summarise`."""
    return known(store, store.several(keys))


def known(store: Store, results: list[Result]) -> list[Result]:
    """Results that were read from the store, their summaries now known to :func:`summarise`: nothing is
    summarised twice."""
    kept = {summary.key: summary for summary in summaries_of(store, [result.key for result in results])}
    for result in results:
        if (summary := kept.get(result.key)) and summary.created == result.created:
            remember(result, summary)
    return results


def afresh_key(latency: Latency) -> str:
    """Under which a time is kept that was taken in the place of this one, for all that share it."""
    return f"{latency.signature} {latency.checksum}"


def timed_again(store: Store, result: Result) -> Result | None:
    """A result with the newest time that was taken in the place of its own, if one was."""
    newest = result
    while latency := store.get_document(AFRESH, afresh_key(newest.latency), Latency):
        if latency.checksum == newest.latency.checksum:
            break
        newest = replace(newest, latency=latency)
    return None if newest is result else newest


def _read(store: Store, rows: Iterable[tuple[str, bytes | None]]) -> list[Summary]:
    found = {key: _unpacked(key, packed) for key, packed in rows}
    missing = [key for key, summary in found.items() if summary is None]
    for first in range(0, len(missing), AT_ONCE):
        found |= _anew(store, missing[first : first + AT_ONCE])
    return [summary for summary in found.values() if summary]


def _anew(store: Store, keys: Sequence[str]) -> dict[str, Summary]:
    found, rows = dict[str, Summary](), list[tuple[str, bytes, bytes]]()
    for key, written in store.written(keys):
        with suppress(*NOT_A_RECORD):
            found[key] = derive(decode(written, Result))
            rows.append((key, written, pack(found[key])))
    with suppress(UnavailableError):  # on a full disk what is there is read all the same
        store.put_summaries(VERSION, rows)
    return found


def _unpacked(key: str, packed: bytes | None) -> Summary | None:
    with suppress(zlib.error, msgspec.DecodeError, TypeError):
        if packed and (summary := unpack(packed)).key == key:
            return summary
    return None


def pack(summary: Summary) -> bytes:
    """Facts alone: words, and whether it was another machine, are made where it is read."""
    bare = _plain(replace(summary, outcomes=b""))
    words, bits = zlib.compressobj(9, zdict=_USUAL), zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    return words.compress(bare) + words.flush() + bits.compress(summary.outcomes) + bits.flush()


@lru_cache(maxsize=4096)
def unpack(packed: bytes) -> Summary:
    """What :func:`pack` was given; one object while it stays known. Raises an error of zlib's or msgspec's
    where the bytes are damaged."""
    opened = zlib.decompressobj(zdict=_USUAL)
    summary = msgspec.msgpack.decode(opened.decompress(packed), type=Summary)
    return replace(summary, outcomes=zlib.decompress(opened.unused_data))


def _plain(value: object) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=np.generic.item)


def _names(kind: type) -> dict[str, None]:
    """Of fields that were there when the first of this VERSION were packed: others have a default."""
    return {field.name: None for field in fields(kind) if field.default is MISSING}


_FIGURE, _COUNT = Measure(1.5, 1.5, 1.5, 1.5), Measure(10**6, None, None, 10**6)
_BYTES = Size(10**6, 10**6, 10**6, "bitmap", 10**5, 10**5)
_USUAL = _plain(
    [
        "avx512_fp16 · 2 cores · GiB · Linux x86_64 · Python 3. · torch 2., torchvision 0., openvino 2026., "
        "nncf 3., onnxruntime 1., numpy 2., paretoscope 0.",
        _names(Summary)
        | {
            "request": Request(""),
            "measures": dict.fromkeys(METRICS, Measure(None))
            | dict.fromkeys(("accuracy", "drop", "latency", "latency_ratio", "agreement"), _FIGURE)
            | dict.fromkeys(("first_call", "first_call_ratio", "throughput"), _FIGURE)
            | dict.fromkeys(("file_size", "packed_size", "compressed_size"), _COUNT)
            | dict.fromkeys(("nonzero", "operations"), _COUNT)
            | dict.fromkeys(("sqnr", "kl"), Measure(1.5)),
            "reference": "labels",
            "latency": dict.fromkeys(_names(LatencySummary), 1.5)
            | {"p95_ns": None, "p99_ns": None, "rounds": 40, "verdict": "no measurable difference"},
            "drop": dict.fromkeys(_names(PairedDrop), 1.5),
            "size": _BYTES,
            "baseline_size": _BYTES,
            "pruned_percent": 1.5,
            "zeros_percent": 1.5,
            "processes": (40,),
            "timed": Request("").recipe,
            "realisation": "dense fp32",
            "precisions": {"f32": 10},
            "simulated": ["8-bit weights: the values are exact, the kernels are f32"],
            "created": "2026-11-02T10:00:00+00:00",
        },
    ]
)
"""What most summaries have in common, for zlib to refer to. Packed with another one they are made anew."""
