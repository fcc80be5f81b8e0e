"""Watching a run: a log of JSON lines that survives a crash, its curves, the memory in use, and TensorBoard."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from ddpm_lib import plot
from ddpm_lib.diffusion.loss import l_simple
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.images.data import LabelledImages, to_signed
from ddpm_lib.training.checkpoint import named, write_atomically


def append_entry(path: str | Path, entry: Mapping) -> None:
    """Add one line of JSON to a log. Raises OSError, which names the log, where it cannot be written."""
    line = json.dumps(entry) + "\n"
    with named(path, len(line)), open(path, "a", encoding="utf-8") as log:
        log.write(line)


def read_log(path: str | Path) -> list[dict]:
    """The entries of a log, oldest first; [] if there is none. A last line that a crash cut short is left out.

    Raises ValueError, naming the line, where anything else is not JSON.
    """
    if not Path(path).exists():
        return []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    entries = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never finished
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: expected JSON, got {line[:80]!r}") from error
    return entries


def cut_log(path: str | Path, step: int) -> None:
    """Forget what the log says of steps after `step`, and an unfinished line: a run that resumes there writes them."""
    kept = [json.dumps(entry) + "\n" for entry in read_log(path) if entry["step"] <= step]
    write_atomically(path, "".join(kept).encode())


@torch.no_grad()
def held_out_loss(network: nn.Module, schedule: Schedule, data: LabelledImages, batch: int = 128) -> float:
    """L_simple of a network on images that it was not trained on: always the same t, evenly spread, and the same noise.

    network: called as network(x_t, t, labels), in eval mode (ValueError otherwise). data: float images or bytes.
    Comparable between checkpoints of a run, which is all that it is for.
    """
    if network.training:
        raise ValueError("expected a network in eval mode: call network.eval() first")
    device, total = next(network.parameters()).device, 0.0
    generator = torch.Generator().manual_seed(0)
    times = (torch.arange(len(data)) * schedule.T) // len(data) + 1
    times = times[torch.randperm(len(data), generator=generator)]  # the data may be sorted by class
    for rows in torch.arange(len(data)).split(batch):
        images = data.images[rows]
        x_0 = to_signed(images, check=False) if images.dtype == torch.uint8 else images
        eps, y = torch.randn(x_0.shape, generator=generator).to(device), None
        if data.labels is not None and getattr(network, "null", 1):
            y = data.labels[rows].to(device)
        losses = l_simple(lambda x_t, t, y=y: network(x_t, t, y), schedule, x_0.to(device), eps, times[rows])
        total += float(losses.sum())
    return total / len(data)


def peak_memory(device: torch.device) -> float | None:
    """The most memory that was in use so far, in GB (10⁹ bytes): on a GPU its tensors', else the whole process's.

    None where the system does not tell (Windows, without a GPU).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def curves(history: Sequence[Mapping]) -> Figure:
    """A figure of a log: loss (held out: that of the averaged weights), loss by t, gradient norm and learning rate."""
    steps = [entry["step"] for entry in history]
    figure, (loss, by_t, rest) = plot.panels(3, height=3.0)
    loss.plot(steps, [entry["loss"] for entry in history], label="training")
    held_out = [(entry["step"], entry["held_out_loss"]) for entry in history if "held_out_loss" in entry]
    if held_out:
        loss.plot(*zip(*held_out, strict=True), "o--", markersize=4, label="held out")
    plot.label(loss, "step", "loss per pixel", "loss", legend=bool(held_out))
    last = history[-1]["loss_by_t"]
    tenths = [(i + 0.5) / len(last) for i in range(len(last))]
    by_t.plot(tenths, [float("nan") if value is None else value for value in last], "o-", markersize=4)
    plot.label(by_t, "t / T", "loss per pixel", "by time, last entry")
    rest.plot(steps, [entry["gradient_norm"] for entry in history], label="gradient norm")
    rest.plot(steps, [entry["learning_rate"] for entry in history], "--", label="learning rate")
    plot.label(rest, "step", "", "norm and rate", legend=True)
    for axes in (loss, by_t, rest):
        axes.set_yscale("log")
        axes.set_yticks(log_ticks(*axes.get_ylim()), minor=False)
        axes.set_yticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
    return figure


def log_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Two to `most` round numbers in low..high, 0 < low < high, for an axis whose scale is a logarithm.

    1, 2, 5, 10, 20, ...; where these are too many, powers of ten, or every second, third, ... of them; where they are
    too few, because low and high are nearly equal, steps of one size.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors, every in ((1, 2, 5), 1), ((1,), 1), ((1,), 1 + len(powers) // most):
        ticks = [factor * 10.0**power for power in powers[::every] for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 2 <= len(ticks) <= most:
            return ticks
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=2).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def tensorboard(folder: str | Path, step: int) -> Callable[[Mapping], None] | None:
    """A function that writes an entry's numbers for TensorBoard into `folder`; None where TensorBoard is not installed.

    step: where the run begins or resumes; what an earlier attempt wrote of later steps is hidden.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(entry: Mapping) -> None:
        for name, value in entry.items():
            if name != "step" and isinstance(value, (int, float)):
                writer.add_scalar(name, value, entry["step"])
        writer.flush()

    return write
