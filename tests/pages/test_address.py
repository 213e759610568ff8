"""What is in the address of every page, so that a reload or a link keeps it."""

import json
import re
from dataclasses import replace

import pytest
from factories import make_result
from page_runs import press, words
from started import PAGES, ROOT, Started, open_page

from optimizer.methods.engines import ENGINES
from optimizer.methods.pruners import PRUNERS
from optimizer.recipe import NORMAL, Recipe
from optimizer.records import Request
from optimizer.store.keys import request_key
from pages import tasks
from pages.address import (
    EARLIER_ALLOCATIONS,
    EARLIER_LABELS,
    EARLIER_RANGES,
    EARLIER_ROUNDINGS,
    MAX_PINS,
    earlier_names,
    names,
)

KEYS = [f"{number:020x}" for number in range(MAX_PINS + 5)]
RECIPE = replace(NORMAL, prune=replace(NORMAL.prune, sparsity=0.5)).differences()
LAYERS = [{"layer": "9.weight", "weight_bits": 8}]


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_recipe_layers_and_pins_are_in_the_address_of_every_page(started: Started, name: str) -> None:
    link = {"recipe": compact(RECIPE), "layers": compact(LAYERS), "pins": f"{KEYS[0]}.{KEYS[1]}"}
    page = open_page(name, link)
    kept = {name: page.query_params[name] for name in link}
    assert kept == link
    reloaded = open_page("explore", kept)
    assert reloaded.session_state["session"].pins == (KEYS[0], KEYS[1])
    assert reloaded.slider(key="sparsity").value == 50
    assert {name: reloaded.query_params[name] for name in link} == link


def test_layer_overrides_of_a_model_that_is_not_here_go_to_no_other(started: Started) -> None:
    page = open_page("explore", {"model": "nosuch", "layers": compact(LAYERS), "recipe": compact(RECIPE)})
    assert page.session_state["session"].recipe.layers == ()
    assert page.slider(key="sparsity").value == 50
    told, instead = (one.value for one in page.toast)
    assert instead == "Settings of this link are left out: model=nosuch (fashion-resnet is shown)."
    assert "layer overrides of this link are left out: they are of 'nosuch', which is not among" in told
    assert "layers" not in page.query_params
    for named in ({"model": "fashion-mlp"}, {}):
        page = open_page("explore", {**named, "layers": compact(LAYERS)})
        assert [one.layer for one in page.session_state["session"].recipe.layers] == ["9.weight"]
    opened = make_result(Recipe.from_json(compact({"layers": LAYERS})), model="fashion-mlp")
    tasks.store().put(opened)
    page = open_page("explore", {"model": "nosuch", "open": opened.key})
    assert page.session_state["session"].recipe.layers == opened.request.recipe.layers != ()


def test_what_a_control_can_not_be_set_to_is_said_with_what_it_shows_instead(started: Started) -> None:
    link = {"model": "my_resnet", "engine": "TensorRT", "bits": "99", "sparsity": "abc", "activations": "8"}
    page = open_page("explore", link)
    told = page.toast[0].value.replace("\\", "")
    assert told == (
        "Settings of this link are left out: model=my_resnet (fashion-resnet is shown), "
        "engine=TensorRT (OpenVINO is shown), sparsity=abc (0 is shown), bits=99 (32 is shown)."
    )
    assert page.query_params.keys() & link.keys() == {"activations"}
    assert not page.run().toast


def test_a_limit_that_can_not_be_is_said(started: Started) -> None:
    """And nothing is searched under the others alone."""
    page = open_page("sweep", {"ask": "The best under limits", "find_drop": "500", "find_ms": "5"})
    assert "Accuracy lost, points: 500 is not allowed: give a number above 0 and below 100" in words(page)
    assert page.number_input(key="find_drop").value == 500
    assert "Find" not in [button.label for button in page.button]


def test_a_name_that_no_page_has_is_said(started: Started) -> None:
    page = open_page("explore", {"weight_bits": "4", "method": "Magnitude", "find_drop": "1"})
    (told,) = (one.value.replace("\\", "") for one in page.toast)
    assert told == "This link says what no page has a setting for: weight_bits."
    assert "weight_bits" not in page.query_params, "the page loaded anew has nothing to complain of"
    assert not page.run().toast


def test_what_is_wrong_with_a_link_is_said_for_some_seconds(started: Started) -> None:
    """And not until somebody closes it: it lies over the page."""
    page = open_page("explore", {"weight_bits": "4", "bits": "99", "recipe": "[", "pins": "x"})
    assert len(page.toast) == 4
    assert all(4 < toast.proto.duration < 20 for toast in page.toast)


@pytest.mark.parametrize(
    ("name", "link", "said"),
    [
        ("explore", {"open": KEYS[0]}, f"The result {KEYS[0]} is not stored here"),
        ("compare", {"of": "Two files", "files": "nope"}, "The comparison nope is not stored here"),
    ],
)
def test_what_a_link_opens_and_is_not_stored_is_said(
    started: Started, name: str, link: dict[str, str], said: str
) -> None:
    assert any(said in one.value for one in open_page(name, link).info)


@pytest.mark.parametrize("name", [name for name in PAGES if name != "explore"])
def test_sliders_of_a_link_to_a_page_without_them_are_said(started: Started, name: str) -> None:
    page = open_page(name, {"method": "Magnitude", "sparsity": "50", "engine": "OpenVINO"})
    (told,) = (one.value for one in page.toast)
    assert told == "Only Explore has these settings of this link: method, sparsity."
    assert not page.query_params.keys() & {"method", "sparsity"}, "the page loaded anew has nothing to tell"
    assert not open_page(name, {"sparsity": "50", "recipe": compact(RECIPE)}).toast


@pytest.mark.parametrize("name", PAGES)
def test_each_control_that_is_kept_in_the_address_is_known_there(started: Started, name: str) -> None:
    for link in ({}, {"ask": "The best under limits"})[: 1 + (name == "sweep")]:
        page = open_page(name, link)
        assert page.session_state["session"].in_address.keys() <= names()
    keys = re.findall(r'in_address\("([a-z_]+)"', (ROOT / "pages" / f"{name}.py").read_text())
    assert {*keys} <= names()


@pytest.mark.parametrize(
    ("name", "link"),
    [
        (
            "explore",
            {"bits": "32", "sparsity": "0", "method": "Magnitude", "engine": "OpenVINO", "effort": "0"},
        ),
        (
            "explore",
            {"method": "Threshold", "threshold": "0.05", "match": "true", "granularity": "per tensor"},
        ),
        ("sweep", {"sweep_bits": ["4", "8"], "sweep_method": "Channels", "ask": "The best under limits"}),
    ],
)
def test_what_controls_show_as_a_link_says_is_not_complained_of(
    started: Started, name: str, link: dict[str, str | list[str]]
) -> None:
    assert not open_page(name, link).toast


def test_controls_of_pages_that_were_left_are_not_asked_what_they_show(started: Started) -> None:
    """Streamlit forgets their values, which their words need not know."""
    page = open_page("explore", {"sparsity": "50"})
    visit = page.session_state["session"]
    visit.in_address["view"] = {"times": "Times"}.__getitem__
    for linked in ({}, {"view": ("distribution",)}):
        visit.linked = linked
        page.run()
        assert not page.exception
        assert not page.toast


def test_a_link_to_compare_of_before_keeps_its_configurations(started: Started) -> None:
    results = [make_result(quick=quick) for quick in (True, False)]
    for result in results:
        tasks.store().put(result)
    page = open_page("compare", {"configurations": [result.key for result in results]})
    assert page.multiselect(key="configurations").value == [result.key for result in results]
    assert page.query_params["pins"] == ".".join(result.key for result in results)
    assert "configurations" not in page.query_params


def test_pins_that_are_not_stored_are_counted_and_the_others_compared(started: Started) -> None:
    result = make_result()
    tasks.store().put(result)
    page = open_page("compare", {"pins": f"{KEYS[0]}.{result.key}"})
    assert page.multiselect(key="configurations").value == [result.key]
    assert any("1 pinned configuration not stored here" in caption.value for caption in page.caption)
    page.multiselect(key="configurations").set_value([]).run()
    assert "pins" not in page.query_params


@pytest.mark.parametrize("pins", ["nope", "../../etc", f"{KEYS[0]}0", "[red](http://elsewhere)", "0" * 9_000])
def test_pins_that_are_no_keys_are_refused_in_words(started: Started, pins: str) -> None:
    page = open_page("compare", {"pins": f"{KEYS[0]}.{pins}"})
    assert "Some pins of this link are left out: a pin is the key of a result" in page.toast[0].value
    assert page.query_params["pins"] == KEYS[0]


def test_an_address_with_many_pins_stays_short(started: Started) -> None:
    page = open_page("compare", {"pins": ".".join(KEYS)})
    assert f"an address holds {MAX_PINS} pins, and there are {MAX_PINS + 5}" in page.toast[0].value
    kept = page.query_params["pins"]
    assert kept == ".".join(KEYS[:MAX_PINS])
    assert len(kept) < 1_400
    assert re.fullmatch(r"[\w.~-]+", kept), "nothing that an address has to escape"


@pytest.mark.slow
def test_no_more_are_pinned_than_an_address_holds(started: Started) -> None:
    key = request_key(Request("fashion-resnet", Recipe()))
    tasks.store().put(replace(make_result(quick=True), key=key))
    page = open_page("explore", {"pins": ".".join(KEYS[:MAX_PINS])})
    press(page, "Pin for Compare")
    assert "drop one under Compare" in page.toast[0].value
    assert key not in page.query_params["pins"]
    page = open_page("explore", {"pins": KEYS[0]})
    press(page, "Pin for Compare")
    assert page.query_params["pins"] == f"{KEYS[0]}.{key}"


def earlier_links() -> list[dict[str, str]]:
    """Links by the names of before that say together every one: a way of pruning each, with all that it can
    be told at once."""
    links = []
    for label in ("Compensated", "Magnitude", "Channels", "Threshold"):
        method = EARLIER_LABELS["method"].get(label, label.lower())
        known = PRUNERS[method].allocations if method in PRUNERS else ()
        shared = [name for name, value in EARLIER_ALLOCATIONS.items() if value in known]
        for index in range(max(len(shared), len(EARLIER_ROUNDINGS))):
            rounding = [*EARLIER_ROUNDINGS][index % len(EARLIER_ROUNDINGS)]
            turn = len(links) // len(EARLIER_ROUNDINGS)
            links.append(
                {"method": label, "bits": "4", f"{method}_rounding": rounding}
                | ({f"{method}_allocation": shared[index]} if shared else {})
                | {f"{EARLIER_ROUNDINGS[rounding]}_range": [*EARLIER_RANGES][turn % len(EARLIER_RANGES)]}
                | {"granularity": [*EARLIER_LABELS["granularity"]][turn % 3]}
            )
    return links


def test_the_links_of_before_say_every_name() -> None:
    said = {pair for link in earlier_links() for pair in link.items()}
    missing = [
        (key, name) for key, names in earlier_names().items() for name in names if (key, name) not in said
    ]
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("link", earlier_links(), ids=lambda link: " ".join(link.values()))
def test_a_link_by_the_names_of_before_restores_the_setting(started: Started, link: dict[str, str]) -> None:
    meant = {key: names[link[key]] for key, names in earlier_names().items() if link.get(key) in names}
    recipe = open_page("explore", link).session_state["session"].recipe
    prune, quantize = recipe.prune, recipe.quantize
    method = meant.get("method", link["method"].lower())
    assert prune.method == (method if method in PRUNERS else "magnitude")
    assert quantize.method == meant[f"{method}_rounding"]
    assert quantize.range == meant[f"{quantize.method}_range"]
    assert quantize.granularity == meant["granularity"]
    assert prune.allocation == meant.get(f"{method}_allocation", prune.pruner.allocation)


def test_a_name_of_before_that_a_control_never_had_is_left_out(started: Started) -> None:
    page = open_page("explore", {"method": "Channels", "channels_allocation": "by magnitude"})
    assert page.selectbox(key="channels_allocation").value == "measured"


def test_a_link_may_say_the_names_of_the_command_line(started: Started) -> None:
    link = {"engine": "sparse", "method": "magnitude", "magnitude_rounding": "compensated"}
    more = {
        "magnitude_allocation": "uniform",
        "compensated_range": "absmax",
        "grid": "symmetric",
        "bits": "4",
    }
    page = open_page("explore", link | more)
    recipe = page.session_state["session"].recipe
    assert (recipe.prune.method, recipe.prune.allocation) == ("magnitude", "uniform")
    assert (recipe.quantize.method, recipe.quantize.range, recipe.quantize.symmetric) == (
        *("compensated", "absmax", True),
    )
    assert page.selectbox(key="engine").value == "sparse"
    assert "".join(page.query_params["engine"]) == ENGINES["sparse"].label
    assert not page.toast


def test_what_pages_keep_beside_widgets_is_the_session() -> None:
    sources = [path.read_text() for path in (ROOT / "pages").glob("*.py")]
    widgets = {
        key for source in sources for key in re.findall(r"(?:key=|in_address\(|by_hand\()\"(\w+)\"", source)
    }
    named = {
        key for source in sources for key in re.findall(r"session_state(?:\.\w+\(|\[)\"([^\"]+)\"", source)
    }
    assert named
    assert named <= widgets
