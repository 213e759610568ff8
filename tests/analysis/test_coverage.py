"""What a profile says, from made-up ones: no engine runs here."""

from dataclasses import replace

import pytest
from factories import OTHER_MACHINE, recipe

from optimizer.analysis.coverage import (
    Coverage,
    as_json,
    called,
    conclusions,
    coverage_key,
    frame,
    layer_precisions,
    part,
    parts,
    rows,
    table,
)
from optimizer.analysis.statistics import SAME, LatencySummary, summarise_latency
from optimizer.formats import columns
from optimizer.recipe import Recipe
from optimizer.records import KernelTime, Request, Settings, decode, encode
from optimizer.system.environment import environment

INT8 = recipe(0, 8, 8)
US = 1_000


def layer(
    name: str, microseconds: float, precision: str = "f32", kernel: str = "brgconv", skips: bool = False
) -> KernelTime:
    one = KernelTime.of_layers([f"{name}.weight"], precision, kernel, round(microseconds * US), skips)
    return replace(one, times_ns=one.times_ns * 3)


def conversion(microseconds: float, name: str = "input/fq_output_0") -> KernelTime:
    return KernelTime(name, "conversion", "f32", "jit", (round(microseconds * US),) * 3)


def between(microseconds: float = 1) -> KernelTime:
    return KernelTime.between_operations(round(microseconds * US))


BASELINE = (layer("first", 60), layer("second", 39), between())
MACHINE = replace(OTHER_MACHINE, instruction_sets=("avx2", "avx512f", "avx512_vnni"))


def profile(
    *kernels: KernelTime, made: Recipe = INT8, removed: float = 0.0, simulated: tuple[str, ...] = ()
) -> Coverage:
    return Coverage(
        key="k",
        request=Request("fashion-resnet", made),
        environment=MACHINE,
        created="2026-11-02T10:00:00+00:00",
        threads=1,
        kernels=(*kernels, between()),
        baseline=BASELINE,
        removed_share=removed,
        simulated=simulated,
    )


def said(run: Coverage, latency: LatencySummary | None = None) -> str:
    return "\n".join(conclusions(run, latency))


def test_shares_add_up_to_one_and_are_of_medians() -> None:
    told = rows((KernelTime("a", "layer", "f32", "k", (1, 9, 3)), layer("b", 0.007), between(0)))
    assert [row.time_ns for row in told] == [3, 7, 0]
    assert [row.share for row in told] == pytest.approx([0.3, 0.7, 0])


def test_every_layer_on_int8_kernels() -> None:
    run = profile(layer("first", 30, "u8"), layer("second", 19, "i8"))
    assert "2 of 2 layers ran int8 kernels (98.0 % of the time)." in said(run)
    assert "int8 was asked for" not in said(run)


def test_a_layer_whose_median_is_no_time_is_counted_all_the_same() -> None:
    """Below a microsecond OpenVINO tells none: of such a layer some of the samples are left, if any."""
    run = profile(replace(layer("first", 0), times_ns=(0, 0, 900)))
    assert "1 of 1 layers ran float32 kernels (0.0 % of the time)." in said(run)


def test_layers_that_did_not_use_int8_are_named_with_their_time_and_why() -> None:
    reason = (
        "8-bit activations: rounded between float32 kernels, since asymmetric 8-bit weights do not fit int8"
    )
    run = profile(layer("first", 30, "u8"), layer("second", 69), simulated=(reason,))
    words = said(run)
    assert "1 of 2 layers ran int8 kernels (30.0 % of the time); 1 of 2 layers ran float32 kernels" in words
    assert (
        "int8 was asked for, and 1 of 2 layers did not use it: second. They take 69.0 % of the time." in words
    )
    assert f"Why: {reason}." in words


def test_no_layer_used_int8() -> None:
    run = profile(layer("first", 30), layer("second", 69))
    assert "int8 was asked for, and none of the 2 layers uses it" in said(run)
    assert "int8 products" not in said(run), "no int8 kernel ran, so what it runs on does not matter"


def test_of_many_layers_some_are_named() -> None:
    run = profile(*(layer(f"layer {number}", 10) for number in range(9)), layer("last", 1, "u8"))
    assert "9 of 10 layers did not use it: layer 0, layer 1, layer 2, layer 3 and 5 more." in said(run)


def test_rounded_weights_alone_do_not_make_int8() -> None:
    words = said(profile(layer("first", 60), layer("second", 39), made=recipe(0, 8)))
    assert "float32 kernels ran, since int8 kernels need 8 bits in both" in words
    assert "int8 was asked for" not in words


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        (25, "take 33.3 % of the time (25.0 µs in 1 operation) and eat 50.0 % of the 50.0 µs"),
        (60, "and eat the gain: the layers save only 50.0 µs."),
    ],
)
def test_conversions_eat_the_gain(taken: float, words: str) -> None:
    run = profile(layer("first", 30, "u8"), conversion(taken), layer("second", 19, "u8"))
    assert words in said(run)


def test_conversions_beside_layers_that_save_nothing() -> None:
    run = profile(
        layer("first", 60, "u8"), conversion(10), layer("second", 40, "u8"), conversion(1, "reorder")
    )
    assert "(11.0 µs in 2 operations), and the layers themselves save nothing." in said(run)


def test_conversions_that_were_there_before_are_no_loss() -> None:
    run = replace(
        profile(layer("first", 30, "u8"), conversion(9)), baseline=(*BASELINE[:2], conversion(9), between())
    )
    assert "no more than uncompressed" in said(run)


def test_conversions_that_hardly_take_time_are_not_reported() -> None:
    assert "Re-quantization" not in said(profile(layer("first", 99, "u8"), conversion(0.5)))


def test_a_cpu_without_int8_instructions() -> None:
    run = profile(layer("first", 30, "u8"), layer("second", 19, "u8"))
    assert "int8 products run on avx512_vnni here; this CPU has no AMX." in said(run)
    old = replace(run, environment=OTHER_MACHINE)
    assert "This CPU has no instructions for int8 products (VNNI, AMX): int8 gains little here." in said(old)
    new = replace(run, environment=replace(MACHINE, instruction_sets=("avx2", "avx512_vnni", "amx_int8")))
    assert "int8 products" not in said(new)


def summary(ratio: float, noisy: bool = False) -> LatencySummary:
    return summarise_latency([[100] * 80] * 2, [round(100 * ratio)] * 80, stolen_share=0.5 if noisy else 0.0)


def test_pruned_and_not_faster() -> None:
    run = profile(layer("first", 60), layer("second", 39), made=recipe(0.5), removed=0.5)
    zeros = "dense kernels multiply the zeros too (50.0 % of the weights)."
    assert f"Pruning alone makes nothing faster here: {zeros}" in said(run)
    assert f"Pruned, and not faster, 1.00× (1.00 to 1.00) of the time: {zeros}" in said(run, summary(1))
    assert f"not by its zeros: {zeros}" in said(run, summary(0.5))
    assert summary(1).verdict == SAME
    assert "Pruning alone makes nothing faster here" in said(run, summary(1, noisy=True))


def test_zeros_are_not_told_of_where_none_were_asked_for_or_kernels_skip_them() -> None:
    rounded = profile(layer("first", 60), made=recipe(0, 4), removed=0.15)  # rounding makes some zeros, too
    assert "zeros" not in said(rounded)
    skipping = profile(layer("first", 60, skips=True), made=recipe(0.9), removed=0.9)
    assert "zeros" not in said(skipping)
    assert "1 of 1 layers ran sparse kernels" in said(skipping)


def test_a_small_network_waits_between_its_operations() -> None:
    run = replace(profile(), kernels=(layer("first", 60), layer("second", 10), between(30)))
    assert "The slowest operation is first (brgconv): 60.0 % of the time." in said(run)
    assert "30.0 % of the time passes between operations" in said(run)
    assert "between operations" not in said(profile(layer("first", 60)))


def test_an_engine_that_tells_of_nothing_between_is_told_of_whole() -> None:
    run = replace(profile(), kernels=(layer("first", 10), layer("second", 60)))
    assert "The slowest operation is second (brgconv): 85.7 % of the time." in said(run)
    assert "passes" not in said(run)


def test_where_no_layer_is_known_to_have_run_none_are_counted() -> None:
    run = replace(profile(), kernels=(conversion(9), between()))
    assert conclusions(run)[0].startswith("Re-quantization and reorders take 90.0 % of the time")


def test_parts() -> None:
    kernels = (
        layer("first", 10, "u8"),
        layer("second", 20),
        layer("third", 30, "bf16"),
        layer("fourth", 5, skips=True),
        conversion(4),
        between(6),
    )
    assert parts(kernels) == {
        "int8 kernels": 10 * US,
        "half-precision kernels": 30 * US,
        "sparse kernels": 5 * US,
        "dense fp32": 20 * US,
        "conversion": 4 * US,
        "other": 6 * US,
    }
    assert part(kernels[0]) == "int8 kernels"
    assert layer_precisions(kernels)["second.weight"] == {"f32"}


def test_layers_that_ran_as_one_kernel_count_each() -> None:
    both = KernelTime.of_layers(["first.weight", "second.weight"], "f32", "jit", 50 * US)
    run = profile(both, layer("third", 10, "u8"))
    assert set(layer_precisions(run.kernels)) == {"first.weight", "second.weight", "third.weight"}
    assert "1 of 3 layers ran int8 kernels" in said(run)
    assert "2 of 3 layers did not use it: first, second." in said(run)
    told = frame(run)
    assert told.name[0] == "first + second"
    assert told.baseline_ns[0] == (60 + 39) * US
    assert told.baseline_ns[1] != told.baseline_ns[1], "third did not run uncompressed"


def test_the_table_tells_what_each_layer_took_before_once() -> None:
    run = profile(layer("first", 30, "u8"), conversion(4), layer("first", 10, "u8"))
    told = frame(run)
    assert told.name.tolist() == ["first", "input/fq_output_0", "first", "between operations"]
    assert told.baseline_ns.fillna(-1).tolist() == [60 * US, -1, -1, -1]
    assert told.share.sum() == pytest.approx(1)
    lines = table(run).splitlines()
    assert lines[0].split() == ["operation", "precision", "kernel", "time", "share", "uncompressed"]
    assert lines[1].split() == ["first", "u8", "brgconv", "30.0", "µs", "66.7", "%", "60.0", "µs"]


def test_columns_are_aligned() -> None:
    assert columns([("name", "n"), ("a", "1"), ("bcdefg", "23")]) == "name     n\na        1\nbcdefg  23"


def test_a_profile_comes_back_from_its_json() -> None:
    run = profile(layer("first", 30, "u8"))
    assert decode(encode(run), Coverage) == run
    plain = as_json(run)
    assert plain["conclusions"] == conclusions(run)
    assert sum(row["share"] for row in plain["operations"]) == pytest.approx(1)
    assert plain["recipe"] == run.request.recipe.to_dict()


def test_the_key_changes_with_what_would_run() -> None:
    asked = Request("fashion-resnet", INT8)
    assert coverage_key(asked) == coverage_key(Request("fashion-resnet", INT8))
    others = [
        replace(asked, engine="torch"),
        replace(asked, recipe=Recipe()),
        replace(asked, settings=Settings(batch=2)),
    ]
    assert len({coverage_key(one) for one in (asked, *others)}) == 4
    assert environment().key  # which the key holds


def test_conversions_are_called_by_the_layers_beside_them() -> None:
    odd = "FakeQuantize_520388"
    ran = [conversion(9, odd), layer("first", 1), conversion(2, odd), layer("second", 1), conversion(1, odd)]
    assert called(rows(ran)) == (
        "conversion of the input",
        "first",
        "conversion before second",
        "second",
        "conversion of the output",
    )
    assert "The slowest operation is conversion of the input (jit)" in " ".join(conclusions(profile(*ran)))
