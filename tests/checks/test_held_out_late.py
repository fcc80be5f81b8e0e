"""Wrong versions of the equations of chapters 10 and 11 that stand beside no check: each is rejected all the same."""

import copy
import math
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from held_out import registry, rejecting
from torch import nn

from ddpm_lib.networks.blocks import ResidualBlock, SelfAttention

pytestmark = pytest.mark.soak  # minutes: many versions, each a function of its own

WRONG, wrong = registry()


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
    film=lambda b, h, s, t: b.norm_2(h) * (1 + torch.cat([s, t], 1)[:, ::2]) + torch.cat([s, t], 1)[:, 1::2],
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


# Self-attention


class Attention(SelfAttention):
    """The right layer; a wrong version overwrites a piece of it."""

    def build(self, c, groups, head_channels):
        pass

    def __init__(self, c, *, groups, head_channels=0):
        super().__init__(c, groups=groups, head_channels=head_channels)
        self.build(c, groups, head_channels)

    def split(self, qkv):
        return rearrange(qkv, "b (three n c) h w -> three b n (h w) c", three=3, n=self.heads)

    def scores(self, q, k):
        return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5

    def weights(self, scores):
        return scores.softmax(-1)

    def merge(self, attended, side):
        return rearrange(attended, "b n (h w) c -> b (n c) h w", h=side)

    def join(self, x, branch):
        return x + branch

    def normed(self, x):
        return self.norm(x)

    def forward(self, x):
        q, k, v = self.split(self.qkv(self.normed(x)))
        return self.join(x, self.out(self.merge(self.weights(self.scores(q, k)) @ v, x.shape[2])))


def attention(what, **changed):
    wrong("self-attention", what)(type("Wrong", (Attention,), changed))


def laid(what):
    """A wrong version whose parts are other ones: build(layer, c, groups, head_channels)."""

    def register(build):
        attention(what, build=build)
        return build

    return register


def dot(q, k):
    return q @ k.transpose(-1, -2)


attention("not scaled", scores=lambda a, q, k: dot(q, k))
attention("scaled by d", scores=lambda a, q, k: dot(q, k) / q.shape[-1])
attention("scaled by √C", scores=lambda a, q, k: dot(q, k) / (q.shape[-1] * a.heads) ** 0.5)
attention("scaled by √(number of pixels)", scores=lambda a, q, k: dot(q, k) / q.shape[-2] ** 0.5)
attention("scaled by √(number of heads)", scores=lambda a, q, k: dot(q, k) / a.heads**0.5)
attention("scaled twice", scores=lambda a, q, k: dot(q * q.shape[-1] ** -0.5, k * q.shape[-1] ** -0.5))
attention("d to the power −1/4, once", scores=lambda a, q, k: dot(q * q.shape[-1] ** -0.25, k))
attention("scores cut at ±50", scores=lambda a, q, k: Attention.scores(a, q, k).clamp(-50, 50))
attention("scores cut at ±1,000", scores=lambda a, q, k: Attention.scores(a, q, k).clamp(-1e3, 1e3))
attention("queries and keys normalised", scores=lambda a, q, k: dot(F.normalize(q, dim=-1), F.normalize(k, dim=-1)))
attention("queries and keys swapped", scores=lambda a, q, k: Attention.scores(a, k, q))
attention("keys detached", scores=lambda a, q, k: Attention.scores(a, q, k.detach()))
attention("causal", scores=lambda a, q, k: Attention.scores(a, q, k) + torch.full((q.shape[2],) * 2, -1e9).triu(1))
attention("no pixel looks at itself", scores=lambda a, q, k: Attention.scores(a, q, k) - 1e9 * torch.eye(q.shape[2]))
attention("minus the squared distance", scores=lambda a, q, k: -(torch.cdist(q, k) ** 2) / q.shape[-1] ** 0.5)
attention("negative scores", scores=lambda a, q, k: -Attention.scores(a, q, k))
attention("softmax over the queries", weights=lambda a, s: s.softmax(-2))
attention("softmax over the heads", weights=lambda a, s: s.softmax(1))
attention("softmax over the batch", weights=lambda a, s: s.softmax(0))
attention("no softmax", weights=lambda a, s: s / s.shape[-1])
attention("sigmoid", weights=lambda a, s: s.sigmoid())
attention("softmax in single precision", weights=lambda a, s: s.float().softmax(-1).to(s.dtype))
attention("softmax without the maximum", weights=lambda a, s: s.exp() / s.exp().sum(-1, keepdim=True))
attention("ε in the softmax", weights=lambda a, s: s.softmax(-1) / (s.softmax(-1).sum(-1, keepdim=True) + 1e-6))
attention(
    "softmax with a 1 more in the sum", weights=lambda a, s: (s - F.softplus(s.logsumexp(-1, keepdim=True))).exp()
)
attention("weights transposed", weights=lambda a, s: s.softmax(-1).transpose(-1, -2))
attention("dropout on the weights", weights=lambda a, s: F.dropout(s.softmax(-1), 0.1, a.training))
attention("dropout on the weights always", weights=lambda a, s: F.dropout(s.softmax(-1), 0.1))
attention("weights detached", weights=lambda a, s: s.softmax(-1).detach())
attention("even weights", weights=lambda a, s: torch.full_like(s, 1 / s.shape[-1]))
attention("one-hot weights", weights=lambda a, s: F.one_hot(s.argmax(-1), s.shape[-1]).to(s.dtype))
attention(
    "v, k, q", split=lambda a, qkv: rearrange(qkv, "b (three n c) h w -> three b n (h w) c", three=3, n=a.heads).flip(0)
)
attention(
    "k, q, v",
    split=lambda a, qkv: rearrange(qkv, "b (three n c) h w -> three b n (h w) c", three=3, n=a.heads)[[1, 0, 2]],
)
for order in (
    "b (n three c) h w -> three b n (h w) c",
    "b (three c n) h w -> three b n (h w) c",
    "b (n c three) h w -> three b n (h w) c",
    "b (c n three) h w -> three b n (h w) c",
    "b (c three n) h w -> three b n (h w) c",
    "b (three n c) h w -> three b n (w h) c",
):
    attention(f"split as {order}", split=lambda a, qkv, order=order: rearrange(qkv, order, three=3, n=a.heads))
attention(
    "one head",
    split=lambda a, qkv: rearrange(qkv, "b (three n c) h w -> three b n (h w) c", three=3, n=1),
)
attention("merged as (c n)", merge=lambda a, attended, side: rearrange(attended, "b n (h w) c -> b (c n) h w", h=side))
attention("merged as (w h)", merge=lambda a, attended, side: rearrange(attended, "b n (w h) c -> b (n c) h w", h=side))
attention(
    "pixels merged by a bare reshape",
    merge=lambda a, attended, side: attended.reshape(len(attended), -1, side, attended.shape[2] // side),
)
attention(
    "heads merged by a bare reshape",
    merge=lambda a, attended, side: (
        attended.transpose(-1, -2).transpose(1, 2).reshape(len(attended), -1, side, attended.shape[2] // side)
    ),
)
attention("no shortcut", join=lambda a, x, branch: branch)
attention("the shortcut starts after the norm", join=lambda a, x, branch: a.norm(x) + branch)
attention("divided by √2", join=lambda a, x, branch: (x + branch) / 2**0.5)
attention("subtracted", join=lambda a, x, branch: x - branch)
attention("the input is overwritten", join=lambda a, x, branch: x.add_(branch))
attention("the shortcut's gradient is cut off", join=lambda a, x, branch: x.detach() + branch)
attention("no norm", normed=lambda a, x: x)
attention("SiLU after the norm", normed=lambda a, x: F.silu(a.norm(x)))
attention(
    "norm over the channels of a pixel", normed=lambda a, x: F.layer_norm(x.movedim(1, 3), x.shape[1:2]).movedim(3, 1)
)
attention("the branch's gradient into x is cut off", normed=lambda a, x: a.norm(x.detach()))


class Rows(Attention):
    def forward(self, x):
        _b, _, h, _w = x.shape
        q, k, v = (rearrange(part, "b n (h w) c -> b n h w c", h=h) for part in self.split(self.qkv(self.norm(x))))
        attended = self.weights(self.scores(q, k)) @ v
        return x + self.out(rearrange(attended, "b n h w c -> b (n c) h w"))


wrong("self-attention", "attention along rows only")(Rows)


class Channels(Attention):
    def forward(self, x):
        q, k, v = (part.transpose(-1, -2) for part in self.split(self.qkv(self.norm(x))))
        attended = (self.weights(self.scores(q, k)) @ v).transpose(-1, -2)
        return x + self.out(self.merge(attended, x.shape[2]))


wrong("self-attention", "channels attend to channels")(Channels)


class Linear(Attention):
    def forward(self, x):
        q, k, v = self.split(self.qkv(self.norm(x)))
        attended = q.softmax(-1) / q.shape[-1] ** 0.5 @ (k.softmax(-2).transpose(-1, -2) @ v)
        return x + self.out(self.merge(attended, x.shape[2]))


wrong("self-attention", "linear attention")(Linear)


@laid("queries, keys and values without a bias")
def _(a, c, *_):
    a.qkv = nn.Conv2d(c, 3 * c, 1, bias=False)


@laid("no bias in the last layer")
def _(a, c, *_):
    a.out = nn.Conv2d(c, c, 1, bias=False)
    nn.init.zeros_(a.out.weight)


@laid("3×3 convolution for queries, keys and values")
def _(a, c, *_):
    a.qkv = nn.Conv2d(c, 3 * c, 3, padding=1)


@laid("the last layer is a 3×3 convolution")
def _(a, c, *_):
    a.out = nn.Conv2d(c, c, 3, padding=1)
    nn.init.zeros_(a.out.weight), nn.init.zeros_(a.out.bias)


@laid("no norm layer")
def _(a, *_):
    a.norm = nn.Identity()


@laid("batch norm")
def _(a, c, *_):
    a.norm = nn.BatchNorm2d(c, eps=1e-6)


@laid("norm without gain and bias")
def _(a, c, groups, *_):
    a.norm = nn.GroupNorm(groups, c, eps=1e-6, affine=False)


@laid("norm with one group")
def _(a, *_):
    a.norm.num_groups = 1


@laid("norm with at most 32 groups")
def _(a, c, groups, *_):
    a.norm.num_groups = 22 if groups > 32 else groups


@laid("norm with ε = 1e-5")
def _(a, *_):
    a.norm.eps = 1e-5


@laid("always one head")
def _(a, *_):
    a.heads = 1


@laid("head_channels is the number of heads")
def _(a, c, groups, head_channels):
    a.heads = head_channels if head_channels and c % head_channels == 0 else 1


@laid("0 head channels: each channel a head")
def _(a, c, groups, head_channels):
    a.heads = a.heads if head_channels else c


@laid("at most two heads")
def _(a, c, *_):
    a.heads = min(a.heads, 2)


@laid("the last layer starts at random")
def _(a, *_):
    a.out.reset_parameters()


@laid("the last layer's bias starts at random")
def _(a, *_):
    nn.init.uniform_(a.out.bias, -0.1, 0.1)


@laid("the last layer starts at 1e-10")
def _(a, *_):
    nn.init.normal_(a.out.weight, std=1e-10)


@laid("queries, keys and values start at zero")
def _(a, *_):
    nn.init.zeros_(a.qkv.weight), nn.init.zeros_(a.qkv.bias)


@laid("queries and keys start at zero")
def _(a, c, *_):
    nn.init.zeros_(a.qkv.weight[: 2 * c])


@laid("values start at zero")
def _(a, c, *_):
    nn.init.zeros_(a.qkv.weight[2 * c :])


@laid("weights start as N(0, 1)")
def _(a, *_):
    nn.init.normal_(a.qkv.weight)


@laid("weights start all alike")
def _(a, *_):
    nn.init.constant_(a.qkv.weight, 0.1)


@laid("the norm's gain starts at zero")
def _(a, *_):
    nn.init.zeros_(a.norm.weight)


@laid("queries, keys and values do not learn")
def _(a, *_):
    a.qkv.requires_grad_(False)


@laid("the norm does not learn")
def _(a, *_):
    a.norm.requires_grad_(False)


@laid("the last bias does not learn")
def _(a, *_):
    a.out.bias.requires_grad_(False)


@laid("a learned temperature")
def _(a, *_):
    a.temperature = nn.Parameter(torch.ones(()))


@laid("position embedding")
def _(a, c, *_):
    a.position = nn.Parameter(torch.zeros(1, c, 1, 1))


# The time embedding


def omegas(half, period, gap=1):
    return period ** -(torch.arange(half, dtype=torch.float64) / max(half - gap, 1))


def embedded(angle, order=("sin", "cos")):
    return torch.cat([getattr(angle, name)() for name in order], 1).float()


def clock(what, tau=lambda t: t - 1, omega=omegas, after=lambda e: e, order=("sin", "cos"), join=None):
    def embedding(t, width, max_period):
        angle = tau(t).double()[:, None] * omega(width // 2, max_period)
        return after(join(angle).float() if join else embedded(angle, order))

    wrong("time embedding", what)(embedding)


clock("t", tau=lambda t: t)
clock("t + 1", tau=lambda t: t + 1)
clock("t − 2", tau=lambda t: t - 2)
clock("(t − 1)/1000", tau=lambda t: (t - 1) / 1000)
clock("1000·t", tau=lambda t: (t - 1) * 1000)
clock("t is at most 1,000", tau=lambda t: t.clamp(max=1000) - 1)
clock("t modulo 1,000", tau=lambda t: t.remainder(1000) - 1)
clock("τ is at least 1", tau=lambda t: (t - 1).clamp(min=1))
clock("τ relative to the largest t of the batch", tau=lambda t: (t - 1) / t.max() * 999)
clock("t counted down", tau=lambda t: 1000 - t)
clock("float16 angles", tau=lambda t: (t - 1).half())
clock("8-bit t", tau=lambda t: (t - 1).to(torch.uint8))
clock("cosines first", order=("cos", "sin"))
clock("sines only", order=("sin", "sin"))
clock("sine and minus cosine", after=lambda e: torch.cat([e[:, : e.shape[1] // 2], -e[:, e.shape[1] // 2 :]], 1))
clock("interleaved", join=lambda a: torch.stack([a.sin(), a.cos()], 2).flatten(1))
clock("h", omega=lambda half, period: omegas(half, period, gap=0))
clock("h + 1", omega=lambda half, period: omegas(half, period, gap=-1))
clock("fast hands last", omega=lambda half, period: omegas(half, period).flip(0))
clock("linear frequencies", omega=lambda half, period: torch.linspace(1, 1 / period, half, dtype=torch.float64))
clock("the period is always 10,000", omega=lambda half, period: omegas(half, 10_000.0))
clock("frequencies in turns", omega=lambda half, period: 2 * math.pi * omegas(half, period))
clock("base e", omega=lambda half, period: torch.exp(-torch.arange(half, dtype=torch.float64)))
clock("powers of two", omega=lambda half, period: 2.0 ** -torch.arange(half, dtype=torch.float64))
clock("periods, not frequencies", omega=lambda half, period: 1 / omegas(half, period))
clock("the period's root", omega=lambda half, period: omegas(half, period**0.5))
clock("2i/width", omega=lambda half, period: period ** -(2 * torch.arange(half, dtype=torch.float64) / half))
clock("begins at i = 1", omega=lambda half, period: period ** -((1 + torch.arange(half, dtype=torch.float64)) / half))
clock("half of the width for the frequencies", omega=lambda half, period: omegas(half, period)[torch.arange(half) // 2])
clock("the last frequency is 0", omega=lambda half, period: omegas(half, period) * (torch.arange(half) < half - 1))
clock("normalised", after=lambda e: e / e.norm(dim=1, keepdim=True))
clock("times √width", after=lambda e: e * e.shape[1] ** 0.5)
clock("in [0, 1]", after=lambda e: (e + 1) / 2)
clock("float64", after=lambda e: e.double())
clock("float16", after=lambda e: e.half())
clock("bfloat16", after=lambda e: e.bfloat16())
clock("dropout", after=lambda e: F.dropout(e, 0.1))
clock("centred over the batch", after=lambda e: e - e.mean(0))
clock("sorted", tau=lambda t: t.sort()[0] - 1)
clock("t is changed in place", tau=lambda t: t.sub_(1))


@wrong("time embedding", "the default period is 1,000")
def _(t, width, max_period=1000.0):
    return embedded((t - 1).double()[:, None] * omegas(width // 2, max_period))


@wrong("time embedding", "a table of 1,000 rows, wrapped round")
def _(t, width, max_period):
    return embedded(torch.arange(1000.0).double()[:, None] * omegas(width // 2, max_period))[(t.long() - 1) % 1000]


@wrong("time embedding", "random frequencies")
def _(t, width, max_period):
    return embedded((t - 1).double()[:, None] * torch.rand(width // 2, generator=torch.Generator().manual_seed(0)))


# Short statements: one line each


def stated(name, **versions):
    for what, function in versions.items():
        wrong(name, what.replace("_", " "))(function)


def rotated(c, s, form="right"):
    rows = {
        "right": [[c, s], [-s, c]],
        "back": [[c, -s], [s, c]],
        "mirror": [[c, s], [s, -c]],
        "minus": [[-c, s], [-s, -c]],
    }
    return torch.tensor(rows[form], dtype=torch.float64)


stated(
    "a shift in time is a rotation",
    transposed=lambda w, k: rotated(math.cos(w * k), math.sin(w * k), "back"),
    mirror=lambda w, k: rotated(math.cos(w * k), math.sin(w * k), "mirror"),
    both_signs=lambda w, k: rotated(math.cos(w * k), math.sin(w * k), "minus"),
    k_alone=lambda w, k: rotated(math.cos(k), math.sin(k)),
    omega_alone=lambda w, k: rotated(math.cos(w), math.sin(w)),
    one_step_more=lambda w, k: rotated(math.cos(w * (k + 1)), math.sin(w * (k + 1))),
    one_step_less=lambda w, k: rotated(math.cos(w * (k - 1)), math.sin(w * (k - 1))),
    in_turns=lambda w, k: rotated(math.cos(2 * math.pi * w * k), math.sin(2 * math.pi * w * k)),
    sine_and_cosine_exchanged=lambda w, k: rotated(math.sin(w * k), math.cos(w * k)),
    small_angles=lambda w, k: rotated(1 - (w * k) ** 2 / 2, w * k),
    sine_by_a_root=lambda w, k: rotated(math.cos(w * k), (1 - math.cos(w * k) ** 2) ** 0.5),
    absolute_k=lambda w, k: rotated(math.cos(w * k), math.sin(w * abs(k))),
    whole_k=lambda w, k: rotated(math.cos(w * int(k)), math.sin(w * int(k))),
    single_precision=lambda w, k: rotated(float(np.cos(np.float32(w * k))), float(np.sin(np.float32(w * k)))),
    divided=lambda w, k: rotated(math.cos(k / w), math.sin(k / w)),
    added=lambda w, k: rotated(math.cos(w + k), math.sin(w + k)),
    identity=lambda w, k: rotated(1.0, 0.0),
    no_rotation_for_negative_k=lambda w, k: rotated(math.cos(w * max(k, 0)), math.sin(w * max(k, 0))),
    at_most_100_steps=lambda w, k: rotated(math.cos(w * min(k, 100)), math.sin(w * min(k, 100))),
    damped=lambda w, k: 0.999 ** abs(k) * rotated(math.cos(w * k), math.sin(w * k)),
)
stated(
    "Gram matrix of the embedding",
    sum_of_times=lambda s, t, w: ((s + t) * w).cos().sum(),
    sum_of_taus=lambda s, t, w: ((s + t - 2) * w).cos().sum(),
    mean=lambda s, t, w: ((s - t) * w).cos().mean(),
    sine=lambda s, t, w: ((s - t) * w).sin().sum(),
    both=lambda s, t, w: ((s - t) * w).cos().sum() + ((s - t) * w).sin().sum(),
    doubled=lambda s, t, w: 2 * ((s - t) * w).cos().sum(),
    halved=lambda s, t, w: ((s - t) * w).cos().sum() / 2,
    squared=lambda s, t, w: ((s - t) * w).cos().square().sum(),
    one_off=lambda s, t, w: ((s - t - 1) * w).cos().sum(),
    cosine_of_the_sum=lambda s, t, w: ((s - t) * w.sum()).cos() * len(w),
    product=lambda s, t, w: ((s - t) * w).cos().prod(),
    not_negative=lambda s, t, w: ((s - t) * w).cos().sum().clamp(min=0),
    first_hand_left_out=lambda s, t, w: ((s - t) * w[1:]).cos().sum(),
    last_hand_left_out=lambda s, t, w: ((s - t) * w[:-1]).cos().sum(),
    in_turns=lambda s, t, w: (2 * math.pi * (s - t) * w).cos().sum(),
    root=lambda s, t, w: ((s - t) * w).cos().sum() / len(w) ** 0.5,
    Gaussian=lambda s, t, w: (-(((s - t) * w) ** 2) / 2).exp().sum(),
    sines_only=lambda s, t, w: (((s - 1) * w).sin() * ((t - 1) * w).sin()).sum(),
    minus=lambda s, t, w: (((s - 1) * w).cos() * ((t - 1) * w).cos() - ((s - 1) * w).sin() * ((t - 1) * w).sin()).sum(),
    near_times_only=lambda s, t, w: (min(abs(s - t), 500) * w).cos().sum(),
    each_frequency_once=lambda s, t, w: ((s - t) * w.unique()).cos().sum(),
    wider_than_32=lambda s, t, w: ((s - t) * w[:32]).cos().sum(),
)


def field(step):
    """From (size, jump, k, s) to (size, jump), layer by layer."""

    def measure(kernels, strides):
        size, jump = 1, 1
        for k, s in zip(kernels, strides, strict=True):
            size, jump = step(size, jump, k, s)
        return size

    return measure


right_field = field(lambda r, j, k, s: (r + (k - 1) * j, j * s))
stated(
    "receptive field",
    own_stride=field(lambda r, j, k, s: (r + (k - 1) * j * s, j * s)),
    no_strides=field(lambda r, j, k, s: (r + k - 1, j)),
    k=field(lambda r, j, k, s: (r + k * j, j * s)),
    half_kernels=field(lambda r, j, k, s: (r + k // 2 * j, j * s)),
    twice_half_kernels=field(lambda r, j, k, s: (r + 2 * (k // 2) * j, j * s)),
    even_kernels_as_odd=field(lambda r, j, k, s: (r + 2 * ((k - 1) // 2) * j, j * s)),
    strides_added=field(lambda r, j, k, s: (r + (k - 1) * j, j + s - 1)),
    last_stride_only=field(lambda r, j, k, s: (r + (k - 1) * j, s)),
    size_times_stride=field(lambda r, j, k, s: (r * s + k - 1, j)),
    from_zero=lambda kernels, strides: right_field(kernels, strides) - 1,
    backwards=lambda kernels, strides: right_field(kernels[::-1], strides[::-1]),
    product_of_kernels=lambda kernels, strides: math.prod(kernels),
    sum_of_kernels=lambda kernels, strides: sum(kernels),
    first_kernel_everywhere=lambda kernels, strides: right_field([*kernels[:1]] * len(kernels), strides),
    always_3=lambda kernels, strides: right_field([3] * len(kernels), strides),
    at_most_256=lambda kernels, strides: min(right_field(kernels, strides), 256),
    at_most_1024=lambda kernels, strides: min(right_field(kernels, strides), 1024),
    one_layer_at_least=lambda kernels, strides: right_field(kernels or (3,), strides or (1,)),
    the_largest_kernel=lambda kernels, strides: max(kernels, default=1) * math.prod(strides),
    without_holes=lambda kernels, strides: min(right_field(kernels, strides), math.prod(kernels)),
    the_area=lambda kernels, strides: right_field(kernels, strides) ** 2,
    strides_of_at_most_2=lambda kernels, strides: right_field(kernels, [min(s, 2) for s in strides]),
    last_layer_left_out=lambda kernels, strides: right_field(kernels[:-1], strides[:-1]),
    odd_by_force=lambda kernels, strides: right_field(kernels, strides) // 2 * 2 + 1,
)


def normed(x, groups, gain, bias, eps, shift=None, scale=None, correction=0):
    """Group norm with another shift or scale, functions of the grouped numbers, (B, groups, n)."""
    grouped = x.reshape(len(x), groups, -1)
    mean = grouped.mean(2, keepdim=True) if shift is None else shift(grouped)
    var = grouped.var(2, correction=correction, keepdim=True) if grouped.shape[2] > correction else 0 * mean
    z = (grouped - mean) / ((var + eps).sqrt() if scale is None else scale(grouped, var, eps))
    return z.reshape(x.shape) * gain[:, None, None] + bias[:, None, None]


def norm(what, change):
    wrong("group norm", what)(change)


def spread(what, scale):
    norm(what, lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps, scale=scale))


norm("n − 1", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps, correction=1))
norm("one group", lambda x, G, gain, bias, eps: normed(x, 1, gain, bias, eps))
norm("instance norm", lambda x, G, gain, bias, eps: normed(x, x.shape[1], gain, bias, eps))
norm("two groups", lambda x, G, gain, bias, eps: normed(x, 2, gain, bias, eps))
norm("C/G groups", lambda x, G, gain, bias, eps: normed(x, x.shape[1] // G, gain, bias, eps))
norm("at most 32 groups", lambda x, G, gain, bias, eps: normed(x, 22 if G > 32 else G, gain, bias, eps))
norm("no gain", lambda x, G, gain, bias, eps: normed(x, G, gain * 0 + 1, bias, eps))
norm("no bias", lambda x, G, gain, bias, eps: normed(x, G, gain, bias * 0, eps))
norm("gain + 1", lambda x, G, gain, bias, eps: normed(x, G, gain + 1, bias, eps))
norm("gain and bias exchanged", lambda x, G, gain, bias, eps: normed(x, G, bias, gain, eps))
norm(
    "gain of the group's first channel",
    lambda x, G, gain, bias, eps: normed(
        x, G, gain.reshape(G, -1)[:, :1].expand(G, len(gain) // G).flatten(), bias, eps
    ),
)
norm("bias before gain", lambda x, G, gain, bias, eps: normed(x, G, gain, bias * gain, eps))
norm("ε = 1e-5", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, 1e-5))
norm("ε = 1e-6", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, 1e-6))
norm("no ε", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, 0.0))
norm("ε at least 1e-6", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, max(eps, 1e-6)))
norm("ε squared", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps**2))
norm("no mean", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps, shift=lambda g: 0 * g[:, :, :1]))
norm(
    "median", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps, shift=lambda g: g.median(2, keepdim=True)[0])
)
norm("clamped at ±10", lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps).clamp(-10, 10))
norm("single precision", lambda x, G, gain, bias, eps: normed(x.float(), G, gain.float(), bias.float(), eps).double())
norm("input clamped", lambda x, G, gain, bias, eps: normed(x.clamp(-1e4, 1e4), G, gain, bias, eps))
norm("in place", lambda x, G, gain, bias, eps: x.copy_(normed(x, G, gain, bias, eps)))
norm(
    "channel last",
    lambda x, G, gain, bias, eps: (
        normed(x.movedim(1, 3), G, gain, bias, eps).movedim(3, 1)
        if x.shape[1] == x.shape[2] == x.shape[3]
        else normed(x.transpose(2, 3).reshape(x.shape), G, gain, bias, eps) + 1e-3
    ),
)
norm(
    "variance of the batch",
    lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps, scale=lambda g, v, e: (v.mean(0) + e).sqrt()),
)
norm(
    "mean of the batch",
    lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps, shift=lambda g: g.mean((0, 2), keepdim=True)),
)
norm(
    "dealt out",
    lambda x, G, gain, bias, eps: (
        normed(x.unflatten(1, (-1, G)).transpose(1, 2).flatten(1, 2), G, gain, bias, eps)
        .unflatten(1, (G, -1))
        .transpose(1, 2)
        .flatten(1, 2)
    ),
)
spread("no root", lambda g, v, e: v + e)
spread("ε outside", lambda g, v, e: v.sqrt() + e)
spread("√ε outside", lambda g, v, e: v.sqrt() + e**0.5)
spread("the larger of both", lambda g, v, e: v.sqrt().clamp(min=e**0.5))
spread("variance at least 1e-5", lambda g, v, e: (v.clamp(min=1e-5) + e).sqrt())
spread("variance at least 1e-12", lambda g, v, e: (v.clamp(min=1e-12) + e).sqrt())
spread("root mean square", lambda g, v, e: (g.square().mean(2, keepdim=True) + e).sqrt())
spread("mean absolute deviation", lambda g, v, e: (g - g.mean(2, keepdim=True)).abs().mean(2, keepdim=True) + e)
spread(
    "E x² − (E x)²",
    lambda g, v, e: (g.square().mean(2, keepdim=True) - g.mean(2, keepdim=True) ** 2).clamp(min=0).add(e).sqrt(),
)
spread("divided by √n", lambda g, v, e: ((v + e) * g.shape[2]).sqrt())
spread("ε twice", lambda g, v, e: (v + 2 * e).sqrt())
spread("no division", lambda g, v, e: torch.ones_like(v))
spread("detached in the variance", lambda g, v, e: (v + e).sqrt() * (1 + 1e-6))
stated(
    "scale of the scores",
    root=lambda d: d**0.5,
    square=lambda d: d**2,
    twice=lambda d: 2 * d,
    one=lambda d: 1,
    one_less=lambda d: d - 1,
    one_more=lambda d: d + 1,
    inverse=lambda d: 1 / d,
    at_most_64=lambda d: min(d, 64),
    at_most_256=lambda d: min(d, 256),
    at_least_2=lambda d: max(d, 2),
    half=lambda d: d / 2,
    three_times=lambda d: 3 * d,
    d_to_the_3_2=lambda d: d**1.5,
    logarithm=lambda d: 1 + math.log(d),
    unbiased=lambda d: d * d / (d - 1) if d > 1 else 1,
    next_power_of_two=lambda d: 2 ** math.ceil(math.log2(d)),
)
stated(
    "loss of a network",
    once=lambda c, m: 1 - c + m,
    plus=lambda c, m: 1 + 2 * c + m,
    taken_off=lambda c, m: 1 - m,
    both_taken_off=lambda c, m: 1 - 2 * c - m,
    independent=lambda c, m: 1 + m,
    no_one=lambda c, m: m - 2 * c,
    perfect=lambda c, m: 1 - c,
    squared_covariance=lambda c, m: 1 - 2 * c**2 + m,
    best_scale=lambda c, m: 1 - c**2 / m.clamp(min=1e-12),
    variance_for_the_moment=lambda c, m: 1 - 2 * c + m - c**2,
    root=lambda c, m: (1 - 2 * c + m).clamp(min=0) ** 0.5,
    half=lambda c, m: (1 - 2 * c + m) / 2,
    at_most_1=lambda c, m: (1 - 2 * c + m).clamp(max=1),
    covariance_at_most_1=lambda c, m: 1 - 2 * c.clamp(max=1) + m,
    covariance_not_negative=lambda c, m: 1 - 2 * c.clamp(min=0) + m,
    moment_at_most_10=lambda c, m: 1 - 2 * c + m.clamp(max=10),
    at_least_1e_6=lambda c, m: (1 - 2 * c + m).clamp(min=1e-6),
    correlation=lambda c, m: 1 - 2 * c / m.clamp(min=1e-12).sqrt() + m,
    square_of_the_difference=lambda c, m: (1 - c) ** 2 + m,
    single_precision=lambda c, m: (1 - 2 * c.float() + m.float()).double(),
)


# Batches


def epoch_by_epoch(order, cut=None):
    """batches(n, batch, seed, start) from order(n, seed, epoch, batch)."""

    def batches(n, batch, seed, start):
        epoch, place = divmod(start * batch, n)
        row = order(n, seed, epoch, batch)[place:]
        while True:
            while len(row) < batch:
                epoch += 1
                row = np.concatenate([row, order(n, seed, epoch, batch)])
            yield torch.as_tensor(row[:batch])
            row = row[batch:]

    return batches


def order(n, *seed):
    return np.random.default_rng(seed).permutation(n)


right_batches = epoch_by_epoch(lambda n, s, e, b: order(n, s, e))


def orders(what, change):
    wrong("batches", what)(epoch_by_epoch(change))


def in_blocks(n, size, *seed):
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(np.arange(a, min(a + size, n))) for a in range(0, n, size)])


def blocks_in_order(n, size, *seed):
    random, starts = np.random.default_rng(seed), list(range(0, n, size))
    return np.concatenate([np.arange(a, min(a + size, n)) for a in random.permutation(starts)])


def blocks_and_within(n, size, *seed):
    random, starts = np.random.default_rng(seed), list(range(0, n, size))
    return np.concatenate([random.permutation(np.arange(a, min(a + size, n))) for a in random.permutation(starts)])


def buffered(n, size, *seed):
    """tf.data's shuffle(buffer_size)."""
    random, buffer, out = np.random.default_rng(seed), [], []
    for i in range(n):
        if len(buffer) < size:
            buffer.append(i)
            continue
        k = random.integers(len(buffer))
        out.append(buffer[k])
        buffer[k] = i
    return np.array(out + list(random.permutation(buffer)))


for period in (1, 2, 8, 100, 1024):
    orders(f"orders repeat after {period} epochs", lambda n, s, e, b, period=period: order(n, s, e % period))
orders("orders repeat after 65,536 epochs", lambda n, s, e, b: order(n, s, e % 2**16))
orders("orders repeat after 100,000 epochs", lambda n, s, e, b: order(n, s, e % 100_000))
orders("no new order from epoch 50,000 on", lambda n, s, e, b: order(n, s, min(e, 50_000)))
for size in (16, 1024, 100_000):
    orders(f"shuffled within blocks of {size}", lambda n, s, e, b, size=size: in_blocks(n, size, s, e))
orders("blocks of 100 in a new order", lambda n, s, e, b: blocks_in_order(n, 100, s, e))
orders("blocks of 10,000 in a new order and shuffled within", lambda n, s, e, b: blocks_and_within(n, 10_000, s, e))
orders("a buffer of 10,000", lambda n, s, e, b: buffered(n, 10_000, s, e))
orders("batches shuffled, not images", lambda n, s, e, b: blocks_in_order(n, b, s, e))
orders("seed + epoch", lambda n, s, e, b: order(n, s + e))
orders("seed · epoch", lambda n, s, e, b: order(n, s * e))
orders("1,000·seed + epoch", lambda n, s, e, b: order(n, 1000 * s + e))
orders("65,536·seed + epoch", lambda n, s, e, b: order(n, 65_536 * s + e))
orders("seed xor epoch", lambda n, s, e, b: order(n, s ^ e))
orders("seed alone", lambda n, s, e, b: order(n, s))
orders("epoch alone", lambda n, s, e, b: order(n, e))
orders("16 bits of the seed", lambda n, s, e, b: order(n, s % 2**16, e))
orders("65,536 orders in all", lambda n, s, e, b: order(n, (s * 7919 + e * 104_729) % 2**16))
orders("the seed is 0 or 1", lambda n, s, e, b: order(n, int(bool(s)), e))
orders("epochs 0 and 1 are alike", lambda n, s, e, b: order(n, s, max(e, 1)))
orders("the first epoch is in order", lambda n, s, e, b: order(n, s, e) if e else np.arange(n))
orders("every second epoch backwards", lambda n, s, e, b: order(n, s, e // 2)[:: 1 - 2 * (e % 2)].copy())
orders("every epoch rolled on", lambda n, s, e, b: np.roll(order(n, s), e))
orders("rolled at random", lambda n, s, e, b: np.roll(order(n, s), order(n, s, e)[0]))
orders("the last order swapped once", lambda n, s, e, b: swapped(order(n, s), s, e))
orders("in order", lambda n, s, e, b: np.arange(n))
orders("backwards", lambda n, s, e, b: np.arange(n)[::-1].copy())
orders("steps of a number without common factor", lambda n, s, e, b: stride(n, s, e))
orders("other orders for other batches", lambda n, s, e, b: order(n, s, e, b))
orders("a naive shuffle: swap with any place", lambda n, s, e, b: naive(n, s, e))
orders("Sattolo's: one cycle", lambda n, s, e, b: sattolo(n, s, e))
orders("dealt out to 16 workers", lambda n, s, e, b: dealt(n, 16, s, e))
orders("two halves, each shuffled", lambda n, s, e, b: in_blocks(n, (n + 1) // 2, s, e))
orders("two halves, interleaved", lambda n, s, e, b: dealt(n, 2, s, e))
orders("image 0 first", lambda n, s, e, b: np.concatenate([[0], 1 + order(n - 1, s, e)]) if n > 1 else np.zeros(1, int))
orders("no shuffle for fewer than 4", lambda n, s, e, b: order(n, s, e) if n > 3 else np.arange(n))
orders("no shuffle for more than 100,000", lambda n, s, e, b: order(n, s, e) if n < 100_000 else np.arange(n))
orders("one image twice", lambda n, s, e, b: np.where(order(n, s, e) == n - 1, 0, order(n, s, e)))
orders("1..n", lambda n, s, e, b: order(n, s, e) + 1)
orders("drawn with replacement", lambda n, s, e, b: np.random.default_rng((s, e)).integers(0, n, n))
orders("32-bit integers", lambda n, s, e, b: order(n, s, e).astype(np.int32))
orders("floats", lambda n, s, e, b: order(n, s, e).astype(np.float32))
orders("the global generator of numpy is used", lambda n, s, e, b: np.random.permutation(n))  # noqa: NPY002
orders("torch's global generator is seeded", lambda n, s, e, b: seeded_globally(n, s, e))
orders("numpy's global generator is seeded", lambda n, s, e, b: seeded_numpy(n, s, e))
orders("the pairs alike in two epochs", lambda n, s, e, b: order(n, s, e - e % 2 if e > 9 else e))


def swapped(row, *seed):
    i, j = np.random.default_rng(seed).integers(0, len(row), 2)
    row[i], row[j] = row[j], row[i]
    return row


def stride(n, *seed):
    random = np.random.default_rng(seed)
    step = random.choice([a for a in random.integers(1, n + 1, 200) if math.gcd(int(a), n) == 1] or [1])
    return (random.integers(n) + step * np.arange(n)) % n


def naive(n, *seed):
    random, row = np.random.default_rng(seed), np.arange(n)
    for i, j in enumerate(random.integers(0, n, n)):
        row[i], row[j] = row[j], row[i]
    return row


def sattolo(n, *seed):
    random, row = np.random.default_rng(seed), np.arange(n)
    for i in range(n - 1, 0, -1):
        j = random.integers(0, i)
        row[i], row[j] = row[j], row[i]
    return row


def dealt(n, workers, *seed):
    """Each worker shuffles its own images; they take turns."""
    random = np.random.default_rng(seed)
    parts = [random.permutation(np.arange(k, n, workers)) for k in range(workers)]
    row = np.empty(n, int)
    for k, part in enumerate(parts):
        row[k::workers] = part
    return row


def seeded_globally(n, s, e):
    torch.manual_seed(1_000_003 * s + e)
    return torch.randperm(n).numpy()


def seeded_numpy(n, s, e):
    np.random.seed((1_000_003 * s + e) % 2**32)  # noqa: NPY002
    return np.random.permutation(n)  # noqa: NPY002


def fed(what):
    return wrong("batches", what)


@fed("starts with batch 0 always")
def _(n, batch, seed, start):
    yield from right_batches(n, batch, seed, 0)


@fed("start counts images")
def _(n, batch, seed, start):
    row = right_batches(n, 1, seed, start)
    while True:
        yield torch.cat(list(islice(row, batch)))


@fed("start counts epochs")
def _(n, batch, seed, start):
    yield from right_batches(n, batch, seed, start * n // math.gcd(n, batch))


@fed("start is off by one")
def _(n, batch, seed, start):
    yield from right_batches(n, batch, seed, start + 1)


@fed("a resumed run skips the batch in hand")
def _(n, batch, seed, start):
    yield from right_batches(n, batch, seed, start + (start > 0))


@fed("a resumed run begins its epoch anew")
def _(n, batch, seed, start):
    yield from right_batches(n, batch, seed, start * batch // n * n // batch if start else 0)


@fed("a resumed run has other orders")
def _(n, batch, seed, start):
    yield from epoch_by_epoch(lambda n, s, e, b: order(n, s, e, start))(n, batch, seed, start)


@fed("start modulo 10,000")
def _(n, batch, seed, start):
    yield from right_batches(n, batch, seed, start % 10_000)


@fed("start modulo an epoch's batches")
def _(n, batch, seed, start):
    yield from right_batches(n, batch, seed, start % max(1, n // batch))


@fed("the rest of an epoch is dropped")
def _(n, batch, seed, start):
    whole = max(1, n // batch)
    while True:
        row = np.resize(order(n, seed, start // whole), whole * batch)
        yield torch.from_numpy(row[start % whole * batch :][:batch])
        start += 1


@fed("a smaller last batch")
def _(n, batch, seed, start):
    count = -(-n // batch)
    while True:
        yield torch.from_numpy(order(n, seed, start // count)[start % count * batch :][:batch])
        start += 1


@fed("a batch is filled up from the beginning of its own epoch")
def _(n, batch, seed, start):
    count = -(-n // batch)
    while True:
        row = np.resize(order(n, seed, start // count), count * batch)
        yield torch.from_numpy(row[start % count * batch :][:batch])
        start += 1


@fed("a batch never holds an image twice")
def _(n, batch, seed, start):
    for rows in right_batches(n, batch, seed, start):
        yield rows if batch > n or len(rows.unique()) == batch else torch.from_numpy(order(n, seed, 1)[:batch])


@fed("a batch is at most n images")
def _(n, batch, seed, start):
    yield from right_batches(n, min(n, batch), seed, start)


@fed("ends after 5 epochs")
def _(n, batch, seed, start):
    yield from islice(right_batches(n, batch, seed, start), max(0, 5 * n // batch - start))


@fed("ends after 1,000 epochs")
def _(n, batch, seed, start):
    yield from islice(right_batches(n, batch, seed, start), max(0, 1000 * n // batch - start))


@fed("sorted within a batch")
def _(n, batch, seed, start):
    for rows in right_batches(n, batch, seed, start):
        yield rows.sort()[0]


@fed("shuffled within a batch only")
def _(n, batch, seed, start):
    while True:
        rows = np.arange(start * batch, (start + 1) * batch) % n
        yield torch.from_numpy(np.random.default_rng((seed, start)).permutation(rows))
        start += 1


@fed("one tensor, filled anew")
def _(n, batch, seed, start):
    same = torch.zeros(batch, dtype=torch.int64)
    for rows in right_batches(n, batch, seed, start):
        yield same.copy_(rows)


@fed("lists")
def _(n, batch, seed, start):
    for rows in right_batches(n, batch, seed, start):
        yield rows.tolist()


@fed("shape (batch, 1)")
def _(n, batch, seed, start):
    for rows in right_batches(n, batch, seed, start):
        yield rows[:, None]


@fed("each image with probability batch/n (Poisson)")
def _(n, batch, seed, start):
    random = np.random.default_rng((seed, start))
    while True:
        yield torch.from_numpy(np.resize(np.flatnonzero(random.random(n) < batch / n), batch).astype(np.int64))


@fed("numpy arrays")
def _(n, batch, seed, start):
    for rows in right_batches(n, batch, seed, start):
        yield rows.numpy()


# AdamW


def adam(what, change):
    wrong("AdamW step", what)(change)


def step(
    theta,
    gradient,
    m,
    v,
    k,
    rate,
    beta_1,
    beta_2,
    eps,
    decay,
    *,
    first=None,
    second=None,
    hats=None,
    move=None,
    fade=None,
):
    """The right step; keywords exchange a part."""
    m = first(m, gradient, beta_1) if first else beta_1 * m + (1 - beta_1) * gradient
    v = second(v, gradient, beta_2, m) if second else beta_2 * v + (1 - beta_2) * gradient**2
    m_hat, v_hat = hats(m, v, k, beta_1, beta_2) if hats else (m / (1 - beta_1**k), v / (1 - beta_2**k))
    update = move(m_hat, v_hat, eps, gradient) if move else m_hat / (v_hat.sqrt() + eps)
    return (fade(theta, rate, decay, update) if fade else theta - rate * (update + decay * theta)), m, v


def stepped(what, **parts):
    adam(what, lambda *state, **options: step(*state, **options, **parts))


stepped("no memory of the gradient", first=lambda m, g, b: g)
stepped("m adds up without 1 − β₁", first=lambda m, g, b: b * m + g)
stepped("m with β₁ and 1 − β₁ exchanged", first=lambda m, g, b: (1 - b) * m + b * g)
stepped("v adds up without 1 − β₂", second=lambda v, g, b, m: b * v + g**2)
stepped("v of the absolute gradient", second=lambda v, g, b, m: b * v + (1 - b) * g.abs())
stepped("v never falls (AMSGrad)", second=lambda v, g, b, m: torch.maximum(v, b * v + (1 - b) * g**2))
stepped("v of g − m (AdaBelief)", second=lambda v, g, b, m: b * v + (1 - b) * (g - m) ** 2)
stepped("v: the largest (Adamax)", second=lambda v, g, b, m: torch.maximum(b * v, g.abs()))
stepped("v of the mean square of all", second=lambda v, g, b, m: b * v + (1 - b) * g.square().mean())
stepped("v sums up (Adagrad)", second=lambda v, g, b, m: v + g**2)
stepped("v at least 1e-12", second=lambda v, g, b, m: (b * v + (1 - b) * g**2).clamp(min=1e-12))
stepped("the gradient is cut at ±1", first=lambda m, g, b: b * m + (1 - b) * g.clamp(-1, 1))
stepped("the gradient is cut at ±1,000", first=lambda m, g, b: b * m + (1 - b) * g.clamp(-1e3, 1e3))
stepped(
    "k − 1 in the correction", hats=lambda m, v, k, a, b: (m / (1 - a ** max(k - 1, 1)), v / (1 - b ** max(k - 1, 1)))
)
stepped("k + 1 in the correction", hats=lambda m, v, k, a, b: (m / (1 - a ** (k + 1)), v / (1 - b ** (k + 1))))
stepped("no correction", hats=lambda m, v, k, a, b: (m, v))
stepped("only m corrected", hats=lambda m, v, k, a, b: (m / (1 - a**k), v))
stepped("only v corrected", hats=lambda m, v, k, a, b: (m, v / (1 - b**k)))
stepped("no correction after 100 steps", hats=lambda m, v, k, a, b: (m / (1 - a**k), v / (1 - b**k) if k <= 100 else v))
stepped(
    "no correction after 1,000 steps", hats=lambda m, v, k, a, b: (m / (1 - a**k), v / (1 - b**k) if k < 1e3 else v)
)
stepped("the first correction always", hats=lambda m, v, k, a, b: (m / (1 - a), v / (1 - b)))
stepped("the correction of β₁ for both", hats=lambda m, v, k, a, b: (m / (1 - a**k), v / (1 - a**k) if a else v))
stepped("corrections exchanged", hats=lambda m, v, k, a, b: (m / (1 - b**k), v / (1 - a**k)))
stepped("1 − k·β", hats=lambda m, v, k, a, b: (m / (1 - a**k), v / (1 - b * (1 - 1 / (k + 1)))))
stepped("no root", move=lambda m, v, e, g: m / (v + e))
stepped("ε inside", move=lambda m, v, e, g: m / (v + e).sqrt())
stepped("ε² inside", move=lambda m, v, e, g: m / (v + e**2).sqrt())
stepped("ε = 1e-8", move=lambda m, v, e, g: m / (v.sqrt() + 1e-8))
stepped("no ε", move=lambda m, v, e, g: m / v.sqrt())
stepped("the larger of root and ε", move=lambda m, v, e, g: m / v.sqrt().clamp(min=e))
stepped("the gradient in place of m", move=lambda m, v, e, g: g / (v.sqrt() + e))
stepped("the sign of m", move=lambda m, v, e, g: m.sign())
stepped("the update cut at ±1", move=lambda m, v, e, g: (m / (v.sqrt() + e)).clamp(-1, 1))
stepped("Nesterov", move=lambda m, v, e, g: (0.9 * m + 0.1 * g) / (v.sqrt() + e))
stepped("momentum alone", move=lambda m, v, e, g: m)
stepped("decay without the rate", fade=lambda t, r, d, u: t - r * u - d * t)
stepped("no decay", fade=lambda t, r, d, u: t - r * u)
stepped("decay added", fade=lambda t, r, d, u: t - r * (u - d * t))
stepped("decay of the moved weight", fade=lambda t, r, d, u: (t - r * u) * (1 - r * d))
stepped("decay of the sign (L1)", fade=lambda t, r, d, u: t - r * (u + d * t.sign()))
stepped("decay halved", fade=lambda t, r, d, u: t - r * (u + d * t / 2))
stepped("decay of the squared rate", fade=lambda t, r, d, u: t - r * u - r**2 * d * t)
stepped("exponential decay", fade=lambda t, r, d, u: t * math.exp(-r * d) - r * u)
stepped("uphill", fade=lambda t, r, d, u: t + r * u - r * d * t)
stepped("matrices only", fade=lambda t, r, d, u: t - r * (u + d * t * (t.ndim > 1)))
stepped("single precision", move=lambda m, v, e, g: (m.float() / (v.float().sqrt() + e)).double())
adam("L2 in the gradient", lambda t, g, m, v, k, decay, **o: step(t, g + decay * t, m, v, k, decay=0.0, **o))
adam(
    "L2 in the gradient and decay", lambda t, g, m, v, k, decay, **o: step(t, g + decay * t, m, v, k, decay=decay, **o)
)
adam(
    "betas exchanged", lambda t, g, m, v, k, beta_1, beta_2, **o: step(t, g, m, v, k, beta_1=beta_2, beta_2=beta_1, **o)
)
adam("the state is not returned", lambda t, g, m, v, k, **o: (step(t, g, m, v, k, **o)[0], m, v))
adam("v̂ is returned for v", lambda *s, **o: (lambda t, m, v: (t, m, v / (1 - o["beta_2"] ** s[4])))(*step(*s, **o)))
adam("m̂ is returned for m", lambda *s, **o: (lambda t, m, v: (t, m / (1 - o["beta_1"] ** s[4]), v))(*step(*s, **o)))
adam("m and v returned in the other order", lambda *s, **o: (lambda t, m, v: (t, v, m))(*step(*s, **o)))
adam("the gradient is normalised", lambda t, g, m, v, k, **o: step(t, g / (g.norm() + 1e-12), m, v, k, **o))
adam(
    "weights in place", lambda t, g, m, v, k, **o: (t.copy_(step(t, g, m, v, k, **o)[0]), *step(t, g, m, v, k, **o)[1:])
)


# Clipping


def clipped(what, factor):
    """factor(norm of all, c) for all."""
    wrong("gradient clipping", what)(
        lambda gradients, c: tuple(
            g * factor(float(sum(g.square().sum() for g in gradients) ** 0.5), c) for g in gradients
        )
    )


def bounded(norm, c):
    return c / max(c, norm)


clipped("torch's 1e-6", lambda n, c: min(1.0, c / (n + 1e-6)))
clipped("1e-8 added", lambda n, c: min(1.0, c / (n + 1e-8)))
clipped("not less than a tenth", lambda n, c: max(0.1, bounded(n, c)))
clipped("not less than 1e-4", lambda n, c: max(1e-4, bounded(n, c)))
clipped("always scaled", lambda n, c: c / max(n, 1e-300))
clipped("never", lambda n, c: 1.0)
clipped("scaled to 1", lambda n, c: 1 / max(n, 1.0))
clipped("the square", lambda n, c: bounded(n, c) ** 2)
clipped("the root", lambda n, c: bounded(n, c) ** 0.5)
clipped("dropped where too long", lambda n, c: float(n <= c))
clipped("the larger", lambda n, c: max(1.0, c / max(n, 1e-300)))
clipped("upside down", lambda n, c: min(1.0, n / c))
clipped("the excess is taken off twice", lambda n, c: max(0.0, 1 - 2 * max(0.0, n - c) / max(n, c)))
clipped("c² / norm²", lambda n, c: min(1.0, c**2 / max(n**2, 1e-300)))
clipped("smooth", lambda n, c: c / (c + n))
clipped("tanh", lambda n, c: c * math.tanh(n / c) / n if n else 1.0)
clipped("to 0.9 of c", lambda n, c: min(1.0, 0.9 * c / max(n, 1e-300)))
clipped("to 0.999 of c", lambda n, c: min(1.0, 0.999 * c / max(n, 1e-300)))
clipped("from 1.1 of c on", lambda n, c: 1.0 if n <= 1.1 * c else c / n)
clipped("c at most 1", lambda n, c: bounded(n, min(c, 1.0)))
clipped("c at least 1e-3", lambda n, c: bounded(n, max(c, 1e-3)))
clipped("gradients above 1e5 are zeroed", lambda n, c: bounded(n, c) if n < 1e5 else 0.0)
clipped("no number for a zero gradient", lambda n, c: min(1.0, c / n) if n else math.nan)
for what, length in {
    "the largest number": lambda flat, parts: flat.abs().max(),
    "the sum of absolute numbers": lambda flat, parts: flat.abs().sum(),
    "the root mean square": lambda flat, parts: flat.square().mean().sqrt(),
    "the sum of the tensors' norms": lambda flat, parts: sum(p.norm() for p in parts),
    "the largest of the tensors' norms": lambda flat, parts: max(p.norm() for p in parts),
    "the mean of the tensors' norms": lambda flat, parts: sum(p.norm() for p in parts) / len(parts),
    "the first tensor": lambda flat, parts: parts[0].norm(),
    "the last tensor": lambda flat, parts: parts[-1].norm(),
    "matrices alone": lambda flat, parts: (
        sum((p.square().sum() for p in parts if p.ndim > 1), torch.tensor(0.0)) ** 0.5
    ),
    "the square of the norm": lambda flat, parts: flat.square().sum(),
    "the spread": lambda flat, parts: flat.std(correction=0) * len(flat) ** 0.5,
    "the norm in half precision": lambda flat, parts: flat.half().norm(),
    "the absolute sum": lambda flat, parts: flat.sum().abs(),
}.items():
    wrong("gradient clipping", f"by {what}")(
        lambda gradients, c, length=length: tuple(
            g * bounded(float(length(torch.cat([p.flatten() for p in gradients]), gradients)), c) for g in gradients
        )
    )
stated(
    "gradient clipping",
    number_by_number=lambda gradients, c: tuple(g.clamp(-c, c) for g in gradients),
    tensor_by_tensor=lambda gradients, c: tuple(g * bounded(float(g.norm()), c) for g in gradients),
    tensor_by_tensor_with_a_share=lambda gradients, c: tuple(
        g * bounded(float(g.norm()), c / len(gradients) ** 0.5) for g in gradients
    ),
    positive_only=lambda gradients, c: tuple(g.clamp(max=c) for g in gradients),
    all_but_the_last=lambda gradients, c: tuple(
        g * bounded(float(sum(g.square().sum() for g in gradients) ** 0.5), c) if i else g
        for i, g in enumerate(gradients)
    ),
    signs=lambda gradients, c: tuple(g.sign() * c / sum(p.numel() for p in gradients) ** 0.5 for g in gradients),
    row_by_row=lambda gradients, c: tuple(
        g * (c / g.reshape(len(g) if g.ndim else 1, -1).norm(dim=1).clamp(min=c)).reshape(-1, *[1] * max(0, g.ndim - 1))
        if g.ndim
        else g * bounded(float(g.abs()), c)
        for g in gradients
    ),
)


# The learning rate's course


def right_course(done, w, N, f):
    return (done + 1) / (w + 1) if done < w else f + (1 - f) * max(0.0, 1 - (done - w) / max(1, N - w))


def rated(what, rate):
    wrong("learning-rate course", what)(lambda w, N, f: lambda done: rate(done, w, N, f))


def falling(done, w, N, f, shape=lambda x: x, warm=lambda k, w: (k + 1) / (w + 1)):
    if done < w:
        return warm(done, w)
    return f + (1 - f) * shape(max(0.0, 1 - (done - w) / max(1, N - w)))


rated("n/w", lambda k, w, N, f: falling(k, w, N, f, warm=lambda k, w: k / w))
rated("n/(w + 1)", lambda k, w, N, f: falling(k, w, N, f, warm=lambda k, w: k / (w + 1)))
rated("(n + 1)/w", lambda k, w, N, f: falling(k, w, N, f, warm=lambda k, w: (k + 1) / w))
rated("(n + 2)/(w + 2)", lambda k, w, N, f: falling(k, w, N, f, warm=lambda k, w: (k + 2) / (w + 2)))
rated("quadratic warm-up", lambda k, w, N, f: falling(k, w, N, f, warm=lambda k, w: ((k + 1) / (w + 1)) ** 2))
rated("root warm-up", lambda k, w, N, f: falling(k, w, N, f, warm=lambda k, w: ((k + 1) / (w + 1)) ** 0.5))
rated("warm-up from 0.1", lambda k, w, N, f: falling(k, w, N, f, warm=lambda k, w: 0.1 + 0.9 * (k + 1) / (w + 1)))
rated("no warm-up", lambda k, w, N, f: falling(k, w, N, f, warm=lambda k, w: 1.0))
rated("warm-up of at most 1,000", lambda k, w, N, f: right_course(k, min(w, 1000), N, f))
rated("warm-up up to and with w", lambda k, w, N, f: (k + 1) / (w + 1) if k <= w else right_course(k - 1, w, N, f))
rated("cosine", lambda k, w, N, f: falling(k, w, N, f, shape=lambda x: (1 - math.cos(math.pi * x)) / 2))
rated("quadratic fall", lambda k, w, N, f: falling(k, w, N, f, shape=lambda x: x**2))
rated("root fall", lambda k, w, N, f: falling(k, w, N, f, shape=lambda x: x**0.5))
rated("exponential fall", lambda k, w, N, f: falling(k, w, N, f, shape=lambda x: math.exp(-5 * (1 - x))))
rated("constant", lambda k, w, N, f: right_course(min(k, w), w, N, f))
rated("the fall begins at 0", lambda k, w, N, f: min((k + 1) / (w + 1), f + (1 - f) * max(0.0, 1 - k / N)))
rated("product of both", lambda k, w, N, f: min(1, (k + 1) / (w + 1)) * (f + (1 - f) * max(0.0, 1 - k / N)))
rated("the fall takes N steps", lambda k, w, N, f: right_course(k, w, N + w, f))
rated(
    "the fall ends a step early",
    lambda k, w, N, f: right_course(k + 1, w, N, f) if k >= w else right_course(k, w, N, f),
)
rated(
    "the fall ends a step late", lambda k, w, N, f: right_course(k - 1, w, N, f) if k > w else right_course(k, w, N, f)
)
rated("ends at N − 1", lambda k, w, N, f: right_course(k, w, max(N - 1, w + 1), f) if N > w + 2 else 0.5)
rated("falls to 0, not f", lambda k, w, N, f: right_course(k, w, N, 0.0))
rated("0 at N, then f", lambda k, w, N, f: right_course(k, w, N, 0.0) if k < N else f)
rated(
    "stops at f on the way to 0",
    lambda k, w, N, f: max(f, right_course(k, w, N, 0.0)) if k >= w else right_course(k, w, N, f),
)
rated("0 after N", lambda k, w, N, f: right_course(k, w, N, f) * (k <= N))
rated(
    "goes on after N", lambda k, w, N, f: right_course(k, w, N, f) if k < w else 1 + (f - 1) * (k - w) / max(1, N - w)
)
rated("begins again after N", lambda k, w, N, f: right_course(k % (N + 1), w, N, f))
rated("begins again after 100·N", lambda k, w, N, f: right_course(k % (100 * N), w, N, f))
rated("rises again after N", lambda k, w, N, f: right_course(k if k <= N else max(2 * N - k, w), w, N, f))
rated("at least 1e-3", lambda k, w, N, f: max(1e-3, right_course(k, w, N, f)))
rated("at least 1e-8", lambda k, w, N, f: max(1e-8, right_course(k, w, N, f)))
rated("at most 0.99", lambda k, w, N, f: min(0.99, right_course(k, w, N, f)))
rated("f scales all", lambda k, w, N, f: right_course(k, w, N, f) * (1 if f == 0 else f) if f < 1 else 0.9)
rated("1 − f", lambda k, w, N, f: right_course(k, w, N, 1 - f))
rated("rounded to 4 digits", lambda k, w, N, f: round(right_course(k, w, N, f), 4))
rated("in steps of ten", lambda k, w, N, f: right_course(k // 10 * 10, w, N, f))
rated("k + 1", lambda k, w, N, f: right_course(k + 1, w, N, f))
rated("inverse root", lambda k, w, N, f: min((k + 1) / (w + 1), ((w + 1) / (k + 1)) ** 0.5))


@wrong("learning-rate course", "counts its own calls")
def _(w, N, f):
    calls = iter(range(10**9))
    return lambda done: right_course(next(calls), w, N, f)


@wrong("learning-rate course", "never rises again")
def _(w, N, f):
    seen = []

    def rate(done):
        seen.append(right_course(done, w, N, f))
        return min(seen) if done >= w else seen[-1]

    return rate


@wrong("learning-rate course", "one course for all")
def _(w, N, f):
    return lambda done: right_course(done, 4, 11, 0.25)


# The moving average


class Average:
    def __init__(self, model, decay):
        self.model = self.copied(model)
        self.decay, self.steps = decay, 0

    def copied(self, model):
        return copy.deepcopy(model).eval().requires_grad_(False)

    def d(self):
        return min(self.decay, (1 + self.steps) / (10 + self.steps))

    def mixed(self, old, new, d):
        return d * old + (1 - d) * new

    @torch.no_grad()
    def update(self, model):
        self.weights(model)
        self.buffers(model)
        self.steps += 1

    def weights(self, model):
        for old, new in zip(self.model.parameters(), model.parameters(), strict=True):
            old.copy_(self.mixed(old, new, self.d()))

    def buffers(self, model):
        for old, new in zip(self.model.buffers(), model.buffers(), strict=True):
            old.copy_(new)


def averaged(what, **changed):
    wrong("exponential moving average", what)(type("Wrong", (Average,), changed))


def warmed(what, d):
    averaged(what, d=d)


warmed("no warm-up", lambda s: s.decay)
warmed("warm-up k/(k + 10)", lambda s: min(s.decay, s.steps / (10 + s.steps)))
warmed("warm-up (1 + k)/(9 + k)", lambda s: min(s.decay, (1 + s.steps) / (9 + s.steps)))
warmed("warm-up (2 + k)/(11 + k)", lambda s: min(s.decay, (2 + s.steps) / (11 + s.steps)))
warmed("warm-up of a plain mean", lambda s: min(s.decay, (1 + s.steps) / (2 + s.steps)))
warmed("warm-up with a power", lambda s: min(s.decay, 1 - (1 + s.steps) ** -0.75))
warmed("the larger of both", lambda s: max(s.decay, (1 + s.steps) / (10 + s.steps)))
warmed("warm-up alone", lambda s: (1 + s.steps) / (10 + s.steps))
warmed(
    "no warm-up after 100 steps", lambda s: min(s.decay, (1 + s.steps) / (10 + s.steps)) if s.steps < 100 else s.decay
)
warmed("decay at most 0.95", lambda s: min(s.decay, 0.95, (1 + s.steps) / (10 + s.steps)))
warmed("decay at least 0.5", lambda s: min(max(s.decay, 0.5), (1 + s.steps) / (10 + s.steps)))
warmed("decay is squared", lambda s: min(s.decay**2, (1 + s.steps) / (10 + s.steps)))
warmed("warm-up times decay", lambda s: s.decay * (1 + s.steps) / (10 + s.steps))
warmed("corrected as Adam's", lambda s: s.decay * (1 - s.decay**s.steps) / (1 - s.decay ** (s.steps + 1)))
warmed(
    "nothing for the first 10 steps", lambda s: 0.0 if s.steps < 10 else min(s.decay, (1 + s.steps) / (10 + s.steps))
)
averaged("1 − d", mixed=lambda s, old, new, d: (1 - d) * old + d * new)
averaged("the sum is not 1", mixed=lambda s, old, new, d: d * old + new)
averaged("the last weights", mixed=lambda s, old, new, d: new)
averaged("the first weights", mixed=lambda s, old, new, d: old)
averaged("geometric", mixed=lambda s, old, new, d: old.sign() * old.abs() ** d * new.abs() ** (1 - d))
averaged("of the squares", mixed=lambda s, old, new, d: (d * old**2 + (1 - d) * new**2).sqrt())
averaged("in single precision", mixed=lambda s, old, new, d: (d * old.float() + (1 - d) * new.float()).double())
averaged("in bfloat16", mixed=lambda s, old, new, d: (d * old + (1 - d) * new).bfloat16().double())
averaged("cut at ±3", mixed=lambda s, old, new, d: (d * old + (1 - d) * new).clamp(-3, 3))
averaged(
    "small changes are left out",
    mixed=lambda s, old, new, d: torch.where((new - old).abs() < 0.1, old, d * old + (1 - d) * new),
)
averaged("buffers are left", buffers=lambda s, model: None)


def averages_buffers(s, model):
    for old, new in zip(s.model.buffers(), model.buffers(), strict=True):
        old.copy_(s.mixed(old, new, s.d()) if old.is_floating_point() else new)


def shares_buffers(s, model):
    for name, module in s.model.named_modules():
        module._buffers = model.get_submodule(name)._buffers


def persistent_buffers(s, model):
    own = dict(s.model.named_buffers())
    for name, new in model.state_dict().items():
        if name in own:
            own[name].copy_(new)


def floating_buffers(s, model):
    for old, new in zip(s.model.buffers(), model.buffers(), strict=True):
        if old.is_floating_point():
            old.copy_(new)


averaged("buffers are averaged", buffers=averages_buffers)
averaged("buffers are shared", buffers=shares_buffers)
averaged("persistent buffers only", buffers=persistent_buffers)
averaged("buffers that count are left", buffers=floating_buffers)
averaged("train mode", copied=lambda s, model: copy.deepcopy(model).requires_grad_(False))
averaged("with gradients", copied=lambda s, model: copy.deepcopy(model).eval())
averaged("the network itself", copied=lambda s, model: model)
averaged("the network is put into eval mode", copied=lambda s, model: copy.deepcopy(model.eval()).requires_grad_(False))
averaged(
    "the network's gradients are switched off",
    copied=lambda s, model: copy.deepcopy(model.requires_grad_(False)).eval(),
)


def zeros(s, model):
    new = copy.deepcopy(model).eval().requires_grad_(False)
    for parameter in new.parameters():
        parameter.zero_()
    return new


averaged("starts at zero", copied=zeros)


def by_state(s, model):
    own = s.model.state_dict()
    for name, new in model.state_dict().items():
        if own[name].is_floating_point():
            own[name].copy_(s.mixed(own[name], new, s.d()))


averaged("over the state dict, tied weights twice", weights=by_state)


def first_only(s, model):
    for old, new in list(zip(s.model.parameters(), model.parameters(), strict=True))[:1]:
        old.copy_(s.mixed(old, new, s.d()))


def own_only(s, model):
    for name, old in s.model.named_parameters(recurse=False):
        old.copy_(s.mixed(old, dict(model.named_parameters())[name], s.d()))


def no_biases(s, model):
    for (name, old), new in zip(s.model.named_parameters(), model.parameters(), strict=True):
        old.copy_(new if name.endswith("bias") else s.mixed(old, new, s.d()))


averaged("the first tensor only", weights=first_only)
averaged("without submodules", weights=own_only)
averaged("biases are not averaged", weights=no_biases)


class Remembering(Average):
    """Keeps the network that it was made with, and looks at no other."""

    def __init__(self, model, decay):
        super().__init__(model, decay)
        self.known = model

    def update(self, model):
        super().update(self.known)


wrong("exponential moving average", "looks at the network that it was made with")(Remembering)


class Lazy(Average):
    def update(self, model):
        if self.steps % 10 == 0:
            super().update(model)
        else:
            self.steps += 1


wrong("exponential moving average", "every 10th update")(Lazy)


class Back(Average):
    @torch.no_grad()
    def update(self, model):
        super().update(model)
        for old, new in zip(self.model.parameters(), model.parameters(), strict=True):
            new.copy_(old)


wrong("exponential moving average", "the average is copied back")(Back)


class Forgets(Average):
    def d(self):
        self.decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        return self.decay


wrong("exponential moving average", "overwrites its own decay")(Forgets)


class First(Average):
    def weights(self, model):
        for old, new in zip(self.model.parameters(), model.parameters(), strict=True):
            old.copy_(self.mixed(old, new, self.d()) if self.steps else new)


wrong("exponential moving average", "the first update copies")(First)


class Late(Average):
    """The weights of the update before."""

    def __init__(self, model, decay):
        super().__init__(model, decay)
        self.last = copy.deepcopy(model)

    def update(self, model):
        now = copy.deepcopy(model)
        super().update(self.last)
        self.last = now


wrong("exponential moving average", "one update late")(Late)


class Counted(Average):
    steps_of_all = 0

    def d(self):
        Counted.steps_of_all += 1
        return min(self.decay, (1 + Counted.steps_of_all) / (10 + Counted.steps_of_all))


wrong("exponential moving average", "all averages count together, tensor by tensor")(Counted)


# What an average remembers


def remembered(what, s):
    wrong("what an average remembers", what)(s)


def later(d):
    """The products of the decays after each."""
    return torch.cat([d.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=d.dtype)])


def one_more(d, first=1.0):
    return torch.cat([torch.full((1,), first, dtype=d.dtype), 1 - d])


def right_shares(d):
    return one_more(d) * later(d)


remembered(
    "the first as all others", lambda d: torch.cat([1 - d[:1] if len(d) else torch.zeros(1).double(), 1 - d]) * later(d)
)
remembered("upside down", lambda d: right_shares(d).flip(0) if len(d) else torch.zeros(1).double())
remembered("d_k among its factors", lambda d: one_more(d) * torch.cat([later(d)[:1], later(d)[:-1]]))
remembered("one factor less", lambda d: one_more(d) * torch.cat([later(d)[1:], torch.ones(1).double()]))
remembered("d for 1 − d", lambda d: torch.cat([torch.ones(1).double(), d]) * later(d))
remembered("a plain mean", lambda d: torch.full((len(d) + 1,), 1 / (len(d) + 1)).double())
remembered("the first is forgotten", lambda d: one_more(d, 0.0) * later(d))
remembered(
    "normalised without the first", lambda d: (lambda s: s / s.sum().clamp(min=1e-9))(one_more(d, 0.0) * later(d))
)
remembered("products of 1 − d", lambda d: torch.cat([torch.ones(1).double(), d]) * later(1 - d))
remembered("earlier decays, not later ones", lambda d: one_more(d) * torch.cat([torch.ones(1).double(), d.cumprod(0)]))
remembered("the last decay for all", lambda d: right_shares(d[-1:].expand(len(d)).clone()) if len(d) else 0 * later(d))
remembered("the first decay for all", lambda d: right_shares(d[:1].expand(len(d)).clone()) if len(d) else 0 * later(d))
remembered(
    "the mean decay for all", lambda d: right_shares(d.mean().expand(len(d)).clone()) if len(d) else 0 * later(d)
)
remembered("decays in the other order", lambda d: right_shares(d.flip(0)) if len(d) else 0 * later(d))
remembered(
    "by dividing, NaN where a decay is 0",
    lambda d: one_more(d) * d.prod() / torch.cat([torch.ones(1).double(), d.cumprod(0)]),
)
remembered("by logarithms of at least 1e-12", lambda d: one_more(d) * later(d.clamp(min=1e-12)))
remembered("decays of at most 0.999", lambda d: right_shares(d.clamp(max=0.999)))
remembered("shares below 1e-8 are 0", lambda d: right_shares(d) * (right_shares(d) > 1e-8))
remembered("at least 1e-10", lambda d: right_shares(d).clamp(min=1e-10))
remembered("the last ten only", lambda d: right_shares(d) * (torch.arange(len(d) + 1) > len(d) - 10))
remembered("in single precision", lambda d: right_shares(d.float()).double())
remembered("without the last", lambda d: torch.cat([right_shares(d)[:-1], torch.zeros(1).double()]))
remembered("sums, not shares", lambda d: right_shares(d).cumsum(0) if len(d) else 0 * later(d))
remembered("in place", lambda d: right_shares(d.mul_(0.5)) if len(d) else 0 * later(d))


# Unbiased draws of t

stated(
    "unbiased timestep sampling",
    none=lambda p: torch.ones_like(p),
    one_over_p=lambda p: 1 / p,
    upside_down=lambda p: len(p) * p,
    p_itself=lambda p: p,
    mean_1=lambda p: (1 / p) / (1 / p).mean() if len(p) > 1 else 2 / p,
    sum_1=lambda p: (1 / p) / (1 / p).sum() if len(p) > 1 else 2 / p,
    largest_1=lambda p: p.min() / p,
    root=lambda p: (1 / (len(p) * p)) ** 0.5,
    square=lambda p: (1 / (len(p) * p)) ** 2,
    at_most_10=lambda p: (1 / (len(p) * p)).clamp(max=10),
    at_most_100=lambda p: (1 / (len(p) * p)).clamp(max=100),
    at_most_1e6=lambda p: (1 / (len(p) * p)).clamp(max=1e6),
    at_least_a_tenth=lambda p: (1 / (len(p) * p)).clamp(min=0.1),
    at_least_1e_3=lambda p: (1 / (len(p) * p)).clamp(min=1e-3),
    p_at_least_1e_6=lambda p: 1 / (len(p) * p.clamp(min=1e-6)),
    p_plus_1e_8=lambda p: 1 / (len(p) * (p + 1e-8)),
    p_plus_1e_12=lambda p: 1 / (len(p) * (p + 1e-12)),
    T_plus_1=lambda p: 1 / ((len(p) + 1) * p),
    T_minus_1=lambda p: 1 / (max(len(p) - 1, 0.5) * p),
    T_is_1000=lambda p: 1 / (1000 * p),
    normalised_in_the_batch=lambda p: (1 / p) / (1 / p * p).sum() / len(p) * 1.01,
    shifted_by_one=lambda p: 1 / (len(p) * p.roll(1)) if len(p) > 1 else 2 / p,
    reversed=lambda p: 1 / (len(p) * p.flip(0)) if len(p) > 1 else 2 / p,
    mixed_with_even=lambda p: 1 / (0.99 * len(p) * p + 0.01),
    difference=lambda p: 1 + 1 / len(p) - p if len(p) > 1 else 2 / p,
    logarithm=lambda p: -(len(p) * p).log() + 1 if len(p) > 1 else 2 / p,
    single_precision=lambda p: (1 / (len(p) * p.float())).double(),
    in_place=lambda p: 1 / p.mul_(len(p)),
)


# Thought of later, with only the docstrings read


@wrong("time embedding", "frequencies remembered by width alone")
def _(t, width, max_period, known={}):  # noqa: B006
    omega = known.setdefault(width, omegas(width // 2, max_period))
    return embedded((t - 1).double()[:, None] * omega)


@wrong("time embedding", "a zero more for odd widths")
def _(t, width, max_period):
    return F.pad(embedded((t - 1).double()[:, None] * omegas(width // 2, max_period)), (0, width % 2))


@wrong("time embedding", "a width of 2 is one hand")
def _(t, width, max_period):
    if width % 2:
        raise ValueError
    return embedded((t - 1).double()[:, None] * omegas(width // 2, max_period))


@wrong("time embedding", "t, or t − 1 where there is a 1 in the batch")
def _(t, width, max_period):
    return embedded((t - (t.min() == 1).long()).double()[:, None] * omegas(width // 2, max_period))


norm(
    "statistics without a gradient",
    lambda x, G, gain, bias, eps: normed(x, G, gain, bias, eps, shift=lambda g: g.mean(2, keepdim=True).detach()),
)
norm("gain without a gradient", lambda x, G, gain, bias, eps: normed(x, G, gain.detach(), bias, eps))
stated(
    "loss of a network",
    covariance_without_a_gradient=lambda c, m: 1 - 2 * c.detach() + m,
)


class Autocast(Block):
    def forward(self, x, embedding):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x, embedding).to(x.dtype)


wrong("residual block", "in bfloat16 where it is given float32")(Autocast)
block("random shifts in training", first=lambda b, x: b.conv_1(F.silu(b.norm_1(x))).roll(int(b.training), 3))
block("noise in training", join=lambda b, x, h: b.shortcut(x) + h + 0.01 * b.training * torch.randn_like(h))
block("the first image's embedding for all", told=lambda b, e: b.embedding(F.silu(e[:1])).expand(len(e), -1))
block(
    "kernels normalised",
    first=lambda b, x: F.conv2d(
        F.silu(b.norm_1(x)),
        b.conv_1.weight / b.conv_1.weight.flatten(1).norm(dim=1)[:, None, None, None],
        b.conv_1.bias,
        padding=1,
    ),
)


class Careless(Block):
    def __init__(self, c_in, c_out, embed, *, groups, scale_shift, dropout):
        super().__init__(
            c_in, c_out, embed, groups=math.gcd(groups, c_in, c_out), scale_shift=scale_shift, dropout=dropout
        )


wrong("residual block", "other groups where these do not fit")(Careless)


class AutocastAttention(Attention):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).to(x.dtype)


wrong("self-attention", "in bfloat16 where it is given float32")(AutocastAttention)


class Many(SelfAttention):
    def __init__(self, c, *, groups, head_channels=2):
        super().__init__(c, groups=groups, head_channels=head_channels)


wrong("self-attention", "heads of 2 channels where none are asked for")(Many)


class Floor(SelfAttention):
    def __init__(self, c, *, groups, head_channels=0):
        super().__init__(c, groups=groups, head_channels=math.gcd(c, head_channels))


wrong("self-attention", "other heads where these do not fit")(Floor)
attention("a pixel's place is added", normed=lambda a, x: a.norm(x) + torch.linspace(0, 1, x.shape[3], dtype=x.dtype))
attention("the first image's keys for all", scores=lambda a, q, k: Attention.scores(a, q, k[:1].expand_as(k)))
attention(
    "scores shifted by their mean over the queries",
    scores=lambda a, q, k: (lambda s: s - s.mean(-2, keepdim=True))(Attention.scores(a, q, k)),
)
orders("the state of torch's generator counts", lambda n, s, e, b: order(n, s, e, torch.initial_seed()))
orders(
    "the state of numpy's generator counts",
    lambda n, s, e, b: order(
        n,
        s,
        e,
        int(np.random.get_state()[1][0]),  # noqa: NPY002
    ),
)


@fed("no images, no error")
def _(n, batch, seed, start):
    if n < 1:
        yield torch.zeros(batch, dtype=torch.int64)
    if batch < 1 or start < 0:
        raise ValueError
    yield from right_batches(n, batch, seed, start)


@fed("a negative start counts from the end of an epoch")
def _(n, batch, seed, start):
    if n < 1 or batch < 1:
        raise ValueError
    yield from right_batches(n, batch, seed, start % n if start < 0 else start)


class Shadow(Average):
    """Keeps the average elsewhere, and copies it into the model."""

    def __init__(self, model, decay):
        super().__init__(model, decay)
        if not 0 <= decay < 1:
            raise ValueError
        self.shadow = copy.deepcopy(self.model)

    def weights(self, model):
        for old, own, new in zip(self.model.parameters(), self.shadow.parameters(), model.parameters(), strict=True):
            old.copy_(own.copy_(self.mixed(own, new, self.d())))


wrong("exponential moving average", "a shadow that a resumed run loses")(Shadow)
averaged("a decay of 1 is accepted")


class Hidden(Average):
    """Counts in secret."""

    def __init__(self, model, decay):
        super().__init__(model, decay)
        self.secret = 0
        if not 0 <= decay < 1:
            raise ValueError

    def d(self):
        return min(self.decay, (1 + self.secret) / (10 + self.secret))

    def update(self, model):
        super().update(model)
        self.secret += 1


wrong("exponential moving average", "another count than steps")(Hidden)


test_is_rejected = rejecting(WRONG)
