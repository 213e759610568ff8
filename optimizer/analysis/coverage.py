"""Which kernels ran, and what they took: the profile of a compressed network beside its baseline's.

What :mod:`optimizer.measurement.profile` reads off an engine, and all that follows from it. No torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from optimizer.analysis.labels import Labelled
from optimizer.analysis.realisation import HALF_PRECISIONS, INT8_PRECISIONS
from optimizer.analysis.statistics import LatencySummary, LatencyVerdict
from optimizer.formats import columns, count, format_ns, listed
from optimizer.records import Environment, KernelTime, Request, Role, digest
from optimizer.store.keys import request_key
from optimizer.system.environment import missing

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Version of the records here and of :func:`as_json`."""

NEGLIGIBLE_SHARE = 0.01
MUCH_BETWEEN = 0.2
NAMED = 4
"""So many layers are named in a sentence; of more, their number is told."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """The profile of a recipe's network and that of its baseline, on one engine with the same threads.

    ``removed_share`` of the layers' weights is zero; ``simulated`` says in words what kernels did not do.
    """

    key: str
    request: Request
    environment: Environment
    created: str
    threads: int
    kernels: tuple[KernelTime, ...]
    baseline: tuple[KernelTime, ...]
    removed_share: float
    simulated: tuple[str, ...]
    schema: int = SCHEMA


def coverage_key(request: Request) -> str:
    """Equal for two requests whose networks would run the same kernels here; the key of the profile."""
    return digest(["coverage", SCHEMA, request_key(request)])


@dataclass(frozen=True, slots=True)
class Row:
    """One operation: the median of its samples, and its ``share`` of all rows' time. ``layers`` are
    those that it is; none, of other operations."""

    name: str
    role: Role
    precision: str
    kernel: str
    time_ns: float
    share: float
    layers: tuple[str, ...] = ()
    skips_zeros: bool = False

    @property
    def label(self) -> str:
        """Layers by their modules' names, an operation by its own."""
        if self.layers:
            return " + ".join(layer.removesuffix(".weight") for layer in self.layers)
        return self.name.removeprefix("__module.")


def rows(kernels: Iterable[KernelTime]) -> tuple[Row, ...]:
    """The operations of a profile in the order in which they ran; their shares add up to 1."""
    taken = [(kernel, float(median(kernel.times_ns))) for kernel in kernels]
    total = sum(time for _, time in taken) or 1.0
    return tuple(
        Row(
            kernel.name,
            kernel.role,
            kernel.precision,
            kernel.kernel,
            time,
            time / total,
            kernel.layers,
            kernel.skips_zeros,
        )
        for kernel, time in taken
    )


def called(kernel_rows: Sequence[Row]) -> tuple[str, ...]:
    """What each is called where people read it: conversions, which engines number, by the layers beside
    them."""
    names, following = [], ""
    ran = [bool(row.layers) for row in kernel_rows]
    for place in reversed(range(len(kernel_rows))):
        row = kernel_rows[place]
        if row.role == "conversion":
            before = f"conversion before {following}" if following else "conversion of the output"
            names.append(before if any(ran[:place]) else "conversion of the input")
        else:
            names.append(row.label)
        following = row.label if row.layers else following
    return tuple(reversed(names))


def frame(run: Coverage) -> "pd.DataFrame":
    """One row an operation of the recipe's network, and for a layer the time that it took uncompressed.

    Columns: ``name``, ``role``, ``precision``, ``kernel``, ``time_ns``, ``share``, ``baseline_ns`` (NaN for
    what the uncompressed network has not).
    """
    import pandas as pd

    left = uncompressed_ns(run)  # a layer that runs several times is told once
    return pd.DataFrame(
        [
            {
                "name": row.label,
                "role": row.role,
                "precision": row.precision,
                "kernel": row.kernel,
                "time_ns": row.time_ns,
                "share": row.share,
                "baseline_ns": left.pop(row.name, float("nan")) if row.role == "layer" else float("nan"),
            }
            for row in rows(run.kernels)
        ]
    )


def uncompressed_ns(run: Coverage) -> dict[str, float]:
    """By the names of the recipe's layers, the nanoseconds that they took uncompressed.

    Layers that run as one kernel took what each of them did by itself. What took part in another kernel there
    has no time of its own.
    """
    before = _by_layer(rows(run.baseline))
    wanted = {row.name: row.layers for row in rows(run.kernels) if row.layers}
    return {
        name: before[name] if name in before else sum(before[layer] for layer in layers)
        for name, layers in wanted.items()
        if name in before or all(layer in before for layer in layers)
    }


def layer_precisions(kernels: Iterable[KernelTime]) -> dict[str, set[str]]:
    """The precisions in which each layer ran, in the order of the network."""
    found: dict[str, set[str]] = {}
    for kernel in kernels:
        for name in kernel.layers:
            found.setdefault(name, set()).add(kernel.precision)
    return found


class Part(Labelled):
    """What the time of a call is split into, by what ran: the layers, and then all else."""

    INT8 = "int8 kernels"
    HALF = "half-precision kernels"
    SPARSE = "sparse kernels"
    DENSE = "dense fp32", "float32 kernels"
    CONVERSION = "conversion", "re-quantization, reorders"
    OTHER = "other", "everything else"


def part(row: Row | KernelTime) -> Part:
    """What an operation belongs to."""
    if row.role != "layer":
        return Part.CONVERSION if row.role == "conversion" else Part.OTHER
    if row.skips_zeros:
        return Part.SPARSE
    if row.precision in INT8_PRECISIONS:
        return Part.INT8
    return Part.HALF if row.precision in HALF_PRECISIONS else Part.DENSE


def parts(kernels: Iterable[KernelTime]) -> dict[Part, float]:
    """Nanoseconds a call in each part; those without any are left out."""
    taken = dict.fromkeys(Part, 0.0)
    for row in rows(kernels):
        taken[part(row)] += row.time_ns
    return {name: time for name, time in taken.items() if time}


def conclusions(run: Coverage, latency: LatencySummary | None = None) -> tuple[str, ...]:
    """What the profile says, in sentences. ``latency``: what was measured of the same recipe, if anything."""
    return (
        *_kernels(run),
        *_without_int8(run),
        *_conversions(run),
        *_instructions(run),
        *_zeros(run, latency),
        *_slowest(run),
    )


def _kernels(run: Coverage) -> Iterator[str]:
    """How many layers ran in what, and their share of the time."""
    kernel_rows = rows(run.kernels)
    names: dict[Part, set[str]] = {}
    for row in kernel_rows:
        if row.layers:
            names.setdefault(part(row), set()).update(row.layers)
    total = len({name for row in kernel_rows for name in row.layers})
    shares = {kind: sum(row.share for row in kernel_rows if part(row) == kind) for kind in Part}
    ran = [
        f"{len(names[kind])} of {total} layers ran {kind.label} ({_percent(share)} of the time)"
        for kind, share in shares.items()
        if kind in names
    ]
    if ran:
        yield f"{'; '.join(ran)}."


def _without_int8(run: Coverage) -> Iterator[str]:
    quantize, precisions = run.request.recipe.quantize, layer_precisions(run.kernels)
    left = [name for name, kinds in precisions.items() if not kinds & {*INT8_PRECISIONS}]
    if not left:
        return
    if quantize.activation_bits == 8:
        taken = sum(row.share for row in rows(run.kernels) if {*row.layers} & {*left})
        none = f"none of the {len(precisions)} layers uses it" if len(left) == len(precisions) else ""
        named = listed([name.removesuffix(".weight") for name in left], NAMED)
        some = f"{len(left)} of {len(precisions)} layers did not use it: {named}"
        reason = f" Why: {'; '.join(run.simulated)}." if run.simulated else ""
        yield f"int8 was asked for, and {none or some}. They take {_percent(taken)} of the time.{reason}"
    elif quantize.integer and len(left) == len(precisions):
        yield (
            f"The weights are rounded and the activations are not: {Part.DENSE.label} ran, since int8 "
            "kernels need 8 bits in both."
        )


def _conversions(run: Coverage) -> Iterator[str]:
    kernel_rows = rows(run.kernels)
    found = [row for row in kernel_rows if row.role == "conversion"]
    share = sum(row.share for row in found)
    taken, before = (parts(kernels).get(Part.CONVERSION, 0.0) for kernels in (run.kernels, run.baseline))
    if not found or share < NEGLIGIBLE_SHARE:
        return
    words = (
        f"Re-quantization and reorders take {_percent(share)} of the time "
        f"({format_ns(taken)} in {count(len(found), 'operation')})"
    )
    saved = _layers_ns(rows(run.baseline)) - _layers_ns(kernel_rows)
    extra = taken - before
    if extra <= 0:
        yield f"{words}, no more than uncompressed."
    elif saved <= 0:
        yield f"{words}, and the layers themselves save nothing."
    elif extra >= saved:
        yield f"{words} and eat the gain: the layers save only {format_ns(saved)}."
    else:
        yield f"{words} and eat {_percent(extra / saved)} of the {format_ns(saved)} that the layers save."


def _instructions(run: Coverage) -> Iterator[str]:
    if not any(kinds & {*INT8_PRECISIONS} for kinds in layer_precisions(run.kernels).values()):
        return
    sets = run.environment.instruction_sets
    if "int8" in missing(run.environment):
        yield "This CPU has no instructions for int8 products (VNNI, AMX): int8 gains little here."
    elif "avx2" in sets and "amx_int8" not in sets:
        has = ", ".join(one for one in sets if "vnni" in one)
        yield f"int8 products run on {has} here; this CPU has no AMX."


def _zeros(run: Coverage, latency: LatencySummary | None) -> Iterator[str]:
    recipe, kinds = run.request.recipe, parts(run.kernels)
    pruned = recipe.prune.active or any(layer.sparsity for layer in recipe.layers)
    if not pruned or run.removed_share < NEGLIGIBLE_SHARE or Part.SPARSE in kinds:
        return
    zeros = f"dense kernels multiply the zeros too ({_percent(run.removed_share)} of the weights)"
    if latency is None or latency.verdict == LatencyVerdict.NOISY:
        yield f"Pruning alone makes nothing faster here: {zeros}."
    elif latency.verdict == LatencyVerdict.FASTER:
        yield f"What is faster is so by its kernels and shapes, not by its zeros: {zeros}."
    else:
        yield f"Pruned, and not faster, {latency.ratio_words} of the time: {zeros}."


def _slowest(run: Coverage) -> Iterator[str]:
    kernel_rows = rows(run.kernels)
    operations = [row for row in kernel_rows if row.role != "between"]
    between = sum(row.share for row in kernel_rows if row.role == "between")
    if operations:
        slowest = max(operations, key=lambda row: row.time_ns)
        name = called(kernel_rows)[kernel_rows.index(slowest)]
        yield f"The slowest operation is {name} ({slowest.kernel}): {_percent(slowest.share)} of the time."
    if operations and between > MUCH_BETWEEN:
        yield (
            f"{_percent(between)} of the time passes between operations: a network this small waits for "
            "its calls, and no kernel can save that."
        )


def _by_layer(kernel_rows: Sequence[Row]) -> dict[str, float]:
    taken: dict[str, float] = {}
    for row in kernel_rows:
        if row.role == "layer":
            taken[row.name] = taken.get(row.name, 0.0) + row.time_ns
    return taken


def _layers_ns(kernel_rows: Sequence[Row]) -> float:
    return sum(_by_layer(kernel_rows).values())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(run: Coverage) -> str:
    """The operations as text, a line each, in columns."""
    kernel_rows = frame(run)
    lines = [("operation", "precision", "kernel", "time", "share", "uncompressed")]
    for row in kernel_rows.to_dict("records"):
        before = row["baseline_ns"]
        lines.append(
            (
                row["name"],
                row["precision"],
                row["kernel"],
                format_ns(row["time_ns"]),
                _percent(row["share"]),
                format_ns(before) if before == before else "",
            )
        )
    return columns(lines)


def as_json(run: Coverage) -> dict[str, Any]:
    """The profile as a JSON object versioned by ``schema``. Times are ns a call.

    - ``model``, ``recipe``, ``engine``, ``threads``, ``batch``, ``created``, ``environment``
    - ``operations``, ``baseline_operations``: a row an operation, in the order in which they ran: ``name``,
      ``role`` (layer, conversion, between, other), ``layers``, ``precision``, ``kernel``, ``skips_zeros``,
      ``time_ns``, ``share``
    - ``parts``, ``baseline_parts``: nanoseconds by what ran, as in :class:`Part`
    - ``removed_share``, ``simulated``, ``conclusions``
    """
    plain: dict[str, Any] = msgspec.to_builtins(
        {
            "schema": run.schema,
            "model": run.request.model,
            "recipe": run.request.recipe.to_dict(),
            "engine": run.request.engine,
            "threads": run.threads,
            "batch": run.request.settings.batch,
            "created": run.created,
            "environment": run.environment,
            "operations": rows(run.kernels),
            "baseline_operations": rows(run.baseline),
            "parts": parts(run.kernels),
            "baseline_parts": parts(run.baseline),
            "removed_share": run.removed_share,
            "simulated": run.simulated,
            "conclusions": conclusions(run),
        }
    )
    return plain
