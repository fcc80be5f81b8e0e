"""The checks of chapter 13, scaling up. The routes differentiate the whole batch, pass messages round a ring, count the
bytes of what is there, minimise, and go through all batches that there are."""

import itertools

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from ddpm_lib.checks import apart, check
from ddpm_lib.checks.guard import Watched, apart_each, relative, until
from ddpm_lib.training.ema import EMA


@check("13.1", "gradient of a shared batch", "identity", "autograd, through the mean loss of the whole batch", to=1e-12)
@until(1e-11)
def shared(f):
    """f(means, sizes) returns the gradient of the mean loss of all images, (P,).

    means: (n, P), float64, the gradient of the mean loss of each process's share; sizes: (n,), int64, its images.
    """
    f = Watched(f)
    generator = torch.Generator().manual_seed(0)
    for sizes in ((4, 1), (3, 3), (1, 5, 2), (7,), (1, 1, 1, 1), (100, 3)):
        theta = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
        x = torch.randn(sum(sizes), 5, generator=generator, dtype=torch.float64)
        losses = (torch.sin(x @ theta) + x[:, 0]) ** 2
        (joint,) = torch.autograd.grad(losses.mean(), theta, retain_graph=True)
        means = [torch.autograd.grad(part.mean(), theta, retain_graph=True)[0] for part in losses.split(sizes)]
        yield apart(f(torch.stack(means), torch.tensor(sizes)), joint)
    yield f.fault


@shared.states
def _(means, sizes):
    return (sizes[:, None] * means).sum(0) / sizes.sum()


@shared.wrong(
    "the shares' gradients are added: n times too long",
    seen="no public source: an all-reduce whose sum is not divided by the number of processes",
    idea="axis",
)
def _(means, sizes):
    return means.sum(0)


@shared.wrong(
    "the plain mean, though the shares have different sizes",
    seen="torch's DistributedDataParallel, where the last batch of an epoch is not shared equally",
    idea="axis",
)
def _(means, sizes):
    return means.mean(0)


@shared.wrong("the first process's own gradient", seen="no public source: no exchange at all", idea="exchange")
def _(means, sizes):
    return means[0]


@shared.wrong("divided by the sizes where they multiply", seen="no public source: a plausible slip", idea="exchange")
def _(means, sizes):
    inverse = 1 / sizes.double()
    return (inverse[:, None] * means).sum(0) / inverse.sum()


@shared.wrong(
    "the mean of sums: divided by the processes, not by the images",
    seen="no public source: losses summed within a share, and averaged over processes",
    idea="axis",
)
def _(means, sizes):
    return (sizes[:, None] * means).mean(0)


@check(
    "13.2", "bytes of a ring all-reduce", "identity", "messages passed round a ring, until all have the sum", to=1e-12
)
@until(1e-11)
def ring(f):
    """f(n, size) returns the bytes that each of n processes sends, until all have the sum of their arrays of `size`."""
    for n, size in ((1, 8), (2, 16), (3, 48), (4, 64), (5, 40), (8, 64), (16, 256)):
        yield relative(f(n, size), _sent_round_a_ring(n, size), floor=1.0)


def _sent_round_a_ring(n, size):
    """Bytes that each process sends: in n − 1 rounds a sum grows on its way, in n − 1 more it is passed on."""
    draws = np.random.default_rng(n)
    arrays = draws.normal(size=(n, n, size // 8 // n))  # of each process, in n pieces
    total, sent = arrays.sum(0), np.zeros(n)
    for turn in range(2 * (n - 1)):
        moving = [
            (rank, (rank - turn) % n) if turn < n - 1 else (rank, (rank + 1 - (turn - n + 1)) % n) for rank in range(n)
        ]
        pieces = [arrays[rank, piece].copy() for rank, piece in moving]
        for (rank, piece), values in zip(moving, pieces, strict=True):
            after = (rank + 1) % n
            arrays[after, piece] = arrays[after, piece] + values if turn < n - 1 else values
            sent[rank] += values.nbytes
    if n > 1 and not np.allclose(arrays, total):
        raise AssertionError("the ring of this check does not sum")
    return sent[0] if np.ptp(sent) == 0 else np.nan


@ring.states
def _(n, size):
    return 2 * (n - 1) / n * size


@ring.wrong(
    "everyone sends its whole array to all others",
    seen="no public source: the exchange as one first thinks of it",
    idea="exchange",
)
def _(n, size):
    return (n - 1) * size


@ring.wrong("twice the array, at any n: its limit", seen="no public source: “2S bytes”, as is often said", idea="edge")
def _(n, size):
    return 2 * size


@ring.wrong(
    "one way round only: a reduce-scatter, after which each has one piece of the sum",
    seen="no public source: half of the algorithm",
    idea="term",
)
def _(n, size):
    return (n - 1) / n * size


@ring.wrong(
    "of all processes together",
    seen="NVIDIA/nccl-tests, doc/PERFORMANCE.md: its 2(n − 1) transfers, not divided by n",
    idea="axis",
)
def _(n, size):
    return 2 * (n - 1) * size


@ring.wrong("n − 1 taken for n + 1", seen="no public source: a plausible slip", idea="time")
def _(n, size):
    return 2 * (n + 1) / n * size


@check("13.3", "memory of a step", "implementation", "the bytes of all tensors that a step leaves or keeps", to=1e-9)
@until(1e-8)
def memory(f):
    """f(parameters, images, per_image, averages) returns the bytes of a step in float32 with AdamW and averages."""
    for width, images, averages in ((5, 1, 1), (5, 7, 2), (16, 3, 1), (3, 64, 3), (8, 4, 1), (30, 1, 2), (6, 5, 0)):
        parameters, per_image, there = _of_a_step(width, images, averages)
        yield relative(f(parameters, images, per_image, averages), there)


def _of_a_step(width, images, averages):
    """Of a small network: its parameters, what a pass keeps of one image, and the bytes of all that a step has."""
    network = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    emas = [EMA(network, 0.9 + 0.01 * i) for i in range(averages)]

    def kept(count):
        """Bytes that the graph of a pass over so many images holds, besides the weights."""
        weights = {p.data_ptr() for p in network.parameters()}
        found = {}

        def pack(x):
            if x.data_ptr() not in weights:
                found[x.data_ptr()] = (x.nbytes, x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = network(torch.ones(count, 4)).square().sum()
        return sum(size for size, _ in found.values()), loss

    held, loss = kept(images)
    loss.backward()
    optimiser.step()
    tensors = [x for p in network.parameters() for x in (p, p.grad)]
    tensors += [x for state in optimiser.state.values() for x in state.values() if x.ndim]  # one counts its steps
    tensors += [p for ema in emas for p in ema.model.parameters()]
    parameters = sum(p.numel() for p in network.parameters())
    return parameters, kept(1)[0], held + sum(x.nbytes for x in tensors)


@memory.wrong(
    "the weights alone, as a sampler has them", seen="no public source: a network's size on the disk", idea="term"
)
def _(parameters, images, per_image, averages):
    return 4 * parameters * (1 + averages) + images * per_image


@memory.wrong(
    "no average: 16 bytes a parameter, as without one",
    seen="no public source: the usual rule of thumb for Adam in float32",
    idea="term",
)
def _(parameters, images, per_image, averages):
    return 16 * parameters + images * per_image


@memory.wrong(
    "one moment, as momentum has it, or no gradient",
    seen="no public source: SGD's memory taken for AdamW's",
    idea="exchange",
)
def _(parameters, images, per_image, averages):
    return 4 * parameters * (3 + averages) + images * per_image


@memory.wrong("parameters for bytes", seen="no public source: the factor 4 forgotten", idea="term")
def _(parameters, images, per_image, averages):
    return parameters * (4 + averages) + images * per_image


@memory.wrong("one image, whatever the batch", seen="no public source: a plausible slip", idea="term")
def _(parameters, images, per_image, averages):
    return 4 * parameters * (4 + averages) + per_image


@memory.wrong(
    "gradients and moments for every image", seen="no public source: all multiplied by the batch", idea="axis"
)
def _(parameters, images, per_image, averages):
    return images * (4 * parameters * (4 + averages) + per_image)


def _problems():
    """G, H, Σ and B: gradients, curvatures and covariances of few and of many dimensions; a flat loss, and a saddle."""
    draws = np.random.default_rng(0)
    for dims, batch, noise in ((1, 1, 1.0), (2, 4, 0.3), (3, 1, 5.0), (5, 64, 20.0), (8, 1000, 1.0), (4, 2, 0.0)):
        root, spread = draws.normal(size=(2, dims, dims))
        yield draws.normal(size=dims), root @ root.T + np.eye(dims), noise * spread @ spread.T, batch
    yield np.array([0.3, -0.2]), np.diag([0.01, 0.04]), np.diag([0.5, 0.1]), 8
    yield np.array([0.2, 2.0, 0.5]), np.diag([-0.8, 1.5, 0.3]), np.diag([1.0, 2.0, 0.4]), 3  # it rises all the same


@check("13.4", "best step along a noisy gradient", "identity", "the expected loss after a step, minimised", to=1e-6)
@until(1e-5)
def best_step(f):
    """f(G, H, Sigma, B) returns the best rate of a step along the gradient of a batch, and by how much the loss falls.

    G: (P,), H, Sigma: (P, P), arrays in float64: the loss's gradient and Hessian, and the covariance of one image's
    gradient; B: the images of the batch. The loss is quadratic, and what it falls by is meant on average.
    """
    f = Watched(f)
    for G, H, Sigma, B in _problems():
        signs = np.array([*itertools.product((-1, 1), repeat=len(G))])  # noise of mean 0 and covariance Σ/B, exactly
        values, vectors = np.linalg.eigh(Sigma / B)
        steps = G + signs @ (vectors * np.sqrt(np.maximum(values, 0))).T

        def after(rate, steps=steps, G=G, H=H):
            moved = -rate * steps
            return (moved @ G + 0.5 * np.einsum("ni,ij,nj->n", moved, H, moved)).mean()

        found = minimize_scalar(after, options={"xtol": 1e-12})
        rate, fall = f(G, H, Sigma, B)
        yield max(relative(rate, found.x, floor=1e-9), relative(fall, -found.fun, floor=1e-9))
    yield f.fault


@best_step.states
def _(G, H, Sigma, B):
    rate = (G @ G) / (G @ H @ G + np.trace(H @ Sigma) / B)
    return rate, rate * (G @ G) / 2


@best_step.wrong(
    "without the noise: the same rate for every batch",
    seen="no public source: a learning rate that is not changed with the batch",
    idea="term",
)
def _(G, H, Sigma, B):
    rate = (G @ G) / (G @ H @ G)
    return rate, rate * (G @ G) / 2


@best_step.wrong(
    "proportional to the batch, however large it is",
    seen="Goyal and others 2017, arXiv:1706.02677: the linear rule, beyond the batches for which it is meant",
    idea="claim",
)
def _(G, H, Sigma, B):
    rate = B * (G @ G) / (G @ H @ G + np.trace(H @ Sigma))
    return rate, rate * (G @ G) / 2


@best_step.wrong(
    "the noise's standard deviation, 1/√B, in place of its variance",
    seen="no public source: the root rule, of another optimiser",
    idea="power",
)
def _(G, H, Sigma, B):
    rate = (G @ G) / (G @ H @ G + np.trace(H @ Sigma) / B**0.5)
    return rate, rate * (G @ G) / 2


@best_step.wrong("tr(H)·tr(Σ) for tr(HΣ)", seen="no public source: a plausible slip", idea="axis")
def _(G, H, Sigma, B):
    rate = (G @ G) / (G @ H @ G + np.trace(H) * np.trace(Sigma) / B)
    return rate, rate * (G @ G) / 2


@best_step.wrong("|G| for |G|²", seen="no public source: a plausible slip", idea="power")
def _(G, H, Sigma, B):
    rate = (G @ G) ** 0.5 / (G @ H @ G + np.trace(H @ Sigma) / B)
    return rate, rate * (G @ G) / 2


@best_step.wrong(
    "the loss falls by rate·|G|²: the curvature takes half of it",
    seen="no public source: the straight line's forecast",
    idea="term",
)
def _(G, H, Sigma, B):
    rate = (G @ G) / (G @ H @ G + np.trace(H @ Sigma) / B)
    return rate, rate * (G @ G)


@check(
    "13.5", "gradient noise from two batch sizes", "identity", "the mean over all batches of a few gradients", to=1e-10
)
@until(1e-9)
def noise(f):
    """f(square_small, square_big, small, big) returns |G|² and tr(Σ), both right on average.

    square_small, square_big: |gradient|² of a batch of `small` and of one of `big` images, arrays in float64.
    """
    f = Watched(f)
    for dims, few, small, big in ((1, 3, 1, 2), (4, 3, 1, 4), (2, 2, 3, 5), (3, 4, 2, 4), (5, 2, 1, 8), (2, 3, 1, 5)):
        draws = np.random.default_rng(few * big)
        each = draws.normal(size=(few, dims)) + draws.normal(size=dims)
        squares = []
        for size in (small, big):
            means = each[np.array([*itertools.product(range(few), repeat=size)])].mean(1)  # of all batches
            squares.append((means**2).sum(1))
        pairs = np.array([*itertools.product(*squares)])
        signal, spread = f(pairs[:, 0], pairs[:, 1], small, big)
        mean = each.mean(0)
        expected = np.array([(mean**2).sum(), ((each - mean) ** 2).sum(1).mean()])
        yield apart_each((np.mean(signal), np.mean(spread)), expected)
    yield f.fault


@noise.states
def _(square_small, square_big, small, big):
    signal = (big * square_big - small * square_small) / (big - small)
    return signal, (square_small - square_big) / (1 / small - 1 / big)


@noise.wrong(
    "the big batch's gradient taken for the true one: longer, by what noise is left in it",
    seen="no public source: the estimate with one batch size",
    idea="exchange",
)
def _(square_small, square_big, small, big):
    return square_big, (square_small - square_big) / (1 / small - 1 / big)


@noise.wrong("small and big exchanged in |G|²", seen="no public source: a plausible slip", idea="exchange")
def _(square_small, square_big, small, big):
    signal = (small * square_big - big * square_small) / (small - big)
    return signal, (square_small - square_big) / (1 / small - 1 / big)


@noise.wrong(
    "tr(Σ) by the difference of the sizes, not of their inverses",
    seen="no public source: a plausible slip",
    idea="power",
)
def _(square_small, square_big, small, big):
    signal = (big * square_big - small * square_small) / (big - small)
    return signal, (square_small - square_big) * (big - small)


@noise.wrong(
    "tr(Σ) as small·(difference): the noise of the big batch taken for none",
    seen="no public source: a plausible slip",
    idea="edge",
)
def _(square_small, square_big, small, big):
    signal = (big * square_big - small * square_small) / (big - small)
    return signal, small * (square_small - square_big)


@noise.wrong("the sign of tr(Σ)", seen="no public source: a plausible slip", idea="sign")
def _(square_small, square_big, small, big):
    signal = (big * square_big - small * square_small) / (big - small)
    return signal, (square_big - square_small) / (1 / small - 1 / big)


@noise.wrong(
    "negative estimates set to 0: then the mean is too large",
    seen="no public source: a clamp, since neither can be negative",
    idea="edge",
)
def _(square_small, square_big, small, big):
    signal = (big * square_big - small * square_small) / (big - small)
    return np.maximum(signal, 0), np.maximum((square_small - square_big) / (1 / small - 1 / big), 0)


@check(
    "13.6",
    "gradient noise by timestep sampler",
    "identity",
    "the trace of the covariance, over all that can be drawn",
    to=1e-10,
)
@until(1e-9)
def by_sampler(f):
    """f(p, m, square) returns tr(Σ) of the weighted gradient of one image, whose t is drawn with probabilities p, (T,).

    m: (T,), the mean |gradient|² of the images of each t, without weights; square: |G|², of the mean gradient. float64.
    """
    f = Watched(f)
    for T, few, dims, skew in ((1, 3, 2, 1), (2, 1, 1, 1), (4, 3, 5, 1), (10, 2, 3, 1), (50, 4, 2, 1), (20, 2, 3, 4)):
        draws = np.random.default_rng(T)
        each = draws.normal(size=(T, few, dims)) * draws.uniform(0.1, 3, (T, 1, 1)) + 0.5
        p = draws.uniform(0.1, 1, T) ** skew  # in the last case some steps are hardly ever drawn
        p /= p.sum()
        chance = np.repeat(p / few, few)
        drawn = (each / (T * p)[:, None, None]).reshape(-1, dims)  # with its weight: right on average
        mean = chance @ drawn
        covariance = (chance[:, None] * (drawn - mean)).T @ (drawn - mean)
        m = (each**2).sum(2).mean(1)
        square = (each.mean((0, 1)) ** 2).sum()
        yield relative(f(torch.from_numpy(p), torch.from_numpy(m), square), np.trace(covariance), floor=1.0)
    yield f.fault


@by_sampler.states
def _(p, m, square):
    return (m / (len(p) ** 2 * p)).sum() - square


@by_sampler.wrong("the weights not squared", seen="no public source: a plausible slip", idea="power")
def _(p, m, square):
    return (m / len(p)).sum() - square


@by_sampler.wrong("without |G|²: a second moment, no variance", seen="no public source: a plausible slip", idea="term")
def _(p, m, square):
    return (m / (len(p) ** 2 * p)).sum()


@by_sampler.wrong(
    "no weights: the variance of another loss's gradient",
    seen="no public source: importance sampling without its weights",
    idea="term",
)
def _(p, m, square):
    return (p * m).sum() - square


@by_sampler.wrong("T for T²", seen="no public source: a plausible slip", idea="power")
def _(p, m, square):
    return (m / (len(p) * p)).sum() - square
