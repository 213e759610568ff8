"""Compiles the sparse kernels while the package is built or installed in place.

Without a compiler the package installs all the same, and says at run time why it has no kernels.
"""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "optimizer/engine/kernels"


class KernelBuildHook(BuildHookInterface):
    """A wheel holds the libraries of one kind of processor, and is marked so."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build = runpy.run_path(str(Path(self.root, KERNELS, "build.py")))
        problem = build["build"]()
        if problem:
            self.app.display_warning(f"without sparse kernels: {problem}")
        else:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
        build_data["artifacts"] += [f"{KERNELS}/*.so", f"{KERNELS}/not-built.txt"]
