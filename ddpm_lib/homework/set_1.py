"""Problem set 1, Gaussians and the forward process: what the answers must satisfy."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.checks import apart
from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.checks.guard import Watched, accepted, fault, relative
from ddpm_lib.checks.noise import law_score, noise_score
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.forward import signal_scale
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.homework import mine_1, readings_1
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.problem import Problem

PARTS = (readings_1, mine_1)  # their problems are this set's, too


# 1.2: the process that grows and does not shrink
JUMP = Problem(
    "1.2", "A process that does not shrink", "f(schedule, z, s, t, eps) returns z at time t, from z at time s, s ≤ t"
)


def spans(case: Case) -> tuple[Tensor, Tensor]:
    """Times s ≤ t, one pair an image: 0 to T and 0 to 1 first."""
    s, t = case.whole(0, case.T, case.batch, name="s"), case.t
    s = torch.minimum(s, t)
    s[:2] = 0
    return s, t


def grown(schedule: Schedule, s: int, t: int) -> float:
    """The deviation of x_t/√ᾱ_t, given x at time s: the steps from s to t, walked one by one."""
    var, scale = 0.0, math.prod((1 - schedule.beta[1 : s + 1]).tolist())
    for beta in schedule.beta[s + 1 : t + 1].tolist():
        var, scale = (1 - beta) * var + beta, (1 - beta) * scale
    return (var / scale) ** 0.5


@JUMP.identity("the image is not shrunk", 1, route="two images, the same noise")
def _(f: Callable, case: Case):
    z, away, eps = case.normal(name="z"), case.normal(name="away"), case.normal(name="eps")
    for s, t in ((0, case.T), (case.T - 1, case.T), (0, 1)):
        yield apart(f(case.schedule, z + away, s, t, eps) - f(case.schedule, z, s, t, eps), away)


@JUMP.identity("how much noise", 2, route="the steps from s to t, walked one by one")
def _(f: Callable, case: Case):
    z, eps = case.normal(name="z"), case.normal(name="eps")
    for s, t in ((0, 1), (0, case.T), (case.T - 1, case.T), (case.T // 3, case.T // 2 + 1)):
        size = grown(case.schedule, s, t)
        yield apart(f(case.schedule, z, s, t, eps), z + size * eps, 1 + size)


@JUMP.identity("each image at its own times", 1, route="the steps from s to t, walked for each image")
def _(f: Callable, case: Case):
    z, eps, (s, t) = case.normal(name="z"), case.normal(name="eps"), spans(case)
    sizes = [grown(case.schedule, *pair) for pair in zip(s.tolist(), t.tolist(), strict=True)]
    for images in (slice(None), slice(1)):
        one = torch.tensor(sizes[images], dtype=torch.float64).reshape(-1, *[1] * len(case.shape))
        got = f(case.schedule, z[images], s[images], t[images], eps[images])
        yield apart(got, z[images] + one * eps[images], 1 + one)
    yield apart(f(case.schedule, z[:, 0, 0], s, t, eps[:, 0, 0]), f(case.schedule, z, s, t, eps)[:, 0, 0])


@JUMP.identity("no time passes, or it runs backwards", 1, route="the same image, and a ValueError")
def _(f: Callable, case: Case):
    z, eps = case.normal(name="z"), case.normal(name="eps")
    for t in {0, 1, case.T}:
        yield apart(f(case.schedule, z, t, t, eps), z)
    yield accepted(lambda: f(case.schedule, z, case.T, case.T - 1, eps))
    s, t = spans(case)
    s[-1], t[-1] = t[-1].clone(), t[-1] - 1
    yield accepted(lambda: f(case.schedule, z, s, t, eps))


@JUMP.identity("dtype and arguments", 1, route="what was given")
def _(f: Callable, case: Case):
    watched, (s, t) = Watched(f), spans(case)
    got = watched(case.schedule, case.normal(name="z").float(), s, t, case.normal(name="eps").float())
    note(float(got.dtype != torch.float32), f"Images in float32 come back in {got.dtype}.", "Cast the factors.")
    yield fault(got.dtype != torch.float32)
    yield watched.fault


def jump_from_0(f: Callable) -> Callable:
    """f in the arguments of Eq. 3.5: s is 0, an int or a tensor as t is."""

    def jump(schedule: Schedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        return signal_scale(schedule, t, like=x_0) * f(schedule, x_0, t * 0, t, eps)

    return jump


JUMP.book("forward jump", 1, jump_from_0)


# 1.3: the same image at several times
PATH = Problem(
    "1.3", "A path through several times", "f(schedule, x_0, times, generator) draws one path: x at these times"
)


def standardised(schedule: Schedule, x_0: Tensor, times: list[int], x: Tensor) -> Tensor:
    """What each stretch of the path adds, from one time to the next later one, in units of its deviation: (K, ...)."""
    scale, var = walk(schedule)
    noise, last, s = torch.empty_like(x), x_0, 0
    for t in sorted(times):
        shrink, here = scale[t] / scale[s], x[times.index(t)]
        noise[times.index(t)] = (here - shrink * last) / (var[t] - shrink**2 * var[s]).sqrt()
        last, s = here, t
    return noise


def some_times(case: Case, most: int = 4) -> list[int]:
    """Different times in 1..T, ascending, T among them."""
    return sorted({case.T, *case.whole(1, case.T, most - 1, name="times").tolist()})


def many(case: Case, n: int = 20_000) -> Tensor:
    return case.normal(n, 2, 1, 3, name="x")


def standard(noise: Tensor, times: list[int], advice: str) -> Iterator[float]:
    """|z| of what each stretch adds, standardised, as a draw from N(0, 1): (K, ...), in the order of `times`."""
    for t, one in zip(times, noise.flatten(1), strict=True):
        score, before = law_score(one.numpy()), max([s for s in times if s < t], default=0)
        said = f"Noise from t = {before} to {t}, standardised, has mean {one.mean():.2g}, deviation {one.std():.2g}."
        note(1.01 * score, said, advice)
        yield score


@PATH.identity("law at one time", 1, to=7, route="N(0, 1) after standardising")
def _(f: Callable, case: Case):
    for t in {1, case.T // 2 + 1, case.T}:
        x = f(case.schedule, many(case), [t], case.generator())
        noise = standardised(case.schedule, many(case), [t], x)
        yield from standard(noise, [t], "Look at the factors of image and noise: root or not, ᾱ at which time?")


@PATH.identity("law from each time to the next", 2, to=7, route="N(0, 1) after standardising")
def _(f: Callable, case: Case):
    times, advice = some_times(case), "Let x at each time start from x at the time before, and add noise of its own."
    noise = standardised(case.schedule, many(case), times, f(case.schedule, many(case), times, case.generator()))
    yield from standard(noise, times, advice)
    for before, after in zip(noise.flatten(1), noise.flatten(1)[1:], strict=False):
        score = float(abs((before * after).mean())) * after.numel() ** 0.5
        note(score, "What two stretches of the path add is not independent.", advice)
        yield score


@PATH.identity(
    "noise of its own for every number", 2, to=10, trials=1, route="the joint law of the noise, by many tests"
)
def _(f: Callable, case: Case):
    times = some_times(case, 3)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        x_0 = case.normal(n, 2, 1, 2, name="x")
        x = f(case.schedule, x_0, times, generator)
        return standardised(case.schedule, x_0, times, x).movedim(0, 1)

    yield noise_score(draw, (len(times), 2, 1, 2))


@PATH.identity("times in any order", 1, to=7, route="N(0, 1) after standardising")
def _(f: Callable, case: Case):
    times = some_times(case)
    for asked in (times[::-1], times[1:] + times[:1]):
        x = f(case.schedule, many(case), asked, case.generator())
        noise = standardised(case.schedule, many(case), asked, x)
        yield from standard(noise, asked, "Visit the times from first to last; return x in the order asked.")


@PATH.identity("one normal number for each number", 1, route="where the generator stands afterwards")
def _(f: Callable, case: Case):
    times, used, counted = some_times(case), case.generator(), case.generator()
    f(case.schedule, case.normal(4, 1, 2, 2), times, used)
    torch.randn(16 * len(times), generator=counted, dtype=torch.float64)
    same = torch.equal(*(torch.randn(4, generator=g, dtype=torch.float64) for g in (used, counted)))
    said = f"For {len(times)} times it does not draw {len(times)} normal numbers a pixel."
    note(float(not same), said, "One jump leads from each time to the next, with one number a pixel.")
    yield fault(not same)


@PATH.identity("the image in it", 1, to=1e-6, route="two images, the same noise")
def _(f: Callable, case: Case):
    scale, times = walk(case.schedule)[0], some_times(case)[::-1]
    x_0, away = case.normal(name="x"), case.normal(name="away")
    given, asked = x_0.clone(), list(times)
    got, moved = (f(case.schedule, x, asked, case.generator()) for x in (given, x_0 + away))
    yield apart(moved - got, scale[times].reshape(-1, *[1] * x_0.ndim) * away)
    row = f(case.schedule, x_0.flatten(1), times, case.generator())
    yield fault(row.shape != (len(times), *x_0.flatten(1).shape))
    half = f(case.schedule, x_0.float(), times, case.generator())
    note(float(half.dtype != torch.float32), f"Images in float32 come back in {half.dtype}.", "Cast the factors.")
    yield fault(half.dtype != torch.float32)
    changed = asked != times or not torch.equal(given, x_0)
    note(float(changed), "It changes its arguments.", "Work on copies: sorted(times), and no += or out= on x_0.")
    yield fault(changed)


# 1.4: a schedule from its signal-to-noise ratios
LINE = Problem("1.4", "A schedule whose log-SNR is a straight line", "f(T, snr_1, snr_T) returns a Schedule of T steps")
ENDS = ((3000.0, 1e-3), (2.0, 0.5), (0.9, 0.2), (50.0, 49.0))


def ratios(schedule: Schedule) -> Tensor:
    """SNR(1)..SNR(T), by walking the chain."""
    scale, var = walk(schedule)
    return (scale**2 / var)[1:]


@LINE.identity("both ends", 1, least=2, route="the chain, walked")
def _(f: Callable, case: Case):
    for first, last in ENDS:
        yield relative(ratios(f(case.T, first, last))[[0, -1]], [first, last])


@LINE.identity("a straight line", 2, least=2, route="the chain, walked")
def _(f: Callable, case: Case):
    for first, last in ENDS:
        log_snr = ratios(f(case.T, first, last)).log()
        share = np.arange(case.T) / (case.T - 1)
        yield apart(log_snr, (1 - share) * math.log(first) + share * math.log(last))


@LINE.identity("what it refuses", 1, route="a ValueError")
def _(f: Callable, case: Case):
    for T, first, last in ((1, 9.0, 0.1), (case.T + 1, 0.1, 9.0), (case.T + 1, 2.0, 2.0), (case.T + 1, 2.0, 0.0)):
        yield accepted(lambda T=T, first=first, last=last: f(T, first, last))
