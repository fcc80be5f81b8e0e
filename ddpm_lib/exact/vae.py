"""Variational autoencoders: the bound in its two parts, a linear model whose evidence is exact, and a small VAE."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm_lib.gaussian import kl_divergence, log_density


def elbo(
    x: Tensor,
    mean: Tensor,
    log_var: Tensor,
    decode: Callable[[Tensor], Tensor],
    decoder_var: Tensor | float,
    eps: Tensor,
) -> tuple[Tensor, Tensor]:
    """Eq. 2.4 (reconstruction and KL). The two parts of the evidence lower bound: ELBO = reconstruction − KL.

    For the prior p(z) = N(0, I), the encoder q(z|x) = N(mean, e^log_var) and the decoder p(x|z) = N(decode(z),
    decoder_var), every entry of z and x independent of the others:
    reconstruction: log p(x|z) at the one sample z = mean + e^(log_var/2)·eps; unbiased if eps ~ N(0, I);
    KL: KL(q(z|x) ‖ p(z)) in closed form. Both have shape (B,) and are in nats per example: sums over pixels and
    latents, not means. Gradients flow through the sample (Eq. 2.5).

    x: (B, ...); mean, log_var, eps: (B, K); decode: (B, K) → x's shape; decoder_var: a variance > 0 that broadcasts
    against x. Raises ValueError where shapes differ, for broadcasting would hide it.
    Source: Kingma and Welling 2014, Eq. 7 and 10; their μ, σ² are our mean, e^log_var, and they take L samples.
    """
    if not (mean.ndim == 2 and mean.shape == log_var.shape == eps.shape and len(x) == len(mean)):
        raise ValueError(
            f"expected mean, log_var and eps of one shape (B, K) with B = {len(x)}; "
            f"got {tuple(mean.shape)}, {tuple(log_var.shape)} and {tuple(eps.shape)}"
        )
    z = mean + (log_var / 2).exp() * eps
    decoded = decode(z)
    if decoded.shape != x.shape:
        raise ValueError(f"decode returned shape {tuple(decoded.shape)}; expected that of x, {tuple(x.shape)}")
    reconstruction = log_density(x, decoded, decoder_var).flatten(1).sum(1)
    return reconstruction, kl_divergence(mean, log_var.exp(), 0.0, 1.0).sum(1)


def linear_model(x: Tensor, weight: Tensor, bias: Tensor, decoder_var: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 2.7 (linear model's evidence). log p(x) and p(z|x) of p(z) = N(0, I), p(x|z) = N(W·z + b, decoder_var·I).

    x: (B, D); weight: W, (D, K); bias: b, (D,); decoder_var: a variance > 0, one number.
    Returns log p(x) = log N(x; b, W·Wᵀ + decoder_var·I) in nats, (B,); the posterior's means, (B, K); and its
    covariance (I + Wᵀ·W/decoder_var)⁻¹, (K, K), the same for every x. Raises ValueError for shapes that do not fit.
    Source: Tipping and Bishop 1999 (Probabilistic PCA), section 3; their σ² is our decoder_var, their M/σ² the
    inverse of our covariance.
    """
    if weight.ndim != 2 or x.ndim != 2 or not (x.shape[1] == len(weight) == len(bias)) or bias.ndim != 1:
        raise ValueError(
            "expected x (B, D), weight (D, K) and bias (D,); "
            f"got {tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if torch.as_tensor(decoder_var).numel() != 1:
        raise ValueError(f"expected one decoder_var for all entries, got shape {tuple(decoder_var.shape)}")
    D, K = weight.shape
    eye = torch.eye(D, dtype=x.dtype, device=x.device)
    away = x - bias
    root = torch.linalg.cholesky(weight @ weight.T + decoder_var * eye)  # root·rootᵀ = the covariance of x
    scaled = torch.linalg.solve_triangular(root, away.T, upper=False)  # (D, B), whose squares sum to the distance
    log_det = 2 * root.diagonal().log().sum()
    log_evidence = -0.5 * (scaled.square().sum(0) + log_det + D * math.log(2 * math.pi))
    cov = torch.linalg.inv(eye.new_ones(K).diag() + weight.T @ weight / decoder_var)
    return log_evidence, away @ weight @ cov / decoder_var, cov


class LinearVAE(nn.Module):
    """A VAE of which everything is known: a linear decoder, and a linear encoder whose covariance is diagonal.

    The decoder starts at the given weight (D, K), bias (D,) and variance; the encoder starts at the prior, N(0, I)
    for every x. All of them are parameters; freeze what shall not be trained with `requires_grad_(False)`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, decoder_var: float):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.decoder_log_var = nn.Parameter(weight.new_tensor(decoder_var).log())
        self.encoder_weight = nn.Parameter(torch.zeros_like(weight.T))
        self.encoder_bias = nn.Parameter(weight.new_zeros(weight.shape[1]))
        self.encoder_log_var = nn.Parameter(weight.new_zeros(weight.shape[1]))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D) → mean and log-variance of q(z|x), each (B, K); the latter is the same for every x."""
        mean = x @ self.encoder_weight.T + self.encoder_bias
        return mean, self.encoder_log_var.expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, K) → the mean of p(x|z), (B, D)."""
        return z @ self.weight.T + self.bias

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL of `elbo`, each (B,), in nats."""
        return elbo(x, *self.encode(x), self.decode, self.decoder_log_var.exp(), eps)

    def exact(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x) (B,), and the posterior's means (B, K) and covariance (K, K), by `linear_model`."""
        return linear_model(x, self.weight, self.bias, self.decoder_log_var.exp())


class VAE(nn.Module):
    """A small variational autoencoder: two MLPs with SiLU, and one learned variance for all pixels.

    shape: (C, H, W) of an image; latents: K, the number of latent dimensions; hidden: width of the two hidden layers.
    The last layers are linear: the decoder's mean is not confined to [−1, 1]. Raises ValueError for sizes below 1.
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 8, 8), latents: int = 8, hidden: int = 128):
        super().__init__()
        if min(*shape, latents, hidden) < 1:
            raise ValueError(f"expected sizes of at least 1; got shape {shape}, latents {latents}, hidden {hidden}")
        self.shape, self.latents = tuple(shape), latents
        pixels = math.prod(shape)
        self.encoder = nn.Sequential(nn.Flatten(), *_mlp(pixels, hidden, 2 * latents))
        self.decoder = nn.Sequential(*_mlp(latents, hidden, pixels), nn.Unflatten(1, self.shape))
        self.decoder_log_var = nn.Parameter(torch.tensor(math.log(0.1)))  # starts at a typical squared error

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [−1, 1] → mean and log-variance of q(z|x), each (B, K)."""
        return self.encoder(x).chunk(2, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, K) → the mean of p(x|z), (B, C, H, W)."""
        return self.decoder(z)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL of `elbo`, each (B,), in nats. eps: (B, K), from N(0, I)."""
        return elbo(x, *self.encode(x), self.decode, self.decoder_log_var.exp(), eps)


def _mlp(inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)]
