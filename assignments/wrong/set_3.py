"""Slips in the reference solutions of problem set 3."""

from assignments.wrong import Wrong

IMAGE, NOISE, SINGLE = (
    "the clean image comes back",
    "the noise comes back",
    "gradients pass, float32 stays, nothing is overwritten",
)
BOOK_X_0, BOOK_LOSS = "clean image from noise", "L_simple"
ALL, KNOWN, NOTHING = (
    "all known: L_simple of the noise behind u",
    "only known numbers count, each as much",
    "nothing known costs nothing",
)
COST, HARDEST, LINE = "the weight at t = 2", "the largest floor", "the line with the mistake"
MEAN, VAR, TOTAL, FAR, ALIKE = (
    "the mean is Tweedie's",
    "the variance follows from the score's slope",
    "unequal weights: variances add up to that of the data",
    "hardly any noise, and points far away",
    "float32: images that are nearly alike; gradients",
)
FLOOR, MOVED = "the floor at t", "moving all levels changes nothing; one level has floor 0"

X_0 = "x_0 = (x_t - std * u) / both"
EPS = "eps = (kappa * x_t + scale * u) / both"
BOTH = "both = scale + kappa * std"
ENDS = "scale, std = signal_scale(schedule, t, like=x_t), noise_std(schedule, t, like=x_t)"
PAIR = "return x_0, eps\n"
HAT = "_, eps_hat = from_line(schedule, x_t, model(x_t, t), t, kappa)"
SQUARES = "squares = (counted * (eps - eps_hat).square()).flatten(1).sum(1)"
RATIO = "return squares / counted.flatten(1).sum(1).clamp(min=1)"
NOISY = "scale, std = signal_scale(schedule, t, like=noisy), noise_std(schedule, t, like=noisy)"
DISTANCE = "distance = ((noisy - scale * images) / std).square().flatten(2).sum(2)"
SOFTMAX = "r = (weight.log() - distance / 2).softmax(1)"
SPREAD = "var = (r * (images - mean[:, None]).square()).sum(1)"
GRID = "low, high = scale * float(level.min()) - 9 * std, scale * float(level.max()) + 9 * std"
RESULT = "return float(scale**2 / std**2 * (density * var[:, 0]).sum() / density.sum())"

WRONG = [
    # 3.1
    Wrong("3.1", IMAGE, "the sign of u is turned", X_0, X_0.replace("-", "+"), "sign"),
    Wrong("3.1", IMAGE, "κ left out: divided by √ᾱ_t", BOTH, "both = scale", "term"),
    Wrong("3.1", IMAGE, "κ and the bracket's other half exchanged", BOTH, "both = kappa * scale + std", "exchange"),
    Wrong("3.1", IMAGE, "flow matching's x_t: κ = 1 whatever is asked", BOTH, "both = scale + std", "exchange"),
    Wrong("3.1", IMAGE, "the two results in the other order", PAIR, "return eps, x_0\n", "exchange"),
    Wrong(
        "3.1", IMAGE, "the clean image clipped to [−1, 1]", X_0, "x_0 = ((x_t - std * u) / both).clamp(-1, 1)", "edge"
    ),
    Wrong("3.1", NOISE, "κ left out beside x_t", EPS, "eps = (x_t + scale * u) / both", "term"),
    Wrong("3.1", NOISE, "ε taken for u + x_0", EPS, "eps = u + x_0", "term"),
    Wrong("3.1", NOISE, "√(1 − ᾱ_t) for √ᾱ_t", EPS, EPS.replace("scale", "std"), "exchange"),
    Wrong("3.1", SINGLE, "x_t is overwritten", EPS, f"{EPS}\n    x_t.copy_(eps)", "state"),
    Wrong("3.1", SINGLE, "no gradient reaches u", EPS, EPS.replace("u)", "u.detach())"), "gradient"),
    Wrong("3.1", SINGLE, "float64 whatever comes in", PAIR, "return x_0.double(), eps.double()\n", "edge"),
    Wrong(
        "3.1",
        BOOK_X_0,
        "variances for roots",
        ENDS,
        f"{ENDS}\n    scale, std = scale**2, std**2",
        "power",
        "of this kind: Ryota-Kawamura/How-Diffusion-Models-Work issue 1",
    ),
    Wrong("3.1", BOOK_X_0, "an ε added to the divisor", BOTH, f"{BOTH} + 1e-5", "edge"),
    Wrong("3.1", IMAGE, "tables in float32", ENDS, f"{ENDS}\n    scale, std = scale.float(), std.float()", "edge"),
    Wrong(
        "3.1",
        NOISE,
        "by way of x_0, and an ε added to the divisor",
        EPS,
        "eps = (x_t - scale * x_0) / (std + 1e-8)",
        "edge",
    ),
    Wrong("3.1", NOISE, "κ of at most 10", EPS, "eps = u + min(kappa, 10) * x_0", "edge"),
    # 3.2
    Wrong(
        "3.2",
        ALL,
        "the error in u, without a weight",
        HAT,
        "eps_hat = eps - (eps - kappa * x_0 - model(x_t, t))",
        "term",
    ),
    Wrong("3.2", ALL, "u taken for the noise", HAT, "eps_hat = model(x_t, t)", "exchange"),
    Wrong(
        "3.2",
        ALL,
        "the network is asked at t − 1",
        HAT,
        HAT.replace("model(x_t, t)", "model(x_t, t - 1)"),
        "time",
        "udlbook/udlbook, notebook 18.3",
    ),
    Wrong(
        "3.2",
        ALL,
        "the clean image's error",
        HAT,
        HAT.replace("_, eps_hat", "eps_hat, _") + "\n    eps = x_0",
        "exchange",
    ),
    Wrong(
        "3.2",
        ALL,
        "float64 whatever comes in",
        RATIO,
        f"{RATIO}.double()".replace("return squares", "return squares.double()"),
        "edge",
    ),
    Wrong(
        "3.2", KNOWN, "divided by all numbers, not by the known ones", RATIO, "return squares / x_0[0].numel()", "axis"
    ),
    Wrong("3.2", KNOWN, "pixels counted, not numbers", RATIO, RATIO.replace("counted", "known"), "axis"),
    Wrong(
        "3.2",
        KNOWN,
        "the mask is not heeded",
        "counted = known.expand_as(x_0)",
        "counted = torch.ones_like(x_0)",
        "term",
    ),
    Wrong(
        "3.2",
        KNOWN,
        "the mean over the known numbers of the batch",
        RATIO,
        "return squares.sum() / counted.sum() * torch.ones_like(squares)",
        "axis",
    ),
    Wrong(
        "3.2",
        KNOWN,
        "the mean of the channels' means, known or not",
        RATIO,
        RATIO.replace(".flatten(1).sum(1)", ".flatten(1).float().mean(1)"),
        "axis",
    ),
    Wrong("3.2", NOTHING, "0/0", RATIO, RATIO.replace(".clamp(min=1)", ""), "edge"),
    Wrong(
        "3.2",
        NOTHING,
        "0/0 hidden in the value, not in the gradient",
        RATIO,
        "count = counted.flatten(1).sum(1)\n    return torch.where(count > 0, squares / count, 0.0)",
        "edge",
    ),
    Wrong("3.2", KNOWN, "at least two numbers known", RATIO, RATIO.replace("min=1", "min=2"), "edge"),
    Wrong(
        "3.2",
        KNOWN,
        "what is not known is hidden from the network",
        "x_t = q_sample(schedule, x_0, eps, t)",
        "x_t = q_sample(schedule, x_0, eps, t) * known",
        "exchange",
    ),
    Wrong("3.2", ALL, "1e-6 is added to the count", RATIO, RATIO.replace(".clamp(min=1)", " + 1e-6"), "edge"),
    Wrong("3.2", ALL, "the root of the loss", RATIO, f"return ({RATIO[7:]} + 1e-30).sqrt()", "power"),
    Wrong(
        "3.2",
        BOOK_LOSS,
        "the network is given t as a real number",
        HAT,
        HAT.replace("model(x_t, t)", "model(x_t, t.double())"),
        "edge",
    ),
    Wrong(
        "3.2",
        BOOK_LOSS,
        "the network sees the clean image",
        HAT,
        HAT.replace("model(x_t, t)", "model(x_0, t)"),
        "exchange",
    ),
    Wrong(
        "3.2",
        BOOK_LOSS,
        "absolute values",
        SQUARES,
        SQUARES.replace("square", "abs"),
        "claim",
        "loss_type='l1' in lucidrains/denoising-diffusion-pytorch, until May 2023",
    ),
    Wrong(
        "3.2",
        BOOK_LOSS,
        "no gradient reaches the network",
        HAT,
        HAT.replace("model(x_t, t)", "model(x_t, t).detach()"),
        "gradient",
    ),
    Wrong("3.2", BOOK_LOSS, "the network is asked twice", HAT, f"model(x_t, t)\n    {HAT}", "state"),
    # 3.3
    Wrong("3.3", COST, "ᾱ_2 for ᾱ_1", "(2 * (1 - alpha_bar_1) * both**2)", "(2 * (1 - alpha_bar_2) * both**2)", "time"),
    Wrong(
        "3.3",
        COST,
        "the one half is lost",
        "(2 * (1 - alpha_bar_1) * both**2)",
        "((1 - alpha_bar_1) * both**2)",
        "term",
    ),
    Wrong(
        "3.3",
        COST,
        "the bracket is not squared",
        "(2 * (1 - alpha_bar_1) * both**2)",
        "(2 * (1 - alpha_bar_1) * both)",
        "power",
    ),
    Wrong(
        "3.3",
        COST,
        "2·1 − ᾱ for 2·(1 − ᾱ)",
        "(2 * (1 - alpha_bar_1) * both**2)",
        "((2 * 1 - alpha_bar_1) * both**2)",
        "term",
        "CompVis/latent-diffusion, ddpm.py: its PR 404 and 406",
    ),
    # 3.4
    Wrong("3.4", MEAN, "the images are not shrunk", DISTANCE, DISTANCE.replace("scale * images", "images"), "term"),
    Wrong("3.4", TOTAL, "the weights are not heeded", SOFTMAX, "r = (-distance / 2).softmax(1)", "term"),
    Wrong("3.4", TOTAL, "weights for their logarithms", SOFTMAX, SOFTMAX.replace(".log()", ""), "power"),
    Wrong("3.4", MEAN, "the one half is lost", SOFTMAX, SOFTMAX.replace(" / 2", ""), "term"),
    Wrong(
        "3.4",
        MEAN,
        "divided by the deviation, not by the variance",
        DISTANCE,
        DISTANCE.replace("/ std", "/ std**0.5"),
        "power",
    ),
    Wrong(
        "3.4",
        MEAN,
        "each pixel by itself, not the whole image",
        DISTANCE + "  # (B, N)\n",
        "distance = ((noisy - scale * images) / std).square().flatten(2).mean(2)\n",
        "axis",
    ),
    Wrong(
        "3.4",
        MEAN,
        "the nearest image alone",
        SOFTMAX,
        f"{SOFTMAX}\n    r = (r == r.amax(1, keepdim=True)).to(r)",
        "claim",
    ),
    Wrong("3.4", VAR, "the deviation", SPREAD, f"{SPREAD[:-7]}.sum(1).sqrt()", "power"),
    Wrong("3.4", VAR, "the variance for N − 1", SPREAD, f"{SPREAD} * len(images) / (len(images) - 1)", "term"),
    Wrong(
        "3.4",
        VAR,
        "distances from the list's mean",
        SPREAD,
        SPREAD.replace("mean[:, None]", "images.mean(0)"),
        "exchange",
    ),
    Wrong(
        "3.4",
        VAR,
        "all images alike in the variance",
        SPREAD,
        "var = images.var(0, correction=0).expand_as(x_t)",
        "term",
    ),
    Wrong("3.4", TOTAL, "the softmax over the batch", SOFTMAX, SOFTMAX.replace("softmax(1)", "softmax(0)"), "axis"),
    Wrong("3.4", TOTAL, "the mean square", SPREAD, "var = (r * images.square()).sum(1)", "term"),
    Wrong(
        "3.4",
        FAR,
        "exp, and then divided by the sum",
        SOFTMAX,
        "r = weight * (-distance / 2).exp()\n    r = r / r.sum(1, keepdim=True)",
        "edge",
    ),
    Wrong(
        "3.4",
        FAR,
        "an ε in the sum of the probabilities",
        SOFTMAX,
        "r = weight * (-distance / 2).exp()\n    r = r / (r.sum(1, keepdim=True) + 1e-30)",
        "edge",
    ),
    Wrong("3.4", FAR, "the noise at least 0.001", NOISY, f"{NOISY}\n    std = std.clamp(min=1e-3)", "edge"),
    Wrong("3.4", ALIKE, "E[x²] − E[x]²", SPREAD, "var = (r * images.square()).sum(1) - mean.square()", "edge"),
    Wrong("3.4", ALIKE, "no gradient", SOFTMAX, SOFTMAX.replace("distance", "distance.detach()"), "gradient"),
    Wrong(
        "3.4", ALIKE, "float64 whatever comes in", "return mean, var\n", "return mean.double(), var.double()\n", "edge"
    ),
    Wrong(
        "3.4",
        FAR,
        "distances of at most 10,000",
        SOFTMAX,
        SOFTMAX.replace("distance", "distance.clamp(max=1e4)"),
        "edge",
    ),
    Wrong(
        "3.4",
        VAR,
        "one variance for all channels",
        SPREAD,
        f"{SPREAD}\n    var = var.mean(1, keepdim=True).expand_as(var)",
        "axis",
    ),
    Wrong("3.4", FAR, "a variance of at least 1e-12", SPREAD, f"{SPREAD}.clamp(min=1e-12)", "edge"),
    Wrong(
        "3.4", TOTAL, "the weights counted twice", SOFTMAX, SOFTMAX.replace("weight.log()", "2 * weight.log()"), "term"
    ),
    Wrong("3.4", ALIKE, "the list is changed", SPREAD, f"{SPREAD}\n    images *= 0.999", "state"),
    # 3.5
    Wrong("3.5", FLOOR, "the clean image's floor", RESULT, RESULT.replace("scale**2 / std**2 * ", ""), "exchange"),
    Wrong("3.5", FLOOR, "SNR upside down", RESULT, RESULT.replace("scale**2 / std**2", "std**2 / scale**2"), "power"),
    Wrong(
        "3.5",
        FLOOR,
        "a mean over the grid, without the density",
        RESULT,
        "return float(scale**2 / std**2 * var.mean())",
        "term",
    ),
    Wrong("3.5", FLOOR, "a grid too coarse", "high, 4001", "high, 21", "edge"),
    Wrong("3.5", FLOOR, "the deviation's mean", RESULT, RESULT.replace("var[:, 0]", "var[:, 0].sqrt()"), "power"),
    Wrong(
        "3.5",
        FLOOR,
        "the levels alike in the density",
        "density = (weight * bells).sum(1)",
        "density = bells.sum(1)",
        "term",
    ),
    Wrong("3.5", MOVED, "a grid from −8 to 8, wherever the data are", GRID, "low, high = -8.0, 8.0", "edge"),
    Wrong(
        "3.5",
        MOVED,
        "1 − ᾱ·…: one minus the floor",
        RESULT,
        RESULT.replace("return float(", "return 1 - float("),
        "sign",
    ),
    Wrong("3.5", MOVED, "a grid around the levels before shrinking", GRID, GRID.replace("scale * ", ""), "term"),
    Wrong("3.5", FLOOR, "a grid of three deviations", GRID, GRID.replace("9", "3"), "edge"),
    Wrong(
        "3.5",
        FLOOR,
        "the levels alike given x_t",
        "level[:, None], weight,",
        "level[:, None], weight / weight,",
        "term",
    ),
    Wrong(
        "3.5",
        FLOOR,
        "the score's floor: SNR without ᾱ",
        RESULT,
        RESULT.replace("scale**2 / std**2", "1 / std**2"),
        "exchange",
    ),
    # 3.6 and 3.7
    Wrong("3.6", HARDEST, "the smallest", "float(floors.max())", "float(floors.min())", "exchange"),
    Wrong("3.6", HARDEST, "where it is, not how large", "float(floors.max())", "1 + int(floors.argmax())", "exchange"),
    Wrong("3.6", HARDEST, "the root of it", "float(floors.max())", "float(floors.max()) ** 0.5", "power"),
    Wrong("3.7", LINE, "the line after it", "line = at_fault()", "line = at_fault() + 1", "time"),
    # by a reader who had not seen the identities
    Wrong(
        "3.1", IMAGE, "the first image's t for all", ENDS, f"t = t if isinstance(t, int) else t[:1]\n    {ENDS}", "time"
    ),
    Wrong("3.1", NOISE, "the step before: ᾱ_(t−1)", ENDS, f"t = t - 1\n    {ENDS}", "time"),
    Wrong(
        "3.2",
        KNOWN,
        "a pixel counts if all its channels are known",
        "counted = known.expand_as(x_0)",
        "counted = known.all(1, keepdim=True).expand_as(x_0)",
        "axis",
    ),
    Wrong(
        "3.2",
        NOTHING,
        "an image without known numbers counts whole",
        RATIO,
        "count = counted.flatten(1).sum(1)\n"
        "    plain = (eps - eps_hat).square().flatten(1).mean(1)\n"
        "    return torch.where(count > 0, squares / count.clamp(min=1), plain)",
        "edge",
    ),
    Wrong(
        "3.2",
        ALL,
        "the weight is not squared",
        SQUARES,
        SQUARES.replace(
            "(eps - eps_hat).square()",
            "(eps - eps_hat).abs() * (eps - kappa * x_0 - model(x_t, t)).abs()",
        ),
        "power",
    ),
    Wrong(
        "3.3",
        COST,
        "σ² = β_t in the place of the posterior's",
        "* own.beta[1] / (2 * (1 - alpha_bar_1)",
        "* own.beta[1] / (2 * (1 - alpha_bar_2)",
        "exchange",
    ),
    Wrong("3.3", COST, "the error of the noise", " * both**2)", " * alpha_bar_2)", "exchange"),
    Wrong(
        "3.4",
        VAR,
        "of the shrunk image",
        SPREAD,
        f"{SPREAD}\n    var = var * (signal_scale(schedule, t, like=var) ** 2)",
        "term",
    ),
    Wrong(
        "3.4",
        VAR,
        "of the noise, not of the image",
        SPREAD,
        f"{SPREAD}\n    var = var * (signal_scale(schedule, t, like=var) / noise_std(schedule, t, like=var)) ** 2",
        "exchange",
    ),
    Wrong(
        "3.4", MEAN, "x_t clipped to [−1, 1] first", "noisy = x_t[:, None]", "noisy = x_t.clamp(-1, 1)[:, None]", "edge"
    ),
    Wrong(
        "3.5", FLOOR, "a grid from the lowest to the highest level", GRID, GRID.replace("9 * std", "0 * std"), "edge"
    ),
    Wrong(
        "3.5",
        FLOOR,
        "the grid is unshrunk before it is asked about",
        "weight, x_t[:, None], t)",
        "weight, x_t[:, None] / scale, t)",
        "term",
    ),
    Wrong(
        "3.5",
        FLOOR,
        "a mean over drawn points",
        "x_t = torch.linspace(low, high, 4001, dtype=torch.float64)",
        "seeded = torch.Generator().manual_seed(0)\n"
        "    x_t = low + (high - low) * torch.rand(4001, dtype=torch.float64, generator=seeded)",
        "noise",
    ),
    Wrong("3.6", HARDEST, "the mean over all t", "float(floors.max())", "float(floors.mean())", "exchange"),
]
