"""What a model file or a repository says of its preprocessing and classes. No torch.

The keys are those that are written in the field: timm's ``pretrained_cfg``, ``preprocessor_config.json`` and
``id2label`` of Hugging Face, ``Image.*`` of the ONNX specification (docs/MetadataProps.md), ``names`` and
``imgsz`` of Ultralytics, and what training scripts keep beside the weights. It is believed no more than what
a user types: what can't be is left out, and said.
"""

import ast
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optimizer.errors import InputError, shown
from optimizer.model.preprocessing import CHANNELS, INTERPOLATIONS, Preprocessing

MAX_SAID = 1 << 20
"""Characters of metadata that are read."""
MAX_CLASSES, MAX_CLASS_NAME = 50_000, 200
NESTED = ("pretrained_cfg", "preprocessor_config", "image_processor", "preprocessing")
CLASSES = ("class_names", "classes", "labels", "label_names", "names", "categories", "id2label")
NUMBERED = ("class_to_idx", "label2id")
ULTRALYTICS = "Ultralytics"
"""Whose exporter writes itself as the author, and no mean: its networks take values from 0 to 1."""
PIXEL_FORMATS = {"Gray8": "grey", "Rgb8": "RGB", "Rgba8": "RGB", "Bgr8": "BGR", "Bgra8": "BGR"}
PIXEL_RANGES: dict[str, dict[str, Any]] = {
    "NominalRange_0_255": {"do_rescale": False},
    "Normalized_0_1": {"do_rescale": True},
    "Normalized_1_1": {"do_rescale": True, "mean": [0.5], "std": [0.5]},
}
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic")
"""By Pillow's number, as Hugging Face writes it."""


@dataclass(frozen=True)
class Declared:
    """``preprocessing`` is None where nothing is said of it. ``left_out``: in words, what can't be.
    ``made_of``: the model that a file of ours was exported from."""

    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    made_of: str = ""


def plain(said: Mapping[str, str]) -> dict[str, Any]:
    """Metadata that are text, with what is JSON or a Python literal read as such. Nothing is run."""
    found: dict[str, Any] = {}
    left = MAX_SAID
    for key, text in said.items():
        left -= len(key) + len(text)
        if left < 0:
            break
        found[key] = text
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text)
                json.dumps(value)  # bytes, sets and complex numbers are no metadata
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue
            found[key] = value
            break
    return found


def read(said: Mapping[str, Any], usual: Preprocessing, fixed_size: bool) -> Declared:
    """What ``said`` comes to: what it leaves open is as ``usual``; so is a ``fixed_size``, the network's."""
    flat = dict(said)
    for name in NESTED:
        inner = said.get(name)
        flat |= inner if isinstance(inner, Mapping) else {}
    left_out: list[str] = []
    preprocessing, names = None, tuple[str, ...]()
    try:
        mode = flat.get("crop_mode", "center")
        if mode not in ("center", "squash") or (mode == "squash" and float(flat.get("crop_pct") or 1) != 1):
            left_out.append(f"its crop mode {shown(mode)} is not known here: the middle is taken instead")
            flat["crop_mode"] = "center"
        preprocessing = _preprocessing(flat, usual, fixed_size)
    except (InputError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        left_out.append(f"its preprocessing can't be ({shown(error)})")
    try:
        names = _class_names(flat)
    except InputError as error:
        left_out.append(str(error))
    model = said.get("model") if "recipe" in said else None  # as our files say both
    return Declared(preprocessing, names, tuple(left_out), model if isinstance(model, str) else "")


def said(preprocessing: Preprocessing | None, class_names: tuple[str, ...]) -> dict[str, str]:
    """Metadata of which :func:`read` makes the same again, in the field's words."""
    found: dict[str, str] = {}
    if class_names:
        found["names"] = json.dumps(class_names)
    if preprocessing is None:
        return found
    size: object = preprocessing.size
    if preprocessing.resize is not None:
        size = {"shortest_edge": preprocessing.resize}
    words = {
        "channels": preprocessing.channels,
        "do_rescale": preprocessing.range == 1,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "size": size,
        **({} if preprocessing.resize is None else {"crop_size": preprocessing.size}),
        "interpolation": preprocessing.interpolation,
    }
    return found | {"preprocessing": json.dumps(words)}


# Preprocessing


def _preprocessing(said: Mapping[str, Any], usual: Preprocessing, fixed_size: bool) -> Preprocessing | None:
    """None where nothing is said. Raises InputError and what arithmetic with the wrong things raises."""
    if (pixels := said.get("Image.NominalPixelRange")) is not None:
        if pixels not in PIXEL_RANGES:
            raise InputError(f"pixel range {shown(pixels)}")
        said = {**said, **PIXEL_RANGES[pixels]}
    found: dict[str, Any] = {}
    channels = _channels(said)
    if channels is not None and CHANNELS[channels] == usual.input_shape[0]:
        found["channels"] = channels
    elif channels is not None:
        raise InputError(f"{channels} images for a network of {usual.input_shape[0]} channels")
    found |= _values(said, usual.input_shape[0])
    found |= _geometry(said, usual, fixed_size)
    kind = said.get("interpolation", said.get("resample"))
    if isinstance(kind, int) and not isinstance(kind, bool) and 0 <= kind < len(RESAMPLING):
        kind = RESAMPLING[kind]
    if kind in INTERPOLATIONS:
        found["interpolation"] = kind
    return replace(usual.with_channels(found.get("channels")), **found) if found else None


def _channels(said: Mapping[str, Any]) -> str | None:
    pixels = said.get("Image.BitmapPixelFormat")
    if pixels is not None:
        if pixels not in PIXEL_FORMATS:
            raise InputError(f"pixels {shown(pixels)}")
        return PIXEL_FORMATS[pixels]
    if said.get("do_flip_channel_order") is True:
        return "BGR"
    order = str(said.get("channels", said.get("channel_order"))).upper()
    return order if order in CHANNELS else None


def _values(said: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Range, mean and standard deviation. A mean or deviation above 2 is one of pixels from 0 to 255."""
    mean, std = said.get("mean", said.get("image_mean")), said.get("std", said.get("image_std"))
    rescales, factor = said.get("do_rescale"), said.get("rescale_factor")
    if mean is None and std is None and rescales is None and factor is None:
        as_they_are = {"range": 1, "mean": _each(None, 0.0, channels), "std": _each(None, 1.0, channels)}
        return as_they_are if said.get("author") == ULTRALYTICS else {}
    if said.get("do_normalize") is False:
        mean = std = None
    means, deviations = _each(mean, 0.0, channels), _each(std, 1.0, channels)
    if rescales is False or said.get("range") == 255:
        return {"range": 255, "mean": means, "std": deviations}
    if rescales is None and factor is None and max(*means, *deviations) > 2:
        return {"range": 255, "mean": means, "std": deviations}
    white = 255 * float(factor) if factor is not None else 1.0
    if abs(white - 1) < 1e-3:
        white = 1.0
    shift = 1.0 if said.get("rescale_offset") is True else 0.0
    return {
        "range": 1,
        "mean": tuple((one + shift) / white for one in means),
        "std": tuple(one / white for one in deviations),
    }


def _each(value: Any, usual: float, channels: int) -> tuple[float, ...]:
    """A number a channel. Raises InputError, ValueError, TypeError."""
    numbers = [usual] if value is None else value if isinstance(value, list | tuple) else [value]
    found = tuple(float(one) for one in numbers[:4])
    return found * channels if len(found) == 1 else found


def _geometry(said: Mapping[str, Any], usual: Preprocessing, fixed_size: bool) -> dict[str, Any]:
    """Size, and how an image gets it."""
    resized, cropped = _size(said.get("size")), _size(said.get("crop_size"))
    shortest = said["size"].get("shortest_edge") if isinstance(said.get("size"), Mapping) else None
    shares = float(said.get("crop_pct") or 0)
    crops = said.get("do_center_crop", cropped is not None)
    size = cropped if crops and cropped else resized or _size(said.get("input_size") or said.get("imgsz"))
    if size is None and shortest:
        size = (int(shortest),) * 2
    if fixed_size or size is None:
        size = usual.size
    found: dict[str, Any] = {} if size == usual.size else {"size": size, "resize": None}
    if said.get("crop_mode") == "squash":
        return found | {"resize": None}
    if shares:  # of the side that is resized to: timm's, and ConvNeXt's on Hugging Face
        stretched = "size" in said and min(size) >= 384
        return found | {"resize": None if stretched else math.floor(min(size) / shares)}
    if shortest:
        return found | {"resize": int(shortest)}
    if resized and crops and cropped:
        return found | {"resize": min(resized)}
    return found | ({"resize": None} if resized else {})


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width of ``[3, 224, 224]``, ``[640, 640]``, ``224`` or ``{"height": 224, "width": 224}``."""
    match value:
        case {"height": height, "width": width} | [_, height, width] | [height, width]:
            return int(height), int(width)
        case int() if value is not True:
            return value, value
    return None


# Classes


def _class_names(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Raises InputError for some that can't be."""
    value = next((said[key] for key in (*CLASSES, *NUMBERED) if said.get(key)), None)
    if isinstance(value, str):
        value = [part for part in (value.splitlines() if "\n" in value else value.split(",")) if part.strip()]
        value = value if len(value) > 1 else None
    if isinstance(value, Mapping):
        named = dict(_numbered(value))
        value = [named.get(index) for index in range(len(value))]
    if not isinstance(value, list | tuple):
        return ()
    if len(value) > MAX_CLASSES:
        raise InputError(f"its {len(value):,} class names are more than {MAX_CLASSES:,}")
    for name in value:
        if not isinstance(name, str) or not 0 < len(name.strip()) <= MAX_CLASS_NAME or not name.isprintable():
            raise InputError(f"its class names are left out: {shown(name)} can't be one")
    names = tuple(name.strip() for name in value)
    made_up = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return () if made_up else names


def _numbered(value: Mapping[Any, Any]) -> Iterator[tuple[int, Any]]:
    """``{"0": "cat"}`` and ``{"cat": 0}``."""
    for key, one in value.items():
        if isinstance(one, int):
            yield one, key
        elif str(key).isdecimal() and len(str(key)) < 9:
            yield int(key), one
