"""Inputs that a network is tried on, such as tokens, which are no random floats."""

import copy

import pytest
import torch
from engine_runs import QUICK, close, eager, needs_compiler, off
from torch import Tensor, nn

import optimizer as px
from optimizer.compression.apply import compress
from optimizer.data.memory import in_memory
from optimizer.engine.faithful import prepare
from optimizer.errors import InputError
from optimizer.measurement.given import open_given
from optimizer.model.examples import HELD, examples, hold, noise, same_draws
from optimizer.model.own import own_model
from optimizer.progress import quiet
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

SHAPE = (6,)
TOKENS = torch.randint(1, 30, (40, *SHAPE), generator=torch.Generator().manual_seed(0)).float()


class Tokens(nn.Module):
    """Takes whole numbers from ``first`` to 29 + ``first``, and fails on others."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.embedding = nn.Embedding(30, 8)
        self.inner, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.embedding(x.long() - self.first))).mean(1))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("engine", QUICK)
def test_every_engine_answers_tokens_as_torch_does(engine: str, first: int) -> None:
    """Those from 1 to 30 take no zero either: neither a first batch nor a last is filled up with any."""
    model = open_given(Tokens(first), TOKENS[8:], TOKENS[:8], None, quiet)[0].model
    build = prepare(engine, model.module, SHAPE)
    for recipe in (
        Recipe(PruneSpec(sparsity=0.5)),
        Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)),
    ):
        made = compress(model.module, recipe)
        runner = build(made, TOKENS[:8], threads=1, batch=2)
        found = runner.score(TOKENS.numpy())
        assert runner.infer(TOKENS[:2].numpy()).shape == (2, 4)
        if recipe.quantize.computes_in_float32:
            close(found, eager(model.module, recipe, TOKENS))


class Many(Tokens):
    """Takes whole numbers that are others as bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4096, 8)


@pytest.mark.parametrize(
    ("engine", "batch"),
    [("torch", 2), ("openvino", 2), pytest.param("compile", 50, marks=[needs_compiler, pytest.mark.slow])],
)
def test_tokens_are_the_same_whatever_they_are_computed_in(engine: str, batch: int) -> None:
    """As many at once as are scored together are compiled for once."""
    tokens = torch.cat([TOKENS, TOKENS[:10]]) * 100 + 1
    model = open_given(Many(), tokens[8:40], tokens[:8], None, quiet)[0].model
    recipe = Recipe(quantize=QuantizeSpec(precision="bf16"))
    runner = prepare(engine, model.module, SHAPE)(
        compress(model.module, recipe), tokens[:8], threads=1, batch=batch
    )
    expected = eager(model.module, Recipe(), tokens)
    for found, of in ((runner.score(tokens.numpy()), 50), (runner.infer(tokens[:batch].numpy()), batch)):
        assert off(found, expected[:of]) < 0.03


class Tied(nn.Module):
    """A language model whose head multiplies with its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.inner, self.head = (
            nn.Embedding(30, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 30, bias=False),
        )
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.embedding(x.long()))))


@pytest.mark.parametrize("engine", QUICK)
def test_an_embedding_that_is_tied_to_a_layer_is_compressed_with_it(engine: str) -> None:
    model = open_given(Tied(), TOKENS[8:], TOKENS[:8], None, quiet)[0].model
    build = prepare(engine, model.module, SHAPE)
    for bits in (32, 8):
        recipe = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=8, activation_bits=bits))
        made = compress(model.module, recipe)
        found = build(made, TOKENS[:8], threads=1, batch=1).score(TOKENS.numpy())
        expected, plain = eager(model.module, recipe, TOKENS), eager(model.module, Recipe(), TOKENS)
        if bits == 32:
            close(found, expected)
        assert ((found - expected) ** 2).sum() < 0.01 * ((plain - expected) ** 2).sum()


class Padded(Tokens):
    """Attends to what is no zero: torch's fused attention makes nested tensors of it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.attention(self.embedding(x.long()), src_key_padding_mask=x == 0)
        return self.head(torch.relu(self.inner(seen[:, 0])))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_multiplications_of_padded_tokens_are_counted_as_of_whole_ones() -> None:
    padded = TOKENS * (torch.arange(6) < 4)
    opened = open_given(Padded(), padded[8:], padded[:8], None, quiet)[0].model
    assert opened.multiplications["attention.layers.0.linear1.weight"] == 6


@pytest.mark.parametrize("given", ["calibration", "example_input", "input_shape"])
def test_tokens_are_compressed_with_what_is_known_of_them(given: str) -> None:
    known = {"calibration": TOKENS, "example_input": TOKENS[:1], "input_shape": SHAPE}
    pruning = "compensated" if given == "calibration" else "magnitude"
    recipe = px.Recipe.of(sparsity=0.5, pruning=pruning)
    module = px.compress(Tokens(), recipe, progress=False, **{given: known[given]})
    assert module(TOKENS).shape == (40, 4)
    assert HELD not in vars(module)


def test_channels_of_a_network_of_tokens_are_removed() -> None:
    pytest.importorskip("torch_pruning")
    recipe = px.Recipe.of(sparsity=0.5, pruning="channels")
    module = px.compress(Tokens(1), recipe, calibration=TOKENS, progress=False)
    assert len(module.inner.weight) < 16


def test_examples_are_the_first_that_are_given_else_random_ones_that_are_answered_else_zeros() -> None:
    tokens, plain = Tokens(), nn.Linear(6, 2)
    assert not examples(tokens, SHAPE, 3).any()
    assert len({*examples(plain, SHAPE, 2).flatten().tolist()}) == 12
    hold(tokens, SHAPE, torch.cat([torch.full((1, *SHAPE), torch.nan), TOKENS]))
    assert torch.equal(examples(tokens, SHAPE, 3), TOKENS[[0, 1, 0]])
    assert torch.equal(examples(copy.deepcopy(tokens), SHAPE), TOKENS[:1])
    assert torch.equal(noise(tokens, SHAPE), TOKENS[:1])
    assert torch.equal(noise(plain, SHAPE), examples(plain, SHAPE))


def test_what_a_module_is_tried_on_is_no_part_of_its_name() -> None:
    usual = own_model(Tokens(), SHAPE)
    tried = own_model(Tokens(), SHAPE, given=TOKENS)
    assert own_model(tried.module, SHAPE).card.name == tried.card.name == usual.card.name


def test_a_module_that_takes_no_single_input_is_refused_in_words() -> None:
    class Squeezed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).reshape(len(x) // 2 * 2, -1)

    with pytest.raises(InputError, match=r"input of shape \[1, 6\].*keep the batch, also of one"):
        own_model(Squeezed(nn.Linear(6, 2)), SHAPE)


def test_an_example_that_is_no_array_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="example_input is str: give a tensor"):
        px.compress(Tokens(), px.Recipe.of(weight_bits=8), example_input="none", progress=False)


def test_tokens_as_whole_numbers_are_asked_for_as_floats() -> None:
    with pytest.raises(InputError, match=r"torch.int64.*Tokens are given as floats too.*x = x.long\(\)"):
        in_memory(TOKENS.long())


def test_draws_are_the_same_in_each_block_and_go_on_after_it_as_before() -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        with same_draws(seed):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)
