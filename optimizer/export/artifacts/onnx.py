"""The graph that the ONNX Runtime engine runs, as an ONNX file."""

from collections.abc import Iterator

from optimizer.engine import onnx_export, onnx_graph
from optimizer.errors import WorkError
from optimizer.export.artifacts.archive import zipped
from optimizer.export.artifacts.take_away import TakeAway


def write_onnx(take_away: TakeAway) -> bytes:
    """The graph that the ONNX Runtime engine runs (:mod:`optimizer.engine.onnx_graph`)."""
    import onnx

    compressed, shape = take_away.compressed, take_away.card.input_shape
    try:
        exported = onnx_export.export(take_away.module, shape)
    except WorkError as error:
        raise WorkError(f"{error}. Take it away in another format.") from error
    graph = onnx_graph.graph_of(exported, compressed, take_away.calibration, take_away.threads)
    onnx.helper.set_model_props(
        graph.model, {"model": take_away.card.name, "recipe": compressed.recipe.to_json()}
    )
    try:
        content: bytes = graph.model.SerializeToString()
    except Exception as error:  # protobuf's own, for more than its 2 GiB
        raise WorkError(f"{take_away.card.name} can't be written as ONNX: {error}") from error
    folded = compressed.recipe.quantize.integer and not graph.int8
    loading = "\n".join(
        [
            "import onnxruntime",
            "options = onnxruntime.SessionOptions()",
            *(['options.add_session_config_entry("session.disable_quant_qdq", "1")'] if folded else []),
            'session = onnxruntime.InferenceSession("model.onnx", options)',
            'logits = session.run(None, {"images": images})[0]  # images: float32 '
            f"{_batch_of(shape, graph.dynamic)}",
        ]
    )
    return zipped(take_away, {"model.onnx": content}, loading, tuple(_onnx_notes(take_away, graph, folded)))


def _batch_of(shape: tuple[int, ...], dynamic: bool) -> str:
    return f"[{'N' if dynamic else 1}, {', '.join(map(str, shape))}]"


def _onnx_notes(take_away: TakeAway, graph: onnx_graph.Graph, folded: bool) -> Iterator[str]:
    bits, weights = take_away.compressed.recipe.quantize.activation_bits, take_away.compressed.weights
    if not graph.dynamic:
        yield "The graph takes one image at a time: this model can't be exported for more."
    if bits < 32:
        where = "at the layers' inputs" + (", and where int8 kernels want it" if graph.int8 else "")
        yield (
            f"Activations are rounded to {bits} bits {where}, between the lowest and highest value on "
            f"{len(take_away.calibration)} calibration images. Other engines choose places and ranges of "
            "their own: their accuracy is not exactly this file's."
        )
        if left := [name for name in graph.running if name not in graph.rounded]:
            yield f"Inputs that are not rounded: those of {', '.join(left)}."
    if left := [name for name in graph.running if weights[name].bits < 32 and name not in graph.narrowed]:
        yield f"Weights whose values are exact but kept in float32: {', '.join(left)}."
    if folded:
        yield (
            "Without the session's setting ONNX Runtime makes float32 of the weights in every call, which "
            "takes longer than the products."
        )
