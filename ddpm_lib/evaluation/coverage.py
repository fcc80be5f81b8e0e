"""Is each sample like the data, and is all of the data there? Balls around the points of one set hold the other's."""

from torch import Tensor

from ddpm_lib.evaluation.neighbours import inside, kth_radius


def precision_and_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Eq. 15.4 (precision and recall). Shares: of fake points in some real point's ball, and the other way round.

    real: (N, D), fake: (M, D), N, M > k. A ball reaches to the k-th nearest other point of the same set, which it
    holds. Source: Kynkäänniemi et al. 2019, Eq. 1 to 3.
    """
    _enough(real, fake, k)
    in_real, _ = inside(fake, real, kth_radius(real, k))
    in_fake, _ = inside(real, fake, kth_radius(fake, k))
    return _share(in_real), _share(in_fake)


def density_and_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Eq. 15.5 (density and coverage). Real balls that hold a fake point, over k; real balls that hold one at all.

    real: (N, D), N > k; fake: (M, D). Density is the mean over the fake points, and may be above 1; coverage is a
    share of the real points. For two draws from one law both have known values: density 1, coverage 1 − (1 − …), see
    `expected_coverage`. Source: Naeem et al. 2020, Eq. 4 and 5.
    """
    _enough(real, real, k)
    balls, points = inside(fake, real, kth_radius(real, k))
    return float(balls.double().mean()) / k, _share(points)


def expected_coverage(n: int, m: int, k: int = 5) -> float:
    """The mean coverage of n real points by m others from the same law: 1 − Π_{i<k} (n − 1 − i)/(n + m − 1 − i).

    A ball stays empty if its point's k nearest, of the n − 1 + m others, are all real. Source: Naeem et al. 2020.
    """
    empty = 1.0
    for i in range(k):
        empty *= (n - 1 - i) / (n + m - 1 - i)
    return 1 - empty


def _enough(real: Tensor, fake: Tensor, k: int) -> None:
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"expected 1 <= k < the number of points; got k = {k}, {len(real)} real, {len(fake)} fake")


def _share(counts: Tensor) -> float:
    return float((counts > 0).double().mean())
