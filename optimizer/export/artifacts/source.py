"""What a file is written of: a compressed model and all that is known of it."""

from dataclasses import dataclass

from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel
from optimizer.engine.base import Build
from optimizer.errors import InputError
from optimizer.model.preprocessing import Preprocessing
from optimizer.records import ModelCard, Part, Result


@dataclass(frozen=True)
class ArtifactSource:
    """A compressed model and what is known of it.

    ``module`` is the uncompressed one that ``compressed`` was made of, its batch norm folded; ``calibration``
    float32 ``[N, C, H, W]`` gives activation ranges: N may be 0 where activations keep 32 bits. ``result`` is
    its measurement, if there is one. ``build`` is what the OpenVINO engine prepared of ``module``, where that
    is at hand: it takes seconds. ``parts`` are the outputs that lie one behind the other in what ``module``
    gives, where those are several; a graph that is exported has each apart. ``names`` are those of the input
    and, of a single one, of the output there. ``preprocessing`` and ``class_names`` are the model's, where
    they are known.
    """

    card: ModelCard
    module: nn.Module
    compressed: CompressedModel
    calibration: Tensor
    threads: int = 1
    result: Result | None = None
    build: Build | None = None
    parts: tuple[Part, ...] = ()
    names: tuple[str, str] = ("images", "logits")
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.result is None:
            return
        request = self.result.request
        recipes = request.recipe.canonical(), self.compressed.recipe.canonical()
        if request.model != self.card.name or recipes[0] != recipes[1]:
            raise InputError(
                f"the result is of {request.model}, {request.recipe.describe()}, not of {self.card.name}, "
                f"{self.compressed.recipe.describe()}: give the result of this very model, or none"
            )
