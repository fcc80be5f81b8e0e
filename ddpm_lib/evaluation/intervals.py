"""Every number with its interval: of a share, of any metric of a set of samples, and over training seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """A number, between which two it lies by what was repeated, and of what it is: it prints all of that.

    how: what the interval covers, and by which method; features: a `Features`' name; real, fake: how many images.
    """

    name: str
    value: float
    low: float
    high: float
    how: str
    features: str = ""
    real: int = 0
    fake: int = 0

    def __str__(self) -> str:
        of = f"; {self.features}" if self.features else ""
        counts = " against ".join(f"{n:,}" for n in (self.fake, self.real) if n)
        return f"{self.name} {_short(self)} ({self.how}{of}{'; ' if counts else ''}{counts})"

    def differs_from(self, other: "Measured") -> bool:
        """Whether two independent numbers differ by more than both intervals together explain (a square's root)."""
        near, far = sorted((self, other), key=lambda m: m.value)
        return far.value - near.value > math.hypot(near.high - near.value, far.value - far.low)


def share_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Eq. 15.7 (interval of a share). All p for which `hits` of n is less than z deviations from n·p.

    Both ends lie in [0, 1], also for 0 or n hits, where p̂ ± z·deviation has no width. 0 <= hits <= n, n >= 1, level
    in (0, 1) (ValueError otherwise). Source: Wilson 1927.
    """
    if not (0 <= hits <= n and n >= 1 and 0 < level < 1):
        raise ValueError(f"expected 0 <= hits <= n, n >= 1 and a level in (0, 1); got {hits} of {n} at {level}")
    z, share = stats.norm.isf((1 - level) / 2), hits / n
    middle, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def jackknife_std(
    metric: Callable[[Tensor], float],
    samples: Tensor,
    groups: int = 20,
    seed: int = 0,
    *,
    strata: Tensor | None = None,
) -> float:
    """Eq. 15.8 (jackknife). The standard deviation of metric(samples) over draws of the samples, (N, ...).

    The metric is taken `groups` times, each time without one of so many random groups, all of nearly the same size:
    no sample occurs twice, as it does in a bootstrap, whose copies a covariance and a nearest neighbour take for real.
    Groups are random since samples are often sorted by their labels. 2 <= groups <= N (ValueError otherwise).
    strata: labels, (N,), whose counts were fixed before the draw (so many samples of each class): then every group gets
    as many of each label, for chance moves none of the counts; without it the deviation would be too large. Raises
    ValueError where a count is no multiple of `groups`.
    Source: Quenouille 1956; Tukey 1958; with groups: Efron and Tibshirani 1993, §11.
    """
    if not 2 <= groups <= len(samples):
        raise ValueError(f"expected 2 <= groups <= the number of samples, {len(samples)}; got {groups}")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    if strata is None:
        parts = order.tensor_split(groups)
    else:
        if (strata.unique(return_counts=True)[1] % groups).any():
            raise ValueError(f"expected {groups} groups to divide the count of every label, see strata")
        order = order[strata.cpu()[order].argsort(stable=True)]  # label by label, in a random order within each
        parts = [order[i::groups] for i in range(groups)]
    without = [torch.cat([p for j, p in enumerate(parts) if j != i]).to(samples.device) for i in range(groups)]
    values = torch.tensor([metric(samples[kept]) for kept in without], dtype=torch.float64)
    return float(((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt())


def seed_variances(values: Tensor) -> tuple[float, float]:
    """Eq. 15.9 (two kinds of seeds). The variance of a metric over training seeds, and over draws of the samples.

    values: (S, R), float64: R sets of samples of each of S trainings; S, R >= 2 (ValueError otherwise). Both are
    unbiased: the variance within a row is that of the draws, and a row's mean has a part R of it, which is taken off.
    So the first may come out below 0, where retraining moves nothing. Source: one-way analysis of variance.
    """
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"expected values (trainings, draws), two of each at least; got {tuple(values.shape)}")
    values = values.double()
    drawn = float(values.var(1).mean())
    return float(values.mean(1).var()) - drawn / values.shape[1], drawn


def measured_share(name: str, hits: int, n: int, **about: str | int) -> Measured:
    """A share with Wilson's interval."""
    return Measured(name, hits / n, *share_interval(hits, n), how="95 %, Wilson", **about)


def measured(
    name: str,
    metric: Callable[[Tensor], float],
    samples: Tensor,
    groups: int = 20,
    strata: Tensor | None = None,
    **about: str | int,
) -> Measured:
    """metric(samples) with the interval over draws of the samples, by the jackknife and Student's t.

    strata: see `jackknife_std`.
    """
    value = metric(samples)
    reach = stats.t.ppf(0.975, groups - 1) * jackknife_std(metric, samples, groups, strata=strata)
    return Measured(name, value, value - reach, value + reach, how="95 %, jackknife", **about)


def over_seeds(name: str, values: Sequence[float], **about: str | int) -> Measured:
    """The mean over trainings from several seeds, two at least, with Student's interval for it."""
    if len(values) < 2:
        raise ValueError(f"expected two values at least, one of each training; got {len(values)}")
    row = torch.tensor(values, dtype=torch.float64)
    reach = stats.t.ppf(0.975, len(row) - 1) * float(row.std()) / len(row) ** 0.5
    mean = float(row.mean())
    return Measured(name, mean, mean - reach, mean + reach, how=f"95 %, {len(row)} training seeds", **about)


def _short(m: Measured) -> str:
    """The three numbers, to two digits of the interval's width."""
    width = m.high - m.low
    digits = min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 and math.isfinite(width) else 3
    value, low, high = (round(x, digits) + 0.0 for x in (m.value, m.low, m.high))  # no −0.00
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
