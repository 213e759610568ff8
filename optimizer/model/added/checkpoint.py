"""Checkpoints: which architecture the weights are of, and the module that holds them."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from optimizer.errors import InputError
from optimizer.model.added import declared
from optimizer.model.added.architectures import (
    Fit,
    Shapes,
    build,
    default_preprocessing,
    failures,
    fit_of,
    fitting,
)
from optimizer.model.added.cards import AddedModel, Choices, Examined, content_path
from optimizer.model.added.tensors import prefix_of
from optimizer.model.added.transformers_files import TRANSFORMERS, load
from optimizer.model.preprocessing import IMAGENET, Preprocessing


def examined(about: Examined, found: dict[str, Any], architecture: str) -> Examined:
    """With the architecture that the weights fit: ``architecture`` where that does, else the first found.
    Raises InputError for an unknown one."""
    shapes = shapes_of(about.file)
    fits = [_fit(architecture, about)] if architecture else []
    left_out = list(found["left_out"])
    if not (about.config or (fits and fits[0].exact)):
        fits = fitting(shapes, about.name)
        left_out += failures().values()
    exact = fits[0].architecture if fits and fits[0].exact else ""
    facts = [("tensors", f"{len(shapes):,}"), *(("left out", words) for words in left_out)]
    if exact:
        facts.append(("fits", exact))
        facts.append(("classes", f"{fits[0].classes:,}"))
    usual = default_preprocessing(exact) if exact else about.preprocessing
    known = f"{exact}'s published weights" if usual is not IMAGENET else ""
    problem = "" if exact else _nearest(fits)
    about = replace(about, facts=(*about.facts, *facts), architecture=exact, problem=problem)
    return about.with_declared(declared.read(found["metadata"], usual, fixed_size=False), usual, known)


def described(about: Examined, choices: Choices) -> AddedModel:
    """Raises InputError where the weights don't fit the architecture: what stands apart, and what fits."""
    architecture = choices.architecture or about.architecture
    if not architecture:
        raise InputError(about.problem)
    fit = _fit(architecture, about)
    if not fit.exact:
        raise InputError(_misfit(fit, shapes_of(about.file)))
    return AddedModel(
        choices.name,
        "checkpoint",
        about.file,
        choices.preprocessing or _usual(architecture, about),
        classes=fit.classes,
        architecture=architecture,
        description=f"{architecture}, weights of {'the hub' if about.config else 'your own'}",
        config=about.config,
    )


def module(model: AddedModel) -> nn.Module:
    """The architecture with its weights. Raises InputError where the file is damaged."""
    if model.architecture.startswith(TRANSFORMERS):
        return load(model.architecture, model.config, model.file)[0]
    shapes = shapes_of(model.file)
    # A network that is no classifier has outputs as well: how many is read off the weights.
    outputs = fit_of(model.architecture, shapes, model.config).classes
    made = build(model.architecture, outputs, shapes, model.config)
    prefix = prefix_of(made.state_dict())
    tensors = safetensors.torch.load_file(content_path(model.file))
    made.load_state_dict({prefix + name: tensor for name, tensor in tensors.items()}, strict=False)
    return made


def _usual(architecture: str, about: Examined) -> Preprocessing:
    same = architecture == about.architecture
    return about.preprocessing if same else default_preprocessing(architecture)


def _fit(architecture: str, about: Examined) -> Fit:
    if architecture.startswith(TRANSFORMERS):
        return load(architecture, about.config, about.file)[1]
    return fit_of(architecture, shapes_of(about.file), about.config)


@lru_cache(maxsize=8)
def shapes_of(file: str) -> Shapes:
    """Of each tensor in a kept file, by name."""
    with safetensors.safe_open(content_path(file), "pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def _nearest(fits: list[Fit]) -> str:
    near = ". ".join(f"{fit.architecture}: {fit.describe()}" for fit in fits)
    nearest = f"Nearest are {near}. " if fits else ""
    return (
        f"its weights fit no architecture that is known here. {nearest}Export the network to ONNX and add "
        "that file, or measure the module itself in Python (optimizer.measure). An architecture of your own "
        "also comes with a package (entry points paretoscope.architectures), one of timm's is named timm/NAME"
    )


def _misfit(fit: Fit, shapes: Shapes) -> str:
    best = next(iter(fitting(shapes, fit.architecture)), fit)
    words = f"the weights don't fit {fit.architecture}: {fit.describe()}"
    if best.exact:
        return f"{words}. They fit {best.architecture}"
    if best.apart < fit.apart:
        return f"{words}. Nearer is {best.architecture}: {best.describe()}"
    return words
