"""The 1,000 classes of ILSVRC-2012, in the order of the models' outputs."""

from collections.abc import Sequence

from optimizer.system.paths import asset

CLASSES = 1000


def class_names() -> tuple[str, ...]:
    """One short English name a class, as torchvision gives it."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def is_imagenet(names: Sequence[str]) -> bool:
    """Whether names of classes are these, in this order, also with other words for them (``tench, Tinca
    tinca``) or for some of them."""
    ours = class_names()
    equal = sum(name.split(",")[0].lower() == own.lower() for name, own in zip(names, ours, strict=False))
    return len(names) == len(ours) and equal > 0.9 * len(ours)


def has_folders(folders: Sequence[str]) -> bool:
    """Whether most of these class folders are named after these classes, by WordNet id or by name."""
    known = {*wordnet_ids(), *map(_plain, class_names())}
    return 2 * sum(_plain(folder.split(",")[0]) in known for folder in folders) > len(folders)


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def wordnet_ids() -> tuple[str, ...]:
    """One WordNet id a class, such as ``n01440764`` for the first."""
    return tuple(asset("imagenet_wordnet_ids.txt").read_text().split())
