"""Rounding or refitting once more, layer after layer, for the inputs that each has behind the others (the
asymmetric objective of GPTAQ, arXiv 2504.02692).

A layer is to give what the uncompressed network's gives for that network's own inputs ``x``, of the inputs
``s`` that it has now. With ``M`` the covariance of ``s``, and ``C`` that of ``x - s`` with ``s``, its rows
``w`` become ``w + a w C M^-1``, and are rounded by ``M`` (:mod:`optimizer.compression.quantize.compensated`)
or refitted on their masks (:mod:`optimizer.compression.prune.compensated`): errors of the layers before are
made up for as far as they can be told from the inputs. Masks and grids stay.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.moments import (
    Moments,
    Sums,
    Watch,
    as_rows,
    both_channels_last,
    damped,
    solved,
)
from optimizer.compression.calibration.statistics import seen_and_held_out
from optimizer.compression.prune.compensated import match_variance, refit
from optimizer.compression.quantize.columns import Coupling, Grid, by_column, by_row
from optimizer.compression.quantize.compensated import UNBIASED, descend, fed_back, scale_factors
from optimizer.compression.quantize.held import HeldGrid
from optimizer.compression.segments import BATCH, chains, outputs
from optimizer.model.layers import Layer, walk, whole_attention

IMAGES = 256
"""Of which every eighth is left for others to judge by. By half of them EfficientNet-Lite0 at 3 bits is 0.206
nats from itself instead of 0.166, and refitted at 70 % no nearer than before."""
ROUNDED, PRUNED = (0.5, 100), (0.25, 200)
"""How much of the error is made up for (``a``), and the positions of a layer's output that are looked at in
each image. All of it is as good on small networks; less is better where weights are many for the images."""
MAX_BYTES = 2**30
"""Of the uncompressed network's inputs that are kept at a time."""


@torch.no_grad()
def refined(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    grids: Mapping[str, HeldGrid],
    images: Tensor,
    keep_going: Callable[[int, int], bool],
) -> nn.Module:
    """A copy of ``student`` whose layers with ``grids`` were rounded once more, or without any grid refitted
    on their ``masks`` (also those that lost nothing), to answer as ``teacher`` on ``images``
    ``[N, C, H, W]``; ``masks`` and ``grids`` as in :func:`optimizer.compression.distillation.learning`.

    ``keep_going`` is asked before each layer, and told how many there were before it, of how many; those
    after a no stay as they are. So do layers that run more than once, or of another shape than the teacher's,
    and those whose inputs hardly vary. Where all do, it is ``student`` itself.
    """
    model = copy.deepcopy(student).eval()
    _, positions = ROUNDED if grids else PRUNED
    seen, _ = seen_and_held_out(images[:IMAGES])
    teacher, seen = both_channels_last(teacher, model, seen)
    parts, originals = chains(model, teacher, seen[:1])
    dense = {layer.name: layer for layer in walk(teacher)}
    calls = calls_of(model, seen[:1])
    biased = calls.biased(model)
    layers = {layer.name: layer for layer in walk(model) if layer.name in (grids or masks)}
    layers = {name: one for name, one in layers.items() if calls.once(name)}
    layers = {name: one for name, one in layers.items() if one.weight.shape == dense[name].weight.shape}
    count, given, wanted = len(layers), seen, seen
    with whole_attention():
        for part, original in zip(parts, originals, strict=True):
            if not layers:
                break
            found = inputs_of(part, given[:1], layers.values(), positions)
            for names in _together({name: one[0].nbytes * len(seen) for name, one in found.items()}):
                before = inputs_of(original, wanted, [dense[name] for name in names], positions)
                for name in names:
                    if not keep_going(count - len(layers), count):
                        return model if len(layers) < count else student
                    layer, pairs = layers.pop(name), Pairs(None if name in grids else Sums())
                    now = inputs_of(part, given, [layer], positions)[name]
                    for batch in zip(now, before.pop(name), strict=True):
                        pairs.add(*batch)
                    mask = masks.get(name, torch.ones_like(layer.weight, dtype=torch.bool))
                    _change(layer, dense[name], mask, grids.get(name), pairs, name in biased)
            given, wanted = outputs(part, given), outputs(original, wanted)
    return model if count else student


class _Calls(Watch):
    """Counts the calls of layers."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__(layers)
        self.found = Counter[str]()

    def add(self, name: str, inputs: Tensor) -> None:
        self.found[name] += 1

    def once(self, name: str) -> bool:
        """Whether a layer ran once, with all of its rows."""
        return self.found[name] == 1 and name not in self.in_part


def calls_of(model: nn.Module, image: Tensor) -> _Calls:
    """How the layers run for one image ``[1, ...]``."""
    watch = _Calls(walk(model))
    watch.batch = 1
    with whole_attention(), torch.inference_mode(), watch:
        model(image)
    return watch


def _together(sizes: Mapping[str, int]) -> list[list[str]]:
    """Layers in order, as many at a time as fit into memory."""
    found, room = list[list[str]](), 0
    for name, size in sizes.items():
        room -= size
        if room < 0:
            found.append([])
            room = MAX_BYTES - size
        found[-1].append(name)
    return found


class _Seen(BaseException):
    """All was seen that is asked for; the rest need not run."""


class _Inputs(Watch):
    """Keeps inputs at positions that are the same for every network, in the same batch."""

    def __init__(self, layers: Iterable[Layer], positions: int, seed: int) -> None:
        super().__init__(layers)
        self.positions, self.seed, self.found = positions, seed, dict[str, Tensor]()

    def add(self, name: str, inputs: Tensor) -> None:
        self.found[name] = inputs
        if len(self.found) == len(self.layers):
            raise _Seen

    def sample(self, count: int, most: int) -> Tensor:
        self.generator.manual_seed(self.seed)
        return super().sample(count, min(most, self.positions))


def inputs_of(
    part: nn.Module, values: Tensor, layers: Iterable[Layer], positions: int
) -> dict[str, list[Tensor]]:
    """Unrolled inputs ``[B, G, n, d]``, ``n`` at most ``positions``, of those of the ``layers`` that ``part``
    runs, by name in the order in which they run, of one batch of ``values`` after the other."""
    found = defaultdict[str, list[Tensor]](list)
    for number, batch in enumerate(values.split(BATCH)):
        watch = _Inputs(layers, positions, number)
        watch.batch = len(batch)
        with torch.inference_mode(), suppress(_Seen), watch:  # else convolutions come by another name
            part(batch.clone())
        for name, inputs in watch.found.items():
            found[name].append(inputs)
    return found


@dataclass(slots=True)
class Pairs:
    """Moments of a layer's inputs ``s``, the covariance with ``s`` of what it lacks of ``x``, and where they
    are asked for the moments of ``x``, ``before``."""

    before: Sums | None = None
    sums: Sums = field(default_factory=Sums)
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, now: Tensor, wanted: Tensor) -> None:
        """Inputs ``[B, G, n, d]`` of both networks at the same positions of some images."""
        self.sums.add(now)
        if self.before is not None:
            self.before.add(wanted)
        residual, now = (
            one.transpose(0, 1).flatten(1, 2) for one in (wanted - now, now - self.sums.shift[:, None])
        )
        positions = wanted.shape[2]
        self.first = self.first + residual.sum(1) / positions
        self.second = self.second + residual.mT @ now / positions

    def residual(self, moments: Moments, centred: bool) -> tuple[Tensor, Tensor]:
        """``E[x - s]`` ``[G, d]``, and the covariance ``[G, d, d]`` of ``x - s`` with ``s`` (or what it is
        about zero), shrunk as that of ``s`` is."""
        count = self.sums.images
        mean, about = self.first / count, moments.mean - self.sums.shift
        covariance = self.second / count - mean[:, :, None] * about[:, None]
        own = covariance.diagonal(dim1=1, dim2=2).diag_embed()
        covariance = own + (1 - moments.shrinkage) * (covariance - own)
        return mean, covariance if centred else covariance + mean[:, :, None] * moments.mean[:, None]


def _change(
    layer: Layer, dense: Layer, mask: Tensor, grid: HeldGrid | None, pairs: Pairs, biased: bool
) -> None:
    """Make ``layer``, whose inputs are the ``now`` of ``pairs``, give what ``dense`` gives of the ``wanted``
    ones; with its bias, where it is ``biased`` (:meth:`Watch.biased`)."""
    moments, bias = pairs.sums.moments(), layer.bias if biased else None
    asymmetry, _ = PRUNED if grid is None else ROUNDED
    residual, covariance = pairs.residual(moments, bias is not None)
    matrix = damped(moments.second if bias is None else moments.covariance)
    rows, kept = (as_rows(part, len(matrix)) for part in (dense.weight, mask))
    try:
        aimed = rows + asymmetry * solved(matrix, (rows @ covariance).mT).mT
        values = aimed if mask.all() else refit(aimed, kept, matrix)
        if grid is not None:
            values = as_rows(_rounded(aimed, values, mask, grid, matrix), len(matrix))
        elif pairs.before is not None:
            wanted = pairs.before.moments()
            before = damped(wanted.second if bias is None else wanted.covariance)
            values = match_variance(rows, values, before, matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # next to no variance
        return
    change = rows @ (moments.mean + residual)[..., None] - values @ moments.mean[..., None]
    if not (values.isfinite().all() and change.isfinite().all()):
        return
    layer.weight.copy_(values.reshape(layer.weight.shape))
    if bias is not None:
        bias.copy_(change.flatten() + (0 if dense.bias is None else dense.bias))


def _rounded(aimed: Tensor, start: Tensor, mask: Tensor, grid: HeldGrid, matrix: Tensor) -> Tensor:
    """Values on ``grid``, of the shape of ``mask``, nearest to rows ``aimed`` ``[G, R, d]`` by ``matrix``
    ``[G, d, d]``; ``start`` are those refitted on ``mask``."""
    shape = mask.shape
    order, coupling = Coupling.ordered(matrix)
    aimed, start, kept = (by_column(part.reshape(shape), order) for part in (aimed, start, mask))
    held = Grid(*(by_column(part.expand(shape), order) for part in (grid.step, grid.first, grid.last)))
    wanted = coupling.product(aimed)
    codes, _ = fed_back(start, kept, coupling, held)
    values = codes * held.step
    _, gain = scale_factors(values, coupling.product(values), aimed, wanted, together=False)
    factor = gain**UNBIASED  # scales stay, so what is rounded is raised
    codes, held_on_mask = fed_back(start * factor, kept, coupling, held)
    slopes = coupling.product(codes * held.step) - wanted * factor
    codes = descend(codes, slopes, coupling, held_on_mask)
    return grid.nearest(by_row(codes * held.step, order).reshape(shape))
