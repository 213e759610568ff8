"""Small torch models that take images ``[N, 1, 8, 8]``."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.apply import CompressedModel
from optimizer.compression.calibration.sensitivity import Trial
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.quantize.held import HeldGrid, held_grid
from optimizer.data.loading import load_images
from optimizer.model.catalogue import LoadedModel
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import multiplications, walk
from optimizer.records import DataSpec

SMALL_SHAPE = (1, 8, 8)
Small = Callable[[str], nn.Module]
"""A fresh model of SMALL_MODELS by its name, as the fixture ``small`` gives it."""


class Cnn(nn.Module):
    """Convolution, depthwise convolution and a residual, each with batch norm, then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.project = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.project(torch.relu(self.depthwise(x)))
        return self.head(torch.relu(x).mean((2, 3)))


class Encoder(nn.Module):
    """Sixteen tokens through ``nn.MultiheadAttention``."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 2, 2)
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head((tokens + attended).mean(1))


class Pooled(Encoder):
    """Four queries over its sixteen tokens."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.attention(tokens[:, ::4], tokens, value=tokens)[0].mean(1))


class Shared(nn.Module):
    """One linear module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.again = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        return self.head(torch.relu(self.again(torch.relu(self.again(x)))))


class Tied(nn.Module):
    """Two linear modules with a weight in common, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.left = nn.Linear(16, 16)
        self.right = nn.Linear(16, 16)
        self.right.weight = self.left.weight
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        return self.head(torch.relu(self.right(torch.relu(self.left(x)))))


class WithAuxiliary(nn.Module):
    """A second classifier that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 16)
        self.auxiliary = nn.Linear(16, 10)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x.flatten(1)))
        return self.head(x) + self.auxiliary(x) if self.training else self.head(x)


class Indexed(nn.Module):
    """Shuffles channels by an index that is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        self.index = nn.Parameter(torch.arange(8).flip(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))[:, self.index]
        return self.head(torch.relu(self.mix(x)).mean((2, 3)))


class Plain(nn.Module):
    """Two convolutions and, behind a flatten that gives each channel four columns, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, 2, 1)
        self.second = nn.Conv2d(12, 16, 3, 2, 1, bias=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).flatten(1))


class Gated(nn.Module):
    """Squeeze-and-excitation: two layers make the group's channels, and two read them."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(1, 16, 3, 1, 1)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.expand(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.project(x * gate).mean((2, 3)))


class Branches(nn.Module):
    """What is joined stays; a width that the code relies on, too; and grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 6, 3)
        self.right = nn.Conv2d(1, 6, 3)
        self.grouped = nn.Conv2d(12, 8, 1, groups=2)
        self.fixed = nn.Conv2d(8, 12, 1)
        self.free = nn.Linear(12, 20)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = torch.relu(self.fixed(torch.relu(self.grouped(x))))
        return self.head(torch.relu(self.free(x.view(len(x), 12, -1).mean(-1))))


class InPlace(nn.Module):
    """Its ``way`` of computing changes values in place, or does not."""

    def __init__(self, way: str, in_place: bool) -> None:
        super().__init__()
        self.way, self.in_place = way, in_place
        self.stem, self.gate, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        self.other = nn.Conv2d(1, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.stem(x), self.other(x)
        gate = torch.sigmoid(self.gate(y))
        if self.way == "gate":
            y = y.mul_(gate) if self.in_place else y * gate
        elif self.way == "sum":
            y = y.add_(z) if self.in_place else y + z
        elif self.way == "view" and self.in_place:
            y[:, :4].add_(gate[:, :4])
        elif self.way == "view":
            y = torch.cat([y[:, :4] + gate[:, :4], y[:, 4:]], 1)
        elif self.way == "activation":
            y = torch.relu_(y) if self.in_place else torch.relu(y)
        return self.head(torch.tanh(y + 0.1 * gate * z).mean((2, 3)))


IN_PLACE_WAYS = ("gate", "sum", "view", "activation")


def twins(way: str) -> tuple[nn.Module, nn.Module]:
    """One that changes values in place and one that does not, of the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, other = InPlace(way, True).eval(), InPlace(way, False).eval()
    one.load_state_dict(other.state_dict())
    return one, other


def masks_and_grids(made: CompressedModel) -> tuple[dict[str, Tensor], dict[str, HeldGrid]]:
    """What learning holds of a compressed model, by layer."""
    masks = {name: one.mask for name, one in made.weights.items()}
    return masks, {name: held_grid(one.codes, one.spec) for name, one in made.weights.items() if one.codes}


def half_gone(model: nn.Module) -> dict[str, Tensor]:
    """Prune every second weight in place, and give the masks."""
    masks = {}
    for layer in walk(model):
        mask = (torch.arange(layer.weight.numel()) % 2 == 0).reshape(layer.weight.shape)
        masks[layer.name] = mask
        layer.weight.data *= mask
    return masks


SMALL_MODELS = {"cnn": Cnn, "encoder": Encoder, "shared": Shared, "tied": Tied, "auxiliary": WithAuxiliary}


def half_never_on() -> nn.Sequential:
    """Whose depthwise convolution has large weights for the channels that are always 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        head = nn.Linear(128, 5)
    with torch.no_grad():
        convolutions[0].bias[:4] = -100
        convolutions[1].weight[:4] *= 1000
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), nn.Flatten(), head).eval()


class Standardised(nn.Conv2d):
    """As libraries do it: the stored weight's scale makes no difference."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


class Counted(nn.Linear):
    """Its state holds more than tensors."""

    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        """It has none that is written."""


class Masked(nn.Module):
    """Torch's own transformers, encoder and decoder, whose causal mask is a buffer. Inputs ``[6, 16]``."""

    def __init__(self) -> None:
        super().__init__()
        encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 1)
        self.head = nn.Linear(16, 5)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.decoder(x, self.encoder(x, mask=self.mask), tgt_mask=self.mask)
        return self.head(x[:, -1])


class Branching(nn.Module):
    """Takes ``[N, inputs]``: the sign of all that it is given chooses a layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bright, self.dark = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bright(x) if x.mean() > 0 else self.dark(x)


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """The same weights every time, without gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make().eval().requires_grad_(False)


def taught(loaded: LoadedModel) -> tuple[nn.Module, Tensor, Tensor]:
    """A bundled model, its batch norm folded; images to learn from; and others."""
    images = load_images(loaded, DataSpec(limit=256))
    seen = images.calibration.images  # they are sorted by class
    return fold_batch_norm(loaded.module)[0], seen[:: len(seen) // 128], images.evaluation.images


@torch.inference_mode()
def run(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def divergence(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    return divergence_from(run(model, images), other, images)


def divergence_from(answers: Tensor, other: nn.Module, images: Tensor) -> float:
    """Of what ``other`` answers from ``answers`` (KL, nats), by torch's own function."""
    before, after = (one.log_softmax(1) for one in (answers, run(other, images)))
    return functional.kl_div(after, before, reduction="batchmean", log_target=True).item()


@contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """After the block the models are as they were: values, modes, hooks, and which parameters have gradients;
    and random numbers go on as they would have."""
    before = [(copy.deepcopy(one.state_dict()), _settings(one)) for one in models]
    random = torch.get_rng_state()
    yield
    for model, (state, settings) in zip(models, before, strict=True):
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(state[name], one) for name, one in model.state_dict().items())
        assert _settings(model) == settings
    assert torch.equal(torch.get_rng_state(), random)


def _settings(model: nn.Module) -> list[tuple[object, ...]]:
    parts = [(one.training, *one._forward_hooks, *one._forward_pre_hooks) for one in model.modules()]
    return [*parts, *((one.requires_grad, one.grad is None) for one in model.parameters())]


def with_trials(model: nn.Module, trials: Mapping[str, Trial]) -> nn.Module:
    changed = copy.deepcopy(model)
    for layer in walk(changed):
        if trial := trials.get(layer.name):
            layer.weight.data = trial.weight
            if layer.bias is not None and trial.bias_change is not None:
                layer.bias.data += trial.bias_change
    return changed


def assert_same_statistics(one: Statistics, other: Statistics) -> None:
    assert one.effects.keys() == other.effects.keys()
    assert all(torch.equal(effects, other.effects[name]) for name, effects in one.effects.items())
    assert one.biased == other.biased
    assert one.growth == other.growth
    assert one.moments.keys() == other.moments.keys()
    for name, moments in one.moments.items():
        assert torch.equal(moments.covariance, other.moments[name].covariance)
        assert torch.equal(moments.mean, other.moments[name].mean)
        assert moments.shrinkage == other.moments[name].shrinkage


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of all layers for one image ``[C, H, W]``."""
    runs = multiplications(model, shape)
    return sum(layer.weight.numel() * runs[layer.name] for layer in walk(model))
