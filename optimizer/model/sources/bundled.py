"""The four Fashion-MNIST classifiers in ``assets/``, trained by ``tools/train_bundled.py``."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from optimizer.errors import InputError, first_line
from optimizer.model.architectures import ARCHITECTURES
from optimizer.model.preprocessing import Preprocessing
from optimizer.model.sources import LoadedModel, Source
from optimizer.progress import Report
from optimizer.records import ModelCard
from optimizer.system.paths import assets_dir


@dataclass(frozen=True)
class GreyTransform:
    """The middle square, scaled and normalised: ``[1, size, size]`` float32."""

    size: int
    mean: float
    std: float

    def __call__(self, image: Image.Image) -> Tensor:
        if image.size != (self.size, self.size):
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            middle = image.crop((left, top, left + side, top + side))
            image = middle.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return self.of_pixels(np.asarray(image))

    def of_pixels(self, pixels: np.ndarray) -> Tensor:
        """The same of grey pixels of its size, uint8 ``[..., size, size]``: ``[..., 1, size, size]``. Of many
        at once it takes a hundredth of the time."""
        values = torch.from_numpy(pixels.astype(np.float32))
        return (values / 255 - self.mean).div_(self.std).unsqueeze_(-3)


def cards() -> dict[str, ModelCard]:
    """The bundled models that are there. Raises InputError for a damaged card."""
    return {
        name: _card(name, _description(name))
        for name in ARCHITECTURES
        if (assets_dir() / f"{name}.json").exists()
    }


def load(name: str, report: Report) -> LoadedModel:
    """Build the architecture and read its weights. Raises InputError for a damaged or missing file."""
    description = _description(name)
    module = ARCHITECTURES[description["architecture"]]()
    path = _weights_path(name)
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(
            f"the weights file {path} of {name} is damaged or of another model ({first_line(error)}): "
            "install paretoscope again, or train it with tools/train_bundled.py"
        ) from error
    return LoadedModel(
        _card(name, description),
        module.eval(),
        GreyTransform(description["input_shape"][-1], description["mean"][0], description["std"][0]),
        tuple(description["classes"]),
        preprocessing=preprocessing(name),
    )


SOURCE = Source(cards, load)


def preprocessing(name: str) -> Preprocessing:
    """What the bundled weights of an architecture were trained with, for others of it."""
    description = _description(name)
    channels, height, width = description["input_shape"]
    assert channels == 1
    return Preprocessing(
        (height, width),
        resize=height,
        channels="grey",
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
    )


def _weights_path(name: str) -> Path:
    return assets_dir() / f"{name}.safetensors"


def _description(name: str) -> dict[str, Any]:
    """The JSON card as ``tools/train_bundled.py`` writes it."""
    path = assets_dir() / f"{name}.json"
    try:
        description: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"the model card {path} can't be read ({error}): install paretoscope again"
        ) from error
    return description


def _card(name: str, description: dict[str, Any]) -> ModelCard:
    channels, height, width = description["input_shape"]
    path = _weights_path(name)
    return ModelCard(
        name=name,
        source="bundled",
        description=description["description"],
        parameters=description["parameters"],
        input_shape=(channels, height, width),
        classes=len(description["classes"]),
        published_top1=description["accuracy"]["test"],
        ready=path.exists(),
        version=_digest(path, path.stat().st_mtime_ns) if path.exists() else "",
        bundled_images=True,
        licence=description["licence"],
    )


@lru_cache(maxsize=16)
def _digest(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]
