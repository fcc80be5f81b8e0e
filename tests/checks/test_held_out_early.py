"""Wrong versions that stand beside no equation: the checks of chapters 0 to 3 must reject them too.

They are what a stranger might write: slips, values that are clamped "for stability", single precision inside, axes and
arguments mixed up, edge cases that were not thought of, states that are kept, arguments that are written into.
"""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from ddpm_lib.checks import find
from ddpm_lib.gaussian import condition, kl_divergence, kl_divergence_full, log_density, product

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
        result = function(*(arg.clone() if isinstance(arg, torch.Tensor) else np.copy(arg) for arg in args))
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


CASES = [(name, what, function) for name, functions in HELD_OUT.items() for what, function in functions.items()]


@pytest.mark.parametrize(("name", "what", "function"), CASES, ids=[f"{name}: {what}" for name, what, _ in CASES])
def test_the_check_rejects_it(name, what, function):
    assert find(name).measure(function) >= find(name).rejects
