"""Every kind of document that the store keeps beside results, and the record that it holds."""

from optimizer.analysis.coverage import Coverage
from optimizer.analysis.load import LoadRun
from optimizer.analysis.scaling import ComplexityRun
from optimizer.analysis.serving import ServingRun
from optimizer.analysis.two_files import TwoFiles
from optimizer.records import Latency

DOCUMENTS: dict[str, type] = {
    "afresh": Latency,
    "compare": TwoFiles,
    "complexity": ComplexityRun,
    "coverage": Coverage,
    "load": LoadRun,
    "throughput": ServingRun,
}
