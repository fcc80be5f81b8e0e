"""Wrong versions that stand beside no equation: the checks of chapters 0 to 3 must reject them too.

They are what a stranger might write: slips, values that are clamped "for stability", single precision inside, axes and
arguments mixed up, edge cases that were not thought of, states that are kept, arguments that are written into.
"""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.distributions import Normal

from ddpm_lib.checks import find
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.exact.vae import elbo
from ddpm_lib.gaussian import condition, kl_divergence, kl_divergence_full, log_density, product

pytestmark = pytest.mark.soak  # minutes: many versions, each a function of its own

HELD_OUT = {}


def held_out(name, **functions):
    HELD_OUT.setdefault(name, {}).update(functions)


def single(function):
    """The same in float32."""

    def cast(value, dtype):
        if isinstance(value, tuple):
            return tuple(cast(part, dtype) for part in value)
        if isinstance(value, np.ndarray):
            return value.astype(str(dtype).removeprefix("torch."))
        if isinstance(value, float):
            return float(np.float32(value))
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return lambda *args: cast(function(*(cast(arg, torch.float32) for arg in args)), torch.float64)


def with_state(function):
    """Right in the first call of all, later a little different: a running average that nobody asked for."""
    calls = []

    def f(*args):
        calls.append(1)
        result = function(*args)
        parts = result if isinstance(result, tuple) else (result,)
        moved = tuple(part + 1e-6 * (len(calls) - 1) for part in parts)
        return moved if isinstance(result, tuple) else moved[0]

    return f


def writes(function, which=0):
    """The right result, and one argument is overwritten."""

    def f(*args):
        result = function(*(arg.clone() if isinstance(arg, torch.Tensor) else copy.copy(arg) for arg in args))
        args[which][...] = 0
        return result

    return f


def detached(function, *which):
    """The right values, but no gradient for these arguments (or for any)."""
    return lambda *args: function(
        *(
            arg.detach() if isinstance(arg, torch.Tensor) and (not which or i in which) else arg
            for i, arg in enumerate(args)
        )
    )


def t64(value):
    return torch.as_tensor(value, dtype=torch.float64)


# Chapter 0


def mix(x, eps, beta):
    return (1 - beta) ** 0.5 * x + beta**0.5 * eps


held_out(
    "mixing with noise",
    negative=lambda x, eps, beta: mix(-x, eps, beta),
    both_negative=lambda x, eps, beta: -mix(x, eps, beta),
    noise_negative=lambda x, eps, beta: mix(x, -eps, beta),
    other_order=lambda x, eps, beta: mix(x.flip(0), eps, beta),
    image_replaced_by_noise=lambda x, eps, beta: mix(
        torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype), eps, beta
    ),
    noise_of_its_own=lambda x, eps, beta: mix(x, torch.randn_like(x), beta),
    swapped=lambda x, eps, beta: mix(eps, x, beta),
    clipped=lambda x, eps, beta: mix(x, eps, beta).clamp(-6, 6),
    clipped_at_3=lambda x, eps, beta: mix(x, eps, beta).clamp(-3, 3),
    standardised=lambda x, eps, beta: (y := mix(x, eps, beta)) / y.std(),
    centred=lambda x, eps, beta: (y := mix(x, eps, beta)) - y.mean(),
    least_beta=lambda x, eps, beta: mix(x, eps, max(beta, 1e-4)),
    least_beta_tiny=lambda x, eps, beta: mix(x, eps, max(beta, 1e-10)),
    largest_beta=lambda x, eps, beta: mix(x, eps, min(beta, 0.999)),
    plus_epsilon=lambda x, eps, beta: (1 - beta) ** 0.5 * x + (beta + 1e-8) ** 0.5 * eps,
    taylor=lambda x, eps, beta: (1 - beta / 2 - beta**2 / 8) * x + beta**0.5 * eps,
    noise_sign_only=lambda x, eps, beta: (1 - beta) ** 0.5 * x + beta**0.5 * eps.sign(),
    float32=single(mix),
    two_percent_more=lambda x, eps, beta: mix(x, 1.02 * eps, beta),
    beta_squared=lambda x, eps, beta: mix(x, eps, beta**2),
    keeps_a_state=with_state(mix),
    writes_into_x=writes(mix),
    per_image_mean_removed=lambda x, eps, beta: mix(x - x.mean(-1, keepdim=True), eps, beta),
    constant_image=lambda x, eps, beta: mix(x.mean() + 0 * x, eps, beta),
)

# Chapter 1

LOG_2PI = math.log(2 * math.pi)


def clamped(function, low, *which, high=None):
    """A function some of whose arguments are clamped."""
    return lambda *args: function(*(t64(a).clamp(low, high) if i in which else a for i, a in enumerate(args)))


held_out(
    "normal density",
    variance_at_least_1e4=clamped(log_density, 1e-4, 2),
    variance_at_least_1e6=clamped(log_density, 1e-6, 2),
    variance_at_least_1e12=clamped(log_density, 1e-12, 2),
    variance_at_least_1e20=clamped(log_density, 1e-20, 2),
    variance_at_most_100=clamped(log_density, 0, 2, high=100.0),
    variance_plus_1e8=lambda x, m, v: log_density(x, m, v + 1e-8),
    variance_plus_1e12=lambda x, m, v: log_density(x, m, v + 1e-12),
    log_plus_1e8=lambda x, m, v: -0.5 * ((x - m) ** 2 / v + torch.log(t64(2 * math.pi * v) + 1e-8)),
    log_of_density=lambda x, m, v: log_density(x, m, v).exp().log(),
    density_plus_1e12=lambda x, m, v: (log_density(x, m, v).exp() + 1e-12).log(),
    density=lambda x, m, v: log_density(x, m, v).exp(),
    bounded_below=lambda x, m, v: log_density(x, m, v).clamp(min=-1e4),
    bounded_below_far=lambda x, m, v: log_density(x, m, v).clamp(min=-1e5),
    never_positive=lambda x, m, v: log_density(x, m, v).clamp(max=0),
    distance_clipped=lambda x, m, v: log_density((x - m).clamp(-20, 20), 0.0, v),
    deviations_clipped=lambda x, m, v: log_density(((x - m) / t64(v).sqrt()).clamp(-38, 38) * t64(v).sqrt(), 0.0, v),
    float32=single(log_density),
    mean_detached=detached(log_density, 1),
    variance_detached=detached(log_density, 2),
    all_detached=detached(log_density),
    no_gradient=torch.no_grad()(log_density),
    sum_of_entries=lambda x, m, v: log_density(x, m, v).sum() + 0 * x,
    normaliser_once=lambda x, m, v: -0.5 * (x - m) ** 2 / v - 0.5 * torch.log(t64(2 * math.pi * v)).mean(),
    three_for_pi=lambda x, m, v: -0.5 * ((x - m) ** 2 / v + torch.log(t64(6.2832 * v))),
    log_of_deviation_twice=lambda x, m, v: -0.5 * ((x - m) ** 2 / v + LOG_2PI + 2 * torch.log(t64(v))),
    laplace=lambda x, m, v: -(x - m).abs() / (t64(v) / 2).sqrt() - 0.5 * torch.log(2 * t64(v)),
    student=lambda x, m, v: torch.from_numpy(stats.t.logpdf(x.detach(), 1000, m, np.sqrt(v))),
    sign=lambda x, m, v: -log_density(x, m, v),
    x_centred=lambda x, m, v: log_density(x - x.mean(), m, v),
    mean_ignored=lambda x, m, v: log_density(x, 0 * t64(m), v),
    mean_added=lambda x, m, v: log_density(x, -m, v),
    writes_into_x=writes(log_density),
    keeps_a_state=with_state(log_density),
)


def affine(A, b, mean, cov):
    return A @ mean + b, A @ cov @ A.T


EYE = torch.eye(9, dtype=torch.float64)


def jitter(cov, size=1e-6):
    return cov + size * EYE[: len(cov), : len(cov)]


def with_cov(change):
    """The right mean, and a wrong covariance."""
    return lambda A, b, mean, cov: (A @ mean + b, change(A, b, mean, cov))


held_out(
    "affine map",
    jitter_1e6=with_cov(lambda A, b, m, c: jitter(A @ c @ A.T)),
    jitter_1e9=with_cov(lambda A, b, m, c: jitter(A @ c @ A.T, 1e-9)),
    jitter_1e12=with_cov(lambda A, b, m, c: A @ jitter(c, 1e-12) @ A.T),
    variance_at_least_1e8=with_cov(
        lambda A, b, m, c: (y := A @ c @ A.T) - y.diagonal().diag() + y.diagonal().clamp(min=1e-8).diag()
    ),
    diagonal=with_cov(lambda A, b, m, c: (A @ c @ A.T).diagonal().diag()),
    correlations_of_x_lost=with_cov(lambda A, b, m, c: A @ c.diagonal().diag() @ A.T),
    cov_ignored=with_cov(lambda A, b, m, c: A @ A.T),
    cov_plus_bb=with_cov(lambda A, b, m, c: A @ c @ A.T + b.outer(b)),
    second_moment=with_cov(lambda A, b, m, c: A @ (c + m.outer(m)) @ A.T),
    no_shift=lambda A, b, m, c: (A @ m, A @ c @ A.T),
    shift_first=lambda A, b, m, c: (A @ (m + b.mean()), A @ c @ A.T),
    shift_subtracted=lambda A, b, m, c: (A @ m - b, A @ c @ A.T),
    shift_mean=lambda A, b, m, c: (A @ m + b.mean(), A @ c @ A.T),
    entrywise=lambda A, b, m, c: ((A * m).sum(1) + b, (A**2 * c.diagonal()).sum(1).diag()),
    absolute=lambda A, b, m, c: (A @ m + b, (A @ c @ A.T).abs()),
    root=with_cov(lambda A, b, m, c: torch.linalg.cholesky(jitter(A @ c @ A.T, 1e-30))),
    inverse=with_cov(lambda A, b, m, c: torch.linalg.pinv(A @ c @ A.T)),
    transposed_if_square=lambda A, b, m, c: affine(A.T if A.shape[0] == A.shape[1] else A, b, m, c),
    symmetric_twice=with_cov(lambda A, b, m, c: A @ c @ A.T + (A @ c @ A.T).T),
    float32=single(affine),
    writes_into_mean=writes(affine, 2),
    keeps_a_state=with_state(affine),
)


def add(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, var_1 + var_2


held_out(
    "sum of independent normals",
    mean_first_only=lambda m, v, n, w: (m, v + w),
    difference=lambda m, v, n, w: (m - n, v + w),
    variances_subtracted=lambda m, v, n, w: (m + n, abs(v - w)),
    average=lambda m, v, n, w: ((m + n) / 2, (v + w) / 4),
    average_variance=lambda m, v, n, w: (m + n, (v + w) / 2),
    precisions=lambda m, v, n, w: (m + n, v * w / (v + w) if v + w else 0.0),
    deviation=lambda m, v, n, w: (m + n, (v + w) ** 0.5),
    hypotenuse=lambda m, v, n, w: (m + n, (v**2 + w**2) ** 0.5),
    larger_one=lambda m, v, n, w: (m + n, max(v, w)),
    plus_means=lambda m, v, n, w: (m + n, v + w + (m - n) ** 2 / 4),
    correlated=lambda m, v, n, w: (m + n, v + w + 2 * 0.01 * (v * w) ** 0.5),
    plus_1e8=lambda m, v, n, w: (m + n, v + w + 1e-8),
    plus_1e12=lambda m, v, n, w: (m + n, v + w + 1e-12),
    each_at_least_1e6=lambda m, v, n, w: (m + n, max(v, 1e-6) + max(w, 1e-6)),
    at_least_1e10=lambda m, v, n, w: (m + n, max(v + w, 1e-10)),
    at_most_100=lambda m, v, n, w: (m + n, min(v + w, 100.0)),
    mean_clipped=lambda m, v, n, w: (max(min(m + n, 5.0), -5.0), v + w),
    weighted_mean=lambda m, v, n, w: ((m * v + n * w) / (v + w) * 2, v + w),
    float32=single(add),
    float16=lambda *a: tuple(float(np.float16(part)) for part in add(*a)),
    keeps_a_state=with_state(add),
    point_forgotten=lambda m, v, n, w: (n, w) if v == 0 else (m, v) if w == 0 else add(m, v, n, w),
    by_logs=lambda m, v, n, w: (m + n, math.exp(np.logaddexp(math.log(max(v, 1e-7)), math.log(max(w, 1e-7))))),
)


def by_precision(m, v, n, w):
    precision = 1 / v + 1 / w
    return (m / v + n / w) / precision, 1 / precision


held_out(
    "product of normal densities",
    by_precision=by_precision,
    precision_plus_1e8=lambda m, v, n, w: ((m / v + n / w) / (p := 1 / v + 1 / w + 1e-8), 1 / p),
    variances_plus_1e8=lambda m, v, n, w: product(m, v + 1e-8, n, w + 1e-8),
    variances_plus_1e12=lambda m, v, n, w: by_precision(m, v + 1e-12, n, w + 1e-12),
    at_least_1e6=clamped(product, 1e-6, 1, 3),
    at_least_1e12=clamped(product, 1e-12, 1, 3),
    at_most_1e6=clamped(product, 0, 1, 3, high=1e6),
    denominator_plus_1e8=lambda m, v, n, w: ((w * m + v * n) / (v + w + 1e-8), v * w / (v + w + 1e-8)),
    result_at_least_1e10=lambda *a: (product(*a)[0], product(*a)[1].clamp(min=1e-10)),
    variance_added=lambda m, v, n, w: (product(m, v, n, w)[0], v + w),
    harmonic_mean=lambda m, v, n, w: (product(m, v, n, w)[0], 2 * product(m, v, n, w)[1]),
    precision_returned=lambda m, v, n, w: (product(m, v, n, w)[0], (v + w) / (v * w)),
    deviation_returned=lambda *a: (product(*a)[0], product(*a)[1].sqrt()),
    squared_precisions=lambda m, v, n, w: (product(m, v**2, n, w**2)[0], product(m, v, n, w)[1]),
    larger_precision=lambda m, v, n, w: (product(m, v, n, w)[0], torch.minimum(v + 0 * w, w + 0 * v)),
    mean_difference=lambda m, v, n, w: ((w * m - v * n) / (v + w), v * w / (v + w)),
    spread_of_means=lambda m, v, n, w: (product(m, v, n, w)[0], product(m, v, n, w)[1] + 1e-3 * (m - n) ** 2),
    constant_log=lambda m, v, n, w: (product(m, v, n, w)[0] * (1 - 1e-7), product(m, v, n, w)[1]),
    mean_of_all=lambda m, v, n, w: (product(m, v, n, w)[0].mean() + 0 * (m + v + n + w), product(m, v, n, w)[1]),
    float32=single(product),
    detached=detached(product),
    first_variance_detached=detached(product, 1),
    writes_into_mean=writes(product),
    keeps_a_state=with_state(product),
    first_wins_if_far=lambda m, v, n, w: tuple(
        torch.where((m - n).abs() > 20, first, both) for first, both in zip((m, v), product(m, v, n, w), strict=True)
    ),
    zero_only_first=lambda m, v, n, w: tuple(
        torch.where((v + 0 * w) == 0, first, both) for first, both in zip((m, v), by_precision(m, v, n, w), strict=True)
    ),
)


def blocks(mean, cov, known):
    rest = [i for i in range(len(mean)) if i not in known]
    return mean[rest], mean[known], cov[rest][:, rest], cov[rest][:, known], cov[known][:, known]


def by_blocks(change):
    """A version of conditioning with Σ_kk⁻¹, in which `change` alters the blocks' (gain, mean, covariance)."""

    def f(mean, cov, known, value):
        m_r, m_k, rr, rk, kk = blocks(mean, cov, known)
        return change(m_r, m_k, rr, rk, kk, value)

    return f


held_out(
    "conditioning",
    jitter_1e6=by_blocks(
        lambda m, n, rr, rk, kk, v: (
            m + (G := rk @ jitter(kk).inverse()) @ (v - n),
            rr - G @ rk.T,
        )
    ),
    jitter_1e10=by_blocks(
        lambda m, n, rr, rk, kk, v: (
            m + (G := rk @ jitter(kk, 1e-10).inverse()) @ (v - n),
            rr - G @ rk.T,
        )
    ),
    jitter_on_result=lambda *a: (condition(*a)[0], jitter(condition(*a)[1], 1e-10)),
    variance_at_least_1e6=lambda *a: (
        condition(*a)[0],
        (c := condition(*a)[1]) - c.diagonal().diag() + c.diagonal().clamp(min=1e-6).diag(),
    ),
    pinv=by_blocks(
        lambda m, n, rr, rk, kk, v: (
            m + (G := rk @ torch.linalg.pinv(kk, atol=1e-8)) @ (v - n),
            rr - G @ rk.T,
        )
    ),
    plus=by_blocks(lambda m, n, rr, rk, kk, v: (m + rk @ kk.inverse() @ (v - n), rr + rk @ kk.inverse() @ rk.T)),
    minus_mean=by_blocks(lambda m, n, rr, rk, kk, v: (m - rk @ kk.inverse() @ (v - n), rr - rk @ kk.inverse() @ rk.T)),
    plain_value=by_blocks(lambda m, n, rr, rk, kk, v: (rk @ kk.inverse() @ (v - n), rr - rk @ kk.inverse() @ rk.T)),
    diagonal=lambda *a: (condition(*a)[0], condition(*a)[1].diagonal().diag()),
    correlation=by_blocks(
        lambda m, n, rr, rk, kk, v: (
            m + (rk / rr.diagonal().sqrt()[:, None] / kk.diagonal().sqrt()) @ (v - n),
            rr - rk @ kk.inverse() @ rk.T,
        )
    ),
    root_of_inverse=by_blocks(
        lambda m, n, rr, rk, kk, v: (
            m + rk @ torch.linalg.cholesky(kk).inverse() @ (v - n),
            rr - rk @ kk.inverse() @ rk.T,
        )
    ),
    precision_not_inverted=lambda m, c, k, v: (
        condition(m, c, k, v)[0],
        blocks(m, c.inverse(), k)[2],
    ),
    value_clipped=lambda m, c, k, v: condition(m, c, k, v.clamp(-3, 3)),
    others_sorted_by_variance=lambda m, c, k, v: tuple(part.flip(0) for part in condition(m, c, k, v)),
    known_entry_kept=lambda m, c, k, v: (condition(m, c, k, v)[0], blocks(m, c, k)[2] - 0.5 * blocks(m, c, k)[2]),
    first_known_only=lambda m, c, k, v: (
        condition(m, c, k, v)
        if len(k) == 1
        else (
            condition(m, c, k, v)[0],
            (lambda r: c[r][:, r] - c[r][:, k[:1]] @ c[r][:, k[:1]].T / c[k[0], k[0]])(
                [i for i in range(len(m)) if i not in k]
            ),
        )
    ),
    sorted_known=lambda m, c, k, v: condition(m, c, sorted(k), v),
    at_most_two_known=lambda m, c, k, v: (
        condition(m, c, k[:2], v[:2])
        if len(k) < 3
        else (m[: len(m) - len(k)] * 0, c[: len(m) - len(k), : len(m) - len(k)])
    ),
    float32=single(condition),
    detached=detached(condition),
    cov_detached=detached(condition, 1),
    keeps_a_state=with_state(condition),
    writes_into_mean=lambda m, c, k, v: (condition(m, c, k, v), m.zero_())[0],
    writes_into_known=lambda m, c, k, v: (condition(m, c, k, v), k.sort())[0],
)

held_out(
    "KL divergence",
    variances_at_least_1e6=clamped(kl_divergence, 1e-6, 1, 3),
    q_at_least_1e8=clamped(kl_divergence, 1e-8, 1),
    q_at_least_1e20=clamped(kl_divergence, 1e-20, 1),
    p_at_least_1e4=clamped(kl_divergence, 1e-4, 3),
    variances_at_most=clamped(kl_divergence, 0, 1, 3, high=1e6),
    log_plus_1e8=lambda m, v, n, w: kl_divergence(m, v, n, w) + 0.5 * (torch.log(v / w) - torch.log(v / w + 1e-8)),
    log_plus_1e20=lambda m, v, n, w: 0.5 * (v / w - 1 - torch.log(v / w + 1e-20) + (m - n) ** 2 / w),
    denominator_plus_1e12=lambda m, v, n, w: 0.5 * ((v + (m - n) ** 2) / (w + 1e-12) - 1 - torch.log(v / w)),
    at_most_100=lambda *a: kl_divergence(*a).clamp(max=100),
    at_most_1000=lambda *a: kl_divergence(*a).clamp(max=1000),
    free_bits=lambda *a: kl_divergence(*a).clamp(min=1e-3),
    absolute_log=lambda m, v, n, w: 0.5 * (v / w - 1 + torch.log(v / w).abs() + (m - n) ** 2 / w),
    absolute_distance=lambda m, v, n, w: 0.5 * (v / w - 1 - torch.log(v / w) + (m - n).abs() / w),
    symmetric=lambda m, v, n, w: 0.5 * (kl_divergence(m, v, n, w) + kl_divergence(n, w, m, v)),
    without_means=lambda m, v, n, w: kl_divergence(0 * (m + n), v, 0 * n, w),
    to_standard_normal=lambda m, v, n, w: kl_divergence(m, v, 0 * n, 1 + 0 * w),
    log_ratio_upside_down=lambda m, v, n, w: kl_divergence(m, v, n, w) + 0.5 * torch.log(v / w) * 2,
    half_missing_on_means=lambda m, v, n, w: kl_divergence(m, v, n, w) + 0.5 * (m - n) ** 2 / w,
    log_without_half=lambda m, v, n, w: 0.5 * (v / w - 1 + (m - n) ** 2 / w) - torch.log(v / w),
    variances_swapped=lambda m, v, n, w: kl_divergence(m, w, n, v),
    log10=lambda m, v, n, w: 0.5 * (v / w - 1 - torch.log10(v / w) + (m - n) ** 2 / w),
    minus_two=lambda *a: kl_divergence(*a) - 0.5,
    mean_over_entries=lambda *a: kl_divergence(*a).mean() + 0 * kl_divergence(*a),
    wasserstein=lambda m, v, n, w: (m - n) ** 2 + (v.sqrt() - w.sqrt()) ** 2,
    cross_entropy=lambda m, v, n, w: 0.5 * (v / w + torch.log(2 * math.pi * w) + (m - n) ** 2 / w),
    close_is_zero=lambda *a: torch.where(kl_divergence(*a) < 1e-4, 0.0, kl_divergence(*a)),
    taylor_if_close=lambda m, v, n, w: torch.where(
        (v / w - 1).abs() < 1e-3, 0.5 * (m - n) ** 2 / w, kl_divergence(m, v, n, w)
    ),
    float32=single(kl_divergence),
    detached=detached(kl_divergence),
    p_detached=detached(kl_divergence, 2, 3),
    q_variance_detached=detached(kl_divergence, 1),
    keeps_a_state=with_state(kl_divergence),
    writes_into_q=writes(kl_divergence, 1),
)

held_out(
    "KL divergence, full covariance",
    jitter_1e6=lambda m, c, n, d: kl_divergence_full(m, jitter(c), n, jitter(d)),
    jitter_1e12=lambda m, c, n, d: kl_divergence_full(m, c, n, jitter(d, 1e-12)),
    jitter_on_q=lambda m, c, n, d: kl_divergence_full(m, jitter(c, 1e-12), n, d),
    at_most_1000=lambda *a: kl_divergence_full(*a).clamp(max=1000),
    never_negative_but_shifted=lambda *a: kl_divergence_full(*a).clamp(min=1e-6),
    det_plus_1e12=lambda m, c, n, d: kl_divergence_full(m, c, n, d) + 0.5 * (c.logdet() - (c.det() + 1e-12).log()),
    minus_three=lambda m, c, n, d: kl_divergence_full(m, c, n, d) + 0.5 * (len(m) - 3),
    minus_D_at_most_3=lambda m, c, n, d: kl_divergence_full(m, c, n, d) + 0.5 * (len(m) - min(len(m), 3)),
    minus_D_squared=lambda m, c, n, d: kl_divergence_full(m, c, n, d) + 0.5 * (len(m) - len(m) ** 2),
    shift_in_q=lambda m, c, n, d: kl_divergence_full(m, c, m, d) + 0.5 * (m - n) @ c.inverse() @ (m - n),
    shift_not_weighted=lambda m, c, n, d: kl_divergence_full(m, c, m, d) + 0.5 * (m - n) @ (m - n),
    shift_by_diagonal=lambda m, c, n, d: kl_divergence_full(m, c, m, d) + 0.5 * ((m - n) ** 2 / d.diagonal()).sum(),
    shift_by_root=lambda m, c, n, d: (
        kl_divergence_full(m, c, m, d) + 0.5 * (torch.linalg.cholesky(d).inverse().T @ (m - n)).square().sum()
    ),
    no_shift=lambda m, c, n, d: kl_divergence_full(m, c, m, d),
    determinants_by_diagonal=lambda m, c, n, d: (
        kl_divergence_full(m, c, n, d)
        + 0.5 * (d.diagonal().log().sum() - d.logdet() - c.diagonal().log().sum() + c.logdet())
    ),
    half_determinant=lambda m, c, n, d: kl_divergence_full(m, c, n, d) - 0.25 * (d.logdet() - c.logdet()),
    trace_of_diagonals=lambda m, c, n, d: (
        kl_divergence_full(m, c, n, d) + 0.5 * ((c.diagonal() / d.diagonal()).sum() - torch.trace(d.inverse() @ c))
    ),
    trace_swapped=lambda m, c, n, d: (
        kl_divergence_full(m, c, n, d) + 0.5 * (torch.trace(c.inverse() @ d) - torch.trace(d.inverse() @ c))
    ),
    mean_over_dimensions=lambda m, c, n, d: kl_divergence_full(m, c, n, d) / len(m),
    in_bits=lambda *a: kl_divergence_full(*a) / math.log(2),
    p_diagonal=lambda m, c, n, d: kl_divergence_full(m, c, n, d.diagonal().diag()),
    q_diagonal=lambda m, c, n, d: kl_divergence_full(m, c.diagonal().diag(), n, d),
    float32=single(kl_divergence_full),
    detached=detached(kl_divergence_full),
    q_cov_detached=detached(kl_divergence_full, 1),
    keeps_a_state=with_state(kl_divergence_full),
    writes_into_cov=writes(kl_divergence_full, 3),
)


def dsilu(z):
    return torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))


def plain_sigmoid(z):
    return 1 / (1 + torch.exp(-z))


held_out(
    "derivative of SiLU",
    silu=lambda z: z * torch.sigmoid(z),
    sign=lambda z: torch.sigmoid(z) * (1 - z * (1 - torch.sigmoid(z))),
    product_of_derivatives=lambda z: torch.sigmoid(z) + torch.sigmoid(z) * (1 - torch.sigmoid(z)),
    square_forgotten=lambda z: torch.sigmoid(z) * (1 + z) - z * torch.sigmoid(z),
    tanh=lambda z: torch.tanh(z) * (1 + z * (1 - torch.tanh(z))),
    gelu=lambda z: special.ndtr(1.702 * z) + z * stats.norm.pdf(z),
    swish_1702=lambda z: (s := torch.sigmoid(1.702 * z)) * (1 + 1.702 * z * (1 - s)),
    clipped_at_10=lambda z: dsilu(z.clamp(-10, 10)),
    clipped_at_16=lambda z: dsilu(z.clamp(-16, 16)),
    between_0_and_1=lambda z: dsilu(z).clamp(0, 1),
    one_beyond_8=lambda z: torch.where(z > 8, 1.0, torch.where(z < -8, 0.0, dsilu(z))),
    relu_beyond_12=lambda z: torch.where(z.abs() > 12, (z > 0).double(), dsilu(z)),
    overflow=lambda z: (e := torch.exp(z)) * (1 + z + e) / (1 + e) ** 2,
    hard=lambda z: ((2 * z + 3) / 6).clamp(0, 1),
    symmetric=lambda z: dsilu(z.abs()),
    mirrored=lambda z: dsilu(-z),
    wrong_at_0=lambda z: torch.where(z == 0, 0.0, dsilu(z)),
    half_at_0_lost=lambda z: torch.where(z > 0, dsilu(z), dsilu(z)) - 0.5 * (z == 0),
    coarse_difference=lambda z: ((z + 1e-3) * torch.sigmoid(z + 1e-3) - (z - 1e-3) * torch.sigmoid(z - 1e-3)) / 2e-3,
    one_sided=lambda z: ((z + 1e-6) * torch.sigmoid(z + 1e-6) - z * torch.sigmoid(z)) / 1e-6,
    float32=single(dsilu),
    mean_of_batch=lambda z: dsilu(z).mean() + 0 * z,
    sorted=lambda z: dsilu(z.sort()[0]),
    keeps_a_state=with_state(dsilu),
    writes_into_z=writes(dsilu),
)


def relu_two(var):
    return (var / (2 * math.pi)) ** 0.5, var / 2


held_out(
    "moments of ReLU",
    mean_half=lambda v: (0.5 * (v / (2 * math.pi)) ** 0.5, v / 2),
    mean_root_2_over_pi=lambda v: ((2 * v / math.pi) ** 0.5, v / 2),
    mean_without_2=lambda v: ((v / math.pi) ** 0.5, v / 2),
    mean_zero=lambda v: (0.0, v / 2),
    mean_pi=lambda v: ((v / 2) ** 0.5 / math.pi, v / 2),
    mean_of_unit_variance=lambda v: ((1 / (2 * math.pi)) ** 0.5, v / 2),
    second_full=lambda v: (relu_two(v)[0], v),
    second_root=lambda v: (relu_two(v)[0], (v / 2) ** 0.5),
    second_squared=lambda v: (relu_two(v)[0], v**2 / 2),
    second_is_variance=lambda v: (relu_two(v)[0], v * (0.5 - 0.5 / math.pi)),
    second_is_mean_squared=lambda v: (relu_two(v)[0], v / (2 * math.pi)),
    second_of_silu=lambda v: (relu_two(v)[0], 0.3558 * v),
    at_least_1e8=lambda v: relu_two(max(v, 1e-8)),
    at_least_1e12=lambda v: relu_two(max(v, 1e-12)),
    plus_1e12=lambda v: relu_two(v + 1e-12),
    at_most_100=lambda v: relu_two(min(v, 100.0)),
    leaky=lambda v: ((1 - 0.01) * relu_two(v)[0], (1 + 0.01**2) * v / 2),
    pi_is_3_1416=lambda v: ((v / (2 * 3.1416)) ** 0.5, v / 2),
    float32=single(relu_two),
    swapped=lambda v: relu_two(v)[::-1],
    deviation_given=lambda v: relu_two(v**2),
    keeps_a_state=with_state(relu_two),
    by_few_draws=lambda v: (
        float((v**0.5 * (z := np.maximum(np.random.default_rng(0).standard_normal(10**5), 0))).mean()),
        float((v * z**2).mean()),
    ),
)


def z_power(delta, n, c):
    return special.ndtr(delta * n**0.5 - c) + special.ndtr(-delta * n**0.5 - c)


held_out(
    "power of a z-test",
    other_tail=lambda d, n, c: special.ndtr(-d * n**0.5 - c),
    twice_one_tail=lambda d, n, c: 2 * special.ndtr(abs(d) * n**0.5 - c),
    tails_subtracted=lambda d, n, c: special.ndtr(d * n**0.5 - c) - special.ndtr(-d * n**0.5 - c),
    as_if_independent=lambda d, n, c: 1 - (1 - special.ndtr(d * n**0.5 - c)) * (1 - special.ndtr(-d * n**0.5 - c)),
    n_minus_1=lambda d, n, c: z_power(d, n - 1, c),
    n_plus_1=lambda d, n, c: z_power(d, n + 1, c),
    half_n=lambda d, n, c: z_power(d, n / 2, c),
    c_times_root_n=lambda d, n, c: z_power(d, n, c * n**0.5),
    c_over_root_n=lambda d, n, c: z_power(d, n, c / n**0.5),
    c_squared=lambda d, n, c: z_power(d, n, c**2),
    null_only=lambda d, n, c: 2 * special.ndtr(-c) + 0 * d,
    student=lambda d, n, c: (
        1 - stats.nct.cdf(c, max(n - 1, 1), d * n**0.5) + stats.nct.cdf(-c, max(n - 1, 1), d * n**0.5)
    ),
    erf_without_root_2=lambda d, n, c: 1 - 0.5 * (special.erf(c - d * n**0.5) + special.erf(c + d * n**0.5)),
    density=lambda d, n, c: stats.norm.pdf(d * n**0.5 - c) + stats.norm.pdf(-d * n**0.5 - c),
    logistic=lambda d, n, c: special.expit(1.702 * (d * n**0.5 - c)) + special.expit(1.702 * (-d * n**0.5 - c)),
    at_least_1e3=lambda d, n, c: max(z_power(d, n, c), 1e-3),
    at_least_1e6=lambda d, n, c: max(z_power(d, n, c), 1e-6),
    at_most_0999=lambda d, n, c: min(z_power(d, n, c), 0.999),
    positive_delta=lambda d, n, c: special.ndtr(max(d, 0) * n**0.5 - c) + special.ndtr(-max(d, 0) * n**0.5 - c),
    one_tail_if_far=lambda d, n, c: special.ndtr(abs(d) * n**0.5 - c) if abs(d) * n**0.5 > 1 else z_power(d, n, c),
    rounded=lambda d, n, c: round(z_power(d, n, c), 4),
    float32=single(z_power),
    simulated=lambda d, n, c: float(
        (np.abs(np.random.default_rng(9).normal(d, 1, (40_000, n)).mean(1) * n**0.5) > c).mean()
    ),
    keeps_a_state=with_state(z_power),
    less=lambda d, n, c: 1 - z_power(d, n, c),
)

# Chapter 2


def scaled(images, white):
    return images.double() / white * 2 - 1


def in_half_precision(images, white):
    return (images.half() / white * 2 - 1).double()


held_out(
    "signed pixels",
    white_is_255=lambda x, w: scaled(x, 255 if x.dtype == torch.uint8 else w),
    white_by_dtype=lambda x, w: scaled(x, 255 if not x.is_floating_point() and w > 200 else w),
    white_is_the_largest=lambda x, w: scaled(x, x.max()),
    whole_half=lambda x, w: (x.double() - w // 2) / (w / 2),
    by_128=lambda x, w: (x.double() - (w + 1) / 2) / ((w + 1) / 2),
    by_127_5=lambda x, w: x.double() / 127.5 - 1,
    floor=lambda x, w: (x.double() // 1) / w * 2 - 1,
    rounded=lambda x, w: scaled(x, w).round(decimals=2),
    whole_numbers=lambda x, w: scaled(x, w).long(),
    half_precision=in_half_precision,
    bfloat=lambda x, w: scaled(x, w).bfloat16(),
    doubled_as_they_are=lambda x, w: (2 * x) / w - 1,
    shifted_as_they_are=lambda x, w: (2 * (x - w / 2)).to(x.dtype) / w,
    without_shift=lambda x, w: x.double() / w * 2,
    inverted=lambda x, w: 1 - 2 * x.double() / w,
    zero_to_one=lambda x, w: x.double() / w,
    minus_half=lambda x, w: x.double() / w - 0.5,
    gamma=lambda x, w: 2 * (x.double() / w) ** 2.2 - 1,
    mid_of_bins=lambda x, w: (x.double() + 0.5) / (w + 1) * 2 - 1,
    clipped_to_99=lambda x, w: scaled(x, w).clamp(-0.99, 0.99),
    channels_last=lambda x, w: scaled(x, w).movedim(1, -1).reshape(x.shape) if x.ndim == 4 else scaled(x, w),
    per_channel=lambda x, w: (
        scaled(x, w) - scaled(x, w).mean((-1, -2), keepdim=True) * 1e-4 if x.ndim > 1 else scaled(x, w)
    ),
    stretched=lambda x, w: (x.double() - x.min()) / (x.max() - x.min()) * 2 - 1,
    not_scaled_if_small=lambda x, w: x.double() * 2 - 1 if x.max() <= 16 else scaled(x, w),
    white_at_least_2=lambda x, w: scaled(x, max(w, 2)),
    white_plus_epsilon=lambda x, w: x.double() / (w + 1e-3) * 2 - 1,
    in_place=lambda x, w: x.mul_(2 / w).sub_(1) if x.is_floating_point() else scaled(x, w),
    imagenet=lambda x, w: (x.double() / w - 0.485) / 0.229,
    black_is_left_out=lambda x, w: torch.where(x == 0, 0.0, scaled(x, w)),
)


def both_sides(log_joint, log_q, weight):
    log_ratio = log_joint - log_q
    return np.log((weight * np.exp(log_ratio)).sum()), (weight * log_ratio).sum()


def bound_with(change):
    """log p(x) as it is, and another bound of the log-ratio, log_joint, log_q and weights."""
    return lambda lj, lq, w: (both_sides(lj, lq, w)[0], change(lj - lq, lj, lq, w))


def evidence_with(change):
    return lambda lj, lq, w: (change(lj, lq, w), both_sides(lj, lq, w)[1])


held_out(
    "evidence lower bound",
    log_plus_1e8=evidence_with(lambda lj, lq, w: np.log((w * np.exp(lj - lq)).sum() + 1e-8)),
    log_plus_1e12=evidence_with(lambda lj, lq, w: np.log((w * np.exp(lj - lq)).sum() + 1e-12)),
    log_plus_1e20=evidence_with(lambda lj, lq, w: np.log((w * np.exp(lj - lq)).sum() + 1e-20)),
    evidence_by_the_mean=evidence_with(lambda lj, lq, w: np.log(np.exp(lj - lq).mean())),
    evidence_without_q=evidence_with(lambda lj, lq, w: np.log((w * np.exp(lj)).sum())),
    evidence_is_the_best=evidence_with(lambda lj, lq, w: (lj - lq).max()),
    evidence_not_positive=evidence_with(lambda lj, lq, w: min(np.log((w * np.exp(lj - lq)).sum()), 0)),
    probability=evidence_with(lambda lj, lq, w: (w * np.exp(lj - lq)).sum()),
    base_two=lambda *a: tuple(part / np.log(2) for part in both_sides(*a)),
    even_grid=lambda lj, lq, w: (
        np.log((np.exp(lj) * w.max() / np.exp(lq[w.argmax()])).sum()),
        both_sides(lj, lq, w)[1],
    ),
    negative=bound_with(lambda r, lj, lq, w: -(w * r).sum()),
    mean_of_ratio=bound_with(lambda r, lj, lq, w: r.mean()),
    joint_only=bound_with(lambda r, lj, lq, w: (w * lj).sum()),
    plus_entropy_twice=bound_with(lambda r, lj, lq, w: (w * (r - lq)).sum()),
    q_added=bound_with(lambda r, lj, lq, w: (w * (lj + lq)).sum()),
    clipped_at_50=bound_with(lambda r, lj, lq, w: (w * r.clip(-50, 50)).sum()),
    clipped_at_100=bound_with(lambda r, lj, lq, w: (w * r.clip(-100, 100)).sum()),
    joint_clipped=bound_with(lambda r, lj, lq, w: (w * (lj.clip(-100) - lq)).sum()),
    not_positive=bound_with(lambda r, lj, lq, w: min((w * r).sum(), 0)),
    at_the_peak=bound_with(lambda r, lj, lq, w: r[w.argmax()]),
    log_of_mean_of_root=bound_with(lambda r, lj, lq, w: 2 * np.log((w * np.exp(r / 2)).sum())),
    importance_of_two=bound_with(
        lambda r, lj, lq, w: (
            (w[::9, None] * w[None, ::9] * 81 * np.logaddexp(r[::9, None], r[None, ::9])).sum() - np.log(2)
        )
    ),
    by_the_gap_of_the_joint=bound_with(lambda r, lj, lq, w: (np.exp(lj) / np.exp(lj).sum() * r).sum()),
    swapped=lambda *a: both_sides(*a)[::-1],
    bound_given_twice=lambda *a: (both_sides(*a)[1],) * 2,
    evidence_given_twice=lambda *a: (both_sides(*a)[0],) * 2,
    float32=single(both_sides),
    shifts_the_joint=lambda lj, lq, w: (both_sides(lj, lq, w), lj.sort())[0],
    keeps_a_state=with_state(both_sides),
)


def kl_on_grid(log_q, log_posterior, log_prior, dz):
    return (np.exp(log_q) * (log_q - log_posterior)).sum() * dz


held_out(
    "gap of the evidence lower bound",
    sign=lambda *a: -kl_on_grid(*a),
    absolute_ratio=lambda q, p, r, dz: (np.exp(q) * np.abs(q - p)).sum() * dz,
    squared_ratio=lambda q, p, r, dz: 0.5 * (np.exp(q) * (q - p) ** 2).sum() * dz,
    symmetric=lambda q, p, r, dz: 0.5 * (kl_on_grid(q, p, r, dz) + kl_on_grid(p, q, r, dz)),
    jensen_shannon=lambda q, p, r, dz: kl_on_grid(q, np.logaddexp(q, p) - np.log(2), r, dz),
    to_prior=lambda q, p, r, dz: kl_on_grid(q, r, p, dz),
    from_prior=lambda q, p, r, dz: kl_on_grid(r, p, q, dz),
    sum_of_both=lambda q, p, r, dz: kl_on_grid(q, p, r, dz) + kl_on_grid(q, r, p, dz),
    posterior_to_prior=lambda q, p, r, dz: kl_on_grid(p, r, q, dz),
    without_dz=lambda q, p, r, dz: (np.exp(q) * (q - p)).sum(),
    dz_squared=lambda q, p, r, dz: (np.exp(q) * (q - p)).sum() * dz**2,
    hard_wired_dz=lambda q, p, r, dz: (np.exp(q) * (q - p)).sum() * 0.002,
    mean=lambda q, p, r, dz: (np.exp(q) * (q - p)).mean(),
    unweighted=lambda q, p, r, dz: (q - p).mean(),
    posterior_plus_1e8=lambda q, p, r, dz: (np.exp(q) * (q - np.log(np.exp(p) + 1e-8))).sum() * dz,
    posterior_plus_1e30=lambda q, p, r, dz: (np.exp(q) * (q - np.log(np.exp(p) + 1e-30))).sum() * dz,
    posterior_clipped_at_50=lambda q, p, r, dz: kl_on_grid(q, p.clip(-50), r, dz),
    ratio_clipped_at_100=lambda q, p, r, dz: (np.exp(q) * (q - p).clip(-100, 100)).sum() * dz,
    at_most_100=lambda *a: min(kl_on_grid(*a), 100.0),
    free_bits=lambda *a: max(kl_on_grid(*a), 0.01),
    entropy_only=lambda q, p, r, dz: -(np.exp(q) * q).sum() * dz,
    cross_entropy=lambda q, p, r, dz: -(np.exp(q) * p).sum() * dz,
    total_variation=lambda q, p, r, dz: 0.5 * np.abs(np.exp(q) - np.exp(p)).sum() * dz,
    log_of_mean=lambda q, p, r, dz: np.log((np.exp(q) * np.exp(np.clip(q - p, -9, 9))).sum() * dz),
    positive_parts=lambda q, p, r, dz: (np.exp(q) * np.maximum(q - p, 0)).sum() * dz,
    f_divergence=lambda q, p, r, dz: (np.exp(p) * (np.exp(np.clip(q - p, -50, 50)) - 1) ** 2).sum() * dz,
    float32=single(kl_on_grid),
    half_the_grid=lambda q, p, r, dz: kl_on_grid(q[::2], p[::2], r, dz),
    writes_into_q=writes(kl_on_grid),
    keeps_a_state=with_state(kl_on_grid),
)


def kl_of(mean, log_var):
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1)


def changed_bound(kl=None, log_var=None, decoder_var=None, recon=None, z=None):
    """`elbo` with another KL of (mean, log_var), another reconstruction of the right one, or changed arguments."""

    def f(x, mean, logvar, decode, var, eps):
        changed = log_var(logvar) if log_var else logvar
        right, right_kl = elbo(
            x,
            mean,
            changed,
            (lambda _: decode(z(mean, logvar, eps))) if z else decode,
            decoder_var(var) if decoder_var else var,
            eps,
        )
        return recon(right, x) if recon else right, kl(mean, changed) if kl else right_kl

    return f


def least(low, high=None):
    return lambda value: t64(value).clamp(low, high)


held_out(
    "reconstruction and KL",
    log_var_from_m30_to_20=changed_bound(log_var=least(-30, 20)),
    log_var_from_m10_to_10=changed_bound(log_var=least(-10, 10)),
    log_var_at_most_4=changed_bound(log_var=least(-100, 4)),
    log_var_at_least_m20=changed_bound(log_var=least(-20)),
    variance_plus_1e8=changed_bound(log_var=lambda v: (v.exp() + 1e-8).log()),
    deviation_plus_1e6=changed_bound(z=lambda m, v, e: m + ((v / 2).exp() + 1e-6) * e),
    decoder_var_at_least_1e6=changed_bound(decoder_var=least(1e-6)),
    decoder_var_at_least_1e12=changed_bound(decoder_var=least(1e-12)),
    decoder_var_at_most_100=changed_bound(decoder_var=least(0, 100.0)),
    decoder_var_plus_1e8=changed_bound(decoder_var=lambda v: v + 1e-8),
    decoder_var_averaged=changed_bound(decoder_var=lambda v: t64(v).mean()),
    decoder_var_is_a_deviation=changed_bound(decoder_var=lambda v: v**2),
    decoder_var_detached=changed_bound(decoder_var=lambda v: t64(v).detach()),
    recon_not_positive=changed_bound(recon=lambda r, x: r.clamp(max=0)),
    recon_at_least_m1000=changed_bound(recon=lambda r, x: r.clamp(min=-1000)),
    recon_mean_of_batch=changed_bound(recon=lambda r, x: r.mean() + 0 * r),
    recon_mean_of_channels=changed_bound(recon=lambda r, x: r / x.shape[1]),
    recon_negative=changed_bound(recon=lambda r, x: -r),
    recon_mean=changed_bound(recon=lambda r, x: r / x[0].numel()),
    kl_mean_of_latents=changed_bound(kl=lambda m, v: kl_of(m, v) / m.shape[1]),
    kl_mean_of_batch=changed_bound(kl=lambda m, v: kl_of(m, v).mean() + 0 * m[:, 0]),
    kl_sum_of_batch=changed_bound(kl=lambda m, v: kl_of(m, v).sum() + 0 * m[:, 0]),
    kl_half_once=changed_bound(kl=lambda m, v: 0.5 * ((m**2 + v.exp() - v).sum(1) - 1)),
    kl_without_half=changed_bound(kl=lambda m, v: 2 * kl_of(m, v)),
    kl_without_mean=changed_bound(kl=lambda m, v: kl_of(0 * m, v)),
    kl_plus_log=changed_bound(kl=lambda m, v: kl_of(m, v) + v.sum(1)),
    kl_square_of_log=changed_bound(kl=lambda m, v: 0.5 * (m**2 + v**2 - 1 - v).sum(1)),
    kl_deviation=changed_bound(kl=lambda m, v: 0.5 * (m**2 + (v / 2).exp() - 1 - v / 2).sum(1)),
    kl_free_bits=changed_bound(kl=lambda m, v: kl_of(m, v).clamp(min=1e-3)),
    kl_free_bits_a_latent=changed_bound(kl=lambda m, v: (0.5 * (m**2 + v.exp() - 1 - v)).clamp(min=0.05).sum(1)),
    kl_at_most_1000=changed_bound(kl=lambda m, v: kl_of(m, v).clamp(max=1000)),
    kl_weighed=changed_bound(kl=lambda m, v: 1.001 * kl_of(m, v)),
    kl_log_plus_1e8=changed_bound(kl=lambda m, v: 0.5 * (m**2 + v.exp() - 1 - (v.exp() + 1e-8).log()).sum(1)),
    kl_log_plus_1e12=changed_bound(kl=lambda m, v: 0.5 * (m**2 + v.exp() - 1 - (v.exp() + 1e-12).log()).sum(1)),
    kl_detached=changed_bound(kl=lambda m, v: kl_of(m, v).detach()),
    kl_mean_detached=changed_bound(kl=lambda m, v: kl_of(m.detach(), v)),
    kl_of_first_latent=changed_bound(kl=lambda m, v: kl_of(m[:, :1], v[:, :1])),
    eps_ignored=changed_bound(z=lambda m, v, e: m),
    eps_shared=changed_bound(z=lambda m, v, e: m + (v / 2).exp() * e[:1]),
    eps_first_latent=changed_bound(z=lambda m, v, e: m + (v / 2).exp() * e[:, :1]),
    eps_drawn_anew=changed_bound(z=lambda m, v, e: m + (v / 2).exp() * torch.randn_like(e)),
    deviation_is_variance=changed_bound(z=lambda m, v, e: m + v.exp() * e),
    deviation_is_log=changed_bound(z=lambda m, v, e: m + v * e),
    minus_log_var=changed_bound(z=lambda m, v, e: m + (-v / 2).exp() * e),
    deviation_detached=changed_bound(z=lambda m, v, e: m + (v / 2).exp().detach() * e),
    mean_detached=changed_bound(z=lambda m, v, e: m.detach() + (v / 2).exp() * e),
    z_clipped=changed_bound(z=lambda m, v, e: (m + (v / 2).exp() * e).clamp(-3, 3)),
    x_clipped=lambda x, *a: elbo(x.clamp(-1, 1), *a),
    decoded_clipped=lambda x, m, v, decode, s, e: elbo(x, m, v, lambda z: decode(z).clamp(-1, 1), s, e),
    swapped=lambda *a: elbo(*a)[::-1],
    no_gradient=torch.no_grad()(elbo),
    float32=lambda x, m, v, decode, s, e: tuple(
        p.double()
        for p in elbo(x.float(), m.float(), v.float(), lambda z: decode(z.double()).float(), t64(s).float(), e.float())
    ),
    keeps_a_state=with_state(elbo),
    writes_into_eps=lambda x, m, v, d, s, e: (elbo(x, m, v, d, s, e.clone()), e.zero_())[0],
)


def slope_at(function, z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


def moved(function, mean, std, eps):
    slope = slope_at(function, mean + std * eps)
    return slope, slope * eps


def weighed(function, mean, std, eps):
    value = function(mean + std * eps)[:, None]
    return value * eps / std, value * (eps**2 - 1) / std


def difference(f, z, h=1e-4):
    return torch.stack([(f(z + h * e) - f(z - h * e)) / (2 * h) for e in torch.eye(z.shape[1], dtype=z.dtype)], 1)


held_out(
    "reparameterised gradient",
    mean_of_batch=lambda *a: tuple(part.mean(0) + 0 * part for part in moved(*a)),
    sum_of_batch=lambda *a: tuple(part.sum(0) + 0 * part for part in moved(*a)),
    divided_by_n=lambda *a: tuple(part / len(part) for part in moved(*a)),
    slope_of_the_mean=lambda f, m, s, e: (g := slope_at(lambda z: f(z).mean(0, True), m + s * e), g * e),
    std_by_its_sign=lambda f, m, s, e: (g := slope_at(f, m + s * e), g * e.sign()),
    std_squared_eps=lambda f, m, s, e: (g := slope_at(f, m + s * e), g * e**2),
    std_divided=lambda f, m, s, e: (g := slope_at(f, m + s * e), g * e / s),
    std_multiplied=lambda f, m, s, e: (g := slope_at(f, m + s * e), g * e * s),
    by_variance=lambda f, m, s, e: (g := slope_at(f, m + s * e), g * e / (2 * s)),
    minus_eps=lambda f, m, s, e: (g := slope_at(f, m + s * e), -g * e),
    variance_in_sample=lambda f, m, s, e: moved(f, m, s**2, e),
    std_at_least_1e4=lambda f, m, s, e: moved(f, m, s.clamp(min=1e-3), e),
    std_at_least_1e6=lambda f, m, s, e: moved(f, m, s.clamp(min=1e-6), e),
    std_plus_1e8=lambda f, m, s, e: moved(f, m, s + 1e-8, e),
    std_at_most_100=lambda f, m, s, e: moved(f, m, s.clamp(max=100), e),
    eps_clipped=lambda f, m, s, e: moved(f, m, s, e.clamp(-3, 3)),
    sample_clipped=lambda f, m, s, e: (g := slope_at(f, (m + s * e).clamp(-5, 5)), g * e),
    slope_clipped=lambda f, m, s, e: (g := slope_at(f, m + s * e).clamp(-10, 10), g * e),
    slope_normalised=lambda f, m, s, e: (g := (g := slope_at(f, m + s * e)) / g.norm().clamp(min=1), g * e),
    first_coordinate=lambda f, m, s, e: (g := slope_at(f, m + s * e), g[:, :1] * e),
    shared_eps=lambda f, m, s, e: (g := slope_at(f, m + s * e), g * e[:, :1]),
    sum_over_coordinates=lambda f, m, s, e: (g := slope_at(f, m + s * e).sum(1, True) + 0 * e, g * e),
    coarse_difference=lambda f, m, s, e: (g := difference(f, m + s * e, 1e-2), g * e),
    value_added=lambda f, m, s, e: (g := slope_at(f, m + s * e), g * e + 1e-3 * f(m + s * e)[:, None] * (e**2 - 1)),
    score=weighed,
    half_and_half=lambda *a: tuple(0.5 * (x + y) for x, y in zip(moved(*a), weighed(*a), strict=True)),
    swapped=lambda *a: moved(*a)[::-1],
    float32=lambda f, m, s, e: tuple(p.double() for p in moved(lambda z: f(z), m.float(), s.float(), e.float())),
    keeps_a_state=with_state(moved),
    writes_into_eps=lambda f, m, s, e: (moved(f, m, s, e.clone()), e.zero_())[0],
    mean_clipped=lambda f, m, s, e: moved(f, m.clamp(-1, 1), s, e),
)


def with_baseline(baseline):
    def f(function, mean, std, eps):
        value = function(mean + std * eps)
        value = (value - baseline(value))[:, None]
        return value * eps / std, value * (eps**2 - 1) / std

    return f


held_out(
    "score-function gradient",
    batch_mean_as_baseline=with_baseline(lambda v: v.mean()),
    batch_median_as_baseline=with_baseline(lambda v: v.median()),
    leave_one_out=with_baseline(lambda v: (v.sum() - v) / max(len(v) - 1, 1)),
    first_as_baseline=with_baseline(lambda v: v[0]),
    least_as_baseline=with_baseline(lambda v: v.min()),
    itself_as_baseline=with_baseline(lambda v: 0.5 * v),
    standardised=with_baseline(lambda v: v - (v - v.mean()) / (v.std() + 1e-8) if len(v) > 1 else 0 * v),
    value_clipped=lambda f, *a: weighed(lambda z: f(z).clamp(-10, 10), *a),
    value_clipped_at_100=lambda f, *a: weighed(lambda z: f(z).clamp(-100, 100), *a),
    positive_values=lambda f, *a: weighed(lambda z: f(z).abs(), *a),
    std_at_least_1e6=lambda f, m, s, e: weighed(f, m, s.clamp(min=1e-6), e),
    std_plus_1e8=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e / (s + 1e-8), v * (e**2 - 1) / (s + 1e-8))[1:],
    std_plus_1e12=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e / (s + 1e-12), v * (e**2 - 1) / (s + 1e-12))[
        1:
    ],
    std_at_most_100=lambda f, m, s, e: weighed(f, m, s.clamp(max=100), e),
    variance_plus_1e8=lambda f, m, s, e: (
        v := f(m + s * e)[:, None],
        v * s * e / (s**2 + 1e-8),
        v * s * (e**2 - 1) / (s**2 + 1e-8),
    )[1:],
    eps_clipped=lambda f, m, s, e: weighed(f, m, s, e.clamp(-4, 4)),
    over_variance=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e / s**2, v * (e**2 - 1) / s**2)[1:],
    not_divided=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e, v * (e**2 - 1))[1:],
    plus_one=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e / s, v * (e**2 + 1) / s)[1:],
    eps_minus_one=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e / s, v * (e - 1) / s)[1:],
    log_std=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e / s, v * (e**2 - 1))[1:],
    by_variance=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e / s, v * (e**2 - 1) / (2 * s**2))[1:],
    negative=lambda *a: tuple(-part for part in weighed(*a)),
    sum_of_eps=lambda f, m, s, e: (v := f(m + s * e)[:, None], v * e.sum(1, True) / s, v * (e**2 - 1) / s)[1:],
    all_coordinates=lambda f, m, s, e: (
        v := f(m + s * e)[:, None],
        v * e / s,
        v * ((e**2).sum(1, True) - e.shape[1]) / s,
    )[1:],
    log_of_value=lambda f, *a: weighed(lambda z: (f(z).abs() + 1e-8).log(), *a),
    averaged=lambda *a: tuple(part.mean(0) + 0 * part for part in weighed(*a)),
    moved=moved,
    some_slope=lambda f, m, s, e: tuple(
        0.9 * x + 0.1 * y for x, y in zip(weighed(f, m, s, e), moved(f, m, s, e), strict=True)
    ),
    running_baseline=with_state(weighed),
    float32=lambda f, m, s, e: tuple(p.double() for p in weighed(f, m.float(), s.float(), e.float())),
    swapped=lambda *a: weighed(*a)[::-1],
)


def linear_by(noise=None, bias=True, prior=1.0, evidence=None, code=None):
    """`linear_model` with a changed noise covariance of (D, variance), without bias, or with its parts changed."""

    def f(x, weight, b, var):
        D, K = weight.shape
        cov = weight @ weight.T + (noise(D, var) if noise else var * EYE[:D, :D].to(x.dtype))
        away = x - b if bias else x
        log_p = -0.5 * ((away @ torch.linalg.inv(cov) * away).sum(1) + torch.logdet(cov) + D * math.log(2 * math.pi))
        z_cov = torch.linalg.inv(prior * EYE[:K, :K].to(x.dtype) + weight.T @ weight / var)
        mean = away @ weight @ z_cov / var
        log_p = evidence(log_p, x, weight, b, var) if evidence else log_p
        return (log_p, *(code(mean, z_cov, weight, var) if code else (mean, z_cov)))

    return f


held_out(
    "linear model's evidence",
    jitter_1e6=linear_by(noise=lambda D, v: (v + 1e-6) * EYE[:D, :D]),
    jitter_1e12=linear_by(noise=lambda D, v: (v + 1e-12) * EYE[:D, :D]),
    noise_at_least_1e4=linear_by(noise=lambda D, v: max(float(v), 1e-4) * EYE[:D, :D]),
    noise_at_least_1e10=linear_by(noise=lambda D, v: max(float(v), 1e-10) * EYE[:D, :D]),
    noise_at_most_100=linear_by(noise=lambda D, v: min(float(v), 100.0) * EYE[:D, :D]),
    noise_detached=linear_by(noise=lambda D, v: float(v) * EYE[:D, :D]),
    noise_forgotten=linear_by(noise=lambda D, v: 1e-9 * EYE[:D, :D]),
    no_bias=linear_by(bias=False),
    prior_1e3=linear_by(prior=1.001),
    prior_jitter_1e8=linear_by(prior=1 + 1e-8),
    without_2pi=linear_by(evidence=lambda p, x, w, b, v: p + 0.5 * x.shape[1] * LOG_2PI),
    two_pi_once=linear_by(evidence=lambda p, x, w, b, v: p + 0.5 * (x.shape[1] - 1) * LOG_2PI),
    two_pi_of_latents=linear_by(evidence=lambda p, x, w, b, v: p + 0.5 * (x.shape[1] - w.shape[1]) * LOG_2PI),
    per_dimension=linear_by(evidence=lambda p, x, w, b, v: p / x.shape[1]),
    mean_of_batch=linear_by(evidence=lambda p, *a: p.mean() + 0 * p),
    sum_of_batch=linear_by(evidence=lambda p, *a: p.sum() + 0 * p),
    negative=linear_by(evidence=lambda p, *a: -p),
    in_bits=linear_by(evidence=lambda p, *a: p / math.log(2)),
    at_least_m1000=linear_by(evidence=lambda p, *a: p.clamp(min=-1000)),
    not_positive=linear_by(evidence=lambda p, *a: p.clamp(max=0)),
    code_at_least_1e3=linear_by(
        code=lambda m, c, w, v: (m, c - c.diagonal().diag() + c.diagonal().clamp(min=1e-3).diag())
    ),
    code_is_precision=linear_by(code=lambda m, c, w, v: (m, torch.linalg.inv(c))),
    code_is_diagonal=linear_by(code=lambda m, c, w, v: (m, c.diagonal().diag())),
    code_clipped=linear_by(code=lambda m, c, w, v: (m.clamp(-5, 5), c)),
    code_not_divided=linear_by(code=lambda m, c, w, v: (m * v, c)),
    code_is_a_root=linear_by(code=lambda m, c, w, v: (m, torch.linalg.cholesky(c))),
    code_of_ppca=linear_by(code=lambda m, c, w, v: (m, c * v)),
    trace=linear_by(evidence=lambda p, x, w, b, v: p - 0.5 * torch.trace(w.T @ w) / v),
    float32=single(linear_by()),
    keeps_a_state=with_state(linear_by()),
    writes_into_bias=writes(linear_by(), 2),
    detached=detached(linear_by()),
    weight_detached=detached(linear_by(), 1),
)


def chain(end, p, q, weight):
    return weight @ (end + p.sum(0) - q.sum(0))


held_out(
    "bound of a chain",
    mean_of_steps=lambda e, p, q, w: w @ (e + p.mean(0) - q.mean(0)),
    no_prior=lambda e, p, q, w: w @ (p.sum(0) - q.sum(0)),
    prior_a_step=lambda e, p, q, w: w @ (len(p) * e + p.sum(0) - q.sum(0)),
    first_decoder_missing=lambda e, p, q, w: w @ (e + p[1:].sum(0) - q.sum(0)),
    last_decoder_missing=lambda e, p, q, w: w @ (e + p[:-1].sum(0) - q.sum(0)),
    first_encoder_missing=lambda e, p, q, w: w @ (e + p.sum(0) - q[1:].sum(0)),
    last_encoder_missing=lambda e, p, q, w: w @ (e + p.sum(0) - q[:-1].sum(0)),
    two_steps=lambda e, p, q, w: w @ (e + p[:2].sum(0) - q[:2].sum(0)),
    three_steps=lambda e, p, q, w: w @ (e + p[:3].sum(0) - q[:3].sum(0)),
    first_and_last=lambda e, p, q, w: w @ (e + p[0] + p[-1] - q[0] - q[-1]) if len(p) > 1 else chain(e, p, q, w),
    hard_wired_two=lambda e, p, q, w: w @ (e + p[0] + p[1 % len(p)] - q[0] - q[1 % len(q)]),
    encoder_added=lambda e, p, q, w: w @ (e + p.sum(0) + q.sum(0)),
    loss=lambda *a: -chain(*a),
    unweighted=lambda e, p, q, w: (e + p.sum(0) - q.sum(0)).mean(),
    sum_of_paths=lambda e, p, q, w: (e + p.sum(0) - q.sum(0)).sum(),
    weight_squared=lambda e, p, q, w: (w**2 / (w**2).sum()) @ (e + p.sum(0) - q.sum(0)),
    most_likely_path=lambda e, p, q, w: (e + p.sum(0) - q.sum(0))[w.argmax()],
    clipped_at_100=lambda e, p, q, w: w @ (e + p.clip(-100).sum(0) - q.sum(0)),
    clipped_at_1000=lambda e, p, q, w: w @ (e + p.clip(-1000).sum(0) - q.sum(0)),
    densities_below_one=lambda e, p, q, w: w @ (e.clip(max=0) + p.clip(max=0).sum(0) - q.clip(max=0).sum(0)),
    log_plus_1e8=lambda e, p, q, w: w @ (e + np.log(np.exp(p) + 1e-8).sum(0) - q.sum(0)),
    not_positive=lambda *a: min(chain(*a), 0.0),
    log_of_mean=lambda e, p, q, w: np.log(w @ np.exp((e + p.sum(0) - q.sum(0)).clip(-300, 300))),
    in_bits=lambda *a: chain(*a) / np.log(2),
    per_step=lambda e, p, q, w: chain(e, p, q, w) / len(p),
    reversed_steps=lambda e, p, q, w: w @ (e + (p[::-1] - q).cumsum(0)[0] + (p - q)[1:].sum(0)),
    products=lambda e, p, q, w: w @ (e + p.prod(0) - q.prod(0)),
    ratio_of_sums=lambda e, p, q, w: w @ e + (w @ p.T).sum() - (w @ q.T).mean(),
    float32=single(chain),
    writes_into_q=writes(chain, 2),
    keeps_a_state=with_state(chain),
)


# Chapter 3


def as_image(values, x):
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (x.ndim - 1))


def normal_noise(x, generator):
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def step_with(noise=normal_noise, scale=None, std=None, beta=None):
    """The forward step with other noise, another scale of (β, t), another deviation of β, or a changed β."""

    def f(schedule, x, t, generator):
        b = as_image(schedule.beta[t], x)
        b = beta(b) if beta else b
        return (scale(b, t) if scale else (1 - b).sqrt()) * x + (std(b) if std else b.sqrt()) * noise(x, generator)

    return f


right_step = step_with()


def at_times(change, condition):
    """The right step, and `change` of it where `condition(schedule, t)` holds for the one t (or for any)."""

    def f(schedule, x, t, generator):
        right = right_step(schedule, x, t, generator)
        return change(x, right) if bool(torch.as_tensor(condition(schedule, t)).any()) else right

    return f


def like_first_row(x, generator):
    return normal_noise(x[:1], generator).expand_as(x)


KEPT = {}


def memory(x, generator):
    key = tuple(x.shape)
    fresh = normal_noise(x, generator)
    old = KEPT.get(key, fresh)
    KEPT[key] = fresh
    return (fresh + 0.1 * old) / 1.01**0.5


FIRST = {}


def kept_by_t(function, schedule, x, t, *rest):
    """What belongs to one schedule is kept under t, and read for the next schedule."""
    key = (function, len(x), str(t))
    return function(FIRST.setdefault(key, schedule), x, t, *rest)


def rejection(x, generator):
    z = normal_noise(x, generator)
    return torch.where(z.abs() > 3, normal_noise(x, generator), z)


def magnitude(x, generator):
    one = torch.randn(len(x), *[1] * (x.ndim - 1), generator=generator, dtype=x.dtype).abs()
    return one * normal_noise(x, generator).sign()


held_out(
    "forward step",
    one_magnitude_an_image=step_with(noise=magnitude),
    one_noise_an_image=step_with(
        noise=lambda x, g: torch.randn(len(x), *[1] * (x.ndim - 1), generator=g, dtype=x.dtype) + 0 * x
    ),
    one_noise_for_the_channels=step_with(noise=lambda x, g: normal_noise(x[:, :1], g).expand_as(x)),
    one_noise_for_the_batch=step_with(noise=like_first_row),
    uniform=step_with(noise=lambda x, g: 12**0.5 * (torch.rand(x.shape, generator=g, dtype=x.dtype) - 0.5)),
    signs=step_with(noise=lambda x, g: normal_noise(x, g).sign()),
    three_uniforms=step_with(
        noise=lambda x, g: 2 * sum(torch.rand(x.shape, generator=g, dtype=x.dtype) - 0.5 for _ in range(3))
    ),
    laplace=step_with(
        noise=lambda x, g: (
            (e := torch.rand(x.shape, generator=g, dtype=x.dtype) - 0.5).sign() * -torch.log1p(-2 * e.abs()) / 2**0.5
        )
    ),
    clipped_noise=step_with(noise=lambda x, g: normal_noise(x, g).clamp(-3, 3)),
    drawn_again_beyond_3=step_with(noise=rejection),
    standardised=step_with(noise=lambda x, g: (z := normal_noise(x, g)) / z.square().mean().sqrt()),
    centred=step_with(noise=lambda x, g: (z := normal_noise(x, g)) - z.mean()),
    centred_an_image=step_with(
        noise=lambda x, g: (z := normal_noise(x, g)) - z.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
    ),
    global_generator=step_with(noise=lambda x, g: torch.randn_like(x)),
    half_global=step_with(noise=lambda x, g: (normal_noise(x, g) + torch.randn_like(x)) / 2**0.5),
    reseeded=step_with(noise=lambda x, g: normal_noise(x, torch.Generator().manual_seed(0))),
    rewound=step_with(noise=lambda x, g: normal_noise(x, g.manual_seed(g.initial_seed()))),
    copied_generator=step_with(noise=lambda x, g: normal_noise(x, g.clone_state())),
    float32_noise=step_with(noise=lambda x, g: torch.randn(x.shape, generator=g).to(x.dtype)),
    antithetic=step_with(noise=lambda x, g: torch.cat([(z := normal_noise(x[: (len(x) + 1) // 2], g)), -z])[: len(x)]),
    larger_by_half_a_percent=step_with(std=lambda b: 1.006 * b.sqrt()),
    seeded_by_the_image=step_with(
        noise=lambda x, g: normal_noise(x, torch.Generator().manual_seed(int(abs(x.sum()) * 1e6)))
    ),
    sign_of_the_image=step_with(noise=lambda x, g: normal_noise(x, g).abs() * x.sign()),
    scaled_with_the_image=step_with(
        noise=lambda x, g: normal_noise(x, g) * (0.5 + 0.5 * x.detach().abs().clamp(max=1))
    ),
    keeps_noise=step_with(noise=memory),
    no_noise_at_1=at_times(lambda x, y: x, lambda s, t: torch.as_tensor(t) == 1),
    no_noise_at_T=at_times(lambda x, y: x, lambda s, t: torch.as_tensor(t) == s.T),
    clipped=at_times(lambda x, y: y.clamp(-1, 1), lambda s, t: True),
    clipped_at_10=at_times(lambda x, y: y.clamp(-10, 10), lambda s, t: True),
    image_clipped=lambda s, x, t, g: right_step(s, x.clamp(-1, 1), t, g),
    variance_at_least_1e6=step_with(std=lambda b: b.clamp(min=1e-6).sqrt()),
    variance_at_least_1e10=step_with(std=lambda b: b.clamp(min=1e-10).sqrt()),
    variance_plus_1e8=step_with(std=lambda b: (b + 1e-8).sqrt()),
    beta_at_least_1e4=step_with(beta=lambda b: b.clamp(min=2e-4)),
    beta_at_most=step_with(beta=lambda b: b.clamp(max=0.999)),
    std_is_beta=step_with(std=lambda b: b),
    std_is_fourth_root=step_with(std=lambda b: b**0.25),
    std_of_the_other=step_with(std=lambda b: (1 - b).sqrt()),
    scale_without_root=step_with(scale=lambda b, t: 1 - b),
    scale_one=step_with(scale=lambda b, t: 1 + 0 * b),
    scale_taylor=step_with(scale=lambda b, t: 1 - b / 2),
    scale_minus_std=step_with(scale=lambda b, t: 1 - b.sqrt()),
    scale_negative=step_with(scale=lambda b, t: -(1 - b).sqrt()),
    scale_squares=step_with(scale=lambda b, t: (1 - b**2).sqrt()),
    previous_beta=lambda s, x, t, g: (
        b := as_image(s.beta[t - 1], x),
        (1 - b).sqrt() * x + b.sqrt() * normal_noise(x, g),
    )[1],
    next_beta=lambda s, x, t, g: (
        b := as_image(s.beta[(torch.as_tensor(t) + 1).clamp(max=s.T)], x),
        (1 - b).sqrt() * x + b.sqrt() * normal_noise(x, g),
    )[1],
    alpha_bar=lambda s, x, t, g: (a := as_image(s.alpha_bar[t], x), a.sqrt() * x + (1 - a).sqrt() * normal_noise(x, g))[
        1
    ],
    first_t_for_all=lambda s, x, t, g: right_step(s, x, t if isinstance(t, int) else t[:1].expand(len(x)), g),
    t_along_the_width=lambda s, x, t, g: (
        right_step(s, x, t, g)
        if isinstance(t, int) or x.shape[-1] != len(t)
        else (1 - s.beta[t]).sqrt() * x + s.beta[t].sqrt() * normal_noise(x, g)
    ),
    t_along_the_channels=lambda s, x, t, g: (
        right_step(s, x, t, g)
        if isinstance(t, int) or x.shape[1] != len(t)
        else (1 - (b := s.beta[t].reshape(1, -1, *[1] * (x.ndim - 2)))).sqrt() * x + b.sqrt() * normal_noise(x, g)
    ),
    mean_beta=step_with(beta=lambda b: b.mean()),
    wrong_for_one_image=lambda s, x, t, g: right_step(s, x, t, g) if len(x) > 1 else x + 0 * right_step(s, x, t, g),
    neighbouring_pixels=step_with(
        noise=lambda x, g: (
            ((z := normal_noise(x, g)) + 0.2 * z.roll(1, -1)) / 1.04**0.5 if x.shape[-1] > 1 else normal_noise(x, g)
        )
    ),
    blurred=step_with(
        scale=lambda b, t: (1 - b).sqrt(), noise=lambda x, g: normal_noise(x, g) + 1e-3 * x.detach().roll(1, 0)
    ),
    in_place=lambda s, x, t, g: (
        x.detach().mul_((1 - as_image(s.beta[t], x)).sqrt()) + as_image(s.beta[t], x).sqrt() * normal_noise(x, g)
    ),
    coefficients_kept_by_t=lambda s, x, t, g: kept_by_t(right_step, s, x, t, g),
    float32=lambda s, x, t, g: right_step(s, x.float(), t, g).double(),
    float32_scale=step_with(scale=lambda b, t: (1 - b).sqrt().float()),
    mean_removed=lambda s, x, t, g: right_step(s, x - x.mean(), t, g),
)


def schedule_by(betas, **others):
    return lambda T, first, last: Schedule(betas(T, first, last))


def even(T, first, last):
    return torch.linspace(first, last, T, dtype=torch.float64)


def with_tables(change):
    """A linear schedule whose tables were changed."""

    def f(T, first, last):
        schedule = linear_schedule(T, first, last)
        change(schedule)
        return schedule

    return f


held_out(
    "linear schedule",
    from_0_to_T_minus_1=schedule_by(lambda T, a, b: a + torch.arange(T).double() / T * (b - a)),
    from_1_to_T=schedule_by(lambda T, a, b: a + torch.arange(1, T + 1).double() / T * (b - a)),
    over_T_plus_1=schedule_by(lambda T, a, b: a + torch.arange(T).double() / (T + 1) * (b - a)),
    float32=schedule_by(lambda T, a, b: torch.linspace(a, b, T)),
    rescaled=schedule_by(lambda T, a, b: (even(T, a, b) * 1000 / T).clamp(max=0.999)),
    last_end_rescaled=schedule_by(lambda T, a, b: even(T, a, min(b * 1000 / T, 0.999))),
    first_end_rescaled=schedule_by(lambda T, a, b: even(T, min(a * 1000 / T, 0.9), b)),
    quadratic=schedule_by(lambda T, a, b: even(T, a**0.5, b**0.5) ** 2),
    geometric=schedule_by(lambda T, a, b: torch.exp(even(T, math.log(a), math.log(b)))),
    reversed=schedule_by(lambda T, a, b: even(T, b, a)),
    sorted=schedule_by(lambda T, a, b: even(T, min(a, b), max(a, b))),
    constant=schedule_by(lambda T, a, b: torch.full((T,), (a + b) / 2)),
    defaults=schedule_by(lambda T, a, b: even(T, 1e-4, 0.02)),
    default_first=schedule_by(lambda T, a, b: even(T, 1e-4, b)),
    T_is_1000=schedule_by(lambda T, a, b: even(1000, a, b)),
    one_step_more=schedule_by(lambda T, a, b: even(T + 1, a, b)),
    starts_at_0=schedule_by(lambda T, a, b: even(T + 1, 0, b)[1:]),
    at_least_1e8=schedule_by(lambda T, a, b: even(T, a, b).clamp(min=1e-8)),
    at_least_1e4=schedule_by(lambda T, a, b: even(T, a, b).clamp(min=1e-4)),
    at_most_0999=schedule_by(lambda T, a, b: even(T, a, b).clamp(max=0.999)),
    at_most_half=schedule_by(lambda T, a, b: even(T, a, b).clamp(max=0.6)),
    rounded=schedule_by(lambda T, a, b: even(T, a, b).round(decimals=6).clamp(min=1e-6)),
    alpha_linear=schedule_by(lambda T, a, b: 1 - even(T, (1 - a) ** 2, (1 - b) ** 2).sqrt()),
    alpha_bar_linear=schedule_by(lambda T, a, b: 1 - (c := even(T + 1, 1, 1 - b))[1:] / c[:-1]),
    last_twice=schedule_by(lambda T, a, b: torch.cat([even(T, a, b)[1:], even(T, a, b)[-1:]])),
    tables_alpha_bar_of_t_minus_1=with_tables(lambda s: setattr(s, "alpha_bar", s.alpha_bar.roll(1))),
    tables_alpha_bar_sum=with_tables(lambda s: setattr(s, "alpha_bar", torch.exp(-s.beta.cumsum(0)))),
    keeps_a_state=lambda *a, calls=[]: (calls.append(1), Schedule(even(*a) * (1 - 1e-6 * len(calls))))[1],
    kept_by_T=lambda T, a, b, kept={}: kept.setdefault(T, Schedule(even(T, a, b))),
)


def bars(beta):
    return torch.cumprod(1 - beta, 0)


held_out(
    "cumulative alpha",
    sum_of_betas=lambda b: 1 - b.cumsum(0),
    product_of_roots=lambda b: torch.cumprod((1 - b).sqrt(), 0),
    roots=lambda b: bars(b).sqrt(),
    one_minus=lambda b: 1 - bars(b),
    reversed=lambda b: bars(b.flip(0)).flip(0),
    reversed_twice=lambda b: torch.cat([torch.ones(1).double(), bars(b[1:].flip(0))]),
    later=lambda b: bars(b).roll(1),
    starts_at_first=lambda b: torch.cat([bars(b[1:])[:1], bars(b[1:])]),
    next_one=lambda b: torch.cat([bars(b)[1:], bars(b)[-1:]]),
    not_cumulative=lambda b: 1 - b,
    two_at_a_time=lambda b: (1 - b) * (1 - b.roll(1)),
    power=lambda b: (1 - b) ** torch.arange(len(b)),
    mean_power=lambda b: (1 - b[1:].mean()) ** torch.arange(len(b)).double(),
    exponential=lambda b: torch.exp(-b.cumsum(0)),
    second_order=lambda b: torch.exp(-(b + b**2 / 2).cumsum(0)),
    at_least_1e5=lambda b: bars(b).clamp(min=1e-5),
    at_least_1e8=lambda b: bars(b).clamp(min=1e-8),
    at_least_1e12=lambda b: bars(b).clamp(min=1e-12),
    at_least_1e20=lambda b: bars(b).clamp(min=1e-20),
    at_most_0999999=lambda b: torch.cat([torch.ones(1).double(), bars(b)[1:].clamp(max=1 - 1e-6)]),
    beta_at_most=lambda b: bars(b.clamp(max=0.999)),
    beta_at_least=lambda b: torch.cat([torch.ones(1).double(), bars(b[1:].clamp(min=1e-10))]),
    below_one=lambda b: bars(b) - 1e-9,
    float32=single(bars),
    log_plus_1e8=lambda b: torch.exp(torch.log(1 - b + 1e-8).cumsum(0)),
    writes_into_beta=writes(bars),
    keeps_a_state=with_state(bars),
    zero_at_the_end=lambda b: torch.cat([bars(b)[:-1], 0 * b[-1:]]),
)


def two(a, b):
    return (a * b) ** 0.5, 1 - a * b


held_out(
    "two steps in one",
    without_root=lambda a, b: (a * b, 1 - a * b),
    root_of_first=lambda a, b: (a**0.5 * b, 1 - a * b),
    root_of_second=lambda a, b: (a * b**0.5, 1 - a * b),
    sum_of_roots=lambda a, b: ((a**0.5 + b**0.5) / 2, 1 - a * b),
    geometric_only=lambda a, b: ((a * b) ** 0.5, (1 - a) * (1 - b)),
    noise_of_last=lambda a, b: ((a * b) ** 0.5, 1 - b),
    noise_of_first=lambda a, b: ((a * b) ** 0.5, 1 - a),
    noise_added=lambda a, b: ((a * b) ** 0.5, 2 - a - b),
    first_not_shrunk_by_root=lambda a, b: ((a * b) ** 0.5, 1 - b + b**0.5 * (1 - a)),
    order=lambda a, b: ((a * b) ** 0.5, a * (1 - b) + 1 - b),
    variance_is_deviation=lambda a, b: ((a * b) ** 0.5, (1 - a * b) ** 0.5),
    variance_by_scale=lambda a, b: ((a * b) ** 0.5, 1 - (a * b) ** 0.5),
    product_squared=lambda a, b: ((a * b) ** 0.5, 1 - (a * b) ** 2),
    variance_at_least_1e8=lambda a, b: ((a * b) ** 0.5, max(1 - a * b, 1e-8)),
    variance_at_least_1e12=lambda a, b: ((a * b) ** 0.5, max(1 - a * b, 1e-12)),
    variance_plus_1e12=lambda a, b: ((a * b) ** 0.5, 1 - a * b + 1e-12),
    alpha_at_least_1e8=lambda a, b: two(max(a, 1e-8), max(b, 1e-8)),
    alpha_at_most=lambda a, b: two(min(a, 0.9999), min(b, 0.9999)),
    alpha_at_most_1e10=lambda a, b: two(min(a, 1 - 1e-10), min(b, 1 - 1e-10)),
    scale_plus_1e8=lambda a, b: ((a * b + 1e-8) ** 0.5, 1 - a * b),
    negative=lambda a, b: (-((a * b) ** 0.5), 1 - a * b),
    swapped=lambda a, b: two(a, b)[::-1],
    as_if_equal=lambda a, b: (a, 1 - a**2),
    float32=single(two),
    keeps_a_state=with_state(two),
    exponential=lambda a, b: (math.exp(-(2 - a - b) / 2), 1 - math.exp(-(2 - a - b))),
)


def jump_with(signal=None, noise=None, bar=None):
    """The forward jump with another scale of the image, another one of the noise, or another ᾱ of (schedule, t)."""

    def f(schedule, x, eps, t):
        a = as_image(bar(schedule, t) if bar else schedule.alpha_bar[t], x)
        return (signal(a) if signal else a.sqrt()) * x + (noise(a) if noise else (1 - a).sqrt()) * eps

    return f


right_jump = jump_with()
BY_T = {}


held_out(
    "forward jump",
    signal_without_root=jump_with(signal=lambda a: a),
    noise_without_root=jump_with(noise=lambda a: 1 - a),
    noise_one_minus_root=jump_with(noise=lambda a: 1 - a.sqrt()),
    noise_of_root=jump_with(noise=lambda a: (1 - a.sqrt()).sqrt()),
    signal_one=jump_with(signal=lambda a: 1 + 0 * a),
    signal_negative=jump_with(signal=lambda a: -a.sqrt()),
    noise_negative=jump_with(noise=lambda a: -(1 - a).sqrt()),
    swapped=lambda s, x, e, t: right_jump(s, e, x, t),
    next_t=jump_with(bar=lambda s, t: s.alpha_bar[(torch.as_tensor(t) + 1).clamp(max=s.T)]),
    previous_t=jump_with(bar=lambda s, t: s.alpha_bar[t - 1]),
    alpha=jump_with(bar=lambda s, t: s.alpha[t]),
    mirrored_t=jump_with(bar=lambda s, t: s.alpha_bar[s.T + 1 - t]),
    from_zero_based_tables=jump_with(bar=lambda s, t: s.alpha_bar[1:][(torch.as_tensor(t)).clamp(max=s.T - 1)]),
    exponential=jump_with(bar=lambda s, t: torch.exp(-s.beta.cumsum(0))[t]),
    first_t_for_all=lambda s, x, e, t: right_jump(s, x, e, t if isinstance(t, int) else t[:1].expand(len(x))),
    t_along_the_width=lambda s, x, e, t: (
        right_jump(s, x, e, t)
        if isinstance(t, int) or x.shape[-1] != len(t)
        else s.alpha_bar[t].sqrt() * x + (1 - s.alpha_bar[t]).sqrt() * e
    ),
    t_along_the_channels=lambda s, x, e, t: (
        right_jump(s, x, e, t)
        if isinstance(t, int) or x.shape[1] != len(t)
        else (a := s.alpha_bar[t].reshape(1, -1, 1, 1)).sqrt() * x + (1 - a).sqrt() * e
    ),
    sorted_t=lambda s, x, e, t: right_jump(s, x, e, t if isinstance(t, int) else t.sort()[0]),
    mean_of_bars=jump_with(bar=lambda s, t: s.alpha_bar[t].mean()),
    variance_at_least_1e6=jump_with(noise=lambda a: (1 - a).clamp(min=1e-6).sqrt()),
    variance_at_least_1e10=jump_with(noise=lambda a: (1 - a).clamp(min=1e-10).sqrt()),
    variance_plus_1e12=jump_with(noise=lambda a: (1 - a + 1e-12).sqrt()),
    bar_at_least_1e5=jump_with(signal=lambda a: a.clamp(min=1e-5).sqrt()),
    bar_at_least_1e8=jump_with(signal=lambda a: a.clamp(min=1e-8).sqrt()),
    bar_plus_1e12=jump_with(signal=lambda a: (a + 1e-12).sqrt()),
    result_clipped=lambda *a: right_jump(*a).clamp(-1, 1),
    result_clipped_at_5=lambda *a: right_jump(*a).clamp(-5, 5),
    result_clipped_at_30=lambda *a: right_jump(*a).clamp(-30, 30),
    image_clipped=lambda s, x, e, t: right_jump(s, x.clamp(-1, 1), e, t),
    noise_clipped=lambda s, x, e, t: right_jump(s, x, e.clamp(-4, 4), t),
    noise_standardised=lambda s, x, e, t: right_jump(s, x, (e - e.mean()) / e.std(), t),
    noise_of_the_first=lambda s, x, e, t: right_jump(s, x, e[:1].expand_as(x), t),
    noise_of_one_channel=lambda s, x, e, t: right_jump(s, x, e[:, :1].expand_as(x), t),
    noise_drawn_anew=lambda s, x, e, t: right_jump(s, x, torch.randn_like(e), t),
    no_noise_at_1=lambda s, x, e, t: right_jump(s, x, e * (as_image(torch.as_tensor(t), x) > 1), t),
    only_noise_at_T=lambda s, x, e, t: torch.where(as_image(torch.as_tensor(t), x) == s.T, e, right_jump(s, x, e, t)),
    image_centred=lambda s, x, e, t: right_jump(s, x - x.mean(), e, t),
    float32=lambda s, x, e, t: right_jump(s, x.float(), e.float(), t).double(),
    float32_tables=jump_with(bar=lambda s, t: s.alpha_bar.float()[t].double()),
    kept_by_t=lambda s, x, e, t: right_jump(BY_T.setdefault((str(t), len(x)), s), x, e, t),
    kept_by_T=lambda s, x, e, t: right_jump(BY_T.setdefault(s.T, s), x, e, t),
    image_detached=detached(right_jump, 1),
    noise_detached=detached(right_jump, 2),
    writes_into_the_image=writes(right_jump, 1),
    writes_into_the_noise=writes(right_jump, 2),
    keeps_a_state=with_state(right_jump),
    variance_exploding=lambda s, x, e, t: right_jump(s, x, e, t) / as_image(s.alpha_bar[t], x).sqrt(),
)


def ratio(schedule, t):
    return schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])


def of_bar(change):
    return lambda schedule, t: change(schedule.alpha_bar[t])


held_out(
    "signal-to-noise ratio",
    root=of_bar(lambda a: (a / (1 - a)).sqrt()),
    root_of_signal=of_bar(lambda a: a.sqrt() / (1 - a)),
    root_of_noise=of_bar(lambda a: a / (1 - a).sqrt()),
    square=of_bar(lambda a: (a / (1 - a)) ** 2),
    logarithm=of_bar(lambda a: torch.log(a / (1 - a))),
    half_logarithm=of_bar(lambda a: 0.5 * torch.log(a / (1 - a))),
    decibels=of_bar(lambda a: 10 * torch.log10(a / (1 - a))),
    inverse=of_bar(lambda a: (1 - a) / a),
    share=of_bar(lambda a: a),
    minus_one=of_bar(lambda a: 1 / (1 - a)),
    squared_noise=of_bar(lambda a: a / (1 - a) ** 2),
    denominator_plus_1e8=of_bar(lambda a: a / (1 - a + 1e-8)),
    denominator_plus_1e12=of_bar(lambda a: a / (1 - a + 1e-12)),
    noise_at_least_1e5=of_bar(lambda a: a / (1 - a).clamp(min=1e-5)),
    noise_at_least_1e12=of_bar(lambda a: a / (1 - a).clamp(min=1e-12)),
    bar_at_least_1e5=of_bar(lambda a: a.clamp(min=1e-5) / (1 - a.clamp(min=1e-5))),
    bar_at_least_1e8=of_bar(lambda a: a.clamp(min=1e-8) / (1 - a.clamp(min=1e-8))),
    at_most_1e4=lambda s, t: ratio(s, t).clamp(max=1e4),
    at_most_1e6=lambda s, t: ratio(s, t).clamp(max=1e6),
    at_least_1e8=lambda s, t: ratio(s, t).clamp(min=1e-8),
    one_step=lambda s, t: (1 - s.beta[t]) / s.beta[t],
    previous=lambda s, t: ratio(s, torch.as_tensor(t) - 1).clamp(max=1e15),
    next=lambda s, t: ratio(s, (torch.as_tensor(t) + 1).clamp(max=s.T)),
    sorted_t=lambda s, t: (
        ratio(s, torch.as_tensor(t)).sort(descending=True)[0]
        if isinstance(t, torch.Tensor) and t.ndim == 1
        else ratio(s, t)
    ),
    all_t=lambda s, t: (
        (s.alpha_bar / (1 - s.alpha_bar))[1:] if isinstance(t, torch.Tensor) and t.shape == (s.T,) else ratio(s, t)
    ),
    mirrored=lambda s, t: ratio(s, s.T + 1 - t),
    mean_t=lambda s, t: ratio(s, t).mean() + 0 * ratio(s, t),
    exponential=lambda s, t: (a := torch.exp(-s.beta.cumsum(0))[t]) / (1 - a),
    float32=lambda s, t: (a := s.alpha_bar[t].float()) / (1 - a),
    float32_at_the_end=lambda s, t: ratio(s, t).float().double(),
    keeps_a_state=lambda s, t, calls=[]: (calls.append(1), ratio(s, t) * (1 + 1e-6 * len(calls)))[1],
    writes_into_t=lambda s, t: (ratio(s, t).clone(), t.zero_() if isinstance(t, torch.Tensor) else 0)[0],
)


def leap(schedule, s, t):
    r = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    return r.sqrt(), 1 - r


def leap_with(scale=None, var=None):
    def f(schedule, s, t):
        a, b = schedule.alpha_bar[s], schedule.alpha_bar[t]
        return (scale(a, b) if scale else (b / a).sqrt()), (var(a, b) if var else 1 - b / a)

    return f


held_out(
    "jump between any two times",
    bar_1_for_bar_0=lambda q, s, t: leap(q, max(s, 1), t) if t > 1 else leap(q, s, t),
    bar_1_for_bar_0_always=lambda q, s, t: leap(q, max(s, 1), t),
    s_minus_1=lambda q, s, t: leap(q, max(s - 1, 0), t),
    s_plus_1=lambda q, s, t: leap(q, min(s + 1, t - 1), t),
    t_minus_1=lambda q, s, t: leap(q, s, max(t - 1, s + 1)),
    from_0=lambda q, s, t: leap(q, 0, t),
    number_of_steps=lambda q, s, t: leap(q, 0, t - s),
    one_step=lambda q, s, t: (q.alpha[t].sqrt(), q.beta[t]),
    equal_steps=lambda q, s, t: (q.alpha[t] ** ((t - s) / 2), 1 - q.alpha[t] ** (t - s)),
    product_with_s=lambda q, s, t: ((r := q.alpha[s : t + 1].prod()).sqrt(), 1 - r),
    product_without_t=lambda q, s, t: ((r := q.alpha[s + 1 : t].prod()).sqrt(), 1 - r),
    sum_of_betas=lambda q, s, t: (leap(q, s, t)[0], q.beta[s + 1 : t + 1].sum()),
    scale_without_root=leap_with(scale=lambda a, b: b / a),
    scale_difference=leap_with(scale=lambda a, b: b.sqrt() - a.sqrt() + 1),
    scale_of_t=leap_with(scale=lambda a, b: b.sqrt()),
    scale_inverse=leap_with(scale=lambda a, b: (a / b).sqrt()),
    scale_negative=leap_with(scale=lambda a, b: -(b / a).sqrt()),
    var_of_t=leap_with(var=lambda a, b: 1 - b),
    var_difference=leap_with(var=lambda a, b: a - b),
    var_root=leap_with(var=lambda a, b: (1 - b / a).sqrt()),
    var_by_scale=leap_with(var=lambda a, b: 1 - (b / a).sqrt()),
    var_of_posterior=leap_with(var=lambda a, b: (1 - b / a) * (1 - a) / (1 - b)),
    var_over_a=leap_with(var=lambda a, b: (1 - b) / a - (1 - a)),
    var_at_least_1e4=leap_with(var=lambda a, b: (1 - b / a).clamp(min=2e-4)),
    var_at_least_1e8=leap_with(var=lambda a, b: (1 - b / a).clamp(min=1e-8)),
    var_plus_1e8=leap_with(var=lambda a, b: 1 - b / a + 1e-8),
    var_at_most=leap_with(var=lambda a, b: (1 - b / a).clamp(max=0.999)),
    denominator_plus_1e8=leap_with(scale=lambda a, b: (b / (a + 1e-8)).sqrt(), var=lambda a, b: 1 - b / (a + 1e-8)),
    bar_at_least_1e4=leap_with(
        scale=lambda a, b: (b.clamp(min=1e-4) / a.clamp(min=1e-4)).sqrt(),
        var=lambda a, b: 1 - b.clamp(min=1e-4) / a.clamp(min=1e-4),
    ),
    ratio_at_least_1e4=leap_with(var=lambda a, b: 1 - (b / a).clamp(min=1e-2)),
    nothing_at_0=lambda q, s, t: leap(q, s, t) if s else (torch.ones(()), leap(q, s, t)[1]),
    swapped=lambda q, s, t: leap(q, s, t)[::-1],
    float32=lambda q, s, t: ((r := q.alpha_bar[t].float() / q.alpha_bar[s].float()).sqrt(), 1 - r),
    keeps_a_state=with_state(leap),
    adjacent_is_posterior=lambda q, s, t: (
        leap_with(var=lambda a, b: (1 - b / a) * (1 - a) / (1 - b))(q, s, t) if t == s + 1 and s else leap(q, s, t)
    ),
)


def of_mixture(x, weight, mean, var):
    return (weight * stats.norm.pdf(np.asarray(x)[:, None], mean, np.sqrt(var))).sum(1)


def mixed(x, weight, mean, var, bar):
    return of_mixture(x, weight, bar**0.5 * mean, bar * var + 1 - bar)


held_out(
    "marginal of a mixture",
    mean_without_root=lambda x, w, m, v, a: of_mixture(x, w, a * m, a * v + 1 - a),
    var_by_root=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, a**0.5 * v + 1 - a),
    var_squared=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, a**2 * v + 1 - a),
    var_not_shrunk=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, v + 1 - a),
    var_interpolated=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, a * v + (1 - a) * (1 - v)),
    noise_by_root=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, a * v + (1 - a) ** 0.5),
    noise_added_twice=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, a * v + 2 * (1 - a)),
    equal_weights=lambda x, w, m, v, a: mixed(x, np.full(len(w), 1 / len(w)), m, v, a),
    weights_shrunk=lambda x, w, m, v, a: mixed(x, (u := w**a) / u.sum(), m, v, a),
    weights_by_density=lambda x, w, m, v, a: mixed(x, w, m, v, a) / mixed(x, w, m, v, a).sum(),
    weights_reversed=lambda x, w, m, v, a: mixed(x, w[::-1], m, v, a),
    first_component=lambda x, w, m, v, a: mixed(x, w[:1] / w[0], m[:1], v[:1], a),
    two_components=lambda x, w, m, v, a: mixed(x, w[:2], m[:2], v[:2], a),
    moment_matched=lambda x, w, m, v, a: of_mixture(
        x, np.ones(1), a**0.5 * (w @ m)[None], (a * (w @ (v + m**2) - (w @ m) ** 2) + 1 - a)[None]
    ),
    one_variance=lambda x, w, m, v, a: mixed(x, w, m, w @ v + 0 * v, a),
    variance_at_least_1e2=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, np.maximum(a * v + 1 - a, 0.02)),
    variance_at_least_1e4=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, np.maximum(a * v + 1 - a, 1e-4)),
    variance_at_least_1e5=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, np.maximum(a * v + 1 - a, 1e-5)),
    variance_plus_1e6=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, a * v + 1 - a + 1e-6),
    variance_plus_1e8=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, a * v + 1 - a + 1e-8),
    component_at_least_1e4=lambda x, w, m, v, a: mixed(x, w, m, np.maximum(v, 1e-4), a),
    component_at_least_1e6=lambda x, w, m, v, a: mixed(x, w, m, np.maximum(v, 1e-6), a),
    bar_at_most=lambda x, w, m, v, a: mixed(x, w, m, v, min(a, 0.9999)),
    bar_at_least=lambda x, w, m, v, a: mixed(x, w, m, v, max(a, 1e-4)),
    noise_at_least=lambda x, w, m, v, a: of_mixture(x, w, a**0.5 * m, a * v + max(1 - a, 1e-3)),
    density_at_most_1=lambda *a: np.minimum(mixed(*a), 1.0),
    density_plus_1e8=lambda *a: mixed(*a) + 3e-8,
    variance_as_deviation=lambda x, w, m, v, a: (w * stats.norm.pdf(x[:, None], a**0.5 * m, a * v + 1 - a)).sum(1),
    logarithm=lambda *a: np.log(mixed(*a)),
    mean_of_components=lambda x, w, m, v, a: mixed(x, w, m, v, a) / len(w),
    float32=lambda *a: mixed(*(np.asarray(part, np.float32) for part in a)),
    swapped_components=lambda x, w, m, v, a: mixed(x, w, m, v[::-1], a),
    sign_of_mean=lambda x, w, m, v, a: mixed(x, w, -m, v, a),
    writes_into_means=writes(mixed, 2),
    keeps_a_state=with_state(mixed),
)


def to_noise(x, a):
    return 0.5 * (a * (x**2 - 1) - np.log(1 - a))


held_out(
    "distance from pure noise",
    sign=lambda x, a: -to_noise(x, a),
    without_half=lambda x, a: 2 * to_noise(x, a),
    in_bits=lambda x, a: to_noise(x, a) / np.log(2),
    plus_one=lambda x, a: 0.5 * (a * (x**2 + 1) - np.log(1 - a)),
    minus_one_outside=lambda x, a: 0.5 * (a * x**2 - 1 - np.log(1 - a)),
    without_minus_one=lambda x, a: 0.5 * (a * x**2 - np.log(1 - a)),
    root_of_bar=lambda x, a: 0.5 * (a**0.5 * (x**2 - 1) - np.log(1 - a)),
    absolute=lambda x, a: 0.5 * (a * (abs(x) - 1) - np.log(1 - a)),
    log_of_bar=lambda x, a: 0.5 * (a * (x**2 - 1) - np.log(max(a, 1e-300))),
    half_of_log=lambda x, a: 0.5 * a * (x**2 - 1) - 0.25 * np.log(1 - a),
    log_without_half=lambda x, a: 0.5 * a * (x**2 - 1) - np.log(1 - a),
    deviation=lambda x, a: 0.5 * (a * x**2 + (1 - a) ** 0.5 - 1 - 0.5 * np.log(1 - a)),
    log_plus_1e8=lambda x, a: 0.5 * (a * (x**2 - 1) - np.log(1 - a + 1e-8)),
    log_plus_1e12=lambda x, a: 0.5 * (a * (x**2 - 1) - np.log(1 - a + 1e-12)),
    noise_at_least_1e6=lambda x, a: 0.5 * (a * (x**2 - 1) - np.log(max(1 - a, 1e-6))),
    bar_at_most=lambda x, a: to_noise(x, min(a, 0.9999)),
    bar_at_least=lambda x, a: to_noise(x, max(a, 1e-5)),
    bar_at_least_1e7=lambda x, a: to_noise(x, max(a, 1e-7)),
    image_clipped=lambda x, a: to_noise(max(min(x, 1), -1), a),
    image_clipped_at_10=lambda x, a: to_noise(max(min(x, 10), -10), a),
    at_most_10=lambda x, a: min(to_noise(x, a), 10.0),
    at_least_1e3=lambda x, a: max(to_noise(x, a), 1e-3),
    first_order=lambda x, a: 0.5 * a * x**2 + a**2 / 4,
    swapped=lambda x, a: 0.5 * ((1 + a * x**2) / (1 - a) - 1 + np.log(1 - a)),
    unit_image=lambda x, a: to_noise(1.0, a),
    negative_forgotten=lambda x, a: to_noise(max(x, 0), a),
    small_is_zero=lambda x, a: 0.0 if a < 1e-3 else to_noise(x, a),
    float32=lambda x, a: 0.5 * (np.float32(a) * (np.float32(x) ** 2 - 1) - np.log(1 - np.float32(a))),
    keeps_a_state=with_state(to_noise),
    squared_bar=lambda x, a: 0.5 * (a**2 * (x**2 - 1) - np.log(1 - a**2)),
)

CASES = [(name, what, function) for name, functions in HELD_OUT.items() for what, function in functions.items()]


@pytest.mark.parametrize(("name", "what", "function"), CASES, ids=[f"{name}: {what}" for name, what, _ in CASES])
def test_the_check_rejects_it(name, what, function):
    assert find(name).measure(function) >= find(name).rejects


# Right in another form: these must pass


def by_precisions(mean, cov, known, value):
    rest = [i for i in range(len(mean)) if i not in known]
    precision = cov.inverse()
    new_cov = precision[rest][:, rest].inverse()
    return mean[rest] - new_cov @ precision[rest][:, known] @ (value - mean[known]), new_cov


def kl_by_inverse(m, c, n, d):
    return 0.5 * (d.logdet() - c.logdet() + torch.trace(d.inverse() @ c) + (m - n) @ d.inverse() @ (m - n) - len(m))


def elbo_by_torch(x, mean, log_var, decode, var, eps):
    q = Normal(mean, log_var.exp().sqrt())
    std = torch.as_tensor(var, dtype=x.dtype).sqrt()
    reconstruction = Normal(decode(q.mean + q.stddev * eps), std).log_prob(x).flatten(1).sum(1)
    return reconstruction, torch.distributions.kl_divergence(q, Normal(torch.zeros_like(mean), 1.0)).sum(1)


def moved_by_autograd(function, mean, std, eps):
    m, s = (part.expand_as(eps).clone().requires_grad_() for part in (mean, std))
    return torch.autograd.grad(function(m + s * eps).sum(), (m, s))


def weighed_by_autograd(function, mean, std, eps):
    z = (mean + std * eps).detach()
    m, s = (part.expand_as(eps).clone().requires_grad_() for part in (mean, std))
    log_q = Normal(m, s).log_prob(z).sum(1)
    return torch.autograd.grad((log_q * function(z).detach()).sum(), (m, s))


def evidence_by_blocks(x, weight, bias, var):
    D, K = weight.shape
    cov_x = weight @ weight.T + var * torch.eye(D, dtype=x.dtype)
    gain = torch.linalg.solve(cov_x, weight).T
    log_p = torch.distributions.MultivariateNormal(bias, cov_x).log_prob(x)
    return log_p, (x - bias) @ gain.T, torch.eye(K, dtype=x.dtype) - gain @ weight


def chain_by_loops(end, p, q, weight):
    total = 0.0
    for i, w in enumerate(weight):
        total += w * (end[i] + sum(p[t][i] - q[t][i] for t in range(len(p))))
    return total


def step_by_torch_normal(schedule, x, t, generator):
    b = as_image(schedule.beta[t], x)
    return torch.normal((1 - b).sqrt() * x, b.sqrt().expand_as(x), generator=generator)


def jump_by_steps(schedule, x, eps, t):
    scale, var = [1.0], [0.0]
    for b in schedule.beta[1:].tolist():
        scale.append(scale[-1] * (1 - b) ** 0.5)
        var.append(var[-1] * (1 - b) + b)
    a, v = (as_image(torch.tensor(part, dtype=torch.float64)[t], x) for part in (scale, var))
    return a * x + v.sqrt() * eps


def bars_by_loop(beta):
    found = [1.0]
    for b in beta[1:].tolist():
        found.append(found[-1] * (1 - b))
    return torch.tensor(found, dtype=torch.float64)


def leap_by_product(schedule, s, t):
    kept = float(schedule.alpha[s + 1 : t + 1].prod())
    return kept**0.5, 1 - kept


RIGHT = {
    "mixing with noise": [mix, lambda x, eps, beta: math.sqrt(beta) * eps + math.sqrt(1 - beta) * x],
    "normal density": [
        lambda x, m, v: Normal(torch.as_tensor(m, dtype=x.dtype), t64(v).sqrt()).log_prob(x),
        lambda x, m, v: -((x - m) ** 2) / (2 * v) - torch.log(t64(v)) / 2 - LOG_2PI / 2,
    ],
    "affine map": [affine, lambda A, b, m, c: (b + m @ A.T, torch.einsum("ij,jk,lk->il", A, c, A))],
    "sum of independent normals": [add],
    "product of normal densities": [
        lambda m, v, n, w: ((g := v / (v + w)) * n + (1 - g) * m, g * w),
        lambda m, v, n, w: (m + (g := v / (v + w)) * (n - m), (1 - g) * v),
        lambda m, v, n, w: ((w * m + v * n) / (v + w), v * w / (v + w)),
    ],
    "conditioning": [
        by_precisions,
        by_blocks(lambda m, n, rr, rk, kk, v: (m + (G := rk @ kk.inverse()) @ (v - n), rr - G @ rk.T)),
    ],
    "KL divergence": [
        lambda m, v, n, w: torch.distributions.kl_divergence(
            Normal(m, v.sqrt(), validate_args=False), Normal(n, w.sqrt())
        ),
        lambda m, v, n, w: 0.5 * (torch.log(w) - torch.log(v) + (v + (m - n) ** 2) / w - 1),
    ],
    "KL divergence, full covariance": [kl_by_inverse],
    "derivative of SiLU": [
        lambda z: (s := torch.sigmoid(z)) + z * s * torch.sigmoid(-z),
        lambda z: (s := torch.sigmoid(z)) + z * torch.sigmoid(z) * (1 - s),
    ],
    "moments of ReLU": [lambda v: (0.5 * math.sqrt(2 * v / math.pi), 0.5 * v)],
    "power of a z-test": [
        lambda d, n, c: 1 - (stats.norm.cdf(c - d * n**0.5) - stats.norm.cdf(-c - d * n**0.5)),
        lambda d, n, c: stats.norm.sf(c, d * n**0.5) + stats.norm.cdf(-c, d * n**0.5),
    ],
    "signed pixels": [
        scaled,
        lambda x, w: x.float() / w * 2 - 1,
        lambda x, w: (x.float() - w / 2) / (w / 2),
        lambda x, w: torch.from_numpy(np.interp(x.numpy(), [0, w], [-1, 1])),
    ],
    "evidence lower bound": [
        lambda lj, lq, w: (special.logsumexp(lj - lq, b=w), w @ lj - w @ lq),
    ],
    "gap of the evidence lower bound": [
        lambda q, p, r, dz: (
            special.rel_entr(np.exp(q), np.exp(p)).sum() * dz if p.min() > -700 else kl_on_grid(q, p, r, dz)
        )
    ],
    "reconstruction and KL": [elbo_by_torch],
    "reparameterised gradient": [moved_by_autograd],
    "score-function gradient": [weighed_by_autograd, with_baseline(lambda v: 1.25)],
    "linear model's evidence": [linear_by(), evidence_by_blocks],
    "bound of a chain": [chain_by_loops],
    "forward step": [step_by_torch_normal],
    "linear schedule": [
        schedule_by(even),
        schedule_by(lambda T, a, b: a + torch.arange(T).double() / (T - 1) * (b - a)),
        schedule_by(lambda T, a, b: np.linspace(a, b, T)),
    ],
    "cumulative alpha": [bars_by_loop, lambda b: torch.exp(torch.log1p(-b).cumsum(0))],
    "two steps in one": [lambda a, b: (a**0.5 * b**0.5, b * (1 - a) + (1 - b))],
    "forward jump": [jump_by_steps, right_jump],
    "signal-to-noise ratio": [
        of_bar(lambda a: 1 / (1 - a) - 1),
        of_bar(lambda a: (a.sqrt() / (1 - a).sqrt()) ** 2),
        of_bar(lambda a: torch.exp(torch.log(a) - torch.log1p(-a))),
    ],
    "jump between any two times": [leap_by_product],
    "marginal of a mixture": [
        lambda x, w, m, v, a: sum(
            wk * stats.norm(a**0.5 * mk, (a * vk + (1 - a)) ** 0.5).pdf(x) for wk, mk, vk in zip(w, m, v, strict=True)
        )
    ],
    "distance from pure noise": [lambda x, a: float(kl_divergence(a**0.5 * x, 1 - a, 0.0, 1.0))],
}
ALSO_RIGHT = [(name, i, function) for name, functions in RIGHT.items() for i, function in enumerate(functions)]


@pytest.mark.parametrize(("name", "i", "function"), ALSO_RIGHT, ids=[f"{name}: {i}" for name, i, _ in ALSO_RIGHT])
def test_what_is_right_in_another_form_passes(name, i, function):
    assert find(name).measure(function) <= find(name).passes
