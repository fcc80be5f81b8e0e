"""Classifier guidance: a classifier of noisy images leads the noise estimate, or the mean of a step, to a class."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.devices import to_device
from ddpm_lib.diffusion.forward import noise_std
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.samplers.guidance import EpsModel, refuse_training
from ddpm_lib.samplers.guidance_rules import shaped

Classifier = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) → logits (B, classes)


def class_gradient(classifier: Classifier, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Eq. 14.2 (gradient of a classifier). ∇_x log p(y|x_t), each example's by its own entries: (B, ...), like x_t.

    classifier: called as classifier(x_t, t), returns logits (B, classes), or log-probabilities. labels: y, (B,), in
    0..classes−1 (ValueError otherwise). By autograd, also inside `torch.no_grad`. Nothing is added to the gradients of
    the classifier's weights. The sum over the batch is differentiated, of which each term knows one example alone.
    Source: Dhariwal and Nichol 2021, Algorithm 1 and their code.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t.detach().clone().requires_grad_()
        logits = classifier(x, t)
        labels = to_device(labels, logits.device)
        if labels.shape != logits.shape[:1] or not ((labels >= 0) & (labels < logits.shape[1])).all():
            raise ValueError(
                f"expected a label in 0..{logits.shape[1] - 1} for each of {len(logits)} examples; got {labels}"
            )
        chosen = logits.log_softmax(1).gather(1, labels[:, None])
        return torch.autograd.grad(chosen.sum(), x)[0]


def classifier_guided(
    eps_model: EpsModel, classifier: Classifier, schedule: Schedule, labels: Tensor, scale: float | Tensor
) -> EpsModel:
    """Eq. 14.3 (classifier guidance). ε − s·√(1 − ᾱ_t)·∇_x log p(y|x_t) as a function of (x_t, t).

    eps_model: called as eps_model(x_t, t). An unconditional one makes s what it is in Eq. 14.5, if the classifier is
    exact: s = 1 is the conditional model. A conditional one (`guided` with scale 1) makes it w: 0 is the conditional
    model. classifier: of noisy images, see `class_gradient`; for s = 0 it is not asked.
    labels: y, (B,). scale: s, a number or one per example, (B,).
    Raises ValueError for a model or classifier in training mode, and for labels that the classifier does not know.
    Source: Dhariwal and Nichol 2021, Algorithm 2.
    """
    for each in (eps_model, classifier):
        refuse_training(each)
    if not torch.as_tensor(scale).isfinite().all():
        raise ValueError(f"expected a finite scale, got {scale}")

    def guided_eps(x_t: Tensor, t: Tensor) -> Tensor:
        eps = eps_model(x_t, t)
        if not isinstance(scale, Tensor) and scale == 0:
            return eps
        gradient = class_gradient(classifier, x_t, t, labels)
        return eps - shaped(scale, like=x_t) * noise_std(schedule, t, like=x_t) * gradient

    return guided_eps


def guided_mean(mean: Tensor, var: Tensor | float, gradient: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Eq. 14.4 (guided mean). μ + s·σ²·g: the mean of N(x; μ, σ²·I)·exp(s·gᵀx), a step towards a class.

    mean: μ of x_{t−1}, (B, ...); var: σ², which broadcasts, a variance; gradient: g = ∇ log p(y|·), (B, ...), at the
    mean with t − 1 or at x_t with t; scale: s, a number or (B,). Returns (B, ...). The variance stays σ².
    Source: Dhariwal and Nichol 2021, section 4.1 and Algorithm 1; their Σ is our σ²·I.
    """
    return mean + shaped(scale, like=mean) * var * gradient
