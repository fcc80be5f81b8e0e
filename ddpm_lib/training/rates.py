"""Courses of the learning rate: each a factor of it, as a function of the steps done."""

import math
from collections.abc import Callable

from ddpm_lib.training.loop import linear_rate

Rate = Callable[[int], float]


def cosine_rate(warmup: int, steps: int, final: float = 0.0) -> Rate:
    """Eq. 12.1 (cosine rate). final + (1 − final)·(1 + cos πu)/2, u from 0 after the warm-up to 1 at `steps`.

    The warm-up is that of `linear_rate`; after `steps` it stays at `final`. Raises nothing.
    Source: Loshchilov and Hutter 2017 (SGDR), Eq. 5, one cycle of it.
    """
    rising = linear_rate(warmup, steps, 1.0)

    def rate(done: int) -> float:
        if done < warmup:
            return rising(done)
        u = min(1.0, (done - warmup) / max(1, steps - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * u)) / 2

    return rate


def inverse_sqrt_rate(warmup: int, steps: int, final: float = 0.0) -> Rate:
    """Eq. 12.2 (inverse-square-root rate). √(w/(w + k)) at the k-th step after a warm-up of w ≥ 1 steps, but ≥ final.

    It needs no end: `steps` is not looked at, so a run can go on for as long as one likes, and quadrupling its length
    halves the rate. Source: Vaswani et al. 2017, section 5.3, up to a factor; Karras et al. 2024, section 2.3.
    """
    rising, w = linear_rate(warmup, steps, 1.0), max(1, warmup)

    def rate(done: int) -> float:
        return rising(done) if done < warmup else max(final, math.sqrt(w / (w + done - warmup)))

    return rate


COURSES: dict[str, Callable[[int, int, float], Rate]] = {
    "linear": linear_rate,  # constant where final = 1
    "cosine": cosine_rate,
    "inverse-sqrt": inverse_sqrt_rate,
}
