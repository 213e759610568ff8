"""Image classifiers of transformers, built by a repository's configuration (extra ``hub``)."""

import json
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from optimizer.errors import InputError, UnavailableError, one_line
from optimizer.model.added.architectures import Fit
from optimizer.model.added.cards import content_path

TRANSFORMERS = "transformers/"
"""Before an architecture's name."""
TIMM_WRAPPER = "timm_wrapper"
"""Hands what a configuration says on to timm, unread."""


class Logits(nn.Module):
    """A classifier of transformers that answers with its logits alone, ``[N, classes]``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images).logits
        return logits


def without_code(settings: Any) -> Any:
    """A configuration without what leads to code: modules of the repository (``auto_map``), kernels of the
    hub (``attn_implementation`` and its like)."""
    if isinstance(settings, list):
        return [without_code(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: without_code(value)
        for key, value in settings.items()
        if key != "auto_map" and "_implementation" not in key
    }


def load(architecture: str, config: str, file: str) -> tuple[Logits, Fit]:
    """The module, and what its weights lack; names that it has not are left, as transformers does. Nothing of
    the repository is run. Raises UnavailableError without transformers, InputError for what it can't build.
    """
    try:
        import transformers
    except ImportError as error:
        raise UnavailableError(
            "this model's architecture needs the package transformers: pip install 'paretoscope[hub]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings: dict[str, Any] = without_code(json.loads(config))
    kind = str(settings.pop("model_type", ""))
    if kind == TIMM_WRAPPER:
        raise InputError(
            f"a configuration of the kind {TIMM_WRAPPER} has to name timm's architecture, as timm writes it: "
            "choose another repository"
        )
    try:
        known = transformers.AutoConfig.for_model(kind, **settings)
        classifier: Any = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(known)]
        tensors = safetensors.torch.load_file(content_path(file))
        module, apart = classifier.from_pretrained(
            None, config=known, state_dict=tensors, output_loading_info=True
        )
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        reason = one_line(error, 150)
        raise InputError(
            f"transformers can't build an image classifier {kind[:40]!r} of this configuration ({reason})"
        ) from error
    missing = tuple(sorted(apart["missing_keys"]))
    return Logits(module), Fit(architecture, int(known.num_labels or 0), missing, (), ())
