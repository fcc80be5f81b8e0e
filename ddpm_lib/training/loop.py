"""The loop of training: watched, logged, stopped by what is not finite, and safe to interrupt."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lib.training.monitor import peak_memory
from ddpm_lib.training.trainer import Step, Trainer

PARTS = 10  # of 1..T, in the loss by t


def train(
    trainer: Trainer,
    steps: int,
    *,
    every: int = 50,
    on_entry: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> list[dict]:
    """Step until `trainer.steps` reaches `steps`. Returns the log: one dict for every `every` steps, and for the last.

    An entry holds step, loss (the mean since the last entry), loss_by_t (the same in each tenth of 1..T, None where no
    t fell), gradient_norm (the largest, before clipping), learning_rate, images_per_s and memory_gb (the peak so far);
    with a loss scaler also skipped, how many steps were left out, of which the other numbers say nothing.
    on_entry: called with each, at a state whose losses and gradients were finite: the place to save.
    Only there is the device asked for numbers. Raises FloatingPointError there, before on_entry, if one is not finite.
    Ctrl-C or SIGTERM ends the step in hand and raises KeyboardInterrupt, with a message, between two steps;
    a second one acts at once, with none. Raises ValueError for every < 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    trainer.model.train()
    trainer.open()  # while Ctrl-C still acts at once, for it may take minutes
    history, seen, read_at = [], [], time.perf_counter()
    with (
        _interrupts() as interrupts,
        tqdm(total=steps, initial=trainer.steps, desc="training", mininterval=1, disable=not progress) as bar,
    ):
        while trainer.steps < steps:
            seen.append(trainer.step())
            bar.update()
            stop = trainer.execution.agree(bool(interrupts))
            if trainer.steps % every and trainer.steps < steps and not stop:
                continue
            if (entry := _summary(trainer, seen)) is None:  # all were skipped, as the first ones of a run may be
                if stop or trainer.steps == steps:
                    raise FloatingPointError(f"every step after {trainer.steps - len(seen)} was skipped, nothing saved")
                continue
            entry["images_per_s"] = trainer.batch * len(seen) / (time.perf_counter() - read_at)
            entry["memory_gb"] = peak_memory(trainer.device)
            history.append(entry)
            bar.set_postfix_str(f"loss {entry['loss']:.4f}, {entry['images_per_s']:.0f} images/s", refresh=False)
            if on_entry is not None:
                on_entry(entry)
            seen, read_at = [], time.perf_counter()  # images_per_s leaves out the saving
            if trainer.execution.agree(bool(interrupts)):  # it may have come while the entry was written
                raise KeyboardInterrupt(f"stopped after step {trainer.steps} of {steps}")
    return history


def _summary(trainer: Trainer, seen: Sequence[Step]) -> dict | None:
    """The part of an entry that is read off the steps; None where a loss scaler skipped all of them.

    Raises FloatingPointError if a number of a step that was not skipped is not finite.
    """
    skipped = [] if seen[0].skipped is None else torch.stack([step.skipped for step in seen]).tolist()
    if skipped:
        seen = [step for step, left_out in zip(seen, skipped, strict=True) if not left_out]
    if not seen:
        return None
    loss = torch.stack([step.loss for step in seen]).cpu().double()  # (steps, B)
    norm = torch.stack([step.gradient_norm for step in seen]).cpu().double()
    weighted = torch.stack([row if s.factor is None else row * s.factor for row, s in zip(loss, seen, strict=True)])
    _refuse_non_finite(trainer, weighted.mean(1), norm)
    part = ((torch.stack([step.t for step in seen]) - 1) * PARTS // trainer.schedule.T).flatten()
    count = torch.bincount(part, minlength=PARTS)
    mean = torch.bincount(part, weights=loss.flatten(), minlength=PARTS) / count
    return {
        "step": trainer.steps,
        "loss": float(weighted.mean()),
        "loss_by_t": [float(m) if n else None for m, n in zip(mean, count, strict=True)],
        "gradient_norm": float(norm.max()),
        "learning_rate": trainer.learning_rate,
        **({"skipped": sum(skipped)} if skipped else {}),
    }


def linear_rate(warmup: int, steps: int, final: float = 0.0) -> Callable[[int], float]:
    """Eq. 11.4 (learning-rate course). The factor of the learning rate, as a function of the steps done: 0, 1, ...

    It rises linearly to 1 in `warmup` steps (the first step has 1/(warmup + 1), not 0), falls linearly to `final` at
    `steps`, and stays there; final = 1 is a constant rate after the warm-up.
    """

    def rate(done: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        return final + (1 - final) * max(0.0, 1 - (done - warmup) / max(1, steps - warmup))

    return rate


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
