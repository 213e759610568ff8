"""Which architecture a checkpoint is for: built by name for a number of classes, held against the weights.

Those of this package (``OWN``), torchvision's classifiers, timm's where it is installed (``timm/NAME``), and
those that installed packages add through the entry-point group ``paretoscope.architectures``: each names a
function that takes the number of classes and gives a module.
"""

import contextlib
import difflib
import importlib.util
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from optimizer.errors import InputError, UnavailableError, WorkError, words_of
from optimizer.formats import count, listed
from optimizer.model import cifar_resnet
from optimizer.model.added import declared
from optimizer.model.added.cards import TRAINING_ONLY
from optimizer.model.added.tensors import prefix_of
from optimizer.model.architectures import ARCHITECTURES
from optimizer.model.preprocessing import IMAGENET, Preprocessing, of_torchvision
from optimizer.model.sources import bundled

GROUP = "paretoscope.architectures"
TIMM = "timm/"
TIMM_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""A model of timm's own registry. Names with a colon or a slash lead it to files and repositories."""
USUAL_CLASSES, OTHER_CLASSES = 1000, 7
"""An architecture is looked at with two numbers of classes: where its shapes differ, these stand."""
NEAREST = 3
MAX_APART = 200
"""Tensors that may differ in an architecture for another number of classes, or lack a count of batches."""

Shapes = Mapping[str, tuple[int, ...]]
Build = Callable[[int], nn.Module]

OWN: dict[str, Build] = {
    **{f"cifar-resnet{depth}": partial(cifar_resnet.CifarResNet, depth) for depth in cifar_resnet.DEPTHS},
    **{name: lambda classes, make=make: make() for name, make in ARCHITECTURES.items()},  # type: ignore[misc]
}
"""This package's own, by name. The bundled ones have their ten classes, whatever is asked for."""
CIFAR = Preprocessing((32, 32), mean=IMAGENET.mean, std=IMAGENET.std)


@dataclass(frozen=True)
class Fit:
    """How weights fit an architecture: the number of classes that they say (of an architecture whose shapes
    differ with it, else the usual one), and names that stand apart."""

    architecture: str
    classes: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def exact(self) -> bool:
        return not self.apart

    @property
    def apart(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.reshaped)

    def describe(self) -> str:
        """In words, what stands apart."""
        parts = [
            f"{count(len(names), 'tensor')} {what} ({listed(names)})"
            for names, what in (
                (self.missing, "missing"),
                (self.extra, "that it has not"),
                (self.reshaped, "of another shape"),
            )
            if names
        ]
        return "; ".join(parts)


def architectures() -> dict[str, Build]:
    """Every architecture that weights are tried against, by name. Those of timm are too many: they are built
    when they are named."""
    from torchvision import models

    found: dict[str, Build] = dict(OWN)
    for name in models.list_models(module=models):
        found[name] = partial(_torchvision, name)
    for point in sorted(entry_points(group=GROUP)):
        found.setdefault(point.name, partial(_plugin, point))
    return found


def failures() -> dict[str, str]:
    """The architectures of packages that can't be built, or not be compared with weights, and why."""
    found = {}
    for point in entry_points(group=GROUP):
        try:
            usual, other = (_shapes(point.name, classes) for classes in (USUAL_CLASSES, OTHER_CLASSES))
            if usual.keys() != other.keys():
                found[point.name] = f"the names of {point.name}'s tensors change with the number of classes"
        except Exception as error:  # a package's code may give anything
            found[point.name] = words_of(error)
    return found


def has_timm() -> bool:
    return importlib.util.find_spec("timm") is not None


def build(name: str, classes: int, weights: Shapes | None = None, config: str = "") -> nn.Module:
    """A module of an architecture, for the names in ``weights`` where parts of it may be missing there;
    ``config`` is what else one of a repository needs, as JSON.

    Raises InputError for an unknown name, UnavailableError where timm is needed and missing.
    """
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), classes, json.loads(config or "{}"))
    known = architectures()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=6, cutoff=0.4) or list(known)[:6]
        more = f"or {TIMM}NAME for one of timm's" if has_timm() else ""
        raise InputError(f"unknown architecture {name!r}: use one such as {', '.join(close)} {more}".rstrip())
    try:
        module = known[name](classes)
    except Exception as error:
        if name in OWN or isinstance(error, InputError):
            raise
        raise WorkError(f"architecture {name} can't be built for {classes} classes: {error}") from error
    if weights is not None:
        for part in TRAINING_ONLY.get(name, ()):
            if not any(tensor.startswith(part) for tensor in weights):
                setattr(module, part.removesuffix("."), None)
    return module


def fit_of(name: str, weights: Shapes, config: str = "") -> Fit:
    """How weights fit one architecture. Raises as :func:`build`."""
    usual, other = (_shapes(name, classes, config) for classes in (USUAL_CLASSES, OTHER_CLASSES))
    usual = {tensor: shape for tensor, shape in usual.items() if not _absent(name, tensor, weights)}
    heads = [
        (
            tensor,
            [axis for axis, pair in enumerate(zip(shape, other[tensor], strict=True)) if len({*pair}) > 1],
        )
        for tensor, shape in usual.items()
        if shape != other[tensor]
    ]
    said = [weights[tensor][axes[0]] for tensor, axes in heads if len(weights.get(tensor, ())) > axes[0]]
    classes = max(set(said), key=said.count) if said else USUAL_CLASSES

    def wanted(tensor: str) -> tuple[int, ...]:
        axes = dict(heads).get(tensor, [])
        return tuple(classes if axis in axes else side for axis, side in enumerate(usual[tensor]))

    missing = usual.keys() - weights.keys()
    return Fit(
        name,
        classes,
        tuple(tensor for tensor in usual if tensor in missing and not tensor.endswith("num_batches_tracked")),
        tuple(tensor for tensor in weights if tensor not in usual),
        tuple(
            f"{tensor} is {list(weights[tensor])}, not {list(wanted(tensor))}"
            for tensor in usual
            if tensor in weights and tuple(weights[tensor]) != wanted(tensor)
        ),
    )


def fitting(weights: Shapes, hint: str = "") -> list[Fit]:
    """The one architecture that weights fit, or the nearest of those that share a tensor with them, the best
    first: there may be none. There are many, and each has to be built: those with about as many parameters
    are tried first, of them those whose names are most like ``hint``, such as a file's name. Those of
    :func:`failures` are left out."""
    near: list[tuple[int, str]] = []
    elements = sum(map(math.prod, weights.values()))
    failing = failures()
    names = [name for name in architectures() if name not in failing]
    for name in sorted(names, key=lambda name: (_distance(name, elements), -_likeness(name, hint))):
        shapes = _shapes(name, USUAL_CLASSES)
        apart = len(shapes.keys() ^ weights.keys())
        alike = [shape for tensor, shape in shapes.items() if weights.get(tensor) == shape]
        apart += len(shapes.keys() & weights.keys()) - len(alike)
        if apart <= MAX_APART and (fit := fit_of(name, weights)).exact:
            return [fit]
        if any(alike):  # one number, as batch norms count their batches, is like any other
            near.append((apart - len(alike), name))
    return sorted((fit_of(name, weights) for _, name in sorted(near)[:NEAREST]), key=lambda fit: fit.apart)


def _distance(name: str, elements: int) -> float:
    """How far a number of parameters is from the published one, as a rounded logarithm; 0 for those that are
    not torchvision's, which are few and small."""
    from torchvision import models

    with contextlib.suppress(ValueError):
        published = models.get_model_weights(name).DEFAULT.meta["num_params"]
        return round(abs(math.log(max(1, elements) / published)), 1)
    return 0.0


def _likeness(name: str, hint: str) -> float:
    found = difflib.SequenceMatcher(None, name, hint.lower()).find_longest_match()
    return found.size / len(name) + found.size / 100


def default_preprocessing(name: str) -> Preprocessing:
    """What an architecture's published weights were trained with."""
    if name in OWN:
        return CIFAR if name.startswith("cifar") else bundled.preprocessing(name)
    if name.startswith(TIMM):
        return _timm_preprocessing(name.removeprefix(TIMM))
    from torchvision import models

    try:
        transforms = models.get_model_weights(name).DEFAULT.transforms()
    except ValueError:  # a plugin's
        return IMAGENET
    return of_torchvision(transforms)


@lru_cache(maxsize=512)
def _shapes(name: str, classes: int, config: str = "") -> dict[str, tuple[int, ...]]:
    """Of every parameter and buffer, without memory for them, by its name as a kept file has it: a prefix
    before every name goes, also where it is the architecture's own (``self.net = ...``)."""
    with _Unfilled(), torch.random.fork_rng(devices=[]):
        tensors = build(name, classes, config=config).state_dict()
    prefix = prefix_of(tensors)
    return {
        tensor.removeprefix(prefix): tuple(value.shape)
        for tensor, value in tensors.items()
        if tensor.startswith(prefix)
    }


class _Unfilled(TorchFunctionMode):
    """Parameters take no memory and no time while a module is built. (On the device ``meta`` as a whole some
    architectures can't be built: they reckon with tensors.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _absent(name: str, tensor: str, weights: Shapes) -> bool:
    """Whether a tensor is of a part that the weights leave out as a whole."""
    part = next((part for part in TRAINING_ONLY.get(name, ()) if tensor.startswith(part)), None)
    return part is not None and not any(other.startswith(part) for other in weights)


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    # As their published weights have it; initial weights would take a minute and are replaced.
    more: dict[str, Any] = {"transform_input": True, "init_weights": False} if name in TRAINING_ONLY else {}
    module: nn.Module = models.get_model(name, weights=None, num_classes=classes, **more)
    return module


def _plugin(point: Any, classes: int) -> nn.Module:
    module = point.load()(classes)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{point.value} gives {type(module).__name__}, not a torch.nn.Module")
    return module


def check(name: str, config: Mapping[str, Any]) -> None:
    """See that a repository's settings may reach timm: that is known before its weights are fetched. Raises
    InputError, UnavailableError without timm."""
    if name.startswith(TIMM):
        _timm_settings(name.removeprefix(TIMM), config)


def _timm_settings(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a repository's only what builds a network. Raises InputError."""
    try:
        import timm
    except ImportError as error:
        raise UnavailableError(
            "timm's architectures need its package: pip install 'paretoscope[timm]'"
        ) from error
    if not (TIMM_NAME.fullmatch(name) and timm.is_model(name.partition(".")[0])):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=6, cutoff=0.4))
        raise InputError(f"unknown architecture {TIMM}{name[:100]}: use one such as {close or 'resnet18'}")
    own = _loading_arguments(timm)
    loading = [argument for argument in config if argument in own or argument.startswith("pretrained")]
    if refused := [argument for argument in loading if config[argument]]:
        raise InputError(
            f"{', '.join(sorted(refused))} can't be set for {TIMM}{name} by a repository's model_args: only "
            "what builds a network is taken from there, such as img_size, and nothing that says what timm "
            "loads. Choose another repository, or add its weights as a file"
        )
    # How many classes there are is read off the weights.
    return {key: value for key, value in config.items() if key not in (*loading, "num_classes")}


def _timm(name: str, classes: int, config: Mapping[str, Any]) -> nn.Module:
    """``config`` is a repository's. Raises InputError."""
    more = _timm_settings(name, config)
    import timm

    try:
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **more)
    except BUILD_ERRORS as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        told = f" with {', '.join(sorted(more))}" if more else ""
        raise InputError(f"timm can't build {name}{told} ({reason}): choose another architecture") from error
    return module


BUILD_ERRORS = (
    *(RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError),
    *(ArithmeticError, OSError),
)
"""What arguments that are a repository's make timm raise."""


def _loading_arguments(timm: Any) -> set[str]:
    """The arguments of timm that say what is loaded, from where and for what, not what the network is: all
    that its functions name themselves, also those of a version to come, as the others go to the network."""
    functions = (timm.create_model, timm.models.build_model_with_cfg)
    named = {parameter for function in functions for parameter in inspect.signature(function).parameters}
    popped = {"pruned", "features_only", "out_indices", "feature_cls", "device", "dtype"}
    return (named | popped) - {"kwargs"}


def _timm_preprocessing(name: str) -> Preprocessing:
    import timm

    said = timm.get_pretrained_cfg(name, allow_unregistered=True)
    found = declared.read({} if said is None else said.to_dict(), IMAGENET, fixed_size=False)
    return found.preprocessing or IMAGENET
