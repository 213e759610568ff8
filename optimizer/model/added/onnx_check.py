"""A converted network held against ONNX Runtime, on random images. Runs in the limited process."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from optimizer.errors import InputError
from optimizer.model.added.limits import lacks_memory
from optimizer.model.added.onnx_conversion import Converted, convert
from optimizer.model.examples import made_up_images

MAX_DIFFERENCE = 1e-3
"""Of an output's range, between the converted network's and ONNX Runtime's."""
MAX_ROUNDED = 0.02
"""The same where the file rounds activations: what lies between two codes may become either."""
MIN_RANGE = 1e-3
"""An output that varies by less is judged as if it varied by so much: float32 has no more digits there."""


def check(file: Path, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """The largest difference of an output, as a share of its range, and whether the network has to be given
    one image at a time. Raises InputError for a graph that can't be converted or run."""
    images = made_up_images(input_shape, 3)
    expected = _expected(file, images)
    with suppress(InputError, RuntimeError):
        network = convert(file, input_shape).eval()
        if (found := _apart(network, images, expected)) <= _allowed(network):
            return {"difference": found, "for_one": False}
    network = convert(file, input_shape, for_one=True).eval()
    found, allowed = _apart(network, images, expected), _allowed(network)
    if not found <= allowed:
        raise InputError(
            f"converted, its outputs differ from ONNX Runtime's by {found:.2g} of their range "
            f"({allowed:g} is allowed). `paretoscope compare` measures it as it is"
        )
    return {"difference": found, "for_one": True}


def _allowed(network: Converted) -> float:
    return MAX_ROUNDED if network.rounds else MAX_DIFFERENCE


def _apart(network: Converted, images: np.ndarray, expected: list[np.ndarray]) -> float:
    """Between what the converted network answers to all images, at once where it takes them so, and what is
    expected."""
    with torch.inference_mode():
        if network.for_one:
            rows = [network.network(torch.from_numpy(image[None])) for image in images]
            have = [torch.cat(several) for several in zip(*rows, strict=True)]
        else:
            have = list(network.network(torch.from_numpy(images)))
    return max(difference(one.float().numpy(), want) for one, want in zip(have, expected, strict=True))


def difference(have: np.ndarray, want: np.ndarray) -> float:
    """Of two outputs, as a share of the range of the second."""
    if have.shape != want.shape:
        return float("inf")
    if not (np.isfinite(have).all() and np.isfinite(want).all()):
        return float("inf")
    return float(np.abs(have - want).max() / max(float(np.ptp(want)), MIN_RANGE))


def _expected(file: Path, images: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime answers, an image at a time on one thread. Raises InputError where it can't."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        if isinstance(given.shape[0], int) and given.shape[0] > 1:
            raise InputError(
                f"it takes exactly {given.shape[0]} images at once: export it with a batch of 1, or with a "
                "dynamic one (dynamic_shapes or dynamic_axes of torch.onnx.export)"
            )
        name = given.name
        rows = [session.run(None, {name: image[None]}) for image in images]
    except InputError:
        raise
    except Exception as error:  # of its own kinds
        if lacks_memory(error):
            raise
        convert(file, images.shape[1:], for_one=True)  # which says better what there is nothing for
        reason = " ".join(re.sub(r"Load model from \S+ failed:", "", str(error)).split())[:200]
        raise InputError(
            f"ONNX Runtime can't run it on [1, {', '.join(map(str, images.shape[1:]))}] ({reason})"
        ) from error
    return [
        np.concatenate([np.asarray(one, np.float32) for one in several])
        for several in zip(*rows, strict=True)
    ]
