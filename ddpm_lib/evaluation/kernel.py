"""The kernel distance: an estimate without bias, whatever the number of features."""

import torch
from torch import Tensor

from ddpm_lib.evaluation.neighbours import rows

BLOCK = 2**22  # numbers in a block of the kernel's matrix


def kernel_distance(real: Tensor, fake: Tensor, *, block: int = BLOCK) -> float:
    """Eq. 15.3 (kernel distance). MMD² of two sets of features, (N, D) and (M, D), with k(x, y) = (x·y/D + 1)³.

    The mean of k over pairs of different real ones, plus that of fake ones, minus twice that of mixed pairs: unbiased,
    so below 0 now and then. In blocks and in float64; N, M >= 2 (ValueError otherwise).
    Source: Bińkowski et al. 2018, §3 (with Inception's features it is KID; published numbers are often means over
    subsets of 1000, which has the same expectation and more noise).
    """
    real, fake = rows(real, fake)
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"expected at least 2 features in each set; got {len(real)} and {len(fake)}")
    own = [_sum(x, x, block) - float(_kernel(x.square().sum(1), x.shape[1]).sum()) for x in (real, fake)]
    n, m = len(real), len(fake)
    return own[0] / (n * (n - 1)) + own[1] / (m * (m - 1)) - 2 * _sum(real, fake, block) / (n * m)


def _sum(x: Tensor, y: Tensor, block: int) -> float:
    step = max(1, block // len(y))
    parts = [_kernel(part @ y.T, x.shape[1]).sum() for part in x.split(step)]
    return float(torch.stack(parts).sum())


def _kernel(products: Tensor, dims: int) -> Tensor:
    return (products / dims + 1) ** 3
