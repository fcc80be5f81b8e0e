"""The checks of chapter 11, training. The routes count, minimise, or keep every past weight and average at the end."""

import copy
import itertools
import math
import random
from fractions import Fraction
from itertools import combinations, islice

import numpy as np
import torch
from scipy import stats
from scipy.optimize import minimize
from torch import Tensor, nn

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.guard import Watched, accepted, fault, until

BROKEN = 1000.0  # the z of a promise without chance in it, for each thing that breaks it


def take(batches, count):
    """The first `count` batches, all taken before the first is looked at."""
    return list(islice(batches, count))


def _row(f, n, batch, seed, start, count):
    """`count` batches laid end to end, float64; NaN if there are fewer."""
    parts = take(f(n, batch, seed, start), count)
    return torch.cat(parts).double() if len(parts) == count else torch.full((count * batch,), math.nan).double()


def _is_batch(part, batch):
    return isinstance(part, Tensor) and (part.dtype, part.shape, part.device.type) == (torch.int64, (batch,), "cpu")


def _globals():
    """The states of the generators that belong to everybody."""
    _name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), rest


def _elsewhere(call):
    """call() where everybody's generators stand at another place."""
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        np.random.seed(12345)  # noqa: NPY002
        random.seed(12345)
        try:
            return call()
        finally:
            np.random.set_state(numpys)  # noqa: NPY002
            random.setstate(pythons)


@check(
    "11.1",
    "batches",
    "implementation",
    "epochs counted, runs resumed at every batch, the orders of 4,000 epochs and 2,000 seeds",
)
@until(15)
def batches(f):
    """f(n, batch, seed, start) yields batches of indices without end: (batch,), int64, the first is number `start`.

    ValueError, at the call or at the first batch, for n or batch below 1 and for start below 0.
    """
    everybodys = _globals()
    for n, batch in ((7, 3), (5, 5), (10, 4), (3, 8), (1, 1), (1, 4), (2, 1), (6, 12), (13, 1), (9, 64)):
        count = 6 * n  # batches: a whole number of epochs, 6·batch
        parts = take(f(n, batch, 3, 0), count)
        yield BROKEN * (count - sum(_is_batch(part, batch) for part in parts))
        stream = torch.cat(parts).double()
        epochs = stream.reshape(-1, n)
        yield BROKEN * apart(epochs.sort(1).values, torch.arange(n).double().expand(len(epochs), n))
        for k in range(count - 4):
            yield BROKEN * apart(_row(f, n, batch, 3, k, 4), stream[k * batch : (k + 4) * batch])
        yield BROKEN * apart(_row(f, n, n, 3, 0, 6), stream[: 6 * n])  # the row is the same, wherever it is cut
        pairs = zip(f(n, batch, 3, 0), f(n, batch, 4, 0), f(n, batch, 3, 1), strict=True)  # side by side
        first, _, second = (torch.cat(parts).double() for parts in zip(*islice(pairs, 4), strict=True))
        yield BROKEN * largest(apart(first, stream[: 4 * batch]), apart(second, stream[batch : 5 * batch]))
        yield fault(_globals() != everybodys)
    far = _row(f, 7, 3, 3, 70_000, 14)  # from the beginning of an epoch
    yield BROKEN * apart(far.reshape(-1, 7).sort(1).values, torch.arange(7).double().expand(6, 7))
    yield BROKEN * apart(_row(f, 7, 3, 3, 70_003, 11), far[9:])
    yield BROKEN * apart(_elsewhere(lambda: _row(f, 7, 3, 3, 70_000, 14)), far)
    yield from _scores_of_small_orders(f)
    yield from _scores_of_many_orders(f)
    yield from _scores_of_large_orders(f)
    for n, batch, start in ((0, 2, 0), (-3, 2, 0), (4, 0, 0), (4, -1, 0), (4, 2, -1)):
        yield accepted(lambda n=n, batch=batch, start=start: next(f(n, batch, 3, start)))


def _scores_of_large_orders(f):
    """One order is like noise; so is each beside the others, of other epochs and seeds."""
    for n, batch, epochs, seeds in ((1000, 100, 6, 2), (20_000, 16, 1, 1), (300_000, 30_000, 2, 1)):
        count = epochs * n // batch
        orders = torch.cat([_row(f, n, batch, seed, 0, count).reshape(epochs, n) for seed in range(seeds)])
        z = (orders.numpy() - (n - 1) / 2) / ((n**2 - 1) / 12) ** 0.5
        for order in z:
            yield _likeness(order, 1)
        for a, b in combinations([np.linspace(-(3**0.5), 3**0.5, n), *z], 2):
            yield abs(a @ b) / n**0.5
        place = np.arange(n)
        for m in (2, 3, 4, 5, 7, 8, 10, 16, 32, 64):  # images dealt out to m workers, or m to each
            for part in (place % m, place * m // n):
                table = np.bincount(part * m + orders[0].numpy().astype(int) % m, minlength=m**2)
                yield _chi_square(table, n / m**2, (m - 1) ** 2)


def _likeness(row, first):
    """Of a row of standardised numbers with itself, a distance further on: the largest |z| of all distances."""
    lags = np.fft.irfft(np.abs(np.fft.rfft(row, 2 * len(row))) ** 2)[first : len(row)]
    return np.abs(lags).max() / len(row) ** 0.5 - 3  # among many distances, one reaches 3 by chance


def _chi_square(count, expected, freedom):
    """How far counts are from those expected: the z that is as unlikely as their χ²."""
    return float(stats.norm.isf(stats.chi2.sf(((count - expected) ** 2 / expected).sum(), freedom)))


def _scores_of_many_orders(f):
    """No order comes again, in no other epoch and with no other seed, nor one that is like it."""
    n = 20
    orders = _row(f, n, n, 0, 0, 4000)
    yield _likeness((orders.numpy() - (n - 1) / 2) / ((n**2 - 1) / 12) ** 0.5, n)
    others = [_row(f, n, n, 0, start, 20) for start in (2**16, 84_000, 90_000, 100_000)]
    seeds = (*range(1, 30), 42, 255, 256, 257, 999, 1000, 2**15, 2**16, 2**31, 2**32 - 1)
    others += [_row(f, n, n, seed, 0, 5) for seed in seeds]
    rows = torch.cat([orders, *others]).reshape(-1, n)
    yield BROKEN * (len(rows) - len(rows.unique(dim=0)))


def _scores_of_small_orders(f):
    """Of few images, each order comes equally often, after each first image of the epoch before."""
    for n, count in ((2, 400), (3, 600), (4, 4000)):
        orders = _row(f, n, n, 1, 0, count).reshape(-1, n)
        yield _evenness(orders, math.factorial(n))
        yield _evenness(torch.cat([orders[1::2], orders[::2, :1]], 1), math.factorial(n) * n)
    orders = torch.stack([_row(f, 4, 4, seed, 0, 2)[:5] for seed in range(2000)])
    yield _evenness(orders, 96)


def _evenness(rows, cells):
    """Whether each of `cells` possible rows comes equally often."""
    _, count = rows.unique(dim=0, return_counts=True)
    count = np.concatenate([count.numpy(), np.zeros(max(0, cells - len(count)))])
    return _chi_square(count, len(rows) / cells, cells - 1)


def _epochs(n, batch, order, start):
    """Batch after batch from the epochs order(0), order(1), ..., laid end to end."""
    epoch, place = divmod(start * batch, n)
    row = order(epoch)[place:]
    while True:
        while len(row) < batch:
            epoch += 1
            row = np.concatenate([row, order(epoch)])
        yield torch.as_tensor(row[:batch])
        row = row[batch:]


def _shuffled(n, *seed):
    return np.random.default_rng(seed).permutation(n)


@batches.wrong(
    "drawn with replacement: a third of the images is missed in an epoch",
    seen="no public source: randint for the indices",
    idea="noise",
)
def _(n, batch, seed, start):
    draws = np.random.default_rng((seed, start))
    while True:
        yield torch.from_numpy(draws.integers(0, n, batch))


@batches.wrong(
    "the same order in every epoch",
    seen="no public source: a seed that is set at the beginning of each epoch",
    idea="noise",
)
def _(n, batch, seed, start):
    return _epochs(n, batch, lambda epoch: _shuffled(n, seed), start)


@batches.wrong(
    "a new order in the second epoch, and from then on the same",
    seen="no public source: a plausible slip",
    idea="noise",
)
def _(n, batch, seed, start):
    return _epochs(n, batch, lambda epoch: _shuffled(n, seed, min(epoch, 1)), start)


@batches.wrong(
    "a resumed run begins with batch 0 again",
    seen="openai/guided-diffusion: the loader of a resumed run starts afresh",
    idea="state",
)
def _(n, batch, seed, start):
    return _epochs(n, batch, lambda epoch: _shuffled(n, seed, epoch), 0)


@batches.wrong("the rest of an epoch is dropped", seen="torch's DataLoader with drop_last=True", idea="edge")
def _(n, batch, seed, start):
    whole = max(1, n // batch)
    while True:
        epoch, k = divmod(start, whole)
        yield torch.from_numpy(np.resize(_shuffled(n, seed, epoch), whole * batch)[k * batch : (k + 1) * batch])
        start += 1


@batches.wrong(
    "only a random beginning, then in the order of the data",
    seen="no public source: a shuffle by rolling, cheap on a disk",
    idea="noise",
)
def _(n, batch, seed, start):
    return _epochs(n, batch, lambda epoch: np.roll(np.arange(n), _shuffled(n, seed, epoch)[0]), start)


@batches.wrong("drawn from torch's global generator", seen="torch's DataLoader with shuffle=True", idea="noise")
def _(n, batch, seed, start):
    drawn = {}
    return _epochs(n, batch, lambda epoch: drawn.setdefault(epoch, torch.randperm(n).numpy()), start)


@batches.wrong(
    "shuffled within blocks of 1,024", seen="no public source: a shuffle that need not hold all indices", idea="noise"
)
def _(n, batch, seed, start):
    def order(epoch):
        draws = np.random.default_rng((seed, epoch))
        return np.concatenate([draws.permutation(np.arange(a, min(a + 1024, n))) for a in range(0, n, 1024)])

    return _epochs(n, batch, order, start)


@batches.wrong("orders repeat after 8 epochs", seen="no public source: a few orders drawn beforehand", idea="noise")
def _(n, batch, seed, start):
    return _epochs(n, batch, lambda epoch: _shuffled(n, seed, epoch % 8), start)


@batches.wrong(
    "seed + epoch: the epochs of seed 1 are those of seed 0, one later", seen="torch's DistributedSampler", idea="noise"
)
def _(n, batch, seed, start):
    return _epochs(n, batch, lambda epoch: _shuffled(n, seed + epoch), start)


@batches.wrong(
    "everybody's generator is set anew in each epoch",
    seen="no public source: torch.manual_seed, so that a run repeats",
    idea="state",
)
def _(n, batch, seed, start):
    def order(epoch):
        torch.manual_seed(1_000_003 * seed + epoch)
        return torch.randperm(n).numpy()

    return _epochs(n, batch, order, start)


@batches.wrong("indices in 32 bits", seen="no public source: half the memory", idea="edge")
def _(n, batch, seed, start):
    return _epochs(n, batch, lambda epoch: _shuffled(n, seed, epoch).astype(np.int32), start)


UNEVEN = {"rate": 0.1, "beta_1": 0.8, "beta_2": 0.95, "eps": 0.03, "decay": 0.2}  # errors cannot hide
USUAL = {"rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999, "eps": 1e-8, "decay": 0.01}
BARE = {"rate": 0.5, "beta_1": 0.0, "beta_2": 0.5, "eps": 1e-12, "decay": 0.0}


@check("11.2", "AdamW step", "identity", "torch.optim.AdamW, over 1,500 steps in float64", to=1e-12)
@until(1e-11)
def adamw(f):
    """f(theta, gradient, m, v, k, rate=, beta_1=, beta_2=, eps=, decay=) returns theta, m, v after step k = 1, 2, ...

    Its arguments stay as they were.
    """
    for options, shape, steps, size in ((UNEVEN, (5,), 12, 1.0), (USUAL, (2, 3), 1500, 1e-3), (BARE, (), 30, 1e8)):
        generator = torch.Generator().manual_seed(0)
        theta = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight = nn.Parameter(theta.clone())
        theirs = torch.optim.AdamW(
            [weight],
            lr=options["rate"],
            betas=(options["beta_1"], options["beta_2"]),
            eps=options["eps"],
            weight_decay=options["decay"],
        )
        m = v = torch.zeros_like(theta)
        sizes = size * 10.0 ** torch.linspace(-2, 2, max(1, theta.numel()), dtype=torch.float64).reshape(shape)
        for k in range(1, steps + 1):
            gradient = torch.randn(shape, generator=generator, dtype=torch.float64) * sizes
            gradient *= k % 7 != 6  # now and then there is none
            if k < 400 and theta.ndim == 2:
                gradient[0] = 0.0  # and some have none for long, as an embedding's rows
            weight.grad = gradient.clone()
            theirs.step()
            before = theta, gradient, m, v
            given = [part.clone() for part in before]
            theta, m, v = f(*given, k, **options)
            yield largest(*map(apart, given, before))
            state = theirs.state[weight]
            size_of_v = state["exp_avg_sq"].clamp(min=1e-290)  # the smallest is 10⁸ times smaller than the largest
            yield apart(theta, weight) + fault(theta.dtype != torch.float64)
            yield apart(m / size_of_v.sqrt(), state["exp_avg"] / size_of_v.sqrt())
            yield apart(v / size_of_v, state["exp_avg_sq"] / size_of_v)


@adamw.states
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    m, v = beta_1 * m + (1 - beta_1) * gradient, beta_2 * v + (1 - beta_2) * gradient**2
    m_hat, v_hat = m / (1 - beta_1**k), v / (1 - beta_2**k)
    return theta - rate * (m_hat / (v_hat.sqrt() + eps) + decay * theta), m, v


@adamw.wrong("L2: the decay is added to the gradient", seen="torch.optim.Adam with weight_decay", idea="exchange")
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    return adamw.statement(theta, gradient + decay * theta, m, v, k, rate, beta_1, beta_2, eps, 0.0)


@adamw.wrong(
    "no correction for the start: m and v themselves", seen="google-research/bert, optimization.py", idea="term"
)
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    m, v = beta_1 * m + (1 - beta_1) * gradient, beta_2 * v + (1 - beta_2) * gradient**2
    return theta - rate * (m / (v.sqrt() + eps) + decay * theta), m, v


@adamw.wrong("ε inside the root", seen="no public source: batch norm's formula", idea="edge")
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    m, v = beta_1 * m + (1 - beta_1) * gradient, beta_2 * v + (1 - beta_2) * gradient**2
    m_hat, v_hat = m / (1 - beta_1**k), v / (1 - beta_2**k)
    return theta - rate * (m_hat / (v_hat + eps).sqrt() + decay * theta), m, v


@adamw.wrong(
    "ε added before v is corrected", seen="Kingma and Ba 2015, end of section 2: its ε̂ taken for ε", idea="edge"
)
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    m, v = beta_1 * m + (1 - beta_1) * gradient, beta_2 * v + (1 - beta_2) * gradient**2
    scaled = rate * (1 - beta_2**k) ** 0.5 / (1 - beta_1**k)
    return theta - scaled * m / (v.sqrt() + eps) - rate * decay * theta, m, v


@adamw.wrong(
    "the decay is not multiplied by the rate",
    seen="Loshchilov and Hutter 2019: their λ, put into torch's AdamW",
    idea="term",
)
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    moved, m, v = adamw.statement(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, 0.0)
    return moved - decay * theta, m, v


@adamw.wrong("the two memories are exchanged", seen="no public source: betas=(0.999, 0.9)", idea="exchange")
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    return adamw.statement(theta, gradient, m, v, k, rate, beta_2, beta_1, eps, decay)


@adamw.wrong("v never falls", seen="torch's AdamW with amsgrad=True", idea="exchange")
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    _, m, now = adamw.statement(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay)
    v = torch.maximum(v, now)
    return theta - rate * (m / (1 - beta_1**k) / ((v / (1 - beta_2**k)).sqrt() + eps) + decay * theta), m, v


@adamw.wrong(
    "after 1,000 steps the correction is left out",
    seen="no public source: “it is 1 by then”",
    idea="edge",
)
def _(theta, gradient, m, v, k, rate, beta_1, beta_2, eps, decay):
    m, v = beta_1 * m + (1 - beta_1) * gradient, beta_2 * v + (1 - beta_2) * gradient**2
    m_hat, v_hat = (m, v) if k > 1000 else (m / (1 - beta_1**k), v / (1 - beta_2**k))
    return theta - rate * (m_hat / (v_hat.sqrt() + eps) + decay * theta), m, v


@check("11.3", "gradient clipping", "identity", "the nearest point of the ball, by numerical minimisation", to=1e-5)
@until(0.0001)
def clipping(f):
    """f(gradients, c) returns the clipped gradients of a network's tensors: tuples of tensors of any shapes.

    A gradient that is 0 stays 0.
    """
    many = ((2, 2), (3,), (1,))
    for seed, (shapes, length, c) in enumerate(
        (
            (many, 10.0, 1.0),
            (many, 0.6, 1.0),
            (many, 0.99, 1.0),
            (many, 1.04, 1.0),
            (many, 3.0, 2.5),
            (many, 2.2, 0.4),
            (((3,), (), (1, 2, 2)), 1e3, 1.0),
            (((4,),), 1e6, 1.0),
            (((2, 3),) * 20, 1.5, 1.0),
            (many, 3e-7, 1e-7),  # all is small: what is added somewhere "for stability" is not
            (many, 3e7, 1e7),
            (many, 20.0, 50.0),
            (((10, 12), (5,)), 40.0, 10.0),
            (many, 0.0, 1.0),
        )
    ):
        draws = np.random.default_rng(seed)
        gradients = [draws.standard_normal(shape) * 10.0 ** draws.uniform(-1, 1) for shape in shapes]
        g = np.concatenate([np.ravel(part) for part in gradients])
        factor = length / np.linalg.norm(g)
        got = f(tuple(torch.tensor(factor * part, dtype=torch.float64) for part in gradients), c)
        yield fault([tuple(part.shape) for part in got] != [np.shape(part) for part in gradients])
        yield apart(torch.cat([part.flatten() for part in got]) / c, _nearest(factor * g / c))


def _nearest(g):
    """The point of the unit ball that is nearest to g."""
    unit = max(1.0, float(np.linalg.norm(g)))  # of the objective, or the numbers get too large
    return minimize(
        lambda x: (x - g) @ (x - g) / unit,
        np.full(len(g), 0.1 / len(g) ** 0.5),
        jac=lambda x: 2 * (x - g) / unit,
        constraints=[{"type": "ineq", "fun": lambda x: 1 - x @ x, "jac": lambda x: -2 * x}],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    ).x


def _norm(gradients):
    return sum(part.square().sum() for part in gradients) ** 0.5


@clipping.states
def _(gradients, c):
    return tuple(part * (c / max(c, float(_norm(gradients)))) for part in gradients)


@clipping.wrong(
    "each tensor is clipped by itself, which turns the gradient",
    seen="no public source: clip_grad_norm_(p, c) in a loop",
    idea="axis",
)
def _(gradients, c):
    return tuple(part * (c / max(c, float(_norm([part])))) for part in gradients)


@clipping.wrong(
    "each number is clipped by itself", seen="no public source: clip_grad_value_ taken for clip_grad_norm_", idea="axis"
)
def _(gradients, c):
    return tuple(part.clamp(-c, c) for part in gradients)


@clipping.wrong(
    "short gradients are stretched to length c, too",
    seen="no public source: normalising taken for clipping",
    idea="exchange",
)
def _(gradients, c):
    return tuple(part * c / _norm(gradients) for part in gradients)


@clipping.wrong("divided by the square of the norm", seen="no public source: a root forgotten", idea="power")
def _(gradients, c):
    return tuple(part * min(1.0, c / max(float(_norm(gradients)) ** 2, 1e-300)) for part in gradients)


@clipping.wrong(
    "c/(‖g‖ + 1e-6)", seen="torch's clip_grad_norm_; felt only where gradients are as small as that", idea="edge"
)
def _(gradients, c):
    return tuple(part * min(1.0, c / (float(_norm(gradients)) + 1e-6)) for part in gradients)


@clipping.wrong("never to less than a tenth", seen="no public source: a bound “for stability”", idea="edge")
def _(gradients, c):
    return tuple(part * max(0.1, c / max(c, float(_norm(gradients)))) for part in gradients)


@check(
    "11.4",
    "learning-rate course",
    "implementation",
    "straight lines through the corners (−1, 0), (warmup, 1), (steps, final)",
    to=1e-12,
)
@until(1e-11)
def course(f):
    """f(warmup, steps, final) returns the factor as a function of the steps done."""
    for warmup, steps, final in (
        *((4, 11, 0.25), (1, 30, 0.0), (0, 7, 0.4), (10, 12, 1.0), (3, 4, 0.5), (0, 1, 0.0)),
        *((5000, 20_000, 0.1), (20, 640, 0.0), (1500, 60_000, 1e-3), (100, 1000, 1.0)),
    ):
        factor = f(warmup, steps, final)
        near = [k for corner in (0, warmup, steps) for k in range(max(0, corner - 9), corner + 10)]
        done = np.array([*near, *range(0, 2 * steps, max(1, steps // 40)), 10 * steps, 1000 * steps, *near[::-1]])
        expected = np.interp(done, [-1, warmup, steps], [0, 1, final])  # and `final` for ever after
        yield apart(np.array([float(factor(int(k))) for k in done]), expected)


def _fall(done, warmup, steps, final):
    return 1 + (final - 1) * (done - warmup) / (steps - warmup)


@course.wrong(
    "the first step has the rate 0", seen="huggingface/transformers, get_linear_schedule_with_warmup", idea="time"
)
def _(warmup, steps, final):
    return lambda k: k / warmup if k < warmup else max(min(1.0, final), _fall(k, warmup, steps, final))


@course.wrong(
    "the fall takes `steps` steps after the warm-up, so it is never finished",
    seen="no public source: a plausible slip",
    idea="time",
)
def _(warmup, steps, final):
    return lambda k: (k + 1) / (warmup + 1) if k < warmup else max(final, _fall(k, warmup, steps + warmup + 1, final))


@course.wrong(
    "the line goes on after `steps`, below its end and below 0",
    seen="no public source: a missing max(0, ...)",
    idea="edge",
)
def _(warmup, steps, final):
    return lambda k: (k + 1) / (warmup + 1) if k < warmup else _fall(k, warmup, steps, final)


@course.wrong(
    "falls to 0, and stops there at `final`",
    seen="no public source: max(final, 1 − progress): a plateau, not a line",
    idea="edge",
)
def _(warmup, steps, final):
    return lambda k: (k + 1) / (warmup + 1) if k < warmup else max(final, _fall(k, warmup, steps, 0.0))


@course.wrong(
    "counts its own calls, not the steps",
    seen="no public source: a closure that remembers; a resumed run warms up again",
    idea="state",
)
def _(warmup, steps, final):
    calls = itertools.count()

    def rate(done):
        k = next(calls)
        return (k + 1) / (warmup + 1) if k < warmup else max(min(1.0, final), _fall(k, warmup, steps, final))

    return rate


@course.wrong("begins again after the last step", seen="no public source: done modulo steps", idea="edge")
def _(warmup, steps, final):
    def rate(done):
        k = done % (steps + 1)
        return (k + 1) / (warmup + 1) if k < warmup else _fall(k, warmup, steps, final)

    return rate


class Counter(nn.Module):
    """A network that a check can move by hand: parameters, one of them under two names, and buffers of three kinds."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.again = self.weight
        self.inner = nn.Linear(2, 1).double()
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("table", torch.zeros(2, dtype=torch.float64), persistent=False)
        self.register_buffer("count", torch.tensor(0))

    @torch.no_grad()
    def move(self, generator):
        for tensor in (*self.parameters(), self.mean, self.table):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
        self.count += 1
        return self


def shares(decays):
    """The share of each of the weights 0..n in the average after n updates, from one row of the identity each."""
    rows = [[Fraction(int(k == i)) for i in range(len(decays) + 1)] for k in range(len(decays) + 1)]
    average = rows[0]
    for d, row in zip(decays, rows[1:], strict=True):
        average = [d * old + (1 - d) * new for old, new in zip(average, row, strict=True)]
    return average


def _counted(n, decay):
    """The same shares after n updates, without a recursion, for d_k = min(decay, k/(k + 9)).

    As long as d_k = k/(k + 9), the weight k has the share of those choices of 9 among the numbers 1 to n + 9 whose
    largest is k + 9. (The decays of all later steps multiply to a ratio of binomial coefficients.) The steps after
    that, `late` in number, are an average with a constant d, whose oldest part is the one so far.
    """
    early = max(k for k in range(n + 1) if k == 0 or Fraction(k, k + 9) <= decay)
    late, d = n - early, float(decay)
    first = [math.comb(k + 8, 8) / math.comb(early + 9, 9) * d**late for k in range(early + 1)]
    return np.array(first + [(1 - d) * d**age for age in reversed(range(late))])


@check(
    "11.5",
    "exponential moving average",
    "implementation",
    "all past weights kept, and averaged at the end with binomial coefficients",
    to=1e-12,
)
@until(1e-11)
def moving_average(f):
    """f(model, decay) has `update(model)`, the averaged network as `model`, and the number of updates as `steps`.

    `model` is in eval mode and without gradients; with `steps` it is all that the next update depends on. The network
    that is averaged is left alone. ValueError for a decay outside [0, 1).
    """
    for decay, updates in ((0.9, (40, 250)), (0.3, (1, 9)), (0.0, (3,)), (0.9999, (12, 300))):
        generator = torch.Generator().manual_seed(1)
        network = Counter().move(generator)
        past, average = [_weights(network)], f(network, decay)
        yield from _compared(average.model, network, past[0])
        for k in range(1, max(updates) + 1):
            network.move(generator)
            handed = copy.deepcopy(network).move(generator) if k % 2 else network  # this one counts, not the first
            past.append(_weights(handed))
            average.update(handed)
            if k in updates:
                share = torch.from_numpy(_counted(k, Fraction(decay)))
                rows = {name: torch.stack([weights[name] for weights in past]) for name in past[0]}
                expected = {name: torch.einsum("k,k...->...", share, row) for name, row in rows.items()}
                yield largest(*(apart(weight, past[-1][name]) for name, weight in handed.named_parameters()))
                yield from _compared(average.model, handed, expected)
        yield fault(average.steps != max(updates))
        twin = f(Counter().move(generator), decay)  # a resumed run's
        twin.model.load_state_dict(average.model.state_dict())
        twin.steps = average.steps
        for one in (average, twin):
            one.update(network)
        yield largest(*map(apart, twin.model.parameters(), average.model.parameters()))
    for decay in (1.0, -0.1, 1.5):
        yield accepted(lambda decay=decay: f(Counter(), decay))


def _weights(network):
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def _compared(average, network, expected):
    """The average's distance from what is expected of it, now and after the network has moved on without it."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    for _ in range(2):
        got = dict(average.named_parameters())
        yield fault(got.keys() != expected.keys() or any(p.requires_grad for p in got.values()))
        yield fault(average.training or not network.training or not all(p.requires_grad for p in network.parameters()))
        yield largest(*(apart(got[name], weight) for name, weight in expected.items()))
        yield largest(*(apart(buffer, buffers[name]) for name, buffer in average.named_buffers()))
        kinds = {name: tensor.dtype for name, tensor in (*average.named_buffers(), *got.items())}
        yield fault(any(kinds[name] != tensor.dtype for name, tensor in (buffers | expected).items()))
        network.move(torch.Generator().manual_seed(2))


class _Average:
    """An average with one thing exchanged."""

    def __init__(self, model, decay, rule, buffers=True, alias=False):
        self.model = model if alias else copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.rule, self.buffers, self.steps = decay, rule, buffers, 0
        self.before = copy.deepcopy(model)

    @torch.no_grad()
    def update(self, model):
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for average, old, new in zip(
            self.model.parameters(), self.before.parameters(), model.parameters(), strict=True
        ):
            average.copy_(self.rule(average, old, new, d, self.decay))
        if self.buffers:
            for average, new in zip(self.model.buffers(), model.buffers(), strict=True):
                average.copy_(new)
        self.before = copy.deepcopy(model)


@moving_average.wrong(
    "θ in the place of its average: d·θ_old + (1 − d)·θ_new",
    seen="no public source: a formula whose hats were lost",
    idea="exchange",
)
def _(model, decay):
    return _Average(model, decay, lambda average, old, new, d, decay: d * old + (1 - d) * new)


@moving_average.wrong(
    "no warm-up of d",
    seen="openai/improved-diffusion issue 59: noise, where 0.9999 holds from the first step",
    idea="term",
)
def _(model, decay):
    return _Average(model, decay, lambda average, old, new, d, decay: decay * average + (1 - decay) * new)


@moving_average.wrong(
    "d and 1 − d are exchanged",
    seen="no public source: decay and momentum mixed up, 0.9999 for 0.0001",
    idea="exchange",
)
def _(model, decay):
    return _Average(model, decay, lambda average, old, new, d, decay: (1 - d) * average + d * new)


@moving_average.wrong("buffers are not copied", seen="no public source: a loop over parameters() alone", idea="state")
def _(model, decay):
    return _Average(model, decay, lambda average, old, new, d, decay: d * average + (1 - d) * new, buffers=False)


@moving_average.wrong("no copy: the average is the network itself", seen="no public source: ema = model", idea="state")
def _(model, decay):
    return _Average(model, decay, lambda average, old, new, d, decay: d * average + (1 - d) * new, alias=True)


class _Forgetful(_Average):
    """Overwrites its own decay with that of the warm-up."""

    def update(self, model):
        self.decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        super().update(model)


@moving_average.wrong(
    "the decay is overwritten with that of the warm-up, 0.1, and stays there",
    seen="of this kind: huggingface/diffusers issue 1864 (there it settles at 0.5)",
    idea="state",
)
def _(model, decay):
    return _Forgetful(model, decay, lambda average, old, new, d, decay: d * average + (1 - d) * new)


class _CopiedBack(_Average):
    """Lets the network go on from its average."""

    @torch.no_grad()
    def update(self, model):
        super().update(model)
        for average, own in zip(self.model.parameters(), model.parameters(), strict=True):
            own.copy_(average)


@moving_average.wrong(
    "the average is copied back into the network",
    seen="of this kind: harubaru/waifu-diffusion PR 31 (whenever a checkpoint is saved)",
    idea="state",
)
def _(model, decay):
    return _CopiedBack(model, decay, lambda average, old, new, d, decay: d * average + (1 - d) * new)


class _OfTheFirst(_Average):
    """Follows the network that it was made of, whichever it is handed."""

    def __init__(self, model, *options):
        super().__init__(model, *options)
        self.network = model

    def update(self, model):
        super().update(self.network)


@moving_average.wrong(
    "follows the network that it was made of, not the one that it is handed",
    seen="no public source: a reference kept",
    idea="state",
)
def _(model, decay):
    return _OfTheFirst(model, decay, lambda average, old, new, d, decay: d * average + (1 - d) * new)


class _ByName(_Average):
    """Goes through the state dict, in which a tensor with two names stands twice."""

    @torch.no_grad()
    def update(self, model):
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for average, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            average.copy_(d * average + (1 - d) * new if average.is_floating_point() else new)


@moving_average.wrong(
    "over the state dict: buffers too, and weights with two names twice",
    seen="no public source: a shorter loop",
    idea="state",
)
def _(model, decay):
    return _ByName(model, decay, None)


@check("11.6", "what an average remembers", "identity", "the average of unit vectors, in exact fractions", to=1e-12)
@until(1e-11)
def memory(f):
    """f(decays) returns the shares of θ_0, ..., θ_n in the average after n updates with these decays: n + 1 numbers."""
    f, draws = Watched(f), np.random.default_rng(0)
    for decays in (
        *([0.9] * 7, [0.1, 0.5, 0.25, 0.8], [(1 + i) / (10 + i) for i in range(12)], [0.35], []),
        *([0.5, 0.0, 0.75, 0.5], [0.0], [1.0, 0.5, 1.0], [0.9999] * 5, list(draws.uniform(0, 1, 60)), [1e-3] * 40),
    ):
        exact = [float(share) for share in shares([Fraction(d) for d in decays])]
        got = f(torch.tensor(decays, dtype=torch.float64))
        yield apart(got, np.array(exact))
        for g, share in zip(got.tolist(), exact, strict=True):
            yield abs(g / share - 1) if share else abs(g) * 1e12  # the small ones count as well
    yield f.fault


def _products(decays):
    """d_k·d_{k+1}···d_n for k = 1..n, and 1."""
    return torch.cat([decays.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=decays.dtype)])


@memory.states
def _(decays):
    added = torch.cat([torch.ones(1, dtype=decays.dtype), 1 - decays])  # θ_0 was there from the beginning
    return added * _products(decays)


@memory.wrong(
    "the first weights count like all others: the shares do not sum to 1",
    seen="no public source: a sum that starts at k = 1",
    idea="time",
)
def _(decays):
    return torch.cat([1 - decays[:1], 1 - decays]) * _products(decays)


@memory.wrong("the oldest weights count most", seen="no public source: an index turned round", idea="sign")
def _(decays):
    added = torch.cat([torch.ones(1, dtype=decays.dtype), 1 - decays])
    return (added * _products(decays)).flip(0)


@memory.wrong(
    "one step too old: d_k itself is among the factors of θ_k", seen="no public source: a plausible slip", idea="time"
)
def _(decays):
    added = torch.cat([torch.ones(1, dtype=decays.dtype), 1 - decays])
    return added * torch.cat([_products(decays)[:1], _products(decays)[:-1]])


@memory.wrong(
    "a plain mean of all weights", seen="no public source: “averaged weights” taken at their word", idea="exchange"
)
def _(decays):
    return torch.full((len(decays) + 1,), 1 / (len(decays) + 1), dtype=decays.dtype)


@memory.wrong(
    "by dividing all by the decays before: 0/0 where one of them is 0",
    seen="no public source: a product turned into a quotient",
    idea="edge",
)
def _(decays):
    added = torch.cat([torch.ones(1, dtype=decays.dtype), 1 - decays])
    return added * decays.prod() / torch.cat([torch.ones(1, dtype=decays.dtype), decays.cumprod(0)])


@check("11.7", "unbiased timestep sampling", "identity", "the mean of any loss, summed over all t", to=1e-12)
@until(1e-11)
def unbiased(f):
    """f(p) returns the factor of the loss at each t = 1..T, which is drawn with the probabilities p, (T,)."""
    f = Watched(f)
    for T, spread in ((2, 1), (5, 1), (40, 1), (1, 0), (1000, 1), (3, 20), (100, 8), (1000, 16), (4000, 3)):
        draws = np.random.default_rng(T)
        p = draws.uniform(0.1, 3, T) * 10.0 ** -draws.uniform(0, spread, T)  # some are drawn hardly ever
        p[0] = 10.0**spread * p.sum()  # and one nearly always
        p /= p.sum()
        alone = np.eye(T)[[*range(0, T, max(1, T // 50)), p.argmin()]]  # losses of 1 at one t
        losses = np.concatenate([draws.uniform(0, 2, (20, T)), alone, T * alone])
        yield apart((losses * f(torch.from_numpy(p)).double().numpy()) @ p, losses.mean(1))
    yield f.fault


@unbiased.states
def _(p):
    return 1 / (len(p) * p)


@unbiased.wrong(
    "no factor: what is drawn often counts more",
    seen="no public source: importance sampling without its weights",
    idea="term",
)
def _(p):
    return torch.ones_like(p)


@unbiased.wrong(
    "1/p: the loss and the learning rate grow by the factor T", seen="no public source: a plausible slip", idea="term"
)
def _(p):
    return 1 / p


@unbiased.wrong("T·p, upside down", seen="no public source: a plausible slip", idea="sign")
def _(p):
    return len(p) * p


@unbiased.wrong(
    "the factors are scaled to the mean 1 over t", seen="no public source: “normalised” weights", idea="axis"
)
def _(p):
    return (1 / p) / (1 / p).mean()


@unbiased.wrong("the factor is at most 10", seen="no public source: a bound “for stability”", idea="edge")
def _(p):
    return (1 / (len(p) * p)).clamp(max=10)
