"""All metrics of one set of samples at once, each with its interval, its features and its counts."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.evaluation.coverage import density_and_coverage, precision_and_recall
from ddpm_lib.evaluation.features import Features
from ddpm_lib.evaluation.frechet import Moments
from ddpm_lib.evaluation.intervals import Measured, measured, measured_share
from ddpm_lib.evaluation.kernel import kernel_distance
from ddpm_lib.evaluation.memorised import copying_score
from ddpm_lib.evaluation.neighbours import inside, kth_radius


def summary(
    features: Features,
    real: Tensor,
    fake: Tensor,
    *,
    train: Tensor | None = None,
    held_out: Tensor | None = None,
    groups: int = 20,
    k: tuple[int, int] = (3, 5),
    strata: Tensor | None = None,
) -> dict[str, Measured]:
    """Distances, shares and, with `train` and `held_out`, the copying score of samples, by name.

    real, fake, train, held_out: images (N, C, H, W) in [−1, 1], 2·groups of them at least; `real` is what samples are
    compared with, and whoever prints the numbers says which it is. Intervals are over draws of the samples, with the
    real images as they are: by the jackknife with `groups` groups, for which every metric is taken so many times (on a
    CPU, 10 are enough for 10,000 images); Wilson's where it is a share of the samples.
    k: the neighbour that bounds a ball, for precision and recall, and for density and coverage.
    strata: the samples' labels, (M,), where so many of each were asked for: see `jackknife_std`.
    """
    near, wide = k
    x, y = features(real), features(fake)
    about = {"features": features.name, "real": len(x), "fake": len(y)}
    reference = Moments.of(x)
    hits = int((inside(y, x, kth_radius(x, near))[0] > 0).sum())
    found = [
        measured(features.frechet, lambda s: Moments.of(s).distance(reference), y, groups, strata, **about),
        measured(features.kernel, lambda s: kernel_distance(x, s), y, groups, strata, **about),
        measured_share("precision", hits, len(y), **about),
        measured("recall", lambda s: precision_and_recall(x, s, near)[1], y, groups, strata, **about),
        measured("density", lambda s: density_and_coverage(x, s, wide)[0], y, groups, strata, **about),
        measured("coverage", lambda s: density_and_coverage(x, s, wide)[1], y, groups, strata, **about),
    ]
    if train is not None and held_out is not None:
        known, new = features(train), features(held_out)
        about |= {"real": len(new)}
        found.append(
            measured("nearer than held-out", lambda s: copying_score(s, new, known)[1], y, groups, strata, **about)
        )
    return {each.name: each for each in found}


def recognised(predict: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, examiner: str) -> Measured:
    """The share of images, (N, C, H, W), whose label, (N,), a classifier finds: its name is told as `examiner`.

    predict: images → labels, or logits (N, classes). High is no proof: one picture per class is recognised, too.
    """
    said = predict(images)
    said = said.argmax(1) if said.ndim == 2 else said
    hits = int((torch.as_tensor(said).cpu() == labels.cpu()).sum())
    return measured_share("recognised", hits, len(labels), features=examiner, fake=len(labels))
