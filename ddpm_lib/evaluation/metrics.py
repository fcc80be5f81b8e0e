"""How good are samples? Four numbers on features (here: raw pixels), each with a way to be fooled."""

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from ddpm_lib.evaluation.neighbours import inside, kth_radius, nearest, rows


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """|m − m'|² + tr(C + C' − 2·(C·C')^½) between the Gaussians fitted to two sets of features, (N, D) and (M, D).

    In squared feature units. Biased upwards for small sets, and blind to everything but mean and covariance.
    Source: Heusel et al. 2017, Eq. 6 (with Inception features it is FID).
    """
    if min(real.ndim, fake.ndim) < 2 or real[0].numel() != fake[0].numel() or min(len(real), len(fake)) < 2:
        raise ValueError(
            f"expected two sets of at least 2 features of equal width; got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    real, fake = rows(real, fake)
    return between_gaussians(real.mean(0), torch.cov(real.T), fake.mean(0), torch.cov(fake.T))


def between_gaussians(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> float:
    """|m − m'|² + tr(C + C' − 2·(C·C')^½) of means (D,) and covariances (D, D) in float64. Covariances may be singular.

    The root's trace is that of (C^½·C'·C^½)^½, which is symmetric: its eigenvalues are real, and no root is complex.
    """
    value, vector = torch.linalg.eigh(cov)
    root = vector * value.clamp(min=0).sqrt() @ vector.T
    cross = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum()
    apart = (mean - other_mean).square().sum()
    return max(0.0, float(apart + cov.trace() + other_cov.trace() - 2 * cross))


def recall(real: Tensor, fake: Tensor, k: int = 3) -> float:
    """The share of real points in the k-nearest-neighbour ball of some fake point: how much of the data is covered.

    real: (N, D), fake: (M, D) with M > k. Each fake point's ball reaches its k-th nearest other fake point.
    `recall(fake, real)` is the precision. Source: Kynkäänniemi et al. 2019, Eq. 2.
    """
    if not 1 <= k < len(fake):
        raise ValueError(f"expected 1 <= k < the number of fake points, {len(fake)}; got k = {k}")
    return float((inside(real, fake, kth_radius(fake, k))[0] > 0).double().mean())


def share_of_copies(fake: Tensor, train: Tensor) -> float:
    """The share of fake points closer to their nearest training point than that one is to its own nearest neighbour.

    fake: (M, D), train: (N, D). New data scores well above 0 too: compare with that of held-out data.
    """
    own = kth_radius(train, 1)  # (N,)
    distance, index = nearest(fake, train)
    return float((distance < own[index]).double().mean())


class PixelClassifier:
    """A support-vector classifier on raw pixels (radial kernel), trained once on real images: an examiner of labels."""

    def __init__(self, images: Tensor, labels: Tensor):
        self._svc = SVC(C=10).fit(_rows(images), labels.cpu().numpy())

    def predict(self, images: Tensor) -> Tensor:
        """The label of each image: (N, C, H, W) → (N,), on the CPU."""
        return torch.from_numpy(self._svc.predict(_rows(images)))

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of images, (N, C, H, W), that are recognised as their labels, (N,)."""
        return float((self.predict(images) == labels.cpu()).double().mean())


def gaussian_per_class(
    images: Tensor, labels: Tensor, wanted: Tensor, generator: torch.Generator | None = None, *, clamp: bool = True
) -> Tensor:
    """A baseline: for each label in `wanted`, (M,), a draw from the Gaussian fitted to its class.

    It knows each class's mean and covariance, the very statistics that the Fréchet distance compares, and nothing else.
    clamp: to [−1, 1], as images must be, which moves mean and covariance.
    """
    images, labels, wanted = images.cpu(), labels.cpu(), wanted.cpu()
    samples = torch.empty(len(wanted), *images.shape[1:])
    for label in wanted.unique():
        rows = images[labels == label].double().flatten(1)
        if len(rows) < 2:
            raise ValueError(f"expected at least 2 images of class {int(label)}, got {len(rows)}")
        count, (n, D) = int((wanted == label).sum()), rows.shape
        z = torch.randn(count, min(n, D), generator=generator, dtype=torch.float64)
        if n <= D:  # the rows' own differences from their mean are a root of the covariance, which may be too large
            root = (rows - rows.mean(0)) / (n - 1) ** 0.5
        else:
            value, vector = torch.linalg.eigh(torch.cov(rows.T))
            root = (vector * value.clamp(min=0).sqrt()).T
        drawn = rows.mean(0) + z @ root
        samples[wanted == label] = (drawn.clamp(-1, 1) if clamp else drawn).float().reshape(-1, *images.shape[1:])
    return samples


def _rows(images: Tensor) -> np.ndarray:
    return images.detach().cpu().flatten(1).numpy()
