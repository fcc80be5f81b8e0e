"""Loss weights that count no step for more than γ: min-SNR, for each thing that a network may predict."""

import functools
from collections.abc import Callable

from torch import Tensor

from ddpm_lib.diffusion.forward import snr
from ddpm_lib.diffusion.schedule import Schedule, coefficient


def min_snr_weight(
    schedule: Schedule, t: int | Tensor, target: str = "eps", gamma: float = 5.0, like: Tensor | None = None
) -> Tensor:
    """Eq. 9.7 (min-SNR weight). min(SNR, γ)/SNR for ε, min(SNR, γ) for x_0, min(SNR, γ)/(SNR + 1) for v.

    Times the squared error of the target, each is min(SNR, γ) times the squared error of x_0. Finite for SNR = 0.
    t: an int or an integer tensor, in 1..T. Returns float64, shaped like t; with `like` (the losses, say) in its dtype
    and on its device, as any `coefficient`. Raises ValueError for another target, or gamma ≤ 0.
    Source: Hang et al. 2023, section 3.4 and their code.
    """
    if target not in _OVER or gamma <= 0:
        raise ValueError(f"expected a target among {', '.join(_OVER)} and gamma > 0; got {target!r} and {gamma:g}")
    return _weight(target, float(gamma))(schedule, t, like=like)


# min(a, γ)/b, written so that SNR = 0 does not become 0/0
_OVER: dict[str, Callable[[Tensor, float], Tensor]] = {
    "eps": lambda ratio, gamma: (gamma / ratio).clamp(max=1),
    "x_0": lambda ratio, gamma: ratio.clamp(max=gamma),
    "v": lambda ratio, gamma: ratio.clamp(max=gamma) / (ratio + 1),
}


@functools.cache
def _weight(target: str, gamma: float) -> Callable[..., Tensor]:
    @coefficient
    def weight(schedule: Schedule, t: Tensor) -> Tensor:
        return _OVER[target](snr(schedule, t), gamma)

    return weight
