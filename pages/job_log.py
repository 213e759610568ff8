"""A log of jobs, for whoever runs a dashboard: what visitors wait for. (Not a page.)"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from optimizer.records import Known
from optimizer.system.paths import JOB_LOG_VARIABLE
from optimizer.system.process_pool import Job


def write(job: Job) -> None:
    """Append what a job has come to, as a line of JSON, to the file that the operator named, if any. No job
    is lost to a log that can't be written."""
    if path := os.environ.get(JOB_LOG_VARIABLE):
        with suppress(OSError), Path(path).open("a") as log:
            log.write(json.dumps(event(job)) + "\n")


def event(job: Job) -> dict[str, object]:
    """``time`` is in seconds since 1970, ``images`` how many the accuracy known so far is of: 0 when only
    counts and sizes are known, None before and after."""
    return {
        "time": time.time(),
        "key": job.key,
        "task": job.task,
        "lane": job.lane,
        "state": job.state,
        "images": _scored(job.known) if isinstance(job.known, Known) else None,
    }


def _scored(known: Known) -> int:
    return known.accuracy.total if known.accuracy else 0
