"""What a source of models is. Each file beside this one is a source, or finds sources.

A source is two functions, three when its models are downloaded. A package of a user's own adds one through
an entry point in the group ``paretoscope.models`` that names a :class:`Source`, or a function without
arguments that returns one::

    [project.entry-points."paretoscope.models"]
    mine = "my_package.models:source"
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor, nn

from optimizer.model.preprocessing import Preprocessing
from optimizer.progress import Report
from optimizer.records import ModelCard, Part


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with what is needed to feed it and to read its logits ``[N, classes]``.

    ``preprocess`` makes ``[C, H, W]`` float32 of an image in the mode that the card's channels ask for
    (``L`` for one, ``RGB`` for three). ``classes`` and ``wordnet_ids`` have one name a class, or are empty
    where they are not known. ``parts``: the outputs that lie one behind the other in a row of no logits.
    ``input_name`` is that of the file that it came from. ``notes``: what to know of its results.
    ``preprocessing`` is what ``preprocess`` does, where it is known; an exported file says it.
    """

    card: ModelCard
    module: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    classes: tuple[str, ...]
    wordnet_ids: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    input_name: str = "images"
    notes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None

    @property
    def names(self) -> tuple[str, str]:
        """Of its input and of its one output, in a graph that is exported."""
        return self.input_name, self.parts[0][0] if self.parts else self.card.output_name

    @property
    def joined(self) -> tuple[Part, ...]:
        """The outputs of a module that joins several."""
        return self.parts if len(self.parts) > 1 else ()


@dataclass(frozen=True)
class Source:
    """Where some models come from.

    ``cards()`` lists them by name and must be cheap: no weight is read. ``load(name, report)`` raises
    InputError for a damaged file, UnavailableError for what this machine lacks. ``download(name, report,
    force)`` fetches the weights, again with ``force``, and gives their path.
    """

    cards: Callable[[], dict[str, ModelCard]]
    load: Callable[[str, Report], LoadedModel]
    download: Callable[[str, Report, bool], Path] | None = None
