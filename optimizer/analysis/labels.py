"""What engines and states are called where people read."""

from enum import StrEnum

from optimizer.methods.engines import engine_info


def engine_label(engine: str) -> str:
    """An engine's name on screen; one that is not here is called by its own name."""
    return engine_info(engine).label


class Labelled(StrEnum):
    """A state. Its value is in JSON and in tables, and stays; its ``label`` is what people read (the value,
    where no other is given), and may be reworded: nothing is decided by it."""

    label: str

    def __new__(cls, value: str, label: str = "") -> "Labelled":
        member = str.__new__(cls, value)
        member._value_ = value
        member.label = label or value
        return member
