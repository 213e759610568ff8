"""Whether pages stay fast with a full store.

    OPENBLAS_NUM_THREADS=1 PYTHONPATH=tests python benchmarks/store.py [--json] [--results 100000] \\
        [--folder FOLDER]

Fills a store with made-up results of honest sizes: 2,000 of one model, on the bundled 10,000 images, and the
same under other models' names. Then: bytes a result, milliseconds of the processor to open the store, to read
one model's summaries and to find its frontier, and those of each page's script at a position that is measured
already, drawn for the first time and again. Libraries are loaded before, as a server does when it starts, and
no workers run beside it. (OpenBLAS's other threads spin while they wait for work, which counts as if they
had some.) ``--folder`` keeps the store, and takes one that is there.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
from factories import make_result
from sqlalchemy import insert, text
from started import PAGES, Idle, Started
from streamlit.testing.v1 import AppTest

from optimizer import work
from optimizer.analysis import stored
from optimizer.analysis.frontier import chances, frontier_of
from optimizer.analysis.summary import derive
from optimizer.progress import quiet
from optimizer.recipe import NORMAL, Recipe
from optimizer.records import DataSpec, Request
from optimizer.store import ledger, tables
from optimizer.store.keys import request_keys
from optimizer.store.results import Store
from pages import backlog, serve, tasks

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
MODEL, OF_ONE = "fashion-resnet", 2_000
BITS = (32, 8, 6, 5, 4, 3, 2)
FORGOTTEN = property(lambda page: "", lambda page, value: None)
"""As in the pages' tests: a server forgets the folder named pages at the first st.navigation."""
PLANE = ("compressed_size", "drop")
ENGINES = ("openvino", "onnxruntime", "sparse")


def requests(number: int) -> list[Request]:
    """Sparsities, bit widths and engines, the uncompressed network first."""
    steps = -(-number // (len(BITS) * len(ENGINES)))
    prunes = [replace(NORMAL.prune, sparsity=step / steps or None) for step in range(steps)]
    return [
        Request(MODEL, Recipe(prune, NORMAL.quantize.at(bits)), engine)
        for prune in prunes
        for bits in BITS
        for engine in ENGINES
    ][:number]


def fill(store: Store, number: int) -> None:
    of_one = requests(min(number, OF_ONE))
    random = np.random.default_rng(0)
    summaries = []
    for key, request in zip(request_keys(of_one), of_one, strict=True):
        # Dense kernels take as long whatever the weights, and share a measurement; others have their own.
        ratio = 1.0
        if request.engine == "sparse":
            ratio = (1.2 - (request.recipe.prune.sparsity or 0)) * float(random.uniform(0.95, 1.05))
        made = make_result(request.recipe, quick=True, rounds=40, ratio=ratio)
        result = replace(made, key=key, request=request)
        stored.put(store, result)
        summaries.append(derive(result))
    ledger.create(store, b"{}", of_one[:500], "a visitor")
    for model in range(1, number // OF_ONE):
        name = f"model-{model}"
        copies = [
            replace(one, key=f"{model:02}-{one.key[3:]}", request=replace(one.request, model=name))
            for one in summaries
        ]
        with store.writing() as connection:
            connection.exec_driver_sql(
                "INSERT INTO results SELECT ? || substr(key, 4), schema, ?, data, engine, environment,"
                " signature, strftime('%Y-%m-%dT%H:%M:%S+00:00', created, ?),"
                " CAST(replace(CAST(json AS TEXT), ?, ?) AS BLOB) FROM results WHERE model = ?",
                (f"{model:02}-", name, f"-{model} days", f'"{MODEL}"', f'"{name}"', MODEL),
            )
            rows = [{"key": one.key, "version": stored.VERSION, "packed": stored.pack(one)} for one in copies]
            connection.execute(insert(tables.summaries), rows)


def timed(act: Callable[[], T]) -> tuple[float, T]:
    """Milliseconds of the processor, and what came of it."""
    started = time.process_time()
    found = act()
    return 1e3 * (time.process_time() - started), found


@contextmanager
def no_workers(store: Store) -> Iterator[None]:
    """Pages ask for work and nobody does it."""
    pool = Started(work.run("catalogue", None, quiet))  # type: ignore[arg-type]
    with (
        patch.object(tasks, "pool", lambda: pool),
        patch.object(tasks, "store", lambda: store),
        patch.object(backlog, "fill_first", lambda: None),
        patch.object(backlog, "background", Idle),
        patch.object(AppTest, "_finished_page_script_hash", FORGOTTEN, create=True),
    ):
        yield


def pages(store: Store) -> dict[str, dict[str, float]]:
    """Milliseconds of each page's script: by its first visitor, and drawn again."""
    found = {}
    with no_workers(store):
        page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=600)
        page.query_params["pins"] = ".".join(request_keys(requests(5)))
        page.switch_page("pages/layers.py").run()  # libraries are loaded
        for name in PAGES:
            page.switch_page(f"pages/{name}.py")
            stored.unpack.cache_clear()
            first, _ = timed(page.run)
            assert not page.exception, page.exception
            found[name] = {"first_ms": first, "again_ms": min(timed(page.run)[0] for _ in range(3))}
    return found


def bytes_each(store: Store) -> dict[str, float]:
    """On the disk, of a table with its indices."""
    query = text(
        "SELECT tbl_name, sum(pgsize) FROM dbstat JOIN sqlite_schema USING (name)"
        " WHERE tbl_name IN ('results', 'summaries') GROUP BY tbl_name"
    )
    with store.reading() as connection:
        rows = connection.execute(query).fetchall()
    return {f"{name}_bytes": size / store.count() for name, size in rows}


def measure(store: Store) -> dict[str, Any]:
    serve.load_libraries()
    opening, _ = timed(lambda: Store(store.path))
    reading, found = timed(lambda: stored.summaries(store, MODEL, DataSpec()))
    again, _ = timed(lambda: stored.summaries(store, MODEL, DataSpec()))
    plane, _ = timed(lambda: [act(found, PLANE) for act in (frontier_of, chances)])
    usual, _ = timed(lambda: [act(found) for act in (frontier_of, chances)])
    return {
        "results": store.count(),
        "open_ms": opening,
        "read_one_model_ms": reading,
        "read_again_ms": again,
        "frontier_of_two_ms": plane,
        "frontier_of_three_ms": usual,
        **bytes_each(store),
        "pages": pages(store),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        os.environ["PARETOSCOPE_HOME"] = str(folder)
        store = Store(folder / "results.sqlite")
        if not store.count():
            fill(store, options.results)
        found = measure(store)
    if options.json:
        print(json.dumps(found))
        return
    for name, figure in found.items():
        if name != "pages":
            print(f"{name:<24}{figure:>10,.0f}")
    for name, figures in found["pages"].items():
        print(f"{name:<24}{figures['first_ms']:>10,.0f} ms, again {figures['again_ms']:,.0f} ms")


if __name__ == "__main__":
    main()
