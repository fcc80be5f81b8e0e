"""What a task is tried on: a schedule, sizes, random numbers, all of which follow from a seed."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.homework import numbers


@dataclass(frozen=True)
class Case:
    """One trial. who: the student whose numbers are asked for; T, batch, shape (C, H, W): sizes."""

    seed: int
    who: str = "nobody"
    T: int = 12
    batch: int = 5
    shape: tuple[int, ...] = (2, 3, 4)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The linear schedule where T = 1000, else one of irregular β between 0.02 and 0.5, in no order."""
        if self.T == 1000:
            return linear_schedule()
        beta = 0.02 * 25 ** torch.rand(self.T, generator=self.generator("beta"), dtype=torch.float64)
        return Schedule(beta)

    @functools.cached_property
    def t(self) -> Tensor:
        """Times (batch,) in no order, T and then 1 first."""
        drawn = self.whole(1, self.T, self.batch, name="t")
        drawn[:2] = torch.tensor([self.T, 1])[: self.batch]
        return drawn

    def generator(self, name: str = "") -> torch.Generator:
        """A generator that gives the same numbers each time; another name, other numbers."""
        return torch.Generator().manual_seed(numbers.seed(name, f"{self.seed}"))

    def normal(self, *size: int, name: str = "") -> Tensor:
        """Standard normal numbers of this size, float64; without a size, (batch, *shape)."""
        return torch.randn(size or self.size, generator=self.generator(name), dtype=torch.float64)

    def uniform(self, low: float, high: float, *size: int, name: str = "") -> Tensor:
        """Numbers between low and high of this size (one number without), float64."""
        return low + (high - low) * torch.rand(size, generator=self.generator(name), dtype=torch.float64)

    def whole(self, low: int, high: int, *size: int, name: str = "") -> Tensor:
        """Whole numbers low..high, both included, int64."""
        return self.uniform(low, high + 1, *size, name=name).long().clamp(low, high)

    @property
    def size(self) -> tuple[int, ...]:
        return (self.batch, *self.shape)


def given(who: str) -> Case:
    """The case that a student sees."""
    return Case(numbers.seed("case", who), who)
