"""One test for whatever draws normal noise: its joint law, not only its moments, and whether it heeds the generator."""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from ddpm_lib.checks import largest
from ddpm_lib.checks.record import note

NEVER = 1000.0  # the |z| of what does not happen by chance
IMAGES = 4000  # whose joint law is looked at
ENTRIES = 4_000_000  # whose law is looked at one by one: then a sum of twelve uniform numbers is no normal one
STEPS = 2**16  # at which the distribution function is compared
TOLD = (
    (
        "The noise of an image is not independent N(0, 1) in every entry.",
        EACH := "Draw one normal number for each entry.",
    ),
    ("Noise of one entry of the batch comes again in another.", EACH),
    (
        "The generator does not decide the noise, it alone, and anew in each call.",
        "Give the generator to torch.randn; set no seed inside, and leave torch's global generator alone.",
    ),
)
Draw = Callable[[int, torch.Generator], Tensor]


def noise_score(draw: Draw, shape: tuple[int, ...] = (2, 2, 3), seed: int = 0) -> float:
    """How far draws are from independent N(0, 1) in every entry: the largest |z| of many tests.

    draw(n, generator) returns the noise of n images, (n, *shape), float64, standardised by whoever calls.
    Tried are: the law of an entry, with its tails; entries of one image, in pairs, in threes and all together; entries
    at every distance along the batch; repeated values; and that the generator, and nothing else, decides the draw.
    Raises ValueError for another shape or dtype.
    """
    noise = draw(IMAGES, _seeded(seed))
    if tuple(noise.shape) != (IMAGES, *shape) or noise.dtype != torch.float64:
        raise ValueError(
            f"expected float64 of shape {(IMAGES, *shape)}, got {noise.dtype} of shape {tuple(noise.shape)}"
        )
    flat = noise.flatten(1).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant has no correlation: NaN, and it never happens
        scores = np.nan_to_num([_within(flat), _across(flat.ravel()), _generator(draw, noise, seed)], nan=NEVER)
        for z, told in zip(scores, TOLD, strict=True):
            note(float(z), *told)
        score = largest(*scores)
        if score < 15:  # else it is rejected already
            score = largest(score, law_score(draw(ENTRIES // math.prod(shape), _seeded(seed + 1)).numpy().ravel()))
    return score if score == score else NEVER


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _score(mean: np.ndarray, n: int, var: float = 1.0) -> float:
    """The largest |z| of means of n values whose expectation is 0 and whose variance is `var`."""
    z = np.abs(mean) * (n / var) ** 0.5
    return NEVER if (z < 1e-9).all() else float(z.max())  # nothing is as even as that by chance, unless it was made so


def law_score(values: np.ndarray) -> float:
    """|z| of tests that independent values come from N(0, 1): moments, Kolmogorov–Smirnov, the weight of the tails."""
    n = values.size
    square = values * values  # numpy's ** is ten times as slow
    powers = (values, 0, 1), (square, 1, 2), (square * values, 0, 15), (square * square, 3, 96)
    scores = [_score(power.mean() - mean, n, var) for power, mean, var in powers]
    scores.append(_score(values.var() - 1, n, 2))
    counts, steps = np.histogram(special.ndtr(values), STEPS, (0, 1))  # sorting all values takes six times as long
    D = np.abs(counts.cumsum() / n - steps[1:]).max() + 1 / STEPS  # Kolmogorov's distance is between the two
    scores.append(2 * D * n**0.5)  # the z whose tail is 2·exp(−2nD²)
    for edge in (2.0, 3.0, 4.0):
        p = 2 * stats.norm.sf(edge)
        scores.append(_score((np.abs(values) > edge).mean() - p, n, p * (1 - p)))
    score = largest(*scores)
    note(
        score,
        f"Standardised, its noise is not N(0, 1): mean {values.mean():.3g}, deviation {values.std():.3g}.",
        "Look at the scale of the image and of the noise (root or not?), and at the law of the draws: torch.randn.",
    )
    return score


def _within(flat: np.ndarray) -> float:
    """The entries of one image: each by itself, then in pairs, in threes and all together."""
    n, D = flat.shape
    scores = [_score(flat.mean(0), n), _score(flat.var(0) - 1, n, 2)]
    if D > 1:
        pairs = np.triu_indices(D, 1)
        scores += [_score(np.corrcoef(part.T)[pairs], n) for part in (flat, flat**2)]
        direction = np.random.default_rng(0).standard_normal((D, 8))
        along = flat @ (direction / np.linalg.norm(direction, axis=0))
        scores += [law_score(values) for values in (flat.sum(1) / D**0.5, *along.T)]
    if D > 2:
        third = np.einsum("ni,nj,nk->ijk", flat, flat, flat, optimize=True) / n
        i, j, k = np.ogrid[:D, :D, :D]
        scores.append(_score(third[(i < j) & (j < k)], n))
    square = stats.norm.ppf(stats.chi2.cdf((flat**2).sum(1), D))  # normal, where no image is made longer or shorter
    return largest(*scores, law_score(square.clip(-9, 9)))


def _across(row: np.ndarray) -> float:
    """All entries of the batch in one row: correlations at every distance, of values and squares, and repetitions."""
    n, scores = row.size, []
    for part in (row, (row**2 - 1) / 2**0.5):
        lags = np.fft.irfft(np.abs(np.fft.rfft(part, 2 * n)) ** 2)[1:n] / n**0.5
        scores.append(np.abs(lags).max() - stats.norm.isf(0.5 / n))  # the largest of n lags reaches this by chance
    return largest(*scores, _repeated(row))


def _repeated(values: np.ndarray) -> float:
    """Numbers of 53 random bits do not occur twice, with either sign; those of 24 do."""
    return 0.0 if values.size - np.unique(np.abs(values)).size <= 2 else NEVER


def _generator(draw: Draw, noise: Tensor, seed: int) -> float:
    """The same generator, the same noise; another, or the same a second time, other noise; the global one is left."""
    generator = _seeded(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 99)
        before = torch.get_rng_state()
        again, second = (draw(IMAGES, generator) for _ in range(2))
        kept = torch.equal(torch.get_rng_state(), before)
    scores = [0.0 if kept and torch.equal(again, noise) else NEVER]
    for other in (second, draw(IMAGES, _seeded(seed + 1))):
        rows = torch.stack([noise.flatten(), other.flatten()]).numpy()
        scores += [_score(np.corrcoef(part)[0, 1:], noise.numel()) for part in (rows, rows**2)]
        scores.append(_repeated(rows))
    return largest(*scores)
