"""Images that show the same: equal ones among those evaluated, and copies of them among others."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from optimizer.formats import count

THUMBNAIL = 16
"""Pixels a side in which images are compared."""
MAX_DISTANCE = 0.0015
"""One minus the correlation of two thumbnails, up to which one image is a copy of the other.

Measured: the closest two of 1,000 different photographs are 0.08 apart, of 2,000 CIFAR-10 images 0.08, of
Fashion-MNIST's 10,000 test images, which are small and alike, 0.0022 but for two pairs that are one picture.
Copies of the photographs as JPEG of quality 50 and up, halved or doubled, are at most 0.0014 away; of images
of 28 x 28 pixels, those of quality 75 and up mostly, and scaled ones not.
"""
MIN_CONTRAST = 1e-3
"""A thumbnail whose values vary less, by their norm, shows nothing to compare."""
CHUNK = 1024


def digest_of(size: Sequence[int], row: Tensor) -> bytes:
    """Equal for two images of one size that a model can't tell apart: ``row`` ``[...]``, contiguous, is its
    input."""
    digest = hashlib.blake2b(f"{tuple(size)}".encode(), digest_size=16)
    digest.update(row.numpy().data)
    return digest.digest()


def counted_once(digests: Sequence[bytes]) -> tuple[list[int], tuple[str, ...]]:
    """The positions of those to evaluate, which equal none before them, and a note where others do."""
    first = {digest: position for position, digest in reversed(list(enumerate(digests)))}
    if not (repeated := len(digests) - len(first)):
        return list(range(len(digests))), ()
    note = f"{count(repeated, 'image')} left out: equal to another one that is evaluated, which counts once"
    return sorted(first.values()), (note,)


def copies(candidates: Tensor, images: Tensor) -> Tensor:
    """Bool ``[n]``: which candidates ``[n, C, H, W]`` are one of the images ``[N, C, H, W]``, or one of them
    scaled or encoded anew."""
    found = torch.zeros(len(candidates), dtype=torch.bool)
    ours = _thumbnails(candidates)
    for chunk in images.split(CHUNK):
        found |= (ours @ _thumbnails(chunk).T > 1 - MAX_DISTANCE).any(1)
    return found


def _thumbnails(images: Tensor) -> Tensor:
    """Float32 ``[N, C * THUMBNAIL ** 2]``, each channel of mean 0; of norm 1, or 0 for one colour."""
    small = adaptive_avg_pool2d(images, THUMBNAIL)
    centred = (small - small.mean((2, 3), keepdim=True)).flatten(1)
    norms = centred.norm(dim=1, keepdim=True)
    return torch.where(norms > MIN_CONTRAST, centred / norms.clamp_min(MIN_CONTRAST), 0)
