"""The charts: for each one function that says what it shows, as frozen data
(:mod:`optimizer.charts.drawing`).

``figure(accuracy_info(results, selected=key), dark=True)`` is a plotly figure.
"""

from optimizer.charts.accuracy import accuracy_info
from optimizer.charts.alternative import alternative
from optimizer.charts.compare import compare_info
from optimizer.charts.complexity import complexity_info
from optimizer.charts.drawing import align, figure
from optimizer.charts.frontier import frontier_info, frontiers_info
from optimizer.charts.histogram import histogram_info
from optimizer.charts.kernels import kernels_info, parts_info
from optimizer.charts.latency import latency_info
from optimizer.charts.load import load_info
from optimizer.charts.parallel import parallel_info
from optimizer.charts.points import brief
from optimizer.charts.samples import samples_info
from optimizer.charts.search import search_info
from optimizer.charts.sensitivity import sensitivity_info
from optimizer.charts.serving import gains_info, serving_info
from optimizer.charts.size import size_info
from optimizer.charts.two_files import parting_info

__all__ = [
    "accuracy_info",
    "align",
    "alternative",
    "brief",
    "compare_info",
    "complexity_info",
    "figure",
    "frontier_info",
    "frontiers_info",
    "gains_info",
    "histogram_info",
    "kernels_info",
    "latency_info",
    "load_info",
    "parallel_info",
    "parting_info",
    "parts_info",
    "samples_info",
    "search_info",
    "sensitivity_info",
    "serving_info",
    "size_info",
]
