"""Independent routes to what a sampler does: Bayes' rule on a grid, a walk step by step, networks that are watched."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.checks.guard import fault
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.forward import q_sample
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.targets import v_from_eps
from ddpm_lib.homework.case import Case


def seeded(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(schedule: Schedule, t: Tensor, s: Tensor, x_0: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each entry of x_s, given x_0 and x_t, by Bayes' rule on a grid of x_s. s >= 1."""
    now, then = (schedule.alpha_bar[k].reshape(-1, *[1] * x_t.ndim) for k in (t, s))
    z = torch.linspace(-12, 12, 3001, dtype=torch.float64)
    x_s = then.sqrt() * x_0[..., None] + (1 - then).sqrt() * z
    away = (x_t[..., None] - (now / then).sqrt() * x_s) ** 2 / (1 - now / then)
    weight = (-(z**2 + away) / 2).softmax(-1)
    mean = (weight * x_s).sum(-1)
    return mean, (weight * (x_s - mean[..., None]) ** 2).sum(-1)


def walked(schedule: Schedule, s: int, t: int) -> tuple[float, float]:
    """What single forward steps from s to t make of x_s: the factor, and the variance that they add."""
    factor, var = 1.0, 0.0
    for beta in schedule.beta[s + 1 : t + 1].tolist():
        factor, var = factor * (1 - beta) ** 0.5, (1 - beta) * var + beta
    return factor, var


def pictures(case: Case) -> tuple[Tensor, ...]:
    """t and an earlier s for each image, with x_0, ε, x_t and v."""
    s = (case.uniform(0, 1, case.batch, name="s") * case.t).long()
    x_0, eps = case.normal(name="x_0"), case.normal(name="eps")
    return case.t, s, x_0, eps, q_sample(case.schedule, x_0, eps, case.t), v_from_eps(case.schedule, x_0, eps, case.t)


class Asked:
    """A network that answers answer(x, t), and keeps what it was asked."""

    def __init__(self, answer: Callable[[Tensor, int], Tensor]):
        self.answer, self.x, self.t = answer, [], []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if tuple(t.shape) != (len(x),) or len(set(t.tolist())) > 1:
            raise ValueError(f"the network expects t of shape ({len(x)},), one t for all; got {t}")
        self.x.append(x.clone())
        self.t.append(int(t[0]))
        return self.answer(x, int(t[0]))


def knows(schedule: Schedule, x_0: Tensor) -> Asked:
    """The network that knows the image: all noise is what differs from it."""
    a = schedule.alpha_bar
    return Asked(lambda x, t: (x - a[t].sqrt().to(x) * x_0) / (1 - a[t]).sqrt().to(x))


def silent() -> Asked:
    return Asked(lambda x, t: torch.zeros_like(x))


def broken(found: bool, text: str, advice: str = "") -> float:
    """Infinite where a promise is broken, with a note that says which; else 0."""
    wrong = fault(found)
    note(wrong, text, advice)
    return wrong


def other_times(network: Asked, expected: list[int]) -> float:
    """Infinite unless the network was asked at just these times, in this order."""
    short = [times if len(times) < 14 else [*times[:4], "...", *times[-4:]] for times in (network.t, expected)]
    told = "The network was asked at t = {}, where {} is expected.".format(*short)
    return broken(network.t != expected, told, "Look at the loop, and at what eps_model is given.")
