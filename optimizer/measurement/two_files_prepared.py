"""Two networks made ready to be compared: compiled by one engine that runs both, and the images for both."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from operator import eq

import numpy as np
import torch
from torch import nn

from optimizer.analysis.labels import engine_label
from optimizer.analysis.metrics import metric
from optimizer.analysis.two_files import CompareRequest
from optimizer.data.loading import Datasets, load_images
from optimizer.data.selection import check_at_hand
from optimizer.engine.base import Array
from optimizer.engine.files import ENGINES, open_network
from optimizer.engine.opened import Network, Opened
from optimizer.errors import InputError, ParetoscopeError
from optimizer.model.catalogue import catalogue
from optimizer.model.examples import made_up_images
from optimizer.model.preprocessing import IMAGENET, Preprocessing
from optimizer.model.sources import LoadedModel
from optimizer.model.sources.imagenet import is_imagenet, wordnet_ids
from optimizer.progress import Report, quiet
from optimizer.records import ModelCard, Part
from optimizer.system.environment import resolve_threads
from optimizer.tasks.outputs import ALIKE_NOISE, Differences

MADE_UP_IMAGES = 64
"""Where none are given."""
CHECKED_IMAGES = 4
"""On which an engine is held against REFERENCE."""
REFERENCE = "onnxruntime"
"""What an ONNX file computes is what this makes of it."""


@dataclass(frozen=True)
class Candidate:
    """One of the two, opened but not compiled. ``shape`` ``[C, H, W]`` is what it takes; with ``asks_shape``
    it is only an offer. ``preprocessing`` is a guess unless the file ``declared`` it; ``class_names`` are the
    file's, and ``made_of`` the model that it says it was exported from. ``loaded`` is the model, where it is
    one, whose images and classes are known."""

    name: str
    kind: str
    content: str
    size_bytes: int
    network: Network
    shape: tuple[int, ...]
    asks_shape: bool = False
    preprocessing: Preprocessing = IMAGENET
    declared: bool = False
    class_names: tuple[str, ...] = ()
    made_of: str = ""
    loaded: LoadedModel | None = None


@dataclass(frozen=True)
class Pair:
    """Both, compiled for one image by one engine: the outputs that both have, and those of one alone."""

    engine: str
    shape: tuple[int, ...]
    a: Opened
    b: Opened
    outputs: tuple[tuple[int, int], ...]
    alone: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def logits(self) -> bool:
        """Whether both give one number a class, and nothing else."""
        if len(self.a.outputs) > 1 or len(self.b.outputs) > 1:
            return False
        shape = self.a.outputs[0][1]
        return len(shape) > 0 and shape[0] > 1 and int(np.prod(shape)) == shape[0]


@dataclass(frozen=True)
class Comparison:
    """All that is needed to compare two: both compiled, and the images ``[N, C, H, W]``, with labels ``[N]``
    where both networks tell classes."""

    a: Candidate
    b: Candidate
    request: CompareRequest
    pair: Pair
    images: Array
    labels: Array | None
    made_up: bool
    notes: tuple[str, ...]


def like_of(a: Candidate, b: Candidate, bundled: bool = False) -> str:
    """The model that images are preprocessed as for where no other is asked for: that which a file says it
    was made of, if it is on this machine; of those alone that come with images, where these are ``bundled``.
    Empty for none, and where one of the two is a model itself."""
    if a.loaded or b.loaded:
        return ""
    known = catalogue()
    cards = ((one, known[one.made_of]) for one in (a, b) if one.made_of in known)
    usable = (card for one, card in cards if card.ready and card.input_shape == one.shape)
    return next((card.name for card in usable if card.bundled_images or not bundled), "")


def prepare(
    a: Candidate,
    b: Candidate,
    request: CompareRequest,
    like: LoadedModel | None = None,
    given: Datasets | None = None,
    report: Report = quiet,
) -> Comparison:
    """Compile both, and read the images that the request names, unless they are ``given``.

    Raises InputError for networks that take other images or have no output in common, or that no engine
    runs, UnavailableError for what this machine lacks, WorkError where one can't be converted.
    """
    report(None, "compiling")
    pair, warnings = paired(a, b, request, resolve_threads(request.settings.threads))
    images, labels, made_up, notes = _images(a, b, pair, request, like, given, report)
    return Comparison(a, b, request, pair, images, labels, made_up, (*warnings, *notes))


# Compiling


def paired(a: Candidate, b: Candidate, request: CompareRequest, threads: int) -> tuple[Pair, tuple[str, ...]]:
    """Both by the engine that is asked for, or the first that runs both and reads them as ONNX Runtime does;
    and notes, where one does not. Raises InputError."""
    shape = _shape(a, b, request.input_shape)
    problems: dict[str, ParetoscopeError] = {}
    doubtful: tuple[Pair, str] | None = None
    for engine in [request.engine] if request.engine else ENGINES:
        try:
            first, second = (compiled(one, engine, shape, threads) for one in (a, b))
        except ParetoscopeError as error:
            problems[str(error)] = error
            continue
        pair = Pair(engine, shape, first, second, *_outputs_of_both(a.name, b.name, first, second))
        found = [misread(one, opened, engine, shape, threads) for one, opened in ((a, first), (b, second))]
        if not any(found):
            return pair, (f"{doubtful[1]}. So both are run by another engine.",) if doubtful else ()
        doubtful = doubtful or (pair, ". ".join(dict.fromkeys(filter(None, found))))
    if doubtful:  # and no other engine runs both
        return doubtful[0], (f"{doubtful[1]}.",)
    raise type(next(iter(problems.values())))(". ".join(problems))


def misread(one: Candidate, opened: Opened, engine: str, shape: tuple[int, ...], threads: int) -> str:
    """That an engine makes another network of an ONNX file than ONNX Runtime, in words; empty where it does
    not, or that can't be said. (OpenVINO 2026.4 computes some quantizers of 16 bits wrongly.)"""
    if one.network.onnx is None or engine == REFERENCE:
        return ""
    images = [image[None] for image in made_up_images(shape, CHECKED_IMAGES)]
    try:
        expected = compiled(one, REFERENCE, shape, threads)
        places, _ = _outputs_of_both(one.name, one.name, opened, expected)
        have, want = (
            [np.concatenate(rows) for rows in zip(*map(each.answer, images), strict=True)]
            for each in (opened, expected)
        )
    except Exception:  # an engine's own; what is wrong is said where all images are run
        return ""
    apart = [Differences.of(have[first], want[second]) for first, second in places]
    shares = [one.noise.sum() / max(one.signal.sum(), sys.float_info.min) for one in apart]
    if not all(np.isfinite(rows).all() for rows in want) or all(share <= ALIKE_NOISE for share in shares):
        return ""
    worst = float(max(shares, key=lambda share: (not np.isfinite(share), share)))
    how = f"SQNR {metric('sqnr').format(-10 * math.log10(worst))}" if np.isfinite(worst) else "not in numbers"
    return (
        f"{engine_label(engine)} answers {one.name} otherwise than {engine_label(REFERENCE)} does ({how}, on "
        "made-up images)"
    )


def compiled(one: Candidate, engine: str, shape: tuple[int, ...], threads: int, batch: int = 1) -> Opened:
    """Raises InputError, which names it."""
    try:
        return open_network(one.network, engine, shape, threads, batch)
    except InputError as error:
        raise InputError(f"{one.name}: {error}") from error


def _shape(a: Candidate, b: Candidate, asked: tuple[int, ...]) -> tuple[int, ...]:
    """What both take. Raises InputError where that differs."""
    fixed = [one for one in (a, b) if not one.asks_shape]
    for one in fixed:
        other = asked or fixed[0].shape
        if one.shape != other:
            what = "was asked for" if asked else f"is what {fixed[0].name} takes"
            raise InputError(
                f"{one.name} takes images of {list(one.shape)}, and {list(other)} {what}: two networks are "
                "compared on the same images. Export both for one size"
            )
    return asked or (fixed or [a])[0].shape


def _outputs_of_both(
    a_name: str, b_name: str, a: Opened, b: Opened
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Places of the outputs that both have: by name, and those left by order and shape. Raises InputError
    where there is none."""
    firsts, seconds = dict(enumerate(a.outputs)), dict(enumerate(b.outputs))
    pairs = []
    for alike in (eq, _same_shape):
        for place, output in [*firsts.items()]:
            found = next((other for other, one in seconds.items() if alike(output, one)), None)
            if found is not None:
                pairs.append((place, found))
                del firsts[place], seconds[found]
    if not pairs:
        raise InputError(
            f"{a_name} gives {_described(a.outputs)} and {b_name} {_described(b.outputs)}: no output of the "
            "same shape is in both"
        )
    alone = tuple(name for name, _ in firsts.values()), tuple(name for name, _ in seconds.values())
    return tuple(sorted(pairs)), alone


def _same_shape(one: Part, other: Part) -> bool:
    """But for sides of 1, which exporters add and leave out."""
    return [side for side in one[1] if side != 1] == [side for side in other[1] if side != 1]


def _described(outputs: Sequence[Part]) -> str:
    return ", ".join(f"{name[:60]} {list(shape)}" for name, shape in outputs[:8])


# Images


def _images(
    a: Candidate,
    b: Candidate,
    pair: Pair,
    request: CompareRequest,
    like: LoadedModel | None,
    given: Datasets | None,
    report: Report,
) -> tuple[Array, Array | None, bool, tuple[str, ...]]:
    """Images ``[N, C, H, W]``, labels ``[N]`` where both networks tell classes, whether they are made up, and
    notes. Raises InputError."""
    if given is None:
        check_at_hand(request.data)
    known = next((one for one in (like, a.loaded, b.loaded) if one is not None), None)
    if given is None and request.data.path is None and not (known and known.card.bundled_images):
        return made_up_images(pair.shape, MADE_UP_IMAGES), None, True, ()
    notes: tuple[str, ...] = ()
    if given is None:
        model, notes = _preprocessed_for(a, b, pair, like)
        if model.card.input_shape != pair.shape:
            raise InputError(
                f"images are preprocessed to {list(model.card.input_shape)} for {model.card.name}, and the "
                f"networks take {list(pair.shape)}: name a model that takes what they do"
            )
        given = load_images(model, request.data, report)
    images = given.evaluation
    if tuple(images.images.shape[1:]) != pair.shape:
        raise InputError(
            f"images of shape {list(images.images.shape[1:])} don't fit the networks, which take "
            f"{list(pair.shape)}: preprocess them so"
        )
    labels = None if images.labels is None or not pair.logits else images.labels.numpy()
    classes = pair.a.outputs[0][1][0] if pair.logits else 0
    if labels is not None and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(
            f"labels from {labels.min()} to {labels.max()} are out of range: the networks have "
            f"{classes} classes"
        )
    return images.images.numpy(), labels, False, (*notes, *given.notes)


def _preprocessed_for(
    a: Candidate, b: Candidate, pair: Pair, like: LoadedModel | None
) -> tuple[LoadedModel, tuple[str, ...]]:
    """The model whose preprocessing and classes are those of the images, and what is to be said of it."""
    if like is None and (model := a.loaded or b.loaded):
        return model, _taken_otherwise(model, a, b)
    if like is not None:
        name = like.card.name
        made = dict.fromkeys(one.name for one in (a, b) if one.made_of == name and not one.loaded)
        were = "was" if len(made) == 1 else "were"
        why = f": {' and '.join(made)} {were} exported from it" if made else ""
        words = f"Images are preprocessed and classes named as for {name}{why}."
        return like, (words, *_taken_otherwise(like, a, b))
    model, preprocessing = _model_of_files((a, b), pair)
    told = [one for one in (a, b) if one.declared]
    if not told:
        return model, (
            f"Neither file says how images are preprocessed for it. A guess was taken: "
            f"{preprocessing.describe()}. Where it is wrong so is every accuracy: name the "
            "model whose preprocessing to use (`--like`, in Python `like`).",
        )
    apart = len({one.preprocessing for one in told}) > 1
    but = f" {told[1].name} says otherwise: {told[1].preprocessing.describe()}." if apart else ""
    return model, (f"Images are preprocessed as {told[0].name} says: {preprocessing.describe()}.{but}",)


def _taken_otherwise(model: LoadedModel, a: Candidate, b: Candidate) -> tuple[str, ...]:
    """Notes on those of the two that are known to take other values of pixels than ``model``, as for which
    images are preprocessed. (How they are scaled a file often leaves open.)"""
    used, notes = model.preprocessing, list[str]()
    for one in (a, b):
        own = one.loaded.preprocessing if one.loaded else one.preprocessing if one.declared else None
        if used and own and _values(own) != _values(used):
            notes.append(
                f"Images are preprocessed as for {model.card.name} ({used.describe()}), and {one.name} takes "
                f"them otherwise ({own.describe()}): its accuracy may suffer by that."
            )
    return tuple(dict.fromkeys(notes))


def _values(preprocessing: Preprocessing) -> tuple[object, ...]:
    return preprocessing.channels, preprocessing.range, preprocessing.mean, preprocessing.std


def _model_of_files(both: tuple[Candidate, Candidate], pair: Pair) -> tuple[LoadedModel, Preprocessing]:
    """What stands for files that no model is known of: preprocessing and classes as one of them says, else
    the usual ones."""
    channels, height, width = pair.shape
    chosen = next((one for one in both if one.declared), both[0])
    usual = chosen.preprocessing.with_channels("grey" if channels == 1 else None)
    preprocessing = usual.at_size((height, width))
    classes = pair.a.outputs[0][1][0] if pair.logits else 0
    names = next((one.class_names for one in both if len(one.class_names) == classes), ())
    model = LoadedModel(
        ModelCard(chosen.name, "file", "", None, pair.shape, classes),
        nn.Identity(),
        lambda image: torch.from_numpy(preprocessing(image)),
        names,
        wordnet_ids() if is_imagenet(names) else (),
    )
    return model, preprocessing
