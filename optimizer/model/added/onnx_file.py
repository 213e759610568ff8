"""ONNX files: what they say, and the module that they become once its outputs agree with ONNX Runtime's."""

import importlib.util
from dataclasses import replace
from threading import Lock
from typing import Any

from cachetools import LRUCache, cached
from torch import nn

from optimizer.errors import InputError, UnavailableError
from optimizer.model.added import declared
from optimizer.model.added.cards import AddedModel, Choices, Examined, content_path
from optimizer.model.added.limits import read_limited
from optimizer.model.preprocessing import CHANNELS, CROP_SHARE, IMAGENET, Preprocessing

PACKAGES = ("onnx", "onnxruntime")


def examined(about: Examined, found: dict[str, Any], architecture: str) -> Examined:
    """With what the limited process found. Raises InputError for images of another number of channels."""
    if architecture:
        raise InputError(f"an ONNX file brings its own architecture: leave {architecture!r} out")
    channels, height, width = found["shape"]
    if channels not in CHANNELS.values():
        raise InputError(
            f"{about.name} takes {channels} channels: grey images (1) or colours (3) can be given"
        )
    usual = usual_for(channels, height, width)
    facts = (*about.facts, *((what, words) for what, words in found["facts"]))
    asks = found["asks_shape"]
    about = replace(about, facts=facts, asks_shape=asks, may_classify=found["may_classify"])
    return about.with_declared(declared.read(found["metadata"], usual, fixed_size=not asks), usual)


def usual_for(channels: int, height: int, width: int) -> Preprocessing:
    """ImageNet's, for a network of another size, or of grey images."""
    resize = round(min(height, width) / CROP_SHARE) if height == width else None
    usual = replace(IMAGENET, size=(height, width), resize=resize)
    return usual.with_channels("grey" if channels == 1 else "RGB")


def described(about: Examined, choices: Choices) -> AddedModel:
    """Raises InputError where it can't be converted, or answers otherwise than ONNX Runtime."""
    preprocessing: Preprocessing = choices.preprocessing or about.preprocessing
    found = _checked(about.file, about.name, preprocessing.input_shape)
    return AddedModel(
        choices.name,
        "onnx",
        about.file,
        preprocessing,
        description=f"a network of your own from an ONNX file; its outputs are ONNX Runtime's to "
        f"{found['difference']:.1g} of their range" + ("; it takes one image at a time" * found["for_one"]),
        for_one=found["for_one"],
    )


@cached(LRUCache(64), key=lambda file, name, shape: (file, shape), lock=Lock())
def _checked(file: str, name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """How far it answers as ONNX Runtime does, once for a content, whatever it is called: it may be opened
    again and again."""
    return read_limited("onnx check", content_path(file), name, runs=True, shape=shape)


def module(model: AddedModel) -> nn.Module:
    """The converted network. Raises UnavailableError without the package onnx."""
    if problem := lacking():
        raise UnavailableError(problem)
    from optimizer.model.added.onnx_conversion import convert

    return convert(content_path(model.file), model.preprocessing.input_shape, model.for_one)


def lacking() -> str:
    """Why no ONNX file can be read here, or nothing."""
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    named = " and ".join(absent)
    return f"ONNX files need the package {named}: pip install 'paretoscope[onnx]'" if absent else ""
