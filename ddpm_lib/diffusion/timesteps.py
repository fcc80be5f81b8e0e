"""Which t a training step looks at: the interface of a timestep sampler, and the uniform one."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ddpm_lib.diffusion.loss import draw_t
from ddpm_lib.diffusion.schedule import Schedule


class TimestepSampler(Protocol):
    """What a trainer asks of a timestep sampler, uniform or learning from the losses that it is told."""

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """t, (batch,), int64, on the CPU, and the factor of each loss, (batch,), or None where all are 1.

        With the factors the mean loss must have the expectation that it has under uniform t.
        """

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Told once a step: t, (batch,), on the CPU, and the losses without factors, (batch,), on the device."""

    def state(self) -> dict[str, Tensor]:
        """All that `draw` depends on besides the generator, for a checkpoint."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state()` was taken."""


class UniformTimesteps:
    """t ~ Uniform{1, ..., T}, as `draw_t` draws it; it remembers nothing."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        return draw_t(self.schedule, batch, generator), None

    def update(self, t: Tensor, loss: Tensor) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        pass
