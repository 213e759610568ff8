"""The models that were added to this machine, of a user's own files."""

from optimizer.model.added import cards, files
from optimizer.model.sources import LoadedModel, Source
from optimizer.progress import Report
from optimizer.records import ModelCard


def list_cards() -> dict[str, ModelCard]:
    return {name: model.card for name, model in cards.added_models().items()}


def load(name: str, report: Report) -> LoadedModel:
    """Raises InputError for a file that is missing or damaged."""
    return files.load(cards.added_model(name), report)


SOURCE = Source(list_cards, load)
