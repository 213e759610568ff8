"""What an experiment is about: a model and its images, and what all recipes share of them.

It is kept between calls in this process, so that a new position of a slider costs only what is new in it.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from torch import Tensor, nn

from optimizer.compression.apply import compress_weights
from optimizer.compression.calibration.cache import IMAGES as STUDIED_IMAGES
from optimizer.compression.calibration.cache import study_of
from optimizer.compression.calibration.statistics import Study
from optimizer.data.loading import Datasets, held_images
from optimizer.data.selection import fingerprint
from optimizer.errors import InputError
from optimizer.measurement.size import size_of
from optimizer.model.catalogue import LoadedModel, Report, load, quiet
from optimizer.model.layers import fold_batch_norm, multiplications, walk
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, Request, Size
from optimizer.system.environment import check_precision, environment, threads_available
from optimizer.system.machine_lock import machine_lock

ACTIVATION_CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Subject:
    """A loaded model, its batch norm folded, ready for any recipe.

    ``published`` are its layers' weights before folding, by name: by their magnitude weights are pruned.
    """

    loaded: LoadedModel
    module: nn.Module
    published: dict[str, Tensor]
    multiplications: dict[str, int]
    size: Size
    notes: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.loaded.card.input_shape


@dataclass(frozen=True, slots=True)
class Setting:
    """What a baseline depends on. ``files`` is the fingerprint of the images: changed ones are read anew."""

    model: str
    engine: str
    data: DataSpec
    files: str
    threads: int
    batch: int

    @classmethod
    def of(cls, request: Request) -> "Setting":
        """Raises InputError for more threads than cores, a precision that the CPU has not, or a folder that
        can't be used."""
        threads = resolve_threads(request.settings.threads)
        check_precision(request.recipe.quantize.precision, environment())
        files = fingerprint(request.data)
        return cls(request.model, request.engine, request.data, files, threads, request.settings.batch)


@lru_cache(maxsize=2)
def subject(model: str) -> Subject:
    """Load a model and fold its batch norm, once. Raises InputError, UnavailableError."""
    loaded = load(model)
    module, notes = fold_batch_norm(loaded.module)
    return Subject(
        loaded,
        module,
        {layer.name: layer.weight.detach() for layer in walk(loaded.module)},
        multiplications(module, loaded.card.input_shape),
        size_of(module, compress_weights(module, Recipe())),
        notes,
    )


def turn(report: Report) -> AbstractContextManager[None]:
    """This machine to ourselves, for one phase: a CLI and a page take turns."""
    return machine_lock(
        waiting=lambda seconds: report(
            None, f"waiting for another measurement on this machine ({seconds:.0f} s)"
        )
    )


def resolve_threads(asked: int) -> int:
    """The thread count that is asked for, or every core for 0. Raises InputError."""
    available = threads_available()
    if asked > available:
        raise InputError(
            f"{asked} threads are more than this machine's {available} cores: use 1 to {available}"
        )
    return asked or available


@dataclass(frozen=True)
class Telling:
    """A report that makes no difference to what is cached: all are equal."""

    report: Report = field(compare=False)


def images_of(setting: Setting) -> Datasets:
    """The images of a setting, read once. Raises InputError."""
    return held_images(subject(setting.model).loaded, setting.data, setting.files)


def _drawn(images: Datasets, count: int) -> Tensor:
    """Calibration images drawn over the whole set (folders come sorted by class): a shorter draw begins a
    longer."""
    everything = images.calibration.images
    return everything[np.random.default_rng(0).permutation(len(everything))[:count]]


def calibration_of(images: Datasets) -> Tensor:
    """Those ``[N, C, H, W]`` that activation ranges are read from."""
    return _drawn(images, ACTIVATION_CALIBRATION_IMAGES)


def activation_images(request: Request) -> Tensor:
    """The calibration images ``[N, C, H, W]`` that activation ranges are read from. Raises InputError."""
    return calibration_of(images_of(Setting.of(request)))


def studied_images(request: Request) -> Tensor:
    """The calibration images ``[N, C, H, W]`` that a study looks at. Raises InputError."""
    setting = Setting.of(request)
    return studied(setting.model, setting.data, setting.files)


def studied(model: str, data: DataSpec, files: str) -> Tensor:
    """The same of a model's images; ``files`` is their fingerprint."""
    return _drawn(held_images(subject(model).loaded, data, files), STUDIED_IMAGES)


def study(request: Request, report: Report = quiet) -> Study:
    """What is known of the model on the request's calibration images; made once. Raises InputError."""
    setting = Setting.of(request)
    with turn(report):
        return study_on(setting.model, setting.data, setting.files, Telling(report))


@lru_cache(maxsize=2)
def study_on(model: str, data: DataSpec, files: str, telling: Telling) -> Study:
    """The same for a caller whose :func:`turn` it is."""
    return study_of(subject(model).module, studied(model, data, files), telling.report)
