"""What engines are called where people read."""

ENGINE_LABELS = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "sparse": "sparse kernels",
    "compile": "torch.compile",
    "torch": "torch eager",
}


def engine_label(engine: str) -> str:
    """An engine's name on screen; one that is not ours is called by its own name."""
    return ENGINE_LABELS.get(engine, engine)
