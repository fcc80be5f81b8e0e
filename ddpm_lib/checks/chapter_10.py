"""The checks of chapter 10, the U-Net. The routes are plain: rotations step by step, autograd, loops over pixels."""

import copy
import inspect
import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy.signal import correlate
from scipy.special import expit
from torch import nn

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import hermite
from ddpm_lib.checks.guard import Watched, accepted, fault, slope_gap, until
from ddpm_lib.checks.layers import coin_score, made, shaken, slope, start, unlike, unmoved
from ddpm_lib.networks.blocks import ResidualBlock, SelfAttention, zero


def hands(last, omega):
    """Sines and cosines of ω·τ for τ = 0..last, (last + 1, len(ω)) each: τ turns by ω, one after the other."""
    turn = np.exp(1j * np.asarray(omega))
    points = np.cumprod(np.vstack([np.ones_like(turn), np.tile(turn, (last, 1))]), axis=0)
    return points.imag, points.real


@check("10.1", "time embedding", "implementation", "clock hands, turned one step at a time", to=2e-4)
@until(0.002)
def time_embedding(f):
    """f(t, width, max_period) returns (B, width), of t − 1, as published networks count.

    float32 and computed so: angles up to 999 cost four digits. t: (B,), integers of 32 or 64 bits. A default of
    max_period, if there is one, is 10,000. ValueError for a width that is odd or below 4.
    """
    has_default = any(p.default is not p.empty for p in list(inspect.signature(f).parameters.values())[2:3])
    f = Watched(f)
    for t, width, period in (
        ([1000, 1, 17, 2, 500, 3], 16, 10_000.0),
        ([7, 1, 400], 4, 500.0),
        ([2, 1, 999, 64], 128, 10_000.0),
        ([3], 6, 2.0),
        ([1, 50, 51], 10, 1e6),
        ([4000, 1001, 1024, 2049], 6, 10_000.0),  # longer chains; few of the hands are fast, so four digits are left
        (list(range(1, 1001)), 8, 100.0),
    ):
        sines, cosines = hands(max(t), np.geomspace(1, 1 / period, width // 2))
        row = np.array(t) - 1  # published networks count from 0
        expected = np.concatenate([sines[row], cosines[row]], axis=1)
        for dtype in (torch.int64, torch.int32):
            got = f(torch.tensor(t, dtype=dtype), width, period)
            yield apart(got, expected)
            yield fault(got.dtype != torch.float32)
    if has_default:
        yield apart(f(torch.tensor([900, 5]), 8), f(torch.tensor([900, 5]), 8, 10_000.0))
    yield f.fault
    for width in (5, 2):
        yield accepted(lambda width=width: f(torch.tensor([1, 2]), width, 10_000.0))


def _angles(t, width, max_period, shift=1, gap=1):
    """The angles (B, width/2) in float64; gap: 1 if the last frequency is 1/max_period, 0 if the one after it is."""
    half = width // 2
    power = torch.arange(half, dtype=torch.float64) / (half - gap)
    return (t - shift).double()[:, None] * max_period**-power


@time_embedding.wrong(
    "t in place of t − 1",
    seen="no public source: networks whose steps count from 0, copied beside a t from 1",
    idea="time",
)
def _(t, width, max_period):
    angle = _angles(t, width, max_period, shift=0)
    return torch.cat([angle.sin(), angle.cos()], 1).float()


@time_embedding.wrong(
    "cosines first",
    seen="openai/guided-diffusion and improved-diffusion, nn.py; right for their own weights only",
    idea="exchange",
)
def _(t, width, max_period):
    angle = _angles(t, width, max_period)
    return torch.cat([angle.cos(), angle.sin()], 1).float()


@time_embedding.wrong(
    "half in place of half − 1 in the frequencies",
    seen="openai/guided-diffusion and improved-diffusion, nn.py; right for their own weights only",
    idea="time",
)
def _(t, width, max_period):
    angle = _angles(t, width, max_period, gap=0)
    return torch.cat([angle.sin(), angle.cos()], 1).float()


@time_embedding.wrong(
    "sine and cosine alternate",
    seen="Vaswani et al. 2017, section 3.5, as printed; right for its own weights only",
    idea="axis",
)
def _(t, width, max_period):
    angle = _angles(t, width, max_period)
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1).float()


@time_embedding.wrong(
    "sine on even rows, cosine on odd rows, not on columns",
    seen="dataflowr/notebooks, Module18/ddpm_nano_sol.ipynb; BrianPulfer/PapersReimplementations issue 9",
    idea="axis",
)
def _(t, width, max_period):
    table = _angles(torch.arange(1, 4001), width, max_period).repeat(1, 2)
    table[0::2] = table[0::2].sin()
    table[1::2] = table[0::2].cos()  # the cosine of a sine, that of another t
    return table[t - 1].float()


@time_embedding.wrong(
    "t/T in place of t − 1",
    seen="no public source: a relative time, handed to frequencies made for whole steps",
    idea="exchange",
)
def _(t, width, max_period):
    angle = _angles(t, width, max_period, shift=0) / 1000
    return torch.cat([angle.sin(), angle.cos()], 1).float()


@time_embedding.wrong(
    "a table of 1,000 rows: longer chains begin again",
    seen="no public source: a chain of 4,000 steps given to code for 1,000",
    idea="edge",
)
def _(t, width, max_period):
    angle = _angles((t.long() - 1) % 1000, width, max_period, shift=0)
    return torch.cat([angle.sin(), angle.cos()], 1).float()


@time_embedding.wrong(
    "in half precision", seen="no public source: a network in bfloat16, its embedding with it", idea="edge"
)
def _(t, width, max_period):
    angle = _angles(t, width, max_period)
    return torch.cat([angle.sin(), angle.cos()], 1).bfloat16()


@check("10.2", "a shift in time is a rotation", "identity", "least squares over 200 times", to=1e-9)
@until(1e-8)
def shift_is_rotation(f):
    """f(omega, k) returns the matrix, (2, 2), that takes (sin ωτ, cos ωτ) to (sin ω(τ + k), cos ω(τ + k))."""
    for omega, k in (
        *((1.0, 1), (0.3, 5), (0.02, 40), (0.7, -3), (0.4, 0), (2.5, 1), (-0.6, 2)),
        *((0.9, 999), (0.013, -450), (1e-4, 7), (1e-3, 4000), (0.8, 2.5)),
    ):
        now, later = (
            np.stack([np.sin(omega * tau), np.cos(omega * tau)], 1) for tau in (np.arange(200), np.arange(200) + k)
        )
        yield apart(f(omega, k), np.linalg.lstsq(now, later, rcond=None)[0].T)


def _matrix(rows):
    return torch.tensor(rows, dtype=torch.float64)


@shift_is_rotation.states
def _(omega, k):
    c, s = math.cos(omega * k), math.sin(omega * k)
    return _matrix([[c, s], [-s, c]])


@shift_is_rotation.wrong(
    "the matrix for pairs (cos, sin)", seen="no public source: the order of the pair mixed up", idea="exchange"
)
def _(omega, k):
    c, s = math.cos(omega * k), math.sin(omega * k)
    return _matrix([[c, -s], [s, c]])


@shift_is_rotation.wrong(
    "a reflection: determinant −1", seen="no public source: a sign lost in the addition theorems", idea="sign"
)
def _(omega, k):
    c, s = math.cos(omega * k), math.sin(omega * k)
    return _matrix([[c, s], [s, -c]])


@shift_is_rotation.wrong("the same angle k for every hand", seen="no public source: ω forgotten", idea="term")
def _(omega, k):
    c, s = math.cos(k), math.sin(k)
    return _matrix([[c, s], [-s, c]])


@shift_is_rotation.wrong(
    "the first terms of the series: 1 − φ²/2 and φ",
    seen="no public source: a small angle taken for granted",
    idea="edge",
)
def _(omega, k):
    angle = omega * k
    return _matrix([[1 - angle**2 / 2, angle], [-angle, 1 - angle**2 / 2]])


@check("10.3", "Gram matrix of the embedding", "identity", "inner products of clock hands", to=1e-9)
@until(1e-8)
def gram(f):
    """f(s, t, omega) returns e(s)·e(t) for one pair of times; omega: the h frequencies, a float64 tensor (h,)."""
    for omega in (
        *(np.geomspace(1, 1e-4, 8), np.array([0.9, 0.31, 0.05]), np.array([1.3])),
        *(np.array([0.2, 1.7, 0.2, 0.01]), np.linspace(0, 3, 40)),
    ):
        rows = np.concatenate(hands(999, omega), axis=1)
        for s, t in ((1, 1), (3, 1), (1, 8), (400, 90), (250, 251), (999, 999), (1000, 1), (2, 1000), (7, 5)):
            yield abs(float(f(s, t, torch.from_numpy(omega))) - rows[s - 1] @ rows[t - 1])


@gram.states
def _(s, t, omega):
    return ((s - t) * omega).cos().sum()


@gram.wrong("cos ω(s + t)", seen="no public source: a sign lost in the addition theorem", idea="sign")
def _(s, t, omega):
    return ((s + t - 2) * omega).cos().sum()


@gram.wrong(
    "the mean over the hands, not the sum",
    seen="no public source: a cosine similarity taken for an inner product",
    idea="axis",
)
def _(s, t, omega):
    return ((s - t) * omega).cos().mean()


@gram.wrong("sin ω(s − t): 0 at s = t", seen="no public source: sine and cosine mixed up", idea="exchange")
def _(s, t, omega):
    return ((s - t) * omega).sin().sum()


@gram.wrong("never below 0", seen="no public source: a likeness that must not be negative", idea="edge")
def _(s, t, omega):
    return ((s - t) * omega).cos().sum().clamp(min=0)


@check("10.4", "receptive field", "identity", "autograd through a stack of convolutions", to=1e-9)
@until(1e-8)
def receptive_field(f):
    """f(kernels, strides) returns the extent of the input, in pixels, on which one output pixel depends."""
    for kernels, strides in (
        ((3,), (1,)),
        ((3, 5, 2), (1, 1, 1)),
        ((3, 3, 3, 3), (2, 1, 2, 1)),
        ((5, 1, 3, 4), (1, 3, 2, 2)),
        ((2, 7, 3), (4, 2, 3)),
        ((), ()),
        ((1,), (5,)),
        ((2, 2), (3, 1)),  # with holes: pixels that it does not touch lie between those that it does
        ((4, 4), (2, 2)),
        ((11, 3, 3, 3, 3), (4, 2, 1, 1, 2)),
        ((3,) * 60, (1,) * 60),
        ((3, 3, 3) * 6, (1, 1, 2) * 6),
        ((3,) * 11, (2,) * 11),
    ):
        x = torch.ones(1, 1, 10_000, dtype=torch.float64, requires_grad=True)
        h = x
        for k, s in zip(kernels, strides, strict=True):
            h = F.conv1d(h, torch.full((1, 1, k), 1 / k, dtype=torch.float64), stride=s)
        (gradient,) = torch.autograd.grad(h[0, 0, h.shape[2] // 2], x)
        seen = gradient[0, 0].nonzero()
        yield abs(float(f(kernels, strides)) - int(seen.max() - seen.min() + 1))


@receptive_field.states
def _(kernels, strides):
    size, jump = 1, 1
    for k, s in zip(kernels, strides, strict=True):
        size, jump = size + (k - 1) * jump, jump * s
    return size


@receptive_field.wrong(
    "the layer's own stride counts already",
    seen="no public source: size and jump updated in the wrong order",
    idea="time",
)
def _(kernels, strides):
    size, jump = 1, 1
    for k, s in zip(kernels, strides, strict=True):
        jump = jump * s
        size = size + (k - 1) * jump
    return size


@receptive_field.wrong("strides ignored", seen="no public source: the rule for plain stacks, used for all", idea="term")
def _(kernels, strides):
    return 1 + sum(k - 1 for k in kernels)


@receptive_field.wrong(
    "k in place of k − 1: shared pixels counted twice", seen="no public source: a plausible slip", idea="time"
)
def _(kernels, strides):
    size, jump = 1, 1
    for k, s in zip(kernels, strides, strict=True):
        size, jump = size + k * jump, jump * s
    return size


@receptive_field.wrong(
    "the product of the kernels",
    seen="no public source: fields multiplied, as if no two neighbours overlapped",
    idea="exchange",
)
def _(kernels, strides):
    return math.prod(kernels)


@receptive_field.wrong(
    "the pixels that count, not their extent",
    seen="no public source: the holes of strided layers left out",
    idea="exchange",
)
def _(kernels, strides):
    return min(receptive_field.statement(kernels, strides), math.prod(kernels))


@check("10.5", "group norm", "definition", "PyTorch's group norm, the one that the blocks use", to=1e-9)
@until(1e-8)
def group_norm(f):
    """f(x, groups, gain, bias, eps) for x (B, C, H, W); gain and bias: (C,)."""
    f, generator = Watched(f), torch.Generator().manual_seed(0)
    for shape, groups in (
        *(((3, 6, 2, 4), 2), ((2, 12, 3, 1), 3), ((2, 4, 2, 2), 1), ((2, 6, 3, 2), 6)),
        *(((1, 4, 1, 1), 2), ((2, 66, 2, 3), 33), ((2, 8, 20, 20), 2)),
    ):
        size = torch.randn(shape[:2], generator=generator, dtype=torch.float64)[:, :, None, None].exp()
        x = 0.7 + size * torch.randn(shape, generator=generator, dtype=torch.float64)  # channels of unlike size
        gain, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
        lonely = torch.zeros_like(x)
        lonely[:, gain.abs().argmax(), 0, 0] = 100.0
        for inputs in (x, 1e-3 * x, 1e-7 * x, x + 1e4, 1e4 * x, 0 * x, lonely):  # a bound is felt
            for eps in (1e-6, 0.3, 1e-12):
                expected = F.group_norm(inputs, groups, gain, bias, eps)
                yield apart(f(inputs, groups, gain, bias, eps), expected)
    yield f.fault
    yield slope_gap(lambda x, gain, bias: f(x, 2, gain, bias, 0.3), x, gain, bias)


def _normalised(x, groups, gain, bias, eps, correction=0, dims=(2,)):
    """`dims` of (B, groups, entries of a group) are those over which mean and variance run."""
    grouped = x.reshape(len(x), groups, -1)
    mean, var = grouped.mean(dims, keepdim=True), grouped.var(dims, correction=correction, keepdim=True)
    z = ((grouped - mean) / (var + eps).sqrt()).reshape(x.shape)
    return z * gain[:, None, None] + bias[:, None, None]


@group_norm.states
def _(x, groups, gain, bias, eps):
    return _normalised(x, groups, gain, bias, eps)


@group_norm.wrong("the variance divides by n − 1", seen="torch.var, whose default divides by n − 1", idea="time")
def _(x, groups, gain, bias, eps):
    return _normalised(x, groups, gain, bias, eps, correction=1)


@group_norm.wrong(
    "mean and variance run over the batch too", seen="no public source: batch norm taken for group norm", idea="axis"
)
def _(x, groups, gain, bias, eps):
    return _normalised(x, groups, gain, bias, eps, dims=(0, 2))


@group_norm.wrong("every channel is a group", seen="no public source: instance norm taken for group norm", idea="axis")
def _(x, groups, gain, bias, eps):
    return _normalised(x, x.shape[1], gain, bias, eps)


@group_norm.wrong(
    "ε is added to the standard deviation",
    seen="no public source: a slip that is invisible while ε is tiny",
    idea="edge",
)
def _(x, groups, gain, bias, eps):
    grouped = x.reshape(len(x), groups, -1)
    std = grouped.var(2, correction=0, keepdim=True).sqrt()
    z = ((grouped - grouped.mean(2, keepdim=True)) / (std + eps)).reshape(x.shape)
    return z * gain[:, None, None] + bias[:, None, None]


@group_norm.wrong(
    "channel c belongs to group c mod G",
    seen="no public source: neighbouring channels dealt out like cards",
    idea="axis",
)
def _(x, groups, gain, bias, eps):
    order = torch.arange(x.shape[1]).reshape(-1, groups).T.flatten()
    out = torch.empty_like(x)
    out[:, order] = _normalised(x[:, order], groups, gain[order], bias[order], eps)
    return out


@group_norm.wrong(
    "a variance below 1e-5 is raised to it", seen="no public source: a bound “for stability”", idea="edge"
)
def _(x, groups, gain, bias, eps):
    grouped = x.reshape(len(x), groups, -1)
    var = grouped.var(2, correction=0, keepdim=True).clamp(min=1e-5)
    z = ((grouped - grouped.mean(2, keepdim=True)) / (var + eps).sqrt()).reshape(x.shape)
    return z * gain[:, None, None] + bias[:, None, None]


@group_norm.wrong(
    "mean and variance without a gradient",
    seen="no public source: statistics under no_grad, as for running ones",
    idea="gradient",
)
def _(x, groups, gain, bias, eps):
    grouped = x.reshape(len(x), groups, -1)
    mean, var = grouped.mean(2, keepdim=True).detach(), grouped.var(2, correction=0, keepdim=True).detach()
    return ((grouped - mean) / (var + eps).sqrt()).reshape(x.shape) * gain[:, None, None] + bias[:, None, None]


def _numbers(module):
    """Weight and bias of a layer as numpy arrays."""
    return module.weight.detach().numpy(), module.bias.detach().numpy()


def _norm_by_loops(x, layer, groups):
    gain, bias = _numbers(layer)
    out = np.empty_like(x)
    for image in range(len(x)):
        for channels in np.split(np.arange(x.shape[1]), groups):
            part = x[image, channels]
            out[image, channels] = (part - part.mean()) / np.sqrt(((part - part.mean()) ** 2).mean() + 1e-6)
    return out * gain[:, None, None] + bias[:, None, None]


def _conv_by_loops(x, layer):
    """Zeros all around, so that the size stays: one output channel of one image after the other."""
    weight, bias = _numbers(layer)
    edge = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    channels = [[correlate(image, kernel, "valid", "direct")[0] for kernel in weight] for image in padded]
    return np.array(channels) + bias[:, None, None]


def _silu(x):
    return x * expit(x)


def _features_by_loops(block, x, embedding, groups, scale_shift):
    """What enters the block's dropout."""
    h = _conv_by_loops(_silu(_norm_by_loops(x, block.norm_1, groups)), block.conv_1)
    weight, bias = _numbers(block.embedding)
    told = np.array([[row @ _silu(e) + b for row, b in zip(weight, bias, strict=True)] for e in embedding])
    c_out = h.shape[1]
    if not scale_shift:
        for image in range(len(h)):
            for c in range(c_out):
                h[image, c] += told[image, c]
    h = _norm_by_loops(h, block.norm_2, groups)
    if scale_shift:
        for image in range(len(h)):
            for c in range(c_out):
                h[image, c] += told[image, c] * h[image, c]
                h[image, c] += told[image, c_out + c]
    return _silu(h)


def _shortcut_by_loops(block, x):
    return x if x.shape[1] == len(block.conv_2.bias) else _conv_by_loops(x, block.shortcut)


def _block_by_loops(block, x, embedding, groups, scale_shift):
    h = _features_by_loops(block, x, embedding, groups, scale_shift)
    return _shortcut_by_loops(block, x) + _conv_by_loops(h, block.conv_2)


def _shapes(c_in, c_out, embed, scale_shift):
    """A residual block's parameters."""
    shapes = {
        "norm_1": (c_in,),
        "conv_1": (c_out, c_in, 3, 3),
        "embedding": (2 * c_out if scale_shift else c_out, embed),
        "norm_2": (c_out,),
        "conv_2": (c_out, c_out, 3, 3),
    } | ({"shortcut": (c_out, c_in, 1, 1)} if c_in != c_out else {})
    return {f"{name}.weight": shape for name, shape in shapes.items()} | {
        f"{name}.bias": shape[:1] for name, shape in shapes.items()
    }


def _inputs(random, *shapes):
    """Numbers of several sizes, one image a thousand times smaller than the others: ε counts there."""
    inputs = [random.standard_normal(shape) for shape in shapes]
    inputs[0][-1] *= 1e-3
    return inputs


def _compared(layer, inputs, expected):
    """The layer's distance from what is expected, in units of the largest number; it must leave its inputs alone.

    Tried as it is, on memory in another order, once more, and in float32, which must stay, to four digits.
    """
    unit = max(1.0, np.abs(expected).max())
    given = [torch.from_numpy(x.copy()) for x in inputs]
    other = [given[0].to(memory_format=torch.channels_last), *given[1:]]
    results = [layer(*given), layer(*other), layer(*given)]
    single = copy.deepcopy(layer).float()(*(x.float() for x in given))
    distances = [apart(got, expected, unit) for got in results]
    distances += [apart(now, x) for now, x in zip(given, inputs, strict=True)]
    rough = apart(single, expected, unit)
    types = [got.dtype for got in (*results, single)]
    other_types = fault(types != [torch.float64, torch.float64, torch.float64, torch.float32])
    return largest(*distances, 0.0 if rough < 1e-4 else rough, other_types)


@check(
    "10.6",
    "residual block",
    "implementation",
    "loops over images and channels, in numpy; how it starts, learns and drops",
    to=1e-9,
)
@until(1e-8)
def residual_block(f):
    """f(c_in, c_out, embed, groups=, scale_shift=, dropout=) returns a module, called as module(x, embedding).

    Its parts with parameters are norm_1, conv_1, embedding, norm_2, conv_2 and (where c_in ≠ c_out) shortcut, each with
    a weight and a bias, convolutions of 3×3 but for the shortcut's 1×1. Dropout draws from torch's global generator.
    ValueError for groups that do not divide both numbers of channels, or hold one channel.
    """
    random = np.random.default_rng(0)
    for c_in, c_out, groups, scale_shift, size, side in (
        (4, 4, 2, False, 0.6, (3, 4)),
        (6, 4, 2, False, 0.6, (4, 2)),
        (4, 6, 1, False, 0.6, (1, 3)),
        (4, 4, 2, True, 0.6, (2, 5)),
        (3, 6, 1, True, 0.6, (3, 3)),
        (9, 6, 3, True, 1e3, (3, 2)),  # what is cut off somewhere "for stability" is missed
        (66, 66, 33, True, 0.6, (2, 2)),
    ):
        options = {"groups": groups, "scale_shift": scale_shift, "dropout": 0.25}
        block = made(lambda c_in=c_in, c_out=c_out, options=options: f(c_in, c_out, 5, **options))
        yield unlike(block, _shapes(c_in, c_out, 5, scale_shift))
        x, embedding = _inputs(random, (3, c_in, *side), (3, 5))
        shortcut = _shortcut_by_loops(block.double().eval(), x)
        yield _compared(block, [x, embedding], shortcut)  # a new block is its shortcut
        expected = _block_by_loops(shaken(block, c_out, size), x, embedding, groups, scale_shift)
        yield _compared(block, [x, embedding], expected)
    for scale_shift in (False, True):
        options = {"groups": 2, "scale_shift": scale_shift}
        yield start(lambda options=options: f(64, 32, 48, dropout=0.25, **options), zero="conv_2")
        yield from _trained(made(lambda options=options: f(6, 4, 5, dropout=0.25, **options)), (6, 3, 4), (5,))
        for p in (0.25, 0.0, 0.6):
            yield _dropped(made(lambda p=p, options=options: f(4, 4, 3, dropout=p, **options)), p, **options)
    for c_in, c_out, groups in ((6, 4, 3), (4, 6, 3), (4, 4, 4), (4, 4, 0)):
        sizes = c_in, c_out, 5
        yield accepted(lambda sizes=sizes, g=groups: f(*sizes, groups=g, scale_shift=True, dropout=0.0))


def _trained(layer, *shapes, still=None):
    """That each number of a new layer moves in training, and that gradients are right along all ways."""
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(8, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    yield fault(not layer.training)
    yield unmoved(layer.double(), inputs, still)
    yield slope(shaken(layer, 3).eval(), inputs)


def _dropped(block, p, groups, scale_shift):
    """How far the numbers that enter the last convolution in training are from 0 or 1/(1 − p) of themselves.

    What entered it is found by solving the linear equations of that convolution. Which ones are 0 must be decided by
    coins of their own.
    """
    block = shaken(block, 5)
    x, embedding = _inputs(np.random.default_rng(1), (2, 4, 2, 2), (2, 3))
    x, embedding = x[:1], embedding[:1]
    features = _features_by_loops(block, x, embedding, groups, scale_shift).ravel()
    D = features.size
    one_by_one = _conv_by_loops(np.eye(D).reshape(D, 4, 2, 2), block.conv_2).reshape(D, D)
    bias = np.repeat(_numbers(block.conv_2)[1], 4)
    inverse, worst = np.linalg.inv(one_by_one - bias), 0.0

    def draw():
        nonlocal worst
        images = (torch.from_numpy(part).repeat(4000, *[1] * (part.ndim - 1)) for part in (x, embedding))
        got = block.train()(*images).detach().numpy() - x
        entered = (got.reshape(-1, D) - bias) @ inverse
        worst = largest(worst, np.abs(entered * (entered - features / (1 - p))).max())
        return np.abs(entered) < np.abs(features) / 2

    if p == 0:
        draw()
        return worst
    score = coin_score(draw, p)
    return largest(worst, score if score > 5 else 0.0)


# The right block in pieces, each a function of the block and what it works on. A wrong version replaces one of them.
_BLOCK = {
    "first": lambda b, x: b.conv_1(F.silu(b.norm_1(x))),
    "told": lambda b, embedding: b.embedding(F.silu(embedding)),
    "add": lambda b, h, told: b.norm_2(h + told),
    "film": lambda b, h, scale, shift: b.norm_2(h) * (1 + scale) + shift,
    "second": lambda b, h: b.conv_2(b.dropout(F.silu(h))),
    "join": lambda b, x, branch: b.shortcut(x) + branch,
}


class _BlockOfPieces(ResidualBlock):
    def __init__(self, sizes, options, **changed):
        super().__init__(*sizes, **options)
        self.pieces = _BLOCK | changed

    def forward(self, x, embedding):
        p = self.pieces
        h, told = p["first"](self, x), p["told"](self, embedding)[:, :, None, None]
        h = p["film"](self, h, *told.chunk(2, dim=1)) if self.scale_shift else p["add"](self, h, told)
        return p["join"](self, x, p["second"](self, h))


@residual_block.wrong(
    "scale in place of 1 + scale", seen="no public source: features multiplied by about 0 at the start", idea="term"
)
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, film=lambda b, h, scale, shift: b.norm_2(h) * scale + shift)


@residual_block.wrong(
    "scale and shift swapped",
    seen="no public source: the halves of one linear layer, taken in the other order",
    idea="exchange",
)
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, film=lambda b, h, shift, scale: b.norm_2(h) * (1 + scale) + shift)


@residual_block.wrong(
    "scale and shift before the norm, which undoes part of them",
    seen="no public source: a plausible slip",
    idea="exchange",
)
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, film=lambda b, h, scale, shift: b.norm_2(h * (1 + scale) + shift))


@residual_block.wrong(
    "the embedding is added after the second norm",
    seen="no public source: the two ways of telling the time mixed up",
    idea="exchange",
)
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, add=lambda b, h, told: b.norm_2(h) + told)


@residual_block.wrong("no SiLU on the embedding", seen="no public source: a plausible slip", idea="term")
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, told=lambda b, embedding: b.embedding(embedding))


@residual_block.wrong("no shortcut", seen="no public source: a plain stack of convolutions", idea="term")
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, join=lambda b, x, branch: branch)


@residual_block.wrong(
    "the shortcut starts after the norm",
    seen="no public source: one variable, x, overwritten on the way",
    idea="exchange",
)
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, join=lambda b, x, branch: b.shortcut(b.norm_1(x)) + branch)


@residual_block.wrong("SiLU before the norm", seen="no public source: a plausible slip", idea="exchange")
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, first=lambda b, x: b.conv_1(b.norm_1(F.silu(x))))


@residual_block.wrong("ReLU in place of SiLU", seen="no public source: the blocks of ResNet, copied", idea="exchange")
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, second=lambda b, h: b.conv_2(b.dropout(F.relu(h))))


@residual_block.wrong("dropout after the last convolution", seen="no public source: a plausible slip", idea="exchange")
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, second=lambda b, h: b.dropout(b.conv_2(F.silu(h))))


@residual_block.wrong(
    "the last convolution does not start at zero",
    seen="no public source: a layer left as PyTorch makes it",
    idea="state",
)
def _(*sizes, **options):
    block = ResidualBlock(*sizes, **options)
    block.conv_2.reset_parameters()
    return block


@residual_block.wrong("1×1 convolutions", seen="no public source: a kernel size left out", idea="term")
def _(*sizes, **options):
    block = ResidualBlock(*sizes, **options)
    block.conv_1 = nn.Conv2d(*sizes[:2], 1)
    block.conv_2 = zero(nn.Conv2d(sizes[1], sizes[1], 1))
    return block


@residual_block.wrong("ε = 1e-5 in the norms", seen="the default of torch's GroupNorm", idea="edge")
def _(*sizes, **options):
    block = ResidualBlock(*sizes, **options)
    block.norm_1.eps = block.norm_2.eps = 1e-5
    return block


@residual_block.wrong(
    "whole channels are dropped",
    seen="no public source: Dropout2d, since images have two dimensions",
    idea="noise",
)
def _(*sizes, **options):
    block = ResidualBlock(*sizes, **options)
    block.dropout = nn.Dropout2d(options["dropout"])
    return block


@residual_block.wrong("nothing is dropped", seen="no public source: a keyword that nothing reads", idea="noise")
def _(*sizes, **options):
    block = ResidualBlock(*sizes, **options)
    block.dropout = nn.Identity()
    return block


@residual_block.wrong(
    "dropout also in eval mode",
    seen="no public source: F.dropout, which is in training unless told otherwise",
    idea="noise",
)
def _(*sizes, **options):
    p = options["dropout"]
    return _BlockOfPieces(sizes, options, second=lambda b, h: b.conv_2(F.dropout(F.silu(h), p)))


@residual_block.wrong(
    "the time layer starts at zero, and does not learn", seen="no public source: a frozen layer", idea="state"
)
def _(*sizes, **options):
    block = ResidualBlock(*sizes, **options)
    zero(block.embedding).requires_grad_(False)
    return block


@residual_block.wrong(
    "the second norm's gain starts at zero: never a gradient but for the last bias",
    seen="no public source: zero at the start in two places in a row",
    idea="state",
)
def _(*sizes, **options):
    block = ResidualBlock(*sizes, **options)
    nn.init.zeros_(block.norm_2.weight)
    return block


@residual_block.wrong(
    "no gradient flows into the embedding", seen="no public source: a detach() too many", idea="gradient"
)
def _(*sizes, **options):
    return _BlockOfPieces(sizes, options, told=lambda b, embedding: b.embedding(F.silu(embedding.detach())))


def _variance(values, chances, times):
    """The variance of a sum of independent numbers, all with this law on a grid of quarters: its own law, written out.

    values: in quarters, whole numbers.
    """
    law = np.zeros(values.max() - values.min() + 1)
    np.add.at(law, values - values.min(), chances)
    total = np.ones(1)
    for _ in range(times):
        total = np.convolve(total, law)
    places = (np.arange(len(total)) + times * values.min()) / 4
    return total @ (places - total @ places) ** 2


@check("10.7", "scale of the scores", "identity", "the law of the scores, entry added to entry", to=1e-9)
@until(1e-8)
def scale_of_the_scores(f):
    """f(d) returns Var(q·k) for q and k with d independent entries of mean 0 and variance 1."""
    for entries, chances in (((-2, 2), (0.5, 0.5)), ((-4, 0, 4), (1 / 8, 3 / 4, 1 / 8)), ((-1, 4), (0.8, 0.2))):
        products = np.outer(entries, entries).ravel()  # entries in halves, so products in quarters
        for d in (1, 2, 3, 5, 16, 64, 100, 512):
            yield abs(float(f(d)) - _variance(products, np.outer(chances, chances).ravel(), d))


@scale_of_the_scores.states
def _(d):
    return d


@scale_of_the_scores.wrong(
    "√d, which is the standard deviation",
    seen="no public source: variance and standard deviation mixed up",
    idea="power",
)
def _(d):
    return d**0.5


@scale_of_the_scores.wrong(
    "d²: standard deviations are added",
    seen="no public source: the terms taken for one and the same number",
    idea="power",
)
def _(d):
    return d**2


@scale_of_the_scores.wrong(
    "2·d: the variance of q·q", seen="no public source: key and query taken for the same vector", idea="exchange"
)
def _(d):
    return 2 * d


@scale_of_the_scores.wrong("64 at most", seen="no public source: a bound “for stability”", idea="edge")
def _(d):
    return min(d, 64)


def _attention_by_loops(layer, x, groups, heads):
    """One image, one head, one asking pixel after the other; pixels are numbered row by row."""
    c, side = x.shape[1], x.shape[2:]
    pixels = _norm_by_loops(x, layer.norm, groups).reshape(len(x), c, -1)
    weight, bias = _numbers(layer.qkv)
    answer = np.zeros_like(pixels)
    for image in range(len(x)):
        q, k, v = np.split(weight[:, :, 0, 0] @ pixels[image] + bias[:, None], 3)  # (C, H·W) each
        for mine in np.split(np.arange(c), heads):
            for asking in range(q.shape[1]):
                scores = [q[mine, asking] @ k[mine, other] / len(mine) ** 0.5 for other in range(q.shape[1])]
                likeness = [math.exp(score - max(scores)) for score in scores]
                for other, weight_of_other in enumerate(likeness):
                    answer[image, mine, asking] += weight_of_other / sum(likeness) * v[mine, other]
    weight_out, bias_out = _numbers(layer.out)
    return x + (weight_out[:, :, 0, 0] @ answer + bias_out[:, None]).reshape(len(x), c, *side)


@check(
    "10.8",
    "self-attention",
    "implementation",
    "loops over heads and pixels, in numpy; how it starts and learns",
    to=1e-9,
)
@until(1e-8)
def self_attention(f):
    """f(c, groups=, head_channels=) returns a module.

    Its parts are norm, qkv (queries, keys, values) and out; the last two are 1×1 convolutions with a bias. A
    head_channels of 0, the default, means one head. ValueError where heads or groups do not divide c.
    """
    random = np.random.default_rng(0)
    for c, groups, head_channels, heads, size, side in (
        (6, 3, 2, 3, 0.6, (2, 3)),
        (8, 2, 4, 2, 0.6, (3, 2)),
        (4, 1, None, 1, 0.6, (2, 4)),
        (6, 2, 0, 1, 0.6, (3, 3)),
        (12, 2, 3, 4, 0.6, (1, 3)),
        (4, 2, 1, 4, 0.6, (3, 1)),
        (6, 1, 6, 1, 0.6, (1, 1)),
        (6, 1, 3, 2, 30.0, (2, 3)),  # scores of several thousand
        (66, 33, 22, 3, 0.6, (2, 2)),
    ):
        options = {"groups": groups} | ({} if head_channels is None else {"head_channels": head_channels})
        layer = made(lambda c=c, options=options: f(c, **options))
        yield unlike(
            layer,
            {
                **{"norm.weight": (c,), "norm.bias": (c,)},
                **{"qkv.weight": (3 * c, c, 1, 1), "qkv.bias": (3 * c,)},
                **{"out.weight": (c, c, 1, 1), "out.bias": (c,)},
            },
        )
        (x,) = _inputs(random, (3, c, *side))
        yield _compared(layer.double().eval(), [x], x)  # a new layer is the identity
        expected = _attention_by_loops(shaken(layer, c, size), x, groups, heads)
        yield _compared(layer, [x], expected)
        yield _compared(layer.train(), [x], expected)  # nothing is dropped
    yield start(lambda: f(64, groups=4, head_channels=16), zero="out")
    keys = {"qkv.bias": torch.arange(18) // 6 == 1}  # the softmax does not see what is added to all keys
    yield from _trained(made(lambda: f(6, groups=2, head_channels=3)), (6, 3, 4), still=keys)
    for groups, head_channels in ((2, 4), (2, -3), (2, 12), (4, 3), (6, 3)):
        yield accepted(lambda g=groups, d=head_channels: f(6, groups=g, head_channels=d))


# The right layer in pieces, as above.
_LAYER = {
    "split": lambda a, qkv: rearrange(qkv, "b (three n c) h w -> three b n (h w) c", three=3, n=a.heads),
    "scale": lambda a, q: q.shape[-1] ** -0.5,
    "weights": lambda a, scores: scores.softmax(-1),
    "merge": lambda a, attended, side: rearrange(attended, "b n (h w) c -> b (n c) h w", h=side),
    "join": lambda a, x, branch: x + branch,
}


class _LayerOfPieces(SelfAttention):
    def __init__(self, c, options, **changed):
        super().__init__(c, **options)
        self.pieces = _LAYER | changed

    def forward(self, x):
        p = self.pieces
        q, k, v = p["split"](self, self.qkv(self.norm(x)))
        weights = p["weights"](self, q @ k.transpose(-1, -2) * p["scale"](self, q))
        return p["join"](self, x, self.out(p["merge"](self, weights @ v, x.shape[2])))


@self_attention.wrong("the scores are not scaled", seen="no public source: a plausible slip", idea="term")
def _(c, **options):
    return _LayerOfPieces(c, options, scale=lambda a, q: 1.0)


@self_attention.wrong(
    "divided by d, not by √d", seen="no public source: variance and standard deviation mixed up", idea="power"
)
def _(c, **options):
    return _LayerOfPieces(c, options, scale=lambda a, q: 1 / q.shape[-1])


@self_attention.wrong(
    "scaled with all channels, not with a head's", seen="no public source: a layer of one head, given more", idea="axis"
)
def _(c, **options):
    return _LayerOfPieces(c, options, scale=lambda a, q: c**-0.5)


@self_attention.wrong("the softmax runs over the queries", seen="no public source: dim=-2 for dim=-1", idea="axis")
def _(c, **options):
    return _LayerOfPieces(c, options, weights=lambda a, scores: scores.softmax(-2))


@self_attention.wrong("queries and keys swapped", seen="no public source: the scores transposed", idea="exchange")
def _(c, **options):
    return _LayerOfPieces(c, options, weights=lambda a, scores: scores.transpose(-1, -2).softmax(-1))


@self_attention.wrong(
    "heads outermost, q, k and v within",
    seen="openai/guided-diffusion, QKVAttentionLegacy; right for its own weights only",
    idea="axis",
)
def _(c, **options):
    order = "b (n three c) h w -> three b n (h w) c"
    return _LayerOfPieces(c, options, split=lambda a, qkv: rearrange(qkv, order, three=3, n=a.heads))


@self_attention.wrong("scores are cut off at ±50", seen="no public source: a bound “for stability”", idea="edge")
def _(c, **options):
    return _LayerOfPieces(c, options, weights=lambda a, scores: scores.clamp(-50, 50).softmax(-1))


@self_attention.wrong(
    "a 3×3 convolution for queries, keys and values",
    seen="no public source: the kernel of the other layers",
    idea="term",
)
def _(c, **options):
    layer = SelfAttention(c, **options)
    layer.qkv = nn.Conv2d(c, 3 * c, 3, padding=1)
    return layer


@self_attention.wrong(
    "queries and keys start at zero",
    seen="no public source: zero at the start in two places in a row",
    idea="state",
)
def _(c, **options):
    layer = SelfAttention(c, **options)
    nn.init.zeros_(layer.qkv.weight[: 2 * c])
    return layer


@self_attention.wrong(
    "no gradient flows through the weights", seen="no public source: a detach() too many", idea="gradient"
)
def _(c, **options):
    return _LayerOfPieces(c, options, weights=lambda a, scores: scores.softmax(-1).detach())


@self_attention.wrong(
    "heads merged in the wrong order",
    seen="no public source: a reshape without the transposition that belongs to it",
    idea="axis",
)
def _(c, **options):
    return _LayerOfPieces(
        c,
        options,
        merge=lambda a, attended, side: attended.transpose(-1, -2).transpose(1, 2).reshape(len(attended), c, side, -1),
    )


@self_attention.wrong(
    "no shortcut", seen="no public source: attention in the place of the residual block, not after it", idea="term"
)
def _(c, **options):
    return _LayerOfPieces(c, options, join=lambda a, x, branch: branch)


@self_attention.wrong(
    "the last layer does not start at zero", seen="no public source: a layer left as PyTorch makes it", idea="state"
)
def _(c, **options):
    layer = SelfAttention(c, **options)
    layer.out.reset_parameters()
    return layer


@check("10.9", "loss of a network", "identity", "quadrature over image and noise", to=1e-9)
@until(1e-8)
def loss_of_a_network(f):
    """f(cov, second_moment) returns E(ε − ε̂)², from Cov(ε, ε̂) and E ε̂², for one pixel."""
    node, weight = hermite(60)
    x_0, eps = 0.4 + 0.5 * node, node.T  # (60, 1) and (1, 60)
    joint = weight[:, None] * weight[None, :]
    for signal, noise, network in (
        (0.8, 0.6, lambda x: 0.7 * x + 0.3),
        (0.6, 0.8, lambda x: 0.2 * x**2 - 0.5 * x + 0.4),
        (0.3, 0.3, lambda x: 0 * x - 0.9),
        (0.5, 0.75**0.5, lambda x: -0.8 * x),
        (0.5, 0.75**0.5, lambda x: 0 * x),  # a new one
        (0.0, 1.0, lambda x: x),  # a perfect one
        (0.1, 0.99**0.5, lambda x: 8 * x - 3),  # far too large
    ):
        eps_hat = network(signal * x_0 + noise * eps)

        def mean(values):
            return float((joint * values).sum())

        cov = mean((eps - mean(eps)) * (eps_hat - mean(eps_hat)))
        got = f(*torch.tensor([cov, mean(eps_hat**2)], dtype=torch.float64))
        yield abs(float(got) - mean((eps - eps_hat) ** 2))
    yield slope_gap(f, *torch.tensor([0.3, 0.8], dtype=torch.float64))


@loss_of_a_network.states
def _(cov, second_moment):
    return 1 - 2 * cov + second_moment


@loss_of_a_network.wrong("the covariance counted once", seen="no public source: a plausible slip", idea="term")
def _(cov, second_moment):
    return 1 - cov + second_moment


@loss_of_a_network.wrong(
    "the covariance's sign", seen="no public source: the rule for a sum, used for a difference", idea="sign"
)
def _(cov, second_moment):
    return 1 + 2 * cov + second_moment


@loss_of_a_network.wrong(
    "the estimate's size taken off, not added",
    seen="no public source: the loss of the perfect network, used for all",
    idea="claim",
)
def _(cov, second_moment):
    return 1 - second_moment


@loss_of_a_network.wrong(
    "the network's output taken for independent of the noise",
    seen="no public source: its start taken for all of it",
    idea="noise",
)
def _(cov, second_moment):
    return 1 + second_moment


@loss_of_a_network.wrong(
    "at most 1", seen="no public source: “no network is worse than one that answers 0”", idea="edge"
)
def _(cov, second_moment):
    return (1 - 2 * cov + second_moment).clamp(max=1)
