"""Wrong versions of the equations of chapters 7 to 9 that stand beside no check: each is rejected all the same."""

import math
from itertools import pairwise

import pytest
import torch
from held_out import registry, rejecting

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.elbo import bits_per_dim, bound_term, discretised_log_likelihood, posterior_var_clipped
from ddpm_lib.diffusion.forward import forward_var, noise_like, noise_std, q_sample, signal_scale, snr, step_scale
from ddpm_lib.diffusion.learned_var import learned_var, log_var_high, log_var_low, split_output
from ddpm_lib.diffusion.min_snr import min_snr_weight
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var
from ddpm_lib.diffusion.scaled_linear import scaled_linear_schedule
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.targets import eps_from_x_0
from ddpm_lib.diffusion.timesteps import LossSecondMoment
from ddpm_lib.diffusion.zero_snr import zero_snr_schedule
from ddpm_lib.exact.reverse import law_of_samples, reverse_components, reverse_mean, x_0_var
from ddpm_lib.samplers.ancestral import ancestral_step, predict_x_0
from ddpm_lib.samplers.ddim import ddim_step, ddim_var, strided_t
from ddpm_lib.samplers.inversion import slerp
from ddpm_lib.samplers.second_order import noise_ratio

pytestmark = pytest.mark.soak  # a minute: many versions, each a function of its own

WRONG, wrong = registry()


def images(value, like):
    return torch.as_tensor(value, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


# One step back


def std_of(schedule, t, like):
    return posterior_var(schedule, t, like=like).sqrt()


@wrong("ancestral step", "noise at the last step of the schedule left out, not at t = 1")
def _(schedule, x_t, x_0_hat, t, z):
    last = images(torch.as_tensor(t) == schedule.T, x_t)
    return posterior_mean(schedule, x_0_hat, x_t, t) + (1 - last) * std_of(schedule, t, x_t) * z


@wrong("ancestral step", "no noise at t = 2 either")
def _(schedule, x_t, x_0_hat, t, z):
    still = images(torch.as_tensor(t) <= 2, x_t)
    return posterior_mean(schedule, x_0_hat, x_t, t) + (1 - still) * std_of(schedule, t, x_t) * z


@wrong("ancestral step", "the first image's variance for the whole batch")
def _(schedule, x_t, x_0_hat, t, z):
    first = int(torch.as_tensor(t).flatten()[0])
    return posterior_mean(schedule, x_0_hat, x_t, t) + std_of(schedule, first, x_t) * z


@wrong("ancestral step", "one z for all channels")
def _(schedule, x_t, x_0_hat, t, z):
    return ancestral_step(schedule, x_t, x_0_hat, t, z[:, :1].expand_as(z))


@wrong("ancestral step", "the first image's z for the whole batch")
def _(schedule, x_t, x_0_hat, t, z):
    return ancestral_step(schedule, x_t, x_0_hat, t, z[:1].expand_as(z))


@wrong("ancestral step", "x_0_hat and x_t swapped")
def _(schedule, x_t, x_0_hat, t, z):
    return ancestral_step(schedule, x_0_hat, x_t, t, z)


@wrong("ancestral step", "the noise has the marginal's variance, 1 − ᾱ_{t−1}")
def _(schedule, x_t, x_0_hat, t, z):
    a_prev = images(schedule.alpha_bar[torch.as_tensor(t) - 1], x_t)
    return posterior_mean(schedule, x_0_hat, x_t, t) + (1 - a_prev).sqrt() * z


@wrong("ancestral step", "the result is clipped to [−1, 1]")
def _(schedule, x_t, x_0_hat, t, z):
    return ancestral_step(schedule, x_t, x_0_hat, t, z).clamp(-1, 1)


@wrong("ancestral step", "computed in float32")
def _(schedule, x_t, x_0_hat, t, z):
    return ancestral_step(schedule, x_t.float(), x_0_hat.float(), t, z.float()).to(x_t)


@wrong("ancestral step", "the mean of step t − 1, by a table that counts from 0")
def _(schedule, x_t, x_0_hat, t, z):
    before = torch.as_tensor(t).sub(1).clamp(min=1)
    before = before.expand(len(x_t)) if before.ndim else int(before)
    return posterior_mean(schedule, x_0_hat, x_t, before) + std_of(schedule, t, x_t) * z


@wrong("Algorithm 2, line 4", "β_t over 1 − ᾱ_t by the step's own α")
def _(schedule, x_t, eps_hat, t, z, var):
    beta, scale = forward_var(schedule, t, like=x_t), step_scale(schedule, t, like=x_t)
    noise = torch.where(images(torch.as_tensor(t) == 1, x_t) > 0, 0.0, z)
    return (x_t - beta / beta.sqrt() * eps_hat) / scale + var.sqrt() * noise


@wrong("Algorithm 2, line 4", "the estimated noise is added")
def _(schedule, x_t, eps_hat, t, z, var):
    beta, scale, std = (f(schedule, t, like=x_t) for f in (forward_var, step_scale, noise_std))
    noise = torch.where(images(torch.as_tensor(t) == 1, x_t) > 0, 0.0, z)
    return (x_t + beta / std * eps_hat) / scale + var.sqrt() * noise


# The chain


def chain(what, **changes):
    """A sampler with one piece replaced: asked(t), estimate(x_0_hat, clip), noise(x, generator, t), step, or start."""

    def sample(eps_model, schedule, x_T, *, reverse_var=posterior_var, clip=True, generator=None):
        x = changes.get("start", lambda x: x)(x_T)
        with torch.no_grad():
            for t in range(schedule.T, 0, -1):
                asked = changes.get("asked", lambda t, T: t)(t, schedule.T)
                eps_hat = eps_model(x, torch.full((len(x),), asked))
                x_0_hat = (x - noise_std(schedule, t, like=x) * eps_hat) / signal_scale(schedule, t, like=x)
                if "clip" in changes:
                    x_0_hat = changes["clip"](x_0_hat, t, clip, schedule.T)
                elif clip:
                    x_0_hat = x_0_hat.clamp(-1, 1)
                z = changes.get("noise", lambda x, g, t: noise_like(x, g))(x, generator, t) if t > 1 else None
                x = ancestral_step(schedule, x, x_0_hat, t, z, reverse_var)
        return changes.get("end", lambda x: x)(x)

    wrong("ancestral sampling", what)(sample)


chain("clipped in the last step alone", clip=lambda x, t, clip, T: x.clamp(-1, 1) if clip and t == 1 else x)
chain("clipped in all steps but the last", clip=lambda x, t, clip, T: x.clamp(-1, 1) if clip and t > 1 else x)
chain("clipped whatever is asked for", clip=lambda x, t, clip, T: x.clamp(-1, 1))
chain("clipped to [0, 1]", clip=lambda x, t, clip, T: x.clamp(0, 1) if clip else x)
chain("squashed by tanh in place of a clamp", clip=lambda x, t, clip, T: x.tanh() if clip else x)
chain("divided by its largest value", clip=lambda x, t, clip, T: x / x.abs().max().clamp(min=1) if clip else x)
chain("the samples are clipped at the end", end=lambda x: x.clamp(-1, 1))
chain("the start is scaled to its own deviation", start=lambda x: x / x.std())
chain("a float time, t/T, for the network", asked=lambda t, T: t / T)
chain("T − t for the network", asked=lambda t, T: T - t + 1)
chain("noise shared by the channels", noise=lambda x, g, t: noise_like(x[:, :1], g).expand_as(x))
chain("noise drawn in float32", noise=lambda x, g, t: noise_like(x.float(), g).to(x.dtype))
chain("noise only at every other step", noise=lambda x, g, t: noise_like(x, g) * (t % 2))
chain("noise cut at 2 deviations", noise=lambda x, g, t: noise_like(x, g).clamp(-2, 2))
chain("one magnitude of noise an image", noise=lambda x, g, t: (z := noise_like(x, g)) / z.flatten(1).std())


def antithetic(x, generator, t):
    half = -(-len(x) // 2)
    z = noise_like(x[:half], generator[:half] if isinstance(generator, list) else generator)
    return torch.cat([z, -z])[: len(x)]


chain("antithetic noise in the halves of a batch", noise=antithetic)


# The true step


@wrong("mean of the true step", "one estimate for the batch")
def _(denoiser, x_t, t):
    x_0_hat = denoiser.x_0_hat(x_t, t).mean(0, keepdim=True).expand_as(x_t)
    return posterior_mean(denoiser.schedule, x_0_hat, x_t, t)


@wrong("mean of the true step", "without a gradient")
def _(denoiser, x_t, t):
    return reverse_mean(denoiser, x_t, t).detach()


@wrong("what x_t leaves open", "averaged over the dimensions")
def _(denoiser, x_t, t):
    return x_0_var(denoiser, x_t, t).mean(1, keepdim=True).expand_as(x_t)


@wrong("what x_t leaves open", "that of the first component alone")
def _(denoiser, x_t, t):
    var, a = denoiser.mixture.var[0].to(x_t), signal_scale(denoiser.schedule, t, like=x_t) ** 2
    return (var * (1 - a) / (a * var + 1 - a)).expand_as(x_t)


@wrong("variance of the true step", "x_t's weight, where x_0's belongs")
def _(denoiser, x_t, t):
    a = (1 - forward_var(denoiser.schedule, t, like=x_t)).sqrt()
    before = (1 - posterior_before(denoiser.schedule, t, x_t)) / noise_std(denoiser.schedule, t, like=x_t) ** 2
    return posterior_var(denoiser.schedule, t, like=x_t) + (a * before) ** 2 * x_0_var(denoiser, x_t, t)


def posterior_before(schedule, t, like):
    return images(schedule.alpha_bar[torch.as_tensor(t) - 1], like)


@wrong("the true step is a mixture", "the weights are not normalised")
def _(denoiser, x_t, t):
    weight, mean, var = reverse_components(denoiser, x_t, t)
    return weight / weight.amax(1, keepdim=True), mean, var


@wrong("the true step is a mixture", "the means of x_0, not of x_{t−1}")
def _(denoiser, x_t, t):
    weight, mean, var = reverse_components(denoiser, x_t, t)
    return weight, denoiser.mixture.mean.to(mean).expand_as(mean), var


@wrong("law of the samples", "the last step is left out")
def _(step, T):
    return law_of_samples(lambda x, t: step(x, t) if t > 1 else (x, 0.0), T)


@wrong("law of the samples", "a mean over the places, not over their probabilities")
def _(step, T):
    places, probability = law_of_samples(step, T)
    return places, torch.full_like(probability, 1 / len(probability))


@wrong("variance of the samples", "the first step starts from the data's variance")
def _(schedule, data_var, step_var):
    var = torch.as_tensor(data_var, dtype=torch.float64)
    for t in range(schedule.T, 0, -1):
        a, beta = schedule.alpha_bar[t], schedule.beta[t]
        slope = (1 - beta / (1 - a) * (1 - a) / (a * data_var + 1 - a)) / (1 - beta).sqrt()
        var = slope**2 * var + (step_var[t] if t > 1 else 0)
    return var


@wrong("an error along the chain", "the factor of the step before")
def _(schedule, slope, delta):
    moved = torch.zeros((), dtype=torch.float64)
    for t in range(schedule.T, 0, -1):
        weight = schedule.beta[t] / (1 - schedule.alpha_bar[t]).sqrt()
        before = max(t - 1, 1)
        moved = (moved - weight * (slope[t] * moved + delta[t])) / (1 - schedule.beta[before]).sqrt()
    return moved


# DDIM


@wrong("DDIM variance", "η is cut at ½")
def _(schedule, t, s, eta):
    return ddim_var(schedule, t, s, min(eta, 0.5))


@wrong("DDIM variance", "α_t in the place of ᾱ_t/ᾱ_s")
def _(schedule, t, s, eta):
    now, then = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])
    return eta**2 * (1 - then) / (1 - now) * float(schedule.beta[t])


@wrong("DDIM variance", "that of the step from t + 1")
def _(schedule, t, s, eta):
    return ddim_var(schedule, min(t + 1, schedule.T), s, eta)


@wrong("DDIM step", "the noise estimate belongs to the clipped x_0_hat of another step")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    eps_hat = (x_t - signal_scale(schedule, s or 1, like=x_t) * x_0_hat) / noise_std(schedule, t, like=x_t)
    a, var = float(schedule.alpha_bar[s]), ddim_var(schedule, t, s, eta)
    return a**0.5 * x_0_hat + max(1 - a - var, 0) ** 0.5 * eps_hat + var**0.5 * noise_like(x_t, generator)


@wrong("DDIM step", "noise also where η = 0")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    return ddim_step(schedule, x_0_hat, x_t, t, s, max(eta, 0.01), generator)


@wrong("DDIM step", "the first image's noise for the whole batch")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    mean = ddim_step(schedule, x_0_hat, x_t, t, s, 0.0)
    a, var = float(schedule.alpha_bar[s]), ddim_var(schedule, t, s, eta)
    less = (1 - a) ** 0.5 - max(1 - a - var, 0.0) ** 0.5
    one = generator[:1] if isinstance(generator, list) else generator
    noise = noise_like(x_t[:1], one).expand_as(x_t) if var > 0 else 0.0
    return mean - less * eps_from_x_0(schedule, x_t, x_0_hat, t) + var**0.5 * noise


@wrong("even grid", "rounded up")
def _(T, steps):
    return [math.ceil(T * i / steps) for i in range(steps, -1, -1)]


@wrong("even grid", "counted from 0: T − 1 at the top")
def _(T, steps):
    return [max(t - 1, 0) for t in strided_t(T, steps)]


@wrong("even grid", "upwards")
def _(T, steps):
    return strided_t(T, steps)[::-1]


@wrong("even grid", "quadratic")
def _(T, steps):
    return [max(i, round(T * (i / steps) ** 2)) for i in range(steps, 0, -1)] + [0]


def ddim(what, name="DDIM sampling", **changes):
    """A DDIM sampler with a piece replaced."""

    def sample(eps_model, schedule, x_T, *, steps=50, eta=0.0, clip=True, generator=None):
        x = x_T
        with torch.no_grad():
            for t, s in pairwise(changes.get("grid", strided_t)(schedule.T, steps)):
                x_0_hat = predict_x_0(eps_model, schedule, x, t, changes.get("clip", lambda c, s: c)(clip, s))
                x = changes.get("step", ddim_step)(schedule, x_0_hat, x, t, s, eta, generator)
        return x

    wrong(name, what)(sample)


ddim("one step less than asked", grid=lambda T, n: strided_t(T, max(n - 1, 1)))
ddim("every step of the schedule, whatever is asked", grid=lambda T, n: strided_t(T, T))
ddim("the last image is not clipped", clip=lambda clip, s: clip and s > 0)
ddim("clipped in the last step alone", clip=lambda clip, s: clip and s == 0)
ddim("η squared twice", step=lambda S, a, x, t, s, eta, g: ddim_step(S, a, x, t, s, eta**2, g))
ddim("no noise in the first step", step=lambda S, a, x, t, s, eta, g: ddim_step(S, a, x, t, s, eta * (t < S.T), g))
ddim("η = 1 where any noise is asked for", step=lambda S, a, x, t, s, e, g: ddim_step(S, a, x, t, s, float(e > 0), g))
ddim("float32 on the way", step=lambda S, a, x, *rest: ddim_step(S, a.float(), x.float(), *rest).to(x.dtype))


@wrong("DDIM sampling", "walked with gradients: the result asks for one")
def _(eps_model, schedule, x_T, *, steps=50, eta=0.0, clip=True, generator=None):
    x = x_T.clone().requires_grad_()
    for t, s in pairwise(strided_t(schedule.T, steps)):
        x = ddim_step(schedule, predict_x_0(eps_model, schedule, x, t, clip), x, t, s, eta, generator)
    return x


# Second order


def euler_and(change):
    def sample(eps_model, schedule, x_T, *, steps=25, clip=True):
        x = x_T
        with torch.no_grad():
            for t, s in pairwise(strided_t(schedule.T, steps)):
                x_0_hat = predict_x_0(eps_model, schedule, x, t, clip)
                end = ddim_step(schedule, x_0_hat, x, t, s)
                if s > 0:
                    there = predict_x_0(eps_model, schedule, end, s, clip)
                    slopes = eps_from_x_0(schedule, x, x_0_hat, t), eps_from_x_0(schedule, end, there, s)
                    end = end + change(schedule, t, s, *slopes)
                x = end
        return x

    return sample


def width(schedule, t, s):
    return noise_ratio(schedule, s) - noise_ratio(schedule, t)


@wrong("Heun sampling", "back by √ᾱ_t, not by √ᾱ_s")
@euler_and
def _(schedule, t, s, first, second):
    return signal_scale(schedule, t, like=first) * width(schedule, t, s) / 2 * (second - first)


@wrong("Heun sampling", "the change with the wrong sign")
@euler_and
def _(schedule, t, s, first, second):
    return signal_scale(schedule, s, like=first) * width(schedule, t, s) / 2 * (first - second)


@wrong("Heun sampling", "the midpoint's rule with the end's slope: no half")
@euler_and
def _(schedule, t, s, first, second):
    return signal_scale(schedule, s, like=first) * width(schedule, t, s) * (second - first)


@wrong("Heun sampling", "no correction in the first step")
@euler_and
def _(schedule, t, s, first, second):
    if t == schedule.T:
        return 0 * first
    return signal_scale(schedule, s, like=first) * width(schedule, t, s) / 2 * (second - first)


def multistep(what, ratio, last=False, keep=lambda middle, x_0_hat: x_0_hat):
    """DPM-Solver++ with another factor of the change, ratio(h, h', t, s)."""

    def sample(eps_model, schedule, x_T, *, steps=25, clip=True):
        x, before = x_T, None
        with torch.no_grad():
            for t, s in pairwise(strided_t(schedule.T, steps)):
                x_0_hat = middle = predict_x_0(eps_model, schedule, x, t, clip)
                now = math.log(float(snr(schedule, t))) / 2
                if before is not None and s > 0:
                    then = math.log(float(snr(schedule, s))) / 2
                    middle = x_0_hat + ratio(then - now, now - before[0]) * (x_0_hat - before[1])
                x = ddim_step(schedule, middle, x, t, s)
                before = now, keep(middle, x_0_hat)
        return x

    wrong("DPM-Solver++ sampling", what)(sample)


multistep("a third in place of a half", lambda h, before: h / before / 3)
multistep("h squared", lambda h, before: (h / before) ** 2 / 2)
multistep("the extrapolated estimate is kept for the next step", lambda h, b: h / b / 2, keep=lambda m, x: m)
multistep("the mean of both widths", lambda h, before: (h + before) / (4 * before))
multistep("2h/h' in place of h/(2h')", lambda h, before: 2 * h / before)


# Inversion and interpolation


def inverted(what, **changes):
    def invert(eps_model, schedule, x_0, *, steps=50, clip=True):
        x = x_0
        with torch.no_grad():
            for s, t in pairwise(strided_t(schedule.T, steps)[::-1]):
                if s == 0:
                    x_0_hat, eps_hat = x, eps_model(x, torch.full((len(x),), changes.get("first", lambda t: 1)(t)))
                else:
                    x_0_hat = predict_x_0(eps_model, schedule, x, s, clip)
                    eps_hat = eps_from_x_0(schedule, x, x_0_hat, s)
                x = changes.get("end", lambda S, x_0_hat, eps, s, t: q_sample(S, x_0_hat, eps, t))(
                    schedule, x_0_hat, eps_hat, s, t
                )
        return x

    wrong("DDIM inversion", what)(invert)


inverted("the first call is told the time that it goes to", first=lambda t: t)
inverted("a fresh noise at the end of each step", end=lambda S, a, e, s, t: q_sample(S, a, torch.randn_like(e), t))
inverted("the sign of the noise is turned", end=lambda S, a, e, s, t: q_sample(S, a, -e, t))
inverted("the noise grows by the step's own β", end=lambda S, a, e, s, t: q_sample(S, a, e, max(s, 1)))


@wrong("spherical interpolation", "the angle in degrees")
def _(x, y, weight):
    return slerp(x, y, torch.as_tensor(weight) * 180 / math.pi)


@wrong("spherical interpolation", "the lengths are those of x")
def _(x, y, weight):
    length = y.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    return slerp(x, y / length.reshape(-1, *[1] * (x.ndim - 1)), weight)


@wrong("spherical interpolation", "each channel by itself")
def _(x, y, weight):
    weight = torch.as_tensor(weight, dtype=x.dtype).expand(len(x)).repeat_interleave(x.shape[1])
    return slerp(x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None], weight).reshape(x.shape)


# Schedules


@wrong("scaled-linear schedule", "the cube of the cube roots")
def _(T, beta_1, beta_T):
    return Schedule(torch.linspace(beta_1 ** (1 / 3), beta_T ** (1 / 3), T, dtype=torch.float64) ** 3)


@wrong("scaled-linear schedule", "a thousand values, of which T are taken")
def _(T, beta_1, beta_T):
    return Schedule(scaled_linear_schedule(1000, beta_1, beta_T).beta[1 : T + 1])


@wrong("scaled-linear schedule", "the ends swapped")
def _(T, beta_1, beta_T):
    return scaled_linear_schedule(T, beta_T, beta_1)


@wrong("cosine schedule", "sine in the place of cosine")
def _(T, s, beta_max):
    t = torch.arange(T + 1, dtype=torch.float64)
    f = 1 - torch.sin((t / T + s) / (1 + s) * math.pi / 2)
    return Schedule((1 - f[1:] / f[:-1]).clamp(max=beta_max))


@wrong("cosine schedule", "s is always 0.008")
def _(T, s, beta_max):
    return cosine_schedule(T, 0.008, beta_max)


@wrong("cosine schedule", "β is clipped at 0.999, whatever is asked")
def _(T, s, beta_max):
    return cosine_schedule(T, s)


@wrong("zero terminal SNR", "ᾱ_1 is not kept")
def _(schedule, alpha_bar_T=0.0):
    root = schedule.alpha_bar[1:].sqrt()
    root = (root - root[-1]) / (1 - root[-1]) * (1 - 1e-3) + alpha_bar_T**0.5
    return Schedule(1 - torch.cat([root[:1] ** 2, (root[1:] / root[:-1]) ** 2]), zero_terminal=True)


@wrong("zero terminal SNR", "only a schedule whose end is far off is changed")
def _(schedule, alpha_bar_T=0.0):
    return schedule if schedule.alpha_bar[-1] < 0.1 else zero_snr_schedule(schedule, alpha_bar_T)


@wrong("clean image from velocity", "α_t in the place of ᾱ_t")
def _(schedule, x_t, v, t):
    return step_scale(schedule, t, like=x_t) * x_t - forward_var(schedule, t, like=x_t).sqrt() * v


@wrong("clean image from velocity", "the factors of the first image for the batch")
def _(schedule, x_t, v, t):
    first = int(torch.as_tensor(t).flatten()[0])
    return signal_scale(schedule, first, like=x_t) * x_t - noise_std(schedule, first, like=x_t) * v


# Weights and variances


@wrong("min-SNR weight", "for x_0, divided by γ")
def _(schedule, t, target="eps", gamma=5.0):
    return min_snr_weight(schedule, t, target, gamma) / (gamma if target == "x_0" else 1)


@wrong("min-SNR weight", "the γ of the square")
def _(schedule, t, target="eps", gamma=5.0):
    return min_snr_weight(schedule, t, target, gamma**2)


@wrong("min-SNR weight", "normalised over the batch")
def _(schedule, t, target="eps", gamma=5.0):
    weight = min_snr_weight(schedule, t, target, gamma)
    return weight / weight.mean()


@wrong("best variance", "the loss is a sum over the image's two numbers")
def _(schedule, t, loss):
    factor = forward_var(schedule, t) / (step_scale(schedule, t) * noise_std(schedule, t))
    return posterior_var(schedule, t) + factor**2 * loss / 2


@wrong("best variance", "β̃_{t+1}")
def _(schedule, t, loss):
    factor = forward_var(schedule, t) / (step_scale(schedule, t) * noise_std(schedule, t))
    return posterior_var(schedule, (torch.as_tensor(t) + 1).clamp(max=schedule.T)) + factor**2 * loss


@wrong("learned variance", "the upper bound of the next step")
def _(schedule, v, t):
    later = (torch.as_tensor(t) + 1).clamp(max=schedule.T)
    later = later if later.ndim else int(later)
    return torch.exp(v * log_var_high(schedule, later, like=v) + (1 - v) * log_var_low(schedule, t, like=v))


@wrong("learned variance", "one v for all channels")
def _(schedule, v, t):
    return learned_var(schedule, v.mean(1, keepdim=True).expand_as(v), t)


@wrong("learned variance", "computed in float32")
def _(schedule, v, t):
    return learned_var(schedule, v.float(), t).to(v)


@wrong("learned variance", "log β_t at t = 1, whatever v")
def _(schedule, v, t):
    first = images(torch.as_tensor(t) == 1, v).bool()
    return torch.where(first, forward_var(schedule, t, like=v), learned_var(schedule, v, t))


def hybrid(what, *, frozen=lambda e: e.detach(), weight=lambda w, T: w * T, simple=lambda d: d.flatten(1).mean(1)):
    def loss(model, schedule, x_0, eps, t, vlb_weight=0.001, decoder=discretised_log_likelihood):
        eps_hat, v = split_output(model(q_sample(schedule, x_0, eps, t), t))
        mean = frozen(eps_hat)
        term = bound_term(
            lambda x_t, t: mean,
            schedule,
            x_0,
            eps,
            t,
            reverse_var=lambda schedule, t, like: learned_var(schedule, v.to(like), t),
            decoder=decoder,
        )
        bits = weight(vlb_weight, schedule.T) * bits_per_dim(term, x_0[0].numel())
        return simple((eps - eps_hat).square()) + bits.to(x_0)

    wrong("hybrid loss", what)(loss)


hybrid("half of the gradient reaches the mean", frozen=lambda e: (e + e.detach()) / 2)
hybrid("the simple loss is a sum over pixels", simple=lambda d: d.flatten(1).sum(1))
hybrid("the simple loss is one number for the batch", simple=lambda d: d.mean().expand(len(d)))
hybrid("T − 1 terms", weight=lambda w, T: w * (T - 1))
hybrid("λ without its size: always 0.001", weight=lambda w, T: 0.001 * T)


@wrong("hybrid loss", "at t = 1 the upper variance")
def _(model, schedule, x_0, eps, t, vlb_weight=0.001, decoder=discretised_log_likelihood):
    eps_hat, v = split_output(model(q_sample(schedule, x_0, eps, t), t))
    v = torch.where(images(t == 1, v) > 0, 1.0, v)
    frozen = eps_hat.detach()
    term = bound_term(
        lambda x_t, t: frozen,
        schedule,
        x_0,
        eps,
        t,
        reverse_var=lambda schedule, t, like: learned_var(schedule, v.to(like), t),
        decoder=decoder,
    )
    return (eps - eps_hat).square().flatten(1).mean(1) + (
        vlb_weight * schedule.T * bits_per_dim(term, x_0[0].numel())
    ).to(x_0)


@wrong("hybrid loss", "the fixed lower variance: nothing is learned")
def _(model, schedule, x_0, eps, t, vlb_weight=0.001, decoder=discretised_log_likelihood):
    eps_hat, _ = split_output(model(q_sample(schedule, x_0, eps, t), t))
    frozen = eps_hat.detach()
    term = bound_term(lambda x_t, t: frozen, schedule, x_0, eps, t, reverse_var=posterior_var_clipped, decoder=decoder)
    simple = (eps - eps_hat).square().flatten(1).mean(1)
    return simple + (vlb_weight * schedule.T * bits_per_dim(term, x_0[0].numel())).to(simple)


# Which t


@wrong("best probabilities", "the root of the root")
def _(second_moment):
    root = second_moment**0.25
    return root / root.sum()


@wrong("best probabilities", "a tenth is uniform")
def _(second_moment):
    root = second_moment.sqrt()
    return 0.9 * root / root.sum() + 0.1 / len(root)


def sampler(what, **methods):
    wrong("loss-second-moment sampling", what)(type("Wrong", (LossSecondMoment,), methods))


def moving(self, t, loss):
    """A moving average of the squares, in the place of the last ten losses."""
    for step, value in zip(t.tolist(), loss.double().tolist(), strict=True):
        if math.isfinite(value):
            old = self.losses[step - 1]
            old[:] = value if self.count[step - 1] == 0 else (0.9 * old.square() + 0.1 * value**2).sqrt()
            self.count[step - 1] += 1


def in_order(self, batch, generator):
    t, factor = LossSecondMoment.draw(self, batch, generator)
    order = t.argsort()
    return t[order], None if factor is None else factor[order]


def shuffled_factors(self, batch, generator):
    t, factor = LossSecondMoment.draw(self, batch, generator)
    return t, None if factor is None else factor.flip(0)


def without_repeats(self, batch, generator):
    t, factor = LossSecondMoment.draw(self, batch, generator)
    if batch > 1:
        t[1::2] = t[: 2 * (batch // 2) : 2]
        if factor is not None:
            factor[1::2] = factor[: 2 * (batch // 2) : 2]
    return t, factor


def next_to_it(self, t, loss):
    LossSecondMoment.update(self, t.add(1).clamp(max=self.schedule.T), loss)


sampler("a moving average of the squares", update=moving)
sampler("t in ascending order in every batch", draw=in_order)
sampler("factors in another order than t", draw=shuffled_factors)
sampler("every t twice in a row", draw=without_repeats)
sampler("losses are remembered for the next t", update=next_to_it)
sampler("shares its memory with the state that it was given", load_state=lambda self, state: vars(self).update(state))
sampler("the count is not stored", state=lambda self: {"losses": self.losses, "count": 0 * self.count})


@wrong("loss-second-moment sampling", "a hundredth is drawn uniformly")
def _(schedule):
    return LossSecondMoment(schedule, uniform=0.01)


@wrong("loss-second-moment sampling", "remembers nine losses")
def _(schedule):
    return LossSecondMoment(schedule, history=9)


test_is_rejected = rejecting(WRONG)
