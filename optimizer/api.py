"""The package from a notebook or a script: one verb a line, on a model of one's own or of the catalogue.

Every function takes as ``model`` a name that :func:`models` lists, the path of an ONNX file or of a
checkpoint (``.safetensors``, ``.pt``, ``.pth``) of an architecture that its weights tell, a classifier of the
Hugging Face hub (``hf-hub:timm/resnet18.a1_in1k``), or a ``torch.nn.Module`` that answers one tensor
``[N, ...]`` with one tensor of outputs ``[N, ...]``. The module is copied, without hooks that were registered
on it, and never changed. It is known by a
digest of its code and weights, as a file is by its content: the same ones are measured once, retrained ones
anew.

Outputs ``[N, K]`` of a model of one's own are taken for a classifier's logits, unless ``task="fidelity"``
says that they are none: forecasts, embeddings, several labels at once. They are then compared as outputs of
any other shape are, by SQNR, cosine and largest difference.

``data`` is a folder of photographs (one subfolder a class, or none), a pair ``(images, labels)`` or images
alone as arrays or tensors (floats, after the model's preprocessing), or a ``torch.utils.data.Dataset``.
Without labels a classifier's figures are agreement with the uncompressed model. ``calibration`` gives images
for calibration; without it some of ``data`` are set aside. Of images that are equal one is evaluated, and
none calibrates that is: a note says how many were left out.

Results are kept in the same store and under the same keys as those of page and command line.

It is what a script can ask for, verb by verb, with all that is to be known of each: so it stays one file.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from optimizer import on_demand
from optimizer.analysis.limits import Limits
from optimizer.analysis.two_files import CompareRequest, NetworkRef, TwoFiles
from optimizer.analysis.view import Failed, Results, ResultView, Screened
from optimizer.cluster.addresses import connect
from optimizer.cluster.nodes import Executor, Nodes
from optimizer.cluster.remote import check
from optimizer.cluster.spread import work_off
from optimizer.errors import InputError, ParetoscopeError, WorkError, number
from optimizer.methods.engines import ENGINES
from optimizer.progress import Report, progress_line
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, ModelCard, Settings, encode
from optimizer.search.answer_data import AnswerView
from optimizer.search.drain import until_over
from optimizer.search.questions import ask
from optimizer.search.records import DEFAULT_BUDGET_SECONDS, Question
from optimizer.search.space import Space, several, subspace
from optimizer.search.sweep import Grid
from optimizer.search.sweep import sweep as each
from optimizer.store import ledger
from optimizer.store.keys import request_keys
from optimizer.store.results import Store
from optimizer.system.process_pool import Pool
from optimizer.system.processes import user

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import nn


TARGET = "optimizer.api:_measured_apart"
POLL_SECONDS = 0.1

P = ParamSpec("P")
T = TypeVar("T")


def _in_float32(verb: Callable[P, T]) -> Callable[P, T]:
    """In float32 on the CPU, whatever default type or device, precision or autocast the script has set."""

    @functools.wraps(verb)
    def in_float32(*args: P.args, **kwargs: P.kwargs) -> T:
        from optimizer.system.precision import float32_throughout

        with float32_throughout():
            return verb(*args, **kwargs)

    return in_float32


@_in_float32
def measure(
    model: "str | PathLike[str] | nn.Module",
    recipe: Recipe | None = None,
    data: Any = None,
    *,
    calibration: Any = None,
    input_shape: Sequence[int] | None = None,
    example_input: Any = None,
    task: str | None = None,
    engine: str = "openvino",
    settings: Settings | None = None,
    isolated: bool = False,
    progress: bool = True,
) -> ResultView:
    """Accuracy, size and latency of a recipe, against the uncompressed model on the same engine.

    ``recipe`` is that of :meth:`Recipe.of`; without one the uncompressed model is measured. Without ``data``
    a model of the catalogue takes the images that come with it. ``input_shape`` is that of one example
    (``[C, H, W]``), needed where neither ``data`` nor ``example_input`` ``[N, C, H, W]`` tells it.
    ``task``, of a model of your own, is ``classification`` or ``fidelity``; without it the shape of the
    outputs decides. ``settings`` say threads, batch, and ``quick=False`` for the long measurement with
    memory, cold start and percentiles.

    Timing happens in this process by default: a script or notebook that waits for the result is as quiet as a
    process of its own (the machine lock is held, the garbage collector is off), and any module can be
    measured. Where other threads of yours work, ``isolated=True`` takes a fresh process; what is given must
    be importable there, and so not be defined in the script or notebook itself. Its parameters are many
    because it is the whole of what can be asked.

    Raises InputError for what can't be measured and what to do about it, UnavailableError for what this
    machine lacks, WorkError where a model or engine fails.

    >>> result = measure("fashion-mlp", Recipe.of(sparsity=0.5, weight_bits=8), progress=False)
    >>> round(result.accuracy.drop.value) < 5
    True
    """
    recipe, asked = _recipe(recipe), settings or Settings()
    _check_engine(engine)
    given = (model, recipe, data, calibration, input_shape, example_input, task, engine, asked)
    with progress_line(progress) as report:
        return ResultView(_measure_apart(given, report)) if isolated else _measured(given, report)


@_in_float32
def sweep(
    model: "str | PathLike[str] | nn.Module",
    sparsities: float | Sequence[float] = (0.0, 0.5, 0.7, 0.8),
    weight_bits: int | Sequence[int] = (32, 8, 4),
    data: Any = None,
    *,
    recipe: Recipe | None = None,
    calibration: Any = None,
    input_shape: Sequence[int] | None = None,
    example_input: Any = None,
    task: str | None = None,
    engine: str = "openvino",
    settings: Settings | None = None,
    executor: Executor | str | None = None,
    on: str = "",
    frontier_only: bool = False,
    progress: bool = True,
) -> Results:
    """Every sparsity with every bit width, all else as in ``recipe``; the uncompressed model comes
    first where the grid has it.

    A recipe that fails is told in ``failed`` and the rest go on. The parameters are those of
    :func:`measure`. With ``executor``, a ``concurrent.futures.Executor`` or the address of a Dask
    scheduler such as ``"tls://10.0.0.5:8786"``, it is measured where that works: there on the nodes that are
    like the one called ``on``. ``model`` is then one of the catalogue, and images are in folders; results
    come home as they are known, under the environment that they were measured in.

    With ``frontier_only`` what can't be on the frontier of accuracy lost, zstd size and latency is left
    out as soon as it has as many errors as another one, no larger and of the same time, has on all images,
    and is listed in ``screened``: the same frontier, sooner. What takes a time of its own (sparse kernels,
    channels removed) is measured whole. Small ones come first. Not with an ``executor``.

    Raises InputError for an empty or impossible grid, UnavailableError where nothing more could be kept, and
    as :func:`measure` does for the model and data.

    >>> results = sweep("fashion-mlp", [0, 0.5], [32], progress=False)
    >>> [result.request.recipe.prune.share for result in results]
    [0.0, 0.5]
    """
    from optimizer.measurement.given import named_only, open_given

    recipe = _recipe(recipe)
    amounts = _numbers("sparsities", sparsities), _numbers("weight_bits", weight_bits)
    if executor is not None:
        if frontier_only:
            raise InputError("frontier_only works on this machine alone: leave it out, or leave executor out")
        request = named_only(model, data, calibration)
        request = replace(request, recipe=recipe, engine=engine, settings=settings or Settings())
        check(request)
        activations = (request.recipe.quantize.activation_bits,)
        asked = Grid(request, *amounts, activations, (engine,))
        with progress_line(progress) as report, connect(executor, on, report) as nodes:
            return _sweep_elsewhere(replace(asked, on=nodes.environment.cpu), nodes, report)
    _check_engine(engine)
    with progress_line(progress) as report:
        workspace, request = open_given(
            model, data, calibration, input_shape, report, example=example_input, task=task
        )
        base = replace(request, recipe=recipe, engine=engine, settings=settings or Settings())
        activations = (base.recipe.quantize.activation_bits,)
        grid = Grid(base, *amounts, activations, (engine,), frontier_only=frontier_only)
        requests, store = grid.requests(), Store()
        keys = request_keys(requests)
        found: list[ResultView] = []
        failed: list[Failed] = []
        screened: list[Screened] = []
        measured = functools.partial(on_demand.load_or_measure, store=store, workspace=workspace)
        if frontier_only:
            measured = functools.partial(
                on_demand.load_or_screen, grid=keys, store=store, workspace=workspace
            )
        outcomes = each(requests, measured)
        for number, outcome in enumerate(outcomes, 1):
            report(
                number / len(requests), f"{number} of {len(requests)}: {outcome.request.recipe.describe()}"
            )
            if isinstance(outcome, Failed):
                store.check_room()  # nothing is wrong with what could only not be kept
                failed.append(outcome)
            elif isinstance(outcome, Screened):
                screened.append(outcome)
            else:
                found.append(ResultView(outcome, workspace))
        return Results(tuple(found), tuple(failed), tuple(screened))


def _sweep_elsewhere(asked: Grid, nodes: Nodes, report: Report) -> Results:
    store, requests = Store(), asked.requests()
    sweep = ledger.create(store, encode(asked), requests, user(), nodes.environment.key)
    try:
        for item in until_over(store, sweep, functools.partial(work_off, store, nodes, sweep)):
            now = ledger.find(store, sweep)
            words = f": {item.request.recipe.describe()}" if item and item.request else ""
            report(now.over / now.total, f"{now.over} of {now.total}{words}")
    except BaseException:
        ledger.cancel(store, sweep)  # asked again, what is measured is there
        raise
    items = ledger.items(store, sweep)
    if any(item.state == "cancelled" for item in items):
        raise WorkError(f"sweep {sweep} was cancelled: ask again, and what is measured already is there")
    found = (ResultView(result) for result in store.several([item.key for item in items]))
    failed = (Failed(item.request, item.message) for item in items if item.state == "failed" and item.request)
    return Results(tuple(found), tuple(failed))


@_in_float32
def find(
    model: "str | PathLike[str] | nn.Module",
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    data: Any = None,
    *,
    min_sqnr_db: float | None = None,
    max_latency_ratio: float | None = None,
    minimise: str | None = None,
    engines: str | Sequence[str] | None = None,
    space: Space | None = None,
    budget_seconds: float = DEFAULT_BUDGET_SECONDS,
    search: str = "guided",
    calibration: Any = None,
    input_shape: Sequence[int] | None = None,
    example_input: Any = None,
    task: str | None = None,
    settings: Settings | None = None,
    progress: bool = True,
) -> AnswerView:
    """The best configuration that keeps to limits, found in ``budget_seconds``: points of accuracy lost, the
    median milliseconds of a call at its steady pace, megabytes of the file, and decibels of SQNR that the
    worst output has at least: all that a network that is no classifier has to lose.
    ``max_latency_ratio`` is that of a call's time to the uncompressed model's on the same engine; it can be
    told on a busy machine too.

    Limits count by the bound of an interval, and what wins is timed afresh. ``minimise`` is ``latency``,
    ``drop``, ``file_size`` or ``sqnr``; without it latency, or where nothing limits what is lost, that.
    ``space`` says what is searched, ``search`` how: ``guided``, ``random`` or ``grid``. The other
    parameters are those of :func:`measure`; ``settings`` with ``quick=False`` time the winner in full, and
    threads are those of the space. The answer is kept, and is in the history of questions: asked again it is
    there at once, and a larger budget goes on from it.

    Raises InputError for limits that can't be, and as :func:`measure` does for the model and data.

    >>> small = Space(("openvino",), pruning=("none",), weight_bits=(32, 8), activation_bits=(32,))
    >>> found = find("fashion-mlp", max_size_mb=2, space=small, progress=False)
    >>> found.best.request.recipe.quantize.weight_bits
    8
    """
    from optimizer.measurement.given import open_given

    given = {
        "max_drop": max_drop,
        "max_latency_ms": max_latency_ms,
        "max_size_mb": max_size_mb,
        "min_sqnr_db": min_sqnr_db,
        "max_latency_ratio": max_latency_ratio,
    }
    limits = Limits(*(value if value is None else number(name, value) for name, value in given.items()))
    budget_seconds = number("budget_seconds", budget_seconds)
    axes = {"engine": engines or (on_demand.engines_to_search() if space is None else None)}
    searched = subspace(space or Space(), axes)
    question = Question("", limits, minimise or "latency", searched, search, budget_seconds)
    on_demand.check_space(searched)
    with progress_line(progress) as report:
        workspace, request = open_given(
            model, data, calibration, input_shape, report, example=example_input, task=task
        )
        asked = replace(
            question,
            model=request.model,
            minimise=minimise or limits.usual(workspace.model.loaded.card.classes),
            data=request.data,
            settings=settings or Settings(),
        )
        store = Store()
        found = on_demand.answer(asked, store, report, workspace)
        if not found.answer.is_early:  # it would wait for somebody to go on with it, who may lack the model
            ask(store, asked, user())
        return AnswerView(found, workspace)


@_in_float32
def compare(
    a: str | PathLike[str],
    b: str | PathLike[str],
    data: Any = None,
    *,
    like: str = "",
    input_shape: Sequence[int] = (),
    engine: str = "",
    settings: Settings | None = None,
    progress: bool = True,
) -> TwoFiles:
    """Two networks as they are: how far the outputs of ``b`` lie from those of ``a``, accuracy where there
    are labels, sizes, kernels, time in turns on one engine, and where the tensors inside part ways.

    Each is an ONNX file, an OpenVINO ``.xml`` with its ``.bin`` beside it, a ``.zip`` of :func:`save`, or a
    model of the catalogue. ``data`` is as :func:`measure` takes it: of a folder a share is set aside, of what
    is in memory none is; without it, images that come with a model, or with that which a file was saved from,
    or made-up ones. Images are preprocessed as for the model ``like``, without one as for that which the
    files were saved from, or as they say; a note says which. ``engine`` is openvino or onnxruntime; the first
    that runs both otherwise. What comes back prints itself; ``to_dict()`` has every figure.

    Raises InputError for networks that can't be compared, and as :func:`measure` does.
    """
    from optimizer.model.preprocessing import image_shape

    given, spec, shape = None, DataSpec(), image_shape(input_shape) if len(input_shape) else ()
    with progress_line(progress) as report:
        if isinstance(data, str | PathLike):
            from optimizer.data.folders import absolute

            spec = DataSpec(absolute(data))
        elif data is not None:
            from optimizer.data import memory

            given = memory.for_evaluation(data, report)
            spec = DataSpec(content=memory.content(given))
        request = CompareRequest(
            NetworkRef(str(a)),
            NetworkRef(str(b)),
            spec,
            engine,
            settings or Settings(),
            shape,
            like,
        )
        return on_demand.compare(request, report, given)


@_in_float32
def compress(
    model: "str | PathLike[str] | nn.Module",
    recipe: Recipe,
    *,
    calibration: Any = None,
    input_shape: Sequence[int] | None = None,
    example_input: Any = None,
    task: str | None = None,
    progress: bool = True,
) -> "nn.Module":
    """The model after the recipe, as a torch module in evaluation mode, its batch norm folded.

    Its weights are the recipe's, and it computes with float32 activations, whatever ``activation_bits`` are:
    engines round those. For figures with rounded activations ask :func:`measure`, with ``engine="torch"`` by
    the same module; what :func:`save` writes as ``.xml`` rounds them.

    ``calibration`` are images ``[N, C, H, W]``, a Dataset or a folder, for a recipe that works from them.
    The other parameters are those of :func:`measure`.
    Raises InputError, UnavailableError, WorkError.

    >>> module = compress("fashion-mlp", Recipe.of(threshold=0.05), progress=False)
    >>> module.training
    False
    """
    from optimizer.measurement.compressed import compressed_model
    from optimizer.measurement.given import open_given
    from optimizer.model.examples import forget

    recipe = _recipe(recipe)
    with progress_line(progress) as report:
        opened, _ = open_given(
            model,
            None,
            calibration,
            input_shape,
            report,
            needs_data=recipe.needs_data,
            evaluates=False,
            example=example_input,
            task=task,
        )
        made = copy.deepcopy(compressed_model(opened, recipe.canonical(), report=report).module)
        forget(made)
        return made


@_in_float32
def save(result: ResultView, path: str | PathLike[str], format: str | None = None) -> Path:
    """Write the compressed model of a result; gives the path of what was written.

    By extension: ``.onnx``, ``.xml`` (OpenVINO, with its ``.bin`` beside it), ``.safetensors`` (its values,
    which :func:`optimizer.export.artifacts.load` puts back into the first of what
    :func:`optimizer.model.folding.fold_batch_norm` gives of the model's own module). A ``.zip`` also
    holds the recipe and a model card, in one of the formats ``safetensors``, ``packed``, ``onnx`` and
    ``openvino``; with ``format`` a name may have any extension that is not another format's. Raises
    InputError for an unknown format, without ``format`` for another extension, for an extension of another
    format, what is no result, and a result whose model or images went with the process that measured it
    (``isolated=True``), UnavailableError where a package or the folder is missing or the disk is full,
    WorkError for a model that can't be converted.
    """
    from optimizer.export.artifacts import saving

    kind = saving.format_of(Path(path), format)
    _check_at_hand(_checked(result))
    return saving.save(
        on_demand.artifact(kind, result.request, result.workspace, result.record), kind, Path(path)
    )


def models() -> dict[str, ModelCard]:
    """Every model of the catalogue by name, and what is known of it."""
    from optimizer.model.catalogue import catalogue

    return catalogue()


def engines() -> dict[str, str]:
    """Every engine by name: why it can't run here, or nothing where it can."""
    from optimizer.engine import problem_of

    return {name: problem_of(name) for name in ENGINES}


def plot_accuracy(results: "ResultView | Sequence[ResultView]", dark: bool = False) -> "go.Figure":
    """Accuracy against sparsity, one line a bit width, as a Plotly figure."""
    from optimizer.charts import accuracy_info, figure

    return figure(accuracy_info(_records(results)), dark)


def plot_latency(results: "ResultView | Sequence[ResultView]", dark: bool = False) -> "go.Figure":
    """Latency against sparsity, as a ratio to the uncompressed model, as a Plotly figure."""
    from optimizer.charts import figure, latency_info

    return figure(latency_info(_records(results)), dark)


def plot_size(results: "ResultView | Sequence[ResultView]", dark: bool = False) -> "go.Figure":
    """Size against weight bits, as a Plotly figure."""
    from optimizer.charts import figure, size_info

    return figure(size_info(_records(results)), dark)


def plot_frontier(
    results: "ResultView | Sequence[ResultView]",
    cost: str = "compressed_size",
    loss: str = "drop",
    dark: bool = False,
) -> "go.Figure":
    """What accuracy is paid for a cost: the Pareto-optimal results joined, as a Plotly figure.

    ``cost`` and ``loss`` are metrics such as ``latency_ratio`` or ``file_size``; of several engines or models
    accuracy stands in for ``drop``. Raises InputError for an unknown one.
    """
    from optimizer.charts import figure, frontier_info

    return figure(frontier_info(_records(results), cost=cost, loss=loss), dark)


# Inside


def _records(results: "ResultView | Sequence[ResultView]") -> list[Any]:
    """Of one result, too. Raises InputError for what is none."""
    return [_checked(one).record for one in several(results)]


def _checked(result: object) -> ResultView:
    if not isinstance(result, ResultView):
        raise InputError(
            f"{type(result).__name__} is no result: give what px.measure gave, or one of what px.sweep gave"
        )
    return result


def _numbers(name: str, given: object) -> tuple[Any, ...]:
    return tuple(number(name, value) for value in several(given))


def _recipe(given: object) -> Recipe:
    """What was given, or for None one that compresses nothing. Raises InputError for what is no recipe."""
    if given is None:
        return Recipe.of()
    if not isinstance(given, Recipe):
        raise InputError(
            f"the recipe is {type(given).__name__}, no px.Recipe: give one of px.Recipe.of, such as "
            "px.Recipe.of(sparsity=0.5, weight_bits=8)"
        )
    return given


def _check_engine(name: str) -> None:
    """Raises InputError for an unknown engine, UnavailableError for one that can't run here: before anything
    is loaded."""
    from optimizer.engine import engine_named

    engine_named(name)


def _check_at_hand(result: ResultView) -> None:
    """Raises InputError for a result without a workspace, whose file takes a model or images that only such a
    one has."""
    request, images = result.request, result.request.data.content and result.request.recipe.needs_images
    if result.workspace is None and (images or request.model not in models()):
        raise InputError(
            f"{'the images' if images else request.model} went with the process that measured this: ask "
            "px.measure for the same without isolated=True, which measures nothing twice, and save what it "
            "gives"
        )


def _measure_apart(given: tuple[Any, ...], report: Report) -> Any:
    """The record of what a process of its own has measured, which is gone afterwards."""
    from optimizer.measurement.given import check_can_be_sent
    from optimizer.work import label_of

    check_can_be_sent(given)
    with Pool(TARGET, lanes=("measure",), labels=label_of) as pool:
        job = pool.submit("measure", "measure", given, "measure")
        while not job.over:
            report(job.progress, job.message)
            pool.wait(job, POLL_SECONDS)
    if job.state != "done":
        raise WorkError(job.error or "the measurement was cancelled")
    if isinstance(job.result, ParetoscopeError):
        raise job.result
    return job.result


def _measured_apart(task: str, given: tuple[Any, ...], report: Report) -> Any:
    """What the worker of :func:`_measure_apart` runs. An error of ours is given back, to be raised there."""
    try:
        return _measured(given, report).record
    except ParetoscopeError as error:
        return error


def _measured(given: tuple[Any, ...], report: Report) -> ResultView:
    """What :func:`measure` was given, measured in this process."""
    from optimizer.measurement.given import open_given

    model, recipe, data, calibration, input_shape, example, task, engine, settings = given
    workspace, request = open_given(model, data, calibration, input_shape, report, example=example, task=task)
    request = replace(request, recipe=recipe.canonical(), engine=engine, settings=settings)
    return ResultView(on_demand.load_or_measure(request, Store(), report, workspace), workspace)
