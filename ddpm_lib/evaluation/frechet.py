"""The Fréchet distance from means and covariances, which can be summed up batch by batch, and how far N biases it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lib.evaluation.metrics import between_gaussians
from ddpm_lib.evaluation.neighbours import rows


def gaussian_distance(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> float:
    """Eq. 15.1 (distance of Gaussians). |m − m'|² + tr(C + C' − 2·(C^½·C'·C^½)^½), in squared feature units.

    mean, other_mean: (D,); cov, other_cov: (D, D), symmetric and without negative eigenvalues, singular ones allowed.
    Computed in float64. Raises ValueError for other shapes, or a covariance that is not symmetric.
    Source: Dowson and Landau 1982; Heusel et al. 2017, Eq. 6 (m_w, C_w are ours primed). With the pool3 features of
    Inception it is FID, with others it is not.
    """
    mean, cov, other_mean, other_cov = (x.detach().double() for x in (mean, cov, other_mean, other_cov))
    square = (len(mean), len(mean)) if mean.ndim == 1 else ()
    if not square or other_mean.shape != mean.shape or not cov.shape == other_cov.shape == square:
        shapes = ", ".join(str(tuple(x.shape)) for x in (mean, cov, other_mean, other_cov))
        raise ValueError(f"expected means (D,) and covariances (D, D); got {shapes}")
    for matrix in (cov, other_cov):
        if not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * float(matrix.abs().max())):
            raise ValueError("expected symmetric covariances")
    return between_gaussians(mean, cov, other_mean, other_cov)


def frechet_bias(cov: Tensor, other_cov: Tensor, n: float, m: float = float("inf")) -> float:
    """Eq. 15.2 (bias of the distance). By how much it is too large on average, to first order in 1/n and 1/m.

    cov, other_cov: (D, D), of the two Gaussians that n and m features are drawn from; inf: its statistics are exact.
    With the eigenvalues s_i² of C^½·C'·C^½, B = ½·[Σ_ij s_i·s_j/(s_i + s_j) + ½·Σ_i s_i], it is
    (tr C + B)/n + (tr C' + B)/m: of the order of D². Terms in 1/n² are left out, and features that are no Gaussians.
    """
    cov, other_cov = cov.double(), other_cov.double()
    value, vector = torch.linalg.eigh(cov)
    root = vector * value.clamp(min=0).sqrt() @ vector.T
    s = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt()
    together = s[:, None] + s
    curved = (s[:, None] * s / together.where(together > 0, 1.0)).sum() / 2 + s.sum() / 4
    return float((cov.trace() + curved) / n + (other_cov.trace() + curved) / m)


@dataclass(frozen=True)
class Moments:
    """Mean, (D,), and covariance, (D, D), of `count` features: all that the Fréchet distance asks of a set."""

    mean: Tensor
    cov: Tensor
    count: int

    @classmethod
    def of(cls, batches: Tensor | Iterable[Tensor]) -> "Moments":
        """Of features (N, D), or of batches of them, one after the other, of which none is kept.

        Each batch's mean and squares are joined to what is there (no squares of large means are subtracted).
        """
        count, mean, scatter = 0, None, None
        for batch in [batches] if isinstance(batches, Tensor) else batches:
            (batch,) = rows(batch)
            own, n = batch.mean(0), len(batch)
            if n == 0:
                continue
            spread = (batch - own).T @ (batch - own)
            if mean is None:
                count, mean, scatter = n, own, spread
                continue
            gap, total = own - mean, count + n
            scatter = scatter + spread + torch.outer(gap, gap) * (count * n / total)
            mean, count = mean + gap * (n / total), total
        if count < 2:
            raise ValueError(f"expected at least 2 features, got {count}")
        return cls(mean, scatter / (count - 1), count)

    def distance(self, other: "Moments") -> float:
        """The distance of the Gaussians with these moments."""
        return gaussian_distance(self.mean, self.cov, other.mean, other.cov)
