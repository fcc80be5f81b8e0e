"""Texts with slips in them, other ones for each student: a sampler to repair, and a derivation to read.

Of each line there are several forms. Which of them hold is not said here; the text of a student has as many lines of
another form as slips, chosen by the student's id.
"""

import hashlib
from itertools import pairwise

import torch

from ddpm_lib.homework import numbers

_SAMPLER = """def walk_back(eps_model, schedule, x, times, w, generator=None):
    a = schedule.alpha_bar
{}
{}
{}
{}
        large = 1 - r
{}
{}
{}
{}
{}
    return x"""

_LINES = (  # of the sampler, line 3 on
    ("    for t, s in pairwise(times):", "    for t, s in pairwise(times[:-1]):"),
    (
        "        eps = eps_model(x, torch.full((len(x),), max(s, 1)))",
        "        eps = eps_model(x, torch.full((len(x),), max(t - 1, 1)))",
        "        eps = eps_model(x, torch.full((len(x),), t))",
    ),
    (
        "        x_0 = (x - (1 - a[t]) * eps) / a[t].sqrt()",
        "        x_0 = (x - (1 - a[t]).sqrt() * eps) / a[s].sqrt()",
        "        x_0 = (x - (1 - a[t]).sqrt() * eps) / a[t].sqrt()",
    ),
    ("        r = a[t] / a[s]", "        r = a[t] / a[t - 1]"),
    (
        "        small = large * (1 - a[s]) / (1 - a[t])",
        "        small = large * (1 - a[t - 1]) / (1 - a[t])",
        "        small = large * a[s] / a[t]",
    ),
    (
        "        x = (a[s].sqrt() * large * x_0 + r * (1 - a[s]) * x) / (1 - a[t])",
        "        x = (a[s].sqrt() * large * x_0 + r.sqrt() * (1 - a[s]) * x) / (1 - a[t])",
        "        x = (a[t].sqrt() * large * x_0 + r.sqrt() * (1 - a[s]) * x) / (1 - a[t])",
        "        x = (a[s].sqrt() * large * x_0 + a[t].sqrt() * (1 - a[s]) * x) / (1 - a[t])",
    ),
    ("        if s > 0:", "        if t > 0:"),
    (
        "            z = torch.rand(x.shape, generator=generator, dtype=x.dtype)",
        "            z = torch.randn(x.shape, generator=generator, dtype=x.dtype)",
        "            z = torch.randn(x[:1].shape, generator=generator, dtype=x.dtype)",
    ),
    (
        "            x = x + large**w * small ** (1 - w) * z",
        "            x = x + (large**w * small ** (1 - w)).sqrt() * z",
        "            x = x + (large ** (1 - w) * small**w).sqrt() * z",
    ),
)
_KINDS = (0, 1, 6), (2, 3, 5), (4, 7, 8)  # a student's text has a slip of each

_STEPS = (
    (
        r"Given $x_0$: $x_t = \sqrt{\bar\alpha_t}\,x_0+(1-\bar\alpha_t)\,\varepsilon$, "
        r"$\varepsilon\sim\mathcal N(0,I)$.",
        r"Given $x_0$: $x_t = \sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon$, "
        r"$\varepsilon\sim\mathcal N(0,I)$.",
    ),
    (
        r"Try $x_s = c_0x_0+c_tx_t+\sigma z$, $z\sim\mathcal N(0,I)$ independent of $x_t$. Given $x_0$, its mean is "
        r"$(c_0+c_t\sqrt{\bar\alpha_t})\,x_0$ and its variance $c_t^2\,(1-\bar\alpha_t)+\sigma^2$.",
        r"Try $x_s = c_0x_0+c_tx_t+\sigma z$, $z\sim\mathcal N(0,I)$ independent of $x_t$. Given $x_0$, its mean is "
        r"$(c_0+c_t\sqrt{\bar\alpha_t})\,x_0$ and its variance $\big(c_t\sqrt{1-\bar\alpha_t}+\sigma\big)^2$.",
    ),
    (
        r"To keep the marginal: $c_0+c_t\sqrt{\bar\alpha_t}=\sqrt{\bar\alpha_s}$, and the variance must be "
        r"$1-\bar\alpha_s$.",
        r"To keep the marginal: $c_0+c_t\sqrt{\bar\alpha_t}=\sqrt{\bar\alpha_s}$, and the variance must be "
        r"$1-\bar\alpha_t/\bar\alpha_s$.",
    ),
    (
        r"So $c_t=\dfrac{\sqrt{1-\bar\alpha_s-\sigma^2}}{1-\bar\alpha_t}$ and "
        r"$c_0=\sqrt{\bar\alpha_s}-c_t\sqrt{\bar\alpha_t}$.",
        r"So $c_t=\sqrt{\dfrac{1-\bar\alpha_s-\sigma^2}{1-\bar\alpha_t}}$ and "
        r"$c_0=\sqrt{\bar\alpha_s}-c_t\sqrt{\bar\alpha_t}$.",
    ),
    (
        r"Written with the noise: $x_s=\sqrt{\bar\alpha_s}\,x_0+(1-\bar\alpha_s-\sigma^2)\,\varepsilon+\sigma z$.",
        r"Written with the noise: $x_s=\sqrt{\bar\alpha_s}\,x_0+\sqrt{1-\bar\alpha_s-\sigma^2}\;\varepsilon+\sigma z$.",
    ),
    (
        r"For the posterior, with $r=\bar\alpha_t/\bar\alpha_s$ the precisions add: "
        r"$\dfrac1{\sigma^2}=\dfrac r{1-r}+\dfrac1{1-\bar\alpha_s}$.",
        r"For the posterior, with $r=\bar\alpha_t/\bar\alpha_s$ the precisions add: "
        r"$\dfrac1{\sigma^2}=\dfrac 1{1-r}+\dfrac1{1-\bar\alpha_s}$.",
    ),
    (
        r"The sum is $\dfrac{1-\bar\alpha_s}{(1-r)(1-\bar\alpha_t)}$, so "
        r"$\sigma^2=\dfrac{1-\bar\alpha_t}{1-\bar\alpha_s}\,(1-r)$.",
        r"The sum is $\dfrac{1-\bar\alpha_t}{(1-r)(1-\bar\alpha_s)}$, so "
        r"$\sigma^2=\dfrac{1-\bar\alpha_s}{1-\bar\alpha_t}\,(1-r)$.",
    ),
    (
        r"For $s=t-1$ this is $\beta_t$, the variance of a forward step; and a step to $s=0$ adds no noise.",
        r"For $s=t-1$ this is $\tilde\beta_t$, the posterior variance; and a step to $s=0$ adds no noise.",
    ),
)
_MARKS = "099c 359a 3e7f 45e7 5b81 6113 657b 6b05 7fff 84c5 87ba 8a18 ad16 d12c e421 f661 f782"


def _mark(form: str) -> str:
    return hashlib.sha256(form.encode()).hexdigest()[:4]


def _chosen(forms: tuple[str, ...], slip: bool, who: str | None) -> str:
    """A form of a line that holds, or the student's one of those that do not."""
    fitting = [form for form in sorted(forms) if (_mark(form) in _MARKS.split()) != slip]
    return numbers.choice(forms[0], fitting, who)


def slips(who: str | None) -> list[int]:
    """The indices in _LINES of a student's slips."""
    return sorted(numbers.choice(f"slip {i}", list(kind), who) for i, kind in enumerate(_KINDS))


def sampler_text(who: str | None = None) -> str:
    """A student's sampler, with three lines that do not hold. Lines are counted from 1, the line of `def`."""
    places = slips(who)
    return _SAMPLER.format(*(_chosen(forms, i in places, who) for i, forms in enumerate(_LINES)))


def sampler(who: str | None = None):
    """The same as a function."""
    names = {"torch": torch, "pairwise": pairwise}
    exec(sampler_text(who), names)
    return names["walk_back"]


def mistake(who: str | None = None) -> int:
    """The number of the line, from 1, in a student's derivation that does not hold."""
    return numbers.whole("mistake", 1, len(_STEPS), who)


def derivation(who: str | None = None) -> None:
    """Show a student's derivation of DDIM's step, in numbered lines, of which one does not hold."""
    from IPython.display import display

    slip = mistake(who)
    rows = [f"{i}. {_chosen(forms, i == slip, who)}" for i, forms in enumerate(_STEPS, 1)]
    text = "\n".join(rows)
    display({"text/markdown": text, "text/plain": text}, raw=True)
