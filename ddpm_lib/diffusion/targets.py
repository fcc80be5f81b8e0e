"""What a network may predict, ε, x_0, v or the score, and how each of them is turned into the noise estimate ε.

All four say the same thing about a given x_t: each is a linear function of x_t and any other.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddpm_lib.diffusion.forward import noise_std, signal_scale
from ddpm_lib.diffusion.schedule import Schedule


def x_0_from_eps(schedule: Schedule, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 6.5 (clean image from noise). x_0 = (x_t − √(1 − ᾱ_t)·ε)/√ᾱ_t: the image that a noise estimate implies.

    x_t, eps: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns (B, ...), not clipped.
    Near t = T an error in ε is multiplied by √(1 − ᾱ_t)/√ᾱ_t (157 for the linear schedule).
    Source: Ho et al. 2020, Eq. 15.
    """
    return (x_t - noise_std(schedule, t, like=x_t) * eps) / signal_scale(schedule, t, like=x_t)


def eps_from_x_0(schedule: Schedule, x_t: Tensor, x_0: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 6.6 (noise from clean image). ε = (x_t − √ᾱ_t·x_0)/√(1 − ᾱ_t), the inverse of Eq. 6.5 in ε.

    x_t, x_0: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns (B, ...).
    Near t = 1 an error in x_0 is multiplied by √ᾱ_t/√(1 − ᾱ_t) (100 for the linear schedule).
    """
    return (x_t - signal_scale(schedule, t, like=x_t) * x_0) / noise_std(schedule, t, like=x_t)


def v_from_eps(schedule: Schedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 6.7 (velocity). v = √ᾱ_t·ε − √(1 − ᾱ_t)·x_0: how x_t moves on its circle from x_0 to ε.

    x_0, eps: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns (B, ...).
    Source: Salimans and Ho 2022, appendix D; their α_t and σ_t are our √ᾱ_t and √(1 − ᾱ_t).
    """
    return signal_scale(schedule, t, like=x_0) * eps - noise_std(schedule, t, like=x_0) * x_0


def eps_from_v(schedule: Schedule, x_t: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 6.8 (noise from velocity). ε = √(1 − ᾱ_t)·x_t + √ᾱ_t·v. (And x_0 = √ᾱ_t·x_t − √(1 − ᾱ_t)·v.)

    x_t, v: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns (B, ...). Both factors are at
    most 1, so an error in v is never magnified.
    """
    return noise_std(schedule, t, like=x_t) * x_t + signal_scale(schedule, t, like=x_t) * v


def score_from_eps(schedule: Schedule, eps: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 6.9 (score from noise). ∇_{x_t} log q(x_t|x_0) = −ε/√(1 − ᾱ_t); from E[ε|x_t] it gives ∇ log q(x_t).

    eps: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns (B, ...).
    Source: Song and Ermon 2019, Eq. 5 (their σ is our √(1 − ᾱ_t), for data that are not shrunk).
    """
    return -eps / noise_std(schedule, t, like=eps)


def eps_from_score(schedule: Schedule, score: Tensor, t: int | Tensor) -> Tensor:
    """ε = −√(1 − ᾱ_t)·score, the inverse of Eq. 6.9. score: (B, ...); t: an int or (B,). Returns (B, ...)."""
    return -noise_std(schedule, t, like=score) * score


@dataclass(frozen=True)
class Target:
    """One thing that a network may predict.

    of(schedule, x_0, eps, t): its true value, which training compares with. to_eps(schedule, x_t, value, t): the
    noise estimate that a value of it implies. weight(schedule, t, like): by which its squared error is multiplied in
    a loss, where it would be unbounded otherwise; None is 1. All tensors: (B, ...); t: (B,).
    """

    of: Callable[[Schedule, Tensor, Tensor, Tensor], Tensor]
    to_eps: Callable[[Schedule, Tensor, Tensor, Tensor], Tensor]
    weight: Callable[[Schedule, Tensor, Tensor], Tensor] | None = None


TARGETS = {
    "eps": Target(of=lambda schedule, x_0, eps, t: eps, to_eps=lambda schedule, x_t, eps, t: eps),
    "x_0": Target(of=lambda schedule, x_0, eps, t: x_0, to_eps=eps_from_x_0),
    "v": Target(of=v_from_eps, to_eps=eps_from_v),
    "score": Target(
        of=lambda schedule, x_0, eps, t: score_from_eps(schedule, eps, t),
        to_eps=lambda schedule, x_t, score, t: eps_from_score(schedule, score, t),
        weight=lambda schedule, t, like: noise_std(schedule, t, like=like) ** 2,  # Song and Ermon 2019, section 4.2
    ),
}


def find_target(name: str) -> Target:
    """The target of this name. Raises ValueError, listing the names there are, for any other."""
    if name not in TARGETS:
        raise ValueError(f"expected a target among {', '.join(TARGETS)}; got {name!r}")
    return TARGETS[name]


def as_eps_model(model: Callable[..., Tensor], schedule: Schedule, target: str) -> Callable[..., Tensor]:
    """A model that predicts `target` (one of TARGETS) as one that predicts ε, which bounds and samplers call.

    Raises ValueError for an unknown target.
    """
    to_eps = find_target(target).to_eps

    def eps_model(x_t: Tensor, t: int | Tensor, *arguments, **options) -> Tensor:
        return to_eps(schedule, x_t, model(x_t, t, *arguments, **options), t)

    return eps_model
