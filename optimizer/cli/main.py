"""The dashboard's verbs from a shell, on the same store.

``--json`` prints JSON on standard output and nothing else there; progress and errors go to standard error.
Exit codes: 0 done, 1 failed, 2 bad input or something that this machine lacks; 3 a gate that can't tell,
or a search that found nothing. A gate that failed gives 2: its 1 says that a limit is broken.
"""

import argparse
import atexit
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from optimizer import __version__
from optimizer.cli.parser import Parser, add_store_option
from optimizer.errors import LITTLE_MEMORY, InputError, ParetoscopeError, UnavailableError, words_of
from optimizer.system.paths import STORE_VARIABLE
from optimizer.system.waiting import waiting

COMMANDS = {
    "models": ("models", "list the models that can be picked"),
    "add": ("models", "add a model of your own, of a file, to those that can be picked"),
    "remove": ("models", "remove a model that was added"),
    "doctor": ("timing", "say what makes timings on this machine noisy, and what would mend it"),
    "measure": ("results", "measure one recipe against the uncompressed model"),
    "sweep": ("sweeps", "measure a grid of sparsities and bit widths"),
    "sweeps": ("sweeps", "list sweeps and questions: who asked for what, when, and the outcome"),
    "preset": ("results", "find a recipe for people in a hurry, on your own images"),
    "find": (
        "find",
        "find the best configuration under limits: exit code 0 found, 3 nothing is shown to keep to them",
    ),
    "compare": ("compare", "hold two files or models against each other, as they are"),
    "gate": (
        "gate",
        "say whether a recipe keeps to limits: exit code 0 it does, 1 it does not, 2 an error, 3 undecided",
    ),
    "complexity": ("timing", "time against the number of weights"),
    "coverage": ("timing", "each layer's precision, kernel and share of the time, as it ran"),
    "throughput": ("timing", "throughput against latency: batch sizes, threads and streams"),
    "export": ("results", "write the charts and the table of what was measured"),
    "save": (
        "results",
        "write the compressed model: a file such as .onnx, or a zip with recipe and model card",
    ),
    "report": ("results", "write one HTML report that opens without a network"),
    "stored": ("results", "say what is stored, what failed and what can't be read"),
    "mcp": ("mcp_server", "serve commands as tools (Model Context Protocol) to an assistant"),
    "dashboard": ("dashboard", "serve the dashboard"),
}
"""The module of this folder that has a command's ``add_NAME_options(parser)`` and ``run_NAME(options)``,
which gives an exit code or None, and what is said of it. The module is imported when the command is used."""


class CommandParser(Parser):
    """Of one of the COMMANDS. Its options are added when they are needed."""

    def __init__(self, *, command: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.command = command
        self._complete = False

    def complete(self) -> None:
        if self._complete:
            return
        self._complete = True
        module = import_module(f"optimizer.cli.{COMMANDS[self.command][0]}")
        getattr(module, f"add_{self.command}_options")(self)
        self.set_defaults(run=getattr(module, f"run_{self.command}"))
        add_store_option(self, command=True)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        found, rest = super().parse_known_args(args, namespace)
        if rest:  # refused here, with the command's own help: argparse leaves it to the whole parser
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    atexit.register(gc.freeze)  # torch is not looked through for garbage at the end, which takes .4 s
    _open_closed_streams()
    failed: int | None = None
    try:
        options = parser().parse_args(arguments)  # imports what the command needs
        failed = getattr(options, "failed", None)  # where 0 and 1 say something else
        os.environ |= waiting()  # before torch is imported
        if options.store is not None:
            os.environ[STORE_VARIABLE] = options.store  # workers and the dashboard's server read it too
        _tell_of_plugins()
        return options.run(options) or 0
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failed or 0
    except ParetoscopeError as error:
        print(f"paretoscope: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError | UnavailableError) else failed or 1
    except KeyboardInterrupt:
        print("paretoscope: stopped; what was measured before is in the store", file=sys.stderr)
        return 130
    except MemoryError:
        print(f"paretoscope: {LITTLE_MEMORY}", file=sys.stderr)
        return failed or 1
    except Exception as error:
        if failed is None:
            raise
        traceback.print_exc()
        print(f"paretoscope: {words_of(error)}", file=sys.stderr)
        return failed


def _open_closed_streams() -> None:
    """Standard streams that whoever started this closed lead nowhere: a file that is opened would get their
    number, and what a library prints would land in it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def _tell_of_plugins() -> None:
    """On standard error, which methods are missing here, and why; `models` tells of missing models itself."""
    from optimizer.methods import plugins  # imported by what adds options

    for problem in dict.fromkeys(plugins.problems):
        print(f"paretoscope: {problem}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    whole = Parser(
        prog="paretoscope",
        description="Prune and quantize a pretrained model; see accuracy, size and latency, measured here.",
    )
    whole.add_argument("--version", action="version", version=f"paretoscope {__version__}")
    add_store_option(whole)
    commands = whole.add_subparsers(required=True, metavar="command", parser_class=CommandParser)
    for name, (_, words) in COMMANDS.items():
        commands.add_parser(name, help=words, description=words, command=name)
    return whole


def command_parser(name: str) -> argparse.ArgumentParser:
    """That of one command, with its options."""
    found = CommandParser(prog=f"paretoscope {name}", description=COMMANDS[name][1], command=name)
    found.complete()
    return found
