"""Streams of transformers: through norms, position embeddings and class tokens, rotated exactly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from optimizer.compression.calibration.cache import rotations_of
from optimizer.compression.calibration.making import make
from optimizer.compression.norms import absorbable, absorbed, absorbed_statistics
from optimizer.compression.rotation import rotated, rotated_statistics, rotations_for
from optimizer.compression.streams import Stream, attention_streams, streams
from optimizer.model.layers import walk

SHAPE = (3, 16, 16)
WIDTH = 12


class Tokens(nn.Module):
    """Patches, a class token, positions, two encoder layers and a norm before the head."""

    def __init__(self, norm_first: bool = True, **options: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, 17, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 24, batch_first=True, norm_first=norm_first, activation="gelu", **options
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def embed(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.embed(x)))[:, 0])


class PostNorm(Tokens):
    """A norm's scales are then part of the stream."""

    def __init__(self) -> None:
        super().__init__(norm_first=False)


class NoBias(Tokens):
    """Norms add something that no bias can take."""

    def __init__(self) -> None:
        super().__init__(bias=False)
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 10, bias=False)


class NormedSum(Tokens):
    """What a norm gives is added to what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(self.embed(x))
        return self.head((tokens + self.norm(tokens))[:, 0])


class ScaledChannels(Tokens):
    """A curve stands in the stream."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.embed(x)).tanh())[:, 0])


class JoinedChannels(Tokens):
    """Two streams side by side along their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        return self.head(self.norm(torch.cat([tokens, self.encoder(tokens)], 2)).mean(1))


class RootMeanSquares(nn.Module):
    """Norms that take no mean, and a table of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, WIDTH)
        self.place = nn.Embedding(48, WIDTH)
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.wide, self.narrow = nn.Linear(WIDTH, 30), nn.Linear(30, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x.flatten(1, 2)) + self.place(torch.arange(48))
        tokens = tokens + self.narrow(torch.relu(self.wide(self.norms[0](tokens))))
        return self.head(self.norms[1](tokens).mean(1))


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    """Its norms scale and add."""
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.weight.uniform_(0.5, 1.5)
            if getattr(module, "bias", None) is not None:
                module.bias.uniform_(-0.5, 0.5)
    return model


def images(number: int = 24) -> Tensor:
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_the_stream_of_a_transformer() -> None:
    makers = [
        f"encoder.layers.{block}.{name}.weight"
        for block in (0, 1)
        for name in ("self_attn.out_proj", "linear2")
    ]
    normed = [
        (f"encoder.layers.{block}.{name}", f"encoder.layers.{block}.{norm}")
        for block in (0, 1)
        for name, norm in (("self_attn.in_proj_weight", "norm1"), ("linear1.weight", "norm2"))
    ]
    normed.append(("head.weight", "norm"))
    (found,) = streams(made(Tokens), SHAPE)
    assert found == Stream(
        "patches.weight",
        WIDTH,
        ("patches.weight", *makers),
        tuple(name for name, _ in normed),
        ("token", "position"),
        tuple(normed),
        centred=True,
    )


def test_the_stream_between_norms_by_root_mean_squares() -> None:
    (found,) = streams(made(RootMeanSquares), SHAPE)
    assert (found.producers, found.consumers) == (
        ("first.weight", "narrow.weight"),
        ("wide.weight", "head.weight"),
    )
    assert (found.added, found.centred) == (("place.weight",), False)
    assert dict(found.normed) == {"wide.weight": "norms.0", "head.weight": "norms.1"}


@pytest.mark.parametrize("kind", [PostNorm, NormedSum, ScaledChannels, JoinedChannels])
def test_what_more_than_norms_and_sums_stands_in_is_no_stream(kind: type[nn.Module]) -> None:
    assert streams(made(kind), SHAPE) == []


def test_a_norms_offset_needs_a_bias() -> None:
    model = made(NoBias)
    (found,) = streams(model, SHAPE)
    assert absorbable(model, {layer.name: layer for layer in walk(model)}, found.normed)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.bias = nn.Parameter(torch.full((WIDTH,), 0.1), requires_grad=False)
    assert not absorbable(model, {layer.name: layer for layer in walk(model)}, found.normed)
    assert rotations_for(model, SHAPE, "round", make(model, images())) == {}


def test_a_norm_that_all_but_drops_a_channel_keeps_its_scales() -> None:
    model = made(Tokens)
    (found,) = streams(model, SHAPE)
    model.get_submodule("norm").weight[3] = 1e-6
    assert not absorbable(model, {layer.name: layer for layer in walk(model)}, found.normed)


@pytest.mark.parametrize("kind", [Tokens, RootMeanSquares])
def test_layers_take_the_scales_of_norms(kind: type[nn.Module]) -> None:
    model = made(kind)
    (found,) = streams(model, SHAPE)
    other = absorbed(model, found.normed)
    assert torch.allclose(other(images()), model(images()), atol=1e-5)
    for _, path in found.normed:
        norm = other.get_submodule(path)
        assert (norm.weight == 1).all()
        assert getattr(norm, "bias", None) is None or not norm.bias.any()
    derived, taken = absorbed_statistics(make(model, images()), model, found.normed), make(other, images())
    for name in taken.moments:
        assert torch.allclose(derived.matrix(name), taken.matrix(name), rtol=1e-2, atol=1e-3), name


class Attention(nn.Module):
    """Whose queries, keys and values are made by layers of their own, and mixed with places, if any."""

    def __init__(self, places: bool) -> None:
        super().__init__()
        self.heads, self.places = 3, places
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            one(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for one in (self.query, self.key, self.value)
        )
        if self.places:
            angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.ones(q.shape[-1], dtype=x.dtype)
            q, k = (one * angles.cos() + one.roll(1, -1) * angles.sin() for one in (q, k))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.output(attended.transpose(-2, -3).flatten(-2))


class ThreeLayers(nn.Module):
    """Attention between curves."""

    def __init__(self, places: bool = False) -> None:
        super().__init__()
        self.first, self.attention, self.head = nn.Linear(16, WIDTH), Attention(places), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.attention(torch.relu(self.first(x.flatten(1, 2))))).mean(1))


def test_streams_of_attention() -> None:
    model = made(Tokens)
    joint, output = "encoder.layers.0.self_attn.in_proj_weight", "encoder.layers.0.self_attn.out_proj.weight"
    first, second = attention_streams(model, SHAPE)[:2]
    assert (first.rows, first.consumers) == ([(joint, slice(0, 12)), (joint, slice(12, 24))], ())
    assert (second.rows, second.consumers) == ([(joint, slice(24, 36))], (output,))
    assert (first.heads, second.heads) == (2, 2)
    first, second = attention_streams(made(ThreeLayers), SHAPE)
    assert first.rows == [("attention.query.weight", slice(0, 12)), ("attention.key.weight", slice(0, 12))]
    assert (second.producers, second.consumers) == (("attention.value.weight",), ("attention.output.weight",))


def test_queries_and_keys_that_are_mixed_with_places_stay() -> None:
    model = made(lambda: ThreeLayers(places=True))
    rotations = rotations_for(model, SHAPE, "prune", make(model, images()))
    assert [stream.name for stream in rotations] == ["values of attention"]


@pytest.mark.parametrize("aim", ["prune", "round", "both"])
@pytest.mark.parametrize("kind", [Tokens, RootMeanSquares, ThreeLayers])
def test_a_rotated_transformer_and_its_statistics_are_the_same(kind: type[nn.Module], aim: str) -> None:
    """Each matrix is orthogonal, mixes no two heads, and keeps a mean that a norm takes."""
    model = made(kind)
    known = make(model, images())
    rotations = rotations_for(model, SHAPE, aim, known)
    expected = streams(model, SHAPE) + (attention_streams(model, SHAPE) if aim != "round" else [])
    assert [*rotations] == expected
    ones = torch.ones(WIDTH, dtype=torch.float64)
    for stream, matrix in rotations.items():
        assert torch.allclose(matrix @ matrix.T, torch.eye(WIDTH, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(matrix @ ones, ones, atol=1e-12) == stream.centred
        size = WIDTH // stream.heads
        assert not (matrix * (1 - torch.block_diag(*[torch.ones(size, size)] * stream.heads))).any()
    other = rotated(model, rotations)
    assert torch.allclose(other(images()), model(images()), atol=1e-5)
    weights = {layer.name: layer.weight for layer in walk(model)}
    moved = {layer.name for layer in walk(other) if not torch.allclose(layer.weight, weights[layer.name])}
    assert moved == {name for stream in rotations for name in stream.members}
    derived, taken = rotated_statistics(known, model, rotations, other), make(other, images())
    for name in taken.moments:
        assert torch.allclose(derived.matrix(name), taken.matrix(name), rtol=1e-2, atol=1e-3), name


def test_rotations_of_a_transformer_are_read_back(home: Path) -> None:
    model = made(Tokens)
    known = make(model, images())
    first, again = (rotations_of(model, images(), "prune", known) for _ in range(2))
    assert [*again] == [*first]
    assert all(torch.equal(again[stream], one) for stream, one in first.items())
