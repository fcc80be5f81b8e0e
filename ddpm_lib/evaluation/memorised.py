"""Are samples copies of training images? Only beside held-out images can one tell: they are near to some, too."""

import torch
from torch import Tensor

from ddpm_lib.evaluation.neighbours import nearest


def copying_score(fake: Tensor, held_out: Tensor, train: Tensor) -> tuple[float, float]:
    """Eq. 15.6 (copying score). Mann and Whitney's test on distances to the nearest training point.

    fake: (M, D), held_out: (N, D), train: (L, D). Returns z and the probability that a sample is nearer to the training
    set than a held-out image is, ties counting half. Where fake and held_out come from one law, z is N(0, 1) for large
    sets, and the probability 0.5; copies make z negative. U counts the pairs in which the sample is farther away, ties
    half; ties take their part from the variance.
    Source: Meehan et al. 2020, §4 (theirs is a weighted mean over cells of the space, ours has one cell).
    """
    if not (len(fake) and len(held_out)):
        raise ValueError("expected samples and held-out images, got an empty set")
    x, y = (nearest(points, train)[0] for points in (fake, held_out))
    m, n = len(x), len(y)
    reference = y.sort().values
    below, up_to = (torch.searchsorted(reference, x, right=right).double() for right in (False, True))
    U = float((below + up_to).sum()) / 2
    _, counts = torch.cat([x, y]).unique(return_counts=True)
    ties = float((counts.double() ** 3 - counts).sum()) / ((m + n) * max(m + n - 1, 1))
    var = m * n / 12 * (m + n + 1 - ties)
    return (U - m * n / 2) / var**0.5 if var > 0 else 0.0, 1 - U / (m * n)


def share_below(fake: Tensor, held_out: Tensor, train: Tensor, quantile: float = 0.05) -> float:
    """The share of samples nearer to the training set than all but `quantile` of the held-out images; `quantile`
    itself where nothing is copied. It sees a few copies among many samples, which a mean over all does not.
    """
    x, y = (nearest(points, train)[0] for points in (fake, held_out))
    return float((x < y.quantile(quantile)).double().mean())
