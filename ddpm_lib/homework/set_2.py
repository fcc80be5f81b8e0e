"""Problem set 2, the posterior and the bound: what the answers must satisfy, and the numbers that are a student's."""

import itertools

import torch

from ddpm_lib.checks import apart
from ddpm_lib.checks.chapter_01 import log_normal
from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.checks.guard import Watched, accepted, fault, slope_gap
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var
from ddpm_lib.gaussian import log_density
from ddpm_lib.homework.cases_2 import a_batch, a_model, a_palette
from ddpm_lib.homework.problem import Problem
from ddpm_lib.homework.routes_2 import WEIGHTS, book_decoder, bound, costs, drawn, exact_log, summed, tried, typed

between = Problem("2.1", "the posterior between two times", "f(schedule, x_r, x_t, r, s, t): mean and var of x_s")


@between.identity("the mean is that of Bayes' rule", 2, 1e-8, route="Bayes' rule on a grid", least=2)
def _(f, case):
    given, exact = tried(case)
    return apart(f(*given)[0], torch.stack([mean for mean, _ in exact]))


@between.identity("the variance is that of Bayes' rule", 2, 1e-8, route="Bayes' rule on a grid", least=2)
def _(f, case):
    given, exact = tried(case)
    var = torch.stack([var for _, var in exact])
    return apart(f(*given)[1], var, var)


@between.identity("at s = r and at s = t nothing is open", 1, 1e-9, route="the image that is given there")
def _(f, case):
    x_r, x_t, t = case.normal(name="x_r"), case.normal(name="x_t"), case.t
    r = t - case.whole(1, case.T, case.batch, name="back").minimum(t)
    for s, exact in ((r, x_r), (t, x_t)):
        mean, var = f(case.schedule, x_r, x_t, r, s, t)
        yield apart(mean, exact)
        yield apart(var, torch.zeros(case.batch))


@between.identity("from r = 0 to s = t − 1 it is the book's", 1, 1e-8, route="Eq. 4.3 and Eq. 4.4")
def _(f, case):
    x_0, x_t, t = case.normal(name="x_r"), case.normal(name="x_t"), case.t
    mean, var = f(case.schedule, x_0, x_t, torch.zeros_like(t), t - 1, t)
    yield apart(mean, posterior_mean(case.schedule, x_0, x_t, t))
    yield apart(var, posterior_var(case.schedule, t))


@between.identity("dtype, gradients, arguments, order of times", 1, 1e-7, route="what the docstring promises", least=2)
def _(f, case):
    f, (schedule, x_r, x_t, r, s, t) = Watched(f), tried(case)[0]
    mean, var = f(schedule, x_r.float(), x_t.float(), r, s, t)
    yield typed(mean, torch.float32) + typed(var, torch.float64)
    whole, whole_var = f(schedule, x_r.float().double(), x_t.float().double(), r, s, t)
    yield apart(mean, whole, 1e2 * (1 + whole.abs())) + apart(var, whole_var)
    flat = f(schedule, x_r.float().double().flatten(1), x_t.float().double().flatten(1), r, s, t)
    yield apart(flat[0], whole.flatten(1)) + apart(flat[1], var)
    yield f.fault
    yield slope_gap(lambda *x: f.function(schedule, *x, r, s, t)[0], x_r, x_t)
    for wrong in ((r, s, r), (s, r, t), (r, t, s), (r, r, r), (r - 1 - case.T, s, t), (r, s, t + case.T)):
        yield accepted(lambda wrong=wrong: f.function(schedule, x_r, x_t, *wrong))


widest = Problem("2.1.1", "the widest place", "a number: the largest variance between the two times")


widest.secret("the largest variance", 1)


chosen = Problem("2.2", "the bound on chosen times", "f(schedule, times, x_0, steps): the terms L_0..L_n, (B, n+1)")


@chosen.identity("L_n is the divergence from the prior", 1, 1e-9, route="quadrature over x at the last time")
def _(f, case):
    times, x_0, steps = a_model(case)
    x, log_q = drawn(case.schedule, times[-1], x_0.numpy())
    return apart(f(case.schedule, times, x_0, steps)[:, -1], summed((log_q - log_normal(x, 0.0, 1.0)) @ WEIGHTS))


@chosen.identity("L_0 is what the last step costs", 1, 1e-8, route="quadrature over x at the first time")
def _(f, case):
    (times, x_0, steps), (a, b, v) = a_model(case), a_model(case)[2][0]
    x, _ = drawn(case.schedule, times[0], x_0.numpy())
    exact = -log_normal(x_0.numpy()[..., None], a * x + b, v) @ WEIGHTS
    return apart(f(case.schedule, times, x_0, steps)[:, 0], summed(exact))


@chosen.identity("each L_i between is a mean divergence", 2, 1e-7, route="quadrature forwards, Bayes' rule", least=2)
def _(f, case):
    times, x_0, steps = a_model(case)
    if len(times) == 1:
        times, steps = [1, case.T], [*steps, (0.8, 0.1, 0.4)]
    found = f(case.schedule, times, x_0, steps)
    for i, (s, t) in enumerate(itertools.pairwise(times), start=1):
        (x_s, log_s), (a, b, v) = drawn(case.schedule, s, x_0.numpy()), steps[i]
        x_t, log_step = drawn(case.schedule, t, x_s, s)
        scale, var = (float(each[t]) for each in walk(case.schedule))
        log_t = log_normal(x_t, scale * x_0.numpy()[..., None, None], var)
        ratio = log_step + log_s[..., None] - log_t - log_normal(x_s[..., None], a * x_t + b, v)
        yield apart(found[:, i], summed(ratio @ WEIGHTS @ WEIGHTS))


@chosen.identity("the sum is −log p(x_0) and the paths' divergence", 1, 1e-7, route="matrices of whole paths")
def _(f, case):
    times, x_0, steps = a_model(case)
    x_0 = x_0.flatten(1)[:, :3]
    exact = [sum(bound(case.schedule, times, x, steps) for x in row) for row in x_0.tolist()]
    return apart(f(case.schedule, times, x_0, steps).sum(1), torch.tensor(exact, dtype=torch.float64))


@chosen.identity("for data N(0, 1) the true steps lose nothing", 1, 1e-8, route="the density of the data")
def _(f, case):
    times, x_0, _ = a_model(case)
    levels = walk(case.schedule)[0][[0, *times]]
    steps = [(a, 0.0, 1 - a**2) for a in (levels[1:] / levels[:-1]).tolist()]  # N(0, 1) stays N(0, 1)
    exact = -log_density(x_0, 0.0, 1.0).flatten(1).sum(1)
    return apart(f(case.schedule, times, x_0, steps).sum(1), exact)


@chosen.identity("rows, dtype, one time or all, gradients, arguments", 1, 1e-7, route="what the docstring promises")
def _(f, case):
    f, x_0 = Watched(f), case.normal(name="x_0").float()
    for times in ([case.T], list(range(1, min(case.T, 25) + 1))):
        steps = [(0.9, 0.1, 0.3)] * len(times)
        found = f(case.schedule, times, x_0, steps)
        yield typed(found, torch.float64)
        yield apart(found, torch.cat([f(case.schedule, times, x[None].double(), steps) for x in x_0]))
        yield fault(found.shape != (case.batch, len(times) + 1))
        yield f.fault
        yield slope_gap(lambda x, times=times, steps=steps: f.function(case.schedule, times, x, steps), x_0) / 1e3


merged = Problem("2.2.1", "two steps made one", "a number: by how much the bound falls")


merged.secret("the difference", 1)


factor = Problem("2.3", "one factor for all steps", "f(schedule, x_0, x_t, mean, t): the factor, and the nats saved")


@factor.identity("at the factor the cost is flat", 2, 1e-8, route="autograd of the summed Eq. 5.4", least=2)
def _(f, case):
    given = a_batch(case)
    shape = tuple(torch.as_tensor(f(*given)[0]).shape)
    note(fault(shape != ()), f"The factor has the shape {shape}: one number is asked for.")
    yield fault(shape != ())
    log_scale = torch.as_tensor(f(*given)[0], dtype=torch.float64).log().detach().requires_grad_()
    (slope,) = torch.autograd.grad(costs(given, log_scale.exp()), log_scale)
    size = given[1].numel()
    note(abs(float(slope)) / size, f"The cost changes by {float(slope):.3g} nats for each unit of the factor's log.")
    yield abs(float(slope)) / size


@factor.identity("the saving is the difference of two costs", 1, 1e-8, route="Eq. 5.4, summed twice", least=2)
def _(f, case):
    given = a_batch(case)
    grid = torch.linspace(-1, 3, 401, dtype=torch.float64).exp()
    least = float(torch.stack([costs(given, scale) for scale in grid]).min())
    scale, saving = (float(v) for v in f(*given))
    exact = float(costs(given, 1.0) - costs(given, scale))
    yield apart(saving, exact, 1 + abs(exact))
    yield fault(float(costs(given, scale)) > least + 1e-9 * abs(least))


@factor.identity("precision, arguments, no t = 1", 1, 1e-9, route="what the docstring promises", least=2)
def _(f, case):
    f, (schedule, *images, t) = Watched(f), a_batch(case)
    single = [x.float() for x in images]
    for got, exact in zip(f(schedule, *single, t), f(schedule, *(x.double() for x in single), t), strict=True):
        yield typed(got, torch.float64) + apart(got, exact, 1 + abs(float(exact)))
    row = f(schedule, *(x.flatten(1) for x in images), t)
    yield apart(torch.stack(row), torch.stack(f(schedule, *images, t)))
    yield f.fault
    yield accepted(lambda: f.function(schedule, *images, torch.where(t == t.max(), 1, t)))


palette = Problem("2.4", "a decoder for a palette", "f(level, mean, var, palette): log P of each entry in nats")


@palette.identity("the levels' probabilities sum to 1", 1, 1e-9, route="the sum over all levels")
def _(f, case):
    level, mean, var, values = a_palette(case)
    each = [f(torch.full_like(level, k), mean, var, values).exp() for k in range(len(values))]
    return apart(sum(each), torch.ones(case.size))


@palette.identity("each is the area of its bin", 2, 1e-6, route="quadrature of the density over the bin")
def _(f, case):
    given = a_palette(case, 1.0)
    exact = exact_log(*given)
    return apart(f(*given), exact, 1 + exact.abs())


@palette.identity("a sharp model that is wrong", 1, 1e-9, route="quadrature from the bin's nearer end")
def _(f, case):
    for std in (0.01, 1e-4):
        given = a_palette(case, std)
        exact = exact_log(*given)
        yield apart(f(*given), exact, 1 + exact.abs())


palette.book("discretised decoder", 1, book_decoder)


@palette.identity("arguments, and what is refused", 1, 1e-9, route="what the docstring promises")
def _(f, case):
    f, (level, mean, var, values) = Watched(f), a_palette(case)
    yield typed(f(level, mean.float(), var.float(), values.float()), torch.float64)
    yield f.fault
    twice = values[[0, *range(len(values))]]
    wrong_levels, wrong_palettes = (level - 9, level + 9), (values.flip(0), twice)
    refused = [(wrong, mean, var, values) for wrong in wrong_levels] + [(level, mean, 0 * var, values)]
    for wrong in refused + [(level, mean, var, wrong) for wrong in wrong_palettes]:
        yield accepted(lambda wrong=wrong: f.function(*wrong))


bits = Problem("2.4.1", "what four greys cost", "a number: bits per dimension")


bits.secret("bits per dimension", 1)


mistake = Problem("2.5", "find the mistake", "a number: that of the wrong line")


mistake.secret("the line", 2)
