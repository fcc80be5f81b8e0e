"""The normal distribution: bad input, dtypes and shapes, and torch.distributions on random inputs."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl

from ddpm_lib.gaussian import condition, kl_divergence, kl_divergence_full, log_density, product


def draw(seed, *shape, low=-2.0, high=2.0):
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normals(D, seed):
    """mean (D,) and covariance (D, D)."""
    factor = draw(seed, D, D, low=-1, high=1)
    return draw(seed + 100, D), factor @ factor.T + 0.3 * torch.eye(D, dtype=torch.float64)


# Against torch.distributions


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shapes", [((5,), (5,), (5,)), ((2, 3, 4), (3, 1), (4,)), ((7, 1), (), (1, 6)), ((), (), ())])
def test_density_and_divergence_agree_with_torch(seed, shapes):
    x, mean, other = (draw(seed + i, *shape) for i, shape in enumerate(shapes))
    var, other_var = draw(seed + 7, *shapes[1], low=0.05, high=3), draw(seed + 8, *shapes[2], low=0.05, high=3)
    q, p = Normal(mean, var.sqrt()), Normal(other, other_var.sqrt())
    torch.testing.assert_close(log_density(x, mean, var), q.log_prob(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kl_divergence(mean, var, other, other_var), torch_kl(q, p), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("D", [1, 2, 5, 20])
def test_the_full_divergence_agrees_with_torch(D):
    (mean_q, cov_q), (mean_p, cov_p) = normals(D, 1), normals(D, 2)
    expected = torch_kl(MultivariateNormal(mean_q, cov_q), MultivariateNormal(mean_p, cov_p))
    torch.testing.assert_close(kl_divergence_full(mean_q, cov_q, mean_p, cov_p), expected, rtol=1e-9, atol=0)
    assert kl_divergence_full(mean_q, cov_q, mean_q, cov_q).abs() < 1e-12


@pytest.mark.parametrize("known", [[0], [4], [1, 3], [3, 1], [-1, 0, 2], [-5, 2], [0, 1, 2, 3]])
def test_a_joint_density_is_the_marginal_times_the_conditional(known):
    (mean, cov), x = normals(5, 3), draw(4, 5)
    rest = [i for i in range(5) if i not in [k % 5 for k in known]]
    conditional = MultivariateNormal(*condition(mean, cov, known, x[known]))
    marginal = MultivariateNormal(mean[known], cov[known][:, known])
    together = conditional.log_prob(x[rest]) + marginal.log_prob(x[known])
    torch.testing.assert_close(together, MultivariateNormal(mean, cov).log_prob(x), rtol=1e-10, atol=1e-10)


# Limits


def test_conditioning_on_nothing_changes_nothing_and_on_everything_leaves_nothing():
    (mean, cov), x = normals(3, 5), draw(6, 3)
    for got, expected in zip(condition(mean, cov, [], x[:0]), (mean, cov), strict=True):
        torch.testing.assert_close(got, expected)
    assert [tuple(part.shape) for part in condition(mean, cov, [2, 0, 1], x)] == [(0,), (0, 0)]


def test_in_a_product_a_point_wins_and_a_vague_density_says_nothing():
    point = product(*torch.tensor([0.7, 0.0, -3.0, 2.0]))
    assert torch.equal(torch.stack(point), torch.tensor([0.7, 0.0]))
    vague = product(*torch.tensor([0.7, 0.2, -3.0, 1e30]))
    torch.testing.assert_close(torch.stack(vague), torch.tensor([0.7, 0.2]))
    small = product(*torch.tensor([1.0, 1e-30, 3.0, 1e-30]))  # whose variances' product is 0 in float32
    torch.testing.assert_close(torch.stack(small), torch.tensor([2.0, 5e-31]), rtol=1e-6, atol=0)


def test_the_divergence_of_a_point_is_infinite_and_a_log_density_there_is_no_number():
    assert kl_divergence(0.0, 0.0, 0.0, 1.0) == math.inf
    assert log_density(torch.zeros(2), 0.0, 0.0).isnan().all()


def test_divergences_of_neighbours_are_not_negative_beyond_rounding():
    var = draw(9, 10_000, low=0.01, high=4).float()
    assert kl_divergence(0.0, var, 0.0, var * (1 + 1e-4)).min() > -1e-7


# Dtypes, numbers, gradients


def test_numbers_keep_their_digits_beside_float64_tensors():
    x = draw(1, 4)
    as_tensors = [torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.7, 0.1, 1.3)]
    torch.testing.assert_close(log_density(x, 0.3, 0.7), log_density(x, *as_tensors[:2]), rtol=0, atol=0)
    one = kl_divergence(x, 0.7, 0.1, 1.3)
    torch.testing.assert_close(one, kl_divergence(x, *as_tensors[1:]), rtol=0, atol=1e-16)
    assert abs(float(kl_divergence(0.3, 0.7, 0.1, 1.3)) - 0.5 * (math.log(1.3 / 0.7) + 0.74 / 1.3 - 1)) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_density_keeps_the_dtype_of_x(dtype):
    got = log_density(torch.zeros(3, dtype=dtype), torch.tensor(0.5, dtype=torch.float64), torch.ones(3))
    assert got.dtype == dtype and got.shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_others_keep_the_dtype_of_their_tensors(dtype):
    mean, cov = (part.to(dtype) for part in normals(3, 1))
    outputs = [
        *product(mean, cov.diagonal(), mean, cov.diagonal()),
        *condition(mean, cov, [1], mean[:1]),
        kl_divergence(mean, cov.diagonal(), 0.0, 1.0),
        kl_divergence_full(mean, cov, mean, cov),
    ]
    assert {output.dtype for output in outputs} == {dtype}


def test_gradients_pass_through_every_argument():
    def inputs(*values):
        return [value.clone().requires_grad_() for value in values]

    (mean, cov), x = normals(3, 1), draw(2, 3)
    var = cov.diagonal()
    assert torch.autograd.gradcheck(log_density, inputs(x, mean, var))
    assert torch.autograd.gradcheck(product, inputs(x, var + 1, mean, var))
    assert torch.autograd.gradcheck(kl_divergence, inputs(x, var + 1, mean, var))
    assert torch.autograd.gradcheck(lambda m, f: condition(m, f @ f.T, [2, 0], x[:2]), inputs(mean, cov))
    assert torch.autograd.gradcheck(lambda m, f, n: kl_divergence_full(m, f @ f.T, n, cov), inputs(mean, cov, x))


# Bad input


def test_a_density_of_integers_is_refused():
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        log_density(torch.tensor([1, 2]), 0.0, 0.5)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("var", lambda v: log_density(torch.zeros(3), 0.0, v)),
        ("var_1", lambda v: product(torch.zeros(1), v, torch.zeros(1), torch.ones(1))),
        ("var_2", lambda v: product(torch.zeros(1), torch.ones(1), torch.zeros(1), v)),
        ("var_q", lambda v: kl_divergence(0.0, v, 0.0, 1.0)),
        ("var_p", lambda v: kl_divergence(0.0, 1.0, 0.0, v)),
    ],
)
def test_a_log_variance_is_not_taken_for_a_variance(name, call):
    with pytest.raises(ValueError, match=rf"{name} must be a variance, >= 0; got -2"):
        call(torch.tensor([0.5, -2.0, 1.0]))
    with pytest.raises(ValueError, match=rf"{name} must be a variance"):
        call(-0.25)


@pytest.mark.parametrize(
    ("known", "values"),
    [([0, 0], 2), ([1, -2], 2), ([3], 1), ([-4], 1), ([0, 7], 2), ([0, 1], 1), ([0], 2)],
    ids=str,
)
def test_conditioning_refuses_indices_and_values_that_do_not_fit(known, values):
    with pytest.raises(ValueError, match=r"different indices in 0\.\.2 and one value for each"):
        condition(*normals(3, 1), known, torch.ones(values, dtype=torch.float64))


def test_shapes_that_would_broadcast_silently_are_refused():
    mean, cov = normals(3, 1)
    with pytest.raises(ValueError, match=r"got \[0\], mean \(3, 1\), cov \(3, 3\)"):
        condition(mean[:, None], cov, [0], mean[:1])
    with pytest.raises(ValueError, match=r"cov \(3, 2\)"):
        condition(mean, cov[:, :2], [0], mean[:1])
    for arguments in ((mean, cov, mean[:1], cov), (mean, cov.diagonal(), mean, cov), (mean[None], cov, mean, cov)):
        with pytest.raises(ValueError, match=r"expected means \(D,\) and covariances \(D, D\)"):
            kl_divergence_full(*arguments)


def test_a_covariance_that_is_none_is_refused():
    mean, cov = normals(2, 1)
    with pytest.raises(torch.linalg.LinAlgError):
        kl_divergence_full(mean, -cov, mean, -cov)
    with pytest.raises(torch.linalg.LinAlgError):
        condition(mean, -cov, [0], mean[:1])
