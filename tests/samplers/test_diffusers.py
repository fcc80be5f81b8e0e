"""The schedulers of `diffusers`, written by other people, say the same on the same inputs: ours(t) is theirs(t − 1).

Their tables are float32, in which 1 − ᾱ_1 = 1e-4 keeps three digits. So the tables are compared as they come, and for
the formulas both sides read the same β in float64: the tables are refilled, the code that reads them is theirs.
"""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.elbo import bound_term, bound_terms, denoising_term, posterior_var_clipped, prior_term
from ddpm_lib.diffusion.forward import forward_var, q_sample
from ddpm_lib.diffusion.posterior import eps_from_posterior_mean, posterior_mean, posterior_mean_from_eps, posterior_var
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.diffusion.targets import as_eps_model, eps_from_v, v_from_eps, x_0_from_eps
from ddpm_lib.samplers.ancestral import ancestral_sample
from ddpm_lib.samplers.ddim import ddim_sample, ddim_step, strided_t
from ddpm_lib.samplers.grids import grid_of_t
from ddpm_lib.samplers.second_order import dpm_solver_sample, heun_sample

diffusers = pytest.importorskip("diffusers")

NAME = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # ours and theirs
OURS = {"linear": linear_schedule, "cosine": cosine_schedule}
CASES = pytest.mark.parametrize(("kind", "T"), [("linear", 1000), ("linear", 20), ("cosine", 1000), ("cosine", 20)])
VARIANCES = {"fixed_small": posterior_var_clipped, "fixed_large": forward_var}


def scheduler(kind, T, **options):
    return diffusers.DDPMScheduler(T, beta_schedule=NAME[kind], **{"clip_sample": False, **options})


def pair(kind, T, **options):
    """Their scheduler and our schedule, on the same β, in float64."""
    theirs = scheduler(kind, T, **options)
    beta = theirs.betas.double()
    theirs.alphas_cumprod = torch.cumprod(1 - beta, 0)
    return theirs, Schedule(beta)


def some_t(T):
    return torch.tensor([1, 2, 3, T // 4, T // 2, T - 1, T])


def images(seed, n=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3)]


def their_mean(theirs, output, x_t, t):
    """The mean of their step from each x_t: the step itself is linear, and one from zeros is its noise alone."""
    rows = []
    for value, x, step in zip(output[:, None], x_t[:, None], t.tolist(), strict=True):
        one, noise = (
            theirs.step(v, step - 1, y, generator=torch.Generator().manual_seed(0)).prev_sample
            for v, y in ((value, x), (torch.zeros_like(x), torch.zeros_like(x)))
        )
        rows.append(one - noise)
    return torch.cat(rows)


def their_var(theirs, t, kind):
    return torch.stack([theirs._get_variance(step - 1, variance_type=kind) for step in t.tolist()])


def agree(ours, theirs, rel=1e-9, abs=1e-12):
    torch.testing.assert_close(ours, theirs.to(ours), rtol=rel, atol=abs)


@pytest.mark.parametrize(("kind", "T"), [("cosine", 1)] + [(kind, T) for kind in OURS for T in (2, 4, 50, 1000)])
def test_the_tables_are_theirs_one_place_later(kind, T):
    """Independent route: their tables, out of the box."""
    theirs, ours = scheduler(kind, T), OURS[kind](T)
    assert ours.T == len(theirs.alphas_cumprod) == T
    agree(ours.beta[1:], theirs.betas, rel=1e-4, abs=0)
    agree(ours.alpha[1:], theirs.alphas, rel=1e-4, abs=1e-6)
    agree(ours.alpha_bar[1:], theirs.alphas_cumprod, rel=1e-4, abs=0)
    assert (ours.alpha_bar[:-1] - theirs.alphas_cumprod).abs().max() > 1e-4  # not to be taken for each other


@CASES
def test_the_forward_jump_is_their_add_noise(kind, T):
    """Independent route: `add_noise`, as it comes in float32, and on the same β in float64."""
    x_0, eps, _ = images(0)
    t = some_t(T)
    theirs, ours = pair(kind, T)
    agree(q_sample(ours, x_0, eps, t), theirs.add_noise(x_0, eps, t - 1))
    x_0, eps = x_0.float(), eps.float()
    as_it_comes = scheduler(kind, T).add_noise(x_0, eps, t - 1)
    agree(q_sample(OURS[kind](T), x_0, eps, t), as_it_comes, rel=1e-4, abs=1e-5)


@CASES
def test_the_posterior_mean_is_the_mean_of_their_step_from_a_clean_image(kind, T):
    """Independent route: `DDPMScheduler.step` for a network that predicts x_0."""
    x_0, x_t, _ = images(1)
    theirs, ours = pair(kind, T, prediction_type="sample")
    t = some_t(T)
    agree(posterior_mean(ours, x_0, x_t, t), their_mean(theirs, x_0, x_t, t))


@CASES
def test_the_posterior_mean_from_noise_is_the_mean_of_their_step_from_noise(kind, T):
    """Independent route: `DDPMScheduler.step` for a network that predicts ε; its x_0 is Eq. 6.5's."""
    eps, x_t, _ = images(2)
    theirs, ours = pair(kind, T)
    t = some_t(T)
    mean = their_mean(theirs, eps, x_t, t)
    agree(posterior_mean_from_eps(ours, x_t, eps, t), mean, rel=1e-7, abs=1e-9)  # they go through x_0
    agree(eps_from_posterior_mean(ours, x_t, mean, t), eps, rel=1e-6, abs=1e-6)
    rows = zip(eps[:, None], x_t[:, None], t.tolist(), strict=True)
    x_0 = torch.cat([theirs.step(e, step - 1, x).pred_original_sample for e, x, step in rows])
    agree(x_0_from_eps(ours, x_t, eps, t), x_0)


def test_a_float32_step_is_theirs_as_it_comes():
    """Independent route: `DDPMScheduler.step` out of the box, with steps so large that float32 tables do."""
    x_0, x_t, eps = (x[:5].float() for x in images(3))
    t, beta = torch.arange(1, 6), [0.1, 0.3, 0.02, 0.5, 0.2]
    ours = Schedule(beta)
    for prediction, output, mean in (
        ("sample", x_0, posterior_mean(ours, x_0, x_t, t)),
        ("epsilon", eps, posterior_mean_from_eps(ours, x_t, eps, t)),
    ):
        theirs = diffusers.DDPMScheduler(5, trained_betas=beta, prediction_type=prediction, clip_sample=False)
        agree(mean, their_mean(theirs, output, x_t, t), rel=1e-4, abs=1e-6)


@CASES
def test_both_variances_are_theirs(kind, T):
    """Independent route: `_get_variance`. At t = 1 their fixed_small is 0 clamped to 1e-20, and ours is 0."""
    theirs, ours = pair(kind, T)
    t = torch.arange(1, T + 1)
    small, large = (their_var(theirs, t, name) for name in VARIANCES)
    agree(forward_var(ours, t), large)
    agree(posterior_var(ours, t)[1:], small[1:], abs=0)
    assert posterior_var(ours, 1) == 0 and small[0] == pytest.approx(1e-20)
    agree(posterior_var_clipped(ours, t), torch.cat([small[1:2], small[1:]]), abs=0)


@CASES
def test_the_velocity_and_what_it_implies_are_theirs(kind, T):
    """Independent route: `get_velocity`, and `step` for a network that predicts v."""
    x_0, eps, v = images(4)
    theirs, ours = pair(kind, T, prediction_type="v_prediction")
    t = some_t(T)
    agree(v_from_eps(ours, x_0, eps, t), theirs.get_velocity(x_0, eps, t - 1))
    x_t = theirs.add_noise(x_0, eps, t - 1)
    eps_hat = eps_from_v(ours, x_t, v, t)
    mean = their_mean(theirs, v, x_t, t)
    agree(posterior_mean_from_eps(ours, x_t, eps_hat, t), mean, rel=1e-7, abs=1e-9)
    rows = zip(v[:, None], x_t[:, None], t.tolist(), strict=True)
    x_0_hat = torch.cat([theirs.step(value, step - 1, x).pred_original_sample for value, x, step in rows])
    agree(x_0_from_eps(ours, x_t, eps_hat, t), x_0_hat, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [True, False])
def test_a_whole_chain_of_ancestral_sampling_is_theirs(kind, variance, clip):
    """Independent route: `step` after `step`, on the same noise: clipping, roots, and none at the end."""
    theirs, ours = pair(kind, 20, variance_type=variance, clip_sample=clip)

    def model(x_t, t):
        return torch.sin(3 * x_t) + 0.02 * t.reshape(-1, 1, 1, 1)

    x, _, _ = images(5, n=2)
    generator = torch.Generator().manual_seed(6)
    options = {"reverse_var": {"fixed_small": posterior_var, "fixed_large": forward_var}[variance], "clip": clip}
    got = ancestral_sample(model, ours, x, generator=generator, **options)
    generator = torch.Generator().manual_seed(6)
    for index in theirs.timesteps.tolist():
        x = theirs.step(model(x, torch.full((2,), index + 1)), index, x, generator=generator).prev_sample
    agree(got, x, rel=1e-6, abs=1e-8)


def their_divergence(kind, T, variance, x_0, x_t, eps_hat, t):
    """L_{t−1} of each image: ½‖difference of the means‖²/σ² from their two steps, and what the variances add."""
    means = [
        their_mean(pair(kind, T, prediction_type=prediction)[0], output, x_t, t)
        for prediction, output in (("sample", x_0), ("epsilon", eps_hat))
    ]
    theirs, _ = pair(kind, T)
    model_var = their_var(theirs, t, variance)
    divergence = 0.5 * (means[0] - means[1]).square().flatten(1).sum(1) / model_var
    if variance == "fixed_small":
        return divergence
    true_var = their_var(theirs, t, "fixed_small")
    zero = torch.zeros_like(true_var)
    return divergence + x_0[0].numel() * kl_divergence(Normal(zero, true_var.sqrt()), Normal(zero, model_var.sqrt()))


@CASES
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_term_of_the_bound_is_assembled_from_two_of_their_steps(kind, T, variance, prediction):
    """Independent route: the means of two `step`s, `_get_variance`, and torch.distributions for the variances' part."""
    x_0, eps, output = images(7)
    theirs, ours = pair(kind, T)
    x_0, t = x_0.clamp(-1, 1), some_t(T)
    t[0] = 4  # at t = 1 there is no such term
    x_t = theirs.add_noise(x_0, eps, t - 1)
    if prediction == "eps":
        eps_hat = output
    else:  # noise from velocity with their ᾱ
        a = theirs.alphas_cumprod[t - 1].reshape(-1, 1, 1, 1)
        eps_hat = (1 - a).sqrt() * x_t + a.sqrt() * output
    expected = their_divergence(kind, T, variance, x_0, x_t, eps_hat, t)
    mean, var = posterior_mean_from_eps(ours, x_t, eps_hat, t), VARIANCES[variance](ours, t, like=x_t)
    agree(denoising_term(ours, x_0, x_t, mean, var, t), expected, rel=1e-7, abs=1e-8)
    model = as_eps_model(lambda x_t, t: output, ours, prediction)
    got = bound_term(model, ours, x_0, eps, t, reverse_var=VARIANCES[variance])
    agree(got, expected, rel=1e-7, abs=1e-8)


@CASES
def test_the_prior_term_is_the_divergence_at_the_end_of_their_chain(kind, T):
    """Independent route: torch.distributions, with the last of their `alphas_cumprod`."""
    x_0, _, _ = images(8)
    theirs, ours = pair(kind, T)
    a = theirs.alphas_cumprod[-1]
    end = Normal(a.sqrt() * x_0, (1 - a).sqrt().expand_as(x_0))
    expected = kl_divergence(end, Normal(0.0, 1.0)).flatten(1).sum(1)
    agree(prior_term(ours, x_0), expected, rel=1e-9, abs=1e-14 * 18)
    other = Normal(*torch.tensor([0.2, 1.3], dtype=torch.float64))
    agree(prior_term(ours, x_0, mean=0.2, var=1.3**2), kl_divergence(end, other).flatten(1).sum(1))


def test_the_whole_bound_is_assembled_from_their_steps(monkeypatch):
    """Independent route: as above, for every t of a short chain at once, in the order L_0, L_1, ..., L_T."""
    theirs, ours = pair("cosine", 6)
    x_0, eps, eps_hat = images(9, n=3)
    monkeypatch.setattr("ddpm_lib.diffusion.elbo.noise_like", lambda x, generator: eps)
    got = bound_terms(lambda x_t, t: eps_hat, ours, x_0, reverse_var=forward_var, decoder=lambda x, mean, var: 0 * x)
    assert got.shape == (3, 7)
    for step in range(2, 7):
        t = torch.full((3,), step)
        x_t = theirs.add_noise(x_0, eps, t - 1)
        expected = their_divergence("cosine", 6, "fixed_large", x_0, x_t, eps_hat, t)
        agree(got[:, step - 1], expected, rel=1e-7)
    a = theirs.alphas_cumprod[-1]
    end = Normal(a.sqrt() * x_0, (1 - a).sqrt().expand_as(x_0))
    agree(got[:, 6], kl_divergence(end, Normal(0.0, 1.0)).flatten(1).sum(1))
    assert (got[:, 0] == 0).all()


# Fast samplers, chapter 8


def waves(x_t, t):
    return torch.sin(3 * x_t) + 0.02 * t.reshape(-1, 1, 1, 1)


def at(t, x):
    return torch.full((len(x),), t)


def fast(kind, T, name, steps, **options):
    """Their scheduler with its grid of `steps` trailing times, and our schedule, on the same β, in float64."""
    theirs = getattr(diffusers, name)(T, beta_schedule=NAME[kind], timestep_spacing="trailing", **options)
    beta = theirs.betas.double()
    theirs.alphas_cumprod = torch.cumprod(1 - beta, 0)
    theirs.set_timesteps(steps)
    if hasattr(theirs, "sigmas"):  # kept in float32: made again, with their own places
        ratio = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()
        theirs.sigmas = torch.cat([ratio[theirs.timesteps.long()], torch.zeros(1, dtype=torch.float64)])
    return theirs, Schedule(beta)


@CASES
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_a_ddim_step_is_theirs(kind, T, eta, clip):
    """Independent route: `DDIMScheduler.step`, where T/n is a whole number; clipped, with use_clipped_model_output."""
    theirs, ours = fast(kind, T, "DDIMScheduler", 5, clip_sample=clip)
    eps, x_t, _ = images(10)
    for t, s in zip(strided_t(T, 5), strided_t(T, 5)[1:], strict=False):
        x_0_hat = x_0_from_eps(ours, x_t, eps, t)
        x_0_hat = x_0_hat.clamp(-1, 1) if clip else x_0_hat
        one, other = (torch.Generator().manual_seed(3) for _ in range(2))
        expected = theirs.step(eps, t - 1, x_t, eta=eta, use_clipped_model_output=clip, generator=one).prev_sample
        agree(ddim_step(ours, x_0_hat, x_t, t, s, eta, other), expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_whole_ddim_run_is_theirs_where_the_steps_divide_T(kind, steps, eta):
    """Independent route: `DDIMScheduler`, step after step, on its trailing grid."""
    theirs, ours = fast(kind, 20, "DDIMScheduler", steps)
    x, _, _ = images(11, n=2)
    got = ddim_sample(waves, ours, x, steps=steps, eta=eta, generator=torch.Generator().manual_seed(6))
    generator = torch.Generator().manual_seed(6)
    for index in theirs.timesteps.tolist():
        options = {"eta": eta, "use_clipped_model_output": True, "generator": generator}
        x = theirs.step(waves(x, at(index + 1, x)), index, x, **options).prev_sample
    agree(got, x, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 7), ("linspace", 10), ("linspace", 7)])
def test_elsewhere_their_step_does_not_end_where_the_next_one_begins(spacing, steps):
    """Reported in diffusers 11347 and 9261. When they mend it, this test says so, and chapter 8 is to follow."""
    theirs = diffusers.DDIMScheduler(100, timestep_spacing=spacing, clip_sample=False)
    theirs.set_timesteps(steps)
    asked = theirs.timesteps.tolist()
    goes_to = [index - 100 // steps for index in asked]
    assert goes_to[:-1] != asked[1:]
    eps, x, _ = images(12, n=2)
    ours = Schedule(theirs.betas.double())
    theirs.alphas_cumprod = ours.alpha_bar[1:]
    for index, end in zip(asked[:-1], goes_to, strict=False):
        got = theirs.step(eps, index, x).prev_sample
        agree(ddim_step(ours, x_0_from_eps(ours, x, eps, index + 1), x, index + 1, end + 1), got, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("T", [10, 100, 1000])
def test_the_published_grids_are_theirs_but_for_the_rounding_of_floats(spacing, T):
    """Independent route: `set_timesteps`. A time of theirs is at most 1 from ours, or below 0 and one too many."""
    same, tried = 0, range(1, T + 1, max(1, T // 100))
    for steps in tried:
        theirs = diffusers.DDIMScheduler(T, timestep_spacing=spacing)
        theirs.set_timesteps(steps)
        got, expected = grid_of_t(T, steps, spacing)[:-1], [t + 1 for t in theirs.timesteps.tolist()]
        extra = expected[steps:]
        assert extra in ([], [0])
        assert all(abs(a - b) <= 1 for a, b in zip(got, expected, strict=False))
        same += got == expected
    assert same > 0.7 * len(tried)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(("T", "steps"), [(1000, 10), (1000, 1), (1000, 2), (20, 20), (20, 5)])
def test_a_whole_dpm_solver_run_is_theirs(kind, T, steps):
    """Independent route: `DPMSolverMultistepScheduler`, second order, with σ = 0 at the end; it works in float32."""
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    theirs, ours = fast(kind, T, "DPMSolverMultistepScheduler", steps, **options)
    x, _, _ = images(13, n=2)
    got = dpm_solver_sample(waves, ours, x, steps=steps, clip=False)
    for index in theirs.timesteps.tolist():
        x = theirs.step(waves(x, at(index + 1, x)), index, x).prev_sample
    agree(got, x, rel=1e-5, abs=1e-6 * float(x.abs().max()))


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(("T", "steps"), [(1000, 10), (1000, 1), (20, 5)])
@pytest.mark.parametrize("clip", [False, True])
def test_a_whole_heun_run_is_theirs(kind, T, steps, clip):
    """Independent route: `HeunDiscreteScheduler`, whose image is our x/√ᾱ."""
    theirs, ours = fast(kind, T, "HeunDiscreteScheduler", steps, clip_sample=clip)
    x, _, _ = images(14, n=2)
    got = heun_sample(waves, ours, x, steps=steps, clip=clip)
    times = theirs.timesteps.long().tolist()
    assert len(times) == 2 * steps - 1
    y = x / ours.alpha_bar[-1].sqrt()
    for index in times:
        x = theirs.scale_model_input(y, index)
        y = theirs.step(waves(x, at(index + 1, x)), index, y).prev_sample
    agree(got, y, rel=1e-6, abs=1e-7 * float(y.abs().max()))
