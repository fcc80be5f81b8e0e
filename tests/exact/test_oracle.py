"""The exact denoiser against quadrature, score and single components; ε and x_0 turned into each other."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture

SCHEDULE = Schedule([0.02, 0.1, 0.3, 0.5, 0.2])
EVERY_T = torch.arange(1, SCHEDULE.T + 1)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


LINE = GaussianMixture(double([0.3, 0.7]), double([[-0.8], [0.5]]), double([[0.02], [0.05]]))
PLANE = GaussianMixture(
    double([0.2, 0.3, 0.5]),
    double([[-1.0, 0.2], [0.4, 0.4], [1.0, -1.0]]),
    double([[0.1, 0.5], [0.02, 0.3], [1, 0.05]]),
)


SCALE, NOISE_VAR = walk(SCHEDULE)


def distribution(mixture, scale=1.0, noise_var=0.0):
    """torch's own mixture: the data's, or that of scale·x_0 + noise."""
    components = Normal(scale * mixture.mean, (scale**2 * mixture.var + noise_var).sqrt())
    return MixtureSameFamily(Categorical(mixture.weight), Independent(components, 1))


def average_given(x_t, t, of, weight):
    """The average of of(x_0) over x_0 given x_t, by quadrature on a line. weight: of LINE's components in the data."""
    x_0 = np.linspace(-3, 3, 4001)
    mean, var = LINE.mean[:, 0].numpy(), LINE.var[:, 0].numpy()
    data = (weight / np.sqrt(var) * np.exp(-((x_0[:, None] - mean) ** 2) / (2 * var))).sum(1)
    joint = data * np.exp(-((x_t - float(SCALE[t]) * x_0) ** 2) / (2 * float(NOISE_VAR[t])))
    return (joint * of(x_0)).sum() / joint.sum()


def average_noise(x_t, t, weight=(0.3, 0.7)):
    scale, std = float(SCALE[t]), float(NOISE_VAR[t]) ** 0.5
    return average_given(x_t, t, lambda x_0: (x_t - scale * x_0) / std, np.array(weight))


def far_and_near(dimensions):
    return torch.linspace(-2, 2, 5 * dimensions, dtype=torch.float64).reshape(5, dimensions)


def test_the_log_density_is_that_of_torch_s_own_mixture():
    x = far_and_near(2)
    assert torch.allclose(PLANE.log_density(x), distribution(PLANE).log_prob(x), rtol=0, atol=1e-12)
    for t in (1, 3, 5):
        noised = distribution(PLANE, SCALE[t], NOISE_VAR[t])
        assert torch.allclose(PLANE.diffused(SCHEDULE, t).log_density(x), noised.log_prob(x), rtol=0, atol=1e-12)


def test_the_denoiser_is_the_average_noise_by_quadrature():
    denoiser, x_t = ExactDenoiser(LINE, SCHEDULE), far_and_near(1)
    expected = double([[average_noise(float(x), int(t))] for x, t in zip(x_t, EVERY_T, strict=True)])
    assert (denoiser(x_t, EVERY_T) - expected).abs().max() < 1e-9
    one_late = double([[average_noise(float(x), min(int(t) + 1, 5))] for x, t in zip(x_t, EVERY_T, strict=True)])
    assert (one_late - expected).abs().max() > 1e-8  # an index off by one would be seen


def test_x_0_hat_is_the_average_clean_value_by_quadrature():
    denoiser, weight = ExactDenoiser(LINE, SCHEDULE), np.array([0.3, 0.7])
    for t in EVERY_T.tolist():
        expected = [[average_given(x, t, lambda x_0: x_0, weight)] for x in (-1.0, 0.1, 0.9)]
        got = denoiser.x_0_hat(double([[-1.0], [0.1], [0.9]]), t)
        assert (got - double(expected)).abs().max() < 1e-9


def test_the_denoiser_points_down_the_score():
    x_t = far_and_near(2).requires_grad_()
    noised = torch.stack([distribution(PLANE, SCALE[t], NOISE_VAR[t]).log_prob(x_t[t - 1]) for t in EVERY_T])
    (score,) = torch.autograd.grad(noised.sum(), x_t)
    got = ExactDenoiser(PLANE, SCHEDULE)(x_t.detach(), EVERY_T)
    assert (got + NOISE_VAR[1:, None].sqrt() * score).abs().max() < 1e-12


def test_one_t_for_all_is_that_t_for_each():
    denoiser, x_t = ExactDenoiser(PLANE, SCHEDULE), far_and_near(2)
    for t in (1, 5):
        assert torch.equal(denoiser(x_t, t), denoiser(x_t, torch.full((5,), t)))


def test_a_label_asks_for_its_component_alone():
    denoiser, x_t = ExactDenoiser(LINE, SCHEDULE), far_and_near(1)
    labels = torch.tensor([0, 1, 1, 0, 1])
    rows = zip(x_t, EVERY_T, labels, strict=True)
    expected = double([[average_noise(float(x), int(t), np.eye(2)[label])] for x, t, label in rows])
    assert (denoiser(x_t, EVERY_T, labels) - expected).abs().max() < 1e-9
    assert (denoiser(x_t, EVERY_T, 1 - labels) - expected).abs().min() > 1e-8


def test_the_null_label_asks_for_the_whole_mixture():
    denoiser, x_t = ExactDenoiser(PLANE, SCHEDULE), far_and_near(2)
    assert denoiser.null == 3
    mixed = denoiser(x_t, EVERY_T, torch.tensor([3, 0, 3, 1, 2]))
    unconditional = denoiser(x_t, EVERY_T)
    assert torch.equal(mixed[[0, 2]], unconditional[[0, 2]])
    assert (mixed - unconditional)[[1, 3, 4]].abs().min() > 1e-8


def test_far_from_all_data_the_denoiser_is_finite_and_keeps_the_dtype():
    for dtype in (torch.float32, torch.float64):
        got = ExactDenoiser(PLANE, SCHEDULE)(torch.full((2, 2), 1e4, dtype=dtype), 1)
        assert got.isfinite().all() and got.dtype == dtype


def test_samples_have_the_mixture_s_weights_means_and_variances():
    n = 200_000
    x, k = PLANE.sample(n, torch.Generator().manual_seed(0))
    for component, weight in enumerate(PLANE.weight.tolist()):
        mine, mean, var = x[k == component], PLANE.mean[component], PLANE.var[component]
        assert abs(len(mine) - n * weight) < 5 * (n * weight * (1 - weight)) ** 0.5
        assert ((mine.mean(0) - mean).abs() < 5 * (var / len(mine)).sqrt()).all()
        assert ((mine.var(0) / var - 1).abs() < 5 * (2 / len(mine)) ** 0.5).all()
        assert abs(torch.corrcoef(mine.T)[0, 1]) < 5 / len(mine) ** 0.5
    again, _ = PLANE.sample(n, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


@pytest.mark.parametrize(
    ("weight", "mean", "var", "complaint"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], [[1.0], [1.0]], "sum to 1"),
        ([0.5, 0.50000105], [[0.0], [1.0]], [[1.0], [1.0]], "sum to 1"),
        ([1.5, -0.5], [[0.0], [1.0]], [[1.0], [1.0]], "positive"),
        ([1.0, 0.0], [[0.0], [1.0]], [[1.0], [1.0]], "positive"),
        ([0.5, 0.5], [[0.0], [1.0]], [[1.0], [0.0]], "positive"),
        ([0.5, 0.5], [[0.0], [1.0]], [[1.0, 1.0], [1.0, 1.0]], r"got \(2,\), \(2, 1\) and \(2, 2\)"),
        ([1.0], [[0.0], [1.0]], [[1.0], [1.0]], r"expected weight \(K,\)"),
    ],
)
def test_what_is_not_a_mixture_is_refused(weight, mean, var, complaint):
    with pytest.raises(ValueError, match=complaint):
        GaussianMixture(double(weight), double(mean), double(var))


def test_weights_may_be_off_by_the_rounding_of_single_precision():
    assert GaussianMixture(double([0.5, 0.5000009]), double([[0.0], [1.0]]), double([[1.0], [1.0]])).weight[1] > 0.5
    GaussianMixture(torch.full((24,), 1 / 24), torch.zeros(24, 2), torch.ones(24, 2))
