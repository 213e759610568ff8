"""The graph that the ONNX Runtime engine runs, as an ONNX file."""

from collections.abc import Iterator

from optimizer.engine import onnx_export, onnx_graph
from optimizer.errors import WorkError
from optimizer.export.artifacts.archive import zipped
from optimizer.export.artifacts.source import ArtifactSource
from optimizer.model.added import declared
from optimizer.model.added.network_reading import ONNX_FILE


def write_onnx(source: ArtifactSource) -> bytes:
    """The graph that the ONNX Runtime engine runs (:mod:`optimizer.engine.onnx_graph`)."""
    import onnx

    compressed, shape = source.compressed, source.card.input_shape
    try:
        exported = onnx_export.export(source.module, shape)
    except WorkError as error:
        raise WorkError(f"{error}. Export it in another format.") from error
    graph = onnx_graph.graph_of(exported, compressed, source.calibration, source.threads)
    model = onnx_export.renamed(onnx_export.taken_apart(graph.model, source.parts), *source.names)
    made_of = {"model": source.card.name, "recipe": compressed.recipe.to_json()}
    onnx.helper.set_model_props(model, made_of | declared.said(source.preprocessing, source.class_names))
    try:
        content: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's own, for more than its 2 GiB
        raise WorkError(f"{source.card.name} can't be written as ONNX: {error}") from error
    names, given = [name for name, _ in source.parts], model.graph.input[0].name
    answer = (
        f"outputs = session.run({names}, " if names else f"{source.card.output_name} = session.run(None, "
    )
    loading = "\n".join(
        [
            "import onnxruntime",
            'session = onnxruntime.InferenceSession("model.onnx")',
            f"{answer}{{{given!r}: images}}){'' if names else '[0]'}  # images: float32 "
            f"{_batch_of(shape, graph.dynamic)}",
        ]
    )
    return zipped(source, {ONNX_FILE: content}, loading, tuple(_onnx_notes(source, graph)), graph.dynamic)


def _batch_of(shape: tuple[int, ...], dynamic: bool) -> str:
    return f"[{'N' if dynamic else 1}, {', '.join(map(str, shape))}]"


def _onnx_notes(source: ArtifactSource, graph: onnx_graph.Graph) -> Iterator[str]:
    bits, weights = source.compressed.recipe.quantize.activation_bits, source.compressed.weights
    if not graph.dynamic:
        yield "The graph takes one image at a time: this model can't be exported for more."
    if bits < 32:
        where = "at the layers' inputs" + (", and where int8 kernels want it" if graph.int8 else "")
        yield (
            f"Activations are rounded to {bits} bits {where}, between the lowest and highest value on "
            f"{len(source.calibration)} calibration images. Other engines choose places and ranges of "
            "their own: their accuracy is not exactly this file's."
        )
        if left := [name for name in graph.running if name not in graph.rounded]:
            yield f"Inputs that are not rounded: those of {', '.join(left)}."
    if left := [name for name in graph.running if weights[name].bits < 32 and name not in graph.narrowed]:
        yield f"Weights whose values are exact but kept in float32: {', '.join(left)}."
