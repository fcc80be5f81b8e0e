"""The small rules of guidance: past one estimate away from another, in which convention, at which t, how strong."""

import torch
from torch import Tensor

from ddpm_lib.devices import to_device

CONVENTIONS = {  # what to add to a scale of each convention to get s
    "s": 0.0,  # ε_∅ + s·(ε_y − ε_∅), this book's; also s·ε_y + (1 − s)·ε_∅
    "w": 1.0,  # (1 + w)·ε_y − w·ε_∅, also ε_y + w·(ε_y − ε_∅): Ho and Salimans 2022, Eq. 6
    "classifier": 0.0,  # a classifier's gradient, on the unconditional model (Eq. 14.3)
    "classifier on conditional": 1.0,  # the same on the conditional model
}


def towards(positive: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    """negative + s·(positive − negative): on the line through both, s = 0 the one, 1 the other, and above 1 beyond it.

    positive, negative: (B, ...). scale: s, a number or one per example, (B,). Returns (B, ...), in positive's dtype.
    """
    return negative + shaped(scale, like=positive) * (positive - negative)


def cfg_scale(value: float, convention: str) -> float:
    """Eq. 14.6 (conversion of scales). s = w + 1: the scale s of Eq. 14.5 that does what `value` does elsewhere.

    convention: one of CONVENTIONS, which says what each of them means; those of a classifier hold for an exact one.
    Raises ValueError for another name.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"expected a convention among {', '.join(CONVENTIONS)}; got {convention!r}")
    return value + CONVENTIONS[convention]


def interval_scale(scale: float | Tensor, t: Tensor, interval: tuple[int, int] | None) -> Tensor:
    """Eq. 14.9 (guidance interval). s where low <= t <= high, both ends included, else 1: one per example, (B,).

    scale: a number or (B,); t: (B,), in 1..T; interval: (low, high), or None for every t. Returns the scale's dtype
    (float64 of a number), on t's device.
    Raises ValueError unless 0 <= low <= high.
    Source: Kynkäänniemi et al. 2024, section 3; their interval is one of noise levels, √((1 − ᾱ_t)/ᾱ_t) in our symbols.
    """
    checked_interval(interval)
    scale = to_device(torch.as_tensor(scale, dtype=None if isinstance(scale, Tensor) else torch.float64), t.device)
    scale = scale.expand(t.shape)
    if interval is None:
        return scale
    low, high = interval
    return torch.where((t >= low) & (t <= high), scale, torch.ones_like(scale))


def checked_interval(interval: tuple[int, int] | None) -> tuple[int, int] | None:
    """The interval, if it is one. Raises ValueError otherwise."""
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
        raise ValueError(f"expected an interval (low, high) of t with 0 <= low <= high; got {interval}")
    return interval


def rescaled(guided: Tensor, conditional: Tensor, rescale: float) -> Tensor:
    """Eq. 14.10 (guidance rescale). φ·g·(std(c)/std(g)) + (1 − φ)·g, g guided, c conditional: each image by itself.

    guided, conditional: estimates, (B, ...). rescale: φ in [0, 1]; 0 leaves g as it is, 1 gives it the conditional
    estimate's standard deviation, over all entries of an image together. Returns (B, ...). Where all entries of g are
    equal, it has none, and stays as it is.
    Raises ValueError for φ outside [0, 1].
    Source: Lin et al. 2024, section 3.4; their x_cfg is our g, their x_pos our c.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale mixes two estimates and must lie in [0, 1]; got {rescale}")
    of_guided, of_conditional = (x.flatten(1).std(1, correction=0) for x in (guided, conditional))
    rounding = 4 * torch.finfo(guided.dtype).eps * guided.flatten(1).abs().amax(1)
    ratio = torch.where(of_guided > rounding, of_conditional / of_guided, 1.0)
    return guided * shaped(1 + rescale * (ratio - 1), like=guided)


def shaped(scale: float | Tensor, like: Tensor) -> float | Tensor:
    """A scale per example, (B,), as (B, 1, ..., 1), in the dtype and on the device of the estimates."""
    if not isinstance(scale, Tensor):
        return scale
    scale = to_device(scale, like.device).to(like.dtype)
    return scale.reshape(-1, *[1] * (like.ndim - 1)) if scale.ndim else scale
