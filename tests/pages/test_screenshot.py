"""The picture of Explore that the README shows: what the tool that takes it asks for."""

import pytest
from started import Started, open_page

from optimizer.cli.main import parser
from tools.screenshot import BITS, COMMANDS, ENGINE, LINK, MODEL, SPARSITY


def test_the_page_of_the_picture_is_what_the_tool_has_measured(started: Started) -> None:
    page = open_page("explore", LINK)
    assert not page.toast, "the link says what the page has"
    (request,) = started.requests()
    assert (request.model, request.engine, request.settings.threads) == (MODEL, ENGINE, 1)
    recipe = request.recipe
    assert (recipe.prune.method, recipe.prune.sparsity) == ("compensated", SPARSITY)
    assert (recipe.quantize.method, recipe.quantize.weight_bits) == ("compensated", BITS)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_its_commands_are_those_of_the_command_line(words: tuple[str, ...]) -> None:
    options = parser().parse_args(words)
    assert (options.model, options.engine, options.threads) == (MODEL, ENGINE, 1)
