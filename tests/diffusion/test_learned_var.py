"""Learned and best variances: their range and errors, how bounds and samplers read them, and what the loss teaches."""

from functools import partial

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.best_var import best_var, var_table
from ddpm_lib.diffusion.elbo import bound_term, bound_terms, discretised_log_likelihood, posterior_var_clipped
from ddpm_lib.diffusion.forward import forward_var, noise_like, q_sample
from ddpm_lib.diffusion.learned_var import eps_and_var, hybrid_loss, learned_var, split_output
from ddpm_lib.diffusion.loss import draw_t, l_simple
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.ancestral import ancestral_sample

SCHEDULE = linear_schedule(20, 0.001, 0.3)
DECODER = partial(discretised_log_likelihood, levels=17)


def outputs(value, channels=2):
    """A model whose noise estimate is 0.3·x_t and whose second half is `value` everywhere."""
    return lambda x_t, t: torch.cat([0.3 * x_t, torch.full_like(x_t, value)], 1)


def pictures(n=6):
    grey = torch.linspace(-1, 1, 17)
    return grey[torch.randint(0, 17, (n, 2, 3, 2), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(("raw", "fixed"), [(-1.0, posterior_var_clipped), (1.0, forward_var)])
def test_at_the_ends_of_its_range_a_learned_variance_is_one_of_the_two_fixed_ones(raw, fixed):
    x_0, t = pictures(), torch.tensor([1, 2, 5, 10, 19, 20])
    _, v = split_output(outputs(raw)(x_0, t))
    var = learned_var(SCHEDULE, v.double(), t)
    torch.testing.assert_close(var, fixed(SCHEDULE, t, like=x_0.double()).expand_as(var), rtol=1e-12, atol=0)
    eps_model, reverse_var = eps_and_var(outputs(raw))
    learned = bound_terms(eps_model, SCHEDULE, x_0, _seeded(), reverse_var=reverse_var)
    expected = bound_terms(lambda x_t, t: 0.3 * x_t, SCHEDULE, x_0, _seeded(), reverse_var=fixed)
    torch.testing.assert_close(learned, expected, rtol=1e-6, atol=1e-9)


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_split_output_halves_the_channels_and_maps_minus_1_and_1_to_0_and_1():
    output = torch.tensor([[0.5, -2.0, -1.0, 1.0]]).reshape(1, 4, 1, 1)
    eps_hat, v = split_output(output)
    assert eps_hat.flatten().tolist() == [0.5, -2.0] and v.flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (5,), (2, 1)])
def test_an_odd_number_of_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected shape \(B, 2C, ...\)"):
        split_output(torch.zeros(shape))


def test_one_step_has_no_lower_variance():
    with pytest.raises(ValueError, match=r"at least two steps.*got T = 1"):
        learned_var(Schedule([0.3]), torch.zeros(2, 1), 1)


def test_a_model_of_too_few_channels_is_named():
    x_0 = pictures(2)
    with pytest.raises(
        ValueError, match=r"twice the channels of x_t, \(2, 2, 3, 2\); half of what came is \(2, 1, 3, 2\)"
    ):
        hybrid_loss(lambda x_t, t: x_t, SCHEDULE, x_0, x_0, torch.tensor([1, 2]))


def test_the_variance_of_another_batch_is_not_given_out():
    eps_model, reverse_var = eps_and_var(outputs(0.0))
    with pytest.raises(RuntimeError, match=r"asked about \(2, 2, 3, 2\) first; its last was none"):
        reverse_var(SCHEDULE, 3, like=pictures(2))
    eps_model(pictures(3), torch.full((3,), 3))
    with pytest.raises(RuntimeError, match=r"its last was \(3, 2, 3, 2\)"):
        reverse_var(SCHEDULE, 3, like=pictures(2))


@pytest.mark.parametrize(("raw", "fixed"), [(-1.0, posterior_var_clipped), (1.0, forward_var)])
def test_a_chain_reads_the_learned_variance_of_its_own_step(raw, fixed):
    x_T = torch.randn(4, 2, 3, 2, generator=_seeded(1))
    eps_model, reverse_var = eps_and_var(outputs(raw))
    got = ancestral_sample(eps_model, SCHEDULE, x_T, reverse_var=reverse_var, generator=_seeded(2))
    plain = lambda x_t, t: 0.3 * x_t  # noqa: E731
    expected = ancestral_sample(plain, SCHEDULE, x_T, reverse_var=fixed, generator=_seeded(2))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_hybrid_loss_is_the_simple_loss_and_a_thousandth_of_the_bound():
    x_0, t = pictures(), torch.tensor([1, 2, 5, 10, 19, 20])
    eps, model = noise_like(x_0, _seeded(3)), outputs(0.4)
    eps_model, reverse_var = eps_and_var(model)
    term = bound_term(eps_model, SCHEDULE, x_0, eps, t, reverse_var=reverse_var, decoder=DECODER)
    simple = l_simple(eps_model, SCHEDULE, x_0, eps, t)
    bits = term / (12 * torch.tensor(2.0).double().log())
    for weight in (0.001, 0.5):
        got = hybrid_loss(model, SCHEDULE, x_0, eps, t, weight, DECODER)
        torch.testing.assert_close(got.double(), simple.double() + weight * 20 * bits, rtol=1e-5, atol=1e-6)


def test_what_the_bound_adds_moves_the_variance_and_not_the_mean():
    x_0, t = pictures(), torch.tensor([1, 2, 5, 10, 19, 20])
    eps, output = noise_like(x_0, _seeded(3)), torch.randn(6, 4, 3, 2, generator=_seeded(4), requires_grad=True)
    slopes = []
    for weight in (0.0, 1.0):
        loss = hybrid_loss(lambda x_t, t: output, SCHEDULE, x_0, eps, t, weight, DECODER)
        slopes.append(torch.autograd.grad(loss.sum(), output)[0].chunk(2, dim=1))
    assert torch.equal(slopes[0][0], slopes[1][0])
    assert (slopes[0][1] == 0).all() and (slopes[1][1] != 0).all()


class Pixels(nn.Module):
    """A variance for each t, and no noise estimate: what is learned is E ε² = 1 and the best variance beside it."""

    def __init__(self, T):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(T + 1))

    def forward(self, x_t, t):
        return torch.cat([0.5 * x_t, self.raw[t][:, None].expand_as(x_t)], 1)


def test_training_on_the_bound_finds_the_best_variance_in_closed_form():
    """Independent of each other: gradient descent on divergences, and Eq. 9.8 from the measured loss."""
    schedule = Schedule([0.2, 0.3, 0.4, 0.5])
    data = GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-0.6], [0.5]]), torch.tensor([[0.01], [0.04]]))
    model, generator = Pixels(4).double(), _seeded(5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 800)
    decoder = lambda x_0, mean, var: torch.distributions.Normal(mean, var.sqrt()).log_prob(x_0)  # noqa: E731
    for _ in range(800):
        x_0 = data.sample(2048, generator)[0].double()
        eps, t = noise_like(x_0, generator), draw_t(schedule, 2048, generator)
        optimiser.zero_grad()
        hybrid_loss(model, schedule, x_0, eps, t, 1.0, decoder).mean().backward()
        optimiser.step()
        rate.step()
    x_0 = data.sample(400_000, generator)[0].double()
    eps = noise_like(x_0, generator)
    for t in (2, 3, 4):
        loss = (eps - 0.5 * q_sample(schedule, x_0, eps, t)).square().mean()
        learned = learned_var(schedule, (model.raw[t].detach() + 1).reshape(1, 1) / 2, t)
        assert learned.item() == pytest.approx(best_var(schedule, t, loss).item(), rel=0.02)


def test_for_the_exact_denoiser_the_best_variance_lies_between_the_two_fixed_ones_and_gives_the_smallest_bound():
    schedule, generator = SCHEDULE, _seeded(6)
    data = GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-0.6], [0.5]]), torch.tensor([[0.01], [0.04]]))
    exact, steps = ExactDenoiser(data, schedule), torch.arange(1, 21)
    x_0 = data.sample(20_000, generator)[0].double()
    losses = []
    for t in steps:
        eps = noise_like(x_0, generator)
        losses.append((eps - exact(q_sample(schedule, x_0, eps, int(t)), int(t))).square().mean())
    var = best_var(schedule, steps, torch.stack(losses))
    low, high = posterior_var_clipped(schedule, steps), forward_var(schedule, steps)
    assert ((low[1:] < var[1:]) & (var[1:] < high[1:])).all()
    decoder = lambda x_0, mean, var: torch.distributions.Normal(mean, var.sqrt()).log_prob(x_0)  # noqa: E731
    bounds = [
        bound_terms(exact, schedule, x_0, _seeded(7), reverse_var=choice, decoder=decoder).sum(1).mean()
        for choice in (var_table(var), posterior_var_clipped, forward_var, var_table(1.2 * var), var_table(0.8 * var))
    ]
    assert bounds[0] < min(bounds[1:])


@pytest.mark.parametrize("bad", [[[0.1, 0.2]], [0.1, 0.0], [0.1, -0.2], 0.3])
def test_a_table_of_variances_is_one_row_of_positive_numbers(bad):
    with pytest.raises(ValueError, match=r"expected T variances > 0, shape \(T,\)"):
        var_table(torch.tensor(bad))


def test_a_table_of_variances_fits_schedules_of_its_length_only():
    with pytest.raises(ValueError, match=r"a schedule of 2 steps, one a variance; got T = 20"):
        var_table(torch.tensor([0.1, 0.2]))(SCHEDULE, 1)
    read = var_table(torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert read(Schedule([0.3, 0.4]), torch.tensor([2, 1])).tolist() == [0.2, 0.1]
    given = torch.tensor([0.1, 0.2], dtype=torch.float64)
    read = var_table(given)
    given[:] = 9.0
    assert read(Schedule([0.3, 0.4]), 2) == 0.2
