"""The noise schedule: the tables β, α, ᾱ with t = 0..T, and the one door through which code reads them."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddpm_lib.devices import to_device


class Schedule:
    """The tables of a diffusion with T steps, indexed by the book's t: entry 0 is clean data, 1..T are the steps.

    `beta`, `alpha` and `alpha_bar` are float64 tensors of shape (T+1,) on the CPU, with `beta[0] = 0` and
    `alpha_bar[0] = 1`. Read them through a `coefficient`, which checks t and casts after computing.
    """

    def __init__(self, beta: Tensor | Sequence[float], *, zero_terminal: bool = False):
        """`beta`: the T values β_1..β_T, each in (0, 1). Raises ValueError otherwise.

        zero_terminal: β_T may be 1. Then ᾱ_T = 0 and x_T is noise alone, in which no ε tells what the image was.
        """
        beta = torch.as_tensor(beta, dtype=torch.float64, device="cpu").detach()
        if beta.ndim != 1 or len(beta) < 1:
            raise ValueError(f"beta must be the T values beta_1..beta_T, shape (T,); got shape {tuple(beta.shape)}")
        outside = ~((beta > 0) & (beta < 1))
        if zero_terminal:
            outside[-1] &= beta[-1] != 1
        if outside.any():
            t = int(outside.nonzero()[0]) + 1
            raise ValueError(
                f"every beta must lie strictly between 0 and 1; beta[{t}] of T = {len(beta)} is {beta[t - 1]:.6g}. "
                "(A linear schedule whose ends are scaled by 1000/T reaches 1 at T <= 20: use more steps, "
                "smaller ends, or the cosine schedule.)"
            )
        self.beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta])
        self.alpha = 1 - self.beta
        self.alpha_bar = cumulative_alpha(self.beta)
        self._tables: dict = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_tables": {}}  # a copy reads its own tables

    @property
    def T(self) -> int:
        return len(self.beta) - 1

    def __repr__(self) -> str:
        first, last, left = self.beta[1], self.beta[-1], self.alpha_bar[-1]
        return f"Schedule(T={self.T}, beta {first:.3g} to {last:.3g}, alpha_bar[T]={left:.3g})"


def cumulative_alpha(beta: Tensor) -> Tensor:
    """Eq. 3.3 (cumulative alpha). ᾱ_t = (1 − β_1)(1 − β_2)…(1 − β_t), with ᾱ_0 = 1.

    beta: (T+1,) with beta[0] = 0. Returns ᾱ, shape (T+1,), in (0, 1] and decreasing.
    Source: Ho et al. 2020, below their Eq. 3.
    """
    return torch.cumprod(1 - beta, dim=0)


def linear_schedule(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """Eq. 3.2 (linear schedule). β_t = β_1 + (t − 1)/(T − 1)·(β_T − β_1) for t = 1..T.

    T: at least 2. The ends are reached exactly and are not rescaled with T. Raises ValueError where a β leaves (0, 1).
    Source: Ho et al. 2020, section 4 (T = 1000, β_1 = 1e-4, β_T = 0.02).
    """
    if T < 2:
        raise ValueError(f"a linear schedule has two ends, so T must be at least 2; got T = {T}")
    return Schedule(torch.linspace(beta_1, beta_T, T, dtype=torch.float64))


def coefficient(function: Callable[[Schedule, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The one door to the tables: makes f(schedule, t), written in float64 for t = 1..T, safe for any t, device, dtype.

    The decorated function is called as `f(schedule, t)` or `f(schedule, t, like=x)`.
    t: an int, or an integer tensor of any shape; with `like`, an int or shape (B,).
    like: a floating-point tensor (B, ...). Returns f in float64 with t's shape; with `like`, in like's dtype, on like's
    device, shaped to broadcast against it: (B, 1, ..., 1), or a scalar for an int t. It is computed in float64 for all
    t, cast, moved and cached, so a read costs one indexing.
    Raises TypeError for a t that is not an integer, and ValueError for an int, or a t on the CPU, outside 1..T.
    A t on an accelerator is never read by the host, which would make the device wait: there a t outside 1..T gives
    NaN, never a number, and training stops at a loss that is not finite.
    """

    @functools.wraps(function)
    def read(schedule: Schedule, t: int | Tensor, like: Tensor | None = None) -> Tensor:
        index = _checked(t.cpu() if like is None and isinstance(t, Tensor) else t, schedule.T)
        if like is None:
            return function(schedule, torch.as_tensor(index, device="cpu"))
        if not like.is_floating_point():
            raise TypeError(f"like must be a floating-point tensor, got {like.dtype}")
        key = (function, like.device, like.dtype)
        if key not in schedule._tables:
            with torch.inference_mode(False):  # or a table first read there could not be used in training
                nan = torch.full((1,), torch.nan, dtype=torch.float64)
                table = function(schedule, torch.arange(1, schedule.T + 1))
                schedule._tables[key] = torch.cat([nan, table, nan]).to(like.dtype).to(like.device)
        table = schedule._tables[key]
        if isinstance(index, int):
            return table[index]
        if index.ndim and tuple(index.shape) != tuple(like.shape[:1]):
            raise ValueError(f"t has shape {tuple(index.shape)}; expected ({like.shape[0]},), one t per example")
        values = table[to_device(index, like.device).clamp(0, schedule.T + 1)]
        return values.reshape(index.shape + (1,) * (like.ndim - index.ndim)) if index.ndim else values

    return read


def _checked(t: int | Tensor, T: int) -> int | Tensor:
    if isinstance(t, bool) or not (isinstance(t, int) or isinstance(t, Tensor)):
        raise TypeError(f"t must be an int or an integer tensor, got {type(t).__name__}")
    if isinstance(t, Tensor):
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"t must be an integer tensor, got {t.dtype}")
        t = t.long()
        if t.device.type != "cpu" or t.numel() == 0:
            return t
        low, high = (int(end) for end in t.aminmax())
    else:
        low = high = t
    if low < 1 or high > T:
        raise ValueError(f"t must lie in 1..{T} (t = 0 is clean data); got {low if low < 1 else high}")
    return t
