"""A digest that tells networks apart by what they compute, and nothing else, in whatever process."""

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optimizer.model.identity import content

SOURCE = """
import types
import torch
import torch.nn.functional as F
from functools import lru_cache
from torch import nn

SOME = range({number})
VIEW = types.MappingProxyType(dict(by={number}))
OP = dict(relu=torch.ops.aten.relu, gelu=torch.ops.aten.gelu)["{act}"[2:]]

class Config:
    def __init__(self):
        self.act = {act}

def helper(x):
    return {act}(x)

helpers = types.ModuleType("helpers")
helpers.deep = types.ModuleType("helpers.deep")
helpers.deep.act = helper

@lru_cache
def steps(n):
    return [{number} * i for i in range(n)]

def made():
    inner = {act}

    class Enclosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return inner(self.a(x))

    return Enclosing()

class Net(nn.Module):
    kind = "{name}"

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        with torch.no_grad():
            for one in self.parameters():
                one.fill_(0.5)
        {attributes}

    @property
    def scale(self):
        return {number}

    def middle(self, x):
        return [{act}(one) for one in x]

    @torch.no_grad()
    def forward(self, x):
        x = self.a(x)
        return {forward}
"""
PLAIN = {"act": "F.relu", "number": "2", "name": "net", "attributes": "pass", "forward": "x"}
FORWARDS = {
    "forward": "{act}(x)",
    "a method": "self.middle(x)",
    "a property": "x * self.scale",
    "a function of the module": "helper(x)",
    "a cached function of the module": "x * steps(3)[0]",
    "a lambda": "(lambda one: {act}(one))(x)",
    "a range of the module": "x * len(SOME)",
    "a mapping of the module": "x * VIEW['by']",
    "an operation of torch of the module": "OP(x)",
    "a module in a module": "helpers.deep.act(x)",
    "a comprehension": "sum([{act}(x) for _ in range(2)])",
    "a generator": "sum({act}(x) for _ in range(2))",
}
ATTRIBUTES = {
    "a function": "self.act = {act}",
    "a function of its own": "self.act = lambda x: {act}(x)",
    "a list": "self.acts = [{act}]",
    "a tuple": "self.acts = ({act},)",
    "a dict": "self.acts = dict(first={act})",
    "a set": "self.sizes = set([1, (2, 'x', {number})])",
    "an object": "self.config = Config()",
    "a tensor": "self.scale_by = torch.tensor({number})",
    "a buffer that is not saved": "self.register_buffer('by', torch.tensor({number}), persistent=False)",
    "a class attribute": "self.a.extra = [type(self).kind, {number}]",
}


def net(**changes: str) -> Any:
    """A network compiled from text, all its code anew."""
    settings = PLAIN | changes
    source = SOURCE
    for _ in range(2):  # what is put in has names of its own
        for name, value in settings.items():
            source = source.replace(f"{{{name}}}", value)
    namespace: dict[str, Any] = {"__name__": "of_the_test"}
    exec(compile(source, "net.py", "exec"), namespace)
    return namespace


CHANGES = [
    *({"forward": forward} for forward in FORWARDS.values()),
    *({"attributes": attributes} for attributes in ATTRIBUTES.values()),
]
NAMES = [*FORWARDS, *ATTRIBUTES]
OTHERS = {"act": "F.gelu", "number": "3"}


@pytest.mark.parametrize("changes", CHANGES, ids=NAMES)
def test_what_is_computed_otherwise_is_another_and_what_is_compiled_anew_is_not(
    changes: dict[str, str],
) -> None:
    first, again, other = (net(**changes, **more)["Net"]() for more in ({}, {}, OTHERS))
    assert content(first) == content(again) == content(copy.deepcopy(first))
    assert content(first) != content(other)


def test_what_a_function_encloses_counts() -> None:
    torch.manual_seed(0)
    first = net()["made"]()
    other = net(act="F.gelu")["made"]()
    other.load_state_dict(first.state_dict())
    assert content(first) != content(other)


def script() -> str:
    """The digests of many networks, as another process is to print them."""
    return "\n".join(content(net(**changes)["Net"]()) for changes in CHANGES)


@pytest.mark.slow
def test_another_process_gives_the_same() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import test_identity; print(test_identity.script())"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.strip() == script()


class Holder(nn.Module):
    """A layer and whatever else is given."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            for one in self.parameters():
                one.zero_()
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


HELD: list[Callable[[], Any]] = [
    lambda: None,
    lambda: F.relu,
    lambda: F.gelu,
    lambda: torch.relu,
    lambda: torch.Tensor.relu,
    lambda: torch.ops.aten.relu,
    lambda: torch.ops.aten.gelu,
    lambda: nn.ReLU(),
    lambda: nn.GELU(),
    lambda: nn.GELU(approximate="tanh"),
    lambda: nn.TransformerEncoderLayer(2, 1, 2, activation="relu").activation,
    lambda: partial(F.leaky_relu, negative_slope=0.1),
    lambda: partial(F.leaky_relu, negative_slope=0.2),
    lambda: lru_cache(abs),
    lambda: lru_cache(round),
    lambda: SimpleNamespace(act="relu"),
    lambda: SimpleNamespace(act="gelu"),
    lambda: {"a", "b", "c"},
    lambda: {"a", "b"},
    lambda: frozenset("abc"),
    lambda: 1,
    lambda: 1.0,
    lambda: True,
    lambda: "1",
    lambda: b"1",
    lambda: (1, (2, 3)),
    lambda: [1, [2, 3]],
    lambda: (1, 2, 3),
    lambda: {1: 2},
    lambda: torch.float16,
    lambda: torch.ones(2, 3),
    lambda: torch.ones(3, 2),
    lambda: torch.ones(2, 3, dtype=torch.float64),
    lambda: torch.eye(3),
    lambda: torch.eye(3).to_sparse() * 2,
    lambda: torch.ones(2, 3).numpy(),
    lambda: torch.zeros(2, 3).numpy(),
]


def test_whatever_is_held_counts_by_its_content() -> None:
    digests = [[content(Holder(held=make())) for make in HELD] for _ in range(2)]
    assert digests[0] == digests[1]
    same = [
        (first, second)
        for first, second in itertools.combinations(range(len(HELD)), 2)
        if digests[0][first] == digests[0][second]
    ]
    assert same == [(1, 10)], "all but F.relu and the one that torch's own layer holds"


def test_weights_their_names_and_whether_they_are_tied_count() -> None:
    def weights(tied: bool) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        with torch.no_grad():
            for one in model.parameters():
                one.fill_(1)
        if tied:
            model[1].weight = model[0].weight
        return model

    equal, tied = weights(False), weights(True)
    assert content(equal) == content(weights(False))
    assert content(tied) == content(weights(True)) == content(copy.deepcopy(tied))
    assert content(equal) != content(tied)
    with torch.no_grad():
        equal[1].bias[0] = 2
    assert content(equal) != content(weights(False))


def test_what_is_imported_on_the_way_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest_with(act: str) -> str:
        module = ModuleType("imported_by_the_test")
        vars(module)["act"] = net(act=act)["helper"]
        monkeypatch.setitem(sys.modules, "imported_by_the_test", module)
        return content(model)

    model = net(forward="__import__")["Net"]()
    late: dict[str, Any] = {"__name__": "of_the_test"}
    exec("def late(x):\n    from imported_by_the_test import act\n    return act(x)", late)
    model.late = late["late"]
    assert digest_with("F.relu") == digest_with("F.relu")
    assert digest_with("F.relu") != digest_with("F.gelu")


class Kind:
    def others(self) -> set[type]:
        return KINDS - {type(self)}


KINDS: set[type] = {Kind}


def test_a_set_that_leads_back_to_itself_ends() -> None:
    assert content(Kind()) == content(Kind())


def test_what_leads_back_to_itself_ends() -> None:
    def looped(number: int) -> nn.Module:
        held: list[Any] = [number]
        model = Holder(held=held, by_name={"held": held})
        held += [held, [model], model.forward]
        return model

    assert content(looped(1)) == content(looped(1)) == content(copy.deepcopy(looped(1)))
    assert content(looped(1)) != content(looped(2))
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    assert content(deep) != content([deep])


class Guarded:
    """Whose every bit of code fails."""

    def __init__(self, number: int) -> None:
        vars(self)["number"] = number

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not to be run")

    def _refuse(self, *others: Any) -> Any:
        raise RuntimeError("not to be run")

    __eq__ = __hash__ = __repr__ = __reduce_ex__ = __iter__ = __len__ = __getstate__ = _refuse  # type: ignore[assignment]
    value = property(_refuse)


class GuardedList(list[int]):
    __eq__ = __hash__ = __repr__ = __reduce_ex__ = __iter__ = __len__ = Guarded._refuse  # type: ignore[assignment]


def test_nothing_of_the_user_s_is_run() -> None:
    def held(number: int) -> nn.Module:
        guarded = Guarded(number)
        model = Holder(held=guarded, others=GuardedList([number]))
        model.enclosed = lambda: guarded
        return model

    assert content(held(1)) == content(held(1))
    assert content(held(1)) != content(held(2))
