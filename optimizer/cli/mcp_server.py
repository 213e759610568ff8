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
    """How a command is a tool: in which ``lane`` of workers it runs, whether it prints ``many`` things, as a
    list or one a line, and how long one that was cancelled has to end by itself."""

    lane: str = "measure"
    many: bool = False
    stop_seconds: float = STOP_SECONDS


VERBS = {
    "models": Verb("look", many=True),
    "measure": Verb(),
    "sweep": Verb(many=True, stop_seconds=60),  # killed, it would stay open in the ledger,
    "find": Verb(stop_seconds=60),  # and another process would go on with it
    "compare": Verb(),
    "gate": Verb(),
}
"""The commands that are tools: another is one more entry."""
OUTPUT = {"help", "json", "markdown"}
"""Options that say what is printed."""
ELSEWHERE = {"cluster", "on"}
"""Options that lead to other machines, which an assistant is not led to."""
WRITTEN = {"save", "junit"}
"""Options that name a file to write."""
POLL_SECONDS = 0.1
INSTRUCTIONS = (
    "Measures what pruning and quantizing a model costs and gains on this machine: accuracy, size and "
    "latency against the uncompressed model, with 95 % intervals. `models` lists names; `measure` takes one "
    "recipe, `sweep` a grid of them, `find` the best under limits, `compare` any two files, `gate` says "
    "whether limits are kept. Without `quick` it takes minutes."
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
            description=parsers[verb].description,
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
        if action.help != argparse.SUPPRESS and action.dest not in OUTPUT | ELSEWHERE
    }


def schema(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The JSON schema of a command's options."""
    actions = options_of(parser)
    return {
        "type": "object",
        "properties": {name: _property(action) for name, action in actions.items()},
        "required": [name for name, action in actions.items() if action.required],
        "additionalProperties": False,
    }


def _property(action: argparse.Action) -> dict[str, Any]:
    found: dict[str, Any] = {"description": action.help.replace("%%", "%")} if action.help else {}
    default = action.default
    if isinstance(default, bool):
        return found | {"type": "boolean"}
    if isinstance(default, list):
        kind = {int: "integer", float: "number"}.get(type(default[0]), "string")
        return found | {"type": "array", "items": {"type": kind}, "default": default}
    if action.choices:
        found["enum"] = list(action.choices)
    kind = {int: "integer", float: "number"}.get(action.type, "string")  # type: ignore[call-overload]
    return found | {"type": kind} | ({} if default in (None, ()) else {"default": default})


def command_line(parser: argparse.ArgumentParser, arguments: Mapping[str, Any]) -> list[str]:
    """The options of a call as they are typed. Raises InputError for one that is unknown or of another type,
    and for a file to be written where that is not allowed."""
    actions = options_of(parser)
    options, places = [], []
    for name in arguments:
        if name not in actions:
            raise unknown("argument", name, actions)
    for name, action in actions.items():  # places in the command's order, whatever the client's
        if name not in arguments:
            continue
        value = arguments[name]
        wanted = _property(action)["type"]
        fits = isinstance(value, {"boolean": bool, "array": list, "string": str}.get(wanted, int | float))
        if not fits or (wanted in ("integer", "number") and isinstance(value, bool)):
            raise InputError(f"{name} is {json.dumps(value)[:80]}, not of type {wanted}")
        if name in WRITTEN:
            try:
                check_allowed(value)
            except InputError as error:
                raise InputError(f"{error}. `paretoscope mcp --allow FOLDER` opens one") from error
        if wanted == "boolean":
            options += action.option_strings[:1] * value
        elif not action.option_strings:
            places.append(value)
        else:
            text = ",".join(map(str, value)) if wanted == "array" else str(value)
            options.append(f"{action.option_strings[0]}={text}")
    return ["--json", *options, *(["--", *places] if places else [])]


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
