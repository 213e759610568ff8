"""What every command's options have in common."""

import argparse
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from optimizer.system.paths import STORE_VARIABLE


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse's own would print the usage first."""

    def error(self, message: str) -> NoReturn:
        shown = re.sub(r"://.*@", "://***@", message, flags=re.DOTALL)  # an address with its password
        shown = re.sub(r"(password=)[^&\s]+", r"\1***", shown)
        self.exit(2, f"{self.prog}: {shown} (see {self.prog} --help)\n")


@dataclass(frozen=True, slots=True)
class ListOf:
    """The values of an option, each of one ``kind``, with commas between."""

    kind: type

    def __call__(self, text: str) -> list[Any]:
        try:
            return [self.kind(part) for part in text.split(",")]
        except ValueError as error:
            example = "4,8" if self.kind is int else "0.3,0.5"
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as {example}") from error


def add_store_option(parser: argparse.ArgumentParser, command: bool = False) -> None:
    """Also after a ``command``, where it is not told of again."""
    parser.add_argument(
        "--store",
        metavar="URL",
        default=argparse.SUPPRESS if command else None,  # it would undo what stands before the command
        help=argparse.SUPPRESS
        if command
        else "keep results in a PostgreSQL database, postgresql://USER@HOST/DATABASE, in place of the data "
        f"folder ({STORE_VARIABLE}); a password is better in PGPASSWORD or ~/.pgpass",
    )
