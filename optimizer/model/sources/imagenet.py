"""The 1,000 classes of ILSVRC-2012, in the order of the models' outputs."""

from torchvision.models import ResNet18_Weights

from optimizer.system.paths import asset


def class_names() -> tuple[str, ...]:
    """One short English name a class, as torchvision gives it."""
    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def wordnet_ids() -> tuple[str, ...]:
    """One WordNet id a class, such as ``n01440764`` for the first."""
    return tuple(asset("imagenet_wordnet_ids.txt").read_text().split())
