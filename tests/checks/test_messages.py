"""What a check says when it fails: a student reads which equation, what was given, what came and what to look at."""

import inspect
import math
import re

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import nn

from ddpm_lib.checks import NO_SOURCE, find, holds, in_circulation, load_all, verify
from ddpm_lib.checks.message import LINES, WIDTH
from ddpm_lib.diffusion.forward import q_sample
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.networks.blocks import ResidualBlock


def message(name, function):
    with pytest.raises(AssertionError) as error:
        verify(name, function)
    return str(error.value)


def posterior(form):
    """The posterior mean from a form of (ᾱ_t, ᾱ_{t−1}, β_t, α_t, x_0, x_t)."""

    def posterior_mean(schedule, x_0, x_t, t):
        tables = (schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t], schedule.alpha[t])
        return form(*(v.reshape(-1, 1, 1, 1) for v in tables), x_0, x_t)

    return posterior_mean


def plain_posterior_mean(schedule, x_0, x_t, t):
    a, before = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    return (before.sqrt() * schedule.beta[t] * x_0 + schedule.alpha[t].sqrt() * (1 - before) * x_t) / (1 - a)


def plain_jump(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t]
    return a.sqrt() * x_0 + (1 - a).sqrt() * eps


def jump_in_place(schedule, x_0, eps, t):
    x_0 -= x_0 - q_sample(schedule, x_0, eps, t)
    return x_0


def jump_of_tensors_only(schedule, x_0, eps, t):
    return q_sample(schedule, x_0, eps, t.reshape(-1))


def step_without_generator(schedule, x_prev, t, generator):
    beta = schedule.beta[t].reshape(-1, 1, 1, 1)
    return (1 - beta).sqrt() * x_prev + beta.sqrt() * torch.randn_like(x_prev)


def first_step_zero(schedule, t):
    t = torch.as_tensor(t)
    return torch.where(t == 1, 1e-20, posterior_var(schedule, t))


class BlockWithoutNorm(ResidualBlock):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.norm_2 = nn.Identity()


def right(schedule, x_0, x_t, t):
    return posterior_mean(schedule, x_0, x_t, t)


def calls_exit(schedule, x_0, x_t, t):
    raise SystemExit


def not_written(schedule, x_0, x_t, t):
    raise NotImplementedError


def wrong_once(schedule, x_0, x_t, t, calls=[]):  # noqa: B006
    calls.append(1)
    return right(schedule, x_0, x_t, t) + (len(calls) == 1)


def tables_as_the_images(schedule, x_0, x_t, t):
    a, before, beta, alpha = (
        v.reshape(-1, 1, 1, 1).to(x_t.dtype)
        for v in (schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t], schedule.alpha[t])
    )
    return (before.sqrt() * beta * x_0 + alpha.sqrt() * (1 - before) * x_t) / (1 - a)


def keeps_a_count(var, calls=[]):  # noqa: B006
    calls.append(1)
    return (var / (2 * math.pi)) ** 0.5 + 1e-6 * (len(calls) - 1), var / 2


SLIPS = {  # what: equation, function, what the message says, and its last line
    "no reshape, silently along the width": (
        "posterior mean",
        plain_posterior_mean,
        "returned .* at t = 4, index",
        r"\(4, 1, 1, 1\).* `coefficient`",
    ),
    "no reshape, an error": (
        "forward jump",
        plain_jump,
        r"line \d+: `return a.sqrt\(\) \* x_0",
        r"shape \(4,\) must be reshaped to \(4, 1, 1, 1\) to multiply images \(4, 3, 2, 2\).* `coefficient`",
    ),
    "one t for all": (
        "posterior mean",
        lambda s, x_0, x_t, t: right(s, x_0, x_t, t[:1].expand(len(t)) if not isinstance(t, int) else t),
        r"Called: f\(schedule \(T=4\), x_0 \(4, 4, 4, 4\), x_t \(4, 4, 4, 4\), t \(4,\)\)",
        "known wrong version .*first t",
    ),
    "t from 0 forgotten, with tables of length T": (
        "signal-to-noise ratio",
        lambda schedule, t: schedule.alpha_bar[1:].gather(0, torch.as_tensor(t)),
        "It raised RuntimeError: index .* out of",
        "T entries of 1..T is read at t − 1",
    ),
    "the sign": ("posterior mean", lambda *given: -right(*given), "at t = 3, index", "wrong sign"),
    "a factor": ("posterior mean", lambda *given: 3 * right(*given), "at t = 3, index", "3 times what is expected"),
    "the formula": (
        "posterior mean",
        posterior(lambda a, b, beta, alpha, x_0, x_t: b * x_0 + x_t),
        r"t = \d",
        r"at t = \d by hand",
    ),
    "nothing returned": ("posterior mean", lambda s, x_0, x_t, t: None, "returned None", "`return`"),
    "a word": (
        "posterior mean",
        lambda s, x_0, x_t, t: "done",
        "returned a str",
        r"Return a tensor of shape \(4, 4, 4",
    ),
    "a mean": (
        "posterior mean",
        lambda *given: right(*given).mean(0),
        r"shape \(4, 4, 4\), where \(4, 4, 4, 4\)",
        "sums, means",
    ),
    "an argument too few": ("posterior mean", lambda schedule, x_0, t: x_0, "takes schedule, x_0, t", "x_0, x_t, t"),
    "one too many": ("posterior mean", lambda schedule, x_0, x_t, t, s: x_0, "takes .*x_t, t, s", "x_0, x_t, t"),
    "not a number": (
        "posterior mean",
        lambda *given: math.nan * right(*given),
        "returned nan at t = 4",
        "division by 0",
    ),
    "float32": (
        "posterior mean",
        lambda s, x_0, x_t, t: right(s, x_0.float(), x_t.float(), t),
        "at t = ",
        "float32 .*float64 here",
    ),
    "float32 on the way": (
        "posterior mean",
        lambda s, x_0, x_t, t: right(s, x_0.float(), x_t.float(), t).double() * (1 + 1e-15),
        "at t = ",
        "float32's size: compute in float64",
    ),
    "tables in float32": ("posterior mean", tables_as_the_images, "float32", "known wrong version|tables must not be"),
    "a state": ("moments of ReLU", keeps_a_count, "once more .* another result", "keeps from one call to the next"),
    "a half": ("denoising score matching", lambda a, b, c: (a - b + c) / 2, "denoising=", "0.5 times what is expected"),
    "real numbers": (
        "a random step",
        lambda schedule, batch, generator: torch.randint(1, schedule.T + 1, (batch,), generator=generator).int(),
        "returned int32, where int64 is expected",
        "int64",
    ),
    "detached": (
        "posterior mean",
        lambda s, x_0, x_t, t: right(s, x_0.detach(), x_t, t),
        "gradient is wrong",
        "detach",
    ),
    "in place": ("forward jump", jump_in_place, "changes its argument x_0 in place", "copy"),
    "no int": ("forward jump", jump_of_tensors_only, "'int' object has no attribute 'reshape'", "t is the int 1"),
    "exit": ("posterior mean", calls_exit, "raised SystemExit", r"exit\(\)"),
    "not written": ("posterior mean", not_written, "NotImplementedError", "not written yet"),
    "wrong once": ("posterior mean", wrong_once, "", "kept between calls"),
    "no function": ("posterior mean", 3, "an int is no function", r"f\(schedule, x_0, x_t, t\)"),
    "the generator ignored": ("forward step", step_without_generator, "The generator does not decide", "torch.randn"),
    "the weights": (
        "mixing with noise",
        lambda x, eps, beta: (1 - beta) * x + beta * eps,
        "beta=0.1",
        "known wrong .* averages",
    ),
    "a clamp at t = 1": (
        "posterior variance",
        first_step_zero,
        "1e-20 at t = 1, index 1, where 0 is",
        "known wrong version",
    ),
    "a table, no schedule": (
        "linear schedule",
        lambda T, first, last: torch.linspace(first, last, T),
        "a Schedule is expected",
        r"Return a Schedule: ddpm_lib\.diffusion\.schedule\.Schedule\(beta\)",
    ),
    "a table in float32": (
        "linear schedule",
        lambda T, first, last: Schedule(torch.linspace(first, last, T)),
        r"beta is .* at t = \d+",
        "float32",
    ),
    "t from 0": (
        "linear schedule",
        lambda T, a, b: Schedule(a + torch.arange(1, T + 1, dtype=torch.float64) / T * (b - a)),
        r"T=1000, beta_1=0.0001, beta_T=0.02\)\nbeta is",
        "known wrong version .* t/T instead",
    ),
    "a norm forgotten": (
        "residual block",
        BlockWithoutNorm,
        r"norm_2\.\w+ is nothing, where \(4,\) is",
        "names, sizes and bias",
    ),
    "a layer for a block": (
        "residual block",
        lambda c_in, c_out, embed, **_: nn.Conv2d(c_in, c_out, 3),
        "c_in=4, c_out=4, embed=5",
        "learned",
    ),
    "a module without parts": (
        "self-attention",
        lambda c, **_: nn.Sequential(),
        "returned|is nothing",
        r"returns a module|names, sizes",
    ),
}


@pytest.mark.parametrize("what", SLIPS)
def test_a_failure_says_which_equation_what_came_and_what_to_look_at_in_six_short_lines(what):
    name, function, told, helps = SLIPS[what]
    said = message(name, function)
    rows = said.splitlines()
    assert rows[0].startswith(f"{find(name).title} does not hold")
    assert len(rows) <= LINES == 6 and all(len(row) <= WIDTH < 100 for row in rows)
    assert re.search(told, said)
    start = max(i for i, row in enumerate(rows) if not row.startswith("  "))
    assert re.search(helps, " ".join(row.strip() for row in rows[start:]))


def right_by_reshape(schedule, x_0, x_t, t):
    return posterior(lambda a, b, beta, alpha, x, y: (b.sqrt() * beta * x + alpha.sqrt() * (1 - b) * y) / (1 - a))(
        schedule, x_0, x_t, t
    )


def test_what_the_message_tells_to_do_is_right():
    verify("posterior mean", right_by_reshape)


def test_a_t_at_which_alone_something_is_wrong_is_named():
    def late(schedule, x_0, x_t, t):
        mean = right(schedule, x_0, x_t, t)
        return torch.where(torch.as_tensor(t).reshape(-1, 1, 1, 1) == 1, mean + 0.1 * x_t, mean)

    assert "Right at t = 2, 3, 4, wrong at t = 1: look at the first step" in message("posterior mean", late)


def raising(error):
    def function(*args, **options):
        raise error

    return function


class Odd:
    """Whatever is done with it raises."""

    def __getattribute__(self, name):
        raise LookupError

    def __repr__(self):
        raise SystemExit


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


NASTY = {
    "exit": raising(SystemExit(0)),
    "no message": raising(Unprintable()),
    "GeneratorExit": raising(GeneratorExit()),
    "a group": raising(ExceptionGroup("several", [ValueError(), TypeError()])),
    "an odd object": lambda *args, **options: Odd(),
    "itself": lambda *args, **options: NASTY["itself"],
    "a class": int,
    "a builtin": len,
    "no end": lambda *args, **options: NASTY["no end"](*args, **options),
    "text": "posterior_mean",
    "everything": lambda *args, **options: args,
}


@pytest.mark.parametrize("what", NASTY)
@pytest.mark.parametrize("name", ["posterior mean", "forward step", "linear schedule", "residual block", "batches"])
def test_whatever_a_function_does_it_is_an_assertion_error_with_a_reason(name, what):
    said = message(name, NASTY[what])
    assert said.startswith(f"{find(name).title} does not hold")
    assert 2 <= len(said.splitlines()) <= LINES


def test_ctrl_c_is_not_held_back():
    with pytest.raises(KeyboardInterrupt):
        verify("posterior mean", raising(KeyboardInterrupt()))


@pytest.mark.parametrize("name", ["posterior mean", "mixing with noise"])
def test_a_function_that_is_missing_is_the_caller_s_mistake(name):
    with pytest.raises(ValueError, match=r"pass the function to check, as in holds\('.*', f\), for f\("):
        verify(name, None)


@pytest.mark.parametrize(
    "name", ["Posterior mean", "posterior_mean", "posterior means", "Eq. 4.4", "4.4", "postreior mean"]
)
def test_a_name_that_is_nearly_right_is_recognised(name):
    with pytest.raises(ValueError, match=r"did you mean 'posterior mean'\?$"):
        verify(name, right)


def test_what_holds_prints_is_wrapped_between_words(capsys):
    for name in ("mixing with noise", "a shift in time is a rotation"):
        holds(name)
        rows = capsys.readouterr().out.splitlines()
        assert all(len(row) <= WIDTH for row in rows) and all(row.startswith("    ") for row in rows[1:])
        found = find(name)
        assert " ".join(" ".join(rows).split()).startswith(f"{found.title} holds: {found.route}, {found.precision}.")


def test_what_in_circulation_prints_is_wrapped_between_words(capsys):
    for name, found in load_all().items():
        in_circulation(name)
        rows = capsys.readouterr().out.splitlines()
        assert all(len(row) <= WIDTH and row.startswith(("in circulation: ", "    ")) for row in rows)
        public = [wrong for wrong in found.wrong_versions if not wrong.seen.startswith(NO_SOURCE)]
        expected = " ".join(f"in circulation: {wrong.what} ({wrong.seen})" for wrong in public)
        assert " ".join(" ".join(rows).split()) == " ".join(expected.split())


@pytest.mark.parametrize("found", load_all().values(), ids=lambda found: found.title)
def test_every_check_knows_the_book_s_own_function_and_the_names_of_its_arguments(found):
    assert callable(found.own)
    taken = list(inspect.signature(found.own).parameters)
    by_place = [name for name in found.arguments if "=" not in name]
    assert by_place == taken[: len(by_place)] != []
    assert {name.partition("=")[0] for name in found.arguments} <= set(taken)


CELL = """
from ddpm_lib.checks import holds
def posterior_mean(schedule, x_0, x_t, t):
    return schedule.alpha_bar[t] * x_0
holds({name!r}, posterior_mean)
"""


@pytest.mark.parametrize("name", ["posterior mean", "posterior men"])
def test_in_a_notebook_the_message_stands_alone(name, capsys):
    shell = InteractiveShell.instance()
    try:
        result = shell.run_cell(CELL.format(name=name))
        shown = re.sub(r"\x1b\[[\d;]*m", "", "".join(capsys.readouterr())).strip()
    finally:
        InteractiveShell.clear_instance()
    assert isinstance(result.error_in_exec, (AssertionError, ValueError))
    assert shown == str(result.error_in_exec)
    assert "Traceback" not in shown and "-----" not in shown and len(shown.splitlines()) <= LINES


def test_a_function_that_passes_is_examined_once_and_as_it_is(monkeypatch):
    """What is kept costs time and memory: only a function that has failed is wrapped, and runs again."""
    seen, found = [], find("posterior mean")
    measure = found.measure
    monkeypatch.setattr(found, "measure", lambda f: seen.append(f) or measure(f))
    verify("posterior mean", posterior_mean)
    assert seen == [posterior_mean, *(wrong.function for wrong in found.wrong_versions)]
    message("posterior mean", calls_exit)
    assert len(seen) == 2 + len(found.wrong_versions) + 1
