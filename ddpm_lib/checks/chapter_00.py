"""The check of chapter 0: the first equation, mixing an image with noise."""

import torch

from ddpm_lib.checks import check, largest


@check("0.1", "mixing with noise", "identity", "variance and correlation of 200,000 draws")
def mixing_with_noise(f):
    """f(x, eps, beta) mixes x with eps, both of variance 1: it stays 1, and the noise has the share β of it."""
    n, worst = 200_000, 0.0
    x, eps = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for beta in (0.1, 0.5, 0.9):
        y = f(x, eps, beta)
        share = float(torch.corrcoef(torch.stack([y, eps]))[0, 1]) ** 2
        z_var = (float(y.var()) - 1) / (2 / n) ** 0.5
        z_share = (share - beta) / (2 * beta**0.5 * (1 - beta) / n**0.5)
        worst = largest(worst, abs(z_var), abs(z_share))
    return worst


@mixing_with_noise.states
def _(x, eps, beta):
    return (1 - beta) ** 0.5 * x + beta**0.5 * eps


@mixing_with_noise.wrong("weights 1 − β and β, as for averages", seen="a natural first guess")
def _(x, eps, beta):
    return (1 - beta) * x + beta * eps


@mixing_with_noise.wrong("the noise is added and the image not shrunk", seen="the variance then grows with every step")
def _(x, eps, beta):
    return x + beta**0.5 * eps


@mixing_with_noise.wrong("√β and √(1 − β²), as for a sine and a cosine", seen="a slip of the pen")
def _(x, eps, beta):
    return (1 - beta**2) ** 0.5 * x + beta**0.5 * eps


@mixing_with_noise.wrong("the image is thrown away", seen="passes every check that looks at the variance alone")
def _(x, eps, beta):
    return eps
