"""Training a classifier, on clean images or on noisy ones, and what it is worth."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddpm_lib.devices import to_device
from ddpm_lib.diffusion.forward import noise_like, q_sample
from ddpm_lib.diffusion.loss import draw_t
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.images.data import LabelledImages, to_signed
from ddpm_lib.images.feed import feed
from ddpm_lib.training.execution import Execution
from ddpm_lib.training.loop import linear_rate


def train_classifier(
    classifier: nn.Module,
    data: LabelledImages,
    *,
    steps: int,
    batch: int = 128,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.01,
    schedule: Schedule | None = None,
    flip: bool = False,
    shift: int = 0,
    smoothing: float = 0.0,
    seed: int = 0,
    execution: Execution | None = None,
    progress: bool = False,
) -> nn.Module:
    """Train `classifier` on its device by the cross-entropy of its labels; returns it, ready to be asked.

    schedule: where given, each image is noised to a t of its own, uniform in 1..T, and the classifier is called as
    classifier(x_t, t); else as classifier(x_0). flip: mirror with probability 1/2; shift: move by up to so many pixels
    either way, repeating the edge; smoothing: that of the labels. The learning rate of AdamW rises over a twentieth of
    the steps and falls to 0. seed: of batches, noise and all else that is drawn here, but for dropout's and the
    classifier's first weights, which come from torch's global generator.
    Raises ValueError for data without labels or steps < 1, FloatingPointError for a loss that is not finite at the end.
    """
    if data.labels is None or steps < 1:
        raise ValueError(f"expected labels and at least one step, got {data.labels} and {steps}")
    device, execution = next(classifier.parameters()).device, execution or Execution()
    network, host = execution.prepare(classifier.train()), torch.Generator().manual_seed(seed)
    noise = torch.Generator(device).manual_seed(seed + 1)
    parameters = list(classifier.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    rate, images = linear_rate(max(1, steps // 20), steps, 0.0), feed(data, batch, seed=seed, device=device)
    for done in tqdm(range(steps), desc="classifier", mininterval=1, disable=not progress):
        x, y = next(images)
        x, y = _moved(x, flip, shift, host), to_device(y, device)
        t = None
        if schedule is not None:
            t = draw_t(schedule, batch, host)
            x = q_sample(schedule, x, noise_like(x, noise), t)
            t = to_device(t, device)
        x = execution.arrange(x)

        def losses(part: slice, x: Tensor = x, y: Tensor = y, t: Tensor | None = t) -> Tensor:
            logits = network(x[part]) if t is None else network(x[part], t[part])
            return F.cross_entropy(logits.float(), y[part], reduction="none", label_smoothing=smoothing)

        for group in optimiser.param_groups:
            group["lr"] = learning_rate * rate(done)
        optimiser.zero_grad(set_to_none=True)
        loss = execution.backward(losses, None, batch)
        execution.update(optimiser, parameters, 1.0)
    if not loss.isfinite().all():
        raise FloatingPointError(f"the classifier's last loss is {float(loss.mean())}: lower the learning rate")
    return classifier.eval()


def _moved(x: Tensor, flip: bool, shift: int, host: torch.Generator) -> Tensor:
    if flip:
        mirrored = to_device(torch.rand(len(x), generator=host) < 0.5, x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    if shift:
        side, by = x.shape[-1], (torch.rand(2, len(x), 1, generator=host) * (2 * shift + 1)).long()
        down, right = (to_device(one + torch.arange(side), x.device) for one in by)  # (B, side) each
        row = torch.arange(len(x), device=x.device)[:, None, None]
        padded = F.pad(x, (shift,) * 4, mode="replicate").permute(0, 2, 3, 1)  # (B, H', W', C)
        x = padded[row, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)
    return x


@torch.no_grad()
def accuracy(
    classifier: nn.Module, images: Tensor, labels: Tensor, t: Tensor | int | None = None, *, batch: int = 500
) -> float:
    """The share of images, (N, C, H, W), whose most probable label is theirs, (N,), on the classifier's device.

    images: in [−1, 1], or bytes. t: the noise that lies on them, an int or (N,), in 1..T; None where they are clean.
    Raises ValueError for a classifier in training mode, whose dropout would act.
    """
    if classifier.training:
        raise ValueError("the classifier is in training mode, in which dropout acts: call classifier.eval() first")
    device, right = next(classifier.parameters()).device, 0
    t = torch.full((len(images),), t) if isinstance(t, int) else t
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        x = images[part].to(device)
        x = to_signed(x, check=False) if x.dtype == torch.uint8 else x
        logits = classifier(x) if t is None else classifier(x, t[part].to(device))
        right += int((logits.argmax(1) == labels[part].to(device)).sum())
    return right / len(images)
