"""Nearest neighbours among features: distances in blocks, so that memory grows with N + M and not with N·M.

|a − b|² = |a|² + |b|² − 2ab is fast, and loses digits where it is small beside |a|² + |b|². So both sets are centred,
all is in float64, and wherever little is left of the sum the pair is computed again from its differences. What is
returned or compared with a radius is always such a difference: two equal distances come out equal, to the last bit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK, BLOCK_OF_GPU = 2**18, 2**25  # numbers in a block of distances: 2 MiB, which a cache holds, and 256 MiB
NEAR = 1e-5  # below this share of |a|² + |b|², a square is computed again
DOUBT = 1e-11  # of |a|² + |b|²: no more than rounding does to a square


def rows(*features: Tensor) -> tuple[Tensor, ...]:
    """Each as float64 rows, (N, D), of equal width. Raises ValueError for NaN, infinity or unequal widths."""
    made = tuple(_double(f).flatten(1) for f in features)
    if not all(torch.isfinite(f).all() for f in made):
        raise ValueError("expected finite features, got NaN or infinity")
    if len({f.shape[1] for f in made}) > 1:
        raise ValueError(f"expected features of equal width; got {', '.join(str(tuple(f.shape)) for f in features)}")
    return made


def nearest(points: Tensor, among: Tensor, *, block: int | None = None) -> tuple[Tensor, Tensor]:
    """The distance to the nearest of `among`, (M, D), and its index, both (N,), for each of `points`, (N, D)."""
    points, among = rows(points, among)
    index = torch.cat([squares.argmin(1) for _, squares, _ in _blocks(points, among, block)])
    return _apart(points, among[index]), index


def kth_radius(points: Tensor, k: int, *, block: int | None = None) -> Tensor:
    """The distance of each point, (N, D), to its k-th nearest other point, (N,). 1 <= k < N (ValueError otherwise)."""
    (points,) = rows(points)
    if not 1 <= k < len(points):
        raise ValueError(f"expected 1 <= k < the number of points, {len(points)}; got k = {k}")
    radius = []
    for start, squares, _ in _blocks(points, points, block):
        own = torch.arange(len(squares), device=points.device)
        squares[own, own + start] = torch.inf
        index = squares.topk(k, largest=False).indices
        candidates = [_apart(points[start + own], points[index[:, j]]) for j in range(k)]
        radius.append(torch.stack(candidates, 1).max(1).values)
    return torch.cat(radius)


def inside(points: Tensor, centres: Tensor, radius: Tensor, *, block: int | None = None) -> tuple[Tensor, Tensor]:
    """Of closed balls around `centres`, (M, D), with these radii, (M,), and of `points`, (N, D), who holds whom.

    Returns how many balls hold each point, (N,), and how many points each ball holds, (M,).
    """
    points, centres = rows(points, centres)
    radius = radius.to(points)
    square, held = radius.square(), []
    holding = torch.zeros(len(centres), dtype=torch.int64, device=points.device)
    for start, squares, doubt in _blocks(points, centres, block):
        within = squares <= square
        i, j = ((squares - square).abs_() <= doubt).nonzero(as_tuple=True)
        for a, b in _in_parts(i, j, points.shape[1]):
            within[a, b] = _apart(points[start + a], centres[b]) <= radius[b]
        held.append(within.sum(1))
        holding += within.sum(0)
    return torch.cat(held), holding


def _blocks(points: Tensor, among: Tensor, block: int | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """One block of `points` after another: its first row's number, its squared distances, (rows, M), and DOUBT's size.

    The third is how far off rounding may have put each of the squares.
    """
    block = block or (BLOCK_OF_GPU if points.is_cuda else BLOCK)
    centre = among.mean(0)
    small = among - centre
    size = small.square().sum(1)
    step = max(1, block // max(len(among), among.shape[1], 1))
    for start in range(0, len(points), step):
        here = points[start : start + step]
        moved = here - centre
        scale = moved.square().sum(1)[:, None] + size
        squares = torch.addmm(scale, moved, small.T, alpha=-2)
        i, j = (squares <= NEAR * scale).nonzero(as_tuple=True)
        for a, b in _in_parts(i, j, among.shape[1]):
            squares[a, b] = (here[a] - among[b]).square_().sum(1)
        yield start, squares, scale.mul_(DOUBT)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """The distances of the rows of a from those of b, from their differences."""
    return (a - b).square_().sum(1).sqrt_()


def _in_parts(i: Tensor, j: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of rows, so many at once that their differences fill a block."""
    step = max(1, BLOCK // max(width, 1))
    return zip(i.split(step), j.split(step), strict=True)


def _double(features: Tensor) -> Tensor:
    """In float64, on the device where they are; Apple's GPU has none, the CPU computes for it."""
    features = features.detach()
    return (features.cpu() if features.device.type == "mps" else features).double()
