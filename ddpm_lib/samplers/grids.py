"""The ways in use to choose the times that a fast sampler visits."""

import numpy as np

from ddpm_lib.samplers.ddim import strided_t


def grid_of_t(T: int, steps: int, spacing: str) -> list[int]:
    """The ways in use to choose `steps` + 1 times, from the first at which the network is asked down to 0.

    "even": `strided_t`. "quadratic": T·(i/steps)², rounded, and at least i: short steps near 0 (Song et al. 2021,
    appendix D.2; their code, ermongroup/ddim, goes no higher than 0.8·T).
    As `diffusers` means them, in our t (theirs is t − 1), with the end 0 (theirs are floats, whose rounding moves some
    times by 1, and gives a "trailing" grid of T = 100 and 29 steps a thirtieth time):
    "trailing": `strided_t` with halves rounded to the even number, so that the two are one where steps divides T.
    "leading": 1, 1 + k, 1 + 2·k, ... with k = ⌊T/steps⌋; unless steps = T the network is never asked at T.
    "linspace": from T to 1, evenly, then a step from 1 to 0; for steps = 1 it is t = 1 alone.
    Raises ValueError for another name, or unless 1 <= steps <= T.
    Source: DDIMScheduler.set_timesteps of huggingface/diffusers; the names are those of Lin et al. 2024, Table 2.
    """
    even, i = strided_t(T, steps), np.arange(steps, 0, -1)
    grids = {
        "even": even[:-1],
        "quadratic": np.maximum(i, np.round(T * (i / steps) ** 2)),
        "trailing": np.round(T * i / steps),  # numpy rounds halves to even numbers
        "leading": 1 + (i - 1) * (T // steps),
        "linspace": 1 + np.round((T - 1) * (i - 1) / max(steps - 1, 1)),
    }
    if spacing not in grids:
        raise ValueError(f"expected a spacing among {', '.join(grids)}; got {spacing!r}")
    return [int(t) for t in grids[spacing]] + [0]
