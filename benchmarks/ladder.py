"""What each optimisation gains: a trainer's whole step, with one more of them switched on from rung to rung.

    python -m benchmarks.ladder                                  # writes data/records/ladder-cpu.json (or -gpu.json)
    python -m benchmarks.ladder --recipes cifar10 --batch 128    # one recipe, another batch

All rungs of a recipe are timed in one run, in turns, so that a busy moment meets all of them. The images are random.
On a CPU the processor's time counts, of all threads together: others who use the machine hardly change it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from ddpm_lib.devices import default_device
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.runs.recipes import Recipe, recipe
from ddpm_lib.runs.records import RECORDS, write_record
from ddpm_lib.training.ema import EMA
from ddpm_lib.training.fast import Fast
from ddpm_lib.training.trainer import Trainer

IMAGES = 512


class OneByOne(EMA):
    """The average, tensor by tensor."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
        self.steps += 1


def slow(trainer: Trainer) -> Trainer:
    """The same trainer, with AdamW and average tensor by tensor."""
    groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in trainer.optimiser.param_groups]
    trainer.optimiser = torch.optim.AdamW(groups, lr=trainer.base_rate, foreach=False, fused=False)
    trainer.emas = [OneByOne(trainer.model, ema.decay) for ema in trainer.emas]
    return trainer


def rungs(device: torch.device, compiled: bool) -> dict[str, dict]:
    """The options of each rung, by what it adds to the one before."""
    options = {"precision": "float32", "channels_last": False, "compile": False, "budget": 0, "slow": True}
    ladder = {"float32, tensor by tensor": dict(options)}

    def add(name: str, **change: object) -> None:
        options.update(change)
        ladder[name] = dict(options)

    add("+ fused AdamW, foreach average", slow=False)
    if device.type != "cpu":
        add("+ data on the device", budget=None)
    add("+ bf16", precision="bf16")
    add("+ channels-last", channels_last=True)
    if compiled:
        add("+ compiled", compile=True)
    return ladder


def new_trainer(chosen: Recipe, batch: int, device: torch.device, options: dict) -> Trainer:
    """A trainer of this rung, on random images."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, chosen.channels, chosen.size, chosen.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(chosen.classes, (IMAGES,), generator=generator) if chosen.classes else None
    way = {name: options[name] for name in ("precision", "channels_last", "compile")}
    trainer = Trainer(
        chosen.network().to(device),
        chosen.diffusion(),
        LabelledImages(images, labels),
        batch=batch,
        learning_rate=chosen.learning_rate,
        memory_budget=options["budget"],
        execution=Fast(device, **way),
    )
    return slow(trainer) if options["slow"] else trainer


def timed(steps: int, trainer: Trainer) -> float:
    """Seconds a step: on a CPU the processor's, else the wall clock's."""
    clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
    began = clock()
    for _ in range(steps):
        trainer.step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return (clock() - began) / steps


def measured(chosen: Recipe, batch: int, device: torch.device, rounds: int, steps: int, compiled: bool) -> list[dict]:
    """For each rung: its name, the seconds a step of each round, their median, and images a second."""
    ladder = rungs(device, compiled)
    trainers = {name: new_trainer(chosen, batch, device, options) for name, options in ladder.items()}
    first = {name: timed(2, trainer) for name, trainer in trainers.items()}  # compiles, fills caches
    times = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            times[name].append(timed(steps, trainer))
    return [
        {
            "name": name,
            "seconds": [round(one, 5) for one in of],
            "median": round(statistics.median(of), 5),
            "images_per_s": round(batch / statistics.median(of), 2),
            "first_steps": round(2 * first[name], 2),
        }
        for name, of in times.items()
    ]


def main(arguments: list[str] | None = None, show: Callable[[str], None] = print) -> dict:
    device = default_device()
    kind = "cpu" if device.type == "cpu" else "gpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["fashion_small", "cifar10"])
    parser.add_argument("--batch", type=int, default=8 if kind == "cpu" else 128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1 if kind == "cpu" else 20, help="timed at once")
    parser.add_argument("--compile", choices=["yes", "no"], default="no" if kind == "cpu" else "yes")
    parser.add_argument("--out", default=str(RECORDS / f"ladder-{kind}.json"))
    given = parser.parse_args(arguments)
    command, started, results = "python -m benchmarks.ladder", time.perf_counter(), []
    for name in ("recipes", "batch", "rounds", "steps", "compile"):
        value = getattr(given, name)
        if value != parser.get_default(name):
            command += f" --{name} {' '.join(value) if isinstance(value, list) else value}"
    for name in given.recipes:
        found = measured(recipe(name), given.batch, device, given.rounds, given.steps, given.compile == "yes")
        results.append({"recipe": name, "batch": given.batch, "rungs": found})
        for rung in found:
            gain = found[0]["median"] / rung["median"]
            show(f"{name:14} {rung['name']:32} {rung['median']:8.4f} s a step, {gain:5.2f} times as fast as the first")
    return write_record(given.out, command, results, started, device=device)


if __name__ == "__main__":
    main()
