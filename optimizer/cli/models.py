"""Commands about models: which there are, and a user's own files among them."""

import argparse
import sys
from dataclasses import replace
from typing import Any

from optimizer.cli.parser import ListOf
from optimizer.cli.terminal import end_of_line, say, tell
from optimizer.data.folders import absolute, expand
from optimizer.errors import InputError, unknown
from optimizer.formats import columns
from optimizer.model.added.cards import AddedModel, Choices, Examined
from optimizer.model.preprocessing import CHANNELS, INTERPOLATIONS, RANGES, Preprocessing, image_shape
from optimizer.records import DataSpec, encode

NOT_TRIED = "not: no folder there has a class of this model as its name, and images in it that can be read"


def add_models_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", help="only those of one source, such as bundled, added or torchvision")
    parser.add_argument("--json", action="store_true", help="one JSON array")


def run_models(options: argparse.Namespace) -> None:
    from optimizer.model.catalogue import catalogue, problems

    known = catalogue().values()
    sources = sorted({card.source for card in known})
    if options.source not in (None, *sources):
        raise unknown("source", options.source, sources)
    cards = [card for card in known if options.source in (None, card.source)]
    for problem in problems():
        say(problem)
    if options.json:
        print(encode(cards).decode())
        return
    rows = [("name", "source", "top-1", "weights", "download", "ready")]
    for card in cards:
        top1 = "" if card.published_top1 is None else f"{100 * card.published_top1:.1f} %"
        weights = "" if card.parameters is None else f"{card.parameters / 1e6:.2f} M"
        download = "" if card.download_bytes is None else f"{card.download_bytes / 1e6:.1f} MB"
        ready = "yes" if card.ready else "no"
        rows.append((card.name, card.source, top1, weights, download, ready))
    print(columns(rows))


def add_add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="what to call it: letters, digits, dots, dashes, underscores")
    file = parser.add_mutually_exclusive_group(required=True)
    file.add_argument(
        "--checkpoint", metavar="FILE", help="weights: .safetensors, or .pt and .pth without code"
    )
    file.add_argument(
        "--hub",
        metavar="ID",
        help="an image classifier of the Hugging Face hub, such as timm/resnet18.a1_in1k",
    )
    file.add_argument(
        "--onnx", metavar="FILE", help="a network of images; its outputs are held against ONNX Runtime's"
    )
    parser.add_argument(
        "--architecture",
        metavar="A",
        help="of the weights: one of torchvision's, timm/NAME, a plugin's; without it the one that they fit",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes: a text file with one a line (in the order of the outputs, or with its "
        "output from 0 on, such as `tench 0`), JSON, or a folder with one subfolder each",
    )
    parser.add_argument(
        "--fidelity",
        action="store_true",
        help="it is no classifier: compare its outputs with the uncompressed network's",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="image folder with one subfolder a class: the preprocessing is tried on it",
    )
    images = parser.add_argument_group("preprocessing (otherwise the file's or the architecture's)")
    images.add_argument(
        "--input-shape", type=shape_of, metavar="CxHxW", help="of one image, such as 3x224x224"
    )
    images.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="the shorter side, before the middle is cropped; 0: stretch",
    )
    images.add_argument("--channels", choices=tuple(CHANNELS), help="in the order in which it takes them")
    images.add_argument("--range", type=int, choices=RANGES, help="what white is, before mean and std")
    images.add_argument("--mean", type=ListOf(float), metavar="M,M,M", help="subtracted, one per channel")
    images.add_argument("--std", type=ListOf(float), metavar="S,S,S", help="divided by, one per channel")
    images.add_argument("--interpolation", choices=tuple(INTERPOLATIONS))


def run_add(options: argparse.Namespace) -> None:
    from optimizer.data.classes import class_names
    from optimizer.model import catalogue
    from optimizer.model.added.files import examine
    from optimizer.model.sources.imagenet import CLASSES

    if options.fidelity and options.classes:
        raise InputError("--fidelity compares outputs, which are no classes: leave --classes out")
    if options.hub:
        about = catalogue.examine_hub(options.hub, tell)
    else:
        file = expand(options.checkpoint or options.onnx)
        about = examine(file, options.architecture or "", tell)
    end_of_line()
    for what, words in about.facts:
        print(f"{what:<14}{words}")
    choices = Choices(
        options.name,
        options.architecture or "",
        _preprocessing(options, about),
        class_names(options.classes) if options.classes else (),
        not options.fidelity,
    )
    model = catalogue.add(about, choices, tell)
    end_of_line()
    print(f"{'images':<14}{model.preprocessing.describe()}")
    left = [f"--{one}" for one in ("mean", "std", "range", "channels") if getattr(options, one) is None]
    if left and not about.preprocessing_of:
        print(f"{'':<14}ImageNet's, a guess: the file says nothing of it ({', '.join(left)})")
    if about.asks_shape and options.input_shape is None:
        shape = "x".join(map(str, model.preprocessing.input_shape))
        print(f"{'':<14}the file leaves its input shape open, {shape} is a guess: --input-shape says another")
    print(f"{'':<14}{model.description}")
    if model.classes and not model.class_names:
        imagenet = "ImageNet's are known by theirs, other " if model.classes == CLASSES else ""
        print(
            f"{'classes':<14}{model.classes:,}, without names (--classes): {imagenet}folders are numbered in "
            "alphabetical order"
        )
    if options.data:
        print(f"{'tried':<14}{_tried(model, options.data) or NOT_TRIED}")
    print(f"added {model.name}: paretoscope measure {model.name} --data FOLDER")


def _tried(model: AddedModel, data: str) -> str:
    from optimizer.data.trial import try_preprocessing
    from optimizer.model.added.files import load

    spec = DataSpec(absolute(data))
    words = try_preprocessing(load(model), model.preprocessing, spec, tell).words
    end_of_line()
    return words


def add_remove_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")


def run_remove(options: argparse.Namespace) -> None:
    from optimizer.model import catalogue

    catalogue.remove(options.name)
    print(f"removed {options.name}; what was measured of it stays", file=sys.stderr)


def shape_of(text: str) -> tuple[int, ...]:
    """As :func:`~optimizer.model.preprocessing.image_shape`, for an option. Raises ArgumentTypeError."""
    try:
        return image_shape(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _preprocessing(options: argparse.Namespace, about: Examined) -> Preprocessing | None:
    """The file's or the architecture's, with what the options say. None where they say nothing."""
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("channels", "range", "interpolation")
        if getattr(options, name) is not None
    }
    if options.resize is not None:
        given["resize"] = options.resize or None
    base = about.preprocessing.with_channels(
        given.get("channels") or ("grey" if (options.input_shape or (0,))[0] == 1 else None)
    )
    given |= {name: tuple(getattr(options, name)) for name in ("mean", "std") if getattr(options, name)}
    if options.input_shape and options.input_shape[0] != base.input_shape[0]:
        raise InputError(
            f"--input-shape has {options.input_shape[0]} channels and the images {base.input_shape[0]}: give "
            "--channels"
        )
    if options.input_shape is not None:
        base = base.at_size(options.input_shape[1:])
    return replace(base, **given) if given or options.input_shape else None
