"""The U-Net: a noise estimate ε_θ(x_t, t, label) from residual blocks, attention and skips."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_lib.embedding import timestep_embedding


class UNet(nn.Module):
    """DDPM's U-Net. Called as unet(x_t, t) or unet(x_t, t, labels).

    size: side of the (square) images at which attention is placed; channels: C of the images.
    width: channels of the first level; multipliers: each level's channels over `width`; each further level halves H, W.
    blocks: residual blocks a level on the way down, one more on the way up.
    attention: the sides (at images of side `size`) after whose residual blocks self-attention stands.
    heads: attention heads; dropout: in the residual blocks; classes: 0 for an unconditional network.
    The last label, `null` = classes, stands for "no label". The output convolution starts at zero, and so does the last
    layer of every block: a new network returns 0, and each block starts as the identity.
    The defaults are DDPM's network for CIFAR-10, 35.75 M parameters. Source: Ho et al. 2020, appendix B and their code.
    """

    def __init__(
        self,
        *,
        size: int = 32,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        heads: int = 1,
        dropout: float = 0.1,
        classes: int = 0,
    ):
        super().__init__()
        if not multipliers or min(multipliers) < 1 or width < 4 or width % 2:
            raise ValueError(
                "expected multipliers of at least 1 and an even width of at least 4; "
                f"got {tuple(multipliers)} and {width}"
            )
        sides = [size // 2**level for level in range(len(multipliers))]
        if size % 2 ** (len(multipliers) - 1):
            raise ValueError(
                f"size {size} cannot be halved {len(multipliers) - 1} times, as {len(multipliers)} levels need"
            )
        if blocks < 1 or heads < 1 or channels < 1 or classes < 0:
            raise ValueError(
                "expected blocks, heads and channels of at least 1 and classes of at least 0; "
                f"got {blocks}, {heads}, {channels} and {classes}"
            )
        if unknown := set(attention) - set(sides):
            raise ValueError(f"attention at side {min(unknown)}: the levels have sides {sides}")
        self.channels, self.null, self.divisor = channels, classes, 2 ** (len(multipliers) - 1)
        embed = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, embed), nn.SiLU(), nn.Linear(embed, embed))
        self.label = nn.Embedding(classes + 1, embed) if classes else None

        def layer(c_in: int, c_out: int, side: int) -> nn.Module:
            return Layer(c_in, c_out, embed, dropout, heads if side in attention else 0)

        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, skips, c = nn.ModuleList(), [width], width
        for level, (side, multiplier) in enumerate(zip(sides, multipliers, strict=True)):
            for _ in range(blocks):
                self.down.append(layer(c, c := width * multiplier, side))
                skips.append(c)
            if level < len(sides) - 1:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)
        self.middle = nn.ModuleList([Layer(c, c, embed, dropout, heads), Layer(c, c, embed, dropout, 0)])
        self.up = nn.ModuleList()
        for level, (side, multiplier) in reversed(list(enumerate(zip(sides, multipliers, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(layer(c + skips.pop(), c := width * multiplier, side))
            if level > 0:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1)))
        self.head = nn.Sequential(norm(c), nn.SiLU(), zero(nn.Conv2d(c, channels, 3, padding=1)))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_t: (B, C, H, W); t: (B,), in 1..T; labels: (B,), in 0..classes (None: no label). Returns ε_θ, like x_t."""
        self._check(x_t, t, labels)
        embedding = self.time(timestep_embedding(t, self.width).to(x_t.dtype))  # (B, 4·width)
        if self.label is not None:
            embedding = embedding + self.label(torch.full_like(t, self.null) if labels is None else labels)
        h = self.stem(x_t)
        skips = [h]
        for module in self.down:
            h = module(h, embedding) if isinstance(module, Layer) else module(h)
            skips.append(h)
        for module in self.middle:
            h = module(h, embedding)
        for module in self.up:
            if isinstance(module, Layer):
                h = module(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = module(h)
        return self.head(h)

    def _check(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> None:
        if (
            x_t.ndim != 4
            or x_t.shape[1] != self.channels
            or x_t.shape[2] != x_t.shape[3]
            or x_t.shape[2] % self.divisor
        ):
            raise ValueError(
                f"expected x_t of shape (B, {self.channels}, S, S) with S a multiple of {self.divisor}; "
                f"got {tuple(x_t.shape)}"
            )
        if t.shape != x_t.shape[:1]:
            raise ValueError(f"expected t of shape ({len(x_t)},), one per image; got {tuple(t.shape)}")
        if labels is None:
            return
        if self.label is None:
            raise ValueError("this network is unconditional (classes = 0), but labels were given")
        if labels.shape != x_t.shape[:1]:
            raise ValueError(f"expected labels of shape ({len(x_t)},), one per image; got {tuple(labels.shape)}")
        if labels.device.type == "cpu" and not ((labels >= 0) & (labels <= self.null)).all():
            raise ValueError(
                f"expected labels in 0..{self.null - 1}, or {self.null} for no label; got {labels.tolist()}"
            )


class Layer(nn.Module):
    """A residual block, and self-attention after it where heads > 0."""

    def __init__(self, c_in: int, c_out: int, embed: int, dropout: float, heads: int):
        super().__init__()
        self.residual = ResidualBlock(c_in, c_out, embed, dropout)
        self.attention = SelfAttention(c_out, heads) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.residual(x, embedding)
        return h if self.attention is None else self.attention(h)


class ResidualBlock(nn.Module):
    """norm → SiLU → conv → + embedding → norm → SiLU → dropout → conv, added to the input."""

    def __init__(self, c_in: int, c_out: int, embed: int, dropout: float):
        super().__init__()
        self.norm_1, self.conv_1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.embedding = nn.Linear(embed, c_out)
        self.norm_2, self.dropout, self.conv_2 = (
            norm(c_out),
            nn.Dropout(dropout),
            zero(nn.Conv2d(c_out, c_out, 3, padding=1)),
        )
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.embedding(F.silu(embedding))[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h))))
        return self.shortcut(x) + h


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel, in `heads` heads; added to the input."""

    def __init__(self, c: int, heads: int):
        super().__init__()
        if c % heads:
            raise ValueError(f"{heads} attention heads do not divide {c} channels")
        self.heads = heads
        self.norm, self.qkv, self.out = norm(c), nn.Conv2d(c, 3 * c, 1), zero(nn.Conv2d(c, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[2]
        qkv = rearrange(self.qkv(self.norm(x)), "b (three n c) h w -> three b n (h w) c", three=3, n=self.heads)
        attended = F.scaled_dot_product_attention(*qkv)  # (B, heads, H·W, C/heads)
        return x + self.out(rearrange(attended, "b n (h w) c -> b (n c) h w", h=side))


def norm(c: int) -> nn.GroupNorm:
    """Group norm in 32 groups, or in fewer, so that each holds at least four channels (one alone forgets its scale)."""
    return nn.GroupNorm(math.gcd(32, c, max(c // 4, 1)), c, eps=1e-6)


def zero(module: nn.Module) -> nn.Module:
    """The module with all parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
