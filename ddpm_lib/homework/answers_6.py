"""The answers of problem set 6 that are a number: only the grader has them."""

from ddpm_lib.checks import apart
from ddpm_lib.checks.guard import relative
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.homework.given_6 import double, ending, pair, slope, variances
from ddpm_lib.homework.hidden import answer

RIGHT = ("C = -(E-N)/R", r"Q + s\,C", "H = N + s(E-N)", "H = sE + (1-s)N", "H = (1+w)E - wN")


@answer("6.3.2", to=1e-3, route="differences of logarithms, by quadrature")
def _(f, case):
    mixture, s, t, x = pair(case.who)
    schedule, at = linear_schedule(), double([x])
    of_all, of_class = (slope(mixture, 1, power, schedule, t, at) for power in (0.0, 1.0))
    return relative(float(f()), float(of_all + s * (of_class - of_all) - slope(mixture, 1, s, schedule, t, at)))


@answer("6.3.3", to=2e-3, route="the variance that the scale gives")
def _(f, case):
    of_class, of_data, s = variances(case.who)
    return abs(of_class ** float(f()) * of_data ** (1 - float(f())) * (s / of_class + (1 - s) / of_data) - 1)


@answer("6.4", to=0.01, route="your derivation")
def _(f, case):
    lines = zip(ending(case.who), RIGHT, strict=True)
    return apart(float(f()), 3.0 + [line == other for line, other in lines].index(False))
