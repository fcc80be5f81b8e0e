"""Classifier-free guidance: one network, trained with and without labels, asked both ways at every step; and guidance
by a worse model."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.devices import to_device
from ddpm_lib.samplers.guidance_rules import checked_interval, interval_scale, rescaled, towards

EpsModel = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) → ε


def drop_labels(labels: Tensor, probability: float, null: int, generator: torch.Generator | None = None) -> Tensor:
    """Eq. 14.7 (label dropout). Each example's label becomes `null` with this probability, independently. In training.

    labels: (B,), or (B, J) where an example has J labels: one coin decides for all of them. Returns the same shape.
    Do it once for the whole network, not at each place where the label enters.
    Raises ValueError for what is no probability. Source: Ho and Salimans 2022, Algorithm 1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of dropping a label must lie in [0, 1], got {probability}")
    device = labels.device if generator is None else generator.device
    drop = torch.rand(labels.shape[:1], generator=generator, device=device) < probability
    return torch.where(drop.to(labels.device).reshape(-1, *[1] * (labels.ndim - 1)), null, labels)


def guided(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    labels: Tensor,
    scale: float | Tensor,
    null: int,
    *,
    negative: Tensor | None = None,
    interval: tuple[int, int] | None = None,
    rescale: float = 0.0,
) -> EpsModel:
    """Eq. 14.5 (classifier-free guidance). ε_∅ + s·(ε_y − ε_∅) as a function of (x_t, t): one pass, a doubled batch.

    model: called as model(x_t, t, labels), where label `null` means none. labels: (B,), in 0..null−1.
    scale: s, a number or one per example, (B,). s = 0 is unconditional, s = 1 the conditional model, s > 1 guided;
    papers that write (1 + w)·ε_y − w·ε_∅ have w = s − 1. Where s is 0 or 1 for all, the batch is not doubled.
    negative: labels (B,), in 0..null, to lead away from, in the place of none (Eq. 14.11).
    interval: (low, high), the t to guide at, both included; at others it is the conditional model, not asked twice
    (Eq. 14.9; for that the host reads t). rescale: φ of Eq. 14.10.
    Raises ValueError for labels, scale, interval or rescale out of range and for a model in training mode, whose
    dropout would act. Source: Ho and Salimans 2022, Eq. 6.
    """
    refuse_training(model)
    only = _checked_scale(labels, scale)
    _check_labels(labels, null)
    if negative is not None:
        if negative.shape != labels.shape:
            raise ValueError(f"expected a negative label for each of {len(labels)}; got {tuple(negative.shape)}")
        _check_labels(negative, null + 1)
    checked_interval(interval)
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie in [0, 1]; got {rescale}")

    def eps_model(x_t: Tensor, t: Tensor) -> Tensor:
        y = to_device(labels, x_t.device)
        away = torch.full_like(y, null) if negative is None else to_device(negative, x_t.device)
        s, one = scale, only
        if interval is not None:
            s = interval_scale(scale, t, interval)
            one = _only(s)
        if one == 1:
            return model(x_t, t, y)
        if one == 0 and not rescale:
            return model(x_t, t, away)
        both = model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([away, y]))
        unconditional, conditional = both.chunk(2)
        eps = towards(conditional, unconditional, s)
        return rescaled(eps, conditional, rescale) if rescale else eps

    return eps_model


def autoguided(
    model: Callable[..., Tensor], worse: Callable[..., Tensor], scale: float | Tensor, labels: Tensor | None = None
) -> EpsModel:
    """Eq. 14.12 (autoguidance). ε' + s·(ε − ε') as a function of (x_t, t): ε by the model, ε' by a worse one.

    model, worse: called as model(x_t, t), or model(x_t, t, labels) with labels (B,): both know the same. The worse one
    has learned the same data, with less training or fewer weights. scale: s, a number or one per example, (B,). For
    s = 1 the worse model is not asked, for s = 0 the other.
    Raises ValueError for a scale that is not finite and for a model in training mode.
    Source: Karras et al. 2024 (Guiding a Diffusion Model with a Bad Version of Itself), section 3, for the denoised
    image, which is a linear function of ε; their D_1 is our model, their D_0 the worse one, their w our s.
    """
    for each in (model, worse):
        refuse_training(each)
    only = _checked_scale(labels, scale)

    def eps_model(x_t: Tensor, t: Tensor) -> Tensor:
        known = () if labels is None else (to_device(labels, x_t.device),)
        if only in (0, 1):
            return (model if only else worse)(x_t, t, *known)
        return towards(model(x_t, t, *known), worse(x_t, t, *known), scale)

    return eps_model


def refuse_training(model: Callable) -> None:
    """Raises ValueError for a network in training mode."""
    if getattr(model, "training", False):
        raise ValueError("the model is in training mode, in which dropout acts: call model.eval() before sampling")


def _checked_scale(labels: Tensor | None, scale: float | Tensor) -> float | None:
    """The scale, if it is one and the same for all, else None. Raises ValueError for shapes that do not fit."""
    shapes = ((), labels.shape) if labels is not None else ((), getattr(scale, "shape", ()))
    if (labels is not None and labels.ndim != 1) or (isinstance(scale, Tensor) and scale.shape not in shapes):
        raise ValueError(
            "expected labels (B,) and a scale that is a number or (B,); "
            f"got labels {tuple(getattr(labels, 'shape', ()))} and scale {tuple(getattr(scale, 'shape', ()))}"
        )
    if not torch.as_tensor(scale).isfinite().all():
        raise ValueError(f"expected a finite scale, got {scale}")
    return _only(scale)


def _only(scale: float | Tensor) -> float | None:
    """The one value of a scale, None where there are several."""
    values = torch.as_tensor(scale).unique()
    return float(values) if len(values) == 1 else None


def _check_labels(labels: Tensor, count: int) -> None:
    for label in labels.tolist():
        if not 0 <= label < count:
            raise ValueError(f"expected labels in 0..{count - 1}, got {label}")
