"""Many images through a model that OpenVINO has compiled."""

from collections import deque
from typing import Any

import numpy as np

from optimizer.engine.base import Array, filled
from optimizer.progress import stop_if_cancelled


def run_batches(compiled: Any, batch: int, images: Array) -> Array:
    """The output ``[N, ...]`` of a compiled model for images ``[N, C, H, W]``, in batches of the size that it
    was compiled for, over every stream; the last batch is filled up and cut.

    Requests are waited for in turn, without callbacks: a callback needs the interpreter's lock, which a
    thread that lets go of the compiled model holds while it waits for the callback's thread. Raises Cancelled
    where it is not wanted any more, once no request reads images.
    """
    streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    free = [compiled.create_infer_request() for _ in range(streams)]
    outputs = np.empty((len(images), *compiled.output(0).shape[1:]), np.float32)
    running: deque[tuple[Any, int, Array]] = deque()  # with what each reads: it is not copied

    def finish_oldest() -> Any:
        request, start, _ = running.popleft()
        request.wait()
        part = outputs[start : start + batch]
        part[:] = request.get_output_tensor().data[: len(part)]
        return request

    try:
        for start in range(0, len(images), batch):
            stop_if_cancelled()
            chunk = filled(images[start : start + batch], batch)
            request = free.pop() if free else finish_oldest()
            request.start_async([chunk], share_inputs=True)
            running.append((request, start, chunk))
    finally:
        while running:
            finish_oldest()
    return outputs
