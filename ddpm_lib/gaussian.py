"""The normal distribution: its density, products and conditionals, and the divergence between two of them."""

import math

import torch
from torch import Tensor


def log_density(x: Tensor, mean: Tensor | float, var: Tensor | float) -> Tensor:
    """Eq. 1.1 (normal density). log N(x; mean, var) = −½·((x − mean)²/var + log(2π·var)), each entry by itself.

    x: floating-point, any shape; mean and var broadcast against it; var is a variance, > 0, not a deviation or a log.
    Returns nats, in x's dtype and on its device; any real number, positive where the density exceeds 1. Sum over the
    entries of an image for the log-density of the image.
    Raises TypeError for an x of integers, ValueError for a negative variance; a variance of 0 gives NaN.
    Source: Bishop 2006 (Pattern Recognition and Machine Learning), section 1.2.4; his σ² is our var.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
    _refuse_negative(var=var)
    mean, var = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (mean, var))
    return -0.5 * ((x - mean) ** 2 / var + torch.log(2 * math.pi * var))


def product(mean_1: Tensor, var_1: Tensor, mean_2: Tensor, var_2: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1.4 (product of normal densities). Mean, variance of the normal ∝ N(x; mean_1, var_1)·N(x; mean_2, var_2).

    Precisions (1/variance) add, and the mean is the average of the two means, weighted with the precisions. The
    factor in front, ∫ N(x; mean_1, var_1)·N(x; mean_2, var_2) dx, is N(mean_1; mean_2, var_1 + var_2).
    The shapes broadcast. var: variances, ≥ 0, in any unit squared; one of them may be 0 (a point, which then wins).
    Raises ValueError for a negative variance; two variances of 0 give NaN.
    Source: Rasmussen and Williams 2006 (Gaussian Processes for Machine Learning), appendix A.2, in one dimension.
    """
    _refuse_negative(var_1=var_1, var_2=var_2)
    share_1, share_2 = var_2 / (var_1 + var_2), var_1 / (var_1 + var_2)  # of the precision: the smaller variance's wins
    return share_1 * mean_1 + share_2 * mean_2, var_1 * share_1


def condition(mean: Tensor, cov: Tensor, known: list[int], value: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1.5 (conditioning). Mean and covariance of the other entries of x ~ N(mean, cov), given x[known] = value.

    mean: (D,); cov: (D, D), symmetric and positive definite; known: K different indices in −D..D−1, in the order of
    value: (K,). Returns (D − K,) and (D − K, D − K), in the units of x and x²; the others keep their order.
    Raises ValueError for shapes that do not fit, an index out of range or one that occurs twice, and
    torch.linalg.LinAlgError where the covariance of the known entries is not positive definite.
    Source: Bishop 2006, section 2.3.1; his a are our other entries, his b our known ones.
    """
    D, K = mean.numel(), len(known)
    indices = [i % D for i in known if -D <= i < D]
    if mean.shape != (D,) or cov.shape != (D, D) or value.shape != (K,) or len(set(indices)) != K:
        raise ValueError(
            f"expected mean (D,), cov (D, D), different indices in 0..{D - 1} and one value for each; "
            f"got {list(known)}, mean {tuple(mean.shape)}, cov {tuple(cov.shape)} and value {tuple(value.shape)}"
        )
    rest = [i for i in range(D) if i not in indices]
    factor = torch.linalg.cholesky(cov[indices][:, indices])
    gain = torch.cholesky_solve(cov[indices][:, rest], factor).T  # Σ_rk·Σ_kk⁻¹: (D − K, K)
    return mean[rest] + gain @ (value - mean[indices]), cov[rest][:, rest] - gain @ cov[indices][:, rest]


def kl_divergence(
    mean_q: Tensor | float, var_q: Tensor | float, mean_p: Tensor | float, var_p: Tensor | float
) -> Tensor:
    """Eq. 1.6 (KL divergence). KL(N(mean_q, var_q) ‖ N(mean_p, var_p)), each entry by itself.

    ½·(var_q/var_p − 1 − log(var_q/var_p) + (mean_q − mean_p)²/var_p). The shapes broadcast; var: variances, > 0.
    Returns nats, ≥ 0 up to rounding, and 0 where the two are equal (float64 if all four are numbers). Sum over the
    entries for independent ones. A var_q of 0 gives infinity.
    Raises ValueError for a negative variance, which is often a log-variance.
    Source: Bishop 2006, section 1.6.1 (the general definition); his p is our q, and the other way round.
    """
    _refuse_negative(var_q=var_q, var_p=var_p)
    ratio = var_q / var_p
    if not isinstance(ratio, Tensor):
        ratio = torch.tensor(ratio, dtype=torch.float64)
    return 0.5 * (ratio - 1 - torch.log(ratio) + (mean_q - mean_p) ** 2 / var_p)


def kl_divergence_full(mean_q: Tensor, cov_q: Tensor, mean_p: Tensor, cov_p: Tensor) -> Tensor:
    """Eq. 1.7 (KL divergence, full covariance). KL(N(mean_q, cov_q) ‖ N(mean_p, cov_p)) in nats, a scalar ≥ 0.

    ½·(log(det cov_p/det cov_q) + tr(cov_p⁻¹·cov_q) + (mean_q − mean_p)ᵀ·cov_p⁻¹·(mean_q − mean_p) − D).
    mean: (D,); cov: (D, D), symmetric (only the lower triangle is read) and positive definite.
    Raises ValueError for other shapes, and torch.linalg.LinAlgError for a covariance that is not positive definite.
    Source: Rasmussen and Williams 2006, appendix A.5; their N_0 is our q, their N_1 our p.
    """
    D = mean_q.numel()
    if not (mean_q.shape == mean_p.shape == (D,) and cov_q.shape == cov_p.shape == (D, D)):
        raise ValueError(
            "expected means (D,) and covariances (D, D); got "
            + ", ".join(str(tuple(v.shape)) for v in (mean_q, cov_q, mean_p, cov_p))
        )
    factor_q, factor_p = torch.linalg.cholesky(cov_q), torch.linalg.cholesky(cov_p)  # L, with L·Lᵀ = cov

    def whiten(v: Tensor) -> Tensor:
        """L_p⁻¹·v, so that the sum of its squares is tr(vᵀ·cov_p⁻¹·v)."""
        return torch.linalg.solve_triangular(factor_p, v, upper=False)

    log_ratio = 2 * (factor_p.diagonal().log() - factor_q.diagonal().log()).sum()  # det L is the diagonal's product
    spread, shift = whiten(factor_q).square().sum(), whiten((mean_q - mean_p)[:, None]).square().sum()
    return 0.5 * (log_ratio + spread + shift - D)


def _refuse_negative(**variances: Tensor | float) -> None:
    """Raises ValueError for a negative variance. One on an accelerator is not read, for the host would have to wait."""
    for name, var in variances.items():
        if isinstance(var, Tensor) and var.device.type != "cpu":
            continue
        if (torch.as_tensor(var) < 0).any():
            least = float(torch.as_tensor(var).min())
            raise ValueError(f"{name} must be a variance, >= 0; got {least:g} (is it a log-variance? take its exp)")
