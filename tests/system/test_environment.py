"""This machine's facts, and other machines' as their files would tell them."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest

from optimizer import __version__
from optimizer.records import Environment, decode, encode
from optimizer.system import environment as module
from optimizer.system.environment import describe, environment, missing, stolen_share, threads_available

GENOA = """
processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: AMD  EPYC
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni

processor\t: 1
cpu family\t: 25
model\t\t: 17
model name\t: AMD  EPYC
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16
"""

ARM = """
processor\t: 0
Features\t: fp asimd aes asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
"""

SYSCTL = """
machdep.cpu.brand_string: Apple M1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.neon: 1
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_this_machine() -> None:
    here = environment()
    assert here.cpu
    assert 1 <= here.cores <= threads_available() <= (os.cpu_count() or 1)
    assert 2**20 < here.memory_bytes <= psutil.virtual_memory().total
    assert here.python == ".".join(map(str, sys.version_info[:3]))
    assert here.libraries["numpy"] == np.__version__
    assert here.libraries["torch"] == metadata.version("torch")
    assert here.libraries["paretoscope"] == __version__


def test_it_is_read_once_and_survives_the_store() -> None:
    assert environment() is environment()
    assert decode(encode(environment()), Environment) == environment()


def test_torch_is_never_imported() -> None:
    program = (
        "import sys; from optimizer.system.environment import environment; environment(); "
        "sys.exit('torch' in sys.modules or 'openvino' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_bound_to_one_cpu_has_one_thread_and_one_core() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from optimizer.system.environment import environment, threads_available; "
        "print(threads_available(), environment().cores)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "1"]


def test_cpu_names_tell_generations_apart_and_only_what_every_cpu_has_counts() -> None:
    assert module._cpu_from_cpuinfo(GENOA) == (
        "AMD EPYC (family 25, model 17)",
        ("avx2", "avx512f", "avx512_bf16"),
    )


def test_arm_and_macos() -> None:
    name, sets = module._cpu_from_cpuinfo(ARM)
    assert name.endswith("(implementer 0x41, part 0xd40)")
    assert sets == ("neon", "dotprod", "i8mm", "bf16", "sve")
    assert module._cpu_from_sysctl(SYSCTL) == ("Apple M1", ("neon", "dotprod"))


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, np.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, np.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {  # the parent's limit is the tighter one
                "proc/self/cgroup": "0::/a.slice/b\n",
                "sys/fs/cgroup/a.slice/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a.slice/b/cpu.max": "300000 100000\n",
            },
            2,
        ),
        (
            {  # version 1 in a container: the path is the host's, the limit lies at the mount
                "proc/self/cgroup": "3:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            np.inf,
        ),
    ],
)
def test_container_quotas(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    assert module.quota_cpus(write(tmp_path, files)) == cpus


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, np.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, np.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 2**30),
        (
            {  # the parent's limit is the tighter one
                "proc/self/cgroup": "0::/a.slice/b\n",
                "sys/fs/cgroup/a.slice/memory.max": "1000\n",
                "sys/fs/cgroup/a.slice/b/memory.max": "max\n",
            },
            1000,
        ),
        (
            {  # version 1, where no limit is a large number
                "proc/self/cgroup": "4:memory:/docker/1\n2:cpu:/docker/1\n0::/\n",
                "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "2000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2000,
        ),
    ],
)
def test_container_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], limit: float
) -> None:
    assert module._limit_bytes(write(tmp_path, files)) == limit
    monkeypatch.setattr(module, "_limit_bytes", lambda: limit)
    assert module.memory_available() == min(limit, psutil.virtual_memory().total)


def test_hyperthreads_are_one_core(tmp_path: Path) -> None:
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    files = {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": text for n, text in siblings.items()
    }
    root = write(tmp_path, files)
    assert module.physical_cores({0, 1, 2, 3}, root) == 2
    assert module.physical_cores({0, 2}, root) == 1
    assert module.shares_cores(root)


def test_where_a_core_runs_one_thread_none_is_counted(tmp_path: Path) -> None:
    files = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": str(n) for n in (0, 1)}
    assert not module.shares_cores(write(tmp_path, files))


def test_machines_that_run_other_numbers_of_threads_on_as_many_cores_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "usable_cpus", lambda: set(range(8)))
    monkeypatch.setattr(module, "physical_cores", lambda cpus: 4)

    def limited(quota: float, shares: bool = True) -> Environment:
        monkeypatch.setattr(module, "quota_cpus", lambda: quota)
        monkeypatch.setattr(module, "shares_cores", lambda: shares)
        return environment.__wrapped__()

    eight, six, four, plain = limited(8), limited(6), limited(4), limited(4, shares=False)
    assert [one.cores for one in (eight, six, four, plain)] == [4] * 4
    assert [one.threads for one in (eight, six, four, plain)] == [8, 6, 4, None]
    assert len({one.key for one in (eight, six, four, plain)}) == 4
    assert eight.key == limited(8).key
    assert "4 cores, 6 threads" in describe(six)


def test_a_process_whose_variables_choose_other_kernels_is_another_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in module.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    plain = environment.__wrapped__()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    capped = environment.__wrapped__()
    assert (plain.variables, capped.variables) == ({}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"})
    assert capped.key != plain.key == replace(capped, variables={}).key
    assert "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI" in describe(capped)


def test_the_governor_is_unknown_or_read_from_the_usable_cpus(tmp_path: Path) -> None:
    assert module.governor({0, 1}, tmp_path) is None
    folder = "sys/devices/system/cpu"
    names = {0: "performance", 1: "performance", 2: "powersave"}
    root = write(tmp_path, {f"{folder}/cpu{n}/cpufreq/scaling_governor": f"{v}\n" for n, v in names.items()})
    assert module.governor({0, 1}, root) == "performance"
    assert module.governor({0, 1, 2}, root) == "performance, powersave"


def test_stolen_ticks_are_those_of_the_usable_cpus(tmp_path: Path) -> None:
    stat = "cpu 9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 4 100 100 8 16 5 0 0\ncpu1 7 0 0 0 0 0 0 9 0 0\nintr 5 4\n"
    root = write(tmp_path, {"proc/stat": stat})
    assert module.cpu_ticks({0}, root) == (31, 5)
    assert module.cpu_ticks({0, 1}, root) == (38, 14)
    assert module.cpu_ticks({0}, tmp_path / "nothing") == (0, 0)


def test_the_stolen_share_runs_from_entry_to_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(100, 10), (160, 50), (190, 20)])
    monkeypatch.setattr(module, "cpu_ticks", lambda cpus: next(readings))
    monkeypatch.setattr(module, "_thread_times", dict)
    with stolen_share() as stolen:
        assert stolen() == 0.4
    assert stolen() == stolen() == 0.1


def test_waiting_for_a_cpu_is_time_that_others_had(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([{"1": (100, 10)}, {"1": (150, 20), "2": (20, 20)}])
    monkeypatch.setattr(module, "cpu_ticks", lambda cpus: (0, 0))
    monkeypatch.setattr(module, "_thread_times", lambda: next(readings))
    with stolen_share() as stolen:
        pass
    assert stolen() == 30 / 100  # 50 and 20 run, 10 and 20 waited


def test_what_the_scheduler_tells_of_each_thread(tmp_path: Path) -> None:
    tasks = {"proc/self/task/7/schedstat": "300 40 5\n", "proc/self/task/8/schedstat": ""}
    assert module._thread_times(write(tmp_path, tasks)) == {"7": (300, 40)}
    assert module._thread_times(tmp_path / "nothing") == {}


def test_the_stolen_share_of_this_machine_is_a_share() -> None:
    with stolen_share() as stolen:
        sum(range(100_000))
    assert 0 <= stolen() <= 1


def test_missing_precisions() -> None:
    here = environment()
    assert missing(replace(here, instruction_sets=("avx2",))) == ("int8", "bf16")
    assert missing(replace(here, instruction_sets=("avx2", "avx_vnni"))) == ("bf16",)
    assert missing(replace(here, instruction_sets=("neon", "dotprod", "bf16"))) == ()


def test_described_in_one_line() -> None:
    machine = Environment(
        "Some CPU", ("avx2",), 4, "performance", 2**33, "Linux 6 x86_64", "3.12", {"torch": "2"}
    )
    assert describe(machine) == (
        "Some CPU · avx2 · 4 cores · governor performance · 8.0 GiB · Linux 6 x86_64 · Python 3.12 · torch 2"
    )
    bare = describe(replace(machine, instruction_sets=(), cores=1, governor=None))
    assert "instruction sets unknown · 1 core · 8.0 GiB" in bare
