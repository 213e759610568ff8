"""The graph that the OpenVINO engine compiles, as OpenVINO's own two files."""

import tempfile
from pathlib import Path

from optimizer.engine import openvino
from optimizer.engine.base import Build
from optimizer.engine.faithful import follow_other_paths
from optimizer.engine.openvino_core import core, save_graph
from optimizer.engine.openvino_graph import taken_apart
from optimizer.errors import WorkError
from optimizer.export.artifacts.archive import zipped
from optimizer.export.artifacts.source import ArtifactSource
from optimizer.model.added.network_reading import INFORMATION, IR_FILES, MADE_OF
from optimizer.model.unused import values_decide
from optimizer.recipe import PRECISIONS


def write_openvino(source: ArtifactSource) -> bytes:
    """The graph that the OpenVINO engine compiles, weights, activation ranges and all, and what it was made
    of. Raises WorkError where it can be shown that it does not follow the model's input."""
    recipe = source.compressed.recipe
    precision = recipe.quantize.precision
    build = source.build or openvino.prepare(source.module, source.card.input_shape)
    path = _path_notes(source, build)
    runner = build(source.compressed, source.calibration, threads=source.threads, batch=1)
    assert runner.memory_probe is not None
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        runner.memory_probe(folder)
        graph = taken_apart(core().read_model(Path(folder, "model.xml")), source.parts)
        given, one = source.names
        graph.inputs[0].set_names({given})
        if not source.parts:
            graph.outputs[0].set_names({one})
        for name, said in zip(MADE_OF, (source.card.name, recipe.to_json()), strict=True):
            graph.set_rt_info(said, [INFORMATION, name])
        named = Path(folder, "named")  # elsewhere: the first one's weights are read where they lie
        named.mkdir()
        save_graph(graph, named, precision)
        files = {name: (named / name).read_bytes() for name in IR_FILES}
    names = [name for name, _ in source.parts]
    answer = "answer = model([images])" if names else f"{source.card.output_name} = model([images])[0]"
    loading = (
        "import openvino\n"
        f'model = openvino.compile_model("model.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "{precision}"}})\n'
        f"{answer}  # images: float32 {[1, *source.card.input_shape]}"
    )
    if names:
        loading += f"\noutputs = [answer[name] for name in {names}]"
    hint = (
        "Without the float32 hint OpenVINO computes in bfloat16 on CPUs that can, and answers differ."
        if precision == "f32"
        else f"The hint has OpenVINO compute in {PRECISIONS[precision]}, as this recipe does: with "
        "another, or on a CPU without instructions for it, answers differ."
    )
    return zipped(source, files, loading, (*runner.execution.simulated, hint, *path), any_batch=False)


def _path_notes(source: ArtifactSource, build: Build) -> tuple[str, ...]:
    """Of a model whose code looks at values: the graph has the operations that one input took."""
    shape = source.card.input_shape
    if not values_decide(source.module, shape):
        return ()
    agreed, total = follow_other_paths(build, source.module, shape)
    if agreed < total:
        raise WorkError(
            "an OpenVINO file of this model would answer wrongly: which operations it runs depends on the "
            f"values of its input, and the file holds those of one input. {total - agreed} of {total} inputs "
            "that were tried are not answered as torch does. Export it as safetensors, which is loaded into "
            "the model's own code."
        )
    return (
        "This model's code looks at the values of its input, and the file holds the operations that one "
        f"input took. {total} inputs that were tried are answered as torch does; one that needs other "
        "operations would not be.",
    )
