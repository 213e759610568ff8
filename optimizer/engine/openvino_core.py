"""OpenVINO's core: one for the process."""

from functools import cache
from typing import Any


@cache
def core() -> Any:
    """A core gives the main thread a stack for signals, with room for AMX's registers, and takes it away when
    it goes. Of several cores the last to go may leave one that is mapped no more: then Ctrl-C ends the
    process with SIGSEGV (OpenVINO 2026.4)."""
    import openvino

    return openvino.Core()
