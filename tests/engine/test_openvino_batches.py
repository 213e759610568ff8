"""Many images through a compiled model: all of them, in order, and no more than are wanted."""

from typing import Any

import numpy as np
import pytest
import torch
from small_models import SMALL_SHAPE, Small

from optimizer.engine.openvino_batches import run_batches
from optimizer.engine.openvino_core import compile_graph, core
from optimizer.engine.openvino_graph import convert
from optimizer.model.folding import fold_batch_norm
from optimizer.progress import Asker, Cancelled, asked_by

BATCH, IMAGES = 4, 403


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((IMAGES, *SMALL_SHAPE)).astype(np.float32)


def test_what_is_not_wanted_any_more_ends_between_two_batches(small: Small, images: np.ndarray) -> None:
    model = fold_batch_norm(small("cnn"))[0]
    graph = convert(model, SMALL_SHAPE).graph
    graph.reshape([BATCH, *SMALL_SHAPE])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled: Any = core().compile_model(graph, "CPU", settings)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with asked_by(Asker(lambda known: None, cancelled)), pytest.raises(Cancelled):
        run_batches(compiled, BATCH, images)
    assert asked == 6
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_batches(compiled, BATCH, images), expected, atol=1e-4)


def test_a_graph_that_is_not_wanted_any_more_is_not_compiled(small: Small) -> None:
    graph = convert(fold_batch_norm(small("cnn"), SMALL_SHAPE)[0], SMALL_SHAPE).graph
    with asked_by(Asker(lambda known: None, lambda: True)), pytest.raises(Cancelled):
        compile_graph(graph, [1, *SMALL_SHAPE], "LATENCY", 1, "f32")
