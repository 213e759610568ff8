"""Does the gate stop a slower release, and let an equal one through?

    python benchmarks/gate.py [--repeats 20] [--max-slowdown 2.5] [--engine openvino] [--json]

`paretoscope gate B.onnx --against A.onnx`, one thread, in full, again and again: with the same layers in both
files, and with 5 % more in B. The limit lies between the two. Of 100 each, at least 95 should be told rightly
and none wrongly; what can't be told within the budget is undecided. A gate takes about half a minute: run it
on a quiet machine. Ends with 1 where that share is not reached, or one is told wrongly.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from self_test import LAYERS, SHAPE, VARIANTS, Stack
from torch import nn

from optimizer.engine.onnx_export import export
from optimizer.system.environment import describe, environment

NAMES = {0: "pass", 1: "fail", 3: "undecided"}
"""By the command's exit code."""
SAME, MORE = "same", "5 % more"
RIGHT, WRONG = {SAME: "pass", MORE: "fail"}, {SAME: "fail", MORE: "pass"}
RIGHT_SHARE = 0.95


def exported(folder: Path, layers: int, name: str) -> Path:
    path = folder / f"{name}.onnx"
    pictures = nn.Sequential(nn.Conv2d(3, SHAPE[0], 1), Stack(layers)).eval()
    path.write_bytes(export(pictures, (3, *SHAPE[1:])).model.SerializeToString())
    return path


def gate(options: argparse.Namespace, before: Path, after: Path, seed: int) -> tuple[str, float, float]:
    """The outcome, the time added in percent, and the seconds that the gate took."""
    command = [
        sys.executable, "-m", "optimizer.cli", "gate", str(after), "--against", str(before),
        "--max-slowdown", f"{options.max_slowdown:g}", "--engine", options.engine, "--threads", "1",
        "--seed", str(seed), "--budget", f"{options.budget:g}", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in NAMES:
        sys.exit(done.stderr)
    found = json.loads(done.stdout)
    (time,) = (check for check in found["checks"] if check["unit"] == "%")
    return NAMES[done.returncode], time["value"], found["seconds"]


def not_reached(outcomes: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each kind of file that was not told as it should be."""
    found = []
    for name, told in outcomes.items():
        right, wrong = told.count(RIGHT[name]), told.count(WRONG[name])
        if wrong or right < RIGHT_SHARE * len(told):
            found.append(
                f"not reached, {name}: of {len(told)}, {right} were told rightly and {wrong} wrongly; "
                f"{RIGHT_SHARE:.0%} and none are claimed"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="gates of each kind (20)")
    parser.add_argument("--max-slowdown", type=float, default=2.5, help="percent allowed (2.5)")
    parser.add_argument("--budget", type=float, default=300, help="seconds a gate may take (300)")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats: 1 or more")
    kinds = {SAME: LAYERS, MORE: VARIANTS[MORE]}
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PARETOSCOPE_HOME"] = str(Path(folder, "home"))  # what an earlier run kept is timed again
        before = exported(Path(folder), LAYERS, "before")
        after = {name: exported(Path(folder), layers, name.split()[0]) for name, layers in kinds.items()}
        for number in range(options.repeats):
            for name in kinds:
                found[name].append(gate(options, before, after[name], seed=number))
                outcome, added, seconds = found[name][-1]
                words = (
                    f"{number + 1} of {options.repeats}, {name}: {outcome}, {added:+.2f} %, {seconds:.0f} s"
                )
                print(words, file=sys.stderr, flush=True)
    told = {
        name: {
            "outcomes": dict(Counter(outcome for outcome, _, _ in runs)),
            "time added, %": [round(added, 2) for _, added, _ in runs],
            "seconds": [round(seconds) for _, _, seconds in runs],
        }
        for name, runs in found.items()
    }
    print(json.dumps({"machine": describe(environment()), **told}, indent=None if options.json else 2))
    outcomes = {name: [outcome for outcome, _, _ in runs] for name, runs in found.items()}
    sys.exit("\n".join(not_reached(outcomes)) or None)


if __name__ == "__main__":
    main()
