"""A matrix times planes of pixels: the steps of the dense path and of the sparse one, and what they read."""

import ctypes
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from optimizer.kernels import Kernels, Kind, Step
from optimizer.kernels.memory import Arena

TILES = (8, 6, 4, 3, 2)
"""Vectors of pixels that the sparse path does at once: many read few weights, few read inputs from nearby."""
DENSE, ROWS, PAIRED = 0, -1, 100
"""Ways that a matrix may take go by a number: the sparse path by its tile, rows in pairs by that and 100,
more rows at once by ROWS, the dense path by DENSE."""
WAYS = (DENSE, *TILES, *(PAIRED + tile for tile in TILES[:4]), ROWS)
RARELY_COMMON = 0.15
"""Share of the weights that survive below which two rows have too few in common."""
REPEATS = 2
TAP = np.dtype([("weight", np.float32), ("offset", np.int32)])

Hold = Callable[[np.ndarray], int]
"""Copies an array to where it lives as long as the steps, and gives its address."""


def copy_of(step: Step) -> Step:
    """A step of its own, with the same pointers."""
    return Step.from_buffer_copy(step)


def dense(
    step: Step, weight: np.ndarray, offsets: np.ndarray, single: bool, kernels: Kernels, hold: Hold
) -> Step:
    """``step`` over every weight ``[rows, taps]``, whose inputs lie at ``offsets``; ``single``: one pixel."""
    way, (rows, taps) = copy_of(step), weight.shape
    together = 4 * kernels.width if single else kernels.dense_rows
    blocks = np.zeros((-(-rows // together) * together, taps), np.float32)
    blocks[:rows] = weight
    way.kind, way.taps_count = (Kind.DENSE_VECTOR if single else Kind.DENSE), taps
    way.weights = hold(blocks.reshape(-1, together, taps).transpose(0, 2, 1))
    way.offsets = hold(offsets.astype(np.int32))
    return way


def sparse(
    step: Step, weight: np.ndarray, offsets: np.ndarray, single: bool, kernels: Kernels, hold: Hold
) -> dict[int, Step]:
    """``step`` over the weights that are not 0, by way.

    Rows with the most weights come first: those that follow each other then loop equally often, which is
    what a processor guesses.
    """
    order = np.argsort(-np.count_nonzero(weight, axis=1), kind="stable")
    taps, starts = (fours if single else survivors)(weight[order], offsets)
    ways = {tile: copy_of(step) for tile in (TILES[:1] if single else TILES)}
    addresses = hold(taps), hold(starts), hold(order.astype(np.int32))
    for tile, way in ways.items():
        way.kind, way.tile = (Kind.SPARSE_VECTOR if single else Kind.SPARSE), tile
        way.taps, way.starts, way.order = addresses
    if not single:
        ways |= _paired(step, weight[order], offsets, addresses[2], hold)
        taps, starts = side_by_side(weight[order], offsets, kernels.dense_rows)
        way = ways[ROWS] = copy_of(step)
        way.kind, way.taps, way.starts, way.order = Kind.SPARSE_ROWS, hold(taps), hold(starts), addresses[2]
    return ways


def _paired(step: Step, weight: np.ndarray, offsets: np.ndarray, order: int, hold: Hold) -> dict[int, Step]:
    """The same for two rows at once, which load what they have in common once."""
    if np.count_nonzero(weight) < RARELY_COMMON * weight.size:
        return {}
    odd = np.zeros((len(weight) % 2, weight.shape[1]), np.float32)
    pairs = np.concatenate([weight, odd]).reshape(-1, 2, weight.shape[1])
    both = (pairs != 0).all(axis=1)
    common, begins = _common(pairs, both, offsets)
    alone = np.where(both[:, None], 0, pairs).reshape(-1, weight.shape[1])
    addresses = hold(common), hold(begins), *map(hold, survivors(alone, offsets)), order
    ways = {}
    for key in WAYS:
        if key > PAIRED:
            way = ways[key] = copy_of(step)
            way.kind, way.tile = Kind.SPARSE_PAIRS, key - PAIRED
            way.weights, way.offsets, way.taps, way.starts, way.order = addresses
    return ways


def _common(pairs: np.ndarray, both: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    which, places = np.nonzero(both)
    taps = np.empty(len(which), [("weights", np.float32, 2), ("offset", np.int32)])
    taps["weights"], taps["offset"] = pairs[which, :, places], offsets[places]
    return taps, _starts(np.bincount(which, minlength=len(pairs)))


def survivors(weight: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights ``[rows, taps]`` that are not 0, each with its offset, and where each row begins."""
    rows, places = np.nonzero(weight)
    taps = np.empty(len(rows), TAP)
    taps["weight"], taps["offset"] = weight[rows, places], offsets[places]
    return taps, _starts(np.bincount(rows, minlength=len(weight)))


def side_by_side(weight: np.ndarray, offsets: np.ndarray, together: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for so many rows at once: the first tap of each, then the second, up to the longest of them.
    Shorter rows are filled up with weights of 0. (The format SELL-C-sigma of Kreutzer et al. 2014.)"""
    rows, places = np.nonzero(weight)
    counts = np.bincount(rows, minlength=-(-len(weight) // together) * together)
    starts = _starts(counts.reshape(-1, together).max(axis=1))
    position = np.arange(len(rows)) - _starts(counts)[rows] + starts[rows // together]
    taps = np.zeros((int(starts[-1]), together), TAP)
    taps["weight"][position, rows % together] = weight[rows, places]
    taps["offset"][position, rows % together] = offsets[places]
    return taps, starts


def fours(weight: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in groups of four, each row's last filled up with weights of 0."""
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
    steps: list[dict[int, Step]] = []
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
        steps.append(sparse(step, weight.detach().numpy(), offsets, pixels == 1, kernels, arena.hold))
        values = output
    result = pixels_of(values, len(weights[-1]))
    return partial(_run, kernels, _fastest(steps, kernels, threads), threads, arena, result)


def _run(
    kernels: Kernels, steps: ctypes.Array[Step], threads: int, arena: Arena, result: np.ndarray
) -> np.ndarray:
    """``arena`` is what the steps point into: it must live as long."""
    kernels.functions.run(steps, len(steps), threads)
    return result


def _fastest(steps: Sequence[dict[int, Step]], kernels: Kernels, threads: int) -> ctypes.Array[Step]:
    taken: dict[int, list[int]] = {}
    for way in set.intersection(*map(set, steps)):
        array = (Step * len(steps))(*(ways[way] for ways in steps))
        shortest = (ctypes.c_int64 * len(steps))()
        kernels.functions.time_steps(array, len(steps), threads, REPEATS, shortest)
        taken[way] = list(shortest)
    best = [min(taken, key=lambda way: taken[way][index]) for index in range(len(steps))]
    return (Step * len(steps))(*(ways[way] for ways, way in zip(steps, best, strict=True)))
