"""The checks of chapter 12, training fast. The routes count all numbers of a format, or go image by image."""

import functools
import itertools
import math

import numpy as np
import torch
from torch import nn

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.guard import Watched, accepted, fault, until
from ddpm_lib.training.fast import microbatches

COURSES = (
    *((4, 12, 0.25), (1, 30, 0.0), (0, 8, 0.4), (10, 12, 1.0), (3, 4, 0.5), (0, 1, 0.0)),
    *((5000, 20_000, 0.1), (20, 640, 0.0), (1500, 60_000, 1e-3)),
)


def _places(warmup, steps):
    """Numbers of steps done: those near the corners, some between, and some long after the end, in two orders."""
    near = [k for corner in (0, warmup, steps) for k in range(max(0, corner - 9), corner + 10)]
    return np.array([*near, *range(0, 2 * steps, max(1, steps // 40)), 10 * steps, 1000 * steps, *near[::-1]])


def _rising(done, warmup):
    return np.interp(done, [-1, warmup], [0, 1])


@check("12.1", "cosine rate", "implementation", "a point that goes round a circle at constant speed", to=1e-12)
@until(1e-11)
def cosine(f):
    """f(warmup, steps, final) returns the factor as a function of the steps done: a linear warm-up, then the cosine."""
    for warmup, steps, final in COURSES:
        factor, done = f(warmup, steps, final), _places(warmup, steps)
        turned = np.pi * np.clip((done - warmup) / (steps - warmup), 0, 1)  # half a turn, from the top to the bottom
        height = (np.exp(1j * turned) * 1j).imag  # of a point on the unit circle
        fallen = np.interp(height, [-1, 1], [final, 1])
        expected = np.where(done < warmup, _rising(done, warmup), fallen)
        yield apart(np.array([float(factor(int(k))) for k in done]), expected)
    for warmup, steps in ((7, 7), (9, 4)):  # no step is left to fall in
        factor = f(warmup, steps, 0.3)
        yield apart(np.array([float(factor(k)) for k in (warmup, warmup + 1, 3 * warmup)]), np.array([1.0, 0.3, 0.3]))


def _warm(warmup, after):
    return lambda k: (k + 1) / (warmup + 1) if k < warmup else after(k)


@cosine.wrong(
    "goes up again after the end: no min(1, u)", seen="of this kind: Tencent-Hunyuan/UniRL PR 223", idea="edge"
)
def _(warmup, steps, final):
    return _warm(
        warmup, lambda k: final + (1 - final) * (1 + math.cos(math.pi * (k - warmup) / max(1, steps - warmup))) / 2
    )


@cosine.wrong(
    "falls during the warm-up already, which then ends with a drop",
    seen="facebookresearch/fairchem PR 1967",
    idea="time",
)
def _(warmup, steps, final):
    return _warm(warmup, lambda k: final + (1 - final) * (1 + math.cos(math.pi * min(1, k / steps))) / 2)


@cosine.wrong(
    "needs `steps` steps after the warm-up: never at its end",
    seen="of this kind: huggingface/pytorch-image-models 1242",
    idea="time",
)
def _(warmup, steps, final):
    return _warm(warmup, lambda k: final + (1 - final) * (1 + math.cos(math.pi * min(1, (k - warmup) / steps))) / 2)


@cosine.wrong("a quarter of a turn: ends with a kink", seen="no public source: cos(πu/2)", idea="term")
def _(warmup, steps, final):
    return _warm(
        warmup,
        lambda k: final + (1 - final) * math.cos(math.pi / 2 * min(1, (k - warmup) / max(1, steps - warmup))),
    )


@cosine.wrong("max(final, ...) in place of a cosine that ends there", seen="no public source: a plateau", idea="edge")
def _(warmup, steps, final):
    return _warm(
        warmup, lambda k: max(final, (1 + math.cos(math.pi * min(1, (k - warmup) / max(1, steps - warmup)))) / 2)
    )


@cosine.wrong("begins again after the last step", seen="torch's CosineAnnealingWarmRestarts", idea="edge")
def _(warmup, steps, final):
    return _warm(
        warmup,
        lambda k: (
            final
            + (1 - final) * (1 + math.cos(math.pi * ((k - warmup) % (steps - warmup + 1)) / max(1, steps - warmup))) / 2
        ),
    )


@cosine.wrong(
    "the first step has the rate 0", seen="huggingface/transformers, get_cosine_schedule_with_warmup", idea="time"
)
def _(warmup, steps, final):
    fall = lambda k: final + (1 - final) * (1 + math.cos(math.pi * min(1, (k - warmup) / max(1, steps - warmup)))) / 2  # noqa: E731
    return lambda k: k / warmup if k < warmup else fall(k)


@check("12.2", "inverse-square-root rate", "implementation", "1/rate² grows by 1/w a step, added up", to=1e-9)
@until(1e-8)
def inverse_sqrt(f):
    """f(warmup, steps, final) returns the factor as a function of the steps done; steps is not looked at."""
    for warmup, steps, final in COURSES:
        w = max(1, warmup)
        later = 1 + np.cumsum(np.full(3 * steps, 1 / w))  # 1/rate² after warmup + 1, warmup + 2, ... steps
        table = np.concatenate([_rising(np.arange(warmup), warmup), [1.0], np.maximum(later**-0.5, final)])
        done = _places(warmup, steps)
        done = done[done < len(table)]
        got, other = f(warmup, steps, final), f(warmup, 7 * steps + 3, final)
        yield apart(np.array([float(got(int(k))) for k in done]), table[done])
        yield apart(np.array([float(other(int(k))) for k in done]), table[done])
        yield apart(float(got(10**9 * w + warmup)), max(final, 1e-9**0.5)) if not final else 0.0


@inverse_sqrt.wrong("1/√k after the warm-up: a drop where it ends", seen="no public source: √w forgotten", idea="term")
def _(warmup, steps, final):
    return _warm(warmup, lambda k: max(final, (1 + k - warmup) ** -0.5))


@inverse_sqrt.wrong("no root: w/k", seen="no public source: “inverse” taken at its word", idea="power")
def _(warmup, steps, final):
    return _warm(warmup, lambda k: max(final, max(1, warmup) / (max(1, warmup) + k - warmup)))


@inverse_sqrt.wrong("below its floor", seen="no public source: `final` not looked at", idea="edge")
def _(warmup, steps, final):
    w = max(1, warmup)
    return _warm(warmup, lambda k: math.sqrt(w / (w + k - warmup)))


@inverse_sqrt.wrong(
    "ends at `steps`: as a cosine does", seen="no public source: the other course's habit", idea="exchange"
)
def _(warmup, steps, final):
    w = max(1, warmup)
    return _warm(warmup, lambda k: max(final, math.sqrt(w / (w + k - warmup))) if k < steps else final)


@inverse_sqrt.wrong("one step late", seen="no public source: k + 1 for k", idea="time")
def _(warmup, steps, final):
    w = max(1, warmup)
    return _warm(warmup, lambda k: max(final, math.sqrt(w / (w + k + 1 - warmup))))


FORMATS = {"fp16": (torch.float16, np.uint16), "bf16": (torch.bfloat16, np.uint16)}


def _all_of(dtype):
    """Every positive finite number of a 16-bit format, in order, in float64."""
    bits = torch.arange(1, 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype).double()
    return numbers[numbers.isfinite()]


@check(
    "12.3", "spacing of floating-point numbers", "identity", "all 63,000 positive numbers of fp16 and bf16", to=1e-12
)
@until(1e-11)
def spacing(f):
    """f(x, bits, lowest) returns the distance of x, (N,) float64 > 0, to the next larger number of a format.

    bits: after the binary point, 10, 7 or 23; lowest: the exponent of the smallest normal number, −14 or −126.
    """
    f = Watched(f)
    for dtype, bits, lowest in ((torch.float16, 10, -14), (torch.bfloat16, 7, -126)):
        numbers = _all_of(dtype)
        yield apart(f(numbers[:-1], bits, lowest) / numbers.diff(), torch.ones(len(numbers) - 1))
        between = numbers[:-1] + 0.37 * numbers.diff()  # not numbers of the format
        yield apart(f(between, bits, lowest) / numbers.diff(), torch.ones(len(numbers) - 1))
    some = (10.0 ** torch.linspace(-44, 38, 999, dtype=torch.float64)).float()
    below = torch.nextafter(2.0 ** torch.arange(-125.0, 128.0), torch.tensor(0.0))  # whose logarithms are nearly whole
    some = torch.cat([some, below])
    gap = torch.nextafter(some, torch.tensor(math.inf)).double() - some.double()
    yield apart(f(some.double(), 23, -126) / gap, torch.ones(len(some)))
    yield f.fault


@spacing.states
def _(x, bits, lowest):
    return 2.0 ** (torch.floor(torch.log2(x)).clamp(min=lowest) - bits)


@spacing.wrong(
    "ε·x: it grows with x, not in steps",
    seen="no public source: finfo.eps taken for a relative spacing",
    idea="exchange",
)
def _(x, bits, lowest):
    return x * 2.0**-bits


@spacing.wrong("ε, whatever x is", seen="no public source: finfo.eps taken for an absolute spacing", idea="exchange")
def _(x, bits, lowest):
    return torch.full_like(x, 2.0**-bits)


@spacing.wrong(
    "the leading 1 is counted among the bits", seen="no public source: 8 significant bits, 7 stored", idea="time"
)
def _(x, bits, lowest):
    return 2.0 ** (torch.floor(torch.log2(x)).clamp(min=lowest) - bits - 1)


@spacing.wrong(
    "no subnormal numbers: below 2^lowest all is 0",
    seen="no public source: as where they are flushed to 0",
    idea="edge",
)
def _(x, bits, lowest):
    whole = 2.0 ** (torch.floor(torch.log2(x)) - bits)
    return torch.where(x < 2.0**lowest, 2.0**lowest - x, whole)


@spacing.wrong("spaced ever closer towards 0", seen="no public source: the lowest exponent forgotten", idea="edge")
def _(x, bits, lowest):
    return 2.0 ** (torch.floor(torch.log2(x)) - bits)


@spacing.wrong("the exponent is rounded, not cut", seen="no public source: round for floor", idea="edge")
def _(x, bits, lowest):
    return 2.0 ** (torch.round(torch.log2(x)).clamp(min=lowest) - bits)


@check("12.4", "scaled gradient", "identity", "the gradient that nobody scaled, clipped, number by number", to=1e-12)
@until(1e-11)
def scaled(f):
    """f(gradients, S, c) returns (gradients for the optimiser, whether to skip the step); S·L was differentiated.

    gradients: a list of tensors, float64, c: the longest that is not clipped. Where a step is skipped, the gradients
    are not looked at.
    """
    f, shapes = Watched(f), ((2, 3), (4,), ())
    for seed, (length, S, c) in enumerate(
        itertools.product((0.3, 0.999, 1.001, 40.0, 1e-4), (1.0, 2.0**16, 0.5), (1.0, 2.5))
    ):
        draws = np.random.default_rng(seed)
        true = [draws.standard_normal(shape) for shape in shapes]
        norm = math.sqrt(sum(float((g**2).sum()) for g in true))
        true = [g * length / norm for g in true]
        got, skip = f([torch.as_tensor(g * S) for g in true], S, c)
        yield fault(bool(skip))
        for g, part in zip(true, got, strict=True):
            yield apart(part, np.array(g) * c / length if length > c else np.array(g))
        for bad in (math.inf, -math.inf, math.nan):
            broken = [torch.as_tensor(g * S).clone() for g in true]
            broken[seed % 3].view(-1)[-1] = bad
            yield fault(not bool(f(broken, S, c)[1]))
    for size in (0.0, 1e30):  # nothing to shorten, and very much
        got, skip = f([torch.full((3,), 8.0 * size, dtype=torch.float64)], 8.0, 1.0)
        yield fault(bool(skip))
        yield apart(got[0], np.full(3, 3**-0.5 if size else 0.0))
    yield f.fault


def _length(gradients):
    return math.sqrt(sum(float(g.square().sum()) for g in gradients))


def _cut(gradients, c):
    norm = _length(gradients)
    return [g * (c / norm) if norm > c else g for g in gradients]


@scaled.states
def _(gradients, S, c):
    g = [part / S for part in gradients]
    return _cut(g, c), not math.isfinite(_length(g))


@scaled.wrong(
    "clipped while it is scaled: every gradient gets the length c/S",
    seen="milesial/Pytorch-UNet 468, harubaru/waifu-diffusion 64, Lightning-AI/pytorch-lightning 9599",
    idea="time",
)
def _(gradients, S, c):
    return [part / S for part in _cut(gradients, c)], not math.isfinite(_length(gradients))


@scaled.wrong("divided by S twice", seen="no public source: unscaled by hand, and by the optimiser", idea="term")
def _(gradients, S, c):
    return _cut([part / S**2 for part in gradients], c), not math.isfinite(_length(gradients))


@scaled.wrong(
    "never divided by S", seen="no public source: AdamW hides it, but for its ε and the clipping", idea="term"
)
def _(gradients, S, c):
    return _cut(gradients, c), not math.isfinite(_length(gradients))


@scaled.wrong("what is not finite is set to 0, and the step is done", seen="no public source: nan_to_num", idea="edge")
def _(gradients, S, c):
    return _cut([(part / S).nan_to_num(0.0, 0.0, 0.0) for part in gradients], c), False


@scaled.wrong("only NaN is looked for: inf goes through", seen="no public source: isnan for isfinite", idea="edge")
def _(gradients, S, c):
    g = [part / S for part in gradients]
    return _cut(g, c), any(bool(part.isnan().any()) for part in g)


@scaled.wrong("only the first tensor is looked at", seen="no public source: a shortcut", idea="axis")
def _(gradients, S, c):
    g = [part / S for part in gradients]
    return _cut(g, c), not math.isfinite(_length(g[:1]))


@functools.cache
def _torchs(finite, start, interval):
    """The scales of torch.amp.GradScaler, which has no floor, after each step."""
    theirs = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=interval)
    weight = nn.Parameter(torch.zeros(1))
    optimiser, scales = torch.optim.SGD([weight], 0.1), []
    for good in finite:
        theirs.scale(torch.zeros(1))
        weight.grad = torch.ones(1) if good else torch.full((1,), math.inf)
        theirs.step(optimiser)
        theirs.update()
        scales.append(theirs.get_scale())
    return scales


def _rows():
    """Whether the gradients of some steps are finite: runs of luck of all lengths, and by chance."""
    yield [True] * 9 + [False] + [True] * 2 + [False] + [True] * 7 + [False, False] + [True] * 4
    yield (np.random.default_rng(0).random(80) < 0.85).tolist()
    yield (np.random.default_rng(1).random(80) < 0.6).tolist()


@check(
    "12.5", "loss scale", "implementation", "torch.amp.GradScaler above the floor, and what a floor promises", to=1e-12
)
@until(1e-11)
def loss_scale(f):
    """f(device, start, interval, floor) has `scale`, `unscale(gradients)` in place, and `update(finite)`, which says
    whether to skip: where a gradient was not finite, but for at the floor. state() is all that it depends on.
    """
    for finite, interval in itertools.product(_rows(), (1, 3, 4)):
        mine, scales = f("cpu", 2.0**12, interval, 2.0**-60), []
        for good in finite:
            gradients = [torch.tensor([3.0, -5.0]), torch.tensor(0.5)]
            scaled_ = [g * mine.scale for g in gradients]
            mine.unscale(scaled_)
            yield largest(*map(apart, scaled_, gradients))
            yield fault(bool(mine.update(torch.tensor(good))) == good)
            scales.append(math.log2(float(mine.scale)) if float(mine.scale) > 0 else -math.inf)
        yield apart(np.array(scales), np.log2(_torchs(tuple(finite), 2.0**12, interval)))
    for floor, start in ((1.0, 8.0), (4.0, 4.0), (0.5, 2.0), (3.0, 10.0)):
        mine, worst = f("cpu", start, 2, floor), math.ceil(math.log2(start / floor))
        skips = [bool(mine.update(torch.tensor(False))) for _ in range(worst + 5)]
        yield apart(np.array(skips, float), np.array([1.0] * worst + [0.0] * 5))
        yield apart(float(mine.scale), floor)
        for _ in range(4):
            mine.update(torch.tensor(True))
        yield apart(float(mine.scale), 4 * floor)
    mine = f("cpu", 1.0, 2, 1.0)
    for good, scale in ((True, 1.0), (False, 1.0), (True, 1.0), (True, 2.0)):  # in a row, at the floor as well
        mine.update(torch.tensor(good))
        yield apart(float(mine.scale), scale)
    finite = next(_rows())
    whole = f("cpu", 2.0**12, 4, 1.0)
    for k, good in enumerate(finite):
        other = f("cpu", 2.0**20, 4, 1.0)
        other.load_state({name: tensor.clone() for name, tensor in whole.state().items()})
        for later in finite[k:]:
            other.update(torch.tensor(later))
        whole.update(torch.tensor(good))
        yield 0.0 if k else _remembered(other)
    yield apart(float(whole.scale), float(other.scale))
    scale, other = float(whole.scale), f("cpu", 2.0**20, 4, 1.0)
    other.load_state(whole.state())  # which stays that of another
    for good in (False, *[True] * 9):
        other.update(torch.tensor(good))
        yield apart(float(whole.scale), scale)
    mine = f("cpu", 2.0**127, 1, 1.0)  # twice that is no number of float32
    mine.update(torch.tensor(True))
    yield fault(not math.isfinite(float(mine.scale)))
    for options in ((0.0, 4, 1.0), (1.0, 0, 1.0), (1.0, 4, 2.0), (4.0, 4, 0.0)):
        yield accepted(lambda options=options: f("cpu", *options))


def _remembered(scaler):
    return fault(not scaler.state())


class _Scaler:
    """A loss scaler with one thing exchanged."""

    skips_at_floor, counts_through, keeps_count, floor_of, growth, half = False, False, True, None, 2.0, 0.5

    def __init__(self, device, start, interval, floor):
        if not 0 < floor <= start or interval < 1:
            raise ValueError("a floor above 0, below the start, and an interval")
        self.S, self.good, self.interval, self.floor = float(start), 0, interval, floor

    scale = property(lambda self: torch.tensor(self.S))

    def unscale(self, gradients):
        for gradient in gradients:
            gradient /= self.S

    def update(self, finite):
        floor = self.floor if self.floor_of is None else self.floor_of
        skip = not finite and (self.S > floor or self.skips_at_floor)
        if finite or self.counts_through:
            self.good += 1
        else:
            self.good = 0
        if not finite:
            self.S = max(floor, self.half * self.S)
        elif self.good >= self.interval:
            self.S, self.good = self.growth * self.S, 0
        return skip

    def state(self):
        kept = {"scale": torch.tensor(self.S)}
        return kept | ({"good": torch.tensor(self.good)} if self.keeps_count else {})

    def load_state(self, state):
        self.S, self.good = float(state["scale"]), int(state.get("good", 0))


class _NoFloor(_Scaler):
    floor_of, skips_at_floor = 0.0, True


@loss_scale.wrong(
    "falls to 0: no floor, and every step is skipped, unnoticed",
    seen="deepinsight/insightface 2262; torch.amp.GradScaler",
    idea="edge",
)
def _(device, start, interval, floor):
    return _NoFloor(device, start, interval, floor)


class _SkipsForEver(_Scaler):
    skips_at_floor = True


@loss_scale.wrong(
    "skips for ever at the floor: a run that looks alive and learns nothing",
    seen="facebookresearch/metaseq PR 115, on purpose: something else watches",
    idea="edge",
)
def _(device, start, interval, floor):
    return _SkipsForEver(device, start, interval, floor)


class _NeverSkips(_Scaler):
    def update(self, finite):
        super().update(finite)
        return False


@loss_scale.wrong("never skips", seen="no public source: halved, and the step is done with inf", idea="term")
def _(device, start, interval, floor):
    return _NeverSkips(device, start, interval, floor)


class _CountsThrough(_Scaler):
    counts_through = True


@loss_scale.wrong(
    "good steps are counted through the skipped ones: too high a scale, again and again",
    seen="no public source: the count is not set to 0",
    idea="state",
)
def _(device, start, interval, floor):
    return _CountsThrough(device, start, interval, floor)


class _NeverGrows(_Scaler):
    growth = 1.0


@loss_scale.wrong("never grows again", seen="no public source: half of the rule", idea="term")
def _(device, start, interval, floor):
    return _NeverGrows(device, start, interval, floor)


class _Quarter(_Scaler):
    half = 0.75


@loss_scale.wrong("falls by a quarter of itself", seen="no public source: 0.75, no power of two", idea="term")
def _(device, start, interval, floor):
    return _Quarter(device, start, interval, floor)


class _Forgets(_Scaler):
    keeps_count = False


@loss_scale.wrong("a resumed run begins to count anew", seen="no public source: the scale alone is saved", idea="state")
def _(device, start, interval, floor):
    return _Forgets(device, start, interval, floor)


class Weighing(nn.Module):
    """A network of one layer, whose losses are known one by one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        with torch.no_grad():
            for i, p in enumerate(self.layer.parameters()):
                p.copy_(torch.linspace(-1, 1 + i, p.numel(), dtype=torch.float64).view(p.shape))


@check("12.6", "accumulated gradient", "implementation", "one image at a time, each with the share 1/B", to=1e-6)
@until(1e-5)
def accumulated(f):
    """f(device, accumulate=) has `backward(losses, factor, count)`: losses(part) are those of images
    part.start..part.stop − 1, (n,), with a graph. Each parameter's .grad gets that of the mean of factor·loss over all
    `count` images *added*; all losses are returned, (count,), without a graph. No part is longer
    than ⌈count/accumulate⌉. A part's backward pass comes before the next part's losses: else all activations wait.
    """
    for seed, (count, parts, weighs) in enumerate(
        ((6, 1, False), (6, 3, False), (7, 3, False), (7, 3, True), (10, 4, True), (5, 5, True), (3, 8, True))
    ):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        factor = 0.2 + torch.rand(count, generator=generator) if weighs else None
        sizes, waiting, held, one_by_one, together = [], [], [], Weighing(), Weighing()

        def losses(part, network=together, x=x, sizes=sizes, waiting=waiting, held=held):
            waiting.append(part.stop - part.start)
            sizes.append(waiting[-1])
            held.append(sum(waiting))
            loss = network.layer(x[part]).square().sum(1)
            loss.register_hook(lambda _: waiting.clear())  # its backward pass has begun
            return loss

        expected = []
        for i in range(count):
            loss = one_by_one.layer(x[i]).square().sum()
            (loss * (1.0 if factor is None else float(factor[i])) / count).backward()
            expected.append(float(loss.detach()))
        for again in (1, 2):  # the second time, there is a gradient already
            for seen in (sizes, waiting, held):
                seen.clear()
            got = f(torch.device("cpu"), accumulate=parts).backward(losses, factor, count)
            yield fault(got.requires_grad or tuple(got.shape) != (count,))
            yield apart(got.double() / torch.tensor(expected, dtype=torch.float64), torch.ones(count))
            yield fault(max(held) > -(-count // parts) or sum(sizes) != count)
            for p, q in zip(together.parameters(), one_by_one.parameters(), strict=True):
                yield apart(p.grad / again, q.grad, float(q.grad.abs().max()))


class _Parts:
    """Accumulation with one thing exchanged."""

    def __init__(self, device, accumulate=1):
        self.parts = accumulate

    def pieces(self, count):
        return list(microbatches(count, self.parts))

    def share(self, loss, count, pieces):
        return loss.sum() / count

    def begin(self, parameters, first):
        pass

    def end(self, parameters):
        pass

    def backward(self, losses, factor, count):
        seen, pieces, parameters = [], self.pieces(count), []
        for i, part in enumerate(pieces):
            loss = losses(part)
            seen.append(loss.detach())
            total = loss if factor is None else loss * factor[part]
            parameters = parameters or _leaves(loss.grad_fn)
            self.begin(parameters, i == 0)
            self.share(total, count, pieces).backward()
            self.end(parameters)
        return torch.cat(seen)


def _leaves(node):
    """The parameters that a graph reaches."""
    found, todo = [], [node]
    for node in todo:
        todo += [following for following, _ in node.next_functions if following is not None]
        if hasattr(node, "variable") and not any(node.variable is other for other in found):
            found.append(node.variable)
    return found


class _Summed(_Parts):
    def share(self, loss, count, pieces):
        return loss.mean()


@accumulated.wrong(
    "the means of the parts are added: a gradient that is too long by the number of parts",
    seen="openai/guided-diffusion, train_util.py; karpathy/nanoGPT 206; hirofumi0810/neural_sp 168",
    idea="axis",
)
def _(device, accumulate=1):
    return _Summed(device, accumulate)


class _MeanOfMeans(_Parts):
    def share(self, loss, count, pieces):
        return loss.mean() / len(pieces)


@accumulated.wrong(
    "the mean of the parts' means: the images of a short last part count more",
    seen="no public source: torch's own recipe, where batches differ in length",
    idea="axis",
)
def _(device, accumulate=1):
    return _MeanOfMeans(device, accumulate)


class _AskedFor(_Parts):
    def share(self, loss, count, pieces):
        return loss.sum() / (self.parts * -(-count // self.parts))


@accumulated.wrong(
    "divided by the parts that were asked for, not by those there are",
    seen="huggingface/transformers 38837: at the end of an epoch",
    idea="exchange",
)
def _(device, accumulate=1):
    return _AskedFor(device, accumulate)


class _NoRemainder(_Parts):
    def backward(self, losses, factor, count):
        longest = -(-count // self.parts)
        kept = max(1, count // longest) * longest
        seen = super().backward(losses, factor, min(kept, count))
        return torch.cat([seen, torch.ones(count - len(seen), dtype=seen.dtype)])


@accumulated.wrong("the remainder is left out", seen="of this kind: tomhosking/torchseq 8", idea="edge")
def _(device, accumulate=1):
    return _NoRemainder(device, accumulate)


class _Zeroed(_Parts):
    def begin(self, parameters, first):
        for p in parameters:
            p.grad = None


@accumulated.wrong(
    "the gradient is set to zero before every part", seen="no public source: zero_grad in the loop", idea="state"
)
def _(device, accumulate=1):
    return _Zeroed(device, accumulate)


class _Clipped(_Parts):
    def end(self, parameters):
        nn.utils.clip_grad_norm_(parameters, 1.0)


@accumulated.wrong("clipped after every part", seen="huggingface/accelerate 641", idea="time")
def _(device, accumulate=1):
    return _Clipped(device, accumulate)


class _FirstFactors(_Parts):
    def backward(self, losses, factor, count):
        if factor is not None:
            longest = -(-count // self.parts)
            factor = factor[torch.arange(count) % longest]
        return super().backward(losses, factor, count)


@accumulated.wrong("the factors of the first part, in every part", seen="no public source: factor[:n]", idea="time")
def _(device, accumulate=1):
    return _FirstFactors(device, accumulate)
