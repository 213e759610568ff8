"""Every kind of document that the store keeps beside results, and the record that it holds."""

from optimizer.analysis.coverage import Coverage
from optimizer.analysis.load import LoadRun
from optimizer.analysis.scaling import ComplexityRun
from optimizer.analysis.serving import ServingRun
from optimizer.analysis.stored import AFRESH
from optimizer.analysis.two_files import TwoFiles
from optimizer.records import Latency, Result, Scores
from optimizer.search.records import Answer, Progress
from optimizer.store.results import ANSWER, EARLY_ANSWER, SEARCH, UNFINISHED

DOCUMENTS: dict[str, type] = {
    AFRESH: Latency,
    ANSWER: Answer,
    "compare": TwoFiles,
    "complexity": ComplexityRun,
    "coverage": Coverage,
    EARLY_ANSWER: Answer,
    "load": LoadRun,
    "scores": Scores,
    SEARCH: Progress,
    "throughput": ServingRun,
    UNFINISHED: Result,
}
