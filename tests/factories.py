"""Results as experiments give them, with seeded synthetic outcomes and times."""

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import (
    Accuracy,
    DataSpec,
    Environment,
    Execution,
    Inspection,
    Latency,
    LayerExecution,
    LayerFacts,
    Request,
    Result,
    Settings,
    Size,
    Visits,
    digest,
)
from optimizer.system.environment import environment
from optimizer.tasks import accuracy_of

LAYERS = {
    "0.0.weight": ((16, 1, 3, 3), 784),
    "3.first.0.weight": ((32, 16, 3, 3), 196),
    "3.second.0.weight": ((32, 32, 3, 3), 196),
    "4.first.0.weight": ((64, 32, 3, 3), 49),
    "4.second.0.weight": ((64, 64, 3, 3), 49),
    "5.first.0.weight": ((128, 64, 3, 3), 16),
    "5.second.0.weight": ((128, 128, 3, 3), 16),
    "6.first.0.weight": ((128, 128, 3, 3), 16),
    "6.second.0.weight": ((128, 128, 3, 3), 16),
    "9.weight": ((10, 128), 1),
}
"""Shape and multiplications a weight, as in the bundled residual network."""

OTHER_MACHINE = Environment(
    cpu="Another CPU <b>@ 2.0 GHz</b>",
    instruction_sets=("avx2",),
    cores=64,
    governor=None,
    memory_bytes=256 * 10**9,
    system="Linux",
    python="3.12.1",
    libraries={"openvino": "2026.4.0"},
)
SERVER = replace(OTHER_MACHINE, cpu="A fast CPU", cores=2 * OTHER_MACHINE.cores)


def recipe(
    sparsity: float = 0.0, weight_bits: int = 32, activation_bits: int = 32, **prune: object
) -> Recipe:
    return Recipe(
        PruneSpec(sparsity=sparsity or None, **prune),  # type: ignore[arg-type]
        QuantizeSpec(weight_bits=weight_bits, activation_bits=activation_bits),
    )


def loss_points(made: Recipe) -> float:
    """A plausible accuracy loss: none, then a cliff."""
    sparsity, bits = made.prune.sparsity or 0.0, made.quantize.weight_bits
    pruned = 60 / (1 + np.exp(-18 * (sparsity - 0.86))) + 0.8 * sparsity
    rounded = 0.0 if bits > 8 else 70 * 4.0 ** -(bits - 1.2)
    return float(min(83, pruned + rounded + 0.15 * (made.quantize.activation_bits == 8)))


@cache
def _difficulty(images: int) -> np.ndarray:
    return np.random.default_rng(7).permutation(images) / images


def outcomes(made: Recipe, images: int) -> np.ndarray:
    """Boolean ``[images]``; a lossier recipe gets harder images wrong, with some flips both ways."""
    difficulty = _difficulty(images)
    if made.identity:
        return difficulty < 0.934
    noise = np.random.default_rng(int(digest(made)[:8], 16)).normal(0, 0.004, images)
    return difficulty + noise < 0.934 - loss_points(made) / 100


def times_ns(center_ns: float, rounds: int, random: np.random.Generator, spread: float = 0.02) -> np.ndarray:
    """Skewed like a real clock: a floor, a little jitter, and a few disturbed calls."""
    jitter = random.gamma(2.0, spread / 2, rounds)
    disturbed = (random.random(rounds) < 0.02) * random.exponential(0.6, rounds)
    return np.round(center_ns * (0.98 + jitter + disturbed)).astype(int)


def visits(times_ns: ArrayLike) -> Visits:
    """A visit for each time: one call that settles, a quarter slower, and one that is timed."""
    return Visits.of([([time * 5 // 4], [time]) for time in np.asarray(times_ns).astype(int).tolist()])


def make_latency(
    ratio: float = 1.0,
    *,
    timed: Recipe | None = None,
    rounds: int = 200,
    center_ns: float = 610_000,
    quick: bool = False,
    noisy: bool = False,
    seed: int = 0,
) -> Latency:
    random = np.random.default_rng([seed, round(1000 * ratio)])
    drift = np.linspace(1, 1.4, rounds) if noisy else np.ones(rounds)
    baseline = [times_ns(center_ns, rounds, random) * drift for _ in range(2)]
    variant = times_ns(center_ns * ratio, rounds, random) * drift
    return Latency(
        signature=digest([ratio, seed, quick]),
        recipe=timed or Recipe(),
        baseline=(visits(baseline[0]), visits(baseline[1])),
        variant=visits(variant),
        batch=1,
        threads=2,
        quick=quick,
        seed=seed,
        warmup_calls=10,
        stolen_share=0.0,
        attempts=2 if noisy else 1,
        processes=(rounds,),
    )


def make_inspection(made: Recipe, memory_bytes: int | None = 9_400_000) -> Inspection:
    kept = 1 - (made.prune.sparsity or 0.0)
    bits = made.quantize.weight_bits
    layers = tuple(
        LayerFacts(
            name=name,
            kind="convolution" if len(shape) == 4 else "linear",
            shape=shape,
            elements=int(np.prod(shape)),
            nonzero=round(int(np.prod(shape)) * kept),
            threshold=0.031 if made.prune.active else -1.0,
            bits=bits,
            macs=int(np.prod(shape)) * multiplications,
        )
        for name, (shape, multiplications) in LAYERS.items()
    )
    elements = sum(layer.elements for layer in layers)
    nonzero = sum(layer.nonzero for layer in layers)
    stored_bytes = {32: 4, 16: 2}.get(bits, 1)
    return Inspection(
        layers,
        Size(
            file_bytes=elements * stored_bytes + 6_120,
            packed_bytes=min(elements * bits, elements + nonzero * bits) // 8 + 4_240,
            compressed_bytes=round(0.92 * min(elements * stored_bytes, 0.2 * elements + nonzero * bits / 8))
            + 5_000,
            coding="bitmap" if made.prune.active else "dense",
            elements=elements,
            nonzero=nonzero,
            memory_bytes=memory_bytes,
        ),
        Size(
            4 * elements + 6_120,
            4 * elements + 4_240,
            4 * elements - 90_000,
            "dense",
            elements,
            elements,
            memory_bytes,
        ),
    )


def make_result(
    made: Recipe | None = None,
    *,
    model: str = "fashion-resnet",
    engine: str = "openvino",
    images: int = 10_000,
    path: str | None = None,
    labelled: bool = True,
    quick: bool = False,
    noisy: bool = False,
    rounds: int = 200,
    ratio: float | None = None,
    other_machine: bool = False,
    notes: tuple[str, ...] = (),
    seed: int = 0,
) -> Result:
    """One result. Dense float32 kernels run at the baseline's speed, int8 ones in 0.45 of its time."""
    made = made or Recipe()
    rounded = made.quantize.activation_bits == 8
    ratio = ratio if ratio is not None else (0.45 if rounded else 1.0)
    request = Request(model, made, engine, DataSpec(path=path), Settings(quick=quick, seed=seed))
    correct, before = outcomes(made, images), outcomes(Recipe(), images)
    reference = "labels" if labelled else "baseline"
    if not labelled:
        correct, before = correct == before, np.ones(images, bool)
    precision = "i8" if rounded else "f32"
    simulated = made.quantize.weight_bits < (8 if rounded else 32)
    words = f"{made.quantize.weight_bits}-bit weights: the values are exact, the kernels are {precision}"
    return Result(
        key=digest([request, noisy, other_machine, ratio, notes, images, labelled, rounds]),
        request=request,
        environment=OTHER_MACHINE if other_machine else environment(),
        created="2026-11-02T10:00:00+00:00",
        inspection=make_inspection(made, None if quick else 9_400_000),
        accuracy=Accuracy.of(
            correct,
            reference=reference,
            agreement=int((correct == before).sum()),
            sqnr_db=None if made.identity else 60.0 - loss_points(made),
            kl=0.0 if made.identity else 0.001 + loss_points(made) / 50,
        ),
        baseline_accuracy=Accuracy.of(before, reference=reference, agreement=images, sqnr_db=None, kl=0.0),
        latency=make_latency(
            ratio,
            timed=recipe(0, 8, 8) if rounded else Recipe(),
            rounds=rounds,
            quick=quick,
            noisy=noisy,
            seed=seed,
        ),
        execution=Execution(
            tuple(LayerExecution(name, precision, "brgconv_avx512") for name in LAYERS),
            (words,) if simulated else (),
        ),
        notes=notes,
    )


def make_sweep(
    sparsities: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9),
    bits: tuple[int, ...] = (32, 8, 4, 3),
    int8: bool = True,
    **options: object,
) -> list[Result]:
    """The starter sweep, and with ``int8`` one more line with 8-bit activations, on int8 kernels."""
    recipes = [recipe(sparsity, width) for width in bits for sparsity in sparsities]
    if int8:
        recipes += [recipe(sparsity, 8, 8) for sparsity in sparsities]
    return [make_result(made, **options) for made in recipes]  # type: ignore[arg-type]


def remade(result: Result, **changes: object) -> Result:
    """The same with other fields, and a key of its own."""
    return replace(result, **({"key": digest([result.key, changes])} | changes))  # type: ignore[arg-type]


PARTS = (("boxes", (4, 3)), ("scores", (5,)))
BEFORE, NOISE = np.random.default_rng(0).normal(size=(2, 50, 1, 17)).astype(np.float32)


def after(size: float) -> np.ndarray:
    """A detector's outputs with noise ``size`` times as large as they are, in the first output alone."""
    change = size * NOISE
    change[..., 12:] = 0
    return BEFORE + change


def detector(made: Recipe, size: float, **options: object) -> Result:
    """A result of a network that is no classifier."""
    result = make_result(made, **options)  # type: ignore[arg-type]
    accuracy, reference = (accuracy_of(one, BEFORE, None, "", PARTS) for one in (after(size), BEFORE))
    return remade(result, accuracy=accuracy, baseline_accuracy=reference)
