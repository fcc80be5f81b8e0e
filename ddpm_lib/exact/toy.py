"""Two-dimensional data whose exact denoiser is known, and a small network that learns it in seconds on a CPU."""

import math

import torch
from torch import Tensor, nn

from ddpm_lib.diffusion.forward import noise_like
from ddpm_lib.diffusion.loss import draw_t, l_simple
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.oracle import GaussianMixture


def spiral(components: int = 24, std: float = 0.09) -> GaussianMixture:
    """A spiral of equally likely, round normal blobs in [−1, 1]²: D = 2, float32."""
    turn = torch.linspace(0.8, 3 * math.pi, components)
    radius = 0.1 + 0.8 * turn / turn[-1]
    mean = radius[:, None] * torch.stack([turn.cos(), turn.sin()], dim=1)
    return GaussianMixture(torch.full((components,), 1 / components), mean, torch.full_like(mean, std**2))


class MLP(nn.Module):
    """(x_t, t) → a vector like x_t: (n, D) and (n,) → (n, D). t enters as sines and cosines of t/T."""

    def __init__(self, T: int, dims: int = 2, width: int = 96, frequencies: int = 8):
        super().__init__()
        self.T = T
        self.register_buffer("frequency", math.pi / 2 * 2.0 ** torch.arange(frequencies))
        self.layers = nn.Sequential(
            nn.Linear(dims + 2 * frequencies, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, dims),
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] / self.T * self.frequency  # (n, frequencies)
        return self.layers(torch.cat([x_t, angle.sin(), angle.cos()], dim=1))


def fit(
    schedule: Schedule,
    mixture: GaussianMixture,
    target: str = "eps",
    *,
    steps: int = 6000,
    batch: int = 256,
    learning_rate: float = 4e-3,
    seed: int = 0,
) -> MLP:
    """Train an MLP on fresh points of the mixture to predict `target`, one of TARGETS: Adam, the rate falling to 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP(schedule.T, mixture.mean.shape[1])
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x_0, _ = mixture.sample(batch, generator)
        eps, t = noise_like(x_0, generator), draw_t(schedule, batch, generator)
        loss = l_simple(model, schedule, x_0, eps, t, target).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return model.eval()
