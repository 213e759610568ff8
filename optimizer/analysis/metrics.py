"""One table of everything that is measured: its label, unit, direction, and how it is written.

Whatever shows a measured figure reads it from :data:`METRICS`. Times are nanoseconds until they are written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optimizer.errors import unknown
from optimizer.formats import (
    Formatter,
    format_bytes,
    format_count,
    format_large,
    format_ns,
    format_percent,
    format_points,
    format_ratio,
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured figure. ``column`` is its name in a frame; ``help`` says what it counts.

    ``timed``: noise or another machine spoils it. ``served``: it depends on machine, threads and batch.
    ``relative``: it is against the uncompressed model on the same engine, so that another model's or engine's
    can't be ranked with it.
    """

    label: str
    unit: str
    direction: Literal["lower", "higher"]
    column: str
    format: Formatter
    help: str
    timed: bool = False
    served: bool = False
    relative: bool = False

    def loss(self, values: Iterable[float] | np.ndarray) -> np.ndarray:
        """``values`` turned so that lower is better. Missing ones (NaN) stay missing."""
        array = np.asarray(values, float)
        return array if self.direction == "lower" else -array


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        "%",
        "higher",
        "accuracy_percent",
        format_percent,
        "Top-1: share of the images whose highest output is that of their class; its 95 % Wilson interval.",
    ),
    "balanced_accuracy": Metric(
        "balanced accuracy",
        "%",
        "higher",
        "balanced_accuracy_percent",
        format_percent,
        "Mean over the classes of the share that is right, where they have unequal numbers of images, with a "
        "95 % interval.",
    ),
    "drop": Metric(
        "accuracy lost",
        "points",
        "lower",
        "drop_points",
        format_points,
        "Percentage points lost against the uncompressed model on the same images, paired image by image.",
        relative=True,
    ),
    "file_size": Metric(
        "file size",
        "B",
        "lower",
        "file_bytes",
        format_bytes,
        "The safetensors file that would be served: int8, half or float32 values with their scales.",
    ),
    "packed_size": Metric(
        "packed size",
        "B",
        "lower",
        "packed_bytes",
        format_bytes,
        "Counted, not written: k bits a surviving weight and the cheapest way to say which survive.",
    ),
    "compressed_size": Metric(
        "zstd size",
        "B",
        "lower",
        "compressed_bytes",
        format_bytes,
        "The served file through zstd.",
    ),
    "memory": Metric(
        "memory",
        "B",
        "lower",
        "memory_bytes",
        format_bytes,
        "Growth of a fresh process's resident memory when the engine loads the model and runs it once.",
        served=True,
    ),
    "cold_start": Metric(
        "cold start",
        "ns",
        "lower",
        "cold_start_ns",
        format_ns,
        "From files on the disk to the first answer, in a fresh process with its libraries imported: "
        "reading, preparing or compiling, and one call. One measurement.",
        served=True,
    ),
    "latency": Metric(
        "latency",
        "ns",
        "lower",
        "latency_ns",
        format_ns,
        "Median time of one call at its steady pace, as on a server that does nothing else, with a 95 % "
        "interval.",
        timed=True,
        served=True,
    ),
    "latency_ratio": Metric(
        "latency ratio",
        "×",
        "lower",
        "latency_ratio",
        format_ratio,
        "Time of a call over the uncompressed model's in the same round: 0.5× takes half the time. The "
        "median over rounds: two times that are shown, each a median by itself, may have another quotient.",
        timed=True,
        served=True,
        relative=True,
    ),
    "first_call": Metric(
        "first call",
        "ns",
        "lower",
        "first_call_ns",
        format_ns,
        "Median time of the first call after another network has run, which finds none of this one in the "
        "caches.",
        timed=True,
        served=True,
    ),
    "first_call_ratio": Metric(
        "first call ratio",
        "×",
        "lower",
        "first_call_ratio",
        format_ratio,
        "Time of a first call over that of the uncompressed model's first call in the same round.",
        timed=True,
        served=True,
        relative=True,
    ),
    "latency_p95": Metric(
        "95th percentile",
        "ns",
        "lower",
        "latency_p95_ns",
        format_ns,
        "A time that 95 % of calls stay under, at 99 % confidence, in states of the machine that the timing "
        "met. Needs at least 130 calls, and more where slow calls follow each other.",
        timed=True,
        served=True,
    ),
    "latency_p99": Metric(
        "99th percentile",
        "ns",
        "lower",
        "latency_p99_ns",
        format_ns,
        "A time that 99 % of calls stay under, at 99 % confidence, in states of the machine that the timing "
        "met. Needs at least 662 calls, and more where slow calls follow each other.",
        timed=True,
        served=True,
    ),
    "throughput": Metric(
        "throughput",
        "images/s",
        "higher",
        "throughput_images_per_s",
        Formatter(((1, " images/s"),)),
        "Images over the mean time of a call, all the time over all calls, slow ones among them, when calls "
        "follow each other.",
        timed=True,
        served=True,
    ),
    "nonzero": Metric(
        "non-zero weights",
        "",
        "lower",
        "nonzero_weights",
        format_count,
        "Weights that are not zero after pruning and rounding; a weight that layers share counts once.",
    ),
    "operations": Metric(
        "operations left (MACs)",
        "",
        "lower",
        "operations",
        format_large,
        "Multiply-accumulates for one image that meet a non-zero weight. Dense kernels do the others too.",
    ),
    "agreement": Metric(
        "agreement",
        "%",
        "higher",
        "agreement_percent",
        format_percent,
        "Share of the images with the same top-1 class as the uncompressed model.",
        relative=True,
    ),
    "sqnr": Metric(
        "SQNR",
        "dB",
        "higher",
        "sqnr_db",
        Formatter(((1, " dB"),), most=1),
        "Power of the uncompressed model's outputs over the power of the change in them. Of several "
        "outputs that are no logits: of the worst. No interval under 20 images, or where few images carry "
        "most of the change.",
        relative=True,
    ),
    "kl": Metric(
        "KL divergence",
        "nats",
        "lower",
        "kl_nats",
        Formatter(((1, " nats"),), most=9, significant=2),
        "Mean divergence of the predicted distribution from the uncompressed model's. No interval under 20 "
        "images.",
        relative=True,
    ),
    "cosine": Metric(
        "cosine similarity",
        "",
        "higher",
        "cosine",
        Formatter(((1, ""),), significant=4),
        "Mean over the images of the cosine between the outputs and the uncompressed model's: 1 is the same. "
        "Of several outputs that are no logits: of the worst.",
        relative=True,
    ),
    "largest": Metric(
        "largest difference",
        "%",
        "lower",
        "largest_percent",
        format_percent,
        "Largest absolute difference from the uncompressed network's outputs, over all images and values, in "
        "percent of that output's range. Of outputs that are no logits.",
        relative=True,
    ),
}


def metric(name: str) -> Metric:
    """The metric of that name. Raises InputError for an unknown one."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]
