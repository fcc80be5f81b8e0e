"""The tables β, α, ᾱ and the one door through which code reads them; the two schedules' shapes."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch

from ddpm_lib.diffusion import schedule as door
from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.forward import forward_var, noise_std, signal_scale, snr, step_scale
from ddpm_lib.diffusion.posterior import posterior_var, x_0_weight, x_t_weight
from ddpm_lib.diffusion.schedule import Schedule, coefficient, linear_schedule

COEFFICIENTS = [forward_var, noise_std, posterior_var, signal_scale, snr, step_scale, x_0_weight, x_t_weight]
BETAS = [0.1, 0.5, 0.02, 0.3]
FOUR = Schedule(BETAS)


def images(batch=4, dtype=torch.float32, device="cpu"):
    return torch.zeros(batch, 3, 2, 2, dtype=dtype, device=device)


def test_tables_have_an_entry_for_clean_data_and_one_for_each_step():
    products = [Fraction(1)]
    for beta in BETAS:
        products.append(products[-1] * (1 - Fraction(beta)))
    assert FOUR.T == 4
    assert FOUR.beta.tolist() == [0.0, *BETAS]
    assert FOUR.alpha.tolist() == [1 - beta for beta in [0.0, *BETAS]]
    assert FOUR.alpha_bar.tolist() == pytest.approx([float(p) for p in products], rel=1e-15)
    assert FOUR.alpha_bar[0] == 1 and FOUR.alpha_bar.dtype == torch.float64


def test_a_schedule_keeps_its_own_copy_of_beta():
    beta = torch.tensor(BETAS, dtype=torch.float64)
    schedule = Schedule(beta)
    beta[:] = 0.9
    assert schedule.beta[1] == 0.1


def test_a_schedule_shows_its_length_its_ends_and_how_much_of_the_image_is_left():
    assert repr(FOUR) == "Schedule(T=4, beta 0.1 to 0.3, alpha_bar[T]=0.309)"  # 0.9·0.5·0.98·0.7
    assert repr(Schedule([0.25])) == "Schedule(T=1, beta 0.25 to 0.25, alpha_bar[T]=0.75)"


@pytest.mark.parametrize("bad", [1.0, 1.5, 0.0, -0.1, math.nan])
def test_a_beta_outside_0_to_1_is_refused_and_its_t_is_named(bad):
    with pytest.raises(ValueError, match=r"beta\[3\] of T = 4"):
        Schedule([0.1, 0.2, bad, 0.3])


@pytest.mark.parametrize("bad", [[], [[0.1, 0.2]], 0.1])
def test_beta_must_be_a_list_of_at_least_one(bad):
    with pytest.raises(ValueError, match=r"shape \(T,\)"):
        Schedule(torch.tensor(bad, dtype=torch.float64))


@pytest.mark.parametrize("function", COEFFICIENTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("t", [0, 5, -1, torch.tensor([1, 0]), torch.tensor([5, 1]), torch.tensor(-3)])
def test_a_t_outside_1_to_T_is_refused_with_the_range_and_the_culprit(function, t):
    culprit = t if isinstance(t, int) else int(next(value for value in t.reshape(-1) if not 1 <= value <= 4))
    for like in (None, images(2)):
        with pytest.raises(ValueError, match=rf"1\.\.4.*got {culprit}$"):
            function(FOUR, t, like=like)


@pytest.mark.parametrize("t", [1.0, True, "1", None, torch.tensor([1.0]), torch.tensor([True]), torch.tensor([1j])])
def test_a_t_that_is_not_an_integer_is_refused(t):
    for like in (None, images(1)):
        with pytest.raises(TypeError, match="integer tensor, got"):
            noise_std(FOUR, t, like=like)


def test_one_t_for_each_example_is_asked_for():
    with pytest.raises(ValueError, match=r"t has shape \(3,\); expected \(4,\), one t per example"):
        noise_std(FOUR, torch.tensor([1, 2, 3]), like=images(4))


def test_values_are_read_only_in_floating_point():
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.uint8"):
        noise_std(FOUR, 1, like=images(dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_every_integer_t_reads_its_own_entry(dtype):
    got = forward_var(FOUR, torch.tensor([[4, 1], [2, 2]], dtype=dtype))
    assert got.tolist() == [[0.3, 0.1], [0.5, 0.5]]
    got = forward_var(FOUR, torch.tensor([4, 1], dtype=dtype), like=images(2).double())
    assert got.flatten().tolist() == [0.3, 0.1]


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 2)])
def test_values_broadcast_along_the_batch_and_nowhere_else(shape):
    x = torch.ones(shape, dtype=torch.float64)
    scaled = forward_var(FOUR, torch.tensor([4, 3, 2, 1]), like=x) * x
    assert scaled.shape == shape
    for row, beta in zip(scaled, reversed(BETAS), strict=True):
        assert (row == beta).all()
    one = forward_var(FOUR, 2, like=x)
    assert one.shape == () and one == 0.5


# 1 − ᾱ_1 = 1e-4 loses digits when it is formed in a low precision; cast afterwards, it is off by rounding only.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("function", COEFFICIENTS, ids=lambda f: f.__name__)
def test_values_are_computed_in_float64_and_then_cast(function, dtype):
    schedule = linear_schedule()
    t = torch.arange(1, schedule.T + 1)
    got = function(schedule, t, like=torch.zeros(schedule.T, dtype=dtype))
    assert got.dtype == dtype
    assert torch.equal(got, function(schedule, t).to(dtype))
    assert function(schedule, t).dtype == torch.float64


def test_noise_std_in_a_low_precision_would_be_seen():
    schedule = linear_schedule()
    careless = (1 - schedule.alpha_bar[1:].half()).sqrt()
    got = noise_std(schedule, torch.arange(1, 1001), like=torch.zeros(1000, dtype=torch.float16))
    relative = ((careless - got) / got).abs()
    assert relative.max() > 10 * torch.finfo(torch.float16).eps
    by_hand = [0.01, 1.0]  # √β_1 = √1e-4; and ᾱ_T is 4e-5
    assert got[[0, -1]].tolist() == pytest.approx(by_hand, rel=torch.finfo(torch.float16).eps)


def test_a_table_is_computed_once_per_schedule_dtype_and_device():
    asked = []

    @coefficient
    def counted(schedule, t):
        asked.append(len(t))
        return schedule.beta[t]

    schedule = Schedule(BETAS)
    for t in (1, 2, torch.tensor([3, 4])):
        counted(schedule, t, like=torch.zeros(2))
    assert asked == [4]
    counted(schedule, 1, like=torch.zeros(2, dtype=torch.float64))
    assert asked == [4, 4]


def test_a_table_that_was_first_read_while_sampling_can_be_used_in_training():
    schedule, x, w = Schedule(BETAS), images(2), torch.ones(2, 3, 2, 2, requires_grad=True)
    with torch.inference_mode():
        noise_std(schedule, 2, like=x)
    for t in (2, torch.tensor([2, 3])):
        for function in (noise_std, signal_scale):  # the other is first read in training
            (function(schedule, t, like=x) * w).sum().backward()


def test_every_schedule_and_every_coefficient_has_its_own_table():
    one, other, x = Schedule([0.36]), Schedule([0.75]), torch.zeros(1, dtype=torch.float64)
    got = [f(schedule, 1, like=x).item() for schedule in (one, other) for f in (forward_var, step_scale)]
    assert got == pytest.approx([0.36, 0.8, 0.75, 0.5])


def test_a_t_on_an_accelerator_is_never_read_by_the_host():
    # A meta tensor has no values: whoever asks for one gets an exception, as a GPU's host would have to wait.
    t, x = torch.ones(4, dtype=torch.int64, device="meta"), images(4, torch.bfloat16, "meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        int(t[0])
    for function in COEFFICIENTS:
        got = function(FOUR, t, like=x)
        assert (got.device.type, got.dtype, got.shape) == ("meta", torch.bfloat16, (4, 1, 1, 1))


class Elsewhere(torch.Tensor):
    """Says that it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))


def test_on_an_accelerator_every_t_reads_its_own_entry_and_none_is_refused():
    t = torch.tensor([4, 1, 0, 2, 5]).as_subclass(Elsewhere)
    got = forward_var(FOUR, t, like=torch.zeros(5, dtype=torch.float64)).tolist()
    assert (got[0], got[1], got[3]) == (0.3, 0.1, 0.5) and math.isnan(got[2]) and math.isnan(got[4])


def test_on_an_accelerator_a_t_outside_1_to_T_gives_nan(monkeypatch):
    monkeypatch.setattr(door, "_checked", lambda t, T: t)  # the check that needs the host: not there, on a GPU
    t = torch.tensor([-(10**9), -1, 0, 1, 4, 5, 6, 10**9])
    for function in COEFFICIENTS:
        finite = function(FOUR, t, like=torch.zeros(8)).isfinite()
        assert finite.tolist() == [False, False, False, True, True, False, False, False]


@pytest.mark.parametrize(("T", "first", "last"), [(1000, 1e-4, 0.02), (2, 0.1, 0.9), (10, 0.3, 0.3)])
def test_a_linear_schedule_reaches_both_ends_exactly(T, first, last):
    schedule = linear_schedule(T, first, last)
    assert (schedule.T, schedule.beta[1].item(), schedule.beta[T].item()) == (T, first, last)


@pytest.mark.parametrize("T", [1, 0, -3])
def test_a_linear_schedule_needs_two_steps(T):
    with pytest.raises(ValueError, match=f"at least 2; got T = {T}"):
        linear_schedule(T)


def test_a_linear_schedule_that_reaches_1_says_what_to_do():
    with pytest.raises(ValueError, match=r"beta\[20\] of T = 20 is 1\..*use more steps"):
        linear_schedule(20, 0.005, 1.0)


def test_without_s_the_cosine_schedule_passes_through_known_squares():
    # cos² of 30°, 45° and 60°. The circulated version without the square gives 0.866, 0.707 and 0.5.
    alpha_bar = cosine_schedule(1200, s=0.0).alpha_bar
    right, circulated = torch.tensor([3 / 4, 1 / 2, 1 / 4]), torch.tensor([3**0.5 / 2, 0.5**0.5, 1 / 2])
    got = alpha_bar[[400, 600, 800]].float()
    assert (got - right).abs().max() < 1e-6
    assert (got - circulated).abs().min() > 0.1


def decimal_cosine(x):
    """cos x to 40 digits, by its series."""
    term, total, n = Decimal(1), Decimal(0), 0
    while abs(term) > Decimal("1e-45"):
        total, n = total + term, n + 2
        term *= -x * x / (n * (n - 1))
    return total


def test_the_cosine_schedule_agrees_with_forty_digits():
    pi, s, schedule = Decimal("3.14159265358979323846264338327950288419717"), Decimal("0.008"), cosine_schedule()

    def f(t):
        return decimal_cosine((Decimal(t) / 1000 + s) / (1 + s) * pi / 2) ** 2

    with localcontext(prec=50):
        for t in (1, 2, 250, 500, 750, 998):
            assert schedule.alpha_bar[t].item() == pytest.approx(float(f(t) / f(0)), rel=1e-12)
            assert schedule.beta[t].item() == pytest.approx(float(1 - f(t) / f(t - 1)), rel=1e-10)
    assert schedule.beta[999] < 0.999 == schedule.beta[1000]  # cos² is 0 at T: only the last step is clipped


def test_where_beta_is_clipped_alpha_bar_follows_it():
    for schedule in (cosine_schedule(), cosine_schedule(10, beta_max=0.4)):
        kept = 1.0
        for t in range(1, schedule.T + 1):
            kept *= 1 - schedule.beta[t].item()
            assert schedule.alpha_bar[t].item() == pytest.approx(kept, rel=1e-12)
    # cos² itself would be 4e-33 at T, and x_0 = x_T/√ᾱ_T would overflow in half precision.
    assert 1e-10 < cosine_schedule().alpha_bar[-1] < 1e-6


def test_s_keeps_the_first_step_from_vanishing_and_changes_little_else():
    with_s, without = cosine_schedule(), cosine_schedule(s=0.0)
    assert 3 < (with_s.beta[1] / without.beta[1]).sqrt() < 5  # standard deviations 0.0064 and 0.0016
    assert (with_s.alpha_bar - without.alpha_bar).abs().max() < 0.02


@pytest.mark.parametrize("T", [1, 2, 4, 20, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_coefficient_of_the_cosine_schedule_is_finite(T, dtype):
    schedule = cosine_schedule(T)
    for function in COEFFICIENTS:
        values = function(schedule, torch.arange(1, T + 1), like=torch.zeros(T, dtype=dtype))
        assert values.isfinite().all() and (values >= 0).all()
    assert (schedule.alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("wrong", [{"T": 0}, {"s": -0.1}, {"beta_max": 0.0}, {"beta_max": 1.0}])
def test_a_cosine_schedule_refuses_what_it_cannot_be_made_of(wrong):
    with pytest.raises(ValueError, match=r"expected T >= 1, s >= 0 and 0 < beta_max < 1; got"):
        cosine_schedule(**wrong)
