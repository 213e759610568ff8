"""The graph that the OpenVINO engine compiles, as OpenVINO's own two files."""

import tempfile
from pathlib import Path

from optimizer.engine import openvino
from optimizer.export.artifacts.archive import zipped
from optimizer.export.artifacts.take_away import TakeAway


def write_openvino(take_away: TakeAway) -> bytes:
    """The graph that the OpenVINO engine compiles, weights, activation ranges and all."""
    build = take_away.build or openvino.prepare(take_away.module, take_away.card.input_shape)
    runner = build(take_away.compressed, take_away.calibration, threads=take_away.threads, batch=1)
    assert runner.memory_probe is not None
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        runner.memory_probe(folder)
        files = {name: (Path(folder) / name).read_bytes() for name in ("model.xml", "model.bin")}
    loading = (
        "import openvino\n"
        'model = openvino.compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})\n'
        f"logits = model([images])[0]  # images: float32 {[1, *take_away.card.input_shape]}"
    )
    hint = "Without the float32 hint OpenVINO computes in bfloat16 on CPUs that can, and answers differ."
    return zipped(take_away, files, loading, (*runner.execution.simulated, hint))
