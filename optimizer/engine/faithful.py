"""Whether what an engine built follows the weights that are put into it, and answers as torch does.

A graph is converted once and then given each recipe's weights. What was worked out from a layer's weight
while it was converted (twice the weight, a standardised one) stays as it was, and every accuracy would be
wrong without anybody seeing it. And whatever an engine does, it may misread a network of somebody's own: a
graph that was traced goes the way that one image went.
"""

from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from optimizer.compression.apply import CompressedModel, compress
from optimizer.engine import engine_named
from optimizer.engine.base import Array, Build, Runner, filled, scoring_batch
from optimizer.engine.exporting import TORCH_ALONE
from optimizer.errors import WorkError
from optimizer.methods.engines import REFERENCE_ENGINE, engine_info, use_another
from optimizer.model.examples import examples, noise
from optimizer.model.unused import values_decide
from optimizer.recipe import PruneSpec, Recipe
from optimizer.system.threads import thread_count

OTHER_WEIGHTS = Recipe(PruneSpec(sparsity=0.5, allocation="uniform"))
IMAGES = 2
TOLERANCE = 0.01
"""Of what other weights change in the answers, and of the answers, how much may be missing."""
ROUNDING = 1e-4
"""Of the answers: what sums in another order come to."""


@torch.inference_mode()
def check_follows(build: Build, model: nn.Module, input_shape: tuple[int, ...], engine: str) -> None:
    """Raises WorkError where a runner of other weights does not answer as ``model`` with these does, which
    says whether one of its own does. As many images as are scored at once, of which few differ: a kernel may
    be wrong for a large batch alone."""
    changed = compress(model, OTHER_WEIGHTS)
    images = examples(model, input_shape, IMAGES)
    batch = filled(images.numpy(), max(IMAGES, scoring_batch(input_shape)))
    before, after = (filled(one(images).numpy(), len(batch)) for one in (model, changed.module))
    found = build(changed, images, threads=1, batch=1).score(batch)
    allowed = TOLERANCE * np.linalg.norm(after - before) + ROUNDING * np.linalg.norm(after)
    if np.linalg.norm(found - after) > allowed:
        own = build(compress(model, Recipe()), images, threads=1, batch=1)
        check_answers(model, batch, own.score(batch), engine)
        raise WorkError(
            f"{engine_info(engine).label} can't take other weights for this model: it multiplies with values "
            "that are worked out from a layer's weight, and they would stay as they are. "
            f"{use_another(engine)}"
        )


def prepare(engine: str, model: nn.Module, input_shape: tuple[int, ...]) -> Build:
    """What an engine makes of a model. Of others than torch the first answers in float32 are compared with
    torch's: the uncompressed model's, and those of the first recipe. Those of a model that looks at values
    are all compared, image by image: a graph holds the operations of one image, and others may need other
    ones. Of recipes that round activations, or compute in another precision, the answers' shape is compared.

    Raises InputError for an unknown engine, UnavailableError where it can't run; ``score`` of a runner raises
    WorkError where the answers differ.
    """
    build = engine_named(engine).prepare(model, input_shape)
    if engine == REFERENCE_ENGINE:
        return build
    agreed: set[bool] = set()
    decide = cache(lambda: values_decide(model, input_shape))
    shape = cache(lambda: _answer_shape(model, input_shape))

    def compared(compressed: CompressedModel, calibration: Tensor, *, threads: int, batch: int) -> Runner:
        runner = build(compressed, calibration, threads=threads, batch=batch)
        recipe = compressed.recipe

        def score(images: Array) -> Array:
            answers = runner.score(images)
            if not recipe.quantize.computes_in_float32:
                _check_shape(answers, (len(images), *shape()), engine)
            elif decide():
                for one in (slice(place, place + 1) for place in range(len(images))):
                    check_answers(compressed.module, images[one], answers[one], engine, TORCH_ALONE)
            elif recipe.identity not in agreed:
                check_answers(compressed.module, images, answers, engine)
                agreed.add(recipe.identity)
            return answers

        return replace(runner, score=score)

    return compared


@torch.inference_mode()
def check_answers(module: nn.Module, images: Array, answers: Array, engine: str, advice: str = "") -> None:
    """Raises WorkError with ``advice`` where ``answers`` for the first and the last of ``images`` are not
    ``module``'s."""
    ends = [0, -1] if len(images) > 1 else [0]
    with thread_count(1):  # two images: more threads would wait for each other
        expected = tree_leaves(module(torch.from_numpy(images[ends])))[0].numpy()
    if not _agree(answers[ends], expected):
        raise WorkError(
            f"on {engine_info(engine).label} this model does not give torch's answers, so its accuracy would "
            f"be that of another network. {advice or use_another(engine)} (Nor does a model that draws "
            "random numbers, or whose answer to an image depends on those beside it.)"
        )


@torch.inference_mode()
def _answer_shape(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of one input's."""
    return tuple(tree_leaves(model(examples(model, input_shape)))[0].shape[1:])


def _check_shape(answers: Array, expected: tuple[int, ...], engine: str) -> None:
    if answers.shape != expected:
        raise WorkError(
            f"on {engine_info(engine).label} this model's answers after this recipe have shape "
            f"{[*answers.shape]}, not torch's {[*expected]}, so its accuracy can't be told. "
            f"{use_another(engine)}"
        )


@torch.inference_mode()
def follow_other_paths(build: Build, model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """How many inputs that may need other operations than the one that a graph was made with are answered as
    ``model`` answers them, of how many: those that it is tried on, random ones, and the negatives of all.
    Those that ``model`` fails on do not count."""
    runner = build(compress(model, Recipe()), examples(model, input_shape), threads=1, batch=1)
    tried = torch.cat([examples(model, input_shape, IMAGES), noise(model, input_shape, IMAGES)])
    agreed = total = 0
    for image in torch.cat([tried, -tried]).split(1):
        try:
            with thread_count(1):
                expected = tree_leaves(model(image.clone()))[0].numpy()
        except Exception:  # the model's own code: anything may come out of it
            continue
        total += 1
        with suppress(Exception):  # the engine may need the other shapes that another path has
            agreed += _agree(runner.infer(image.numpy()), expected)
    return agreed, total


def _agree(found: Array, expected: Array) -> bool:
    finite = np.isfinite(expected)
    if found.shape != expected.shape or not np.array_equal(np.isfinite(found), finite):
        return False
    found, expected = found[finite], expected[finite]
    return bool(np.linalg.norm(found - expected) <= TOLERANCE * np.linalg.norm(expected))
