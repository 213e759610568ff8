"""The sparse kernels against torch: every instruction set, path, tile, stride and thread count."""

import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import pairs
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import csr, kernels, sparse
from optimizer.engine.base import Runner, Service, one_by_one
from optimizer.engine.kernels import Kind, Step, build
from optimizer.engine.kernels.build import Target, compiled, targets
from optimizer.engine.kernels.fusion import BANDED
from optimizer.engine.kernels.layout import MemoryLayout
from optimizer.engine.kernels.matrix import (
    ALGORITHMS,
    BLOCKS,
    GATHERED,
    LINE,
    Algorithm,
    column_blocks,
    survivors,
)
from optimizer.engine.kernels.network import Network, step_of
from optimizer.engine.kernels.plan import Choice, KernelPlan, plan
from optimizer.engine.kernels.trace import trace
from optimizer.engine.torch import parameters_of
from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import Execution, LayerExecution

LIBRARIES = [kernels.load(target) for target in targets() if target in kernels.usable()]


def test_this_machine_has_kernels() -> None:
    """The tests below would pass without any."""
    assert kernels.problem() is None
    assert LIBRARIES
    assert [library.name for library in LIBRARIES] == [target.name for target in kernels.usable()]


PORTABLE = Target("portable", ("-O1",), 4, ())
"""What runs on NEON, compiled for this processor: nothing in it is of one kind of processor. Its answers are
looked at, not its times: with fewer optimisations it is there in half the time."""


@pytest.fixture(scope="module")
def libraries(request: pytest.FixtureRequest) -> list[kernels.Kernels]:
    """Those of this machine, and the portable one, which is compiled anew where its source or how it is
    compiled has changed."""
    how = zlib.crc32(Path(build.__file__).read_bytes() + repr(PORTABLE).encode())
    file = request.config.cache.mkdir("kernels") / f"{how:08x}-{build.library(PORTABLE).name}"
    if not file.exists():
        beside = file.with_suffix(f".{os.getpid()}.so")
        assert compiled(PORTABLE, beside) is None
        beside.replace(file)
    return [*LIBRARIES, kernels.opened(PORTABLE.name, file)]


@pytest.fixture(scope="module", autouse=True)
def _timed_once() -> Iterator[None]:
    """Nothing here depends on which algorithm is found to be the fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimizer.engine.kernels.network.REPEATS", 1)
        yield


def thinned(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Some weights of every layer are zero."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:
            parameter *= torch.rand_like(parameter) > share
    return model.eval()


def agree(
    model: nn.Module, images: Tensor, libraries: Sequence[kernels.Kernels], threads: int = 1
) -> list[Network]:
    """A network of each library's kernels gives what torch does, by every algorithm that its layers have."""
    expected = model(images)
    found = trace(model, images.shape)
    parameters = parameters_of(model)
    networks = []
    for library in libraries:
        chosen = Network(found, parameters, library, threads)
        check(chosen, images, expected)
        networks.append(chosen)
        met = [taken_by(chosen.plan)]
        suited = {
            item.name: list(item.work.algorithms)
            for item in plan(found, parameters, library).items
            if isinstance(item.work, Choice)
        }
        for algorithm in ALGORITHMS:
            taken = {name: algorithm if algorithm in those else those[0] for name, those in suited.items()}
            if taken not in met:
                met.append(taken)
                each = Network(found, parameters, library, threads, taken=taken)
                assert taken_by(each.plan) == taken
                check(each, images, expected)
    return networks


def taken_by(planned: KernelPlan) -> dict[str, Algorithm]:
    return {
        item.name: next(iter(item.work.algorithms)) for item in planned.items if isinstance(item.work, Choice)
    }


def check(network: Network, images: Tensor, expected: Tensor) -> None:
    for _ in range(2):  # what the first left in memory must not show in the second
        got = torch.from_numpy(network.infer(images.numpy()))
        torch.testing.assert_close(
            got,
            expected,
            rtol=1e-4,
            atol=1e-4 * float(expected.abs().max() + 1),
            msg=lambda words: f"{network.library.name}, {taken_by(network.plan)}: {words}",
        )


def padded(kernel: int, uneven: bool) -> nn.Module:
    """Zeros around images for windows of an odd size, one row and column more at the end; none if not
    ``uneven``."""
    before, after = kernel // 2 - 1, kernel // 2
    return nn.ZeroPad2d((before, after, before, after)) if uneven else nn.Identity()


SIZES = st.integers(1, 40)


@pytest.mark.slow
@settings(max_examples=16, deadline=None)
@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 20),
    kernel=st.sampled_from([1, 2, 3, 5, 7]),
    stride=st.sampled_from([1, 2, 3]),
    padding=st.integers(0, 3),
    height=st.integers(7, 34),
    width=st.integers(7, 34),
    batch=st.integers(1, 3),
    share=st.sampled_from([0.0, 0.4, 0.8, 1.0]),
    bias=st.booleans(),
)
def test_a_convolution_is_torchs(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    padding: int,
    height: int,
    width: int,
    batch: int,
    share: float,
    bias: bool,
) -> None:
    layers = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias), nn.ReLU())
    agree(thinned(layers, share), torch.randn(batch, inputs, height, width), LIBRARIES)


@pytest.mark.slow
@settings(max_examples=14, deadline=None)
@given(
    channels=st.integers(1, 12),
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    size=st.integers(4, 34),
    batch=st.integers(1, 2),
    expanded=st.booleans(),
    uneven=st.booleans(),
)
def test_a_depthwise_convolution_is_torchs(
    channels: int,
    kernel: int,
    stride: int,
    size: int,
    batch: int,
    expanded: bool,
    uneven: bool,
) -> None:
    """Alone, or fused with the convolution before it; padded on all sides, or at the end alone."""
    padding = 0 if uneven else kernel // 2
    layers = nn.Sequential(
        nn.Conv2d(3, channels, 1) if expanded else nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU6(),
        padded(kernel, uneven),
        nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels),
        nn.ReLU6(),
        nn.Conv2d(channels, 5, 1),
    )
    agree(thinned(layers, 0.5), torch.randn(batch, 3, size, size), LIBRARIES)


@pytest.mark.slow
@pairs(
    size=[(4, 4), (7, 7), (8, 5), (9, 13), (14, 14), (12, 16)],
    kernel=[3, 5],
    stride=[1, 2],
    batch=[1, 2],
    uneven=[False, True],
    wide=[0, 4],
)
def test_rows_of_a_small_plane_are_moved_in_a_vector(
    libraries: list[kernels.Kernels],
    size: tuple[int, int],
    kernel: int,
    stride: int,
    batch: int,
    uneven: bool,
    wide: int,
) -> None:
    """Padded by half a window, at the end alone, or so much that there are more outputs than inputs."""
    height, width = size
    padding = 0 if uneven else kernel // 2 + (wide if stride == 2 else 0)
    layers = nn.Sequential(
        nn.Conv2d(3, 21, 1),
        nn.ReLU6(),
        padded(kernel, uneven),
        nn.Conv2d(21, 21, kernel, stride, padding, groups=21),
        nn.ReLU6(),
        nn.Conv2d(21, 5, 1),
    )
    images = torch.randn(batch, 3, height, width)
    for network in agree(thinned(layers, 0.5), images, libraries, threads=batch):
        kinds = {step_of(item).kind for item in network.plan.items if isinstance(item.work, (Step, Choice))}
        if not uneven:
            widest = max(width, (width + 2 * padding - kernel) // stride + 1)
            assert (Kind.DEPTHWISE_SHIFTED in kinds) is (widest <= network.library.width)


@pytest.mark.slow
@pairs(plane=[(112, 112, 1), (224, 230, 2), (97, 131, 1)], kernel=[3, 5], stride=[1, 2], uneven=[False, True])
def test_a_large_plane_is_computed_in_bands(
    libraries: list[kernels.Kernels], plane: tuple[int, ...], kernel: int, stride: int, uneven: bool
) -> None:
    height, width, stem = plane
    padding = 0 if uneven else kernel // 2
    layers = nn.Sequential(
        nn.Conv2d(3, 11, 3, stem, 1),
        nn.ReLU6(),
        padded(kernel, uneven),
        nn.Conv2d(11, 11, kernel, stride, padding, groups=11),
        nn.ReLU6(),
    )
    agree(thinned(layers, 0.5), torch.randn(1, 3, height, width), libraries, threads=2)


def test_what_one_band_ends_with_another_does_not_begin_with(libraries: list[kernels.Kernels]) -> None:
    """Depthwise and 1x1 convolutions in turns, as MobileNet's first version has them."""
    layers = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU())
    for inputs, outputs in ((12, 12), (12, 13), (13, 5)):
        layers.extend([nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs), nn.ReLU()])
        layers.extend([nn.Conv2d(inputs, outputs, 1), nn.ReLU()])
    for network in agree(thinned(layers, 0.5), torch.randn(1, 3, 75, 75), libraries):
        assert max(len(item.weights) for item in network.plan.items) == 3


@pytest.mark.parametrize("read", [0, 1, 10])
def test_channels_that_no_weight_reads_are_not_computed(read: int) -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 33, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(33, 33, 5, padding=2, groups=33),
        nn.ReLU6(),
        nn.Conv2d(33, 7, 1),
    )
    model = thinned(layers, 0.2)
    model[4].weight[:, torch.randperm(33)[read:]] = 0
    for network in agree(model, torch.randn(1, 3, 60, 60), LIBRARIES, threads=2):
        (item,) = network.plan.items[-1:]
        assert item.weights == ("0.weight", "2.weight", "4.weight")
        assert step_of(item).rows == max(read, 1)
        assert isinstance(item.work, Choice)
        assert item.work.kept <= max(read, 1) * (27 + 7)
        assert item.work.total == 33 * (27 + 7)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_a_sum_is_written_over_what_nothing_reads_any_more(again: bool) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.third, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, images: Tensor) -> Tensor:
            values = self.first(images)
            total = (self.third(self.second(values).relu()) + values).relu()
            itself = (self.second(total) + total).relu()
            return self.last(itself + values if again else itself)

    for network in agree(thinned(Residual(), 0.5), torch.randn(1, 3, 20, 20), LIBRARIES, threads=2):
        first, _, third, fourth, _ = (
            step_of(item) for item in network.plan.items if isinstance(item.work, Choice)
        )
        assert (third.other == third.output) is not again
        assert third.other == first.output
        assert fourth.other == fourth.input != fourth.output


@pytest.mark.slow
@pairs(
    plane=[(96, 56, 56), (33, 97, 131), (24, 112, 112)], kernel=[3, 5], stride=[1, 2], residual=[False, True]
)
def test_a_band_goes_on_to_the_projection(
    libraries: list[kernels.Kernels], plane: tuple[int, ...], kernel: int, stride: int, residual: bool
) -> None:
    """An inverted residual whose depthwise outputs are never in memory as a whole."""
    channels, height, width = plane

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.expand = nn.Conv2d(8, channels, 1)
            self.depthwise = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)
            self.project = nn.Conv2d(channels, 8, 1)
            self.after = nn.Conv2d(8, 5, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            values = self.stem(images)
            spread = self.depthwise(self.expand(values).clamp(0, 6)).clamp(0, 6)
            projected = self.project(spread)
            return self.after(projected + values if residual and stride == 1 else projected)

    large = channels * -(-height // stride) * -(-width // stride) >= BANDED
    for network in agree(thinned(Block(), 0.6), torch.randn(1, 3, height, width), libraries, threads=2):
        fused = {item.weights for item in network.plan.items}
        assert (("expand.weight", "depthwise.weight", "project.weight") in fused) is large


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threads", "inputs", "outputs", "kernel", "size"),
    [(3, 700, 300, 1, 7), (1, 150, 140, 3, 9), (2, 150, 140, 3, 9), (1, 300, 530, 1, 22)],
)
def test_many_columns_are_taken_in_blocks(
    libraries: list[kernels.Kernels], threads: int, inputs: int, outputs: int, kernel: int, size: int
) -> None:
    """With more rows than are put in order together, a tail behind the last vector, something to add, and
    planes so large that they are asked for ahead."""
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    images = torch.randn(1, inputs, size, size)
    for network in agree(thinned(Beside(layer), 0.8), images, libraries, threads):
        planned = plan(network.found, network.parameters, network.library)
        (algorithms,) = (item.work.algorithms for item in planned.items if isinstance(item.work, Choice))
        assert all(
            algorithms[algorithm].blocks > 1 for algorithm in (*BLOCKS, *GATHERED) if algorithm in algorithms
        )
        assert {algorithm.form for algorithm in algorithms} >= (
            {"blocks", "gathered"} if kernel > 1 else {"blocks"}
        )


class Beside(nn.Module):
    """A layer's outputs and what is added to them."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.short = layer, nn.AvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.layer(images)
        return torch.relu(outputs + self.short(images[:, :1]).expand_as(outputs))


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 30),
    blocks=st.integers(1, 4),
    group=st.sampled_from([1, 8, 64]),
    seed=st.integers(0, 9),
)
def test_survivors_are_all_there_block_by_block(
    rows: int, columns: int, blocks: int, group: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(size=(rows, columns)).astype(np.float32) * random.integers(0, 2, (rows, columns))
    block_of = np.sort(random.integers(0, blocks, columns))
    block_of = np.unique(block_of, return_inverse=True)[1]
    offsets = random.permutation(columns) * 10
    taps, starts, order = survivors(weight, offsets, block_of, group)
    assert len(starts) == order.size + 1
    assert len(taps) == np.count_nonzero(weight)
    again = np.zeros_like(weight)
    groups = [set(order[0, first : first + group].tolist()) for first in range(0, rows, group)]
    for block, in_order in enumerate(order):
        assert [set(in_order[first : first + group].tolist()) for first in range(0, rows, group)] == groups
        for position, row in enumerate(in_order):
            place = block * rows + position
            mine = taps[starts[place] : starts[place + 1]]
            where = [int(np.flatnonzero(offsets == offset)[0]) for offset in mine["offset"]]
            assert set(block_of[where]) <= {block}
            again[row, where] = mine["weight"]
    np.testing.assert_array_equal(again, weight)


@given(columns=st.integers(1, 400), plane=st.integers(1, 60), pixels=st.sampled_from([16, 40, 128]))
def test_what_a_block_of_columns_reads_fits_nearby(columns: int, plane: int, pixels: int) -> None:
    offsets = np.arange(columns) * plane
    nearby = 24 * 1024
    blocks = column_blocks(offsets, pixels, nearby)
    assert blocks[0] == 0
    assert set(np.diff(blocks)) <= {0, 1}
    for block in range(blocks[-1] + 1):
        inside = offsets[blocks == block]
        lines = {line for begin in inside for line in range(begin // LINE, (begin + pixels - 1) // LINE + 1)}
        beside = pixels // LINE + 1  # lines that it shares with the block before count there
        assert 4 * LINE * len(lines) <= nearby + 4 * LINE * 2 * beside


def test_a_sum_with_a_depthwise_convolution(libraries: list[kernels.Kernels]) -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)

        def forward(self, images: Tensor) -> Tensor:
            values = self.first(images).relu()
            return (self.depthwise(values) + values).relu()

    agree(thinned(Summed(), 0.5), torch.randn(2, 3, 14, 14), libraries)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 150),
    batch=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_linear_layers_are_torchs(inputs: int, outputs: int, batch: int, share: float) -> None:
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 7, bias=False)
    )
    agree(thinned(layers, share), torch.randn(batch, 1, 1, inputs), LIBRARIES)


class Residual(nn.Module):
    """Sums before and after a clip, a pool, a mean, a layer on features, and torch's own between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 7, 2, 3)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, 2, 1)
        self.shortcut = nn.Conv2d(16, 32, 1, 2)
        self.gate = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        values = nn.functional.max_pool2d(self.stem(images).relu(), 3, 2, 1)
        values = (values + self.first(values)).clamp(-1, 2)
        values = (self.shortcut(values) + self.second(values)).relu()
        gate = torch.sigmoid(self.gate(values.mean((2, 3), keepdim=True)))
        values = nn.functional.silu(values * gate) + values
        features = nn.functional.adaptive_avg_pool2d(values, 1).flatten(1)
        return self.head(torch.tanh(features))


@pytest.mark.slow
@pairs(threads=[1, 2], batch=[1, 3], size=[29, 40])
def test_a_whole_network_is_torchs(
    libraries: list[kernels.Kernels], threads: int, batch: int, size: int
) -> None:
    torch.manual_seed(1)
    for network in agree(thinned(Residual(), 0.9), torch.randn(batch, 3, size, size), libraries, threads):
        used = {kernel for kernel, skips in network.kernels.values() if skips}
        assert used or threads > 1  # more threads than are free may be faster dense
        assert all("sparse" in kernel for kernel in used)


def test_what_the_kernels_do_not_know_runs_in_torch() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(4, 8, 3, groups=2, padding=1)
            self.dilated = nn.Conv2d(8, 8, 3, dilation=2, padding=2)
            self.norm = nn.GroupNorm(2, 8)

        def forward(self, images: Tensor) -> Tensor:
            values = self.norm(self.dilated(self.grouped(images).relu()))
            first, second = values.unbind(1)[:2]
            return torch.stack([first.mean((1, 2)), second.amax((1, 2))], 1)

    for network in agree(thinned(Odd(), 0.5), torch.randn(2, 4, 9, 9), LIBRARIES):
        assert not network.kernels


def test_blocks_with_settings_of_their_own_run_in_torch() -> None:
    """torch exports each as a graph that is called with its settings."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.whole = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

        def forward(self, images: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                values = self.narrow(images)
            with torch.autocast("cpu", enabled=False), torch.enable_grad():
                return self.whole(values.float()).mean((2, 3))

    for network in agree(thinned(Blocks(), 0.5), torch.randn(2, 4, 9, 9), LIBRARIES):
        assert network.uses_torch


def test_layers_whose_weights_are_computed_run_in_torch() -> None:
    """As an attention does that takes its projections out of one weight."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Linear(9, 8)

        def forward(self, images: Tensor) -> Tensor:
            values, (weight, gate) = images.flatten(1), self.both.weight.chunk(2)
            return nn.functional.linear(values, weight) * nn.functional.linear(values, gate).sigmoid()

    for network in agree(thinned(Split(), 0.5), torch.randn(2, 1, 3, 3), LIBRARIES):
        assert not network.kernels


def around(values: Tensor) -> Tensor:
    return nn.functional.pad(values, (1, 1, 1, 1))


class Ways(nn.Module):
    """Two convolutions of one input, of which the second leaves the borders out, and a gain a channel."""

    def __init__(self, joined: Callable[["Ways", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.whole, self.inner = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3)
        self.gain = nn.Parameter(torch.linspace(-1, 1, 8).reshape(1, 8, 1, 1))
        self.joined = joined

    def forward(self, images: Tensor) -> Tensor:
        return self.joined(self, self.whole(images), self.inner(images))


@pytest.mark.parametrize(
    "joined",
    [
        lambda own, whole, inner: torch.cat([whole, around(inner)], 1),
        lambda own, whole, inner: whole + around(inner),
        lambda own, whole, inner: around(inner),
        lambda own, whole, inner: whole * own.gain.relu(),
        lambda own, whole, inner: whole * own.gain.clamp(min=0.1),
        lambda own, whole, inner: whole.mean((2, 3)) * own.gain.flatten(1),
    ],
    ids=["padded, second", "padded, added", "padded, in the end", "relu", "clamp", "flatten"],
)
def test_padding_and_parameters_wherever_they_are_read(
    joined: Callable[[Ways, Tensor, Tensor], Tensor],
) -> None:
    agree(thinned(Ways(joined), 0.5), torch.randn(2, 3, 9, 9), LIBRARIES)


@given(
    images=st.integers(1, 3),
    height=SIZES,
    width=SIZES,
    gap=st.integers(0, 3),
    lanes=st.sampled_from([4, 8, 16]),
)
def test_a_layout_has_room_and_its_mask_has_the_pixels(
    images: int, height: int, width: int, gap: int, lanes: int
) -> None:
    layout = MemoryLayout(images, height, width, gap, lanes)
    mask = layout.mask()
    pixels = {
        n * layout.image + y * layout.row + x
        for n in range(images)
        for y in range(height)
        for x in range(width)
    }
    if mask is not None:
        assert set(np.flatnonzero(mask).tolist()) == pixels
    assert max(pixels) + 1 == layout.span <= layout.vectors * lanes + layout.tail
    if not layout.single:
        beyond = max(pixels) + gap * layout.row + gap  # the last padding that a window reads
        assert beyond < layout.plane
        assert gap * layout.row + gap <= layout.border


def test_a_layer_takes_the_dense_path_unless_it_has_zeros() -> None:
    model = thinned(nn.Sequential(nn.Conv2d(32, 64, 1), nn.Flatten()), 0.0)
    build = sparse.prepare(model, (32, 20, 20))
    images = torch.randn(1, 32, 20, 20)
    dense = build(compress(model, Recipe()), images, threads=1, batch=1)
    thin = build(compress(model, Recipe(PruneSpec(sparsity=0.95))), images, threads=1, batch=1)
    assert "dense" in dense.execution.layers[0].kernel
    assert "sparse, 102 of 2,048 weights" in thin.execution.layers[0].kernel


def test_profiled_steps_name_every_layer() -> None:
    model = thinned(Residual(), 0.8)
    runner = sparse.prepare(model, (3, 32, 32))(
        compress(model, Recipe()), torch.randn(1, 3, 32, 32), threads=1, batch=1
    )
    assert runner.profile
    rows = runner.profile(np.zeros((1, 3, 32, 32), np.float32), 3)
    named = {row.name for row in rows if row.role == "layer"}
    assert named == {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert all(row.times_ns[0] > 0 for row in rows)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> str:
    reason = "no C++ compiler was found"
    monkeypatch.setattr(kernels, "problem", lambda: reason)
    return reason


def test_without_kernels_torchs_csr_serves_and_says_why(without_kernels: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 600), nn.Linear(600, 10)
    )
    compressed = compress(model.eval(), Recipe(PruneSpec(sparsity=0.98)))
    images = torch.randn(4, 3, 8, 8)
    runner = sparse.prepare(model, (3, 8, 8))(compressed, images, threads=1, batch=4)
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(runner.infer(images.numpy())), compressed.module(images))
    assert any(without_kernels in words for words in runner.execution.simulated)


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (1, 5, 1, 1)])
def test_a_csr_layer_is_its_layer(shape: tuple[int, ...]) -> None:
    convolution, linear = thinned(nn.Conv2d(5, 4, 1), 0.5), thinned(nn.Linear(5, 3, bias=False), 0.5)
    images = torch.randn(shape)
    torch.testing.assert_close(csr.CsrLayer(convolution)(images), convolution(images))
    torch.testing.assert_close(csr.CsrLayer(linear)(images.movedim(1, -1)), linear(images.movedim(1, -1)))


called: list[str] = []


def runner_that_takes(seconds: float, kernel: str, more: float = 0.0) -> Runner:
    """``more``: seconds for each image of a batch after the first. Its calls are in called."""

    def infer(images: np.ndarray) -> np.ndarray:
        called.append(kernel)
        time.sleep(seconds + more * (len(images) - 1))
        return images

    def serve(*, batch: int, threads: int, streams: int) -> Service:
        return Service(one_by_one(infer))

    execution = Execution((LayerExecution("layer", "f32", kernel),), ())
    return Runner(infer, infer, lambda: execution, serve=serve)


def test_the_faster_of_two_executions_serves() -> None:
    own, whole = runner_that_takes(0.001, "sparse"), runner_that_takes(0.02, "brgconv")
    images = np.zeros((1, 3))
    assert sparse.faster(own, whole, images).infer is own.infer
    left = sparse.faster(whole, own, images)
    assert left.infer is own.infer
    assert left.execution.layers[0].kernel == "OpenVINO sparse, dense: the fastest here"


def test_which_one_serves_is_compared_for_each_batch() -> None:
    own, whole = runner_that_takes(0.001, "sparse", more=0.03), runner_that_takes(0.02, "brgconv")
    found = sparse.faster(own, whole, np.zeros((1, 3)))
    assert found.infer is own.infer
    assert found.serve
    for batch, kernel in (1, "sparse"), (3, "brgconv"):
        service = found.serve(batch=batch, threads=1, streams=1)
        called.clear()
        service.run(np.zeros((batch, 3)), 2)
        assert called == [kernel, kernel]
