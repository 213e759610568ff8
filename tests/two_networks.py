"""Two small networks, and the comparison of their files. (Not a test.)"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_graphs import graph, node, save
from PIL import Image

from optimizer import on_demand
from optimizer.analysis.two_files import CompareRequest, NetworkRef, TwoFiles
from optimizer.data import memory
from optimizer.records import DataSpec, Settings

QUICK = Settings(threads=1, quick=True)
RANDOM = np.random.default_rng(0)
FIRST, SECOND = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((8, 3, 3, 3), (4, 8, 1, 1)))
BIAS = RANDOM.normal(size=8).astype(np.float32)
LINEAR = RANDOM.normal(size=(4, 5)).astype(np.float32)
IMAGES = RANDOM.normal(size=(40, 3, 16, 16)).astype(np.float32)
LABELS = RANDOM.integers(0, 5, 40)
HERE = pytest.mark.usefixtures("in_this_process")


def network(second: np.ndarray = SECOND, sides: tuple[object, ...] = (1, 3, 16, 16), prefix: str = "") -> Any:
    """Two convolutions and a product to five numbers."""
    made = graph(
        [
            node("Conv", "x w b", "first", pads=[1, 1, 1, 1]),
            node("Relu", "first", "p"),
            node("Conv", "p v", "second"),
            node("GlobalAveragePool", "second", "q"),
            node("Flatten", "q", "r"),
            node("MatMul", "r u"),
        ],
        {"w": FIRST, "b": BIAS, "v": second, "u": LINEAR},
        sides=sides,
    )
    for one in made.graph.node:
        one.name = f"{prefix}{one.name}"
    return made


def detector(scale: float = 1.0, names: str = "boxes scores") -> Any:
    boxes, scores = names.split(" ")
    nodes = [node("Conv", "x w", boxes), node("Conv", "x v", scores)]
    tensors = {"w": scale * FIRST, "v": FIRST[:2]}
    return graph(nodes, tensors, sides=(1, 3, 16, 16), outputs=(boxes, scores))


def compared(a: Any, b: Any, folder: Path, data: Any = IMAGES, engine: str = "", **more: Any) -> TwoFiles:
    places = [str(save(one, folder / f"{name}.onnx")) for name, one in (("a", a), ("b", b))]
    given = None if data is None else memory.for_evaluation(data)
    spec = DataSpec(content=memory.content(given)) if given else DataSpec()
    request = CompareRequest(*map(NetworkRef, places), spec, engine, QUICK, **more)
    return on_demand.compare(request, given=given)


def photographs(
    folder: Path, classes: Sequence[str] = "abcde" * 3, shape: tuple[int, ...] = (16, 16, 3)
) -> DataSpec:
    """One of each of the classes."""
    for number, name in enumerate(classes):
        place = folder / "photos" / name / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 255, shape, np.uint8)).save(place)
    return DataSpec(str(folder / "photos"))
