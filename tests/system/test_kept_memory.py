"""Whether freed memory stays, by how many pages the system gives."""

import json
import subprocess
import sys

import pytest

CODE = """
import ctypes, json, resource
import torch
from optimizer.system.memory import kept_memory

def given():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MiB
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20

found = {"before": given()}
with kept_memory():
    given()
    with kept_memory():
        pass
    found["within"], found["held"] = given(), resident()
found["left"], found["after"] = resident(), given()
print(json.dumps(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_it_stays_within_also_where_one_is_in_another_and_goes_back_in_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    mebibytes = json.loads(done.stdout)
    assert mebibytes["within"] < 64
    assert mebibytes["left"] < mebibytes["held"] - 60
    assert mebibytes["after"] >= 0.9 * mebibytes["before"]
