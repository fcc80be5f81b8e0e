"""The exact classifier of noisy points: for mixture data, Bayes' rule says which component a noised point came from."""

import torch
from torch import Tensor

from ddpm_lib.diffusion.forward import noise_std, signal_scale
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.oracle import GaussianMixture
from ddpm_lib.gaussian import log_density


class ExactClassifier:
    """Eq. 14.1 (exact classifier). log p(y|x_t) = log p(y)·q(x_t|y) − log Σ_k p(k)·q(x_t|k), y a mixture's component.

    Called as a network: `classifier(x_t, t)` with x_t (n, D) and t an int or (n,), in 1..T (ValueError otherwise).
    Returns log-probabilities in nats, (n, K), whose exponentials sum to 1: logits like any others. Gradients reach x_t.
    It computes in x_t's dtype. Source: Bayes' rule, with q(x_t|k) of `GaussianMixture.diffused`.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule):
        self.mixture, self.schedule = mixture, schedule

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        weight, mean, var = (p.to(x_t) for p in (self.mixture.weight, self.mixture.mean, self.mixture.var))
        scale, std = (f(self.schedule, t, like=x_t[..., None]) for f in (signal_scale, noise_std))
        log_joint = torch.log(weight) + log_density(x_t[:, None], scale * mean, scale**2 * var + std**2).sum(-1)
        return log_joint.log_softmax(-1)
