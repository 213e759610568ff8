"""``paretoscope mcp``: commands as tools of the Model Context Protocol, over standard input and output (extra
``mcp``, the official SDK).

A tool has the options of its command and answers with the JSON of ``--json``. It runs in a worker process, so
that a call that is cancelled stops, and others are answered meanwhile.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer import __version__
from optimizer.cli.parser import ListOf
from optimizer.cli.terminal import told
from optimizer.data.folders import ROOTS_VARIABLE, check_allowed, joined_roots
from optimizer.errors import InputError, ParetoscopeError, UnavailableError, unknown
from optimizer.formats import format_share
from optimizer.progress import Report
from optimizer.system.process_pool import STOP_SECONDS, Job, Pool

if TYPE_CHECKING:
    import mcp_types as types
    from mcp.server.context import ServerRequestContext


@dataclass(frozen=True)
class Verb:
    """How a command is a tool: what an assistant is told ``about`` it, in which ``lane`` of workers it runs,
    whether it prints ``many`` things, as a list or one a line, and how long one that was cancelled has to end
    by itself."""

    about: str
    lane: str = "measure"
    many: bool = False
    stop_seconds: float = STOP_SECONDS


VERBS = {
    "models": Verb(
        "List the models that can be measured, each with its name, which the other tools take, what it is "
        "for, its input shape, published accuracy and size, and whether its weights are here (`ready`).",
        "look",
        many=True,
    ),
    "measure": Verb(
        "Prune and quantize a model by one recipe and measure its accuracy, size and latency here, beside "
        "the uncompressed model's, with 95 % intervals. Without arguments for pruning and quantizing it "
        "measures the uncompressed model."
    ),
    "sweep": Verb(
        "Measure a grid of recipes of a model: every sparsity in `sparsities` with every number of bits in "
        "`bits`. Each configuration is answered as `measure` answers it.",
        many=True,
        stop_seconds=60,  # killed, it would stay open in the ledger,
    ),
    "find": Verb(
        "Search recipes and engines for the best configuration of a model that keeps to limits, within "
        "`budget` seconds. `found` is null where nothing is shown to keep to them.",
        stop_seconds=60,  # and another process would go on with it
    ),
    "compare": Verb(
        "Run two networks, files or models, as they are on the same images: how far the outputs of `b` lie "
        "from those of `a`, accuracy, sizes, time in turns, and where the tensors inside part ways."
    ),
    "gate": Verb(
        "Say whether a recipe of a model, or a network's file, keeps to limits: the `outcome` is pass, fail "
        "or undecided, by the bounds of 95 % intervals. Give at least one of the limits, which are "
        "`max_drop`, `min_sqnr`, `max_slowdown`, `max_instructions` and `max_size`."
    ),
    "sweeps": Verb(
        "List sweeps and questions that `sweep` and `find` were asked, newest first, with their numbers, "
        "states and outcomes.",
        "look",
        many=True,
    ),
}
"""The commands that are tools: another is one more entry."""
OUTPUT = {"help", "json", "markdown"}
"""Options that say what is printed."""
ELSEWHERE = {"cluster", "on"}
"""Options that lead to other machines, which an assistant is not led to."""
OF_OTHERS = {"cancel"}
"""Options that end what others have asked for."""
WRITTEN = {"save", "junit"}
"""Options that name a file to write."""
MEANINGS = {
    "POINTS": "in percentage points",
    "PERCENT": "in percent",
    "DB": "in dB",
    "MB": "in megabytes of 10^6 bytes",
    "MS": "in milliseconds",
    "SECONDS": "in seconds",
    "ID": "its number",
    "PATH": "the path of a folder",
    "FILE": "the path of a file",
}
"""What the help of a command leaves to the name of an option's value."""
KINDS: dict[Any, str] = {int: "integer", float: "number", str: "string"}
POLL_SECONDS = 0.1
INSTRUCTIONS = (
    "Measures what pruning and quantizing a model costs and gains on this machine: accuracy, size and "
    "latency against the uncompressed model, with 95 % intervals. `models` lists names; `measure` takes one "
    "recipe, `sweep` a grid of them, `find` the best under limits, `compare` any two networks, `gate` says "
    "whether limits are kept. Without `quick` a measurement takes minutes. Paths are those of the machine "
    "that measures, best given whole."
)


def add_mcp_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="FOLDER",
        help="files may be written below this folder (repeat); elsewhere they are only read",
    )


def run_mcp(options: argparse.Namespace) -> None:
    """Serve until standard input ends. Raises InputError, UnavailableError."""
    from optimizer.cli.main import command_parser

    try:
        import anyio
        import mcp.server  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            f"serving tools needs the package mcp ({error}): pip install 'paretoscope[mcp]'"
        ) from error
    roots = (os.environ.get(ROOTS_VARIABLE), joined_roots(options.allow, "--allow"))
    os.environ[ROOTS_VARIABLE] = os.pathsep.join(filter(None, roots))
    lanes = sorted({verb.lane for verb in VERBS.values()})
    with Pool("optimizer.cli.mcp_server:run_verb", lanes, labels=tool_label) as pool:
        anyio.run(_serve, pool, {verb: command_parser(verb) for verb in VERBS})


async def _serve(pool: Pool, parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    import mcp_types as types
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server
    from mcp.shared.exceptions import MCPError

    numbers = itertools.count(1)
    hints = types.ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True)
    tools = [
        types.Tool(
            name=verb,
            description=VERBS[verb].about,
            input_schema=schema(parsers[verb]),
            annotations=hints,
        )
        for verb in VERBS
    ]

    async def list_tools(context: Any, asked: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(
        context: "ServerRequestContext", asked: types.CallToolRequestParams
    ) -> types.CallToolResult:
        if asked.name not in VERBS:
            raise MCPError(types.INVALID_PARAMS, str(unknown("tool", asked.name, VERBS)))
        try:
            request = command_line(parsers[asked.name], asked.arguments or {})
            job = pool.submit(VERBS[asked.name].lane, asked.name, request, f"call {next(numbers)}")
            await _over(job, pool, context)
            pool.forget(job.key)
            if job.state != "done":
                raise ParetoscopeError(job.error or f"{tool_label(asked.name)} was stopped")
        except ParetoscopeError as error:
            return _answer(VERBS[asked.name], "", [str(error)])
        assert isinstance(job.result, tuple)
        return _answer(VERBS[asked.name], *job.result)

    server = Server(
        "paretoscope",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


async def _over(job: Job, pool: Pool, context: "ServerRequestContext") -> None:
    """Wait for a job, and tell the client how far it is; a call that ends before stops it."""
    import anyio

    said: object = None
    steps = itertools.count(1)  # the protocol wants numbers that grow, and shares begin anew with each step
    try:
        while not job.over:
            await anyio.sleep(POLL_SECONDS)
            if (now := (job.progress, job.message)) != said and job.message:
                share = "" if job.progress is None else f" ({format_share(job.progress)})"
                await context.session.report_progress(next(steps), message=f"{job.message}{share}")
                said = now
    finally:
        pool.cancel(job.key, VERBS[job.task].stop_seconds)


def _answer(verb: Verb, printed: str, errors: list[str]) -> "types.CallToolResult":
    """What a command printed, as text and as data, and what it said went wrong."""
    from mcp_types import CallToolResult, TextContent

    content: list[Any] = [TextContent(type="text", text=text) for text in (printed.strip(), *errors) if text]
    found = [json.loads(line) for line in printed.splitlines()]
    results = found[0] if found and isinstance(found[0], list) else found
    structured = {"results": results} if verb.many else next(iter(found), None)
    return CallToolResult(
        content=content, structured_content=structured if found else None, is_error=not found
    )


# A command as a tool


def tool_label(verb: str) -> str:
    """What a client knows it as."""
    return f"the tool {verb}"


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """What a tool can be asked, by name."""
    return {
        (action.option_strings or [action.dest])[0].lstrip("-").replace("-", "_"): action
        for action in parser._actions
        if action.help != argparse.SUPPRESS and action.dest not in OUTPUT | ELSEWHERE | OF_OTHERS
    }


def schema(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The JSON schema of a command's options."""
    actions = options_of(parser)
    return {
        "type": "object",
        "properties": {name: _property(name, action) for name, action in actions.items()},
        "required": [name for name, action in actions.items() if action.required],
        "additionalProperties": False,
    }


def _property(name: str, action: argparse.Action) -> dict[str, Any]:
    found: dict[str, Any] = {"description": _description(name, action)}
    default = action.default
    if isinstance(default, bool):
        return found | {"type": "boolean"}
    shown = {"default": default} if default not in (None, "", ()) else {}
    if isinstance(action.type, ListOf):
        items = {"type": KINDS[action.type.kind]}
        return found | {"type": "array", "items": items, "minItems": 1} | shown
    if action.metavar == "JSON":
        return found | {"type": ["string", "object"]}
    if action.choices:
        found["enum"] = list(action.choices)
    return found | {"type": KINDS.get(action.type, "string")} | shown


def _description(name: str, action: argparse.Action) -> str:
    """The help of an option, with what its value is; other options and commands as a client knows them."""
    words = re.sub(r"--([a-z][a-z-]*)", lambda found: f"`{found[1].replace('-', '_')}`", action.help or "")
    words = re.sub(
        r"`paretoscope (\w+)`", lambda found: found[0] if found[1] not in VERBS else f"`{found[1]}`", words
    )
    more = [MEANINGS[str(action.metavar)]] if action.metavar in MEANINGS else []
    if name in WRITTEN:
        more.append("below a folder that `paretoscope mcp --allow FOLDER` opened")
    return "; ".join([words.replace("%%", "%"), *more])


def command_line(parser: argparse.ArgumentParser, arguments: Mapping[str, Any]) -> list[str]:
    """The options of a call as they are typed. Raises InputError for one that is unknown or of another type,
    and for a file to be written where that is not allowed."""
    actions = options_of(parser)
    options, places = [], []
    for name in arguments:
        if not actions:
            raise InputError(f"it takes no arguments: leave out {name}")
        if name not in actions:
            raise unknown("argument", name, actions)
    for name, action in actions.items():  # places in the command's order, whatever the client's
        if name not in arguments:
            continue
        value, wanted = arguments[name], _property(name, action)
        _check_argument(name, value, wanted)
        if isinstance(value, dict):
            value = json.dumps(value)
        if wanted["type"] == "boolean":
            options += action.option_strings[:1] * value
        elif not action.option_strings:
            places.append(value)
        else:
            several = value if isinstance(value, list) else [value]
            options.append(f"{action.option_strings[0]}={','.join(map(_typed, several))}")
    return ["--json", *options, *(["--", *places] if places else [])]


def _check_argument(name: str, value: Any, wanted: Mapping[str, Any]) -> None:
    """Raises InputError for a value of another type, and for a file to be written where it may not be."""
    if not _fits(value, wanted):
        of = f" of {wanted['items']['type']}s" if "items" in wanted else ""
        kind = " or ".join(_kinds(wanted))
        raise InputError(f"{name} is {json.dumps(value)[:80]}, not of type {kind}{of}")
    if value == []:
        raise InputError(
            f"{name} is an empty list: give one {wanted['items']['type']} or more, or leave it out"
        )
    if name in WRITTEN:
        try:
            check_allowed(value)
        except InputError as error:
            raise InputError(f"{error}. `paretoscope mcp --allow FOLDER` opens one") from error


def _kinds(wanted: Mapping[str, Any]) -> list[str]:
    """The types that a property wants one of."""
    kinds = wanted["type"]
    return kinds if isinstance(kinds, list) else [kinds]


def _fits(value: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether a value is of the type that a property wants. As in JSON 8.0 is an integer, and one value is
    taken for a list of one."""
    match wanted["type"]:
        case list(kinds):
            return any(_fits(value, {"type": kind}) for kind in kinds)
        case "object":
            return isinstance(value, dict)
        case "array":
            several = value if isinstance(value, list) else [value]
            return all(_fits(one, wanted["items"]) for one in several)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case kind:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and (kind == "number" or float(value).is_integer())


def _typed(value: str | float) -> str:
    """As it is typed in a shell."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


class _Said(io.StringIO):
    """What a command says beside its answer: its progress, and what went wrong."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            self._report(None, line)
        return super().write(text)


def run_verb(verb: str, arguments: list[str], report: Report) -> tuple[str, list[str]]:
    """In a worker: what a command prints, and the sentences in which it says what went wrong."""
    from optimizer.cli.main import main

    printed, said = io.StringIO(), _Said(report)
    with (
        told(report),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(said),
        contextlib.suppress(SystemExit),  # argparse, which has said why
    ):
        main([verb, *arguments])
    errors = re.findall(r"^paretoscope[ \w]*: (.*?)(?: \(see .*--help\))?$", said.getvalue(), re.M)
    return printed.getvalue(), errors
