"""Image folders to test with, and the classes of a model that reads them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from optimizer.model.catalogue import LoadedModel
from optimizer.records import ModelCard

SHARED = Path(__file__).parents[2] / "shared" / "data"

CLASSES = ("T-shirt/top", "Ankle boot", "great white shark, white shark", "cardigan", "Cardigan")
IDS = ("n00000001", "n00000002", "n00000003", "n00000004", "n00000005")
COLOURS = {"red": (254, 0, 0), "green": (0, 254, 0), "blue": (0, 0, 254)}
Fill = Callable[..., Path]
"""Of names of files, and ``content`` for all of them: the folder where they are now."""
Paint = Callable[..., Path]


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def shared_folder(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the image folder ../shared/data/{name}")
    return SHARED / name


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture with something to see at every scale."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def colour_model(channels: int = 3, size: int = 4) -> LoadedModel:
    """A "model" that reads an image's mean colour; its classes are the colours themselves."""

    def preprocess(image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((size, size)), dtype=np.float32) / 254
        return torch.from_numpy(pixels).reshape(size, size, channels).permute(2, 0, 1)

    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    card = ModelCard("colours", "test", "", 0, (channels, size, size), len(COLOURS))
    return LoadedModel(card, module.eval(), preprocess, tuple(COLOURS))


def predicted(model: LoadedModel, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model.module(batch).argmax(1) for batch in torch.split(images, 100)])
