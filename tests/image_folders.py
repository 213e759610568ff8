"""Image folders to test with, and the classes of a model that reads them."""

import json
from collections.abc import Callable
from pathlib import Path

CLASSES = ("T-shirt/top", "Ankle boot", "great white shark, white shark", "cardigan", "Cardigan")
IDS = ("n00000001", "n00000002", "n00000003", "n00000004", "n00000005")
Fill = Callable[..., Path]
"""Of names of files, and ``content`` for all of them: the folder where they are now."""


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)
