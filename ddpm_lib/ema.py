"""An exponential moving average of the weights: what one samples from."""

import copy

import torch
from torch import nn


class EMA:
    """θ̂ ← d·θ̂ + (1 − d)·θ after every step, with d = min(decay, (1 + step)/(10 + step)) for step = 0, 1, ...

    The warm-up of d matters: with 0.9999 from the start, 37 % of the average is still the random initial weights after
    10,000 steps. Buffers are copied. `ema.model` is the averaged network, in eval mode, without gradients; `ema.steps`
    counts the updates, and with the weights it is all that the next update depends on.
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
