"""The command line's verbs as tools, asked by the SDK's own client of the real process."""

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from optimizer.cli.main import command_parser, main
from optimizer.cli.mcp_server import VERBS, command_line, options_of, schema
from optimizer.cli.options import recipe_of
from optimizer.errors import InputError
from optimizer.store import ledger
from optimizer.store.results import Store

pytestmark = pytest.mark.skipif(
    find_spec("mcp") is None, reason="needs the package mcp"
)  # takes long to import

QUICK_FIND = {"model": "fashion-mlp", "limit": 200, "max_size_mb": 100, "engine": "torch"}
QUICK = {"model": "fashion-mlp", "quick": True, "limit": 200, "threads": 1, "engine": "torch"}


@asynccontextmanager
async def client(home: Path, *options: str) -> AsyncIterator[Any]:
    import mcp
    from mcp.client.stdio import stdio_client

    command = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "optimizer.cli", "mcp", *options],
        env={**os.environ, "PARETOSCOPE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    errors = sys.__stderr__  # by default that which a test captured when the package was imported
    async with mcp.Client(stdio_client(command, errors), read_timeout_seconds=120) as connected:
        yield connected


@pytest.mark.slow
def test_tools_answer_with_the_command_s_json_refuse_in_a_sentence_and_stop(
    home: Path, tmp_path: Path
) -> None:
    from mcp import MCPError

    heard: list[tuple[float, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async def ask() -> None:
        allowed = tmp_path / "allowed"
        allowed.mkdir()
        async with client(home, "--allow", str(allowed)) as server:
            tools = {tool.name: tool for tool in (await server.list_tools()).tools}
            assert tools.keys() == VERBS.keys()
            assert tools["measure"].input_schema["required"] == ["model"]

            models = await server.call_tool("models", {"source": "bundled"})
            named = [card["name"] for card in models.structured_content["results"]]
            assert "fashion-mlp" in named

            asked = {**QUICK, "sparsity": 0.5, "weight_bits": 8}
            measured = await server.call_tool("measure", asked, progress_callback=hear)
            assert not measured.is_error
            assert json.loads(measured.content[0].text) == measured.structured_content
            assert measured.structured_content["recipe"]["prune"]["sparsity"] == 0.5
            assert [number for number, _ in heard] == sorted({number for number, _ in heard})
            assert any("scoring" in (message or "") for _, message in heard)

            swept = await server.call_tool("sweep", {**QUICK, "sparsities": [0, 0.5], "bits": [8]})
            sparsities = [one["recipe"]["prune"]["sparsity"] for one in swept.structured_content["results"]]
            assert sparsities == [0.5, None], "what was measured before comes first"

            for name, arguments, words in (
                ("measure", {"model": "fashion-mlpp"}, "unknown model 'fashion-mlpp'"),
                ("measure", {**QUICK, "sparsity": 1.5}, "1.5"),
                ("measure", {**QUICK, "sparsity": "half"}, 'sparsity is "half", not of type number'),
                ("measure", {**QUICK, "wings": 2}, "unknown argument 'wings'"),
                ("measure", {}, "required: model"),
                ("gate", {**QUICK, "max_size": 1, "save": str(tmp_path / "x.json")}, "mcp --allow FOLDER"),
            ):
                refused = await server.call_tool(name, arguments)
                assert refused.is_error
                (said,) = refused.content
                assert words in said.text
                assert "\n" not in said.text
            assert not (tmp_path / "x.json").exists()

            asked = {**QUICK, "max_size": 100, "save": str(allowed / "x.json")}
            gate = await server.call_tool("gate", asked)
            assert gate.structured_content["outcome"] == "pass"
            assert (allowed / "x.json").is_file()

            (process,) = (one for one in psutil.Process().children() if "mcp" in one.cmdline())
            busy = [one for one in process.children(recursive=True) if "worker" in " ".join(one.cmdline())]
            with anyio.move_on_after(2):  # a full measurement takes longer
                await server.call_tool("measure", {"model": "fashion-vit", "finetune": 2000, "sparsity": 0.6})
            await until(lambda: any(not one.is_running() for one in busy) or quiet(busy))
            async with anyio.create_task_group() as calls:
                calls.start_soon(server.call_tool, "find", {**QUICK_FIND, "budget": 3600})
                await until(lambda: newest() == "running")
                calls.cancel_scope.cancel()
            await until(lambda: newest() == "cancelled")
            again = await server.call_tool("measure", {**QUICK, "sparsity": 0.5, "weight_bits": 8})
            assert again.structured_content == measured.structured_content
            with pytest.raises(MCPError, match="unknown tool 'remove'"):
                await server.call_tool("remove", {"name": "x"})

    anyio.run(ask)
    assert not any("fashion-vit" in result.request.model for result in Store().results())


def newest() -> str:
    """The state of the sweep or question that was asked for last."""
    return next((sweep.state for sweep in ledger.sweeps(Store())), "")


async def until(done: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not done():
            await anyio.sleep(0.2)


def quiet(processes: list[psutil.Process]) -> bool:
    """Whether those that are still there do nothing for a moment."""
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            if one.cpu_percent(0.3) >= 10:
                return False
    return True


def test_a_tool_has_the_options_of_its_command() -> None:
    for verb in VERBS:
        parser = command_parser(verb)
        properties = schema(parser)["properties"]
        assert "json" not in properties
        given = {name: example(action_schema) for name, action_schema in properties.items()}
        parser.parse_args(
            command_line(parser, {name: v for name, v in given.items() if name not in ("save", "junit")})
        )
    assert "batch_size" in options_of(command_parser("measure"))


def test_the_list_of_tools_says_all_that_a_call_takes() -> None:
    """Whoever reads it has neither the help of the command line nor its names of values."""
    for verb, entry in VERBS.items():
        parser = command_parser(verb)
        properties = schema(parser)["properties"]
        told = {name: property["description"] for name, property in properties.items()}
        for words in (entry.about, *told.values()):
            assert len(words.split()) > 2, (verb, words)
            assert "--" not in words.replace("mcp --allow", ""), (verb, words)
            assert "exit code" not in words, (verb, words)
            for named in re.findall(r"`paretoscope (\w+)", words):
                assert named not in VERBS, (verb, words)
            for named in re.findall(r"`(\w+)`", words):
                keys = {"ready", "found", "outcome"}  # of answers
                assert named in {*VERBS, *properties, *keys}, (verb, words)
        for name, action in options_of(parser).items():
            if action.metavar in ("FILE", "PATH"):
                assert "the path of a " in told[name], (verb, name)
            if action.metavar in ("POINTS", "PERCENT", "DB", "MB", "MS", "SECONDS"):
                assert "; in " in told[name], (verb, name)
    engine = schema(command_parser("find"))["properties"]["engine"]
    assert (engine["type"], engine["items"]) == ("array", {"type": "string"})
    assert (
        "path of a file, or the text" in schema(command_parser("gate"))["properties"]["recipe"]["description"]
    )


def test_values_are_of_the_type_that_the_list_of_tools_says() -> None:
    parser = command_parser("find")
    given = {"model": "fashion-mlp", "engine": ["torch", "openvino"], "weight_bits": [8.0], "budget": 3}
    options = parser.parse_args(command_line(parser, given))
    assert (options.engine, options.weight_bits, options.budget) == (["torch", "openvino"], [8], 3)
    assert parser.parse_args(command_line(parser, {"engine": "torch"})).engine == ["torch"]
    for name, value, words in (
        ("engine", 2, "not of type array of strings"),
        ("engine", ["torch", 2], "not of type array of strings"),
        ("weight_bits", [8.5], "not of type array of integers"),
        ("weight_bits", [True], "not of type array of integers"),
        ("seed", 1.5, "not of type integer"),
        ("max_drop", True, "not of type number"),
        ("model", 8, "not of type string"),
        ("engine", [], "engine is an empty list: give one string or more, or leave it out"),
    ):
        with pytest.raises(InputError, match=words):
            command_line(parser, {name: value})
    assert "cancel" not in options_of(command_parser("sweeps")), "what others have asked for is not ended"
    with pytest.raises(InputError, match="it takes no arguments: leave out x"):
        command_line(command_parser("sweeps"), {"x": 1})


def test_a_recipe_may_be_an_object_as_a_result_has_it() -> None:
    parser = command_parser("measure")
    assert schema(parser)["properties"]["recipe"]["type"] == ["string", "object"]
    recipe = {"prune": {"method": "magnitude", "sparsity": 0.5}}
    for given in (recipe, json.dumps(recipe)):
        options = parser.parse_args(command_line(parser, {"model": "fashion-mlp", "recipe": given}))
        assert recipe_of(options).prune.sparsity == 0.5
    with pytest.raises(InputError, match="recipe is 0.5, not of type string or object"):
        command_line(parser, {"recipe": 0.5})


@pytest.mark.slow
def test_every_tool_is_called_by_what_its_list_says(home: Path, tmp_path: Path) -> None:
    archive = tmp_path / "plain.onnx"
    assert main(["save", "fashion-mlp", "--format", "onnx", "-o", str(archive)]) == 0
    limited = {"limit": 200, "threads": 1, "quick": True}

    async def ask() -> None:
        async with client(home) as server:

            async def answer(tool: str, **arguments: Any) -> Any:
                found = await server.call_tool(tool, arguments)
                assert not found.is_error, (tool, found.content)
                return found.structured_content

            tools = (await server.list_tools()).tools
            assert all(tool.description and "exit code" not in tool.description for tool in tools)
            measured = await answer("measure", **QUICK, sparsity=0.5, weight_bits=4)
            again = await answer("measure", **QUICK, recipe=json.dumps(measured["recipe"]))
            assert again == measured, "a recipe is taken as a result has it"
            again = await answer("measure", **QUICK, recipe=measured["recipe"])
            assert again == measured, "also as an object"
            found = await answer(
                "find",
                model="fashion-mlp",
                engine=["torch"],
                threads=[1],
                prune=["none"],
                weight_bits=[32, 8],
                activation_bits=[32],
                max_size_mb=100,
                budget=1,
                limit=200,
            )
            swept = await answer("sweep", **QUICK, sparsities=[0.5], bits=[4])
            assert [one["recipe"] for one in swept["results"]] == [measured["recipe"]]
            listed = (await answer("sweeps"))["results"]
            assert {"sweep", "question"} == {one["kind"] for one in listed}
            (question,) = (one["id"] for one in listed if one["kind"] == "question")
            assert (await answer("find", resume=question))["best"] == found["best"]
            for one in [one["id"] for one in listed if one["kind"] == "sweep"]:
                await answer("sweep", resume=one)
            compared = await answer("compare", a="fashion-mlp", b=str(archive), **limited)
            assert compared["same_answer"]["value"] == 1
            gate = await answer(
                "gate", model=str(archive), against="fashion-mlp", max_drop=50, min_sqnr=20, **limited
            )
            assert gate["outcome"] == "pass"
            assert (await answer("models", source="bundled"))["results"]

    anyio.run(ask)


def example(property: dict[str, Any]) -> Any:
    """Something of its type."""
    values = {"boolean": True, "integer": 1, "number": 0.5, "string": "3x8x8", "object": {}}
    if isinstance(property["type"], list):
        return [example({"type": kind}) for kind in property["type"]][-1]
    if property["type"] == "array":
        return [example(property["items"])] * 2
    return property.get("default", property.get("enum", [values[property["type"]]])[0])


def test_a_name_that_looks_like_an_option_is_none() -> None:
    parser = command_parser("measure")
    options = parser.parse_args(command_line(parser, {"model": "--help", "data": "--json"}))
    assert (options.model, options.data) == ("--help", "--json")
    compare = command_parser("compare")
    options = compare.parse_args(command_line(compare, {"b": "new.onnx", "a": "old.onnx"}))
    assert (options.a, options.b) == ("old.onnx", "new.onnx")
    with pytest.raises(InputError, match="quick is 1, not of type boolean"):
        command_line(parser, {"quick": 1})


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    assert main(["mcp"]) == 2
    assert "pip install 'paretoscope[mcp]'" in capsys.readouterr().err
