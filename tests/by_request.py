"""The measurement's verbs for a request of a catalogue's model, with its workspace opened on the way."""

from optimizer.compression.apply import CompressedModel
from optimizer.engine.base import Build
from optimizer.measurement import compressed, experiment, workspace
from optimizer.measurement.experiment import Scored, SharedLatency
from optimizer.measurement.workspace import OpenModel, Workspace, open_workspace
from optimizer.progress import Report, quiet
from optimizer.records import Anatomy, Inspection, Request, Result, Scores


def opened(request: Request, report: Report = quiet) -> Workspace:
    return open_workspace(request.model, request.data, report)


def open_model(name: str) -> OpenModel:
    return open_workspace(name).model


def measure(
    request: Request,
    report: Report = quiet,
    shared_latency: SharedLatency = lambda *_: None,
    scores: Scores | None = None,
) -> Result:
    return experiment.measure(opened(request, report), request, report, shared_latency, scores)


def score(request: Request) -> Scored:
    return experiment.score(opened(request), request)


def compressed_model(request: Request) -> CompressedModel:
    return compressed.compressed_model(opened(request), request.recipe)


def inspect(request: Request) -> Inspection:
    return compressed.inspect(opened(request), request.recipe)


def anatomy(request: Request, layer: str) -> Anatomy:
    return compressed.anatomy(opened(request), request.recipe, layer)


def build_of(request: Request) -> Build:
    return compressed.build_of(opened(request), request.recipe, request.engine)


def close_all() -> None:
    """What is asked for next is opened anew."""
    workspace.OPENED.kept.clear()
