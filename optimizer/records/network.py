"""What is known of a network before it is loaded, and of its outputs."""

from dataclasses import dataclass

Part = tuple[str, tuple[int, ...]]
"""One of a network's outputs by its name, and its shape for one image."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model before it is loaded. ``None`` is "not published", never 0; 0 ``classes`` is a
    network that is no classifier."""

    name: str
    source: str
    description: str
    parameters: int | None
    input_shape: tuple[int, ...]
    classes: int
    published_top1: float | None = None
    download_bytes: int | None = None
    ready: bool = True
    version: str = ""
    bundled_images: bool = False
    licence: str = ""

    @property
    def output_name(self) -> str:
        """What its one output is called in graphs, and in code that runs them."""
        return "logits" if self.classes else "output"
