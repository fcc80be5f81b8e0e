"""A loss scaler: what lets gradients in fp16 neither vanish nor overflow unnoticed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

HIGHEST = 2.0**127  # the largest power of two in float32


class LossScaler:
    """Eq. 12.5 (loss scale). The loss is multiplied by a scale S before the backward pass, the gradients by 1/S after.

    A step whose gradients are not finite is skipped and halves S, but not below `floor`; `interval` good steps in a row
    double it, up to 2^127. All of it happens on the device: no step waits for the host (torch.amp.GradScaler's waits
    where the optimiser is not fused). Unlike that one it has a floor: at the floor nothing is skipped, so that whoever
    trains sees what is not finite, and S cannot fall to 0 unnoticed.
    Source: Micikevicius et al. 2018, section 3.2; its numbers are torch.amp.GradScaler's, which has no floor.
    """

    def __init__(self, device: torch.device | str, start: float = 2.0**16, interval: int = 2000, floor: float = 1.0):
        if not 0 < floor <= start or interval < 1:
            raise ValueError(f"expected 0 < floor <= start and interval >= 1; got {floor:g}, {start:g} and {interval}")
        self.scale = torch.tensor(float(start), device=device)
        self.good = torch.tensor(0, device=device)  # steps in a row
        self.interval, self.floor = interval, floor

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide the gradients, in place, by S."""
        torch._foreach_mul_(list(gradients), self.scale.reciprocal())

    def update(self, finite: Tensor) -> Tensor:
        """Told whether the gradients of a step were finite, (), bool. Returns whether the step is to be skipped."""
        skip = ~finite & (self.scale > self.floor)
        good = torch.where(finite, self.good + 1, 0)
        grown = torch.where(good == self.interval, (2 * self.scale).clamp(max=HIGHEST), self.scale)
        self.scale = torch.where(finite, grown, (self.scale / 2).clamp(min=self.floor))
        self.good = torch.where(good == self.interval, 0, good)
        return skip

    def state(self) -> dict[str, Tensor]:
        """Scale and count, for a checkpoint."""
        return {"scale": self.scale, "good": self.good}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state()` was taken. Raises ValueError where the state lacks a part."""
        for name, mine in self.state().items():
            if name not in state:
                raise ValueError(f"the loss scaler expected its {name}: the run was not begun with one")
            setattr(self, name, state[name].to(mine.device, mine.dtype, copy=True).reshape(()))
