"""Wrong versions of the equations of chapter 12 that stand beside no check: each is rejected all the same."""

import math

import pytest
import torch
from held_out import registry, rejecting

from ddpm_lib.training.fast import Fast, microbatches
from ddpm_lib.training.rates import cosine_rate, inverse_sqrt_rate
from ddpm_lib.training.scaler import LossScaler

pytestmark = pytest.mark.soak  # many versions, each a function of its own

WRONG, wrong = registry()


# Courses of the rate


@wrong("cosine rate", "one step early at its end")
def _(warmup, steps, final):
    return cosine_rate(warmup, max(warmup + 1, steps - 1), final)


@wrong("cosine rate", "after the end 0, whatever the final factor")
def _(warmup, steps, final):
    return lambda k: cosine_rate(warmup, steps, final)(k) if k <= steps else 0.0


@wrong("cosine rate", "the warm-up rises on a cosine, too")
def _(warmup, steps, final):
    rising = lambda k: (1 - math.cos(math.pi * (k + 1) / (warmup + 1))) / 2  # noqa: E731
    return lambda k: rising(k) if k < warmup else cosine_rate(warmup, steps, final)(k)


@wrong("cosine rate", "a warm-up as long as the run: NaN")
def _(warmup, steps, final):
    return lambda k: math.nan if k >= warmup >= steps else cosine_rate(warmup, steps, final)(k)


@wrong("cosine rate", "computed in float32")
def _(warmup, steps, final):
    return lambda k: torch.tensor(cosine_rate(warmup, steps, final)(k), dtype=torch.float32)


@wrong("inverse-square-root rate", "the final factor is added, not a floor")
def _(warmup, steps, final):
    course = inverse_sqrt_rate(warmup, steps, 0.0)
    return lambda k: course(k) if k < warmup else final + (1 - final) * course(k)


@wrong("inverse-square-root rate", "the floor lies under the warm-up, too")
def _(warmup, steps, final):
    return lambda k: max(final, inverse_sqrt_rate(warmup, steps, final)(k))


@wrong("inverse-square-root rate", "√(w/k), where there is no warm-up as well")
def _(warmup, steps, final):
    w = max(1, warmup)
    return lambda k: (k + 1) / (warmup + 1) if k < warmup else max(final, math.sqrt(w / max(1, k)))


@wrong("inverse-square-root rate", "a tenth of the run is the unit")
def _(warmup, steps, final):
    course = inverse_sqrt_rate(max(1, steps // 10), steps, final)
    return lambda k: (k + 1) / (warmup + 1) if k < warmup else course(k - warmup + max(1, steps // 10))


# Numbers with few bits


@wrong("spacing of floating-point numbers", "the logarithm in float32")
def _(x, bits, lowest):
    return 2.0 ** (torch.floor(torch.log2(x.float()).double()).clamp(min=lowest) - bits)


@wrong("spacing of floating-point numbers", "to the next smaller number")
def _(x, bits, lowest):
    return 2.0 ** ((torch.ceil(torch.log2(x)) - 1).clamp(min=lowest) - bits)


@wrong("spacing of floating-point numbers", "frexp's exponent, whose fraction begins at a half")
def _(x, bits, lowest):
    return 2.0 ** (torch.frexp(x).exponent.double().clamp(min=lowest) - bits)


@wrong("spacing of floating-point numbers", "one normal exponent too few")
def _(x, bits, lowest):
    return 2.0 ** (torch.floor(torch.log2(x)).clamp(min=lowest + 1) - bits)


# The loss scale


def scaled(what, *, clip=None, finite=None):
    """Eq. 12.4 with another way to clip, clip(g, norm, c), or to look for what is not finite, finite(g, norm)."""
    clip = clip or (lambda g, norm, c: [part * (c / norm) if norm > c else part for part in g])

    def version(gradients, S, c):
        g = [part / S for part in gradients]
        norm = math.sqrt(sum(float(part.square().sum()) for part in g))
        good = finite(g, norm) if finite else math.isfinite(norm)
        return clip(g, norm, c), not good

    wrong("scaled gradient", what)(version)


scaled("every gradient gets the length c", clip=lambda g, norm, c: [p * (c / norm) if norm else p for p in g])
scaled("each tensor by itself", clip=lambda g, norm, c: [p * min(1, c / max(float(p.norm()), 1e-300)) for p in g])
scaled("each number by itself", clip=lambda g, norm, c: [p.clamp(-c, c) for p in g])
scaled(
    "a gradient of zeros becomes NaN",
    clip=lambda g, norm, c: [p / norm * min(norm, c) for p in g] if norm else [p * math.nan for p in g],
)
scaled("what is longer than 1000 is skipped, not clipped", finite=lambda g, norm: norm < 1000)
scaled("only +inf is looked for", finite=lambda g, norm: not any(bool(p.isposinf().any()) for p in g))


def scaler(what, **methods):
    wrong("loss scale", what)(type("Wrong", (LossScaler,), methods))


def to_the_new_scale(self, finite):
    LossScaler.update(self, finite)
    return ~finite & (self.scale > self.floor)


def never_below(self, finite):
    """Halved only where the half is not below the floor: one that lies between two powers of two is never reached."""
    before, skip = self.scale, LossScaler.update(self, finite)
    if not finite and before / 2 < self.floor:
        self.scale = before
    return skip


def kept_at_the_floor(self, finite):
    good, skip = self.good, LossScaler.update(self, finite)
    if not finite and not skip:
        self.good = good
    return skip


def doubled_without_end(self, finite):
    before, skip = self.scale, LossScaler.update(self, finite)
    if self.scale >= before and finite and self.good == 0:
        self.scale = 2 * before
    return skip


def goes_on_counting(self, finite):
    good, skip = self.good, LossScaler.update(self, finite)
    if finite and good + 1 == self.interval:
        self.good = self.good + self.interval - 1
    return skip


def in_place(self, finite):
    scale, good = self.scale, self.good
    skip = LossScaler.update(self, finite)
    self.scale, self.good = scale.copy_(self.scale), good.copy_(self.good)
    return skip


def shares(self, state):
    self.scale, self.good = state["scale"], state["good"]


scaler("whether to skip is asked of the new scale", update=to_the_new_scale)
scaler("halved only where the half is not below the floor", update=never_below)
scaler("at the floor, the count goes on through what is not finite", update=kept_at_the_floor)
scaler("doubled to infinity", update=doubled_without_end)
scaler("after the first doubling, every step doubles", update=goes_on_counting)
scaler("shares its memory with the state that it was given", update=in_place, load_state=shares)
scaler("divides copies", unscale=lambda self, gradients: [g / self.scale for g in gradients])
scaler("multiplies once more", unscale=lambda self, gradients: torch._foreach_mul_(list(gradients), self.scale))


# A batch in parts


def parts(what, backward):
    wrong("accumulated gradient", what)(type("Wrong", (Fast,), {"backward": backward}))


def one_pass_at_the_end(self, losses, factor, count):
    seen = torch.cat([losses(part) for part in microbatches(count, self.accumulate)])
    ((seen if factor is None else seen * factor).sum() / count).backward()
    return seen.detach()


def weighted_mean(self, losses, factor, count):
    return Fast.backward(self, losses, factor if factor is None else factor / factor.mean(), count)


def weighted_losses(self, losses, factor, count):
    seen = Fast.backward(self, losses, factor, count)
    return seen if factor is None else seen * factor


def last_part_first(self, losses, factor, count):
    seen = []
    for part in reversed(list(microbatches(count, self.accumulate))):
        loss = losses(part)
        seen.append(loss.detach())
        ((loss if factor is None else loss * factor[part]).sum() / count).backward()
    return torch.cat(seen)


def all_but_the_last_detached(self, losses, factor, count):
    def last_alone(part):
        loss = losses(part)
        return loss if part.stop == count else loss.detach() + 0 * loss

    return Fast.backward(self, last_alone, factor, count)


parts("one backward pass at the end: all activations wait", one_pass_at_the_end)
parts("a weighted mean: divided by the sum of the factors", weighted_mean)
parts("the losses come back with their factors", weighted_losses)
parts("the parts in reverse, and their losses with them", last_part_first)
parts("only the last part's gradient", all_but_the_last_detached)
parts("the whole batch at once", lambda self, losses, *rest: Fast(self.device).backward(losses, *rest))


test_is_rejected = rejecting(WRONG)
