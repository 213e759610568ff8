"""Twenty visitors of one dashboard: how long the server takes for a view that is measured already.

    python benchmarks/visitors.py [--visitors 20] [--looks 5] [--seconds 60] [--json]

Each opens a link to a measured position of Explore, looks at it for some seconds, and opens the next; two
others ask for positions that are not measured yet, all the time. Visitors speak the protocol of Streamlit's
own page, without a browser: twenty of these would take the processor from the server. A view takes from the
request to the end of the page's script. Ends with 1 where a page showed an error or was not whole within a
minute (it counts as that), and where nothing was viewed.
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import psutil
import websockets
from browser_waits import dashboard
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from optimizer.system.environment import describe, environment

MODEL = "fashion-mlp"
SPARSITIES, BITS = (0, 30, 50, 70), (32, 8, 4)
MOVING = 2
"""Visitors who ask for what is not measured yet."""
MOVES_SECONDS = 1.0
MAX_VIEW_SECONDS = 60.0
SUBPROTOCOL = websockets.Subprotocol("streamlit")


@dataclass
class Seen:
    """What visitors met with."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    asked: int = 0


def link(sparsity: int, bits: int) -> str:
    return urlencode({"model": MODEL, "method": "Magnitude", "sparsity": sparsity, "bits": bits})


async def view(address: str, query: str, seen: Seen) -> float:
    """Open a link in a session of its own; the seconds until its page is whole, MAX_VIEW_SECONDS where it is
    not by then."""
    try:
        async with asyncio.timeout(MAX_VIEW_SECONDS):
            return await whole(address, query, seen)
    except TimeoutError:
        seen.errors.append(f"a page was not whole within {MAX_VIEW_SECONDS:g} s")
        return MAX_VIEW_SECONDS


async def whole(address: str, query: str, seen: Seen) -> float:
    asking = websockets.connect(address, subprotocols=[SUBPROTOCOL], max_size=None, open_timeout=None)
    async with asking as connection:
        asked, begun = BackMsg(), time.perf_counter()
        asked.rerun_script.query_string = query
        await connection.send(asked.SerializeToString())
        while True:
            said = ForwardMsg.FromString(await connection.recv())
            if said.delta.new_element.HasField("exception"):
                seen.errors.append(said.delta.new_element.exception.message)
            if said.HasField("script_finished") and said.script_finished == said.FINISHED_SUCCESSFULLY:
                return time.perf_counter() - begun


async def look_around(
    address: str, links: Iterator[str], seen: Seen, until: float, looks: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    await asyncio.sleep(random.uniform(0, looks))  # they don't come at once
    while time.perf_counter() < until:
        seen.seconds.append(await view(address, next(links), seen))
        await asyncio.sleep(random.uniform(0.5, 1.5) * looks)


async def move(address: str, seen: Seen, until: float, seed: int) -> None:
    """Ask for one new position after the other."""
    for share in itertools.cycle(range(1 + seed, 90, MOVING)):
        if time.perf_counter() > until:
            return
        await view(address, link(share, 32), seen)
        seen.asked += 1
        await asyncio.sleep(MOVES_SECONDS)


async def visit(address: str, visitors: int, seconds: float, looks: float) -> Seen:
    seen = Seen()
    links = itertools.cycle(link(*each) for each in itertools.product(SPARSITIES, BITS))
    for _ in range(len(SPARSITIES) * len(BITS)):
        await view(address, next(links), seen)  # a server that has just started reads and draws all once
    until = time.perf_counter() + seconds
    await asyncio.gather(
        *(look_around(address, links, seen, until, looks, seed) for seed in range(visitors)),
        *(move(address, seen, until, seed) for seed in range(MOVING)),
    )
    return seen


def resident_mb() -> float:
    """Of the server that this process started, without its workers: they are as large for any number."""
    started = psutil.Process().children(recursive=True)
    return next(one.memory_info().rss for one in started if "pages.serve" in one.cmdline()) / 1e6


def figures(seen: Seen) -> dict[str, object]:
    median, most = np.percentile(seen.seconds, (50, 95)).round(3).tolist() if seen.seconds else (None, None)
    return {
        "views of what is measured": len(seen.seconds),
        "median, s": median,
        "95th percentile, s": most,
        "positions asked for meanwhile": seen.asked,
        "errors": seen.errors,
    }


def missed(seen: Seen) -> list[str]:
    """A sentence for each thing that should not be."""
    views = [] if seen.seconds else ["nothing that is measured was viewed: give more --seconds or --visitors"]
    return views + [f"{number} x {error}" for error, number in Counter(seen.errors).items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--looks", type=float, default=5, help="seconds at a position, on average (5)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        subprocess.run(
            [
                sys.executable, "-m", "optimizer.cli", "sweep", MODEL, "--quick", "--prune", "magnitude",
                "--sparsities", ",".join(str(one / 100) for one in SPARSITIES),
                "--bits", ",".join(map(str, BITS)),
            ],
            env=os.environ | {"PARETOSCOPE_HOME": str(home)},
            check=True,
            capture_output=True,
        )  # fmt: skip
        with dashboard(home) as url:
            address = f"{url.replace('http', 'ws')}/_stcore/stream"
            before = resident_mb()
            seen = asyncio.run(visit(address, options.visitors, options.seconds, options.looks))
            after = resident_mb()
    found = {
        "machine": describe(environment()),
        "visitors": options.visitors,
        "seconds at a position": options.looks,
        "server's memory before and after, MB": [round(before), round(after)],
        **figures(seen),
    }
    print(json.dumps(found, indent=None if options.json else 2))
    sys.exit("\n".join(missed(seen)) or None)


if __name__ == "__main__":
    main()
