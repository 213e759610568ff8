"""``paretoscope compare``: two files or models against each other."""

import argparse
import json
import os

from optimizer import on_demand
from optimizer.analysis.two_files import CompareRequest, NetworkRef
from optimizer.analysis.two_files_words import as_json, text
from optimizer.cli.models import shape_of
from optimizer.cli.options import add_data_options, add_timing_options, data_of, settings_of
from optimizer.cli.terminal import end_of_line, tell
from optimizer.data.folders import expand

NETWORK = (
    "an .onnx file, an OpenVINO .xml with its .bin beside it, a .zip that `paretoscope save` has written, or "
    "a model's name"
)


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help=NETWORK)
    parser.add_argument("b", help=f"{NETWORK}; results are B relative to A")
    add_data_options(parser, "those that come with the model, or that a file was saved from; else made up")
    add_files_options(parser)
    add_timing_options(parser, "openvino or onnxruntime; without it the first that runs both")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def add_files_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--like",
        metavar="MODEL",
        default="",
        help="preprocess images and name classes as for this model; by default as for that which a file was "
        "saved from, or as the file says",
    )
    files.add_argument(
        "--input-shape",
        type=shape_of,
        default=(),
        metavar="CxHxW",
        help="channels, height and width, such as 3x224x224, of files that leave them open",
    )


def compare_request(options: argparse.Namespace, a: str, b: str, called: str = "") -> CompareRequest:
    """``b`` may be ``called`` something else than its file."""
    return CompareRequest(
        NetworkRef(_absolute(a)),
        NetworkRef(_absolute(b), called),
        data_of(options),
        options.engine,
        settings_of(options),
        options.input_shape,
        options.like,
    )


def _absolute(place: str) -> str:
    """A worker may be in another folder. What is no file names a model."""
    path = expand(place)
    return os.path.realpath(path) if os.path.isfile(path) else place


def run_compare(options: argparse.Namespace) -> None:
    run = on_demand.compare(compare_request(options, options.a, options.b), tell)
    end_of_line()
    print(json.dumps(as_json(run)) if options.json else text(run))
