"""What a user takes away: a compressed model as one zip file, with its recipe and a model card, and the way
back from the file to a torch module. One file a kind, and the dict that names them.

``ARTIFACTS["packed"].write(take_away)`` gives bytes; :func:`load` reads ``safetensors`` and ``packed``. A zip
holds the model's own files, ``recipe.json`` and ``MODEL_CARD.md``, and the same model gives the same bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.engine.onnx_export import lacking
from optimizer.engine.openvino import problem as openvino_problem
from optimizer.errors import UnavailableError, unknown
from optimizer.export.artifacts.card import CARD_FILE, RECIPE_FILE
from optimizer.export.artifacts.onnx import write_onnx
from optimizer.export.artifacts.openvino import write_openvino
from optimizer.export.artifacts.restore import load
from optimizer.export.artifacts.take_away import TakeAway
from optimizer.export.artifacts.weights import write_packed, write_safetensors
from optimizer.export.tables import MODEL_FILES


@dataclass(frozen=True)
class Artifact:
    """One kind of zip file. ``needs()`` says in words what is missing to write it here, or None."""

    label: str
    needs: Callable[[], str | None]
    write: Callable[[TakeAway], bytes]


ARTIFACTS: dict[str, Artifact] = {
    "safetensors": Artifact(MODEL_FILES["safetensors"], lambda: None, write_safetensors),
    "packed": Artifact(MODEL_FILES["packed"], lambda: None, write_packed),
    "onnx": Artifact(MODEL_FILES["onnx"], lacking, write_onnx),
    "openvino": Artifact(MODEL_FILES["openvino"], openvino_problem, write_openvino),
}


def write(kind: str, take_away: TakeAway) -> bytes:
    """The file of one of :data:`ARTIFACTS`.

    Raises InputError for an unknown kind or a model that is too large for it, UnavailableError where a
    package is missing, WorkError for a model that can't be converted.
    """
    if kind not in ARTIFACTS:
        raise unknown("kind of file", kind, ARTIFACTS)
    problem = ARTIFACTS[kind].needs()
    if problem:
        raise UnavailableError(f"{ARTIFACTS[kind].label} can't be written here: {problem}")
    return ARTIFACTS[kind].write(take_away)


__all__ = ["ARTIFACTS", "CARD_FILE", "RECIPE_FILE", "Artifact", "TakeAway", "load", "write"]
