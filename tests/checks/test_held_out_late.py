"""Wrong versions of the equations of chapters 10 and 11 that stand beside no check: each is rejected all the same."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ddpm_lib.checks import find
from ddpm_lib.networks.blocks import ResidualBlock, SelfAttention

WRONG = {}


def wrong(name, what):
    def register(function):
        assert (name, what) not in WRONG
        WRONG[name, what] = function
        return function

    return register


# The residual block


class Block(ResidualBlock):
    """The right block; a wrong version overwrites a piece of it."""

    def build(self, c_in, c_out, embed, groups, scale_shift, dropout):
        pass

    def __init__(self, c_in, c_out, embed, *, groups, scale_shift, dropout):
        super().__init__(c_in, c_out, embed, groups=groups, scale_shift=scale_shift, dropout=dropout)
        self.p = dropout
        self.build(c_in, c_out, embed, groups, scale_shift, dropout)

    def first(self, x):
        return self.conv_1(F.silu(self.norm_1(x)))

    def told(self, e):
        return self.embedding(F.silu(e))

    def tell(self, h, w):
        if self.scale_shift:
            scale, shift = w.chunk(2, dim=1)
            return self.norm_2(h) * (1 + scale) + shift
        return self.norm_2(h + w)

    def second(self, h):
        return self.conv_2(self.dropout(F.silu(h)))

    def join(self, x, h):
        return self.shortcut(x) + h

    def forward(self, x, embedding):
        w = self.told(embedding)[:, :, None, None]
        return self.join(x, self.second(self.tell(self.first(x), w)))


def block(what, **changed):
    wrong("residual block", what)(type("Wrong", (Block,), changed))


def built(what):
    """A wrong version whose parts are other ones: build(block, c_in, c_out, embed, groups, scale_shift, dropout)."""

    def register(build):
        block(what, build=build)
        return build

    return register


def drops(what, second):
    block(what, second=second)


@built("1×1 convolutions")
def _(b, c_in, c_out, *_):
    b.conv_1 = nn.Conv2d(c_in, c_out, 1)
    b.conv_2 = nn.Conv2d(c_out, c_out, 1)
    nn.init.zeros_(b.conv_2.weight), nn.init.zeros_(b.conv_2.bias)


@built("the first convolution is 1×1")
def _(b, c_in, c_out, *_):
    b.conv_1 = nn.Conv2d(c_in, c_out, 1)


@built("5×5 convolutions")
def _(b, c_in, c_out, *_):
    b.conv_1 = nn.Conv2d(c_in, c_out, 5, padding=2)


@built("the shortcut is 3×3")
def _(b, c_in, c_out, *_):
    if c_in != c_out:
        b.shortcut = nn.Conv2d(c_in, c_out, 3, padding=1)


@built("a shortcut convolution also where c_in = c_out")
def _(b, c_in, c_out, *_):
    b.shortcut = nn.Conv2d(c_in, c_out, 1)


@built("the shortcut has no bias")
def _(b, c_in, c_out, *_):
    if c_in != c_out:
        b.shortcut = nn.Conv2d(c_in, c_out, 1, bias=False)


@built("no biases in the convolutions")
def _(b, c_in, c_out, *_):
    b.conv_1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)


@built("no bias in the time layer")
def _(b, c_in, c_out, embed, groups, scale_shift, p):
    b.embedding = nn.Linear(embed, b.embedding.out_features, bias=False)


@built("depthwise convolution")
def _(b, c_in, c_out, *_):
    b.conv_2 = nn.Conv2d(c_out, c_out, 3, padding=1, groups=c_out)
    nn.init.zeros_(b.conv_2.weight), nn.init.zeros_(b.conv_2.bias)


class Padded(nn.Conv2d):
    """A convolution with another kind of padding, where the image is large enough for it."""

    def __init__(self, c_in, c_out, mode):
        super().__init__(c_in, c_out, 3, padding=1)
        self.mode = mode

    def forward(self, x):
        if self.mode == "reflect" and min(x.shape[2:]) < 2:
            return super().forward(x)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=self.mode), self.weight, self.bias)


for mode in ("circular", "reflect", "replicate"):

    @built(f"{mode} padding")
    def _(b, c_in, c_out, *_, mode=mode):
        b.conv_1 = Padded(c_in, c_out, mode)


@built("circular padding in the second convolution")
def _(b, c_in, c_out, *_):
    b.conv_2.padding_mode = "circular"
    b.conv_2._reversed_padding_repeated_twice = [1, 1, 1, 1]


@built("dilated convolution")
def _(b, *_):
    b.conv_2.dilation, b.conv_2.padding = (2, 2), (2, 2)


@built("Dropout2d")
def _(b, *_, p=None):
    b.dropout = nn.Dropout2d(b.p)


@built("Dropout1d-like: a row of pixels")
def _(b, *_):
    b.dropout = Masked(b, lambda h: torch.rand(*h.shape[:3], 1, dtype=h.dtype))


@built("AlphaDropout")
def _(b, *_):
    b.dropout = nn.AlphaDropout(b.p)


@built("no dropout")
def _(b, *_):
    b.dropout = nn.Identity()


@built("dropout with 0.1 always")
def _(b, *_):
    b.dropout = nn.Dropout(0.1)


@built("dropout of at most a half")
def _(b, *_):
    b.dropout = nn.Dropout(min(b.p, 0.5))


@built("p is the probability of keeping")
def _(b, *_):
    b.dropout = nn.Dropout(1 - b.p if b.p else 0.0)


class Masked(nn.Module):
    def __init__(self, block, draw, scale=None):
        super().__init__()
        self.p, self.draw = block.p, draw
        self.scale = 1 / (1 - block.p) if scale is None else scale

    def forward(self, h):
        if not self.training or self.p == 0:
            return h
        return h * (self.draw(h) >= self.p) * self.scale


@built("dropout does not scale up")
def _(b, *_):
    b.dropout = Masked(b, torch.rand_like, scale=1.0)


@built("one mask for the whole batch")
def _(b, *_):
    b.dropout = Masked(b, lambda h: torch.rand(1, *h.shape[1:]))


@built("one mask for all channels")
def _(b, *_):
    b.dropout = Masked(b, lambda h: torch.rand(len(h), 1, *h.shape[2:]))


@built("whole images are dropped (drop path)")
def _(b, *_):
    b.dropout = Masked(b, lambda h: torch.rand(len(h), 1, 1, 1))


@built("dropout with its own fixed generator")
def _(b, *_):
    own = torch.Generator().manual_seed(0)
    b.dropout = Masked(b, lambda h: torch.rand(h.shape, generator=own))


@built("the same mask at each call")
def _(b, *_):
    b.dropout = Masked(b, lambda h: torch.rand(h.shape, generator=torch.Generator().manual_seed(0)))


@built("dropout drawn from numpy")
def _(b, *_):
    random = np.random.default_rng(0)
    b.dropout = Masked(b, lambda h: torch.from_numpy(random.random(h.shape)))


@built("exactly a share p is dropped in each image")
def _(b, *_):
    def draw(h):
        ranks = torch.rand(h.flatten(1).shape).argsort(1).argsort(1)
        return ((ranks + 0.5) / ranks.shape[1]).reshape(h.shape)

    b.dropout = Masked(b, draw)


@built("Gaussian noise in place of dropout")
def _(b, *_):
    class Noise(nn.Module):
        def forward(self, h):
            return h * (1 + torch.randn_like(h) * b_p) if self.training else h

    b_p = (b.p / (1 - b.p)) ** 0.5
    b.dropout = Noise()


drops("dropout also in eval mode", lambda b, h: b.conv_2(F.dropout(F.silu(h), b.p)))
drops("dropout only in eval mode", lambda b, h: b.conv_2(F.dropout(F.silu(h), b.p, not b.training)))
drops("dropout before SiLU", lambda b, h: b.conv_2(F.silu(b.dropout(h))))
drops("dropout after the last convolution", lambda b, h: b.dropout(b.conv_2(F.silu(h))))
drops("dropout twice", lambda b, h: b.conv_2(b.dropout(b.dropout(F.silu(h)))))
drops("dropout before the first convolution and the last", lambda b, h: b.conv_2(b.dropout(F.silu(b.dropout(h)))))
drops("GELU", lambda b, h: b.conv_2(b.dropout(F.gelu(h))))
drops("mish", lambda b, h: b.conv_2(b.dropout(F.mish(h))))
drops("sigmoid", lambda b, h: b.conv_2(b.dropout(h.sigmoid())))
drops("hard swish", lambda b, h: b.conv_2(b.dropout(F.hardswish(h))))
drops("no second activation", lambda b, h: b.conv_2(b.dropout(h)))
drops("clamped at 10,000", lambda b, h: b.conv_2(b.dropout(F.silu(h.clamp(-1e4, 1e4)))))
drops("in half precision", lambda b, h: b.conv_2(b.dropout(F.silu(h).bfloat16().to(h.dtype))))
drops("in single precision", lambda b, h: b.conv_2(b.dropout(F.silu(h).float().to(h.dtype))))

block("dropout on the first half only", first=lambda b, x: b.conv_1(b.dropout(F.silu(b.norm_1(x)))))
block("no first activation", first=lambda b, x: b.conv_1(b.norm_1(x)))
block("ReLU first", first=lambda b, x: b.conv_1(F.relu(b.norm_1(x))))
block("no first norm", first=lambda b, x: b.conv_1(F.silu(x)))
block("convolution before norm", first=lambda b, x: F.silu(b.conv_1(b.norm_1(x))))
block("ReLU on the embedding", told=lambda b, e: b.embedding(F.relu(e)))
block("GELU on the embedding", told=lambda b, e: b.embedding(F.gelu(e)))
block("SiLU after the time layer", told=lambda b, e: F.silu(b.embedding(e)))
block("SiLU on both sides of the time layer", told=lambda b, e: F.silu(b.embedding(F.silu(e))))
block("SiLU in place on the shared embedding", told=lambda b, e: b.embedding(F.silu(e, inplace=True)))
block("no time", told=lambda b, e: 0 * b.embedding(F.silu(e)))
block("the time's gradient is cut off", told=lambda b, e: b.embedding(F.silu(e.detach())))
block("the time layer is not learned", told=lambda b, e: b.embedding(F.silu(e)).detach())
block("dropout on the embedding", told=lambda b, e: b.embedding(b.dropout(F.silu(e))))
block("the batch's mean embedding", told=lambda b, e: b.embedding(F.silu(e).mean(0, keepdim=True)).expand(len(e), -1))
block("added, divided by √2", join=lambda b, x, h: (b.shortcut(x) + h) / 2**0.5)
block("the shortcut's gradient is cut off", join=lambda b, x, h: b.shortcut(x.detach()) + h)
block("the branch scaled by √½", join=lambda b, x, h: b.shortcut(x) + h / 2**0.5)
block("SiLU after the sum", join=lambda b, x, h: F.silu(b.shortcut(x) + h))
block("norm eps in place of variance", join=lambda b, x, h: b.shortcut(F.silu(x)) + h)
block("clamped at 1,000 in the end", join=lambda b, x, h: (b.shortcut(x) + h).clamp(-1e3, 1e3))
block("identity where it should be a convolution", join=lambda b, x, h: x + h if x.shape == h.shape else h)


def tells(what, plain=None, film=None):
    def tell(b, h, w):
        changed = film if b.scale_shift else plain
        if changed is None:
            return Block.tell(b, h, w)
        return changed(b, h, *w.chunk(2, dim=1)) if b.scale_shift else changed(b, h, w)

    block(what, tell=tell)


tells("the embedding multiplies", plain=lambda b, h, w: b.norm_2(h * w))
tells("the embedding is added after the norm", plain=lambda b, h, w: b.norm_2(h) + w)
tells("subtracted", plain=lambda b, h, w: b.norm_2(h - w))
tells("no time in the sum", plain=lambda b, h, w: b.norm_2(h))
tells("no second norm in the sum", plain=lambda b, h, w: h + w)
tells("no second norm in film", film=lambda b, h, s, t: h * (1 + s) + t)
tells("no 1+", film=lambda b, h, s, t: b.norm_2(h) * s + t)
tells("swapped", film=lambda b, h, t, s: b.norm_2(h) * (1 + s) + t)
tells("shift inside", film=lambda b, h, s, t: (b.norm_2(h) + t) * (1 + s))
tells("exp of the scale", film=lambda b, h, s, t: b.norm_2(h) * s.exp() + t)
tells("1 + tanh of the scale", film=lambda b, h, s, t: b.norm_2(h) * (1 + s.tanh()) + t)
tells("sigmoid of the scale", film=lambda b, h, s, t: b.norm_2(h) * 2 * s.sigmoid() + t)
tells("no shift", film=lambda b, h, s, t: b.norm_2(h) * (1 + s))
tells("film before the norm", film=lambda b, h, s, t: b.norm_2(h * (1 + s) + t))
tells("1 − scale", film=lambda b, h, s, t: b.norm_2(h) * (1 - s) + t)
tells(
    "scale and shift interleaved",
    film=lambda b, h, s, t: (
        b.norm_2(h) * (1 + torch.cat([s, t], 1)[:, ::2]) + torch.cat([s, t], 1)[:, 1::2]
    ),
)


@built("eps 1e-5")
def _(b, *_):
    b.norm_1.eps = b.norm_2.eps = 1e-5


@built("eps 1e-5 in the second norm")
def _(b, *_):
    b.norm_2.eps = 1e-5


@built("eps 1e-8")
def _(b, *_):
    b.norm_1.eps = 1e-8


@built("eps 1e-3 in the first norm")
def _(b, *_):
    b.norm_1.eps = 1e-3


@built("one group")
def _(b, *_):
    b.norm_1.num_groups = b.norm_2.num_groups = 1


@built("at most 32 groups")
def _(b, *_):
    for norm in (b.norm_1, b.norm_2):
        norm.num_groups = norm.num_channels // 3 if norm.num_groups > 32 else norm.num_groups


@built("the second norm has one group")
def _(b, *_):
    b.norm_2.num_groups = 1


@built("norms without gain and bias")
def _(b, c_in, c_out, e, groups, *_):
    b.norm_1, b.norm_2 = (nn.GroupNorm(groups, c, eps=1e-6, affine=False) for c in (c_in, c_out))


@built("batch norm")
def _(b, c_in, c_out, *_):
    b.norm_1, b.norm_2 = (nn.BatchNorm2d(c, eps=1e-6) for c in (c_in, c_out))


@built("batch norm without memory")
def _(b, c_in, c_out, *_):
    b.norm_1 = nn.BatchNorm2d(c_in, eps=1e-6, track_running_stats=False)


@built("instance norm")
def _(b, c_in, c_out, *_):
    b.norm_2 = nn.InstanceNorm2d(c_out, eps=1e-6, affine=True)


@built("both norms are one")
def _(b, c_in, c_out, *_):
    if c_in == c_out:
        b.norm_2 = b.norm_1


@built("the last convolution starts at random")
def _(b, *_):
    b.conv_2.reset_parameters()


@built("the last convolution's bias starts at random")
def _(b, *_):
    nn.init.uniform_(b.conv_2.bias, -0.1, 0.1)


@built("the last convolution starts at 1e-10")
def _(b, *_):
    nn.init.normal_(b.conv_2.weight, std=1e-10)


@built("the last convolution starts at 1e-5")
def _(b, *_):
    nn.init.normal_(b.conv_2.weight, std=1e-5)


@built("both convolutions start at zero")
def _(b, *_):
    nn.init.zeros_(b.conv_1.weight)


@built("the time layer starts at zero")
def _(b, *_):
    nn.init.zeros_(b.embedding.weight), nn.init.zeros_(b.embedding.bias)


@built("the time layer's weight starts at zero")
def _(b, *_):
    nn.init.zeros_(b.embedding.weight)


@built("the scale's half starts at zero")
def _(b, c_in, c_out, *_):
    if b.scale_shift:
        nn.init.zeros_(b.embedding.weight[:c_out])


@built("the scale starts at 1")
def _(b, c_in, c_out, *_):
    if b.scale_shift:
        nn.init.ones_(b.embedding.bias[:c_out])


@built("the second norm's gain starts at zero")
def _(b, *_):
    nn.init.zeros_(b.norm_2.weight)


@built("the norms start at random")
def _(b, *_):
    nn.init.normal_(b.norm_1.weight, 1, 0.02)


@built("the norm's bias starts at random")
def _(b, *_):
    nn.init.normal_(b.norm_2.bias, 0, 0.02)


@built("the shortcut starts at zero")
def _(b, c_in, c_out, *_):
    if c_in != c_out:
        nn.init.zeros_(b.shortcut.weight), nn.init.zeros_(b.shortcut.bias)


@built("weights start as N(0, 1)")
def _(b, *_):
    nn.init.normal_(b.conv_1.weight)


@built("the time layer starts as N(0, 0.001²)")
def _(b, *_):
    nn.init.normal_(b.embedding.weight, std=1e-3)


@built("all weights of a layer start alike")
def _(b, *_):
    nn.init.constant_(b.conv_1.weight, 0.1)


@built("the time layer does not learn")
def _(b, *_):
    b.embedding.requires_grad_(False)


@built("the second norm does not learn")
def _(b, *_):
    b.norm_2.requires_grad_(False)


@built("biases do not learn")
def _(b, *_):
    b.conv_1.bias.requires_grad_(False)


@built("the last convolution does not learn")
def _(b, *_):
    b.conv_2.requires_grad_(False)


@built("weights in float64")
def _(b, *_):
    b.double()


@built("a learned gate that starts at zero")
def _(b, *_):
    b.gate = nn.Parameter(torch.zeros(()))


@built("spectral norm")
def _(b, *_):
    nn.utils.parametrizations.spectral_norm(b.conv_1)


@built("every block starts alike")
def _(b, *_):
    torch.manual_seed(7)
    b.conv_1.reset_parameters()


class Overwrites(Block):
    def forward(self, x, embedding):
        w = self.told(embedding)[:, :, None, None]
        h = self.second(self.tell(self.first(x), w))
        return h.add_(self.shortcut(x)) if h.shape != x.shape else x.add_(h)


wrong("residual block", "the input is overwritten")(Overwrites)


class Learned(Block):
    def forward(self, x, embedding):
        with torch.no_grad():
            w = self.told(embedding)[:, :, None, None]
        return self.join(x, self.second(self.tell(self.first(x), w)))


wrong("residual block", "the time without a gradient")(Learned)


@pytest.mark.parametrize(("name", "what"), WRONG, ids=lambda x: x)
def test_is_rejected(name, what):
    found = find(name)
    assert found.measure(WRONG[name, what]) >= found.rejects
