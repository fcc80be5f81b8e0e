"""Classifier-free guidance: one network, trained with and without labels, asked both ways at every step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.devices import to_device


def drop_labels(labels: Tensor, probability: float, null: int, generator: torch.Generator | None = None) -> Tensor:
    """Each label replaced by `null` with this probability, independently: (B,) → (B,). For training only.

    Source: Ho and Salimans 2022, Algorithm 1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of dropping a label must lie in [0, 1], got {probability}")
    device = labels.device if generator is None else generator.device
    drop = torch.rand(labels.shape, generator=generator, device=device) < probability
    return torch.where(drop.to(labels.device), null, labels)


def guided(
    model: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Tensor, scale: float | Tensor, null: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The noise estimate ε_∅ + s·(ε_y − ε_∅) as a function of (x_t, t), from one pass over a doubled batch.

    model: called as model(x_t, t, labels), where label `null` means none. labels: (B,), in 0..null−1.
    scale: s, a number or one per example, (B,). s = 0 is unconditional, s = 1 the conditional model, s > 1 guided;
    papers that write (1 + w)·ε_y − w·ε_∅ have w = s − 1.
    Raises ValueError for labels out of range and for a model in training mode, whose dropout would act.
    Source: Ho and Salimans 2022, Eq. 6.
    """
    if getattr(model, "training", False):
        raise ValueError("the model is in training mode, in which dropout acts: call model.eval() before sampling")
    if labels.ndim != 1 or (isinstance(scale, Tensor) and scale.shape not in ((), labels.shape)):
        raise ValueError(
            "expected labels (B,) and a scale that is a number or (B,); "
            f"got labels {tuple(labels.shape)} and scale {tuple(getattr(scale, 'shape', ()))}"
        )
    if not isinstance(scale, Tensor) and not math.isfinite(scale):
        raise ValueError(f"expected a finite scale, got {scale}")
    for label in labels.tolist():
        if not 0 <= label < null:
            raise ValueError(f"expected labels in 0..{null - 1}, got {label}")

    def eps_model(x_t: Tensor, t: Tensor) -> Tensor:
        y = to_device(labels, x_t.device)
        if not isinstance(scale, Tensor) and scale == 1:
            return model(x_t, t, y)
        both = torch.cat([torch.full_like(y, null), y])
        unconditional, conditional = model(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        s = scale
        if isinstance(scale, Tensor) and scale.ndim:
            s = to_device(scale, x_t.device).to(x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))  # (B, 1, ..., 1)
        return unconditional + s * (conditional - unconditional)

    return eps_model
