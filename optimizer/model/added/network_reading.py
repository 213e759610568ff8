"""OpenVINO's files, and zip files with a network in them, read and written anew. Runs in the limited process.

An IR is a ``.xml`` with its weights in a ``.bin``. A zip is one that this program writes: a network's own
files, ``recipe.json`` and a model card.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizer.errors import InputError
from optimizer.model.added.declared import plain
from optimizer.model.added.limits import MAX_FILE_BYTES
from optimizer.system.uploads import check_entries

ONNX_FILE, IR_FILES = "model.onnx", ("model.xml", "model.bin")
MAX_ENTRIES = 16
MAX_RATIO, ALWAYS_BYTES = 100, 64 << 20
"""To how many times its size a zip may unpack, or to so many bytes: a pruned network is packed far."""
INFORMATION = "paretoscope"
"""Where an IR says what it was made of, among what OpenVINO calls runtime information."""
MADE_OF = ("model", "recipe")
HAVE_GRAPHS = {"If", "Loop", "TensorIterator"}


def read_ir(graph: Path, weights: Path | None, target: Path) -> dict[str, Any]:
    """Write the IR to ``target`` and the ``.bin`` beside it. Raises InputError, and what OpenVINO raises."""
    if weights is None:
        raise InputError("its weights are missing: the .bin of the same name has to lie beside the .xml")
    import openvino

    return _kept(openvino.Core().read_model(graph, weights), target)


def read_zip(file: Path, target: Path, grow: Callable[[int], None]) -> dict[str, Any]:
    """The network in a zip, written to ``target``. Raises InputError, and whatever damaged bytes raise."""
    check_entries(file, "it", MAX_ENTRIES)  # before zipfile reads a list of any length
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(archive.infolist()) > MAX_ENTRIES:
            raise InputError(f"it holds {len(archive.infolist())} files: up to {MAX_ENTRIES} are read")
        names = [ONNX_FILE] if ONNX_FILE in entries else list(IR_FILES)
        if not entries.keys() >= {*names}:
            raise InputError(f"it holds no {ONNX_FILE}, and no {' with '.join(IR_FILES)}")
        total, packed = sum(entries[name].file_size for name in names), file.stat().st_size
        if total > min(MAX_FILE_BYTES, max(ALWAYS_BYTES, MAX_RATIO * packed)):
            raise InputError(f"it would unpack to {total:,} bytes, more than its {packed:,} can stand for")
        grow(total)
        contents = [archive.read(name) for name in names]
    if len(names) == 1:
        from optimizer.model.added.onnx_reading import read_onnx

        given = target.with_suffix(".given")
        try:
            given.write_bytes(contents[0])
            return {"kind": "onnx", **read_onnx(given, target, False, grow)}
        finally:
            given.unlink(missing_ok=True)
    import openvino

    return _kept(openvino.Core().read_model(*contents), target)


def _kept(graph: Any, target: Path) -> dict[str, Any]:
    """Written anew, with what it says of its input."""
    import openvino

    if len(graph.inputs) != 1:
        names = ", ".join(sorted(one.get_any_name()[:40] for one in graph.inputs)) or "none"
        raise InputError(
            f"it has {len(graph.inputs)} inputs ({names}): a network of one image [N, C, H, W] is needed"
        )
    (given,) = graph.inputs
    sides = given.get_partial_shape()
    if given.get_element_type() != openvino.Type.f32 or sides.rank.is_dynamic or len(sides) != 4:
        raise InputError(
            f"its input is {given.get_element_type().get_type_name()} {sides}: float32 [N, C, H, W] is needed"
        )
    if inner := {node.get_type_name() for node in graph.get_ops()} & HAVE_GRAPHS:
        raise InputError(f"{' and '.join(sorted(inner))} holds a graph of its own, which is not read")
    openvino.save_model(graph, target.with_suffix(".xml"), compress_to_fp16=False)
    shape = [0 if side.is_dynamic else side.get_length() for side in sides]
    paths = [[INFORMATION, name] for name in MADE_OF]
    said = {path[-1]: str(graph.get_rt_info(path).value) for path in paths if graph.has_rt_info(path)}
    return {"kind": "ir", "shape": shape[1:], "metadata": plain(said)}
