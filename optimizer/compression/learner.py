"""What learns: tensors that each move by a share of their own size, with masks and grids held.

A step moves each tensor by a share of its own size (as Adafactor does, arXiv 1804.04235): with batch norm
folded in, weights of one network differ in size by orders of magnitude, and one step size for all is too
large for some of them. Weights that were rounded stay on their grids: what learns is a weight behind each
code (:mod:`optimizer.compression.quantize.held`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from optimizer.compression.quantize.held import HeldGrid

SMALLEST = 1e-3
"""A tensor of smaller root mean square, such as a bias of zeros, moves as one of this."""
DECAYS = (0.9, 0.99)
"""Of Adam's two moments. The longer one is short enough for a hundred steps."""

Moments = Mapping[int, tuple[Tensor, Tensor, Tensor]]
"""By place among the parameters: how often it was updated, and Adam's two moments of its gradient. What no
output depends on has none."""


@dataclass(eq=False)
class Learner:
    """Adam over ``parameters``, which need gradients from now on. Of those among them, ``kept`` has the masks
    of weights that were pruned, ``held`` the grids of those that were rounded; ``behind`` are the weights
    behind their codes."""

    parameters: Iterable[nn.Parameter]
    kept: Mapping[nn.Parameter, Tensor]
    held: Mapping[nn.Parameter, HeldGrid]
    behind: dict[nn.Parameter, Tensor] = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = tuple(self.parameters)
        for one in self.parameters:
            one.requires_grad_(True)
        self.kept = {one: self.kept[one] for one in self.parameters if one in self.kept}
        self.held = {one: self.held[one] for one in self.parameters if one in self.held}
        self.behind = {weight: weight.detach().clone() for weight in self.held}
        groups = [{"params": [one], "size": self._size(one)} for one in self.parameters]
        self.optimiser = torch.optim.Adam(groups, betas=DECAYS, eps=1e-12, fused=True)

    def _size(self, parameter: nn.Parameter) -> float:
        """The root mean square of what is left of it."""
        left = self.kept[parameter].sum() if parameter in self.kept else parameter.numel()
        size = (parameter.detach().square().sum() / left).sqrt().nan_to_num().item()
        return max(SMALLEST, size)

    @torch.no_grad()
    def descend(self, rate: float) -> None:
        """One step against the gradients that there are, by ``rate`` of each tensor's size; none are left."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["size"] * rate
        for weight, exact in self.behind.items():
            weight.copy_(exact)
        self.optimiser.step()
        for weight, mask in self.kept.items():
            weight.mul_(mask)
        self.round()
        self.optimiser.zero_grad()

    @torch.no_grad()
    def round(self) -> None:
        """What the weights were moved to stays behind them, and they go back to their grids."""
        for weight, grid in self.held.items():
            self.behind[weight] = grid.inside(weight)
            weight.copy_(grid.nearest(weight))

    @torch.no_grad()
    def state(self) -> list[Tensor]:
        """What learns as it is now; of rounded weights those behind their codes."""
        return [self.behind.get(one, one).detach().clone() for one in self.parameters]

    @torch.no_grad()
    def set_state(self, state: Sequence[Tensor]) -> None:
        """To such a state."""
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.copy_(value)
        self.round()

    def moments(self) -> Moments:
        """The optimiser's as they are now."""
        known = ((index, self.optimiser.state.get(one)) for index, one in enumerate(self.parameters))
        return {
            index: (state["step"].clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone())
            for index, state in known
            if state
        }

    def set_moments(self, moments: Moments) -> None:
        """To such ones, laid out in memory as the parameters are."""
        for index, one in enumerate(self.parameters):
            if index in moments:
                step, first, second = moments[index]
                self.optimiser.state[one] = {
                    "step": step.clone(),
                    "exp_avg": torch.empty_like(one).copy_(first),
                    "exp_avg_sq": torch.empty_like(one).copy_(second),
                }
