"""Which t a training step looks at: the interface of a timestep sampler, the uniform one, and one that learns."""

import math
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


class LossSecondMoment:
    """Eq. 9.13 (loss-second-moment sampling). p_t = (1 − u)·√m_t/Σ√m + u/T, m_t the mean square of t's latest losses.

    history: how many losses of each t it remembers. Until every t has so many, t is uniform and all factors are 1.
    uniform: u, the share drawn uniformly, so that no step is forgotten. The factor of a loss is 1/(T·p_t).
    Losses that are not finite are not remembered: whoever trains stops at them. Reading the losses makes an
    accelerator's host wait, once a step. Raises ValueError for history < 1, or uniform outside 0 < u ≤ 1.
    Source: Nichol and Dhariwal 2021, section 3.3 and their code (history 10, u = 0.001).
    """

    def __init__(self, schedule: Schedule, history: int = 10, uniform: float = 0.001):
        if history < 1 or not 0 < uniform <= 1:
            raise ValueError(f"expected history >= 1 and 0 < uniform <= 1; got {history} and {uniform:g}")
        self.schedule, self.uniform = schedule, uniform
        self.losses = torch.zeros(schedule.T, history, dtype=torch.float64)  # of t in row t − 1, a ring
        self.count = torch.zeros(schedule.T, dtype=torch.int64)  # how many losses of t came, ever
        self._told: list[tuple[Tensor, Tensor]] = []  # not yet read

    def probabilities(self) -> Tensor:
        """p_1, ..., p_T, (T,), float64."""
        self._read()
        T, history = self.losses.shape
        root = self.losses.square().mean(1).sqrt()
        if (self.count < history).any() or not root.sum() > 0:
            return torch.full((T,), 1 / T, dtype=torch.float64)
        return (1 - self.uniform) * root / root.sum() + self.uniform / T

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        self._read()
        if (self.count < self.losses.shape[1]).any():
            return draw_t(self.schedule, batch, generator).cpu(), None
        p = self.probabilities()
        index = torch.multinomial(p.to(generator.device), batch, replacement=True, generator=generator).cpu()
        return index + 1, (1 / (len(p) * p[index])).float()

    def update(self, t: Tensor, loss: Tensor) -> None:
        self._told.append((t.clone(), loss.detach().clone()))  # read later, and the caller may write into them

    def state(self) -> dict[str, Tensor]:
        self._read()
        return {"losses": self.losses, "count": self.count}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError where the state is that of another sampler, or of another T or history."""
        for name, mine in {"losses": self.losses, "count": self.count}.items():
            shape = tuple(state[name].shape) if name in state else "nothing"
            if shape != tuple(mine.shape):
                raise ValueError(
                    f"the timestep sampler expected {name} of shape {tuple(mine.shape)}, got {shape}: go on with the "
                    "sampler, the history and the number of steps that the run was begun with"
                )
        self._told.clear()
        self.losses, self.count = (state[name].to("cpu", mine.dtype, copy=True) for name, mine in self.state().items())

    def _read(self) -> None:
        """Remember what was told, in the order in which it came."""
        losses, count = self.losses.numpy(), self.count.numpy()  # the same memory
        for t, loss in self._told:
            for step, value in zip(t.tolist(), loss.cpu().tolist(), strict=True):
                if math.isfinite(value):
                    losses[step - 1, count[step - 1] % losses.shape[1]] = value
                    count[step - 1] += 1
        self._told.clear()
