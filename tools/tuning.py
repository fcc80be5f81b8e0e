"""Runs the sweeps of the tuning guide (appendix C), and runs that are broken on purpose: python -m tools.tuning

Each training is the recipe `digits`, made small (BASE), with one thing changed, for each of three seeds. What a run
gave is appended to WORK/runs.jsonl when it is done: started again, the command goes on with the next run. At the end it
writes the record `data/records/tuning.json`. One thread; about half an hour where the core is free.
"""

import argparse
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lib.diffusion.forward import noise_std
from ddpm_lib.evaluation.metrics import PixelClassifier, frechet_distance, recall
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.runs.model import TrainedModel
from ddpm_lib.runs.recipes import Recipe, override, recipe
from ddpm_lib.runs.records import RECORDS, write_record
from ddpm_lib.runs.run import load_data, new_trainer
from ddpm_lib.samplers.ddim import strided_t
from ddpm_lib.training.ema import EMA
from ddpm_lib.training.loop import train
from ddpm_lib.training.monitor import append_entry, held_out_loss, read_log
from ddpm_lib.training.trainer import Trainer

COMMAND = "python -m tools.tuning"
SEEDS = (0, 1, 2)
BASE = (
    "width=16",
    "groups=4",
    "batch=64",
    "steps=320",
    "sample_steps=20",
    "ema_decays=0.99,0.9",
)  # of the recipe digits
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)  # of guidance, for the base alone
EACH = 30  # samples of each class
COLD = 0.999  # the decay of an average without warm-up


@dataclass(frozen=True)
class Run:
    """One training: what is changed, the value that it gets, and the fields (or the break, see DATA) that do it."""

    what: str
    value: str
    changes: tuple[str, ...] = ()


def sweep(what: str, *values: str, field: str = "") -> list[Run]:
    return [Run(what, value, (f"{field or what}={value}",)) for value in values]


RUNS = [  # what matters most comes first, in case of impatience
    Run("base", ""),
    *(Run("broken", value) for value in ("images in [0, 1]", "labels shuffled")),
    Run("broken", "labels always dropped", ("label_dropout=1.0",)),
    *sweep("learning_rate", "0.0005", "0.001", "0.002", "0.008", "0.016", "0.064"),
    *sweep("final_rate", "1.0"),
    *sweep("steps", "80", "160", "640"),
    *sweep("schedule", "linear"),
    *sweep("width", "8", "32"),
    *sweep("batch", "16", "128"),
]


def unit_range(images: LabelledImages, seed: int) -> LabelledImages:
    return replace(images, images=(images.images + 1) / 2)


def shuffled(images: LabelledImages, seed: int) -> LabelledImages:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return replace(images, labels=images.labels[order])


DATA: dict[str, Callable[[LabelledImages, int], LabelledImages]] = {  # the breaks that are in the data
    "images in [0, 1]": unit_range,
    "labels shuffled": shuffled,
}

RETIMED: dict[str, Callable[[Tensor, int], Tensor]] = {  # those in what the network is told; stride: the sampler's
    "t - 1 for t": lambda t, stride: t - 1,
    "the step's number for t": lambda t, stride: t // stride,
}


class Retimed(nn.Module):
    """A network that is told another time than the sampler's."""

    def __init__(self, network: nn.Module, retime: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.null, self.retime = network, network.null, retime
        self.eval()

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.network(x_t, self.retime(t), y)


class NoisyEnd(TrainedModel):
    """A sampler whose last step adds noise like the others, with the variance of the forward process."""

    def sample(self, labels: Tensor, *, seed: int = 0, **options: Any) -> Tensor:
        images = super().sample(labels, seed=seed, **options)
        last = strided_t(self.schedule.T, self.recipe.sample_steps)[-2]
        z = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        return images + noise_std(self.schedule, last, like=images) * z


class Examiner:
    """Draws samples of a model and gives the numbers of chapter 16 for them, and strips of ten to look at."""

    def __init__(self, real: LabelledImages, held_out: LabelledImages, each: int = EACH):
        self.real, self.held_out, self.each = real, held_out, each
        self.classifier = PixelClassifier(real.images, real.labels)

    def samples(self, model: TrainedModel, scale: float) -> dict[str, float]:
        """accuracy, recall, distance: see chapter 16; mean: of the pixels; outside: the share beyond [−1, 1]."""
        wanted = torch.arange(10).repeat(self.each)
        images = model.sample(wanted, scale=scale, seed=model.recipe.seed, batch=len(wanted))
        found = {
            "accuracy": self.classifier.accuracy(images, wanted),
            "recall": recall(self.real.images, images),
            "distance": frechet_distance(self.real.images, images),
            "mean": float(images.mean()),
            "outside": float((images.abs() > 1 + 1e-6).double().mean()),
        }
        return {name: round(number, 5) for name, number in found.items()}

    def strip(self, model: TrainedModel, scale: float) -> str:
        """One sample of each class, (10, 8, 8), as bytes in base64."""
        images = model.sample(torch.arange(10), scale=scale, seed=model.recipe.seed)
        levels = (127.5 * (images.clamp(-1, 1) + 1)).round().to(torch.uint8)
        return base64.b64encode(levels.numpy().tobytes()).decode()

    def point(self, model: TrainedModel, scales: Sequence[float] = (1.0, 2.0)) -> dict[str, Any]:
        """All numbers of a model; the held-out loss where it is a network's, and not a way of sampling it."""
        plain = type(model) is TrainedModel and not isinstance(model.network, Retimed)
        loss = round(held_out_loss(model.network, model.schedule, self.held_out), 5) if plain else None
        found = {"held_out_loss": loss, "samples": {f"{scale:g}": self.samples(model, scale) for scale in scales}}
        guided = [scale for scale in scales if scale >= 2 and model.recipe.seed == 0]
        return found | {"strips": {f"{scale:g}": self.strip(model, scale) for scale in guided}}


def points(run: Run, chosen: Recipe, trainer: Trainer, cold: EMA, examiner: Examiner) -> list[dict[str, Any]]:
    """The points of the guide that one trained network gives: its average's, for the base also broken ways to use it.

    Where the learning rate matters to it, in the base and at a constant rate, also other averages and the raw weights.
    """
    average, *others = (ema.model for ema in trainer.emas[: len(chosen.ema_decays)])
    model = TrainedModel(average, trainer.schedule, chosen)
    found = [(run.what, run.value, model, SCALES if run.what == "base" else (1.0, 2.0))]
    if run.what in ("base", "final_rate"):
        kind = "average" if run.what == "base" else "average at a constant rate"
        kinds = dict(zip(map(str, chosen.ema_decays[1:]), others, strict=True)) | {"none": trainer.model.eval()}
        found += [(kind, value, replace(model, network=network), (1.0, 2.0)) for value, network in kinds.items()]
    if run.what == "base":
        stride = chosen.T // chosen.sample_steps
        broken = {
            "average without warm-up": replace(model, network=cold.model),
            "noise at the last step": NoisyEnd(average, trainer.schedule, chosen),
        }
        for value, retime in RETIMED.items():
            broken[value] = replace(model, network=Retimed(average, partial(retime, stride=stride)))
        found += [("broken", value, sick, (1.0, 2.0)) for value, sick in broken.items()]
    return [
        {"what": what, "value": value, "seed": chosen.seed} | examiner.point(model, scales)
        for what, value, model, scales in found
    ]


def measure(run: Run, chosen: Recipe, data: LabelledImages, held_out: LabelledImages, each: int) -> dict[str, Any]:
    """Train one network and examine it: its points, its loss curve, its CPU seconds of training, and all seconds."""
    examiner, started = Examiner(data, held_out, each), time.perf_counter()
    spoil = DATA.get(run.value, lambda images, seed: images)
    examiner.held_out = spoil(held_out, chosen.seed)
    with mock.patch("ddpm_lib.training.trainer.check_images"):  # which would refuse images in [0, 1]
        trainer = new_trainer(chosen, spoil(data, chosen.seed), torch.device("cpu"))
    cold = EMA(trainer.model, COLD)
    cold.steps = 10**9  # its warm-up is over before it began
    trainer.emas.append(cold)
    cpu = time.process_time()
    history = train(trainer, chosen.steps, every=chosen.log_every, progress=False)
    cpu = time.process_time() - cpu
    return {
        "what": run.what,
        "value": run.value,
        "seed": chosen.seed,
        "cpu_seconds": round(cpu, 1),
        "loss": [round(entry["loss"], 4) for entry in history],
        "points": points(run, chosen, trainer, cold, examiner),
        "seconds": round(time.perf_counter() - started, 1),
    }


def tune(
    work: Path,
    out: Path,
    *,
    base: Sequence[str] = BASE,
    runs: Sequence[Run] = RUNS,
    seeds: Sequence[int] = SEEDS,
    each: int = EACH,
) -> dict[str, Any]:
    """All runs that `work` does not hold yet, then the record of all in `out`; returns it."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    log = work / "runs.jsonl"
    plan = [(run, override(recipe("digits"), [*base, *run.changes, f"seed={seed}"])) for run in runs for seed in seeds]
    data, held_out = load_data(plan[0][1])
    done = {(entry["what"], entry["value"], entry["seed"]): entry for entry in read_log(log)}
    todo = [(run, chosen) for run, chosen in plan if (run.what, run.value, chosen.seed) not in done]
    if len(todo) < len(plan):
        print(f"{len(plan) - len(todo)} of {len(plan)} runs are done, in {log}")
    with tqdm(total=sum(chosen.steps * chosen.batch for _, chosen in todo), unit="images", mininterval=1) as bar:
        for run, chosen in todo:
            bar.set_description(f"{run.what} {run.value} seed {chosen.seed}")
            entry = measure(run, chosen, data, held_out, each)
            append_entry(log, entry)
            done[run.what, run.value, chosen.seed] = entry
            numbers = entry["points"][0]["samples"]["1"]
            told = f"held-out loss {entry['points'][0]['held_out_loss']:.4f}, recall {numbers['recall']:.3f}"
            bar.write(f"{run.what} {run.value} seed {chosen.seed}: {told}, {entry['seconds']:.0f} s")
            bar.update(chosen.steps * chosen.batch)
    found = [done[run.what, run.value, chosen.seed] for run, chosen in plan]
    seconds = sum(entry.pop("seconds") for entry in found)
    results = {"base": list(base), "seeds": list(seeds), "samples": 10 * each, "runs": found}
    return write_record(out, COMMAND, results, time.perf_counter() - seconds, device=torch.device("cpu"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/tuning"), help="where finished runs are noted")
    parser.add_argument("--out", type=Path, default=RECORDS / "tuning.json", help="the record")
    options = parser.parse_args()
    tune(options.work, options.out)
