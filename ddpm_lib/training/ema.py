"""An exponential moving average of the weights: what one samples from."""

import copy

import torch
from torch import nn


class EMA:
    """Eq. 11.5 (exponential moving average). θ̂ ← d·θ̂ + (1 − d)·θ with d = min(decay, (1 + steps)/(10 + steps)).

    The warm-up of d matters: with 0.9999 from the start, 37 % of the average is still the random initial weights after
    10,000 steps (Eq. 11.6). Buffers are copied. `ema.model` is the averaged network, in eval mode, without gradients;
    `ema.steps` = 0, 1, ... counts the updates, and with the weights it is all that the next update depends on.
    model: is copied, on its device and in its dtype. decay: in [0, 1), for each update (ValueError otherwise).
    Source: Ho et al. 2020, appendix B (0.9999, without the warm-up).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`, which must have the parameters that the average was made with."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
        self.steps += 1
