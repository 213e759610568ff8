"""The process that reads a model file: ``python -m optimizer.model.added.child READER OPTIONS``.

Prints one JSON object on its last line: what the file holds, or ``{"refused": "why"}``.
"""

import gc
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizer.model.added.containers import SAFETENSORS, check_safetensors, check_zip
from optimizer.model.added.limits import SECONDS_A_GIGABYTE, limit_this_process, refusal

# Threads reserve memory of their own, which would count.
os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def _checkpoint(asked: dict[str, Any], limit: Callable[..., None]) -> dict[str, Any]:
    file = Path(asked["file"])
    if file.suffix.lower() == SAFETENSORS:
        check_safetensors(file)
    elif zipfile.is_zipfile(file):
        check_zip(file)
    limit(libraries=True)
    from optimizer.model.added.tensors import rewrite

    limit()
    return rewrite(file, Path(asked["target"]))


def _onnx(asked: dict[str, Any], limit: Callable[..., None]) -> dict[str, Any]:
    limit(libraries=True)
    from optimizer.model.added.onnx_reading import read_onnx

    limit()
    return read_onnx(
        Path(asked["file"]),
        Path(asked["target"]),
        asked["external"],
        lambda more: limit(more=more),
    )


def _ir(asked: dict[str, Any], limit: Callable[..., None]) -> dict[str, Any]:
    limit(libraries=True)
    import openvino  # noqa: F401

    from optimizer.model.added.network_reading import read_ir

    limit()
    weights = Path(asked["weights"]) if asked["weights"] else None
    return read_ir(Path(asked["file"]), weights, Path(asked["target"]))


def _zip(asked: dict[str, Any], limit: Callable[..., None]) -> dict[str, Any]:
    limit(libraries=True)
    import onnx  # noqa: F401
    import openvino  # noqa: F401

    from optimizer.model.added.network_reading import read_zip

    limit()
    return read_zip(Path(asked["file"]), Path(asked["target"]), lambda more: limit(more=more))


def _onnx_check(asked: dict[str, Any], limit: Callable[..., None]) -> dict[str, Any]:
    limit(libraries=True)
    from optimizer.model.added.onnx_check import check

    limit()
    return check(Path(asked["file"]), tuple(asked["shape"]))


READERS: dict[str, Callable[[dict[str, Any], Callable[..., None]], dict[str, Any]]] = {
    "checkpoint": _checkpoint,
    "onnx": _onnx,
    "onnx check": _onnx_check,
    "ir": _ir,
    "zip": _zip,
}
"""By the kind of file. Each sets the limits anew once it has imported what it needs."""


def main() -> None:
    reader, asked = sys.argv[1], json.loads(sys.argv[2])

    def limit(libraries: bool = False, more: int = 0) -> None:
        seconds = asked["seconds"] + SECONDS_A_GIGABYTE * more / 1e9
        limit_this_process(seconds, asked["size"] + more, libraries, asked["runs"])

    try:
        limit()
        answer = READERS[reader](asked, limit)
    except (Exception, RecursionError) as error:  # whatever a file makes a library raise
        answer = {"refused": refusal(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
    gc.freeze()  # all that was imported is not looked through for garbage at the end
