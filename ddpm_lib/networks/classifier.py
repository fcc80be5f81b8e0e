"""A classifier that is told the time: p(label | x_t), for guidance, and features for metrics."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm_lib.networks.blocks import Down, Layer, ResidualBlock, SelfAttention, norm
from ddpm_lib.networks.embedding import timestep_embedding


class Classifier(nn.Module):
    """The way down of a U-Net, a mean over all pixels, and a linear layer. Called as classifier(x_t, t), or (x).

    size: side of the images; channels: C of the images; classes: number of labels, at least 2.
    width, multipliers, blocks, groups, attention, head_channels, dropout: as in `UNet`; dropout also acts on the mean.
    A new classifier gives every label the same probability, for its last layer starts at zero. Raises ValueError for a
    size that cannot be halved as often as there are levels, and for numbers that do not fit, as `norm` does.
    Source: Dhariwal and Nichol 2021, section 4 (there with attention in place of the mean).
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        classes: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        groups: int = 8,
        attention: Sequence[int] = (),
        head_channels: int = 0,
        dropout: float = 0.0,
    ):
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config = config  # what builds another one like it
        halvings = len(multipliers) - 1
        if halvings < 0 or size % 2**halvings:
            raise ValueError(f"expected a size that can be halved {halvings} times, once a further level; got {size}")
        if classes < 2 or blocks < 1:
            raise ValueError(f"expected at least 2 classes and 1 block a level, got {classes} and {blocks}")
        self.size, self.channels, self.classes, self.width, embed = size, channels, classes, width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, embed), nn.SiLU(), nn.Linear(embed, embed))
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, c, side = nn.ModuleList(), width, size
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(Down(c, True))
                side //= 2
            for _ in range(blocks):
                residual = ResidualBlock(c, width * multiplier, embed, groups=groups, scale_shift=True, dropout=dropout)
                c = width * multiplier
                attends = SelfAttention(c, groups=groups, head_channels=head_channels) if side in attention else None
                self.down.append(Layer(residual, attends))
        self.norm, self.dropout, self.head = norm(c, groups), nn.Dropout(dropout), nn.Linear(c, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """The penultimate layer: (B, C, H, W) → (B, D). t: (B,), in 1..T; None for clean images, told as t = 1."""
        if x_t.ndim != 4 or x_t.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(
                f"expected images of shape (B, {self.channels}, {self.size}, {self.size}), got {tuple(x_t.shape)}"
            )
        t = torch.ones(len(x_t), dtype=torch.int64, device=x_t.device) if t is None else t
        if t.shape != x_t.shape[:1]:
            raise ValueError(f"expected t of shape ({len(x_t)},), one per image; got {tuple(t.shape)}")
        embedding = self.time(timestep_embedding(t, self.width).to(x_t.dtype))
        h = self.stem(x_t)
        for module in self.down:
            h = module(h, embedding) if isinstance(module, Layer) else module(h)
        return nn.functional.silu(self.norm(h)).mean((2, 3))  # (B, D)

    def forward(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """log p(label|x_t) up to a constant, (B, classes): images (B, C, H, W) and t as in `features`."""
        return self.head(self.dropout(self.features(x_t, t)))
