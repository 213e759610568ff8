"""What was asked, what was run and what was measured: frozen, versioned, and raw.

A result holds the raw latency samples and one bit an image; medians, intervals and verdicts are derived
when it is read (:mod:`optimizer.analysis.statistics`, :mod:`optimizer.analysis.frame`). No torch here.
"""

from optimizer.records.accuracy import Accuracy, OutputFidelity, PerImage, unpacked
from optimizer.records.asked import MAX_INTEGER, DataSpec, Request, Settings, check_seed, check_threads
from optimizer.records.encoding import LATER, decode, digest, encode
from optimizer.records.environment import Environment
from optimizer.records.execution import Execution, KernelTime, LayerExecution, Role
from optimizer.records.network import ModelCard, Part
from optimizer.records.results import SCHEMA, ColdStart, Known, Result, Scores
from optimizer.records.times import Instructions, Latency, Times, Visits
from optimizer.records.weights import (
    SAME_PERCENT,
    Anatomy,
    GroupSensitivity,
    Inspection,
    LayerFacts,
    Sensitivity,
    Size,
)

__all__ = [
    "LATER",
    "MAX_INTEGER",
    "SAME_PERCENT",
    "SCHEMA",
    "Accuracy",
    "Anatomy",
    "ColdStart",
    "DataSpec",
    "Environment",
    "Execution",
    "GroupSensitivity",
    "Inspection",
    "Instructions",
    "KernelTime",
    "Known",
    "Latency",
    "LayerExecution",
    "LayerFacts",
    "ModelCard",
    "OutputFidelity",
    "Part",
    "PerImage",
    "Request",
    "Result",
    "Role",
    "Scores",
    "Sensitivity",
    "Settings",
    "Size",
    "Times",
    "Visits",
    "check_seed",
    "check_threads",
    "decode",
    "digest",
    "encode",
    "unpacked",
]
