"""What makes timings on this machine noisy, what it costs where that is known, and what would mend it.

Only reads: files below ``/proc`` and ``/sys``, and this process's environment. Nothing is changed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from optimizer.formats import count, format_share
from optimizer.system import environment as machine

MAX_STOLEN_SHARE = 0.02
MAX_LOAD = 0.25
"""Of a core, before a measurement begins."""
MIN_FREE_SHARE = 0.1
FEW_CORES = 2


class State(StrEnum):
    """What a check came to."""

    QUIET = "quiet"
    NOISY = "noisy"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its ``name``, what was ``found``, what that ``costs`` and the ``command`` that would mend it
    (both empty where there is nothing to mend)."""

    name: str
    state: State
    found: str
    costs: str = ""
    command: str = ""


def examine(root: Path = Path("/")) -> tuple[Check, ...]:
    """All checks, in the order in which they matter; ``root`` is where the system's files begin."""
    return tuple(check(root) for check in CHECKS)


def noisy(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Those that found something."""
    return tuple(check for check in checks if check.state is State.NOISY)


def _check(name: str, is_quiet: bool, found: str, costs: str, command: str) -> Check:
    if is_quiet:
        return Check(name, State.QUIET, found)
    return Check(name, State.NOISY, found, costs, command)


def _load(root: Path) -> Check:
    fields = machine.read(root / "proc/loadavg").split()
    if not fields:
        return Check("other programs", State.UNKNOWN, "the load can't be read on this system")
    load = float(fields[0])
    found = f"a load of {load:.2f} over the last minute, of {count(machine.threads_available(), 'core')}"
    return _check(
        "other programs",
        load <= MAX_LOAD,
        found,
        "a program on the same core doubles a time while it runs; the interval and the verdict say so",
        "top -o %CPU    # end what is not needed, or measure on one thread",
    )


def _stolen(root: Path) -> Check:
    busy, stolen = machine.cpu_ticks(machine.usable_cpus(), root)
    if not busy + stolen:
        return Check("stolen time", State.UNKNOWN, "what other guests take can't be read on this system")
    share = stolen / (busy + stolen)
    found = f"{100 * share:.2g} % of the processor's time since the start went to other guests of its host"
    return _check(
        "stolen time",
        share <= MAX_STOLEN_SHARE,
        found,
        "as much of every time; above 2 % a measurement is called noisy",
        "# rent dedicated cores, or measure at another hour",
    )


def _cores(root: Path) -> Check:
    cores = machine.threads_available()
    found = f"{count(cores, 'core')} for this process"
    if cores > FEW_CORES:
        return Check("cores", State.QUIET, found)
    return Check(
        "cores",
        State.NOISY,
        f"{found}: the browser and this server run on them too",
        "on every core, small networks are often called noisy",
        "paretoscope measure MODEL --threads 1",
    )


def _quota(root: Path) -> Check:
    quota, cpus = machine.quota_cpus(root), len(machine.usable_cpus())
    if quota >= cpus:
        return Check("container's quota", State.QUIET, "none below the number of cores")
    return Check(
        "container's quota",
        State.NOISY,
        f"{quota:g} of {cpus} CPUs",
        "when a period's share is used up, all threads stand still until the next one begins",
        "docker run --cpuset-cpus 0-1 ...    # whole cores in place of --cpus",
    )


def _siblings(root: Path) -> Check:
    cpus = machine.usable_cpus()
    cores = machine.physical_cores(cpus, root)
    found = f"{count(len(cpus), 'thread')} on {count(cores, 'physical core')}"
    return _check(
        "hyper-threading",
        cores >= len(cpus),
        found,
        "two threads of a core share its arithmetic units: the second brings little, and disturbs",
        f"paretoscope measure MODEL --threads {cores}",
    )


def _governor(root: Path) -> Check:
    governor = machine.governor(machine.usable_cpus(), root)
    if governor is None:
        return Check(
            "frequency governor", State.UNKNOWN, "can't be read on this system (rarely in virtual machines)"
        )
    return _check(
        "frequency governor",
        governor == "performance",
        governor,
        "the clock rises only after some work: the first calls are slower",
        "sudo cpupower frequency-set --governor performance",
    )


TURBO = {
    "sys/devices/system/cpu/intel_pstate/no_turbo": ("0", "1"),
    "sys/devices/system/cpu/cpufreq/boost": ("1", "0"),
}
"""Where systems say whether turbo is on: what stands there then, and what turns it off."""


def _turbo(root: Path) -> Check:
    for file, (on, off) in TURBO.items():
        if said := machine.read(root / file):
            if said != on:
                return Check("turbo", State.QUIET, "off")
            return Check(
                "turbo",
                State.NOISY,
                "on",
                "the clock depends on the temperature, and on how many cores work",
                f"echo {off} | sudo tee /{file}",
            )
    return Check("turbo", State.UNKNOWN, "can't be read on this system (rarely in virtual machines)")


def _huge_pages(root: Path) -> Check:
    said = machine.read(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = said.partition("[")[2].partition("]")[0]
    if not chosen:
        return Check("huge pages", State.UNKNOWN, "can't be read on this system")
    return _check(
        "huge pages",
        chosen != "never",
        chosen,
        "weights larger than the caches are looked up page by page: where a build lies matters more",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def _spinning(root: Path) -> Check:
    policy = os.environ.get("OMP_WAIT_POLICY", "").lower()
    blocktime = os.environ.get("KMP_BLOCKTIME", "")
    if policy == "active" or blocktime == "infinite":
        name = "OMP_WAIT_POLICY" if policy == "active" else "KMP_BLOCKTIME"
        return Check(
            "spinning threads",
            State.NOISY,
            f"{name}={policy or blocktime}",
            "threads of one network that wait take the cores from the one that is timed",
            f"unset {name}",
        )
    return Check("spinning threads", State.QUIET, "threads that wait give their core back")


def _memory(root: Path) -> Check:
    memory = psutil.virtual_memory()
    share = memory.available / memory.total
    found = f"{format_share(share)} of {memory.total / 2**30:.1f} GiB free"
    return _check(
        "memory",
        share >= MIN_FREE_SHARE,
        found,
        "what is swapped out has to be read from the disk",
        "ps aux --sort -rss | head    # end what is not needed",
    )


CHECKS: tuple[Callable[[Path], Check], ...] = (
    _load,
    _stolen,
    _cores,
    _quota,
    _siblings,
    _governor,
    _turbo,
    _huge_pages,
    _spinning,
    _memory,
)
