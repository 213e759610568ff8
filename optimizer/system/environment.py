"""This machine, as a result records it: the CPU, what this process may use of it, and library versions.

Reads files and package metadata; starts no subprocess on Linux and never imports torch.
"""

import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from optimizer import __version__
from optimizer.errors import InputError
from optimizer.formats import count
from optimizer.records import Environment
from optimizer.system.waiting import WAITING

LIBRARIES = ("torch", "torchvision", "openvino", "nncf", "onnxruntime", "numpy")

INSTRUCTION_SETS = {
    # /proc/cpuinfo on x86
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "amx_fp16": "amx_fp16",
    # /proc/cpuinfo on Arm
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    # sysctl hw.optional on macOS
    "avx2_0": "avx2",
    "FEAT_DotProd": "dotprod",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_FP16": "fp16",
}
"""What systems call the instruction sets that decide how fast a network runs, and what we call them."""

ACCELERATES = {
    "int8": ("avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
}
"""Instruction sets of which one is needed for a precision to have kernels of its own."""

COMPUTES = {"f32": (), "bf16": ACCELERATES["bf16"], "f16": ("avx512_fp16", "amx_fp16", "fp16")}
"""For each precision that a recipe may ask for, the instruction sets of which one is needed."""

VARIABLES = (
    # oneDNN, in OpenVINO and torch
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_CPU_ISA_HINTS",
    "DNNL_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    # torch and NumPy, and the libraries that they multiply with
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "OPENBLAS_CORETYPE",
    # where threads run, and how they wait
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    # another allocator or OpenMP
    "LD_PRELOAD",
)
"""What libraries read when they choose kernels, place threads or take memory: with another value a network
may be faster or slower, or compute in another precision."""

LANES = {"avx512f": 16, "avx2": 8}
"""Numbers in float32 that a vector holds, by instruction set; 4 with any other."""


@cache
def environment() -> Environment:
    """This machine and these libraries, read once a process."""
    cpu, instruction_sets = _cpu()
    return Environment(
        cpu=cpu,
        instruction_sets=instruction_sets,
        cores=min(physical_cores(usable_cpus()), threads_available()),
        governor=governor(usable_cpus()),
        memory_bytes=memory_available(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=_versions(),
        threads=threads_available() if shares_cores() else None,
        variables=_variables(),
    )


def _variables() -> dict[str, str]:
    """Those of VARIABLES that are set, but for what we set ourselves."""
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    return {name: value for name, value in found.items() if WAITING.get(name) != value}


def timestamp() -> str:
    """When something is recorded: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def threads_available() -> int:
    """Threads that can run at once in this process: its CPUs, within the whole CPUs of a container's quota.

    A quota of 1.5 CPUs counts as one: a second thread would be paused for half of every period.
    """
    return max(1, int(min(len(usable_cpus()), quota_cpus())))


def resolve_threads(asked: int) -> int:
    """The thread count that is asked for, or every core for 0. Raises InputError."""
    available = threads_available()
    if asked > available:
        raise InputError(
            f"{asked} threads are more than this machine's {count(available, 'core')}: "
            f"use 1{f' to {available}' if available > 1 else ''}"
        )
    return asked or available


def memory_available() -> int:
    """Bytes of memory that this process may use: the machine's, within a container's limit."""
    return int(min(psutil.virtual_memory().total, _limit_bytes()))


def describe(machine: Environment) -> str:
    """One line for a caption or a report."""
    return " · ".join(
        [
            machine.cpu,
            ", ".join(machine.instruction_sets) or "instruction sets unknown",
            describe_cores(machine),
            *([f"governor {machine.governor}"] if machine.governor else []),
            describe_memory(machine),
            machine.system,
            f"Python {machine.python}",
            *(f"{name}={value}" for name, value in machine.variables.items()),
            ", ".join(f"{name} {version}" for name, version in sorted(machine.libraries.items())),
        ]
    )


def describe_memory(machine: Environment) -> str:
    """In the binary units in which memory is sold."""
    return f"{machine.memory_bytes / 2**30:.1f} GiB"


def describe_cores(machine: Environment) -> str:
    """How many, and how many threads run on them at once where that is another number."""
    cores = count(machine.cores, "core")
    return f"{cores}, {count(machine.threads, 'thread')}" if machine.threads else cores


def missing(machine: Environment) -> tuple[str, ...]:
    """Precisions that this CPU has no instructions for, so that they may run no faster: "int8", "bf16"."""
    known = set(machine.instruction_sets)
    return tuple(precision for precision, sets in ACCELERATES.items() if known.isdisjoint(sets))


def precisions(machine: Environment) -> tuple[str, ...]:
    """What the CPU can compute in: "f32", and "bf16" and "f16" where it has instructions for them."""
    known = set(machine.instruction_sets)
    return tuple(name for name, sets in COMPUTES.items() if not sets or not known.isdisjoint(sets))


def lanes(machine: Environment) -> int:
    """Numbers in float32 that the vectors of all cores hold: about how fast machines compute beside each
    other, known without a measurement."""
    return machine.cores * max((LANES.get(name, 4) for name in machine.instruction_sets), default=4)


def check_precision(precision: str, machine: Environment) -> None:
    """Raises InputError where the CPU has no instructions for a precision: emulated, it tells nothing."""
    possible = precisions(machine)
    if precision not in possible:
        raise InputError(
            f"precision {precision} needs {' or '.join(COMPUTES[precision])}, which this CPU does not "
            f"support ({machine.cpu}): use {' or '.join(possible)}"
        )


@contextmanager
def stolen_share() -> Iterator[Callable[[], float]]:
    """Measure CPU time that others had while this process wanted it; the value yields the share, 0 to 1, when
    called.

    Others are the host's other guests, and other processes for which this one's threads waited: the larger
    share of the two, from entering the block to the call, or to the block's end once that is past. 0.0 where
    the system does not tell.

    >>> with stolen_share() as stolen:
    ...     total = sum(range(1000))
    >>> 0 <= stolen() <= 1
    True
    """
    cpus = usable_cpus()
    before, threads_before = cpu_ticks(cpus), _thread_times()
    after: tuple[float, float] | None = None

    def shares() -> tuple[float, float]:
        guests = tuple(max(0, b - a) for a, b in zip(before, cpu_ticks(cpus), strict=True))
        ran = waited = 0
        for thread, (running, waiting) in _thread_times().items():
            ran_before, waited_before = threads_before.get(thread, (0, 0))
            ran, waited = ran + running - ran_before, waited + waiting - waited_before
        return _share(*guests), _share(ran, waited)

    try:
        yield lambda: max(after or shares())
    finally:
        after = shares()


def _share(had: int, lost: int) -> float:
    return lost / (had + lost) if lost > 0 else 0.0


def _thread_times(root: Path = Path("/")) -> dict[str, tuple[int, int]]:
    """Nanoseconds that each thread of this process ran, and that it waited for a CPU, since it began."""
    times = {}
    for thread in (root / "proc/self/task").glob("*/schedstat"):
        fields = read(thread).split()
        if len(fields) == 3:
            times[thread.parent.name] = int(fields[0]), int(fields[1])
    return times


def cpu_ticks(cpus: Set[int], root: Path = Path("/")) -> tuple[int, int]:
    """Clock ticks that ``cpus`` were busy, and that were stolen from them, since the machine started."""
    busy = stolen = 0
    for line in read(root / "proc/stat").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cpus:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return busy, stolen


def usable_cpus() -> Set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quota_cpus(root: Path = Path("/")) -> float:
    """CPUs' worth of time that the control groups (v1 or v2) above this process allow; infinity for any."""
    return min(map(_quota, _control_groups("cpu", root)), default=math.inf)


def _limit_bytes(root: Path = Path("/")) -> float:
    """Bytes of memory that the control groups (v1 or v2) above this process allow; infinity for any.

    A group without a limit says "max" in version 2, and the largest multiple of a page in version 1.
    """
    return min(map(_limit, _control_groups("memory", root)), default=math.inf)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, where they may exist."""
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            mounts = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
        elif controller in controllers.split(","):
            mounts = (f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{controllers}")
        else:
            continue
        for top in (root / mount for mount in mounts):
            # Inside a container the group's path may be the host's: whatever part of it exists counts.
            folder = top / group.lstrip("/")
            yield from (path for path in (folder, *folder.parents) if path.is_relative_to(top))


def _limit(folder: Path) -> float:
    limit = read(folder / "memory.max") or read(folder / "memory.limit_in_bytes")
    return int(limit) if limit.isdecimal() else math.inf


def _quota(folder: Path) -> float:
    quota_and_period = read(folder / "cpu.max").split() or [
        read(folder / "cpu.cfs_quota_us"),
        read(folder / "cpu.cfs_period_us"),
    ]
    try:
        quota, period = map(float, quota_and_period)
    except ValueError:  # "max", or no such file
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def physical_cores(cpus: Set[int], root: Path = Path("/")) -> int:
    folder = root / "sys/devices/system/cpu"
    siblings = {cpu: read(folder / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    if all(siblings.values()):
        return len(set(siblings.values()))
    return min(len(cpus), psutil.cpu_count(logical=False) or len(cpus))


def shares_cores(root: Path = Path("/")) -> bool:
    """Whether any core of this machine runs several threads at once, so that those available are not told by
    its cores."""
    folder = root / "sys/devices/system/cpu"
    siblings = {read(file) for file in folder.glob("cpu[0-9]*/topology/thread_siblings_list")} - {""}
    if siblings:
        return not all(map(str.isdecimal, siblings))
    return (psutil.cpu_count(logical=False) or math.inf) < (psutil.cpu_count() or 1)


def governor(cpus: Set[int], root: Path = Path("/")) -> str | None:
    folder = root / "sys/devices/system/cpu"
    names = {read(folder / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus} - {""}
    return ", ".join(sorted(names)) or None


def _cpu() -> tuple[str, tuple[str, ...]]:
    if text := read(Path("/proc/cpuinfo")):
        return _cpu_from_cpuinfo(text)
    if platform.system() == "Darwin":
        command = ["sysctl", "machdep.cpu.brand_string", "hw.optional"]
        return _cpu_from_sysctl(subprocess.run(command, capture_output=True, text=True).stdout)
    return platform.processor() or platform.machine(), ()


def _cpu_from_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    fields: dict[str, dict[str, None]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), {})[" ".join(value.split())] = None
    name = " + ".join(fields.get("model name", ())) or platform.machine()
    # Clouds give one name to several generations of a CPU: these numbers tell them apart.
    labels = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}
    numbers = [f"{label} {'/'.join(fields[key])}" for key, label in labels.items() if key in fields]
    if numbers:
        name += f" ({', '.join(numbers)})"
    flags = [set(value.split()) for value in fields.get("flags", fields.get("Features", {}))]
    return name, _known_sets(set.intersection(*flags) if flags else set())


def _cpu_from_sysctl(text: str) -> tuple[str, tuple[str, ...]]:
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    on = {key.rpartition(".")[2] for key, value in values.items() if value == "1"}
    return values.get("machdep.cpu.brand_string", platform.machine()), _known_sets(on)


def _known_sets(flags: Set[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ours for theirs, ours in INSTRUCTION_SETS.items() if theirs in flags))


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**versions, "paretoscope": __version__}


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
