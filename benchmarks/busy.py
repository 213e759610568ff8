"""How much longer compressing takes beside another busy program, by how threads of torch wait for each other.

    python benchmarks/busy.py [--positions 9] [--json]

Positions of the sliders, data-aware, of the bundled residual network, in fresh processes: alone and beside as
many busy processes as there are cores less one, with libgomp's own waiting and with that of our processes
(``optimizer/system/waiting.py``); and a call of torch eager, which must take as long with both. In turns.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from optimizer.system.environment import threads_available
from optimizer.system.waiting import WAITING

MODEL, CALLS, ROUNDS = "fashion-resnet", 300, 3
BUSY = [sys.executable, "-c", "while True: pass"]


def once(positions: int) -> dict[str, float]:
    """Milliseconds of a position's weights and of a call of torch eager, in this process."""
    import torch

    from optimizer.measurement.compressed import compressed_model
    from optimizer.measurement.workspace import open_workspace
    from optimizer.recipe import NORMAL
    from optimizer.records import Request

    workspace = open_workspace(MODEL, Request(MODEL).data)
    taken = []
    for number in range(positions + 1):
        prune = replace(NORMAL.prune, sparsity=0.2 + 0.5 * number / positions)
        recipe = replace(NORMAL, prune=prune, quantize=NORMAL.quantize.at(5)).canonical()
        begun = time.perf_counter()
        compressed_model(workspace, recipe)
        taken.append(time.perf_counter() - begun)
    module, images = workspace.model.module, torch.zeros(1, *workspace.model.input_shape)
    calls = []
    with torch.inference_mode():
        for _ in range(CALLS):
            begun = time.perf_counter()
            module(images)
            calls.append(time.perf_counter() - begun)
    # The first position reads libraries and statistics.
    return {"compress_ms": 1e3 * float(np.median(taken[1:])), "eager_ms": 1e3 * float(np.median(calls[50:]))}


def measured(positions: int, ours: bool, busy: int) -> dict[str, float]:
    """The same in a fresh process, beside so many busy ones."""
    variables = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, __file__, "--here", "--positions", str(positions)]
    with ExitStack() as others:
        for _ in range(busy):
            other = subprocess.Popen(BUSY)
            others.callback(other.wait)
            others.callback(other.kill)
        done = subprocess.run(
            command, env=variables | (WAITING if ours else {}), capture_output=True, text=True, check=True
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--positions", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(once(options.positions)))
        return
    others = max(1, threads_available() - 1)
    found = {}
    for busy, place in ((0, "alone"), (others, f"beside {others} busy")):
        rounds = [[measured(options.positions, ours, busy) for ours in (False, True)] for _ in range(ROUNDS)]
        for what in ("compress_ms", "eager_ms"):
            default, ours = (float(np.median([one[side][what] for one in rounds])) for side in (0, 1))
            ratio = float(np.median([one[1][what] / one[0][what] for one in rounds]))
            found[f"{what} {place}"] = {"libgomp's": default, "ours": ours, "ratio": ratio}
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
