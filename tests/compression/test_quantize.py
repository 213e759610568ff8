"""Laws of the grids. A tolerance of 1e-4 steps is for float32: the step itself is rounded."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from optimizer.compression.prune.pruned import Pruned
from optimizer.compression.quantize.grid import GROUP, Codes, code_range
from optimizer.compression.quantize.nearest import round_to_nearest as quantize
from optimizer.methods.quantizers import QUANTIZERS
from optimizer.recipe import GRANULARITIES, RANGES, QuantizeSpec

BITS = range(2, 9)
SHAPES = ((3, 5), (2, 2, 2, 2), (1, 7), (6, 1), (2, 1, 3, 2), (1, 1), (2, 2, 3))

# No magnitude below 1e-30, where a step would lose its own precision to underflow.
values = st.floats(-1e4, 1e4, width=32).filter(lambda w: w == 0 or abs(w) > 1e-30) | st.integers(-3, 3).map(
    float
)
tensors = st.sampled_from(SHAPES).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=values).map(torch.from_numpy)
)
grids = {
    "weight_bits": st.sampled_from(BITS),
    "granularity": st.sampled_from(GRANULARITIES),
    "symmetric": st.booleans(),
}
specs = st.builds(QuantizeSpec, range=st.sampled_from(RANGES), **grids)
absmax = st.builds(QuantizeSpec, range=st.just("absmax"), **grids)
FEWER = settings(max_examples=50)
"""Of examples: drawing an array takes longer than all that is done with it."""


def changed(spec: QuantizeSpec, **fields: object) -> QuantizeSpec:
    names = ("weight_bits", "granularity", "symmetric", "range")
    return QuantizeSpec(**({name: getattr(spec, name) for name in names} | fields))  # type: ignore[arg-type]


def channels(weight: Tensor, spec: QuantizeSpec) -> list[Tensor]:
    """The parts of a weight that have a grid of their own."""
    return [weight] if spec.granularity == "tensor" else list(weight)


def squared_error(weight: Tensor, codes: Codes) -> float:
    return float((codes.values.double() - weight.double()).square().sum())


@FEWER
@given(tensors, specs)
def test_values_lie_on_an_integer_grid_and_zero_stays_exactly_zero(
    weight: Tensor, spec: QuantizeSpec
) -> None:
    before = weight.clone()
    codes = quantize(weight, spec)
    assert torch.equal(weight, before)
    assert (codes.values[weight == 0] == 0).all()
    first, last = code_range(spec)
    stored = codes.centred + codes.zero_point
    assert codes.centred.shape == weight.shape
    assert codes.centred.dtype == codes.zero_point.dtype == torch.int16
    assert codes.scale.dtype == torch.float32
    assert (codes.scale > 0).all()
    assert ((stored >= first) & (stored <= last)).all()
    assert ((codes.zero_point >= first) & (codes.zero_point <= last)).all()
    assert torch.equal(codes.stored, stored)
    assert torch.equal(codes.values, codes.scale * (stored - codes.zero_point))
    assert not codes.grouped
    expected = (1 if spec.granularity == "tensor" else weight.shape[0], *[1] * (weight.dim() - 1))
    assert codes.scale.shape == codes.zero_point.shape == expected


@FEWER
@given(tensors, absmax)
def test_no_value_moves_by_more_than_half_a_step(weight: Tensor, spec: QuantizeSpec) -> None:
    codes = quantize(weight, spec)
    steps = (codes.values.double() - weight.double()).abs() / codes.scale.double()
    assert steps.max() <= 0.5 + 1e-4


@FEWER
@given(tensors, specs)
def test_inside_the_grid_each_value_goes_to_its_nearest_code(weight: Tensor, spec: QuantizeSpec) -> None:
    """Every code in turn, in double precision: none is nearer than the one chosen."""
    codes = quantize(weight, spec)
    first, last = code_range(spec)
    every = torch.arange(first, last + 1, dtype=torch.float64)
    grid = (every - codes.zero_point.double()[..., None]) * codes.scale.double()[..., None]
    nearest = (weight.double()[..., None] - grid).abs().amin(-1)
    chosen = (weight.double() - codes.values.double()).abs()
    assert (chosen <= nearest + 1e-4 * codes.scale).all()


@FEWER
@given(tensors, specs)
def test_a_symmetric_grid_is_odd(weight: Tensor, spec: QuantizeSpec) -> None:
    spec = changed(spec, symmetric=True)
    assert torch.equal(quantize(-weight, spec).values, -quantize(weight, spec).values)
    assert not quantize(weight, spec).zero_point.any()


@pytest.mark.slow
@FEWER
@given(tensors, specs)
def test_codes_are_a_channel_s_own(weight: Tensor, spec: QuantizeSpec) -> None:
    spec = changed(spec, granularity="channel")
    whole = quantize(weight, spec).values
    for index, channel in enumerate(weight):
        alone = quantize(channel[None], changed(spec, granularity="tensor")).values
        torch.testing.assert_close(alone[0], whole[index], rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_least_squares_range_is_clearly_better_where_one_weight_sticks_out(
    bits: int, symmetric: bool
) -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 8
    spec = QuantizeSpec(weight_bits=bits, symmetric=symmetric)
    errors = [squared_error(weight, quantize(weight, changed(spec, range=range_))) for range_ in RANGES]
    absolute, least_squares, percentile = errors
    assert least_squares < 0.9 * absolute
    assert least_squares < percentile < absolute


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("range_", RANGES)
def test_a_scale_a_channel_is_better_where_channels_differ(bits: int, symmetric: bool, range_: str) -> None:
    """Not a law: by luck a tensor's grid can hit one channel exactly. On real shapes it is the rule."""
    scales = torch.logspace(-2, 0, 16)[:, None]
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1)) * scales
    errors = {
        granularity: squared_error(
            weight,
            quantize(
                weight,
                QuantizeSpec(weight_bits=bits, symmetric=symmetric, range=range_, granularity=granularity),
            ),
        )
        for granularity in GRANULARITIES
    }
    assert errors["channel"] < errors["tensor"]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("low", "symmetric", "left_out"), [(-1.25, True, 1), (-1.0, False, 0)])
def test_k_bits_are_2_to_the_k_codes_and_a_symmetric_grid_leaves_one_out(
    bits: int, low: float, symmetric: bool, left_out: int
) -> None:
    weight = torch.linspace(low, 1.25, 4001)[None]
    codes = quantize(weight, QuantizeSpec(weight_bits=bits, symmetric=symmetric))
    assert len(codes.centred.unique()) == len(codes.values.unique()) == 2**bits - left_out


@FEWER
@given(tensors, absmax)
def test_more_bits_never_give_a_larger_worst_error(weight: Tensor, spec: QuantizeSpec) -> None:
    assume(spec.weight_bits < 8)
    steps = [quantize(weight, changed(spec, weight_bits=bits)).scale for bits in (spec.weight_bits, 8)]
    assert (steps[1] <= steps[0]).all()


@FEWER
@given(tensors, absmax)
def test_quantizing_again_changes_no_code(weight: Tensor, spec: QuantizeSpec) -> None:
    """Where the codes reach both ends. (A tie at an end, rounded inwards, gives a narrower grid.)"""
    codes = quantize(weight, spec)
    again = quantize(codes.values, spec)
    first, last = code_range(spec)
    for before, after, zero in zip(
        channels(codes.centred, spec),
        channels(again.centred, spec),
        channels(codes.zero_point.expand(codes.centred.shape[0], *codes.zero_point.shape[1:]), spec),
        strict=True,
    ):
        stored = before + zero.flatten()[0]
        if spec.symmetric or (stored.min() == first and stored.max() == last):
            assert torch.equal(before, after)


@pytest.mark.parametrize("spec", [QuantizeSpec(weight_bits=3), QuantizeSpec(weight_bits=3, symmetric=False)])
@pytest.mark.parametrize("range_", RANGES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zero_and_constant_channels(spec: QuantizeSpec, range_: str, granularity: str) -> None:
    spec = changed(spec, range=range_, granularity=granularity)
    assert not quantize(torch.zeros(3, 4), spec).values.any()
    for constant in (0.7, -0.7):
        weight = torch.full((3, 4), constant)
        torch.testing.assert_close(quantize(weight, spec).values, weight, rtol=1e-6, atol=0)
    mixed = torch.stack([torch.zeros(4), torch.full((4,), 5.0), torch.linspace(-1, 1, 4)])
    found = quantize(mixed, changed(spec, granularity="channel")).values
    assert not found[0].any()
    torch.testing.assert_close(found[1], mixed[1])


@pytest.mark.parametrize(("low", "high"), [(0.5, 3.0), (-3.0, -0.5)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_channel_of_one_sign_keeps_zero_on_its_grid(low: float, high: float, symmetric: bool) -> None:
    weight = torch.linspace(low, high, 50)[None]
    codes = quantize(weight, QuantizeSpec(weight_bits=4, symmetric=symmetric))
    first, last = code_range(QuantizeSpec(weight_bits=4, symmetric=symmetric))
    assert first <= int(codes.zero_point) <= last
    if not symmetric:  # all codes serve the one sign
        torch.testing.assert_close(codes.scale.item(), 3.0 / 15)


def test_a_symmetric_grid_by_hand() -> None:
    codes = quantize(
        torch.tensor([[1.0, -0.6, 0.2, 0.0], [-3.0, 1.4, 1.6, 0.5]]), QuantizeSpec(weight_bits=3)
    )
    assert codes.scale.flatten().tolist() == pytest.approx([1 / 3, 1.0])
    assert codes.centred.tolist() == [[3, -2, 1, 0], [-3, 1, 2, 0]]  # 0.5 goes to the even code


def test_an_asymmetric_grid_by_hand() -> None:
    codes = quantize(
        torch.tensor([[-1.0, 2.0, 0.4, 0.6]]),
        QuantizeSpec(weight_bits=2, symmetric=False, granularity="tensor"),
    )
    assert codes.scale.item() == 1.0
    assert codes.zero_point.item() == 1
    assert codes.values.tolist() == [[-1.0, 2.0, 0.0, 1.0]]


WIDE = ((3, 2 * GROUP), (2, GROUP + 1), (2, 20, 3, 3), (1, 3, 5, 9))
wide = st.tuples(st.sampled_from(WIDE), st.integers(0, 1000)).map(
    lambda drawn: torch.randn(drawn[0], generator=torch.Generator().manual_seed(drawn[1]))
)


@pytest.mark.slow
@FEWER
@given(wide, specs)
def test_each_group_of_inputs_has_a_grid_of_its_own_and_the_last_may_be_smaller(
    weight: Tensor, spec: QuantizeSpec
) -> None:
    spec = changed(spec, granularity="group")
    codes = quantize(weight, spec)
    rows = weight.flatten(1)
    groups = -(-rows.shape[1] // GROUP)
    assert codes.grouped
    assert codes.scale.shape == codes.zero_point.shape == (len(weight), groups)
    values, stored = codes.values.flatten(1), codes.stored.flatten(1)
    first, last = code_range(spec)
    assert ((stored >= first) & (stored <= last)).all()
    if spec.range == "percentile":  # there the zeros that fill up the last group count too
        groups -= 1
    for group in range(groups):
        part = slice(group * GROUP, (group + 1) * GROUP)
        alone = quantize(rows[:, part], changed(spec, granularity="channel"))
        torch.testing.assert_close(codes.scale[:, group : group + 1], alone.scale, rtol=1e-6, atol=0)
        torch.testing.assert_close(values[:, part], alone.values, rtol=1e-6, atol=0)


def test_channels_no_wider_than_a_group_have_one_scale_that_int8_kernels_take() -> None:
    weight = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = [quantize(weight, QuantizeSpec(weight_bits=4, granularity=name)) for name in ("group", "channel")]
    assert not codes[0].grouped
    assert codes[0].scale.shape == (4, 1, 1, 1)
    assert torch.equal(codes[0].values, codes[1].values)


def test_rounding_to_nearest_leaves_to_the_bias_what_pruning_left_to_it() -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    pruned = Pruned(weight * 0.5, torch.ones(weight.shape, dtype=torch.bool), torch.arange(8.0))
    rounded = QUANTIZERS["nearest"].load()(weight, pruned, QuantizeSpec(weight_bits=4), "a", None)
    assert torch.equal(rounded.codes.values, quantize(pruned.weight, QuantizeSpec(weight_bits=4)).values)
    assert rounded.bias_change is pruned.bias_change
