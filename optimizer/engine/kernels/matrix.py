"""A matrix times planes of pixels: the steps of the dense path and of the sparse one, and what they read."""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from optimizer.engine.kernels import Kernels, Kind, Step
from optimizer.engine.kernels.memory import Arena


class Algorithm(NamedTuple):
    """How a matrix is multiplied: by every weight (``dense``), or by those that survive, for ``tile`` vectors
    of pixels at once: many read few weights, few read inputs from nearby.

    Rows are taken one by one (``rows``), or in pairs that load what they have in common once (``pairs``).
    Columns are taken together, or in blocks whose inputs a first-level cache holds (``blocks``), where they
    may be copied to (``gathered``).
    """

    form: Literal["dense", "rows", "pairs", "blocks", "gathered"]
    tile: int


DENSE = Algorithm("dense", 0)
ROWS = tuple(Algorithm("rows", tile) for tile in (8, 6, 4, 3, 2))
PAIRS = tuple(Algorithm("pairs", tile) for tile in (8, 6))
BLOCKS = (Algorithm("blocks", 8), Algorithm("blocks", 6))
GATHERED = (Algorithm("gathered", 6),)
ALGORITHMS = (DENSE, *ROWS, *PAIRS, *BLOCKS, *GATHERED)
A_FEW_ROWS = (DENSE, *ROWS, *PAIRS)
"""What suits a step that takes a few rows at a time: too few to read a block of columns again and again."""
ALWAYS_SPARSE, NEVER_SPARSE = 0.12, 0.75
"""Shares of weights that survive at which only one path is worth a try."""
RARELY_COMMON = 0.15
"""That share below which two rows have too few in common."""
LINE = 16
"""Floats in a cache line."""
REPEATS = 5
"""Runs of each algorithm; the shortest counts."""
TAP = np.dtype([("weight", np.float32), ("offset", np.int32)])
PAIR_TAP = np.dtype([("weights", np.float32, 2), ("offset", np.int32)])

Make = Callable[[], Step]


@dataclass(frozen=True)
class Product:
    """A matrix ``weight`` ``[rows, columns]`` times planes of pixels, those that lie ``offsets`` floats in;
    ``single``: of one pixel each.

    ``step`` has all but the weights. ``hold`` copies an array to where it lives as long as the steps, and
    gives its address.
    """

    step: Step
    weight: np.ndarray
    offsets: np.ndarray
    single: bool
    kernels: Kernels
    hold: Callable[[np.ndarray], int]

    @cached_property
    def kept(self) -> int:
        """The weights that survive."""
        return int(np.count_nonzero(self.weight))

    @property
    def share(self) -> float:
        """Of the weights, those that survive."""
        return self.kept / self.weight.size


def copy_of(step: Step) -> Step:
    """A step of its own, with the same pointers."""
    return Step.from_buffer_copy(step)


def algorithms(product: Product) -> dict[Algorithm, Make]:
    """What makes the step, for every algorithm that suits the weights. What they share is made once."""
    makes: dict[Algorithm, Make] = {DENSE: partial(_dense, product)} if product.share > ALWAYS_SPARSE else {}
    return makes | (_sparse(product) if product.share < NEVER_SPARSE else {})


def _sparse(product: Product) -> dict[Algorithm, Make]:
    if product.single:
        return {ROWS[0]: partial(_vector, product)}
    one_block = np.zeros(len(product.offsets), np.int64)
    rows = cache(lambda: _in_blocks(product, Kind.SPARSE, one_block, product.offsets))
    makes: dict[Algorithm, Make] = dict.fromkeys(ROWS, rows)
    if product.share > RARELY_COMMON:
        makes |= dict.fromkeys(PAIRS, cache(lambda: _in_pairs(product)))
    for algorithm in BLOCKS:
        blocks = column_blocks(
            product.offsets, algorithm.tile * product.kernels.width, product.kernels.nearby
        )
        if blocks[-1]:
            makes[algorithm] = partial(_in_blocks, product, Kind.SPARSE_BLOCKS, blocks, product.offsets)
    if np.any(product.offsets % LINE):  # else copies are not read faster
        makes |= {algorithm: partial(_gathered, product, algorithm.tile) for algorithm in GATHERED}
    return {algorithm: partial(_of_tile, make, algorithm.tile) for algorithm, make in makes.items()}


def _of_tile(make: Make, tile: int) -> Step:
    step = copy_of(make())
    step.tile = tile
    return step


def _dense(product: Product) -> Step:
    """Over every weight."""
    step, (rows, columns) = copy_of(product.step), product.weight.shape
    together = 4 * product.kernels.width if product.single else product.kernels.dense_rows
    blocks = np.zeros((-(-rows // together) * together, columns), np.float32)
    blocks[:rows] = product.weight
    step.kind, step.taps_count = (Kind.DENSE_VECTOR if product.single else Kind.DENSE), columns
    step.weights = product.hold(blocks.reshape(-1, together, columns).transpose(0, 2, 1))
    step.offsets = product.hold(product.offsets.astype(np.int32))
    return step


def _vector(product: Product) -> Step:
    """Over a single pixel: rows are dot products."""
    step, hold = copy_of(product.step), product.hold
    order = _most_first(np.count_nonzero(product.weight, axis=1))
    taps, starts = fours(product.weight[order], product.offsets)
    step.kind = Kind.SPARSE_VECTOR
    step.taps, step.starts, step.order = hold(taps), hold(starts), hold(order.astype(np.int32))
    return step


def _in_pairs(product: Product) -> Step:
    step, hold, (rows, columns) = copy_of(product.step), product.hold, product.weight.shape
    order = _most_first(np.count_nonzero(product.weight, axis=1))
    odd = np.zeros((rows % 2, columns), np.float32)
    pairs = np.concatenate([product.weight[order], odd]).reshape(-1, 2, columns)
    both = (pairs != 0).all(axis=1)
    pair, column = np.nonzero(both)
    common = np.empty(len(pair), PAIR_TAP)
    common["weights"], common["offset"] = pairs[pair, :, column], product.offsets[column]
    alone = np.where(both[:, None], 0, pairs).reshape(-1, columns)
    row, place = np.nonzero(alone)
    step.kind, step.order = Kind.SPARSE_PAIRS, hold(order.astype(np.int32))
    step.weights, step.columns = hold(common), hold(_starts(np.bincount(pair, minlength=len(pairs))))
    step.taps = hold(_taps(alone[row, place], product.offsets[place]))
    step.starts = hold(_starts(np.bincount(row, minlength=len(alone))))
    return step


def _in_blocks(product: Product, kind: Kind, blocks: np.ndarray, tap_offsets: np.ndarray) -> Step:
    """``tap_offsets``: where taps find what a column reads, be it a copy."""
    step, hold = copy_of(product.step), product.hold
    taps, starts, order = survivors(product.weight, tap_offsets, blocks, product.kernels.ordered_rows)
    step.kind, step.blocks = kind, len(order)
    step.taps, step.starts, step.order = hold(taps), hold(starts), hold(order)
    step.columns = hold(np.searchsorted(blocks, np.arange(len(order) + 1)).astype(np.int32))
    step.offsets = hold(product.offsets.astype(np.int32))
    if kind == Kind.SPARSE_BLOCKS:
        step.rows_first = 0
    return step


def _gathered(product: Product, tile: int) -> Step:
    """In blocks whose inputs are copied, a column's ``pitch`` floats behind that of the one before."""
    pitch = tile * product.kernels.width + (LINE if product.step.tail else 0)
    number = np.arange(len(product.offsets))
    blocks = number // (product.kernels.nearby // (4 * pitch))
    copies = (number - np.searchsorted(blocks, blocks)) * pitch
    step = _in_blocks(product, Kind.SPARSE_BLOCKS, blocks, copies)
    step.gathered = 1
    return step


def _most_first(counts: np.ndarray) -> np.ndarray:
    """The order of rows: those that follow each other then loop equally often, which a processor guesses."""
    return np.argsort(-counts, kind="stable")


def _taps(weights: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    taps = np.empty(len(weights), TAP)
    taps["weight"], taps["offset"] = weights, offsets
    return taps


def column_blocks(offsets: np.ndarray, pixels: int, nearby: int) -> np.ndarray:
    """The block of each column, from 0 on: the lines of a cache that the columns of one block read for so
    many pixels fit into ``nearby`` bytes. ``offsets`` count floats."""
    reads = np.unique(np.append(np.arange(0, pixels, LINE), pixels - 1))
    lines = (offsets[:, None] + reads) // LINE
    first_reader = np.unique(lines, return_index=True)[1] // len(reads)
    so_far = np.bincount(first_reader, minlength=len(offsets)).cumsum()
    return (so_far - 1) // (nearby // (4 * LINE))


def survivors(
    weight: np.ndarray, offsets: np.ndarray, blocks: np.ndarray, group: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights ``[rows, columns]`` that are not 0, each with its offset, one block of columns after
    another and in each one row after another; where each row of each block begins; and which it is,
    ``[blocks, rows]``.

    Rows with the most weights come first, and within each ``group`` those with the most in this block.
    """
    rows, columns = np.nonzero(weight)
    where = blocks[columns]
    shape = int(blocks[-1]) + 1, len(weight)
    counts = np.bincount(where * len(weight) + rows, minlength=math.prod(shape)).reshape(shape)
    rank = np.argsort(_most_first(counts.sum(axis=0)))
    order = np.lexsort((-counts, np.broadcast_to(rank // group, shape)), axis=1)
    place = np.argsort(order, axis=1)
    taken = np.argsort(where * len(weight) + place[where, rows], kind="stable")
    taps = _taps(weight[rows, columns][taken], offsets[columns][taken])
    starts = _starts(np.take_along_axis(counts, order, axis=1).ravel())
    return taps, starts, order.astype(np.int32)


def fours(weight: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights ``[rows, taps]`` that are not 0, each with its offset, in groups of four, each row's last
    filled up with weights of 0; and where each row begins."""
    rows, places = np.nonzero(weight)
    counts = np.bincount(rows, minlength=len(weight))
    starts = _starts(-(-counts // 4))
    position = np.arange(len(rows)) - _starts(counts)[rows] + 4 * starts[rows]
    taps = np.zeros(int(starts[-1]), [("weights", np.float32, 4), ("offsets", np.int32, 4)])
    taps["weights"][position // 4, position % 4] = weight[rows, places]
    taps["offsets"][position // 4, position % 4] = offsets[places]
    return taps, starts


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def in_vectors(pixels: int, lanes: int) -> tuple[int, int]:
    """How many vectors, the last perhaps not full, and how many pixels behind them that are not worth one: 0
    to 4."""
    behind = pixels % lanes
    tail = behind if behind <= 4 and pixels > lanes else 0
    return -(-(pixels - tail) // lanes), tail


def chain(
    weights: Sequence[Tensor], inputs: np.ndarray, kernels: Kernels, threads: int
) -> Callable[[], np.ndarray]:
    """A call that takes ``inputs`` ``[columns, pixels]`` or ``[columns]`` through the sparse path of one
    matrix ``[rows, columns]`` after the other, each on its fastest tile; it gives ``[rows, pixels]``."""
    pixels = inputs.shape[1] if inputs.ndim == 2 else 1
    vectors, tail = in_vectors(pixels, kernels.width)
    plane = 1 if pixels == 1 else 16 * (-(-(vectors + (tail > 0)) * kernels.width // 16) | 1)
    arena = Arena()

    def planes(channels: int) -> np.ndarray:
        return arena.zeros(channels * plane + 256).numpy()

    def pixels_of(values: np.ndarray, channels: int) -> np.ndarray:
        return values[: channels * plane].reshape(channels, plane)[:, :pixels]

    values = planes(len(inputs))
    pixels_of(values, len(inputs))[:] = inputs.reshape(len(inputs), pixels)
    steps: list[dict[Algorithm, Step]] = []
    for weight in weights:
        rows, columns = weight.shape
        output = planes(rows)
        step = Step(
            input=values.ctypes.data,
            output=output.ctypes.data,
            bias=arena.hold(np.zeros(rows, np.float32)),
            rows=rows,
            vectors=vectors,
            tail=tail,
            rows_first=int(weight.count_nonzero()) > columns * plane,
            output_stride=plane,
            low=-np.inf,
            high=np.inf,
        )
        offsets = np.arange(columns) * plane
        product = Product(step, weight.detach().numpy(), offsets, pixels == 1, kernels, arena.hold)
        steps.append({algorithm: make() for algorithm, make in _sparse(product).items()})
        values = output
    result = pixels_of(values, len(weights[-1]))
    return partial(_run, kernels, _fastest(steps, kernels, threads), threads, arena, result)


def _run(
    kernels: Kernels, steps: ctypes.Array[Step], threads: int, arena: Arena, result: np.ndarray
) -> np.ndarray:
    """``arena`` is what the steps point into: it must live as long."""
    kernels.functions.run(steps, len(steps), threads)
    return result


def _fastest(steps: Sequence[dict[Algorithm, Step]], kernels: Kernels, threads: int) -> ctypes.Array[Step]:
    taken = {
        algorithm: kernels.time([algorithms[algorithm] for algorithms in steps], threads, REPEATS)
        for algorithm in set.intersection(*map(set, steps))
    }
    best = [min(taken, key=lambda algorithm: taken[algorithm][index]) for index in range(len(steps))]
    return (Step * len(steps))(
        *(algorithms[algorithm] for algorithms, algorithm in zip(steps, best, strict=True))
    )
