"""What never runs in evaluation is left out, and what a forward may read or call stays."""

import copy

import pytest
import torch
from small_models import SMALL_SHAPE, Branching, Masked, WithAuxiliary
from torch import Tensor, nn
from torch.nn import functional

from optimizer.measurement.workspace import open_model
from optimizer.model.folding import fold_batch_norm
from optimizer.model.own import own_model
from optimizer.model.unused import drop_unused, unused, values_decide


class Read(nn.Module):
    """Multiplies with weights of modules that it never calls; ``training_only`` alone never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.training_only = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)])

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.first.weight.data)
        x = torch.addmm(self.second.bias, x, self.second.weight.t()) + self.third.bias
        return self.training_only[1](x) if self.training else x


class Experts(nn.Module):
    """Calls those that the values of its input choose."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.gate = way, nn.Linear(4, 9)
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(9)])

    def forward(self, x: Tensor) -> Tensor:
        best = self.gate(x).argmax(1)
        chosen = best.tolist() if self.way == "list" else [int(one) for one in best]
        if self.way == "rows":
            chosen = [place for place in range(9) if len(x[best == place])]
        return torch.stack([self.experts[place](x).sum(0) for place in chosen])


class Reads(nn.Module):
    """Asks its auxiliary part for its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.auxiliary.weight.shape[0]


class Several(nn.Module):
    """Gives a second tensor where it has its auxiliary part."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        answer = self.head(x)
        return (answer, answer) if self.auxiliary else (answer,)


def test_a_part_that_runs_in_training_only_goes_and_other_names_stay() -> None:
    module = Read().eval()
    state, images = copy.deepcopy(module.state_dict()), torch.randn(3, 4)
    expected = module(images)
    assert unused(module, (4,)) == ("training_only",)
    assert module.state_dict().keys() == state.keys(), "it is put back"
    (note,) = drop_unused(module, (4,))
    assert "28 weights (32 % of the model's) never run in evaluation" in note
    assert module.state_dict().keys() == {name for name in state if not name.startswith("training_only")}
    assert torch.equal(module(images), expected)
    assert unused(module, (4,)) == drop_unused(module, (4,)) == ()


def test_a_part_of_two_names_goes_under_both() -> None:
    module = Read().eval()
    module.same = module.training_only
    (note,) = drop_unused(module, (4,))
    assert "28 weights (32 % of the model's)" in note
    assert len(module.state_dict()) == 6


@pytest.mark.parametrize("way", ["list", "int", "rows"])
def test_what_values_decide_on_stays(way: str) -> None:
    assert unused(Experts(way).eval(), (4,)) == ()


@pytest.mark.parametrize("inference", [False, True])
def test_a_branch_is_seen_whoever_asks(inference: bool) -> None:
    module = Branching(4, 4).eval()
    with torch.inference_mode(inference):
        assert values_decide(module, (4,))
        assert unused(module, (4,)) == ()


class Looks(nn.Module):
    """Looks at values: of its input, or of a buffer, ``what`` was done with it first."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.head, self.training_only = what, nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("flags", torch.tensor([1.0, 0.0, 1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        x, flags = self.head(x), self.flags.clone()
        if self.what == "written":
            torch.add(flags, x.sum(), out=flags[:])
        elif self.what == "drawn":
            flags = torch.rand(4)
        elif self.what == "a view written":
            flags[1:2].copy_(x[0, :1])
        elif self.what == "a list":
            return x * sum(flags.tolist()) + flags.numpy().sum()
        elif self.what == "a list of the input":
            return x * sum(x.sum(0).tolist())
        elif self.what == "rows":
            return x[:, flags > 0.5]
        elif self.what == "rows of the input":
            return x[:, x[0] > 0.5]
        return x * 2 if flags.sum() > 1 else x


@pytest.mark.parametrize(
    ("what", "decide"),
    [
        ("nothing", False),
        ("a list", False),
        ("rows", False),
        ("a list of the input", True),
        ("rows of the input", True),
        ("written", True),
        ("a view written", True),
        ("drawn", True),
    ],
)
def test_only_a_look_at_what_follows_from_the_input_or_is_drawn_decides(what: str, decide: bool) -> None:
    module = Looks(what).eval()
    assert values_decide(module, (4,)) is decide
    assert unused(module, (4,)) == (() if decide else ("training_only",))


def test_a_causal_mask_that_torch_looks_at_decides_nothing() -> None:
    assert not values_decide(Masked().eval(), (6, 16))


@pytest.mark.parametrize(
    "module",
    [
        Reads(),
        Several(),
        nn.LSTM(4, 4, batch_first=True),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
    ],
)
def test_what_is_called_or_read_in_ways_of_its_own_stays(module: nn.Module) -> None:
    assert unused(module.eval(), (5, 4)) == ()


def test_a_model_is_opened_without_it() -> None:
    torch.manual_seed(0)
    loaded = own_model(WithAuxiliary(), SMALL_SHAPE)
    opened = open_model(loaded)
    assert opened.module.state_dict().keys() == {
        f"{one}.{of}" for one in ("body", "head") for of in ("weight", "bias")
    }
    assert opened.published.keys() == opened.multiplications.keys() == {"body.weight", "head.weight"}
    assert opened.size.elements == 64 * 16 + 16 * 10
    assert (
        "170 weights (12 % of the model's) never run in evaluation, and are left out: those of auxiliary"
        in opened.notes
    )
    assert loaded.module.auxiliary is not None
    assert fold_batch_norm(loaded.module)[0].auxiliary is not None, "its shape is not known"


def test_what_was_measured_with_it_is_measured_anew() -> None:
    """Its name is another than a digest of the module and shape alone gives."""
    from optimizer.model.identity import content

    loaded = own_model(WithAuxiliary(), SMALL_SHAPE)
    assert content((loaded.module, SMALL_SHAPE))[:10] not in loaded.card.name
