"""Training: seeded, watched, and safe to interrupt."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddpm_lib.data import LabelledImages, check_images
from ddpm_lib.ema import EMA
from ddpm_lib.forward import noise_like
from ddpm_lib.loss import draw_t, l_simple
from ddpm_lib.schedule import Schedule, to_device


class Trainer:
    """The state of a training run, and its one step: Adam on L_simple, and the average of the weights in `ema`.

    The network decides the device, and the images are moved there once. rate: the factor of learning_rate before each
    step, a function of the steps done (`linear_rate`, say; None is constant). Gradients are clipped to `clip_norm`.
    prepare_labels: turns a batch's labels, (B,) on the CPU, into what the network sees (label dropout, say, or None).
    On a CPU the same seed, network, data and number of threads give the same weights; on a GPU nearly, for some of its
    gradients add in no fixed order.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        data: LabelledImages,
        *,
        batch: int,
        learning_rate: float,
        rate: Callable[[int], float] | None = None,
        clip_norm: float = 1.0,
        ema_decay: float = 0.9999,
        seed: int = 0,
        prepare_labels: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ):
        if batch < 1 or learning_rate <= 0 or clip_norm <= 0:
            raise ValueError(
                "expected batch >= 1, learning_rate > 0 and clip_norm > 0; "
                f"got {batch}, {learning_rate:g} and {clip_norm:g}"
            )
        check_images(data, tuple(data.images.shape[1:]), getattr(model, "null", 0) or None)
        self.device = next(model.parameters()).device
        self.model, self.schedule, self.ema = model.train(), schedule, EMA(model, ema_decay)
        self.images, self.labels = data.images.to(self.device), data.labels.cpu()
        self.batch, self.clip_norm, self.prepare_labels = batch, clip_norm, prepare_labels
        self.optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimiser, rate or (lambda done: 1.0))
        self.steps, self.learning_rate = 0, learning_rate  # those of the last step
        self.host = torch.Generator().manual_seed(seed)  # order, t, label dropout
        self.noise = torch.Generator(self.device).manual_seed(seed + 1)
        torch.manual_seed(seed + 2)  # dropout takes no generator
        self.rows = batches(len(self.labels), batch, self.host)

    def step(self) -> tuple[Tensor, Tensor]:
        """One step. Returns the loss and the gradient's norm, scalars on the device, which nobody has waited for."""
        row = next(self.rows)
        y = self.labels[row] if self.prepare_labels is None else self.prepare_labels(self.labels[row], self.host)
        y = y if y is None else to_device(y, self.device)
        x_0 = self.images[to_device(row, self.device)]
        t, eps = draw_t(self.schedule, self.batch, self.host), noise_like(x_0, self.noise)
        loss = l_simple(lambda x_t, t: self.model(x_t, t, y), self.schedule, x_0, eps, t).mean()
        self.learning_rate = self.optimiser.param_groups[0]["lr"]
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimiser.step()
        self.rate.step()
        self.ema.update(self.model)
        self.steps += 1
        return loss.detach(), norm


def train(
    trainer: Trainer,
    steps: int,
    *,
    every: int = 50,
    on_entry: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> list[dict]:
    """Step until `trainer.steps` reaches `steps`. Returns the log: one dict for every `every` steps, and for the last.

    An entry holds step, loss (the mean since the last entry), gradient_norm (the largest), learning_rate and
    images_per_s. on_entry: called with each, at a state whose losses and gradients were finite: the place to save.
    Only there is the device asked for numbers. Raises FloatingPointError there, before on_entry, if one is not finite.
    Ctrl-C or SIGTERM ends the step in hand and raises KeyboardInterrupt, with a message, between two steps;
    a second one acts at once, with none. Raises ValueError for every < 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    trainer.model.train()
    history, losses, norms, read_at = [], [], [], time.perf_counter()
    with (
        _interrupts() as interrupts,
        tqdm(total=steps, initial=trainer.steps, desc="training", mininterval=1, disable=not progress) as bar,
    ):
        while trainer.steps < steps:
            loss, norm = trainer.step()
            losses.append(loss)
            norms.append(norm)
            bar.update()
            if trainer.steps % every and trainer.steps < steps and not interrupts:
                continue
            loss, norm = torch.stack(losses).cpu().double(), torch.stack(norms).cpu().double()
            _refuse_non_finite(trainer, loss, norm)
            now = time.perf_counter()
            entry = {
                "step": trainer.steps,
                "loss": float(loss.mean()),
                "gradient_norm": float(norm.max()),
                "learning_rate": trainer.learning_rate,
                "images_per_s": trainer.batch * len(losses) / (now - read_at),
            }
            history.append(entry)
            bar.set_postfix_str(f"loss {entry['loss']:.4f}, {entry['images_per_s']:.0f} images/s", refresh=False)
            if on_entry is not None:
                on_entry(entry)
            losses, norms, read_at = [], [], time.perf_counter()  # images_per_s leaves out the saving
            if interrupts:
                raise KeyboardInterrupt(f"stopped after step {trainer.steps} of {steps}")
    return history


def linear_rate(warmup: int, steps: int, final: float = 0.0) -> Callable[[int], float]:
    """A learning-rate factor that rises linearly to 1 in `warmup` steps, then falls linearly to `final` at `steps`."""

    def rate(done: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        return final + (1 - final) * max(0.0, 1 - (done - warmup) / max(1, steps - warmup))

    return rate


def batches(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices, (batch,): the data in a new random order each round, and no remainder is left out."""
    if n < 1 or batch < 1:
        raise ValueError(f"expected n >= 1 and batch >= 1; got {n} and {batch}")
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < batch:
            queue = torch.cat([queue, torch.randperm(n, generator=generator)])
        yield queue[:batch]
        queue = queue[batch:]


def _refuse_non_finite(trainer: Trainer, loss: Tensor, norm: Tensor) -> None:
    bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
    if bad.any():
        step = trainer.steps - len(loss) + 1 + int(bad.nonzero()[0])
        raise FloatingPointError(
            f"expected a finite loss and gradient; at step {step} the loss was {float(loss[bad][0]):g} and the "
            f"gradient's norm {float(norm[bad][0]):g}. Nothing was saved since step {trainer.steps - len(loss)}. "
            f"Lower the learning rate (now {trainer.learning_rate:g}), or look at the data."
        )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Within, a first Ctrl-C or SIGTERM is only put on the list that this yields; a second raises KeyboardInterrupt."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen  # only the main thread may set a handler, and only it is interrupted
        return

    def note(number, frame):
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
