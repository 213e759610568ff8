"""A compressed model as one zip file, with its recipe and a model card, and the way back from the file to a
torch module. One file a kind, and an entry in :mod:`optimizer.methods.artifacts`.

``write("packed", source)`` gives bytes; :func:`load` reads ``safetensors`` and ``packed``. A zip holds the
model's own files, ``recipe.json`` and ``MODEL_CARD.md``. The same model gives the same bytes, but for
OpenVINO's, which numbers its unnamed nodes anew each time.
"""

from optimizer.errors import UnavailableError
from optimizer.export.artifacts.restore import load
from optimizer.export.artifacts.source import ArtifactSource
from optimizer.methods.artifacts import CARD_FILE, RECIPE_FILE, ArtifactInfo, artifact_info


def writable(kind: str) -> ArtifactInfo:
    """A kind of file that can be written here. Raises InputError for an unknown one, UnavailableError where a
    package is missing."""
    entry = artifact_info(kind)
    if problem := entry.problem():
        raise UnavailableError(f"{entry.label} can't be written here: {problem}")
    return entry


def write(kind: str, source: ArtifactSource) -> bytes:
    """The file of one of :data:`optimizer.methods.artifacts.ARTIFACTS`.

    Raises as :func:`writable` does, InputError for a model that is too large for it, WorkError for one that
    can't be converted.
    """
    content: bytes = writable(kind).load()(source)
    return content


__all__ = ["CARD_FILE", "RECIPE_FILE", "ArtifactSource", "load", "writable", "write"]
