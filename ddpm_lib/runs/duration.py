"""How long a recipe takes on this machine: timed at its own batch, or estimated from two smaller ones."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.runs.assemble import new_trainer
from ddpm_lib.runs.recipes import Recipe
from ddpm_lib.training.trainer import Step, Trainer

LEAST, MOST, SECONDS = 3, 100, 5.0  # steps that are timed: for five seconds, but as many as that
LONGEST = 5.0  # seconds that a step may take to be timed at all, where a shorter one has been
ROUNDS = 3  # of the two smaller batches, which take turns


class Duration(NamedTuple):
    """Seconds that a step of a recipe takes, and the batches that were timed: its own, or two smaller ones."""

    seconds: float
    batches: tuple[int, ...]

    @property
    def estimated(self) -> bool:
        """Whether it is computed from smaller batches."""
        return len(self.batches) > 1


def duration(
    recipe: Recipe,
    data: LabelledImages | ImageFiles,
    device: torch.device,
    trainer: Trainer,
    seconds: float,
    ahead: int = 0,
    clock: Callable[[], float] | None = None,
) -> Duration:
    """Seconds a step at the recipe's batch. trainer: of the recipe with another batch or the same, whose steps were
    found to take so many `seconds`.

    Where a step of the recipe's batch B takes at most LONGEST, were it in proportion, it is timed. Else a step is taken
    to cost a + b·batch: the trainer's batch and a larger one take turns, and the line through their medians, with a and
    b not negative, is read at B. recipe: with nothing left open, see `decided`. ahead: batches that workers may have
    read while nobody waited, which are not timed. clock: time.perf_counter; time.process_time tells what one thread
    would take on a core that it has to itself.
    """
    clock, small, full = clock or time.perf_counter, trainer.batch, recipe.batch
    if small >= full:
        return Duration(seconds, (small,))
    share = seconds / small  # of one image, at most
    larger = full if full * share <= LONGEST else max(2 * small, int(LONGEST / share))
    other = new_trainer(replace(recipe, batch=larger), data, device)
    for _ in range(1 + ahead):
        wait(other.step())
    if larger == full:
        found = Duration(time_steps(other, clock), (full,))
    else:
        times = {small: [], larger: []}
        for _ in range(ROUNDS):
            for one in (trainer, other):
                began = clock()
                wait(one.step())
                times[one.batch].append(clock() - began)
        at_small, at_larger = (statistics.median(times[batch]) for batch in (small, larger))
        found = Duration(on_the_line(small, at_small, larger, at_larger, full), (small, larger))
    other.images.close()
    return found


def on_the_line(small: int, at_small: float, larger: int, at_larger: float, batch: int) -> float:
    """a + b·batch of the line through two timings, seconds of `small` < `larger` images, with a >= 0 and b >= 0."""
    a = at_small - (at_larger - at_small) / (larger - small) * small
    a = min(max(a, 0.0), at_larger)
    return a + (at_larger - a) / larger * batch


def time_steps(trainer: Trainer, clock: Callable[[], float] | None = None) -> float:
    """Seconds that a step takes, its batch included. clock: see `duration`."""
    clock = clock or time.perf_counter
    done, began = 0, clock()
    while done < LEAST or (done < MOST and clock() - began < SECONDS):
        step, done = trainer.step(), done + 1
    wait(step)  # a GPU is only now done with them
    return (clock() - began) / done


def wait(step: Step) -> None:
    """Return when the device is done with a step."""
    float(step.gradient_norm)


def in_words(seconds: float) -> str:
    """A length of time as one would say it: 40 seconds, 12 minutes, 20.5 hours, 310 hours (12.9 days)."""
    for unit, name, until in ((1, "seconds", 120), (60, "minutes", 7200)):
        if seconds < until:
            return f"{seconds / unit:.0f} {name}"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 72 else f"{hours:.0f} hours ({hours / 24:.1f} days)"
