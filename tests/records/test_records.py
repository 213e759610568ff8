import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np
import pytest
from factories import make_result, recipe
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimizer.analysis.limits import Limits
from optimizer.analysis.scaling import ComplexityRequest
from optimizer.analysis.serving import ServingRequest
from optimizer.errors import InputError
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import (
    SCHEMA,
    Accuracy,
    DataSpec,
    Environment,
    Execution,
    LayerExecution,
    Request,
    Result,
    Settings,
    Times,
    Visits,
    decode,
    digest,
    encode,
)
from optimizer.search.records import Question
from optimizer.search.space import Space

MACHINE = Environment("a CPU", ("avx2",), 4, None, 2**33, "Linux 6", "3.12.1", {"torch": "2.13"})


@given(hnp.arrays(bool, st.integers(0, 70)))
def test_one_bit_an_image_holds_every_outcome(correct: np.ndarray) -> None:
    accuracy = Accuracy.of(correct, reference="labels", agreement=0, sqnr_db=None, kl=0.0)
    assert accuracy.total == len(correct)
    assert len(accuracy.correct) == (len(correct) + 7) // 8
    assert accuracy.outcomes.dtype == bool
    assert accuracy.outcomes.tolist() == correct.tolist()


def test_a_name_that_is_not_utf8_has_no_digest() -> None:
    """The file system's, or one typed where the locale is not UTF-8."""
    for name, value in (("caf\udce9.onnx", ["caf\udce9.onnx"]), ("é\udce9", Request("é\udce9"))):
        with pytest.raises(InputError) as refused:
            digest(value)
        assert str(refused.value).startswith(f"{name!a} is not UTF-8: rename it")
        str(refused.value).encode("ascii")


@pytest.mark.parametrize("path", [None, "/photographs/ä ö"])
def test_a_result_survives_json_whole(path: str | None) -> None:
    result = make_result(recipe(0.5, 4), images=1_001, path=path, notes=("2 of 9 images skipped",))
    data = encode(result)
    assert decode(data, Result) == result
    assert decode(data.decode(), Result) == result
    assert encode(decode(data, Result)) == data
    assert result.schema == json.loads(data)["schema"] == SCHEMA


visited = st.tuples(
    st.lists(st.integers(0, 2**62), max_size=5), st.lists(st.integers(0, 2**62), min_size=1, max_size=5)
)


@given(st.lists(visited, min_size=1, max_size=6))
def test_visits_keep_every_call_in_its_place(made: list[tuple[list[int], list[int]]]) -> None:
    found = decode(encode(Visits.of(made)), Visits)
    assert found == Visits.of(made)
    assert [calls.tolist() for calls in found.each] == [settling + timed for settling, timed in made]
    assert [calls.tolist() for calls in found.steady] == [timed for _, timed in made]
    assert found.first_ns.tolist() == [(settling + timed)[0] for settling, timed in made]
    assert found.medians_ns == pytest.approx([np.median(timed) for _, timed in made])
    assert found.means_ns == pytest.approx([np.mean(timed) for _, timed in made])
    assert Visits.joined([found, found]) == Visits.of([*made, *made])


@pytest.mark.parametrize(
    ("settling", "timed"), [((1, 1), (2, 3)), ((1, 3), (2, 0)), ((3, -1), (2, 2)), ((), ())]
)
def test_visits_that_are_not_their_calls_are_refused(
    settling: tuple[int, ...], timed: tuple[int, ...]
) -> None:
    visits = Visits(Times.of(range(1, 7)), settling, timed)
    for name in ("medians_ns", "means_ns"):
        with pytest.raises(InputError, match="damaged times"):
            getattr(visits, name)


def test_damaged_times_are_refused_when_they_are_read() -> None:
    times = Times.of([1, 2, 3])
    text = encode(times)
    assert decode(text, Times).values.tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="damaged times"):
        decode(text.replace(str(times.checksum).encode(), b"7"), Times)


@given(st.binary())
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="not a Request record"):
        decode(data, Request)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Result)])
def test_a_result_without_a_field_is_refused_unless_it_has_a_default(field: str) -> None:
    data = json.loads(encode(make_result(images=16)))
    del data[field]
    if field in ("notes", "schema", "cold_start", "scored_on", "weights"):
        assert decode(json.dumps(data), Result)
    else:
        with pytest.raises(InputError, match=f"not a Result record.*{field}"):
            decode(json.dumps(data), Result)


def test_a_record_read_back_is_validated_like_a_new_one() -> None:
    data = json.loads(encode(Request("fashion-resnet")))
    data["recipe"]["prune"]["sparsity"] = 1.5
    with pytest.raises(InputError, match="sparsity 1.5 is out of range"):
        decode(json.dumps(data), Request)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_calibration_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(InputError, match=f"calibration share {share:g} is out of range"):
        DataSpec(calibration_share=share)


def test_at_least_one_image_is_evaluated() -> None:
    with pytest.raises(InputError, match="image limit 0 is not allowed: from 1 to"):
        DataSpec(limit=0)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_has_at_least_one_image(batch: int) -> None:
    with pytest.raises(InputError, match=f"batch size {batch} is too small: at least 1 image"):
        Settings(batch=batch)


@pytest.mark.parametrize(
    "request_of", [DataSpec, Settings, partial(ServingRequest, "fashion-mlp"), ComplexityRequest]
)
@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_not_negative_and_can_be_stored(request_of: Callable[..., object], seed: int) -> None:
    request_of(seed=2**63 - 1)
    with pytest.raises(InputError, match=f"seed {seed} is not allowed: from 0 to 9,223,"):
        request_of(seed=seed)


def test_threads_are_not_negative() -> None:
    with pytest.raises(InputError, match="threads -1 is not allowed: 1 or more, or 0 for every core"):
        Settings(threads=-1)


@pytest.mark.parametrize(
    ("change", "shares_axis"),
    [
        ({"memory_bytes": 2**34}, True),
        ({"system": "Linux 7"}, True),
        ({"python": "3.13.0"}, True),
        ({"cpu": "another"}, False),
        ({"instruction_sets": ()}, False),
        ({"cores": 2}, False),
        ({"governor": "powersave"}, False),
        ({"threads": 8}, False),
        ({"variables": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, False),
        ({"libraries": {"torch": "2.14"}}, False),
    ],
)
def test_latencies_share_an_axis_on_equal_machines_and_libraries(
    change: dict[str, object], shares_axis: bool
) -> None:
    assert (dataclasses.replace(MACHINE, **change).key == MACHINE.key) is shares_axis  # type: ignore[arg-type]
    assert MACHINE.key == "7c5ac90c40a6d1e272ae"  # what is stored is found by it


def test_an_environment_that_was_stored_before_threads_were_counted_is_read() -> None:
    before = json.loads(encode(MACHINE))
    del before["threads"], before["variables"]
    assert decode(json.dumps(before), Environment) == MACHINE


def ask(recipe: Recipe) -> Request:
    return Request("fashion-resnet", recipe)


PHOTOGRAPHS = DataSpec(path="/photos", limit=500)
FIRST_DIGESTS: list[tuple[object, str]] = [
    (ask(Recipe()), "33215a68763495b83b45"),
    (
        ask(
            Recipe(
                PruneSpec("compensated", sparsity=0.5, allocation="measured"),
                QuantizeSpec("compensated", weight_bits=4, range="mse"),
            )
        ),
        "f6562f1b3746be0946ea",
    ),
    (
        Request(
            "fashion-resnet",
            Recipe(PruneSpec(threshold=0.05)),
            "sparse",
            PHOTOGRAPHS,
            Settings(threads=2, batch=4, quick=False),
        ),
        "ff725fd60000add12c37",
    ),
    (
        ask(Recipe(PruneSpec("channels", sparsity=0.3, allocation="uniform", snap=8))),
        "a56eb2025a2719675aff",
    ),
    (
        ask(Recipe(layers=(Override("9.weight", sparsity=0.5, rounding="compensated"),))),
        "31d12831da8dedf77851",
    ),
    (ask(Recipe(PruneSpec(sparsity=0.5), finetune_steps=200)), "45b590b6c23bd4cf0bda"),
    (
        ask(
            Recipe(
                PruneSpec(sparsity=0.5, match=True),
                QuantizeSpec(weight_bits=8, equalise=True, precision="bf16"),
            )
        ),
        "fd3e23e51ec57dbcf5a2",
    ),
    (ServingRequest("fashion-resnet"), "5840b868e6d73caf133f"),
    (ComplexityRequest(removed_share=0.8), "4a9198aea26679dc9fc7"),
    (
        Question("fashion-mlp", Limits(size_mb=1.0), "latency", Space(rounding=("compensated",))),
        "c909f8c12d6f50b4e678",
    ),
    (DataSpec(), "4148b45f54064121849d"),
    (
        [LayerExecution("9.weight", "f32", "brgconv"), LayerExecution("0.weight", "i8", "brgconv")],
        "1a39ac95f290c15c2ac3",
    ),
    (MACHINE, "763d0e20c40544622c5a"),
    (["f32", 0.5, None, {"b": 1, "a": [2]}], "80fb291fb356a23eeff9"),
]
"""What is stored is found by these: they never change, whatever fields come."""


@pytest.mark.parametrize(("value", "first"), FIRST_DIGESTS)
def test_the_digest_of_what_could_be_asked_before_is_what_it_was(value: object, first: str) -> None:
    assert digest(value) == first


def test_a_field_that_came_later_counts_where_it_is_set() -> None:
    plain = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=8))
    later = (
        dataclasses.replace(plain, finetune_steps=1),
        dataclasses.replace(plain, prune=dataclasses.replace(plain.prune, match=True)),
        dataclasses.replace(plain, quantize=dataclasses.replace(plain.quantize, precision="f16")),
        dataclasses.replace(plain, quantize=dataclasses.replace(plain.quantize, equalise=True)),
    )
    assert len({digest(one) for one in (plain, *later)}) == 5
    layer = LayerExecution("9.weight", "f32", "AVX2")
    for change in ({"skips_zeros": True}, {"others": ("i8",)}, {"precision": "i8"}):
        assert digest(dataclasses.replace(layer, **change)) != digest(layer)  # type: ignore[arg-type]


def test_a_digest_is_of_the_value_and_not_of_the_order_of_a_dict() -> None:
    libraries = {"numpy": "2", "torch": "2.13", "openvino": "2026"}
    backwards = dict(reversed(libraries.items()))
    one, other = (dataclasses.replace(MACHINE, libraries=order) for order in (libraries, backwards))
    assert digest(one) == digest(other)
    assert one.key == other.key
    assert digest(Request("a")) == digest(Request("a")) != digest(Request("b"))
    assert len(digest(None)) == 20
    assert digest([1, "a", None]) == hashlib.sha256(b'[1,"a",null]').hexdigest()[:20]


@given(st.lists(st.sampled_from(["f32", "i8", "u8"])))
def test_precisions_count_the_layers(precisions: list[str]) -> None:
    execution = Execution(tuple(LayerExecution(str(i), p, "") for i, p in enumerate(precisions)), ())
    assert execution.precisions == {p: precisions.count(p) for p in precisions}


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MACHINE.cpu = "faster"  # type: ignore[misc]
    assert msgspec.json.decode(encode(MACHINE))["cpu"] == "a CPU"
