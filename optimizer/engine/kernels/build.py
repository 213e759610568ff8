"""Compiles the kernels, once for each instruction set of this kind of processor.

Run when the package is installed, before anything it depends on is there: the standard library alone. Also
``python -m optimizer.engine.kernels.build`` after a change of them.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "kernels.cpp"
REASON = FOLDER / "not-built.txt"
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")


@dataclass(frozen=True)
class Target:
    """An instruction set: what the compiler is told, the floats of one vector, and the names that
    :mod:`optimizer.system.environment` has for what it needs of a processor."""

    name: str
    flags: tuple[str, ...]
    width: int
    needs: tuple[str, ...]


TARGETS = {
    "x86_64": (
        Target("AVX-512", ("-mavx512f", "-mavx2", "-mfma"), 16, ("avx512f",)),
        Target("AVX2", ("-mavx2", "-mfma"), 8, ("avx2",)),
    ),
    "aarch64": (Target("NEON", (), 4, ()),),
}
"""The fastest first. Windows and macOS name the same processors otherwise."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def targets() -> tuple[Target, ...]:
    """What can be compiled for this machine; nothing for a kind of processor without kernels."""
    machine = platform.machine().lower()
    return TARGETS.get(MACHINES.get(machine, machine), ())


def library(target: Target) -> Path:
    """Where a target's library lies; a change of the source gives it another name."""
    digest = hashlib.sha256()
    for source in sorted([SOURCE, *FOLDER.glob("*.h")]):
        digest.update(source.read_bytes())
    return FOLDER / f"kernels-{target.name.lower()}-{digest.hexdigest()[:8]}.so"


def compiler() -> str | None:
    """The C++ compiler that ``CXX`` names, or the first that is found."""
    asked = os.environ.get("CXX")
    return next(
        (found for name in (asked, "c++", "g++", "clang++") if name and (found := shutil.which(name))), None
    )


def build() -> str | None:
    """Compile every target. None when that went well, else why it did not."""
    for old in FOLDER.glob("kernels-*.so"):
        old.unlink()
    problem = _compile()
    REASON.unlink(missing_ok=True)
    if problem:
        REASON.write_text(problem)
    return problem


def _compile() -> str | None:
    if not targets():
        return f"there are no kernels for processors of the kind {platform.machine()}"
    return next((problem for target in targets() if (problem := compiled(target, library(target)))), None)


def compiled(target: Target, to: Path) -> str | None:
    """Compile one target into a library. None when that went well, else why it did not."""
    chosen = compiler()
    if chosen is None:
        return "no C++ compiler was found at installation (install g++ or clang++, then reinstall)"
    command = [chosen, *FLAGS, *target.flags, f"-DWIDTH={target.width}", str(SOURCE), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}" if done.returncode else None


if __name__ == "__main__":
    sys.exit(build())
