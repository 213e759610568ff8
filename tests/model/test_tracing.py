"""Traces of networks, while other threads run networks too."""

import threading

import pytest
import torch
from torch import Tensor, nn

from optimizer.model.tracing import LayerTracer, traced


class Slow(nn.Module):
    """Which another thread catches while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.inside, self.go_on = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.inside.set()
        assert self.go_on.wait(30)
        return self.layers(x)


@pytest.mark.parametrize("shared", [True, False])
def test_what_other_threads_run_meanwhile_runs_as_it_is(shared: bool) -> None:
    slow = Slow().eval()
    other = slow.layers if shared else nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    image = torch.randn(1, 4)
    expected = other(image)
    graphs = []
    tracing = threading.Thread(target=lambda: graphs.append(LayerTracer().trace(slow)))
    tracing.start()
    assert slow.inside.wait(30)
    found = other(image)
    slow.go_on.set()
    tracing.join()
    assert type(found) is Tensor
    assert torch.equal(found, expected)
    assert [node.target for node in graphs[0].nodes if node.op == "call_module"] == [
        "layers.0",
        "layers.1",
        "layers.2",
    ]


def test_several_threads_trace_and_leave_torch_as_it_was() -> None:
    before = nn.Module.__call__, nn.Module.__getattr__
    networks = [nn.Sequential(*(nn.Linear(4, 4) for _ in range(40))).eval() for _ in range(4)]
    failed: list[Exception] = []

    def trace(network: nn.Module) -> None:
        try:
            for _ in range(10):
                traced(network, torch.randn(1, 4))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=trace, args=(one,)) for one in networks]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failed == []
    assert (nn.Module.__call__, nn.Module.__getattr__) == before
