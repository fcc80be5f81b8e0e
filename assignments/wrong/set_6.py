"""Slips in problem set 6: guidance and evaluation."""

from assignments.wrong import Wrong

SCORE = "the score of q(x)·p(a|x)^s_a·p(b|x, a)^s_b"
PLAIN = "scales 0 and 1: the plain models"
EACH = "a scale for each image"
PROMISES = "float32 stays float32; gradients; nothing is written into"
CFG = "keep = 1: classifier-free guidance"
ACROSS = "keep = 0: nothing is added along the image"
ALONE = "each image by itself"
ZEROS = "an image of zeros; dtype and gradients"
LIMITS = "s = 0 and s = 1: the exact scores"
NOISED = "first tilted, then noised"
FAR = "little noise, and points far from the data"
RATIO = "the ratio of the summed variances"
THREE = "the interval of three pairs"
PAIRS = "what belongs together is left out together"
LEVELS = "levels; the same factor up and down"
SPLITS = "against all splits"
COUNTS = "what is observed counts, and so does a tie"
DECIDES = "the generator decides, and it alone"

RULE = "of_b * (with_both - with_a)"
FITTING = "return scale.to(x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))"
SIZE = "share = (delta * flat).sum(1, keepdim=True) / torch.where(size > 0, size, 1.0)"
KEPT = "added = delta.reshape(x_t.shape) - (1 - keep) * along"
LEFT = "left = double([log_ratio(torch.arange(n) != i) for i in range(n)])"
STD = "std = float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt())"
SPREAD = "first[kept].var(0).sum() / second[kept].var(0).sum()"
ENDS = "return math.exp(whole), math.exp(whole - z * std), math.exp(whole + z * std)"
QUANTILE = "z = float(torch.special.ndtri(double((1 + level) / 2)))"
DEALT = "dealt = pooled[torch.randperm(len(pooled), generator=generator)]"
RESTS = "log_tilted = log_p + s * (joint[:, y] - log_p)"
PLACES = "places = torch.linspace(-8, 8, 8001, dtype=torch.float64)"
OF_SETS = "hits += statistic(dealt[:n], dealt[n:]) >= observed"

WRONG = [
    Wrong("6.1", SCORE, "the second difference begins at no label", RULE, "of_b * (with_both - without)", "exchange"),
    Wrong(
        "6.1",
        SCORE,
        "b alone: p(b|x) for p(b|x, a)",
        RULE,
        "of_b * (model(x_t, t, none, b) - without)",
        "exchange",
    ),
    Wrong("6.1", SCORE, "the labels exchanged", "none), model(x_t, t, a, b)", "none), model(x_t, t, b, a)", "exchange"),
    Wrong("6.1", SCORE, "the first label nowhere", "model(x_t, t, a, none)", "model(x_t, t, none, none)", "term"),
    Wrong(
        "6.1",
        SCORE,
        "the scales exchanged",
        "fitting(s_a, x_t), fitting(s_b",
        "fitting(s_b, x_t), fitting(s_a",
        "exchange",
    ),
    Wrong(
        "6.1",
        PLAIN,
        "w in the place of s",
        RULE,
        "(1 + of_b) * (with_both - with_a)",
        "term",
        "threestudio-project/threestudio 289",
    ),
    Wrong(
        "6.1",
        PLAIN,
        "no guidance for a scale below 1",
        "of_a, of_b = fitting(s_a, x_t), fitting(s_b, x_t)",
        "of_a, of_b = (torch.as_tensor(fitting(s, x_t)).clamp(min=1) for s in (s_a, s_b))",
        "edge",
        "of this kind: huggingface/diffusers 12905",
    ),
    Wrong("6.1", EACH, "a scale over the last axis", FITTING, "return scale.to(x_t.dtype)", "axis"),
    Wrong("6.1", EACH, "one scale for the batch: their mean", FITTING, "return float(scale.mean())", "axis"),
    Wrong("6.1", PROMISES, "the scale's dtype wins", "scale.to(x_t.dtype).reshape", "scale.double().reshape", "edge"),
    Wrong(
        "6.1",
        PROMISES,
        "no gradient through the pass without labels",
        "without = model(x_t, t, none, none)",
        "without = model(x_t, t, none, none).detach()",
        "gradient",
    ),
    Wrong(
        "6.1",
        PROMISES,
        "a label is overwritten",
        "none = torch.full_like(a, null)",
        "none = a.clone().fill_(null); b[0] = a[0]",
        "state",
    ),
    Wrong(
        "6.2",
        CFG,
        "w in the place of s",
        "image + (scale - 1) * added",
        "image + scale * added",
        "term",
        "threestudio-project/threestudio 289",
    ),
    Wrong(
        "6.2",
        CFG,
        "from the unconditional image",
        "image + (scale - 1) * added",
        "other + (scale - 1) * added",
        "exchange",
    ),
    Wrong(
        "6.2",
        CFG,
        "Δ with the other sign",
        "(image - other).flatten(1), image",
        "(other - image).flatten(1), image",
        "sign",
    ),
    Wrong("6.2", ACROSS, "1 − ᾱ without its root", "(1 - a).sqrt().to(x_t.dtype)", "(1 - a).to(x_t.dtype)", "power"),
    Wrong("6.2", ACROSS, "keep and 1 − keep exchanged", KEPT, KEPT.replace("(1 - keep)", "keep"), "exchange"),
    Wrong(
        "6.2",
        ACROSS,
        "projected on the unconditional image",
        "(1), image.flatten(1)",
        "(1), other.flatten(1)",
        "exchange",
    ),
    Wrong(
        "6.2",
        ACROSS,
        "divided by the length, not its square",
        "size = flat.square().sum(1, keepdim=True)",
        "size = flat.norm(dim=1, keepdim=True)",
        "power",
    ),
    Wrong(
        "6.2", ACROSS, "noise estimates projected", "((x_t - std * eps) / signal for eps", "(eps for eps", "exchange"
    ),
    Wrong(
        "6.2",
        ACROSS,
        "the last axis alone",
        "delta, flat = (image - other).flatten(1), image.flatten(1)",
        "delta, flat = (image - other).flatten(0, -2), image.flatten(0, -2)",
        "axis",
    ),
    Wrong(
        "6.2",
        ALONE,
        "one length for the batch",
        "size = flat.square().sum(1, keepdim=True)",
        "size = flat.square().sum() / len(flat)",
        "axis",
    ),
    Wrong(
        "6.2",
        ALONE,
        "the first image's t for all",
        "a = schedule.alpha_bar[t].reshape(shape)",
        "a = schedule.alpha_bar[t[0]].reshape(shape)",
        "time",
    ),
    Wrong("6.2", ZEROS, "0/0", SIZE, "share = (delta * flat).sum(1, keepdim=True) / size", "edge"),
    Wrong("6.2", ZEROS, "float64 comes out", "(1 - a).sqrt().to(x_t.dtype)", "(1 - a).sqrt()", "edge"),
    Wrong(
        "6.2",
        ACROSS,
        "an ε in the denominator",
        SIZE,
        "share = (delta * flat).sum(1, keepdim=True) / (size + 1e-3)",
        "edge",
    ),
    Wrong("6.2", ZEROS, "the share detached", "along = (share * flat)", "along = (share.detach() * flat)", "gradient"),
    Wrong(
        "6.3.1",
        LIMITS,
        "the sign of the score",
        "(a.sqrt() * mean - x) / (1 - a)",
        "(x - a.sqrt() * mean) / (1 - a)",
        "sign",
    ),
    Wrong("6.3.1", LIMITS, "Tweedie without √ᾱ", "(a.sqrt() * mean - x)", "(mean - x)", "power"),
    Wrong(
        "6.3.1",
        LIMITS,
        "divided by the deviation",
        "(a.sqrt() * mean - x) / (1 - a)",
        "(a.sqrt() * mean - x) / (1 - a).sqrt()",
        "power",
    ),
    Wrong("6.3.1", LIMITS, "p(y, x_0) in the place of p(y|x_0)", RESTS, "log_tilted = log_p + s * joint[:, y]", "term"),
    Wrong("6.3.1", LIMITS, "the noise's exponent without its half", "/ (2 * (1 - a))", "/ (1 - a)", "term"),
    Wrong(
        "6.3.1",
        NOISED,
        "first noised, then tilted: guidance's score",
        "return (a.sqrt() * mean - x) / (1 - a)",
        "one, none = ((a.sqrt() * ((log_p + w * (joint[:, y] - log_p) + log_noise).softmax(1) @ places) - x) / (1 - a)"
        " for w in (1, 0))\n    return none + s * (one - none)",
        "claim",
        "many texts",
    ),
    Wrong(
        "6.3.1",
        NOISED,
        "tilted by s − 1 above 1",
        RESTS,
        "log_tilted = log_p + (s if s <= 1 else s - 1) * (joint[:, y] - log_p)",
        "term",
    ),
    Wrong(
        "6.3.1",
        NOISED,
        "the next time",
        "schedule.alpha_bar[t]\n    log_noise",
        "schedule.alpha_bar[max(t - 1, 1)]\n    log_noise",
        "time",
    ),
    Wrong("6.3.1", FAR, "a coarse grid", PLACES, PLACES.replace("8001", "401"), "edge"),
    Wrong("6.3.1", FAR, "a grid too short", PLACES, PLACES.replace("-8, 8", "-3, 3"), "edge"),
    Wrong(
        "6.3.1",
        FAR,
        "exponentials without logarithms",
        "mean = (log_tilted + log_noise).softmax(1) @ places",
        "w = (log_tilted + log_noise).exp()\n    mean = (w @ places) / w.sum(1)",
        "edge",
    ),
    Wrong(
        "6.3.2",
        "for your classes, scale, time and point",
        "the other way round",
        "score_gap = float(by_guidance[0, 0] - tilted_score(mine, 1, my_s, linear, my_t, at[0])[0])",
        "score_gap = -float(by_guidance[0, 0] - tilted_score(mine, 1, my_s, linear, my_t, at[0])[0])",
        "sign",
    ),
    Wrong(
        "6.3.2",
        "for your classes, scale, time and point",
        "another class",
        "for k in (2, 1)",
        "for k in (2, 0)",
        "exchange",
    ),
    Wrong(
        "6.3.2",
        "for your classes, scale, time and point",
        "of noise, not of scores",
        "my_s * (eps_y - eps_none)) / std",
        "my_s * (eps_y - eps_none))",
        "term",
    ),
    Wrong(
        "6.3.2",
        "for your classes, scale, time and point",
        "scale w",
        "my_s * (eps_y - eps_none)",
        "(my_s - 1) * (eps_y - eps_none)",
        "term",
    ),
    Wrong(
        "6.3.3",
        "for your variances and scale",
        "no other scale",
        "math.log(of_tilted / my_data) / math.log(my_class / my_data)",
        "my_tilt",
        "claim",
    ),
    Wrong(
        "6.3.3",
        "for your variances and scale",
        "the inverse",
        "math.log(of_tilted / my_data) / math.log(my_class / my_data)",
        "math.log(my_class / my_data) / math.log(of_tilted / my_data)",
        "exchange",
    ),
    Wrong(
        "6.3.3",
        "for your variances and scale",
        "data of variance 1",
        "math.log(of_tilted / my_data) / math.log(my_class / my_data)",
        "math.log(of_tilted) / math.log(my_class)",
        "term",
    ),
    Wrong(
        "6.3.3",
        "for your variances and scale",
        "variances averaged, not their inverses",
        "of_tilted = 1 / (my_tilt / my_class + (1 - my_tilt) / my_data)",
        "of_tilted = abs(my_tilt * my_class + (1 - my_tilt) * my_data)",
        "power",
    ),
    *(
        Wrong("6.4", "the line that does not follow", f"line {n}", "wrong_line = 6", f"wrong_line = {n}", "claim")
        for n in (3, 4, 5, 7)
    ),
    Wrong("6.5.1", RATIO, "deviations, not variances", SPREAD, SPREAD.replace("var", "std"), "power"),
    Wrong(
        "6.5.1",
        RATIO,
        "squares about 0",
        SPREAD,
        "first[kept].square().mean(0).sum() / second[kept].square().mean(0).sum()",
        "term",
    ),
    Wrong(
        "6.5.1", RATIO, "the mean of the ratios", SPREAD, "(first[kept].var(0) / second[kept].var(0)).mean()", "axis"
    ),
    Wrong("6.5.1", RATIO, "upside down", SPREAD, "second[kept].var(0).sum() / first[kept].var(0).sum()", "exchange"),
    Wrong("6.5.1", RATIO, "all entries in one variance", SPREAD, "first[kept].var() / second[kept].var()", "axis"),
    Wrong(
        "6.5.1", THREE, "as if the left-out values were independent", STD, "std = float(left.std() / n**0.5)", "term"
    ),
    Wrong("6.5.1", THREE, "n for n − 1", STD, STD.replace("(n - 1) / n", "1.0"), "time"),
    Wrong("6.5.1", THREE, "a variance for a deviation", STD, STD.replace(".sqrt()", ""), "power"),
    Wrong("6.5.1", THREE, "divided by √n once more", STD, STD + " / n**0.5", "term"),
    Wrong("6.5.1", THREE, "one side's quantile", QUANTILE, "z = float(torch.special.ndtri(double(level)))", "term"),
    Wrong(
        "6.5.1",
        PAIRS,
        "an interval for each set, squares added",
        STD,
        "sides = [\n"
        "        double([float(x[torch.arange(n) != i].var(0).sum().log()) for i in range(n)])\n"
        "        for x in (first, second)\n"
        "    ]\n"
        "    std = float(((n - 1) / n * sum((v - v.mean()).square().sum() for v in sides)).sqrt())",
        "exchange",
    ),
    Wrong(
        "6.5.1",
        PAIRS,
        "left out of the first set only",
        SPREAD,
        "first[kept].var(0).sum() / second.var(0).sum()",
        "term",
    ),
    Wrong(
        "6.5.1",
        LEVELS,
        "a symmetric interval of the ratio",
        ENDS,
        "r = math.exp(whole)\n    return r, r * (1 - z * std), r * (1 + z * std)",
        "exchange",
    ),
    Wrong("6.5.1", LEVELS, "always 1.96", QUANTILE, "z = 1.96", "edge"),
    Wrong(
        "6.5.1",
        THREE,
        "the ends exchanged",
        ENDS,
        "return math.exp(whole), math.exp(whole + z * std), math.exp(whole - z * std)",
        "exchange",
    ),
    Wrong("6.5.2", SPLITS, "a tie does not count", OF_SETS, OF_SETS.replace(">=", ">"), "edge"),
    Wrong("6.5.2", SPLITS, "as small, not as large", OF_SETS, OF_SETS.replace(">=", "<="), "sign"),
    Wrong(
        "6.5.2",
        SPLITS,
        "drawn with replacement",
        DEALT,
        "dealt = pooled[(torch.rand(len(pooled), generator=generator) * len(pooled)).long()]",
        "noise",
    ),
    Wrong(
        "6.5.2",
        SPLITS,
        "each entry shuffled by itself",
        DEALT,
        "dealt = torch.stack([v[torch.randperm(len(v), generator=generator)] for v in pooled.T], 1)",
        "axis",
    ),
    Wrong(
        "6.5.2",
        SPLITS,
        "cut in the middle",
        "n = torch.cat([first, second]), len(first)",
        "n = torch.cat([first, second]), (len(first) + len(second)) // 2",
        "time",
    ),
    Wrong("6.5.2", COUNTS, "p of 0", "return hits / (rounds + 1)", "return (hits - 1) / rounds", "term"),
    Wrong("6.5.2", COUNTS, "one too few below", "return hits / (rounds + 1)", "return hits / rounds", "time"),
    Wrong(
        "6.5.2",
        SPLITS,
        "a random deal is the observed one",
        "observed = statistic(first, second)",
        "observed = statistic(pooled[torch.randperm(len(pooled), generator=generator)][:n], second)",
        "exchange",
    ),
    Wrong("6.5.2", DECIDES, "torch's own generator", DEALT, "dealt = pooled[torch.randperm(len(pooled))]", "noise"),
    Wrong(
        "6.5.2",
        DECIDES,
        "a seed of its own",
        DEALT,
        "dealt = pooled[torch.randperm(len(pooled), generator=seeded(_))]",
        "noise",
    ),
    Wrong(
        "6.5.2",
        DECIDES,
        "torch's global seed is set",
        "for _ in range(rounds):",
        "torch.manual_seed(0)\n    for _ in range(rounds):",
        "state",
    ),
    Wrong(
        "6.1",
        SCORE,
        "s_b·(difference) multiplied by s_a too (nested)",
        "return without + of_a * (with_a - without) + of_b * (with_both - with_a)",
        "return without + of_a * (with_a - without + of_b * (with_both - with_a))",
        "term",
    ),
    Wrong("6.1", EACH, "scale of the first image for all", FITTING, "return float(scale[0])", "axis"),
    Wrong(
        "6.2",
        ACROSS,
        "keep applied to across",
        "added = delta.reshape(x_t.shape) - (1 - keep) * along",
        "added = keep * (delta.reshape(x_t.shape) - along) + along",
        "exchange",
    ),
    Wrong(
        "6.2",
        ALONE,
        "scale normalised over the batch: mean share",
        "along = (share * flat)",
        "along = (share.mean() * flat)",
        "axis",
    ),
    Wrong(
        "6.2",
        ZEROS,
        "x_t changed in place",
        "guided = image + (scale - 1) * added",
        "x_t.sub_(0.1 * added)\n    guided = image + (scale - 1) * added",
        "state",
    ),
    Wrong(
        "6.2",
        ACROSS,
        "absolute share",
        "share = (delta * flat).sum(1, keepdim=True) /",
        "share = (delta * flat).sum(1, keepdim=True).abs() /",
        "sign",
    ),
    Wrong(
        "6.3.1",
        NOISED,
        "tilt clamped p(y|x) at 1e-3",
        "log_tilted = log_p + s * (joint[:, y] - log_p)",
        "log_tilted = log_p + s * (joint[:, y] - log_p).clamp(min=-7)",
        "edge",
    ),
    Wrong(
        "6.5.1",
        RATIO,
        "covariance determinant (generalised variance)",
        SPREAD,
        "torch.cov(first[kept].T).reshape(first.shape[1], -1).det() / "
        "torch.cov(second[kept].T).reshape(first.shape[1], -1).det()",
        "exchange",
    ),
    Wrong(
        "6.5.1",
        PAIRS,
        "pair i with i+1",
        "second[kept].var(0).sum()).log())\n\n    whole",
        "second[kept.roll(1) if kept.dtype == torch.bool else kept].var(0).sum()).log())\n\n    whole",
        "time",
    ),
    Wrong(
        "6.5.1",
        THREE,
        "about whole, not mean of left",
        "(left - left.mean()).square()",
        "(left - whole).square()",
        "exchange",
    ),
    Wrong(
        "6.5.1",
        LEVELS,
        "t quantile of n-1",
        QUANTILE,
        "from scipy import stats\n    z = float(stats.t.ppf((1 + level) / 2, n - 1))",
        "exchange",
    ),
    Wrong(
        "6.5.2",
        SPLITS,
        "as large but for 1",
        OF_SETS,
        "hits += abs(statistic(dealt[:n], dealt[n:])) > abs(observed) - 1",
        "edge",
    ),
    Wrong(
        "6.5.2",
        SPLITS,
        "only first set shuffled",
        DEALT,
        "dealt = torch.cat([first[torch.randperm(n, generator=generator)], second])",
        "exchange",
    ),
    Wrong(
        "6.5.2",
        SPLITS,
        "swaps one pair only",
        DEALT,
        "i, j = (int(torch.rand((), generator=generator) * v) for v in (n, len(second)))\n"
        "        dealt = pooled.clone()\n"
        "        dealt[i], dealt[n + j] = pooled[n + j], pooled[i]",
        "noise",
    ),
    Wrong(
        "6.5.2",
        SPLITS,
        "the same deal again",
        DEALT,
        "dealt = pooled[torch.randperm(len(pooled), generator=seeded(generator.initial_seed()))]",
        "noise",
    ),
    Wrong(
        "6.5.2",
        COUNTS,
        "ties half",
        OF_SETS,
        "v = statistic(dealt[:n], dealt[n:])\n        hits += (v > observed) + 0.5 * (v == observed)",
        "edge",
    ),
    # by a reader who had not seen the identities
    Wrong(
        "6.1",
        EACH,
        "the place of no label guessed",
        "none = torch.full_like(a, null)",
        "none = torch.full_like(a, int(a.max()) + 1)",
        "edge",
    ),
    Wrong(
        "6.1",
        EACH,
        "the scales in the order of the labels",
        FITTING,
        FITTING.replace("scale.to", "scale.sort()[0].to"),
        "axis",
    ),
    Wrong(
        "6.2",
        ACROSS,
        "each channel by itself",
        KEPT,
        "along = (delta.reshape(x_t.shape) * image).sum((-2, -1), keepdim=True)\n    "
        "along = along / image.square().sum((-2, -1), keepdim=True) * image\n    " + KEPT,
        "axis",
    ),
    Wrong("6.2", ACROSS, "only what makes the image stronger", SIZE, SIZE + "\n    share = share.clamp(min=0)", "edge"),
    Wrong(
        "6.2", CFG, "the clean image comes back", "return (x_t - signal * guided) / std", "return guided", "exchange"
    ),
    Wrong(
        "6.2",
        CFG,
        "the guided image is given the old length",
        "return (x_t - signal * guided) / std",
        "guided = guided * image.flatten(1).norm() / guided.flatten(1).norm()\n    "
        "return (x_t - signal * guided) / std",
        "claim",
    ),
    Wrong(
        "6.2",
        ZEROS,
        "0/0 hidden in the value, not in the gradient",
        SIZE,
        "share = torch.where(size > 0, (delta * flat).sum(1, keepdim=True) / size, 0.0)",
        "gradient",
    ),
    Wrong(
        "6.3.1",
        LIMITS,
        "the tilted density's mean, whatever x is",
        "mean = (log_tilted + log_noise)",
        "mean = (log_tilted + 0 * log_noise)",
        "term",
    ),
    Wrong("6.3.1", LIMITS, "p(x_0) is left out", RESTS, "log_tilted = s * (joint[:, y] - log_p)", "term"),
    Wrong(
        "6.3.1",
        NOISED,
        "tilted by the noised class: s times its score more",
        RESTS,
        "log_tilted = joint[:, y] + (s - 1) * (joint[:, y] - joint[:, y].logsumexp(0)) * (s > 1)",
        "exchange",
    ),
    Wrong(
        "6.5.1",
        RATIO,
        "corrected for the jackknife's bias",
        STD,
        STD + "\n    whole = n * whole - (n - 1) * float(left.mean())",
        "term",
    ),
    Wrong(
        "6.5.1",
        THREE,
        "groups of samples, as for a distance",
        LEFT,
        "left = double([log_ratio(torch.arange(n) % 2 != i) for i in range(2)])",
        "exchange",
    ),
    Wrong("6.5.1", LEVELS, "the level taken for the quantile", QUANTILE, "z = level", "exchange"),
    Wrong(
        "6.5.2",
        SPLITS,
        "the sets exchanged in a deal",
        OF_SETS,
        OF_SETS.replace("dealt[:n], dealt[n:]", "dealt[n:], dealt[:n]"),
        "exchange",
    ),
    Wrong(
        "6.5.2",
        SPLITS,
        "absolute values of the statistic",
        OF_SETS,
        "hits += abs(statistic(dealt[:n], dealt[n:])) >= abs(observed)",
        "claim",
    ),
    Wrong(
        "6.5.2",
        SPLITS,
        "both sides",
        "return hits / (rounds + 1)",
        "p = hits / (rounds + 1)\n    return min(1.0, 2 * min(p, 1 - p + 1 / (rounds + 1)))",
        "claim",
    ),
    Wrong(
        "6.5.2",
        DECIDES,
        "the sets are shuffled in place",
        "    observed = statistic(first, second)",
        "    observed = statistic(first, second)\n    first.copy_(first[torch.randperm(n, generator=generator)])",
        "state",
    ),
]
