"""Every kind of file that a compressed model can be saved as."""

import io
import zipfile
from dataclasses import dataclass

from optimizer.methods.entries import Entry, by_name, load, named

RECIPE_FILE = "recipe.json"
CARD_FILE = "MODEL_CARD.md"
"""What lies beside a model's own files in every zip."""


@dataclass(frozen=True, slots=True)
class ArtifactInfo(Entry):
    """A kind of file: a zip that also holds the recipe and a model card, or of a plugin what it makes.

    ``code`` names a function that makes bytes of an :class:`optimizer.export.artifacts.ArtifactSource`, or is
    one. ``needs`` names a function that says in words what is missing here to write it, or gives None.
    ``engine`` is the one whose prepared model it is written of. A file of its own has the ``extension``
    (``.onnx``) and is asked for by it, where it has one; of several with one, it is the first that is.
    """

    needs: object = None
    engine: str | None = None
    extension: str | None = None

    def problem(self) -> str | None:
        """What is missing here to write it, or None."""
        found: str | None = load(self.needs)() if self.needs else None
        return found


RESTORED = "`optimizer.export.artifacts.load` restores it exactly."

ARTIFACTS: dict[str, ArtifactInfo] = by_name(
    ArtifactInfo(
        "safetensors",
        "Weights as safetensors",
        f"In the narrowest types that fit; {RESTORED}",
        "optimizer.export.artifacts.weights:write_safetensors",
        extension=".safetensors",
    ),
    ArtifactInfo(
        "packed",
        "Weights packed to their bits",
        f"k bits a surviving weight; {RESTORED}",
        "optimizer.export.artifacts.weights:write_packed",
        extension=".safetensors",
    ),
    ArtifactInfo(
        "onnx",
        "ONNX model",
        "Quantized weights as int8 codes. Takes some seconds; needs the extra `onnx`.",
        "optimizer.export.artifacts.onnx:write_onnx",
        needs="optimizer.engine.onnx_export:lacking",
        extension=".onnx",
    ),
    ArtifactInfo(
        "openvino",
        "OpenVINO model",
        "The very graph that was measured here, at batch size 1. Unless activations have 8 bits its weights "
        "are float32, and the files larger than the size that is shown.",
        "optimizer.export.artifacts.openvino:write_openvino",
        needs="optimizer.engine.openvino:problem",
        engine="openvino",
        extension=".xml",
    ),
)


def artifact_info(name: str) -> ArtifactInfo:
    """The entry of that name. Raises InputError for an unknown one."""
    return named("kind of file", name, ARTIFACTS)


def holds_recipe(content: bytes) -> bool:
    """Whether it is a zip with a recipe, as every kind but a plugin's is."""
    packed = io.BytesIO(content)
    return zipfile.is_zipfile(packed) and RECIPE_FILE in zipfile.ZipFile(packed).namelist()


def as_zip(content: bytes, kind: str) -> bytes:
    """The file of a kind as a zip: a plugin's that is none in one, under the kind's extension."""
    if holds_recipe(content):
        return content
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"model{artifact_info(kind).extension or ''}", content)
    return packed.getvalue()
