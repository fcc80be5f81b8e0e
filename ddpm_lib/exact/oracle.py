"""An exact denoiser. For data from a Gaussian mixture every noised marginal is a Gaussian mixture too, so the best
possible noise estimate has a closed form: samplers, losses and guidance can be compared with the truth."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lib.diffusion.forward import noise_like, noise_std, signal_scale
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.gaussian import log_density


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Σ_k weight_k·N(mean_k, diag(var_k)) in D dimensions. weight: (K,), sums to 1; mean, var: (K, D), var > 0."""

    weight: Tensor
    mean: Tensor
    var: Tensor

    def __post_init__(self):
        K = len(self.weight)
        if self.weight.ndim != 1 or self.mean.ndim != 2 or self.mean.shape != self.var.shape or len(self.mean) != K:
            raise ValueError(
                f"expected weight (K,), mean (K, D) and var (K, D); got {tuple(self.weight.shape)}, "
                f"{tuple(self.mean.shape)} and {tuple(self.var.shape)}"
            )
        if not (self.var > 0).all() or not (self.weight > 0).all() or abs(float(self.weight.sum()) - 1) > 1e-6:
            raise ValueError("variances and weights must be positive, and the weights must sum to 1")

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n points, shape (n, D), and the component that each came from, shape (n,)."""
        k = torch.multinomial(self.weight, n, replacement=True, generator=generator)
        mean = self.mean[k]
        return mean + self.var[k].sqrt() * noise_like(mean, generator), k

    def component_log_density(self, x: Tensor) -> Tensor:
        """log(weight_k·N(x; mean_k, var_k)) in nats: x (n, D) → (n, K)."""
        return self.weight.log() + log_density(x[:, None], self.mean, self.var).sum(-1)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats: x (n, D) → (n,)."""
        return self.component_log_density(x).logsumexp(-1)

    def diffused(self, schedule: Schedule, t: int) -> "GaussianMixture":
        """The marginal q(x_t) of x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε with x_0 from this mixture."""
        scale = signal_scale(schedule, t, like=self.mean)
        return GaussianMixture(
            self.weight, scale * self.mean, scale**2 * self.var + noise_std(schedule, t, like=self.mean) ** 2
        )


class ExactDenoiser:
    """Eq. 6.13 (exact denoiser). ε*(x_t, t) = E[ε|x_t] for data from a mixture: none has a smaller L_simple.

    Called like a network: `denoiser(x_t, t)` or, class by class, `denoiser(x_t, t, labels)`. The K components are the
    classes 0..K−1, and label K (`null`) stands for no label, as in a conditional network.
    x_t: (n, D); t: an int or shape (n,), in 1..T; labels: (n,). Returns (n, D). It computes in x_t's dtype.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule):
        self.mixture, self.schedule, self.null = mixture, schedule, len(mixture.weight)

    def __call__(self, x_t: Tensor, t: int | Tensor, labels: Tensor | None = None) -> Tensor:
        scale, std = (f(self.schedule, t, like=x_t) for f in (signal_scale, noise_std))
        return (x_t - scale * self.x_0_hat(x_t, t, labels)) / std

    def x_0_hat(self, x_t: Tensor, t: int | Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x_0|x_t] = Σ_k r_k·E[x_0|x_t, k], with r_k the probability of component k given x_t: (n, D)."""
        weight, mean, var = (p.to(x_t) for p in (self.mixture.weight, self.mixture.mean, self.mixture.var))
        scale, std = (f(self.schedule, t, like=x_t[..., None]) for f in (signal_scale, noise_std))
        marginal_var = scale**2 * var + std**2  # (n, K, D), or (1, K, D)
        difference = x_t[:, None] - scale * mean  # (n, K, D)
        log_joint = weight.log() + log_density(difference, 0.0, marginal_var).sum(-1)  # (n, K)
        if labels is not None:
            other = torch.arange(self.null, device=x_t.device) != labels[:, None]
            log_joint = log_joint.masked_fill(other & (labels[:, None] != self.null), -torch.inf)
        per_component = mean + scale * var / marginal_var * difference  # (n, K, D)
        return (log_joint.softmax(-1)[..., None] * per_component).sum(1)
