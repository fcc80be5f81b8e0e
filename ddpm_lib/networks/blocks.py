"""What the U-Net is built of: residual blocks that are told the time, self-attention, and changes of resolution."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Eq. 10.6 (residual block). norm → SiLU → conv → norm → SiLU → dropout → conv, added to the input; told the time.

    c_in, c_out: channels; embed: width of the embedding; groups: of the group norms, which must divide both.
    scale_shift: False adds a linear image of the embedding before the second norm (DDPM); True scales and shifts with
    it after that norm, h·(1 + scale) + shift (FiLM). The last convolution starts at zero: a new block is its shortcut.
    Raises ValueError for groups that do not fit, see `norm`.
    Sources: Ho et al. 2020, appendix B; Dhariwal and Nichol 2021, section 3 ("adaptive group normalization").
    """

    def __init__(self, c_in: int, c_out: int, embed: int, *, groups: int, scale_shift: bool, dropout: float):
        super().__init__()
        self.scale_shift = scale_shift
        self.norm_1, self.conv_1 = norm(c_in, groups), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.embedding = nn.Linear(embed, 2 * c_out if scale_shift else c_out)
        self.norm_2, self.dropout = norm(c_out, groups), nn.Dropout(dropout)
        self.conv_2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, c_in, H, W); embedding: (B, embed). Returns (B, c_out, H, W)."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        told = self.embedding(F.silu(embedding))[:, :, None, None]  # (B, c_out or 2·c_out, 1, 1)
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm_2(h) * (1 + scale) + shift
        else:
            h = self.norm_2(h + told)
        return self.shortcut(x) + self.conv_2(self.dropout(F.silu(h)))


class SelfAttention(nn.Module):
    """Eq. 10.8 (self-attention). Every pixel asks every pixel, in heads of `head_channels` channels; input added.

    c: channels; groups: of the group norm, which must divide c; head_channels: 0 for one head of all channels.
    The last layer starts at zero: a new layer is the identity. It does not know where a pixel is: shuffled pixels give
    shuffled answers. Time grows with (H·W)²; memory with H·W only, for PyTorch's fused kernels keep no table of scores.
    They have no second derivative: where one is needed, run under torch.nn.attention.sdpa_kernel(SDPBackend.MATH).
    Raises ValueError if the heads do not divide c.
    Source: Vaswani et al. 2017, section 3.2; in DDPM: Ho et al. 2020, appendix B.
    """

    def __init__(self, c: int, *, groups: int, head_channels: int = 0):
        super().__init__()
        if head_channels < 0 or c % (head_channels or c):
            raise ValueError(f"heads of {head_channels} channels do not divide {c} channels")
        self.heads = c // (head_channels or c)
        self.norm, self.qkv, self.out = norm(c, groups), nn.Conv2d(c, 3 * c, 1), zero(nn.Conv2d(c, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns the same shape."""
        side = x.shape[2]
        # the fused kernels want a head's channels of one pixel side by side in memory; else PyTorch keeps all scores
        qkv = self.qkv(self.norm(x)).contiguous(memory_format=torch.channels_last)
        qkv = rearrange(qkv, "b (three n c) h w -> three b n (h w) c", three=3, n=self.heads)
        attended = F.scaled_dot_product_attention(*qkv)  # (B, heads, H·W, C/heads)
        return x + self.out(rearrange(attended, "b n (h w) c -> b (n c) h w", h=side))


class Layer(nn.Module):
    """A residual block, and self-attention after it where wanted."""

    def __init__(self, residual: ResidualBlock, attention: SelfAttention | None):
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, C, H, W); embedding: (B, embed)."""
        h = self.residual(x, embedding)
        return h if self.attention is None else self.attention(h)


class Down(nn.Module):
    """Halves H and W: by a learned convolution of stride 2, or (learned = False) by the mean of each 2×2 square.

    The convolution pads on the right and at the bottom only, as DDPM's does (TensorFlow's "SAME").
    """

    def __init__(self, c: int, learned: bool):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) with even H and W. Returns (B, C, H/2, W/2)."""
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Doubles H and W by repeating each pixel, and (learned) smooths the result with a convolution."""

    def __init__(self, c: int, learned: bool):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, 2·H, 2·W)."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


def norm(c: int, groups: int) -> nn.GroupNorm:
    """Group norm (Eq. 10.5) with DDPM's ε. Raises ValueError unless groups divide c and hold two channels or more.

    One channel alone would forget how strong its feature was, and what a residual block adds to tell it the time.
    """
    if groups < 1 or c % groups or c // groups < 2:
        raise ValueError(
            f"expected groups of two channels or more that divide {c} channels evenly; got {groups} groups"
        )
    return nn.GroupNorm(groups, c, eps=1e-6)


def zero(module: nn.Module) -> nn.Module:
    """The module with all parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
