"""SECURITY.md is held to the code: its numbers are the constants', and each claim's test exists."""

import re
import tomllib
from pathlib import Path

import pytest

from optimizer import recipe, work
from optimizer.cluster.attached import CLUSTER_VARIABLE
from optimizer.data import classes, decoding, folders, loading, uploaded
from optimizer.export import pictures
from optimizer.model.added import limits
from optimizer.search import sweep
from optimizer.store import ledger, results
from optimizer.system import downloads, paths, process_pool, uploads

ROOT = Path(__file__).resolve().parent.parent
SECURITY = (ROOT / "SECURITY.md").read_text()
CONFIG = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
LIMITS = {
    "jobs that wait, of all visitors": f"{process_pool.MAX_QUEUED:,}",
    "jobs that wait, of one visitor": f"{process_pool.MAX_QUEUED_EACH:,}",
    "configurations of sweeps that wait": f"{ledger.MAX_WAITING:,}",
    "configurations of one sweep": f"{sweep.MAX_GRID:,}",
    "finished results kept in the server": f"{process_pool.MAX_KEPT_BYTES // 2**20} MiB",
    "the longest measurement, without fine-tuning": f"{work.JOB_KINDS['measure'].minutes} minutes",
    "a worker that says nothing while it measures": f"{work.JOB_KINDS['measure'].silent_minutes} minutes",
    "steps of fine-tuning": f"{recipe.MAX_FINETUNE_STEPS:,}",
    "best effort": f"{recipe.MAX_EFFORT_SECONDS} s",
    "layer overrides of a recipe": f"{recipe.MAX_OVERRIDES:,}",
    "a recipe as JSON": f"{recipe.MAX_JSON_BYTES // 2**10} KiB",
    "a file that is uploaded": f"{uploads.MAX_UPLOAD_MB} MB",
    "images of one upload": f"{uploaded.MAX_IMAGES:,}",
    "a model file that is read": f"{limits.MAX_FILE_BYTES // 2**30} GiB",
    "tensors of a model file": f"{limits.MAX_TENSORS:,}",
    "pixels of one image": f"{decoding.MAX_PIXELS // 10**6} million",
    "memory for images, of each worker": (
        f"{100 * loading.MEMORY_SHARE:.0f} % of the machine's or the container's"
    ),
    "a class index file": f"{classes.INDEX_MAX_BYTES // 10**6} MB",
    "drawing PNG or SVG, in all": f"{pictures.RENDER_SECONDS} s",
    "failures kept": f"{results.MAX_FAILURES}",
}


def test_the_server_takes_what_a_page_may_be_given() -> None:
    """It refuses larger bodies on its own account, before a page can say why."""
    assert CONFIG["server"]["maxUploadSize"] == uploads.MAX_UPLOAD_MB


def test_every_limit_is_the_code_s() -> None:
    table = SECURITY[SECURITY.index("## Limits") : SECURITY.index("## For a team")]
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.M))
    assert {what: limit for what, limit in rows.items() if what not in ("what", "---")} == LIMITS


def test_every_claim_names_a_test_that_exists() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", SECURITY))
    assert len(named) >= 10
    assert not {name for name in named if f"def {name}(" not in written}


@pytest.mark.parametrize(
    "name",
    [
        folders.ROOTS_VARIABLE,
        downloads.DOWNLOADS_VARIABLE,
        uploads.UPLOADS_VARIABLE,
        paths.HOME_VARIABLE,
        paths.STORE_VARIABLE,
        CLUSTER_VARIABLE,
    ],
)
def test_what_the_operator_sets_has_the_code_s_name(name: str) -> None:
    assert f"`{name}`" in SECURITY
    assert downloads.DEFAULT_DOWNLOADS in SECURITY
    assert uploads.DEFAULT_UPLOADS in SECURITY


def test_the_page_is_this_machine_s_alone_and_tells_nobody() -> None:
    assert CONFIG["server"]["address"] == "127.0.0.1"
    assert CONFIG["browser"]["gatherUsageStats"] is False
    assert CONFIG["client"]["showErrorDetails"] == "none"


def test_nothing_is_unpickled_or_evaluated_but_between_our_own_processes() -> None:
    """By the source: pickle only where the server speaks with its workers, whole modules only where a process
    that measures memory reads what was written for it; eval and exec nowhere."""
    users, modules = set(), set()
    for path in [*(ROOT / "optimizer").rglob("*.py"), *(ROOT / "pages").rglob("*.py")]:
        code = path.read_text()
        if re.search(r"\b(pickle|dill|joblib|shelve|marshal)\.(loads?|open|Unpickler)\b", code):
            users.add(path.stem)
        assert not re.search(r"(?<![\w.])(eval|exec)\(", code), path
        if re.search(r"weights_only\s*=\s*False", code):
            modules.add(f"{path.parent.name}/{path.stem}")
        assert not re.search(r"allow_pickle\s*=\s*True", code), path
    assert users == {"process_pool", "worker"}
    assert modules == {"engine/torch", "engine/compile", "engine/sparse"}
