"""Neighbours in blocks beside plain loops, with offsets and clusters at which a fast formula loses its digits."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lib.evaluation.neighbours import inside, kth_radius, nearest, rows


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(a, b):
    return torch.tensor([[math.dist(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64)


def scattered(n, d, seed):
    """Two tight clusters, far from each other and from 0, and one lonely point."""
    points = 1e-3 * cloud(n, d, seed)
    points[: n // 2] += 1e6
    points[-1] -= 3e6
    return points


SETS = {
    "ordinary": lambda n, seed: cloud(n, 4, seed),
    "a large offset": lambda n, seed: cloud(n, 4, seed) + 1e8,
    "tight clusters": lambda n, seed: scattered(n, 4, seed),
    "float32": lambda n, seed: cloud(n, 40, seed).float(),
    "one number": lambda n, seed: cloud(n, 1, seed),
}


@pytest.mark.parametrize("block", [1, 41, None])
@pytest.mark.parametrize("kind", SETS)
def test_distances_are_those_of_plain_loops(kind, block):
    a, b = SETS[kind](13, 0), SETS[kind](17, 1)
    full, own = by_loops(a, b), by_loops(b, b)
    distance, index = nearest(a, b, block=block)
    torch.testing.assert_close(distance, full.min(1).values, rtol=1e-13, atol=0)
    assert torch.equal(index, full.argmin(1))
    for k in (1, 3, 16):
        radius = kth_radius(b, k, block=block)
        torch.testing.assert_close(radius, own.kthvalue(k + 1, dim=1).values, rtol=1e-13, atol=0)
        balls, points = inside(a, b, radius, block=block)
        within = full <= radius
        assert torch.equal(balls, within.sum(1)) and torch.equal(points, within.sum(0))


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_a_point_on_the_border_is_inside_to_the_last_bit(offset):
    """Each ball holds its own k nearest, the farthest of them on the border: so k + 1 points, with its centre."""
    points = cloud(60, 7) + offset
    for k in (1, 4):
        assert (inside(points, points, kth_radius(points, k), block=97)[1] == k + 1).all()


def test_copies_are_at_distance_0():
    points = cloud(20, 5) * 1e3 + 1e5
    distance, index = nearest(points.flip(0), points)
    assert (distance == 0).all() and torch.equal(index, torch.arange(19, -1, -1))
    assert (kth_radius(points.repeat(2, 1), 1) == 0).all()


def test_what_is_no_set_of_features_is_refused():
    with pytest.raises(ValueError, match="equal width; got \\(3, 2\\), \\(3, 4\\)"):
        nearest(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        rows(torch.tensor([[float("nan")]]))
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"number of points, 3; got k = {k}"):
            kth_radius(torch.zeros(3, 2), k)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, torch.Tensor):
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return result


def test_memory_grows_with_the_number_of_points_and_not_with_its_square():
    block, n, d = 2**13, 400, 6
    a, b = cloud(n, d), cloud(n, d, 1)
    with Largest() as largest:
        inside(a, b, kth_radius(b, 3, block=block), block=block)
        nearest(a, b, block=block)
    assert largest.bytes <= 8 * max(block, n * d)
    with Largest() as largest:
        torch.cdist(a, b)
    assert largest.bytes == 8 * n * n


@pytest.mark.soak
def test_ten_thousand_against_ten_thousand():
    a, b = cloud(10_000, 128).float(), cloud(10_000, 128, 1).float()
    with Largest() as largest:
        balls, points = inside(a, b, kth_radius(b, 5))
    assert largest.bytes <= 8 * 10_000 * 128
    assert balls.sum() == points.sum() and 0.9 < float(balls.double().mean()) / 5 < 1.1
