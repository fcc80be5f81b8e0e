"""Problem set 5: parts of a U-Net. Training stands in set_5_training, each student's own numbers in set_5_personal."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from scipy import signal, special

from ddpm_lib.checks import apart
from ddpm_lib.checks.guard import Watched, accepted, fault, slope_gap
from ddpm_lib.checks.layers import made, shaken, slope, unlike, unmoved
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.homework import numbers, set_5_personal, set_5_training  # noqa: F401 (problems of this set, too)
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.problem import Problem

LEVEL = Problem("5.1", "A clock for the noise level", "f(schedule, t, width, low, high): (B, width), float64")


def _clock(case: Case) -> tuple[int, float, float]:
    low, high = case.uniform(0.05, 0.3, name="low"), case.uniform(0.8, 3, name="high")
    return 2 * int(case.whole(2, 6, name="hands")), float(low), float(high)


@LEVEL.identity("sine and cosine of a hand are neighbours, on a circle of radius √2", 1)
def _(f, case):
    f = Watched(f)
    pairs = f(case.schedule, case.t, *_clock(case)).unflatten(1, (-1, 2))
    yield apart(pairs.square().sum(2), torch.full(pairs.shape[:2], 2.0))
    yield f.fault


@LEVEL.identity(
    "the hands turn with the log-SNR, from the slowest to the fastest", 2, route="complex powers of the SNR"
)
def _(f, case):
    width, low, high = _clock(case)
    kept = np.cumprod(1 - case.schedule.beta.numpy())[case.t.numpy()]
    for ends in ((low, high), (1.0, 1.0)):
        hands = 2**0.5 * (kept / (1 - kept))[:, None] ** (1j * np.geomspace(*ends, width // 2))
        yield apart(f(case.schedule, case.t, width, *ends).unflatten(1, (-1, 2))[..., 0], hands.imag)
        yield apart(f(case.schedule, case.t, width, *ends).unflatten(1, (-1, 2))[..., 1], hands.real)


@LEVEL.identity("the level is all that it sees: a chain of one step with the same ᾱ", 1, route="another chain")
def _(f, case):
    for row, t in zip(f(case.schedule, case.t, *_clock(case)), case.t, strict=True):
        other = Schedule((1 - case.schedule.alpha_bar[t])[None])
        yield apart(f(other, torch.tensor([1]), *_clock(case))[0], row)


@LEVEL.identity("it refuses a width that is odd or below 4", 1)
def _(f, case):
    yield apart(torch.tensor(f(case.schedule, case.t, 4, 0.1, 1.0).shape), torch.tensor([case.batch, 4]))
    for width in (2, 5):
        yield accepted(lambda width=width: f(case.schedule, case.t, width, 0.1, 1.0))


BLOCK = Problem("5.2", "A gated residual block", "f(c, embed, groups): a block, called as block(x, u)")


def _block(f, case: Case):
    """A new block, made after a seed; x and u for it; its groups."""
    c, embed = 4 * case.shape[0], 3 + case.T % 5
    groups = (2, 2 * case.shape[0])[case.seed % 2]
    x, u = case.normal(case.batch, c, *case.shape[1:], name="x"), case.normal(case.batch, embed, name="u")
    return made(lambda: f(c, embed, groups), case.seed % 1000), x, u, groups


@BLOCK.identity("a new block returns its input, in its dtype", 1)
def _(f, case):
    block, x, u, _ = _block(f, case)
    given = x.float()
    got = block(given, u.float())
    yield apart(got, x.float())
    yield fault(got.dtype != torch.float32 or not torch.equal(given, x.float()))


@BLOCK.identity("it has the parameters asked for, and each of them learns", 1, route="four steps of training")
def _(f, case):
    block, x, u, _ = _block(f, case)
    c, embed = x.shape[1], u.shape[1]
    shapes = {"told.weight": (3 * c, embed), "told.bias": (3 * c,)}
    for name in ("conv_1", "conv_2"):
        shapes |= {f"{name}.weight": (c, c, 3, 3), f"{name}.bias": (c,)}
    yield unlike(block, shapes)
    pixels = case.normal(4, c, 3, 3, name="pixels").float()  # on fewer, a kernel's border meets zeros alone
    yield unmoved(block, (pixels, case.normal(4, embed, name="four").float()))


@BLOCK.identity("size and mean of the input do not matter for what is added", 1, to=1e-6, route="2·x − 7")
def _(f, case):
    block, x, u, _ = _block(f, case)
    block, x = shaken(block, case.seed % 1000), 1e4 * x  # so that the norm's ε is nothing
    yield apart(block(2 * x - 7, u) - (2 * x - 7), block(x, u) - x)


@BLOCK.identity("twice the gate adds twice as much, channel by channel", 1)
def _(f, case):
    block, x, u, _ = _block(f, case)
    block, c = shaken(block, case.seed % 1000), x.shape[1]
    added = block(x, u) - x
    factor = 1 + case.uniform(0, 2, c, name="factor")
    with torch.no_grad():
        block.told.weight[2 * c :] *= factor[:, None]
        block.told.bias[2 * c :] *= factor
    yield apart(block(x, u) - x, factor[:, None, None] * added)


@BLOCK.identity("the whole block", 2, to=1e-8, route="loops over images, groups and channels in numpy")
def _(f, case):
    block, x, u, groups = _block(f, case)
    block = shaken(block, case.seed % 1000)
    p = {name: value.detach().numpy() for name, value in block.named_parameters()}
    for image, word, got in zip(x.numpy(), u.numpy(), block(x, u).detach(), strict=True):
        scale, shift, gate = np.split(p["told.weight"] @ (word * special.expit(word)) + p["told.bias"], 3)
        parts = [(part - part.mean()) / (part.var() + 1e-6) ** 0.5 for part in np.split(image, groups)]
        maps = [(1 + scale[i]) * one + shift[i] for i, one in enumerate(np.concatenate(parts))]
        for name in ("conv_1", "conv_2"):
            lit, kernels = [one * special.expit(one) for one in maps], p[f"{name}.weight"]
            summed = [sum(signal.correlate(a, b, "same") for a, b in zip(lit, rows, strict=True)) for rows in kernels]
            maps = [one + b for one, b in zip(summed, p[f"{name}.bias"], strict=True)]
        yield apart(got, image + gate[:, None, None] * np.stack(maps))
    yield 1e-4 * slope(block, (x, u))  # of slopes up to 1e5, differences know ten digits


WINDOW = Problem("5.3", "Attention in windows", "f(q, k, v, bias, window): like v, (B, heads, d, H, W)")


def _asked(case: Case, biased: bool, across=(2, 1)):
    """q, k, v, bias and the side of a window. across: windows in a column, and in a row."""
    side = 2 + case.seed % 2
    size = (min(case.batch, 2), case.shape[0], 1 + case.T % 4, *(side * count for count in across))
    bias = case.normal(size[1], 2 * side - 1, 2 * side - 1, name="bias") * biased
    return *case.normal(3, *size, name="qkv"), bias, side


def _by_pixel(q, k, v, bias, side):
    """Every pixel by itself asks every pixel of its window."""
    out = np.zeros(v.shape)
    for b, n, y, x in np.ndindex(len(v), v.shape[1], *v.shape[3:]):
        square = [range(i - i % side, i - i % side + side) for i in (y, x)]
        there = list(itertools.product(*square))
        scores = [float(q[b, n, :, y, x] @ k[b, n, :, r, c]) / q.shape[2] ** 0.5 for r, c in there]
        scores = np.add(scores, [float(bias[n, r - y + side - 1, c - x + side - 1]) for r, c in there])
        out[b, n, :, y, x] = special.softmax(scores) @ np.array([v[b, n, :, r, c].numpy() for r, c in there])
    return out


@WINDOW.identity("where all keys are equal, the answer is the mean of the window", 1, route="average pooling")
def _(f, case):
    for across in ((1, 1), (2, 2), (1, 3)):
        q, k, v, bias, side = _asked(case, False, across)
        means = F.avg_pool2d(v.flatten(0, 1), side).repeat_interleave(side, 2).repeat_interleave(side, 3)
        yield apart(f(q, k[:, :, :, :1, :1].expand_as(k), v, bias, side), means.reshape(v.shape))


@WINDOW.identity("without bias, every pixel asks its window", 2, route="a loop over pixels")
def _(f, case):
    f = Watched(f)
    for across in ((1, 1), (2, 2), (1, 3)):
        yield apart(f(*_asked(case, False, across)), _by_pixel(*_asked(case, False, across)))
        yield f.fault


@WINDOW.identity("the bias is that of the asked pixel minus the asking one", 1, route="a loop over pixels")
def _(f, case):
    for across in ((1, 1), (2, 2), (3, 1)):
        yield apart(f(*_asked(case, True, across)), _by_pixel(*_asked(case, True, across)))


@WINDOW.identity("gradients pass, and float32 stays float32", 1, to=1e-6, route="differences")
def _(f, case):
    q, k, v, bias, side = _asked(case, True)
    yield slope_gap(lambda *parts: f(*parts, side), q, k, v, bias)
    yield fault(f(*(part.float() for part in (q, k, v, bias)), side).dtype != torch.float32)


@WINDOW.identity("it refuses windows that do not fit", 1)
def _(f, case):
    for size in ((4, 6), (6, 4)):
        yield accepted(lambda size=size: f(*case.normal(3, 1, 1, 2, *size), case.normal(1, 7, 7), 4))
