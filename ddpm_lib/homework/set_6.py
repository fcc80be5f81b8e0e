"""Problem set 6, guidance and evaluation: what the answers must satisfy."""

import itertools
import math

import numpy as np
import torch
from scipy import stats

from ddpm_lib.checks import apart
from ddpm_lib.checks.guard import Watched, relative, slope_gap
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.homework import given_6
from ddpm_lib.homework.given_6 import broken, double, estimates, labelled, line, sets, slope
from ddpm_lib.homework.problem import Problem

two = Problem("6.1", "Two labels, two scales", "f(model, a, b, null, s_a, s_b): a function of (x_t, t)")


@two.identity("the score of q(x)·p(a|x)^s_a·p(b|x, a)^s_b", 1, 1e-8, route="autograd through log-densities")
def _(f, case):
    model, (x, t, a, b) = labelled(case)
    s_a, s_b = (float(case.uniform(0.3, 4, name=name)) for name in ("s_a", "s_b"))
    yield apart(f(model, a, b, model.null, s_a, s_b)(x, t), given_6.by_densities(case, s_a, s_b))


@two.identity("scales 0 and 1: the plain models", 1, 1e-9, route="the model itself")
def _(f, case):
    model, (x, t, a, b) = labelled(case)
    none = torch.full_like(a, model.null)
    for scales, labels in (((1.0, 0.0), (a, none)), ((1.0, 1.0), (a, b)), ((0.0, 0.0), (none, none))):
        yield apart(f(model, a, b, model.null, *scales)(x, t), model(x, t, *labels))


@two.identity("a scale for each image", 1, 1e-9, route="each image alone, with its scales as plain numbers")
def _(f, case):
    model, (x, t, a, b) = labelled(case)
    s_a, s_b = (case.uniform(0, 3, case.batch, name=name) for name in ("s_a", "s_b"))
    got = f(model, a, b, model.null, s_a, s_b)(x, t)
    for i in range(len(x)):
        part = slice(i, i + 1)
        yield apart(got[part], f(model, a[part], b[part], model.null, float(s_a[i]), float(s_b[i]))(x[part], t[part]))


@two.identity("float32 stays float32; gradients; nothing is written into", 1, 1e-6, route="a second call; differences")
def _(f, case):
    model, (x, t, a, b) = labelled(case)
    s_a, s_b = (case.uniform(1, 3, case.batch, name=name) for name in ("s_a", "s_b"))
    guided = f(model, a, b, model.null, s_a, s_b)
    watched = Watched(guided)
    narrow = watched(x.float(), t)
    yield watched.fault
    yield broken(narrow.dtype != torch.float32, f"float32 came back as {narrow.dtype}.")
    yield broken(not all(map(torch.equal, (a, b), labelled(case)[1][2:])), "It has written into the labels.")
    yield slope_gap(lambda x: guided(x, t), x) / x.numel()


projected = Problem("6.2", "Guidance that keeps its length", "f(schedule, x_t, t, eps_y, eps_none, scale, keep): ε")


@projected.identity("keep = 1: classifier-free guidance", 1, 1e-8, route="the line through both estimates")
def _(f, case):
    schedule, x, t, eps_y, eps_none = estimates(case)
    for s in (0.0, 1.0, 3.5):
        yield apart(f(schedule, x, t, eps_y, eps_none, s, 1.0), s * eps_y + (1 - s) * eps_none)


@projected.identity("keep = 0: nothing is added along the image", 1, 1e-8, route="scalar products of flat images")
def _(f, case):
    schedule, x, t, eps_y, eps_none = estimates(case)
    std = (1 - schedule.alpha_bar[t]).sqrt().reshape(-1, 1)

    def image(eps):  # √ᾱ times the clean image
        return (x.flatten(1) - std * eps.flatten(1)).numpy()

    for other in (eps_none, 2 * eps_y - eps_none):  # one of them makes the image weaker
        plain, got = (f(schedule, x, t, eps_y, other, 3.5, keep) for keep in (1.0, 0.0))
        for y, full, cut in zip(*map(image, (eps_y, plain, got)), strict=True):
            size = np.linalg.norm(full - y)
            yield abs((cut - y) @ y) / (size * np.linalg.norm(y))
            lost = full - cut
            yield float(np.linalg.norm(lost - lost @ y / (y @ y) * y)) / size
        yield relative(f(schedule, x, t, eps_y, other, 3.5, 0.3), 0.3 * plain + 0.7 * got, 1.0)


@projected.identity("each image by itself", 1, 1e-9, route="one image at a time")
def _(f, case):
    schedule, x, t, eps_y, eps_none = estimates(case)
    got = f(schedule, x, t, eps_y, eps_none, 3.5, 0.2)
    for i in range(len(x)):
        part = slice(i, i + 1)
        yield relative(got[part], f(schedule, *(v[part] for v in (x, t, eps_y, eps_none)), 3.5, 0.2), 1.0)


@projected.identity("an image of zeros; dtype and gradients", 1, 1e-6, route="classifier-free guidance; differences")
def _(f, case):
    schedule, x, t, eps_y, eps_none = estimates(case)
    x[-1], eps_y[-1] = 0.0, 0.0
    watched = Watched(f)
    got = watched(schedule, x, t, eps_y, eps_none, 3.5, 0.2)
    yield broken(not got.isfinite().all(), "For an image whose conditional clean image is 0, it returned NaN.")
    yield from (watched.fault, apart(got[-1], -2.5 * eps_none[-1]))
    total = f(schedule, x, t, leaf := eps_y.clone().requires_grad_(), eps_none, 3.5, 0.2).sum()
    lost = total.requires_grad and not torch.autograd.grad(total, leaf)[0].isfinite().all()
    yield broken(lost, "For an image whose conditional clean image is 0, its gradient is NaN.")
    narrow = f(schedule, x.float(), t, eps_y.float(), eps_none.float(), 3.5, 0.2)
    yield broken(narrow.dtype != torch.float32, f"float32 came back as {narrow.dtype}.")
    schedule, x, t, eps_y, eps_none = estimates(case)
    yield slope_gap(lambda *of: f(schedule, x, t, *of, 3.5, 0.2), eps_y, eps_none) / x.numel()


tilted = Problem("6.3.1", "The score of the noised tilted density", "f(mixture, y, s, schedule, t, x): the score at x")


@tilted.identity("s = 0 and s = 1: the exact scores", 1, 1e-6, route="the exact denoiser")
def _(f, case):
    mixture, x = line(case)
    exact = ExactDenoiser(mixture, case.schedule)
    for t, s, y in itertools.product({case.T, (case.T + 1) // 2}, (0.0, 1.0), (0, 2)):
        label, std = torch.full(x.shape, y if s else 3), (1 - case.schedule.alpha_bar[t]).sqrt()
        yield relative(f(mixture, y, s, case.schedule, t, x), -exact(x[:, None], t, label)[:, 0] / std, 1.0)


@tilted.identity("first tilted, then noised", 1, 1e-6, route="differences of a logarithm, by quadrature")
def _(f, case):
    mixture, x = line(case)
    for t, s in itertools.product({case.T, (case.T + 1) // 2}, (0.4, 3.0)):
        yield relative(f(mixture, 1, s, case.schedule, t, x), slope(mixture, 1, s, case.schedule, t, x), 1.0)


@tilted.identity("little noise, and points far from the data", 1, 1e-6, route="the same quadrature", trials=2)
def _(f, case):
    mixture = GaussianMixture(line(case)[0].weight, double([[-1], [0], [1]]), double([[0.03], [0.3], [0.04]]))
    schedule, x = linear_schedule(), double([-4.0, 0.123, 3.7])
    for t in (1, 10):
        yield relative(f(mixture, 0, 2.5, schedule, t, x), slope(mixture, 0, 2.5, schedule, t, x), 1.0)


gap = Problem("6.3.2", "By how much the two scores differ", "a number: guidance's score minus the tilted density's")
gap.secret("for your classes, scale, time and point", 1)


scale = Problem("6.3.3", "The scale with the tilted density's variance", "a number: the scale of guidance")
scale.secret("for your variances and scale", 1)


mistake = Problem("6.4", "Find the mistake", "a number: the line that does not follow")
mistake.secret("the line that does not follow", 1)


ratio = Problem("6.5.1", "A ratio with its interval", "f(first, second, level): the ratio, and both ends")


@ratio.identity("the ratio of the summed variances", 1, 1e-9, route="squares over all pairs")
def _(f, case):
    for n in (case.batch + 4, 40):
        sums = [float(torch.cdist(x, x).square().sum()) for x in sets(case, n)]
        yield relative(f(*sets(case, n), 0.95)[0], sums[0] / sums[1])


@ratio.identity("the interval of three pairs", 1, 1e-8, route="by hand: without one, a set has two points")
def _(f, case):
    squares = [[float((x[i] - x[i - 1]).square().sum()) for i in range(3)] for x in sets(case, 3)]
    v = np.log(squares[0]) - np.log(squares[1])
    width = 2 * stats.norm.isf(0.025) * math.sqrt(2 * v.var())
    _, low, high = f(*sets(case, 3), 0.95)
    yield broken(not 0 < low <= high, f"An interval from {low:.3g} to {high:.3g} is none of a ratio.")
    yield relative(math.log(high / low), width)


@ratio.identity("what belongs together is left out together", 1, 1e-7, route="a set beside a multiple of itself")
def _(f, case):
    x, y = sets(case, case.batch + 4)
    yield relative(f(x, 3 * x, 0.95), [1 / 9] * 3)
    yield relative(f(x.flip(0), y.flip(0), 0.95), f(x, y, 0.95))
    watched = Watched(f)
    watched(x, y, 0.95)
    yield watched.fault


@ratio.identity("levels; the same factor up and down", 1, 1e-8, route="a normal variable's quantiles")
def _(f, case):
    x, y = sets(case, case.batch + 4)
    at = {level: f(x, y, level) for level in (0.5, 0.95, 0.99)}
    wide = {level: math.log(high / low) / stats.norm.ppf((1 + level) / 2) for level, (_, low, high) in at.items()}
    yield relative([wide[0.5], wide[0.99]], [wide[0.95]] * 2)
    for middle, low, high in at.values():
        yield relative(low * high, middle**2)


permuted = Problem("6.5.2", "A permutation test", "f(first, second, statistic, rounds, generator): p")


@permuted.identity("against all splits", 1, 5.0, route="every split of eight into two and six, |z|")
def _(f, case):
    for turn in range(3):
        points = case.whole(0, 5, 8, 2, name=f"points {turn}").double() / 16
        splits = [(list(two), [i for i in range(8) if i not in two]) for two in itertools.combinations(range(8), 2)]
        statistic = given_6.above if turn else given_6.spread
        found = [statistic(points[two], points[rest]) for two, rest in splits]
        share, R = np.mean(np.array(found) >= found[0]), 2000
        p = f(points[:2], points[2:], statistic, R, case.generator("turn"))
        yield abs(p - (1 + R * share) / (1 + R)) / math.sqrt(max(share * (1 - share), 1e-3) / R)


@permuted.identity("what is observed counts, and so does a tie", 1, 1e-9, route="sets far apart; a constant")
def _(f, case):
    x, y = (case.normal(12, 2, name=name) + shift for name, shift in (("x", 0), ("y", 50)))
    yield apart(f(x, y, given_6.spread, 19, case.generator()), 0.05)
    yield apart(f(x, y, lambda x, y: 1.0, 39, case.generator()), 1.0)


@permuted.identity("the generator decides, and it alone", 1, 1e-9, route="the same seed, other seeds")
def _(f, case):
    x, y = case.normal(8, 2, name="x"), case.normal(6, 2, name="y")
    kept, seen = (x.clone(), y.clone()), []

    def told(x, y):  # p alone is soon the same by chance
        seen[-1] += (value := given_6.spread(x, y))
        return value

    def drawn(i: int) -> float:
        seen.append(0.0)
        return f(x, y, told, 99, case.generator(f"{i}"))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        state = torch.get_rng_state()
        p = [[drawn(i) for i in range(4)] for _ in range(2)]
        touched = not torch.equal(state, torch.get_rng_state())
    yield apart(p[0], p[1])
    yield broken(len(set(seen)) == 1, "Four generators with four seeds gave the same deals.")
    yield broken(touched or not all(map(torch.equal, kept, (x, y))), "It touches torch's own generator, or the sets.")
