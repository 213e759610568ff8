"""Watching the operations that a model runs."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Sees every operation within it. Torch keeps its compiler out of such a class's code by importing the
    compiler, which takes seconds; nothing is compiled in any of ours."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
