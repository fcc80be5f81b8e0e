"""The U-Net: a noise estimate ε_θ(x_t, t, label) from residual blocks, attention and skips."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_lib.networks.blocks import Down, Layer, ResidualBlock, SelfAttention, Up, norm, zero
from ddpm_lib.networks.embedding import timestep_embedding


class UNet(nn.Module):
    """DDPM's U-Net. Called as unet(x_t, t) or unet(x_t, t, labels).

    size: side of the (square) images at which attention is placed; channels: C of the images.
    width: channels of the first level; multipliers: each level's channels over `width`; each further level halves H, W.
    blocks: residual blocks a level on the way down, one more on the way up; groups: of every group norm.
    attention: the sides (at images of side `size`) after whose residual blocks self-attention stands; it always stands
    in the middle. head_channels: channels of an attention head, 0 for one head of all.
    scale_shift: how a block is told the time, see ResidualBlock. learned_resampling: see Down and Up.
    dropout: in the residual blocks; classes: 0 for an unconditional network.
    gradient_checkpointing: keep only each layer's input for the backward pass and compute the rest again there: less
    memory, one more forward pass, the same gradients.
    The last label, `null` = classes, stands for "no label". The output convolution starts at zero, and so does the last
    layer of every block: a new network returns 0, and each block starts as its shortcut.
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
        groups: int = 32,
        attention: Sequence[int] = (16,),
        head_channels: int = 0,
        scale_shift: bool = False,
        learned_resampling: bool = True,
        dropout: float = 0.1,
        classes: int = 0,
        gradient_checkpointing: bool = False,
    ):
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config = config  # what builds another one like it
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
        if blocks < 1 or channels < 1 or classes < 0:
            raise ValueError(
                "expected blocks and channels of at least 1 and classes of at least 0; "
                f"got {blocks}, {channels} and {classes}"
            )
        if unknown := set(attention) - set(sides):
            raise ValueError(f"attention at side {min(unknown)}: the levels have sides {sides}")
        self.size, self.channels, self.width, self.null = size, channels, width, classes
        self.divisor, self.gradient_checkpointing = 2 ** (len(multipliers) - 1), gradient_checkpointing
        self.embed_width = 4 * width
        self.time = nn.Sequential(
            nn.Linear(width, self.embed_width), nn.SiLU(), nn.Linear(self.embed_width, self.embed_width)
        )
        self.label = nn.Embedding(classes + 1, self.embed_width) if classes else None

        def layer(c_in: int, c_out: int, attends: bool) -> Layer:
            options = {"groups": groups, "scale_shift": scale_shift, "dropout": dropout}
            residual = ResidualBlock(c_in, c_out, self.embed_width, **options)
            return Layer(
                residual, SelfAttention(c_out, groups=groups, head_channels=head_channels) if attends else None
            )

        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, skips, c = nn.ModuleList(), [width], width
        for level, (side, multiplier) in enumerate(zip(sides, multipliers, strict=True)):
            for _ in range(blocks):
                self.down.append(layer(c, c := width * multiplier, side in attention))
                skips.append(c)
            if level < len(sides) - 1:
                self.down.append(Down(c, learned_resampling))
                skips.append(c)
        self.middle = nn.ModuleList([layer(c, c, True), layer(c, c, False)])
        self.up = nn.ModuleList()
        for level, (side, multiplier) in reversed(list(enumerate(zip(sides, multipliers, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(layer(c + skips.pop(), c := width * multiplier, side in attention))
            if level > 0:
                self.up.append(Up(c, learned_resampling))
        self.head = nn.Sequential(norm(c, groups), nn.SiLU(), zero(nn.Conv2d(c, channels, 3, padding=1)))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """x_t: (B, C, H, W); t: (B,), in 1..T; labels: (B,), in 0..classes (None: no label). Returns ε_θ, like x_t.

        extra: (B, embed_width), added to the embedding of t and label: whatever else the network is to be told.
        """
        self._check(x_t, t, labels, extra)
        embedding = self.time(timestep_embedding(t, self.width).to(x_t.dtype))  # (B, embed_width)
        if self.label is not None:
            embedding = embedding + self.label(torch.full_like(t, self.null) if labels is None else labels)
        if extra is not None:
            embedding = embedding + extra
        h = self.stem(x_t)
        skips = [h]
        for module in self.down:
            h = self._apply_layer(module, h, embedding) if isinstance(module, Layer) else module(h)
            skips.append(h)
        for module in self.middle:
            h = self._apply_layer(module, h, embedding)
        for module in self.up:
            if isinstance(module, Layer):
                h = self._apply_layer(module, torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = module(h)
        return self.head(h)

    def _apply_layer(self, layer: Layer, h: Tensor, embedding: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, h, embedding, use_reentrant=False)
        return layer(h, embedding)

    def _check(self, x_t: Tensor, t: Tensor, labels: Tensor | None, extra: Tensor | None) -> None:
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
        if extra is not None and extra.shape != (len(x_t), self.embed_width):
            raise ValueError(
                f"expected an extra embedding of shape {(len(x_t), self.embed_width)}; got {tuple(extra.shape)}"
            )
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
