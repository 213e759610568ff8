"""What the checks make of a system's files, and of their absence."""

from pathlib import Path

import pytest
from test_environment import write

from optimizer.cli.main import main
from optimizer.system import doctor
from optimizer.system import environment as machine
from optimizer.system.doctor import Check, State, examine, noisy

CPUS = {0, 1, 2, 3}
STAT = "cpu  0\n" + "".join(f"cpu{cpu} 900 0 0 9 9 0 0 {{stolen}} 0 0\n" for cpu in CPUS)
QUIET = {
    "proc/loadavg": "0.05 0.10 0.20 1/100 7",
    "proc/stat": STAT.format(stolen=1),
    **{f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor": "performance" for cpu in CPUS},
    **{f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": str(cpu) for cpu in CPUS},
    "sys/devices/system/cpu/intel_pstate/no_turbo": "1",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
}


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cpus", lambda: CPUS)
    monkeypatch.setattr(machine, "threads_available", lambda: 4)
    for variable in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(variable, raising=False)


def states(root: Path) -> dict[str, State]:
    return {check.name: check.state for check in examine(root)}


def test_a_quiet_machine_has_nothing_to_mend(tmp_path: Path) -> None:
    checks = examine(write(tmp_path, QUIET))
    assert {check.state for check in checks if check.name != "memory"} == {State.QUIET}
    assert not any(check.costs or check.command for check in checks if check.state is State.QUIET)
    assert noisy(checks) == tuple(check for check in checks if check.state is State.NOISY)


def test_a_machine_that_tells_nothing_is_unknown_and_no_error(tmp_path: Path) -> None:
    found = states(tmp_path)
    for name in ("other programs", "stolen time", "frequency governor", "turbo", "huge pages"):
        assert found[name] is State.UNKNOWN


@pytest.mark.parametrize(
    ("name", "files", "words", "command"),
    [
        ("other programs", {"proc/loadavg": "1.52 1 1"}, "a load of 1.52", "top"),
        ("stolen time", {"proc/stat": STAT.format(stolen=100)}, "10 % of the processor's time", "dedicated"),
        (
            "frequency governor",
            {"sys/devices/system/cpu/cpu2/cpufreq/scaling_governor": "powersave"},
            "performance, powersave",
            "cpupower frequency-set",
        ),
        ("turbo", {"sys/devices/system/cpu/intel_pstate/no_turbo": "0"}, "on", "echo 1 | sudo tee /sys"),
        (
            "hyper-threading",
            {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": "0-3" for cpu in CPUS},
            "4 threads on 1 physical core",
            "--threads 1",
        ),
        ("huge pages", {"sys/kernel/mm/transparent_hugepage/enabled": "always [never]"}, "never", "madvise"),
        (
            "container's quota",
            {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": "150000 100000"},
            "1.5 of 4 CPUs",
            "--cpuset-cpus",
        ),
    ],
)
def test_what_is_noisy_is_named_with_its_cost_and_its_command(
    tmp_path: Path, name: str, files: dict[str, str], words: str, command: str
) -> None:
    found = {check.name: check for check in examine(write(tmp_path, QUIET | files))}
    assert found[name].state is State.NOISY
    assert words in found[name].found
    assert found[name].costs
    assert command in found[name].command
    others = {one for one, check in found.items() if check.state is State.NOISY}
    assert others - {"memory"} == {name}


def test_turbo_of_other_drivers_is_read_the_other_way_round(tmp_path: Path) -> None:
    files = {name: text for name, text in QUIET.items() if "no_turbo" not in name}
    root = write(tmp_path, files | {"sys/devices/system/cpu/cpufreq/boost": "1"})
    assert states(root)["turbo"] is State.NOISY
    (root / "sys/devices/system/cpu/cpufreq/boost").write_text("0")
    assert states(root)["turbo"] is State.QUIET


@pytest.mark.parametrize(
    ("variable", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("KMP_BLOCKTIME", "infinite")]
)
def test_threads_that_spin_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    found = {check.name: check for check in examine(write(tmp_path, QUIET))}["spinning threads"]
    assert (found.state, found.command) == (State.NOISY, f"unset {variable}")


def test_few_cores_are_shared_with_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "threads_available", lambda: 2)
    assert states(write(tmp_path, QUIET))["cores"] is State.NOISY


def test_little_memory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_SHARE", 1.1)
    assert states(write(tmp_path, QUIET))["memory"] is State.NOISY


def test_the_command_prints_every_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (
        Check("turbo", State.NOISY, "on", "the clock moves", "turn it off"),
        Check("cores", State.QUIET, "8"),
    )
    monkeypatch.setattr(doctor, "examine", lambda: made)
    assert main(["doctor"]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said == ["turbo noisy on", "costs: the clock moves", "mend: turn it off", "cores quiet 8"]
    assert main(["doctor", "--json"]) == 0
    assert '"command": "turn it off"' in capsys.readouterr().out
