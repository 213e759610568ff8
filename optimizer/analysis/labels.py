"""What engines and states are called where people read."""

from enum import StrEnum

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


class Labelled(StrEnum):
    """A state. Its value is in JSON and in tables, and stays; its ``label`` is what people read (the value,
    where no other is given), and may be reworded: nothing is decided by it."""

    label: str

    def __new__(cls, value: str, label: str = "") -> "Labelled":
        member = str.__new__(cls, value)
        member._value_ = value
        member.label = label or value
        return member
