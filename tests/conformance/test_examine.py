"""What is found of a function: it holds, in float64 or as far as float32 reaches, or is off, and like which mistake."""

import math

import pytest
import torch

from ddpm_lib.checks import find, load_all
from ddpm_lib.conformance.examine import conforms, examine
from ddpm_lib.conformance.trace import Trace, result_of
from ddpm_lib.diffusion.forward import q_sample
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.targets import v_from_eps


def table(values, t, x):
    return values[t].reshape(-1, *[1] * (x.ndim - 1))


def jump(tables, images):
    """A forward jump whose tables and images are of these dtypes: as float32 libraries compute it."""

    def q(schedule, x_0, eps, t):
        a = torch.cumprod(1 - schedule.beta.to(tables), 0)
        x_0, eps = x_0.to(images), eps.to(images)
        return table(a.sqrt(), t, x_0) * x_0 + table((1 - a).sqrt(), t, x_0) * eps

    return q


def mean(schedule, x_0, x_t, t, a=None, extra=0.0):
    a = schedule.alpha_bar if a is None else a
    b, alpha = (table(v, t, x_t) for v in (schedule.beta.to(a), schedule.alpha.to(a)))
    now, before = table(a, t, x_t), table(a, t - 1, x_t)
    return (before.sqrt() * b * x_0 + alpha.sqrt() * (1 - before) * x_t) / (1 - now + extra)


def test_a_right_function_holds_to_the_check_s_precision():
    found = examine("posterior mean", posterior_mean)
    assert (found.status, found.line, found.function) == ("holds", "to 1e-9: Bayes' rule on a grid", "posterior_mean")
    assert found.accepted() and found.known is None and found.help == ""


@pytest.mark.parametrize("images", [torch.float32, torch.float64])
def test_float32_arithmetic_is_told_from_a_mistake(images):
    found = examine("forward jump", jump(torch.float32, images))
    assert found.status == "float32" and found.known is None
    assert found.line.startswith("to float32 (") and "not to 1e-12: the chain walked" in found.line
    assert found.accepted(float32=True) and not found.accepted()


def test_float32_excuses_nothing_that_the_right_formula_does_better_in_float32():
    def of_single(extra):
        return lambda s, x_0, x_t, t: mean(s, x_0, x_t, t, torch.cumprod(1 - s.beta.float(), 0), extra)

    assert examine("posterior mean", of_single(0.0)).status == "float32"
    for extra in (1e-6, 1e-5, 1e-3):  # an ε beside 1 − ᾱ_1 = 1e-4
        found = examine("posterior mean", of_single(extra))
        assert found.status == "off" and not found.accepted(float32=True), extra


def test_how_many_times_worse_than_float32_is_said():
    found = examine(
        "posterior mean", lambda s, x_0, x_t, t: mean(s, x_0, x_t, t, torch.cumprod(1 - s.beta.float(), 0), 1e-6)
    )
    assert "times what float32 costs the right formula" in found.line


@pytest.mark.parametrize("least", [1e-12, 1e-4])
def test_float32_is_no_excuse_for_what_computes_in_float64(least):
    """Only extreme cases, which float32 cannot do, tell a clamp from the formula; all others hold."""

    def v(schedule, x_0, eps, t):
        a = schedule.alpha_bar
        return table(a.sqrt(), t, x_0) * eps - table((1 - a).clamp(min=least).sqrt(), t, x_0) * x_0

    found = examine("velocity", v)
    assert found.status == "off" and found.line.endswith(", in extreme cases alone")


def test_a_float32_layer_is_no_reason_to_look_at_more_cases_than_the_function_offers():
    def loss(model, schedule, x_0, eps, t):  # the book's takes a target, too
        x_t = jump(torch.float32, torch.float64)(schedule, x_0, eps, t)
        return (eps - model(x_t, t)).square().flatten(1).mean(1)

    assert examine("L_simple", loss).status == "float32"


@pytest.mark.parametrize("name", ["posterior variance", "forward jump"])
def test_every_registered_mistake_is_recognised(name):
    for wrong in find(name).wrong_versions:
        found = examine(name, wrong.function)
        assert found.status == "off" and found.known is wrong
        assert wrong.what in " ".join(found.help.split()) and wrong.what in found.line


@pytest.mark.soak
@pytest.mark.parametrize("name", load_all())
def test_most_registered_mistakes_of_each_equation_are_recognised(name):
    """All but those that break a promise beside the values, and some of what is drawn at random."""
    wrong = find(name).wrong_versions
    missed = [w.what for w in wrong if examine(name, w.function).known is not w]
    assert len(missed) <= len(wrong) // 2, missed


def test_a_schedule_that_is_right_but_for_float32_has_that_verdict():
    """A schedule is made of a few numbers; rounding them is not yet computing in float32."""

    def scaled_linear(T, beta_1, beta_T, offset=0.0):
        return Schedule(torch.linspace(beta_1**0.5, beta_T**0.5, T) ** 2 + offset)

    def cosine(T, s, beta_max):
        a = torch.cos((torch.linspace(0, T, T + 1) / T + s) / (1 + s) * math.pi / 2) ** 2
        return Schedule((1 - a[1:] / a[:-1]).clip(1e-9, beta_max))

    assert examine("scaled-linear schedule", scaled_linear).status == "float32"
    assert examine("cosine schedule", cosine).status == "float32"
    assert examine("scaled-linear schedule", lambda *given: scaled_linear(*given, 1e-6)).status == "off"


def test_a_mistake_is_recognised_as_far_as_the_check_looks():
    def embedding(t, width, max_period):
        angle = t[:, None] * torch.exp(torch.arange(width // 2) * (-math.log(max_period) / (width // 2 - 1)))
        return torch.cat([angle.sin(), angle.cos()], 1)

    found = examine("time embedding", embedding)
    assert found.status == "off" and found.known.what == "t in place of t − 1"


def test_what_draws_from_torch_s_own_generator_gives_the_same_once_more():
    """Else no known mistake is like it."""
    trace = Trace.of(find("cumulative alpha"), lambda beta: torch.cumprod(1 - beta, 0) * torch.rand(len(beta)))
    before = torch.get_rng_state()
    for call in trace.calls:
        assert torch.equal(result_of(call, trace.function), call.result)
    assert trace.calls and torch.equal(torch.get_rng_state(), before)


def test_a_mistake_made_in_float32_is_recognised_too():
    def v(schedule, x_0, eps, t):
        a = torch.cumprod(1 - schedule.beta.float(), 0)
        return table((1 - a).sqrt(), t, x_0) * x_0 - table(a.sqrt(), t, x_0) * eps

    found = examine("velocity", v)
    assert found.status == "off" and found.known.what == "the sign is turned" in found.line


def test_the_mistake_is_named_that_is_off_by_as_much():
    """At t = 1 a clamp at 1e-20 leaves a variance that has to be 0; in float32 1 − ᾱ is imprecise as well."""

    def var(schedule, t):
        a = torch.cumprod(1 - schedule.beta.float(), 0)
        return ((1 - a[t - 1]) / (1 - a[t]) * schedule.beta.float()[t]).clamp(min=1e-20)

    assert examine("posterior variance", var).known.what == "at least 1e-20, also at t = 1"


def test_no_mistake_is_named_where_several_are_off_by_as_much():
    """Of mistakes that go beyond a scale's end, each is as far off as the other."""
    found = examine("a random step", lambda schedule, batch, generator: torch.ones(batch))
    assert found.status == "off" and found.known is None and "known" not in found.help


def test_a_promise_without_a_size_is_told_in_words():
    def in_place(schedule, x_0, eps, t):
        eps *= 2
        return q_sample(schedule, x_0, eps / 2, t)

    found = examine("forward jump", in_place)
    assert found.status == "off" and found.line == "It changes its argument eps in place."
    found = examine("velocity", lambda *given: v_from_eps(*given) / 0)
    assert found.status == "off" and "where" in found.line and "expected" in found.line


@pytest.mark.parametrize(
    ("function", "status", "said"),
    [
        (lambda schedule, t: 1 / 0, "raised", "ZeroDivisionError: division by zero"),
        (lambda schedule: 1, "raised", "TypeError: "),
        (3, "raised", "an int is no function"),
        (lambda schedule, t: exit(), "raised", "SystemExit"),
    ],
)
def test_whatever_a_function_does_there_is_a_verdict(function, status, said):
    found = examine("posterior variance", function)
    assert found.status == status and found.line.startswith(said)
    assert found.help.startswith("Eq. 4.3 (posterior variance) does not hold")


def test_an_unknown_name_has_a_verdict_with_the_one_that_was_meant():
    found = examine("posterior men", posterior_mean)
    assert (found.status, found.line) == ("unknown", "did you mean 'posterior mean'?")


def test_ctrl_c_is_no_verdict():
    def stop(schedule, t):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine("posterior variance", stop)


def test_conforms_raises_what_the_check_says():
    conforms("posterior variance", posterior_var)
    conforms("forward jump", jump(torch.float32, torch.float32), float32=True)
    with pytest.raises(AssertionError, match=r"Eq\. 3\.5 .* does not hold"):
        conforms("forward jump", jump(torch.float32, torch.float32))
    with pytest.raises(AssertionError, match="known wrong version"):
        conforms("posterior variance", lambda schedule, t: schedule.beta[t], float32=True)
    with pytest.raises(ValueError, match="did you mean"):
        conforms("posterior men", posterior_mean)


def test_a_random_check_has_no_float32():
    found = examine("forward step", lambda s, x, t, generator: torch.zeros_like(x) * math.nan)
    assert found.status == "off"
