"""One request measured or scored by nodes, as if it had been here."""

from collections.abc import Callable

from optimizer import __version__
from optimizer.cluster import content, node
from optimizer.cluster.content import Asked, Parcel
from optimizer.cluster.nodes import Nodes, NotTaken
from optimizer.errors import InputError, WorkError, unknown
from optimizer.methods.engines import ENGINES
from optimizer.progress import Cancelled
from optimizer.records import Request, Result, Scores, decode, encode


def check(request: Request) -> None:
    """Whether a model, an engine and images of these names are known here: what would fail all of a sweep.
    Raises InputError."""
    from optimizer.model import catalogue

    catalogue.card(request.model)
    if request.engine not in ENGINES:
        raise unknown("engine", request.engine, ENGINES)
    content.pack(request)


def measure(nodes: Nodes, request: Request, scores: Scores | None = None) -> Result:
    """A request measured by a node, as if it had been here, but for the environment; only timed where there
    are ``scores`` of these very images.

    Raises WorkError where that fails, InputError where an executor gave it to another kind of machine than
    the sweep is timed on, UnavailableError where no node takes it, NotTaken where none can, Cancelled.
    """
    asked = content.pack(request)
    given = (encode(scores),) if scores and scores.files == asked.files else ()
    ending, found = _outcome(nodes, node.measure, asked, *given)
    if ending == node.LACKING:
        lacking = decode(found, Parcel)
        raise NotTaken(
            f"the nodes lack the {lacking.kind} of {request.model} on {request.data.path or 'images'},"
            " and can be sent nothing: let them share this machine's folders, PARETOSCOPE_HOME among them"
        )
    if ending == node.REFUSED:
        raise InputError(
            f"nothing was measured: {found.decode()}, where the sweep is timed: use an executor whose nodes "
            "are all of one kind"
        )
    if ending == node.FAILED:
        raise WorkError(found.decode())
    return decode(found, Result)


def score(nodes: Nodes, request: Request) -> Scores | None:
    """What others work out of a request for the nodes that time it; None where none may, has time, or can:
    those nodes do it then. Raises Cancelled."""
    try:
        scorer = nodes.scorer(request.recipe)
        if scorer is None:
            return None
        with scorer:
            ending, found = _outcome(scorer, node.score, content.pack(request))
            if ending != node.DONE:
                raise WorkError(found.decode())
            return decode(found, Scores)
    except Exception:  # what is wrong with more than that node is told by those that time
        return None


def _outcome(
    nodes: Nodes, function: Callable[..., node.Outcome], asked: Asked, *given: bytes
) -> node.Outcome:
    """How a node ended with a request that it had been sent all for. Raises Cancelled, and what the nodes'
    methods do."""
    ending, found = node.LACKING, b""
    for anew in (False, True):
        nodes.deliver(asked, anew)
        ending, found = nodes.outcome(function, __version__, encode(nodes.environment), encode(asked), *given)
        if ending != node.LACKING:
            break
    if ending == node.CANCELLED:
        raise Cancelled
    return ending, found
