"""A model and its images, opened once and passed along, with what all recipes of them share.

The last ones stay open in this process, so that a new position of a slider costs only what is new in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
from cachetools import LRUCache
from torch import Tensor, nn

from optimizer.compression.apply import compress_weights
from optimizer.compression.calibration.cache import IMAGES as STATISTICS_IMAGES
from optimizer.compression.calibration.cache import orders_of, rotations_of, statistics_of
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.divergence import NO_CLASSIFIER
from optimizer.compression.prune.group import Group
from optimizer.compression.prune.permutation import permuted, permuted_statistics, permuted_weights
from optimizer.compression.rotation import Rotations, rotated, rotated_statistics
from optimizer.compression.streams import Stream
from optimizer.data.loading import Datasets, held_images
from optimizer.data.selection import check_at_hand, fingerprint
from optimizer.engine.base import Build
from optimizer.engine.faithful import prepare
from optimizer.errors import EngineError, InputError, UnavailableError, words_of
from optimizer.formats import count
from optimizer.measurement.size import size_of
from optimizer.model.added.cards import version_of
from optimizer.model.catalogue import LoadedModel, load
from optimizer.model.examples import answers, hold, is_held
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import multiplications, notes_on_others, walk
from optimizer.model.own import check_changes_nothing
from optimizer.progress import Report, quiet, uninterrupted
from optimizer.recipe import Recipe
from optimizer.recipe.specs import Aim
from optimizer.records import DataSpec, Request, Size
from optimizer.system.machine_lock import exclusive
from optimizer.tasks.outputs import is_logits

OPEN = 2
"""Models and workspaces that stay open, and how much each keeps of a kind."""
ACTIVATION_CALIBRATION_IMAGES = 128

Kept = dict[object, LRUCache[Any, Any]]


class Keeper(Protocol):
    """What holds on to things that took long to make."""

    @property
    def kept(self) -> Kept: ...


K = TypeVar("K", bound=Keeper)
P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[Concatenate[K, P], T]) -> Callable[Concatenate[K, P], T]:
    """Make a thing once for the same positional arguments; its first one holds on to the last few.

    Keyword arguments, such as who is told of the progress, make no difference.
    """

    @wraps(make)
    def made_once(keeper: K, /, *arguments: P.args, **others: P.kwargs) -> T:
        cache = keeper.kept.setdefault(make, LRUCache(OPEN))
        if arguments not in cache:
            cache[arguments] = make(keeper, *arguments, **others)
        made: T = cache[arguments]
        return made

    return made_once


@contextmanager
def uncompressed_alone() -> Iterator[None]:
    """What fails in the block, whatever it raises, fails of the uncompressed model: an EngineError."""
    try:
        yield
    except (InputError, UnavailableError):
        raise
    except Exception as error:
        raise EngineError(words_of(error)) from error


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A loaded model, its batch norm folded, ready for any recipe.

    ``published`` are its layers' weights before folding, by name: by their magnitude weights are pruned.
    ``multiplications`` has how often each weight of a layer is multiplied for one input, ``size`` the
    uncompressed model's, ``notes`` what folding could not do, what no recipe prunes or rounds, and
    those of the model itself.
    """

    loaded: LoadedModel
    module: nn.Module
    published: dict[str, Tensor]
    multiplications: dict[str, int]
    size: Size
    notes: tuple[str, ...]
    kept: Kept = field(init=False, default_factory=dict, repr=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.loaded.card.input_shape

    @once
    @uninterrupted()
    def builder(self, engine: str) -> Build:
        """What an engine prepares of the model, once. Raises InputError, UnavailableError, EngineError."""
        with uncompressed_alone():
            return prepare(engine, self.module, self.input_shape)


@dataclass(frozen=True, eq=False)
class Workspace:
    """An open model on one set of images, and what was found out about the two.

    ``data`` names the images; None where a recipe needs none. ``files`` is their fingerprint. Of those that
    are evaluated ``read`` are read, or all. ``given`` are images that are in memory already.

    Of a model whose channels were rotated or put into another order (:meth:`rewritten`), ``known`` are the
    statistics, which follow from the first ones, and ``notes`` say what was done.
    """

    model: OpenModel
    data: DataSpec | None = None
    files: str = ""
    given: Datasets | None = None
    read: int | None = None
    known: Statistics | None = None
    notes: tuple[str, ...] = ()
    kept: Kept = field(init=False, default_factory=dict, repr=False)

    @property
    def images(self) -> Datasets:
        """Evaluation and calibration images, read when they are first asked for. Raises InputError."""
        if self.given is not None:
            return self.given
        if self.data is None:
            raise InputError("this needs images: give a folder, arrays or a dataset")
        return held_images(self.model.loaded, self.data, self.files, self.read)

    @property
    def activation_images(self) -> Tensor:
        """The calibration images ``[N, C, H, W]`` that activation ranges are read from. Raises InputError."""
        return _first(self.images, ACTIVATION_CALIBRATION_IMAGES)

    def images_for(self, recipe: Recipe) -> Tensor:
        """The images that an engine is given with a recipe: :attr:`activation_images`, or a single one, for
        its shape, where activations are not rounded. Raises InputError."""
        return self.activation_images if recipe.quantize.rounds_activations else _first(self.images, 1)

    @property
    def statistics_images(self) -> Tensor:
        """The calibration images ``[N, C, H, W]`` that statistics are taken on. Raises InputError."""
        return _first(self.images, STATISTICS_IMAGES)

    @property
    def finetuning_images(self) -> Tensor:
        """All calibration images ``[N, C, H, W]``, first those that statistics are taken on. Raises
        InputError."""
        return _first(self.images, len(self.images.calibration.images))

    def statistics(self, report: Report = quiet) -> Statistics:
        """What the calibration images tell about each layer; read or made once. The machine lock is held
        meanwhile. Raises InputError."""
        if self.known is not None:
            return self.known
        with exclusive(report):
            return self._taken(report=report)

    @once
    @uninterrupted(unless_over=True)
    def _taken(self, *, report: Report) -> Statistics:
        return statistics_of(self.model.module, self.statistics_images, report)

    def rewritten(self, recipe: Recipe, report: Report = quiet) -> "Workspace":
        """What a recipe works on: a network that computes the same, its channels rotated and in an order that
        suits an ``N:M`` pattern, and what is known of it; or this workspace. Found once, under the machine
        lock. Raises InputError."""
        aim, prune = recipe.rotates_to, recipe.prune
        if self.known is not None or not (aim or prune.permutes):
            return self
        workspace, statistics = self, self.statistics(report)
        with exclusive(report):
            if aim:
                workspace = workspace._rotated(aim, recipe.unrotated, statistics, report=report)
            if prune.permutes:
                workspace = workspace._permuted(prune.pattern, workspace.known or statistics, report=report)
        return workspace

    @once
    @uninterrupted(unless_over=True)
    def _rotated(
        self, aim: Aim, unrotated: frozenset[str], statistics: Statistics, *, report: Report
    ) -> "Workspace":
        model = self.model
        found = rotations_of(model.module, self.statistics_images, aim, statistics, report)
        rotations = {group: one for group, one in found.items() if unrotated.isdisjoint(group.members)}
        if not rotations:
            return self
        module = rotated(model.module, rotations)
        weights = {layer.name: layer.weight.detach() for layer in walk(module)}
        published = model.published | {name: weights[name] for name in _members(rotations)}
        known = rotated_statistics(statistics, model.module, rotations, module)
        return self._as(module, published, known, note_on_rotation(rotations, aim))

    @once
    @uninterrupted(unless_over=True)
    def _permuted(self, pattern: str, statistics: Statistics, *, report: Report) -> "Workspace":
        model = self.model
        orders = orders_of(model.module, self.statistics_images, pattern, statistics, report)
        if not orders:
            return self
        module, published = permuted(model.module, orders), permuted_weights(model.published, orders)
        return self._as(module, published, permuted_statistics(statistics, orders), note_on_order(orders))

    def _as(
        self, module: nn.Module, published: dict[str, Tensor], known: Statistics, note: str
    ) -> "Workspace":
        model = replace(self.model, module=module, published=published)
        return replace(self, model=model, known=known, notes=(*self.notes, note))


def _members(changed: Iterable[Group | Stream]) -> set[str]:
    return {name for group in changed for name in group.members}


def note_on_rotation(rotations: Rotations, aim: Aim) -> str:
    """What is to be said where channels of a network were rotated."""
    costs = {"prune": "pruning costs", "round": "rounding costs", "both": "pruning and rounding cost"}[aim]
    norms = {path for stream in rotations for _, path in stream.normed}
    scaled = f", and the scales of {count(len(norms), 'norm')} are in their weights" if norms else ""
    return (
        f"the channels of {count(len(_members(rotations)), 'layer')} are rotated (multiplied with orthogonal "
        f"matrices){scaled}, so that {costs} less; uncompressed, the outputs are the same"
    )


def note_on_order(orders: Mapping[Group, Tensor]) -> str:
    """What is to be said where channels of a network were put into another order."""
    return (
        f"the weights of {count(len(_members(orders)), 'layer')} have their channels in another order than "
        "the model's, in which the pattern costs less; uncompressed, the outputs are the same"
    )


def _first(images: Datasets, number: int) -> Tensor:
    """Calibration images drawn over the whole set (folders come sorted by class): a shorter draw begins a
    longer."""
    everything = images.calibration.images
    return everything[np.random.default_rng(0).permutation(len(everything))[:number]]


def open_workspace(
    model: str, data: DataSpec | None = None, report: Report = quiet, read: int | None = None
) -> Workspace:
    """A model of the catalogue on images of a folder or the bundled ones; downloaded where it must be. Of the
    images to evaluate ``read`` are read, or all.

    Images that changed meanwhile are opened anew. Raises InputError for an unknown model, a folder that can't
    be used, or images that were given in memory, UnavailableError for what this machine lacks.
    """
    if data is not None:
        check_at_hand(data)
    files = "" if data is None else fingerprint(data)
    report(None, "loading the model")
    return _opened(OPENED, model, version_of(model), data, files, read, report=report)


def workspace_of(request: Request, report: Report = quiet) -> Workspace:
    """The workspace of a request; without images where its recipe works without. Raises as
    :func:`open_workspace`."""
    return open_workspace(request.model, request.data if request.recipe.needs_images else None, report)


@dataclass(frozen=True, eq=False)
class Opened:
    """What is open in this process."""

    kept: Kept = field(init=False, default_factory=dict, repr=False)


OPENED = Opened()


@once
def _opened(
    opened: Opened,
    model: str,
    version: str,
    data: DataSpec | None,
    files: str,
    read: int | None,
    *,
    report: Report,
) -> Workspace:
    return Workspace(_open_model(opened, model, version, report=report), data, files, read=read)


@once
@uninterrupted()
def _open_model(opened: Opened, model: str, version: str, *, report: Report) -> OpenModel:
    return open_model(load(model, report))


def open_model(loaded: LoadedModel) -> OpenModel:
    """A loaded model made ready for recipes; its module is left as it was. Raises InputError for one that
    changes its input."""
    module, notes = fold_batch_norm(loaded.module, loaded.card.input_shape)
    if not is_held(module):
        hold(module, loaded.card.input_shape)
    check_changes_nothing(module, loaded.card.input_shape, loaded.card.name)
    if not loaded.card.classes and is_logits(answers(module, loaded.card.input_shape)[0]):
        setattr(module, NO_CLASSIFIER, True)  # for what compresses it, and what it keeps of it
    run = {layer.name for layer in walk(module)}
    return OpenModel(
        loaded,
        module,
        {layer.name: layer.weight.detach() for layer in walk(loaded.module) if layer.name in run},
        multiplications(module, loaded.card.input_shape),
        size_of(module, compress_weights(module, Recipe())),
        (*loaded.notes, *notes, *notes_on_others(module)),
    )
