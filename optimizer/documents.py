"""Every kind of document that the store keeps beside results, and the record that it holds."""

from optimizer.coverage import Coverage
from optimizer.scaling import ComplexityRun
from optimizer.serving import ServingRun

DOCUMENTS: dict[str, type] = {"complexity": ComplexityRun, "coverage": Coverage, "throughput": ServingRun}
