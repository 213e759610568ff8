"""The graph by which a network answers, as ``torch.fx`` traces it."""

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from optimizer.model.examples import agree
from optimizer.model.layers import BATCH_NORMS, CONVOLUTIONS


class LayerTracer(torch.fx.Tracer):
    """Keeps convolutions, norms and attention whole, also those of libraries that derive their own.

    While it traces, ``torch.fx`` has its own in the place of ``nn.Module.__call__``, for all threads: one
    traces at a time, and modules that other threads call meanwhile run as they are. (Not so those that
    ``torch.compile`` made, or that ask whether they are being traced: torch refuses the former then.)
    """

    _one = threading.RLock()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> torch.fx.Graph:
        with self._one:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kinds = (*CONVOLUTIONS, *BATCH_NORMS, nn.MultiheadAttention)
        return isinstance(m, kinds) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """As all call it, with one input: a placeholder for ``targets=None`` would not be None, and a loss
        would be traced in the place of logits."""
        return self.root.forward, [self.create_proxy("placeholder", "input", (), {})]


@torch.no_grad()
def traced(model: nn.Module, image: Tensor) -> torch.fx.Graph:
    """The graph by which ``model`` answers ``image`` ``[1, ...]``. Raises what its code does where it can't
    be traced, and ValueError where the graph answers otherwise: code that asks whether its input is a tensor
    may go another way with what stands for one."""
    graph = LayerTracer().trace(model)
    found = torch.fx.Interpreter(torch.fx.GraphModule(model, graph)).run(image.clone())
    if not agree([model(image.clone())], [found]):
        raise ValueError("its graph answers otherwise")
    return graph
