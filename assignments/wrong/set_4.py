"""Slips in the reference solutions of problem set 4."""

from assignments.wrong import Wrong

MEAN, VAR = "its mean is that of the product of two bells", "its variance is that of the product"
END, PROMISES = "a jump to s = 0 leaves nothing to chance", "types, gradients, arguments and errors are as promised"
ASKED, DDIM = "the network is asked at u", "without churn it is DDIM, and draws nothing"
SHRINKS, ADDS = "going up shrinks the image as a walk from t to u does", "and adds the variance of this walk"
LAW, FRESH = (
    "with the image known every x keeps its law",
    "the noise is fresh in each step and image, and the generator's",
)
STEP, TINY = "it is the step of DDIM", "a tiny step has all its digits"
INFINITE = "a step of infinite width ends at x_0_hat"
ENDS, NEAREST = "both ends are there, and no time comes twice", "each time is the nearest in λ that is free"
REFUSED = "numbers of steps that make no sense are refused"
CALLS, WALK_MEAN = "the network is asked at every time but the last", "the mean of a step is the posterior's"
WALK_VAR, LAST = "the variance is between its two bounds as w says", "the last step returns x_0_hat without noise"
CONTROLNET = "lllyasviel/ControlNet PR 587"

JUMP = [
    Wrong(
        "4.1",
        MEAN,
        "ᾱ_t in place of r in the weight of x_t",
        "r.sqrt() * (1 - then)",
        "now.sqrt() * (1 - then)",
        "exchange",
        "acids-ircam/diffusion_models",
    ),
    Wrong("4.1", MEAN, "the sign of v", "signal * x_t - noise * v", "signal * x_t + noise * v", "sign"),
    Wrong("4.1", MEAN, "v taken for ε", "signal * x_t - noise * v", "(x_t - noise * v) / signal", "exchange"),
    Wrong("4.1", MEAN, "the mean of t − 1, not of s", "for k in (t, s))\n    r", "for k in (t, t - 1))\n    r", "time"),
    Wrong(
        "4.1",
        VAR,
        "β_t, the variance of one step, for a stride",
        "(1 - r) * (1 - then) / (1 - now)\n    signal",
        "schedule.beta[t].reshape(shape) * (1 - then) / (1 - now)\n    signal",
        "time",
        "huggingface/diffusers 14569",
    ),
    Wrong(
        "4.1",
        VAR,
        "the walk's variance",
        "var = (1 - r) * (1 - then) / (1 - now)",
        "var = (1 - r) * (then < 1)",
        "exchange",
    ),
    Wrong(
        "4.1",
        VAR,
        "a deviation in place of the variance",
        "var.to(x_t.dtype)",
        "var.sqrt().to(x_t.dtype)",
        "power",
        "huggingface/diffusers PR 2090",
    ),
    Wrong(
        "4.1",
        VAR,
        "the fraction upside down",
        "var = (1 - r) * (1 - then) / (1 - now)",
        "var = (1 - r) * (1 - now) / (1 - then)",
        "exchange",
    ),
    Wrong("4.1", END, "the variance clamped at 1e-6", "var.to(x_t.dtype)", "var.clamp(min=1e-6).to(x_t.dtype)", "edge"),
    Wrong(
        "4.1",
        END,
        "ᾱ_1 for the end",
        "for k in (t, s))\n    r",
        "for k in (t, s.clamp(min=1)))\n    r",
        "time",
        CONTROLNET,
    ),
    Wrong("4.1", PROMISES, "float64 comes back", "mean, var.to(x_t.dtype)", "mean.double(), var", "edge"),
    Wrong("4.1", PROMISES, "detached", "return mean, var", "return mean.detach(), var", "gradient"),
    Wrong("4.1", PROMISES, "s = t is let through", "(s < t)", "(s <= t)", "edge"),
    Wrong("4.1", PROMISES, "s < 0 is let through", "(s >= 0) & ", "", "edge"),
    Wrong(
        "4.1",
        PROMISES,
        "written into v",
        "    x_0_hat = signal * x_t - noise * v",
        "    v *= noise\n    x_0_hat = signal * x_t - v",
        "state",
    ),
]
GOES_UP = "            x = r**0.5 * x + (1 - r) ** 0.5 * noise_like(x, generator)\n        eps_hat = eps_model(x,"
CHURN = [
    Wrong(
        "4.2.1",
        ASKED,
        "the network is asked at t",
        "torch.full((len(x),), u))\n        x_0_hat",
        "torch.full((len(x),), t))\n        x_0_hat",
        "time",
    ),
    Wrong(
        "4.2.1", ASKED, "u may leave the schedule's end out", "min(schedule.T, t +", "min(schedule.T - 1, t +", "time"
    ),
    Wrong("4.2.1", ASKED, "rounded up", "math.floor(churn", "math.ceil(churn", "time"),
    Wrong("4.2.1", ASKED, "churned in the last step, too", " if s > 0 else t", "", "edge"),
    Wrong(
        "4.2.1",
        ASKED,
        "float64 comes back",
        "eps_hat = eps_model(x, torch.full((len(x),), u))\n",
        "eps_hat = eps_model(x, torch.full((len(x),), u)).double()\n",
        "edge",
    ),
    Wrong(
        "4.2.1",
        DDIM,
        "noise is drawn and not used",
        "        if u > t:",
        "        noise_like(x, generator)\n        if u > t:",
        "noise",
    ),
    Wrong(
        "4.2.1",
        DDIM,
        "the root of 1 − ᾱ_u lost",
        "(1 - up) ** 0.5 * eps_hat",
        "(1 - up) * eps_hat",
        "power",
        "Ryota-Kawamura/How-Diffusion-Models-Work 1",
    ),
    Wrong(
        "4.2.1", DDIM, "the end read as ᾱ_1", "for k in (t, u, s))", "for k in (t, u, max(s, 1)))", "time", CONTROLNET
    ),
    Wrong(
        "4.2.1",
        DDIM,
        "clipped to [−1, 1]",
        "/ up**0.5\n",
        "/ up**0.5\n        x_0_hat = x_0_hat.clamp(-1, 1)\n",
        "edge",
    ),
    Wrong("4.2.1", SHRINKS, "not shrunk on the way up", "x = r**0.5 * x + (1 - r)", "x = x + (1 - r)", "term"),
    Wrong("4.2.1", SHRINKS, "r without its root", "x = r**0.5 * x", "x = r * x", "power"),
    Wrong("4.2.1", ADDS, "1 − r without its root", "(1 - r) ** 0.5 * noise_like", "(1 - r) * noise_like", "power"),
    Wrong(
        "4.2.1",
        ADDS,
        "1 − ᾱ_u, as if from the clean image",
        "(1 - r) ** 0.5 * noise_like",
        "(1 - up) ** 0.5 * noise_like",
        "exchange",
    ),
    Wrong(
        "4.2.1",
        ADDS,
        "β_u, the variance of one step",
        "(1 - r) ** 0.5 * noise_like",
        "float(schedule.beta[u]) ** 0.5 * noise_like",
        "time",
    ),
    Wrong("4.2.1", LAW, "down as if from t", "/ up**0.5", "/ now**0.5", "time"),
    Wrong(
        "4.2.1",
        LAW,
        "1 − ᾱ_s without its root",
        "(1 - then) ** 0.5",
        "(1 - then)",
        "power",
        "mathpluscode/ImgX-DiffSeg 4",
    ),
    Wrong("4.2.1", FRESH, "no generator", "noise_like(x, generator)", "noise_like(x)", "noise"),
    Wrong(
        "4.2.1", FRESH, "one noise for all images", "noise_like(x, generator)", "noise_like(x[:1], generator)", "noise"
    ),
    Wrong(
        "4.2.1",
        FRESH,
        "uniform noise",
        "noise_like(x, generator)",
        "12**0.5 * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)",
        "noise",
        "acids-ircam/diffusion_models",
    ),
    Wrong(
        "4.2.1",
        FRESH,
        "the same noise in each step",
        "noise_like(x, generator)",
        "noise_like(x, generator.clone_state())",
        "noise",
    ),
]
LAMBDA = [
    Wrong("4.3.1", STEP, "the root of ρ forgotten", "torch.expm1(-2 * h)) / 2)", "torch.expm1(-2 * h)))", "power"),
    Wrong("4.3.1", STEP, "λ taken for the log-SNR", "torch.sigmoid(-2 * lam)", "torch.sigmoid(-lam)", "term"),
    Wrong("4.3.1", STEP, "x is not rescaled", "return growth * x_t + on_eps", "return on_eps", "term"),
    Wrong("4.3.1", STEP, "1 + growth is missing", "(1 + growth) * noise_var", "noise_var", "term"),
    Wrong("4.3.1", STEP, "the sign of h", "torch.expm1(-h)", "-torch.expm1(-h)", "sign"),
    Wrong("4.3.1", STEP, "1 − ᾱ without its root", "noise_var.sqrt()", "noise_var", "power"),
    Wrong("4.3.1", STEP, "one weight for all images", "c.reshape(shape)", "c[:1].reshape(shape)", "axis"),
    Wrong("4.3.1", TINY, "e^x − 1 by subtraction, for ε", "torch.expm1(-h)", "(torch.exp(-h) - 1)", "edge"),
    Wrong(
        "4.3.1",
        TINY,
        "e^x − 1 by subtraction, for x",
        "torch.log1p(noise_var * torch.expm1(-2 * h)) / 2)",
        "torch.log(1 + noise_var * (torch.exp(-2 * h) - 1)) / 2)",
        "edge",
    ),
    Wrong(
        "4.3.1",
        INFINITE,
        "∞·0",
        "torch.expm1(-h)\n",
        "torch.exp(-h) * -torch.expm1(h)\n",
        "edge",
        "huggingface/diffusers 9007",
    ),
    Wrong(
        "4.3.1",
        INFINITE,
        "h cut at 5",
        "    noise_var = torch",
        "    h = h.clamp(max=5)\n    noise_var = torch",
        "edge",
    ),
    Wrong(
        "4.3.1",
        PROMISES,
        "the difference taken in float32",
        "return growth * x_t + on_eps * eps_hat",
        "return (1 + growth) * x_t + on_eps * eps_hat - x_t",
        "edge",
    ),
    Wrong("4.3.1", PROMISES, "float64 comes back", "c.reshape(shape).to(x_t.dtype)", "c.reshape(shape)", "edge"),
    Wrong(
        "4.3.1",
        PROMISES,
        "written into x_t",
        "return growth * x_t + on_eps",
        "return x_t.mul_(growth) + on_eps",
        "state",
    ),
    Wrong(
        "4.3.1",
        PROMISES,
        "a negative h is let through",
        "if bool((h < 0).any())",
        "if bool((h < 0).all() and False)",
        "edge",
    ),
    Wrong("4.3.1", PROMISES, "detached", "on_eps * eps_hat\n", "on_eps * eps_hat.detach()\n", "gradient"),
]
GRID = [
    Wrong("4.4", ENDS, "0 is left out", "return [T, *times[::-1], 0]", "return [T, *times[::-1]]", "edge"),
    Wrong(
        "4.4", ENDS, "nearest times, which come twice", "times[-1] + 1, T - (steps - i)", "1, T - (steps - i)", "edge"
    ),
    Wrong("4.4", ENDS, "the single step ends at 1", "return [T, 0]", "return [T, 1, 0]", "edge"),
    Wrong(
        "4.4",
        ENDS,
        "tensors come back, and floats",
        "return [T, *times[::-1], 0]",
        "return [T, *(t + 0.0 for t in times[::-1]), 0]",
        "edge",
    ),
    Wrong("4.4", ENDS, "no room is kept at the upper end", "T - (steps - i)", "T", "edge"),
    Wrong("4.4", NEAREST, "an index for a time", "append(first + int(", "append(first - 1 + int(", "time"),
    Wrong("4.4", NEAREST, "even in the SNR, not its logarithm", ".log() / 2  # entry", "  # entry", "power"),
    Wrong("4.4", NEAREST, "n intervals, not n − 1", "(i - 1) / (steps - 1)", "(i - 1) / steps", "time"),
    Wrong("4.4", NEAREST, "the table begins a time too late", "lam[first - 1 : last]", "lam[first:last]", "time"),
    Wrong("4.4", NEAREST, "even from the wrong end", "lam[0] + (i - 1)", "lam[-1] - (i - 1)", "sign"),
    Wrong(
        "4.4", REFUSED, "more steps than times are let through", "if not 1 <= steps <= T", "if not 1 <= steps", "edge"
    ),
    Wrong(
        "4.4",
        REFUSED,
        "no steps are let through",
        "    if not 1 <= steps <= T:",
        "    if steps < 1:\n        return [T, 0]\n    if not 1 <= steps <= T:",
        "edge",
    ),
]
LINE_3, LINE_4 = "for t, s in pairwise(times):\n        eps =", "torch.full((len(x),), t))\n        x_0 ="
LINE_5, LINE_8 = "(x - (1 - a[t]).sqrt() * eps) / a[t].sqrt()", "small = large * (1 - a[s]) / (1 - a[t])"
LINE_11, LINE_12 = "torch.randn(x.shape, generator=generator, dtype=x.dtype)", "(large**w * small ** (1 - w)).sqrt()"
REPAIR = [
    Wrong("4.5.2", CALLS, "the last step is left out", LINE_3, LINE_3.replace("times", "times[:-1]"), "time"),
    Wrong(
        "4.5.2",
        CALLS,
        "the network is asked at t − 1",
        LINE_4,
        LINE_4.replace(" t)", " max(t - 1, 1))"),
        "time",
        "udlbook/udlbook, notebook 18.3",
    ),
    Wrong("4.5.2", CALLS, "the network is asked at s", LINE_4, LINE_4.replace(" t)", " max(s, 1))"), "time"),
    Wrong(
        "4.5.2",
        WALK_MEAN,
        "1 − ᾱ_t without its root",
        LINE_5,
        LINE_5.replace(".sqrt() * eps", " * eps"),
        "power",
        "Ryota-Kawamura/How-Diffusion-Models-Work 1",
    ),
    Wrong("4.5.2", WALK_MEAN, "divided by √ᾱ_s", LINE_5, LINE_5.replace("/ a[t]", "/ a[s]"), "time"),
    Wrong("4.5.2", WALK_MEAN, "α_t for a stride", "r = a[t] / a[s]", "r = a[t] / a[t - 1]", "time"),
    Wrong("4.5.2", WALK_MEAN, "r without its root", "r.sqrt() * (1 - a[s]) * x", "r * (1 - a[s]) * x", "power"),
    Wrong("4.5.2", WALK_MEAN, "√ᾱ_t for √ᾱ_s", "(a[s].sqrt() * large", "(a[t].sqrt() * large", "time"),
    Wrong(
        "4.5.2",
        WALK_MEAN,
        "√ᾱ_t for √r",
        "r.sqrt() * (1 - a[s]) * x",
        "a[t].sqrt() * (1 - a[s]) * x",
        "exchange",
        "acids-ircam/diffusion_models",
    ),
    Wrong("4.5.2", WALK_VAR, "t − 1 for s in the small variance", LINE_8, LINE_8.replace("a[s]", "a[t - 1]"), "time"),
    Wrong("4.5.2", WALK_VAR, "1 − is missing twice", LINE_8, "small = large * a[s] / a[t]", "term"),
    Wrong("4.5.2", WALK_VAR, "the variance in place of its root", LINE_12, "large**w * small ** (1 - w)", "power"),
    Wrong("4.5.2", WALK_VAR, "w the wrong way round", LINE_12, "(large ** (1 - w) * small**w).sqrt()", "exchange"),
    Wrong(
        "4.5.2", WALK_VAR, "the mean of the two variances", LINE_12, "(large * w + small * (1 - w)).sqrt()", "exchange"
    ),
    Wrong(
        "4.5.2",
        LAST,
        "noise in the last step",
        "if s > 0:\n            z",
        "if t > 0:\n            z",
        "edge",
        "several tutorials",
    ),
    Wrong(
        "4.5.2",
        FRESH,
        "uniform noise",
        LINE_11,
        LINE_11.replace("randn", "rand"),
        "noise",
        "acids-ircam/diffusion_models",
    ),
    Wrong("4.5.2", FRESH, "one noise for all images", LINE_11, LINE_11.replace("x.shape", "x[:1].shape"), "noise"),
    Wrong("4.5.2", FRESH, "no generator", LINE_11, "torch.randn(x.shape, dtype=x.dtype)", "noise"),
]
LATER = [
    Wrong("4.1", MEAN, "√ᾱ_s without its root", "on_x_0 = then.sqrt() *", "on_x_0 = then *", "power"),
    Wrong(
        "4.1",
        MEAN,
        "tables in float32",
        "k].reshape(shape) for k in (t, s))\n    r",
        "k].reshape(shape).float() for k in (t, s))\n    r",
        "edge",
    ),
    Wrong("4.1", VAR, "the first image’s s for all", "for k in (t, s))\n    r", "for k in (t, s[:1]))\n    r", "axis"),
    Wrong(
        "4.1",
        PROMISES,
        "refused only where all are wrong",
        "(t <= schedule.T)).all()",
        "(t <= schedule.T)).any()",
        "edge",
    ),
    Wrong("4.1", PROMISES, "t > T is let through", " & (t <= schedule.T)", "", "edge"),
    Wrong(
        "4.2.1",
        ASKED,
        "up by a part of s, not of t − s",
        "math.floor(churn * (t - s))",
        "math.floor(churn * s)",
        "exchange",
    ),
    Wrong("4.2.1", ASKED, "rounded", "math.floor(churn * (t - s))", "round(churn * (t - s))", "time"),
    Wrong(
        "4.2.1",
        ASKED,
        "t of another shape",
        "torch.full((len(x),), u))\n        x_0_hat",
        "u)\n        x_0_hat",
        "axis",
    ),
    Wrong(
        "4.2.1",
        ASKED,
        "x_T is written into",
        "            x = r**0.5 * x + (1 - r)",
        "            x = x.mul_(r**0.5) + (1 - r)",
        "state",
    ),
    Wrong(
        "4.2.1",
        ASKED,
        "it starts from T, whatever times say",
        "pairwise(times):\n        u",
        "pairwise([schedule.T, *times[1:]]):\n        u",
        "time",
    ),
    Wrong(
        "4.2.1",
        LAW,
        "the network sees x before the noise",
        GOES_UP,
        GOES_UP.replace("x = r", "old, x = x, r")
        .replace("\n        eps", "\n        else:\n            old = x\n        eps")
        .replace("model(x", "model(old"),
        "time",
    ),
    Wrong(
        "4.3.1",
        TINY,
        "ρ as a quotient, minus 1",
        "torch.expm1(-torch.log1p(noise_var * torch.expm1(-2 * h)) / 2)",
        "(torch.sigmoid(2 * (lam + h)) / torch.sigmoid(2 * lam)).sqrt() - 1",
        "edge",
    ),
    Wrong(
        "4.3.1",
        TINY,
        "h at least 1e-8",
        "    noise_var = torch",
        "    h = h.clamp(min=1e-8)\n    noise_var = torch",
        "edge",
    ),
    Wrong("4.3.1", STEP, "first order in h", "torch.expm1(-h)\n", "-h\n", "term"),
    Wrong("4.3.1", PROMISES, "refused only where all are wrong", "(h < 0).any()", "(h < 0).all()", "edge"),
    Wrong(
        "4.4",
        NEAREST,
        "even in t",
        "snr(schedule, torch.arange(1, T + 1)).log() / 2",
        "torch.arange(1, T + 1).double()",
        "exchange",
    ),
    Wrong(
        "4.4",
        NEAREST,
        "even in the log of the noise",
        "snr(schedule, torch.arange(1, T + 1)).log() / 2",
        "(1 - schedule.alpha_bar[1:]).log()",
        "exchange",
    ),
    Wrong(
        "4.5.2",
        WALK_MEAN,
        "x_0_hat clipped",
        "/ a[t].sqrt()\n        r =",
        "/ a[t].sqrt()\n        x_0 = x_0.clamp(-1, 1)\n        r =",
        "edge",
    ),
    Wrong("4.5.2", WALK_MEAN, "r upside down", "r = a[t] / a[s]", "r = a[s] / a[t]", "exchange"),
    Wrong("4.5.2", WALK_VAR, "β_t for the large variance", "large = 1 - r", "large = schedule.beta[t]", "time"),
    Wrong(
        "4.5.2",
        WALK_VAR,
        "no noise in the step to 1 either",
        "if s > 0:\n            z",
        "if s > 1:\n            z",
        "edge",
    ),
    Wrong("4.5.2", WALK_VAR, "w is not heeded", "(large**w * small ** (1 - w)).sqrt()", "small.sqrt()", "term"),
    Wrong(
        "4.5.2",
        CALLS,
        "the network is asked twice a step",
        "        x_0 = (x - (1 - a[t]).sqrt() * eps)",
        "        eps = eps_model(x, torch.full((len(x),), t))\n        x_0 = (x - (1 - a[t]).sqrt() * eps)",
        "state",
    ),
]
READER = [  # thought up by somebody who only read the set
    Wrong(
        "4.1",
        MEAN,
        "x_0_hat clipped",
        "    x_0_hat = signal * x_t - noise * v",
        "    x_0_hat = (signal * x_t - noise * v).clamp(-1, 1)",
        "edge",
    ),
    Wrong(
        "4.1",
        PROMISES,
        "a variance without the axes of length 1",
        "return mean, var.to(x_t.dtype)",
        "return mean, var.flatten().to(x_t.dtype)",
        "axis",
    ),
    Wrong(
        "4.1",
        END,
        "the mean by precisions: 0·∞ at s = 0",
        "on_x_0 = then.sqrt() * (1 - r) / (1 - now)",
        "on_x_0 = (1 - r) * (1 - then) / (1 - now) * (then.sqrt() / (1 - then))",
        "edge",
    ),
    Wrong(
        "4.2.1",
        ASKED,
        "the floor of c, not of c·(t − s)",
        "math.floor(churn * (t - s))",
        "math.floor(churn) * (t - s)",
        "edge",
    ),
    Wrong("4.2.1", SHRINKS, "√ᾱ_u for √r", "x = r**0.5 * x", "x = up**0.5 * x", "exchange"),
    Wrong(
        "4.3.1",
        STEP,
        "the noise-to-signal ratio for 1 − ᾱ",
        "noise_var = torch.sigmoid(-2 * lam)",
        "noise_var = torch.exp(-2 * lam)",
        "exchange",
    ),
    Wrong(
        "4.3.1",
        STEP,
        "a negative λ is refused",
        "if bool((h < 0).any())",
        "if bool((h < 0).any() or (lam < 0).any())",
        "edge",
    ),
    Wrong(
        "4.4",
        NEAREST,
        "filled from T downwards",
        (
            "    times = [1]\n"
            "    for i in range(2, steps):\n"
            "        target = lam[0] + (i - 1) / (steps - 1) * (lam[-1] - lam[0])\n"
            "        first, last = times[-1] + 1, T - (steps - i)\n"
            "        times.append(first + int((lam[first - 1 : last] - target).abs().argmin()))\n"
            "    return [T, *times[::-1], 0]"
        ),
        (
            "    times = [T]\n"
            "    for i in range(steps - 1, 1, -1):\n"
            "        target = lam[0] + (i - 1) / (steps - 1) * (lam[-1] - lam[0])\n"
            "        first, last = i, times[-1] - 1\n"
            "        times.append(first + int((lam[first - 1 : last] - target).abs().argmin()))\n"
            "    return [*times, 1, 0]"
        ),
        "sign",
    ),
    Wrong(
        "4.4",
        NEAREST,
        "the first time beyond the target, not the nearest",
        "(lam[first - 1 : last] - target).abs().argmin()",
        "(lam[first - 1 : last] > target).sum().clamp(max=last - first)",
        "edge",
    ),
    Wrong("4.4", ENDS, "room for one time too few", "T - (steps - i)", "T - (steps - i) + 1", "time"),
    Wrong("4.5.2", WALK_VAR, "1 − ᾱ_t for the large variance", "large = 1 - r", "large = 1 - a[t]", "exchange"),
    Wrong("4.5.2", WALK_VAR, "no noise where w = 0", "if s > 0:", "if s > 0 and w > 0:", "edge"),
    Wrong(
        "4.5.2",
        WALK_VAR,
        "deviations weighted, not multiplied",
        "(large**w * small ** (1 - w)).sqrt() * z",
        "(w * large.sqrt() + (1 - w) * small.sqrt()) * z",
        "exchange",
    ),
]
WRONG = [*JUMP, *CHURN, *LAMBDA, *GRID, *REPAIR, *LATER, *READER]
