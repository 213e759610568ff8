"""What the layers of a model see: mean and covariance of their inputs over calibration images.

For a layer with weight rows ``w``, the mean square of what a change ``w - v`` does to its output is
``(w - v) C (w - v)`` once the mean of the change is put into the bias, with ``C`` the covariance of the
unrolled input. All data-aware pruning and rounding here minimises that (Optimal Brain Surgeon, Hassibi and
Stork 1993; layer by layer as in arXiv 2208.11580).
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from optimizer.errors import InputError
from optimizer.model.layers import Layer, walk, whole_attention, with_shared_bias
from optimizer.model.operations import Operations
from optimizer.progress import Report, quiet

FIRST_BATCH, BATCH = 16, 4
"""Images at a time: small batches stay in the cache; the mean of the first one is what the rest is centred
on."""
POSITIONS_A_COLUMN = 0.2
MIN_POSITIONS, MAX_POSITIONS = 64, 200
DEPTHWISE_POSITIONS = 8
"""Positions of the output that are looked at, an image: a covariance of more columns takes more of them to
tell, and neighbours say much the same."""
NARROW = 64
"""Covariances of fewer columns are taken as they are: hundreds of images tell them well enough."""
ENOUGH_IMAGES = 8
"""Fewer may agree by chance: what an input was for one or two of them is no constant that a bias takes up."""
MAX_COLUMNS = 9_216
"""A wider layer (VGG's first linear one) would take gigabytes: it gets no moments, and is treated by
magnitude alone. The covariance of the widest that is taken is 324 MiB."""

MIN_DIAGONAL = 1e-30
"""Of a matrix that tells something: its inverse has to be a float32, too."""
SOLVED_TOGETHER = 128
"""Columns of the largest matrices that are solved with several at once: from 160 on, torch 2.13 on two
threads prints an error of oneMKL's and never ends."""

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
PADDED_BY_NAME = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


@dataclass(frozen=True, slots=True)
class Moments:
    """Of a layer's unrolled input, in ``G`` groups (1 but for grouped convolutions) of ``d`` columns.

    ``covariance`` float32 ``[G, d, d]`` with its off-diagonal shrunk by ``shrinkage`` (0 to 1), ``mean``
    float32 ``[G, d]``.
    """

    covariance: Tensor
    mean: Tensor
    shrinkage: float

    @property
    def second(self) -> Tensor:
        """``E[x x^T]`` ``[G, d, d]``: what counts where there is no bias to take up the mean."""
        return self.covariance + self.mean.unsqueeze(2) * self.mean.unsqueeze(1)


def as_rows(weight: Tensor, groups: int) -> Tensor:
    """A weight ``[out, ...]`` as ``[G, out / G, d]``: the view in which rows meet their inputs."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def channels_last(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the model and of ``images`` ``[N, C, H, W]`` with channels side by side in memory.

    Convolutions and statistics are faster with them. Both come back as they are where the model's code can't
    take that, or would then write into its input, or has no convolution of images.
    """
    if images.dim() != 4 or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return model, images
    copied = copy.deepcopy(model).eval()
    laid_out = images.contiguous(memory_format=torch.channels_last)
    try:
        copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            image = laid_out[:1].clone()
            copied(image)
    except RuntimeError:  # a view of activations that lie otherwise, or a weight of five dimensions
        return model, images
    return (copied, laid_out) if torch.equal(image, images[:1]) else (model, images)


def both_channels_last(dense: nn.Module, changed: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """:func:`channels_last` of a model and images; where it lays them out so, what was made of the model too,
    in place."""
    laid_out, images = channels_last(dense, images)
    if laid_out is not dense:
        changed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return laid_out, images


def collect(model: nn.Module, images: Tensor, report: Report = quiet) -> dict[str, Moments]:
    """Moments of every layer that runs, by name, over ``images`` ``[N, C, H, W]``.

    Layers wider than ``MAX_COLUMNS`` are left out, and those whose rows don't all see the same (the joint
    projection of attention to other tokens than its own). The off-diagonal is shrunk as far as its sampling
    error, with whole images as the samples, says (Schäfer and Strimmer 2005): a classifier of 1,280 columns
    that saw 256 images keeps less of it than a convolution that saw thousands of positions of each.

    Raises InputError without images, or with pixels that are not finite.
    """
    return watched(model, images, report).moments()


def watched(model: nn.Module, images: Tensor, report: Report = quiet) -> "Watch":
    """What was seen of a model as it ran over ``images`` ``[N, C, H, W]``. Raises what :func:`collect`
    does."""
    if not len(images):
        raise InputError("there are no calibration images: give a folder that has some, a hundred or more")
    if not torch.stack(images.aminmax()).isfinite().all():  # one that is not a number is both
        raise InputError("calibration images have pixels that are not finite: look at the preprocessing")
    watch = Watch(walk(model))
    with whole_attention(), torch.inference_mode():
        for start, end in pairwise([0, *range(FIRST_BATCH, len(images), BATCH), len(images)]):
            report(start / len(images), f"reading layer inputs: image {start:,} of {len(images):,}")
            watch.batch = end - start
            with watch:
                model(images[start:end])
    return watch


def positions_for(columns: int) -> int:
    """How many positions of an image are looked at, for so many columns."""
    return min(max(round(POSITIONS_A_COLUMN * columns), MIN_POSITIONS), MAX_POSITIONS)


class Watch(Operations):
    """Sees every product with the weight of one of the ``layers`` (by address), whichever module or
    function makes it, and adds its inputs to ``sums``. Layers ``in_part`` had products with some of their
    rows, or with their weight the other way round (as a tied decoder's), which are not added: those see
    something else. Of those ``with_other_bias`` another is added than their own, such as one that their
    forward makes of it."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = {one.weight.data_ptr(): one for one in layers}
        self.copies: list[Tensor] = []
        self.sums: dict[str, Sums] = {}
        self.in_part: set[str] = set()
        self.with_other_bias: set[str] = set()
        self.generator = torch.Generator().manual_seed(0)
        self.batch = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        if operation in COPIES and (layer := self.layers.get(arguments[0].data_ptr())):
            return self._copied(layer, operation(*arguments, **(options or {})))
        known = operation is aten.linear.default or operation in CONVOLUTIONS + PADDED_BY_NAME
        if known and (layer := self.layers.get(arguments[1].data_ptr())):
            name, weight = layer.name, layer.weight
            added = arguments[2] if len(arguments) > 2 else None
            if added is not None and layer.bias is not None and _is_another(added, layer.bias):
                self.with_other_bias.add(name)
            if len(arguments[1]) < len(weight) or not _alike(arguments[1], weight):
                self.in_part.add(name)
            elif arguments[1][0].numel() <= MAX_COLUMNS:
                self.add(name, self._inputs(operation, *arguments))
        return operation(*arguments, **(options or {}))

    def __enter__(self) -> Self:
        for one in self.copies:
            self.layers.pop(one.data_ptr(), None)
        self.copies.clear()
        super().__enter__()
        return self

    def _copied(self, layer: Layer, weight: Tensor) -> Tensor:
        """Autocast multiplies with a copy in another type. It is kept for as long as a batch runs: at its
        address there is no other tensor then."""
        if weight.dtype != layer.weight.dtype:
            self.copies.append(weight)
            self.layers[weight.data_ptr()] = layer
        return weight

    def biased(self, model: nn.Module) -> set[str]:
        """Layers whose bias takes up what a change does to the mean: it is theirs alone in the ``model`` that
        ran, and added as it is."""
        own = {one.name for one in self.layers.values() if one.bias is not None}
        return own - with_shared_bias(model) - self.with_other_bias

    def moments(self) -> dict[str, Moments]:
        """By the name of each layer that ran, in the order of the layers."""
        known = self.sums.keys() - self.in_part
        names = dict.fromkeys(one.name for one in self.layers.values() if one.name in known)
        return {name: self.sums[name].moments() for name in names}

    def add(self, name: str, inputs: Tensor) -> None:
        """Some inputs ``[B, G, n, d]`` of a layer."""
        self.sums.setdefault(name, Sums()).add(inputs.float())

    def _inputs(self, operation: Any, inputs: Tensor, weight: Tensor, *others: Any) -> Tensor:
        """Unrolled inputs ``[B, G, n, d]`` of some output positions of each image."""
        if operation is aten.linear.default:
            return self._tokens(inputs)
        _, stride, padding, dilation, groups = (*others, *DEFAULTS[len(others) :])
        return self._patches(inputs, weight, stride, padding, dilation, groups)

    def _tokens(self, inputs: Tensor) -> Tensor:
        """Whatever the axes before the last are, one of them is the images; a vector has none."""
        inputs = inputs[None] if inputs.dim() == 1 else inputs
        columns = inputs.shape[-1]
        if (len(inputs) % self.batch == 0 and inputs.dim() != 2) or len(inputs) == self.batch:
            tokens = inputs.reshape(self.batch, -1, columns)
        elif inputs.numel() // columns % self.batch == 0:  # token by token, as inside torch's attention
            tokens = inputs.reshape(-1, self.batch, columns).transpose(0, 1)
        else:  # as many as the images have parts of some kind
            tokens = inputs.reshape(-1, 1, columns)
        return tokens[:, None, self.sample(tokens.shape[1], positions_for(columns))]

    def _patches(
        self, inputs: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        """Only what lies under the kernel at the drawn positions is read; nothing is padded or unrolled."""
        kernel, sizes = weight.shape[2:], inputs.shape[2:]
        dims = len(kernel)
        stride, dilation = _each(stride, dims), _each(dilation, dims)
        spread = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
        if padding == "same":
            pads = [(total // 2, total - total // 2) for total in spread]
        else:
            pads = [(one, one) for one in _each(0 if padding == "valid" else padding, dims)]
        counts = [
            (size + sum(pad) - extent - 1) // step + 1
            for size, pad, extent, step in zip(sizes, pads, spread, stride, strict=True)
        ]
        most = DEPTHWISE_POSITIONS if groups > 1 else positions_for(weight[0].numel())
        sampled = self.sample(torch.Size(counts).numel(), most)
        indices, inside = [], torch.ones(())
        for axis, position in enumerate(_unravelled(sampled, counts)):
            offsets = torch.arange(kernel[axis]) * dilation[axis] - pads[axis][0]
            shape = [len(sampled), *(1,) * axis, len(offsets), *(1,) * (dims - axis - 1)]
            index = (position[:, None] * stride[axis] + offsets).reshape(shape)
            inside = inside * ((index >= 0) & (index < sizes[axis]))
            indices.append(index.clamp(0, sizes[axis] - 1))
        patches = inputs.movedim(1, -1)[(slice(None), *indices)]  # [B, n, *kernel, C]
        if any(sum(pad) for pad in pads):
            patches = patches * inside.unsqueeze(-1)
        batch, positions, channels = len(patches), len(sampled), patches.shape[-1]
        split = patches.reshape(batch, positions, -1, groups, channels // groups)
        return split.permute(0, 3, 1, 4, 2).reshape(batch, groups, positions, -1)

    def sample(self, count: int, most: int) -> Tensor:
        """Which of ``count`` positions are looked at: all, or ``most`` drawn anew each time."""
        if count <= most:
            return torch.arange(count)
        return torch.randperm(count, generator=self.generator)[:most]


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether rows are the same where two views of some memory begin at the same place."""
    if one.shape[1:] == other.shape[1:] and one.stride() == other.stride():
        return True
    one, other = one.flatten(1), other.flatten(1)
    return one.shape[1] == other.shape[1] and one.stride() == other.stride()


def _is_another(added: Tensor, bias: Tensor) -> bool:
    """Whether what is ``added`` to a product lies elsewhere than a layer's own bias; autocast casts that."""
    elsewhere = added.untyped_storage().data_ptr() != bias.untyped_storage().data_ptr()
    return elsewhere and added.dtype == bias.dtype


COPIES = (aten.to.dtype, aten._to_copy.default)
"""How autocast makes them, in inference mode and without it."""
DEFAULTS: tuple[Any, ...] = (None, 1, 0, 1, 1)
"""Of a convolution: bias, stride, padding, dilation, groups."""


def _unravelled(flat: Tensor, counts: list[int]) -> list[Tensor]:
    """Where positions that are numbered row by row lie, axis by axis. (As ``torch.unravel_index``, which
    takes as long as reading what lies there.)"""
    places = []
    for count in reversed(counts):
        places.append(flat % count)
        flat = flat // count
    return places[::-1]


def _each(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


@dataclass(slots=True)
class Sums:
    """Running sums over images, about the mean of the first batch (so that little cancels in the end)."""

    images: int = 0
    shift: Tensor = field(default_factory=lambda: torch.zeros(0))
    first: Tensor = field(default_factory=lambda: torch.zeros(0))
    second: Tensor = field(default_factory=lambda: torch.zeros(0))
    squared_norms: float = 0.0

    def add(self, inputs: Tensor) -> None:
        """``inputs`` ``[B, G, n, d]``: ``n`` positions of each of ``B`` images."""
        _, groups, positions, columns = inputs.shape
        if not self.images:
            self.shift = inputs.mean((0, 2))
            self.first = torch.zeros(groups, columns)
            self.second = torch.zeros(groups, columns, columns)
        centred = inputs - self.shift[:, None]
        rows = centred.transpose(0, 1).reshape(groups, -1, columns).contiguous()
        self.images += len(inputs)
        self.first += rows.sum(1) / positions
        self.second.baddbmm_(rows.mT, rows, alpha=1 / positions)
        if columns >= NARROW:  # an image's own second moments have the norm of whichever product is smaller
            products = centred.mT @ centred if columns <= positions else centred @ centred.mT
            diagonal = centred.square().sum(2)
            norms = products.square().sum() - diagonal.square().sum()
            self.squared_norms += norms.item() / positions**2

    def moments(self) -> Moments:
        mean = self.first / self.images
        covariance = self.second / self.images - mean.unsqueeze(2) * mean.unsqueeze(1)
        variances = covariance.diagonal(dim1=1, dim2=2).clamp(min=0)
        if self.images < ENOUGH_IMAGES:  # as if one more of them had shown another mean, as far off as zero
            variances = variances + (mean + self.shift).square() / (self.images + 1)
        diagonal = torch.diag_embed(variances)
        off = covariance - covariance.diagonal(dim1=1, dim2=2).diag_embed()
        shrinkage = self._shrinkage(off.square().sum().item())
        return Moments(diagonal + (1 - shrinkage) * off, mean + self.shift, shrinkage)

    def _shrinkage(self, signal: float) -> float:
        """Sampling variance of the off-diagonal over its size."""
        if self.second.shape[1] < NARROW:
            return 0.0
        if self.images < 2 or signal == 0:
            return 1.0
        variance = (self.squared_norms / self.images - signal) / (self.images - 1)
        return min(1.0, max(0.0, variance / signal))


def damped(matrix: Tensor, share: float = 0.01) -> Tensor:
    """``matrix`` ``[G, d, d]`` plus ``share`` of its mean diagonal, or the identity where that is next to
    nothing: dead inputs and missing ranks do no harm."""
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1)
    ridge = torch.where(mean > MIN_DIAGONAL, share * mean, torch.ones_like(mean))
    return matrix + ridge[:, None, None] * torch.eye(matrix.shape[1])


def solved(matrices: Tensor, right: Tensor) -> Tensor:
    """``M^-1 r`` for each of the matrices ``[N, d, d]`` and what stands right of it ``[N, d, R]``."""
    if matrices.shape[1] <= SOLVED_TOGETHER:
        together: Tensor = torch.linalg.solve(matrices, right)
        return together
    return torch.stack([torch.linalg.solve(*pair) for pair in zip(matrices, right, strict=True)])


def quadratic(rows: Tensor, matrix: Tensor) -> Tensor:
    """``r M r`` of each row: rows ``[G, R, d]``, matrix ``[G, d, d]``, out ``[G, R]``."""
    return ((rows @ matrix) * rows).sum(2)
