"""The check of chapter 0: the first equation, mixing an image with noise."""

import torch

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.guard import Watched, until

NUMBERS = 200_000
NEVER = 1000.0  # the |z| of what does not happen by chance


@check(
    "0.1",
    "mixing with noise",
    "identity",
    "variance and correlation of 200,000 draws, and weights by least squares",
)
@until(15)
def mixing_with_noise(f):
    """f(x, eps, beta) mixes x with eps, both of variance 1: it stays 1, and the noise has the share β of it."""
    f = Watched(f)
    x, eps = torch.randn(2, NUMBERS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for beta in (0.1, 0.5, 0.9):
        y = f(x, eps, beta)
        share = float(torch.corrcoef(torch.stack([y, eps]))[0, 1]) ** 2
        z_var = (float(y.var()) - 1) / (2 / NUMBERS) ** 0.5
        z_share = (share - beta) / (2 * beta**0.5 * (1 - beta) / NUMBERS**0.5)
        yield largest(abs(z_var), abs(z_share))
    # No draws can tell a variance of 1 from one of 1.001. So look at the weights themselves, on a few images.
    both = torch.stack([x[:240], eps[:240]], dim=1)
    both[:2] *= 100
    for beta in (1e-12, 1e-3, 0.37, 1 - 1e-6):
        y = f(*(part.reshape(3, 2, 5, 8) for part in both.T), beta).reshape(240, 1)
        weights = torch.linalg.lstsq(both, y).solution
        of_x, of_eps = weights.flatten().tolist()
        off = largest(apart(both @ weights, y), abs(of_x**2 + of_eps**2 - 1), abs(of_eps**2 / beta - 1))
        yield 5 * off / 1e-9 if min(of_x, of_eps) > 0 else NEVER
    yield f.fault


@mixing_with_noise.states
def _(x, eps, beta):
    return (1 - beta) ** 0.5 * x + beta**0.5 * eps


@mixing_with_noise.wrong(
    "weights 1 − β and β, as for averages", seen="no public source: a plausible slip", idea="power"
)
def _(x, eps, beta):
    return (1 - beta) * x + beta * eps


@mixing_with_noise.wrong(
    "the noise is added and the image not shrunk",
    seen="no public source: a plausible slip (the variance then grows with every step)",
    idea="term",
)
def _(x, eps, beta):
    return x + beta**0.5 * eps


@mixing_with_noise.wrong(
    "√β and √(1 − β²), as for a sine and a cosine", seen="no public source: a plausible slip", idea="power"
)
def _(x, eps, beta):
    return (1 - beta**2) ** 0.5 * x + beta**0.5 * eps


@mixing_with_noise.wrong(
    "the image is thrown away",
    seen="no public source: a plausible slip (passes every check that looks at the variance alone)",
    idea="term",
)
def _(x, eps, beta):
    return eps


@mixing_with_noise.wrong(
    "the image turned into its negative", seen="no public source: of two roots the negative one", idea="sign"
)
def _(x, eps, beta):
    return -((1 - beta) ** 0.5) * x + beta**0.5 * eps


@mixing_with_noise.wrong("a share of at least 1e-4", seen="no public source: a clamp for stability", idea="edge")
def _(x, eps, beta):
    beta = max(beta, 1e-4)
    return (1 - beta) ** 0.5 * x + beta**0.5 * eps


@mixing_with_noise.wrong("cut off at −6 and 6", seen="no public source: a clamp for stability", idea="edge")
def _(x, eps, beta):
    return ((1 - beta) ** 0.5 * x + beta**0.5 * eps).clamp(-6, 6)
