"""Trains a small network from several seeds and measures several sets of samples of each: python -m tools.seeds

Each training is the recipe `digits`, made small (BASE), as in the tuning guide. What retraining moves, and what drawing
again moves: chapter 15 compares the two. One line of WORK/trainings.jsonl is written when a training and its samples
are done: started again, the command goes on with the next seed. At the end it writes the record
`data/records/seeds.json`. One thread; a few minutes where the core is free.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.evaluation.coverage import density_and_coverage, precision_and_recall
from ddpm_lib.evaluation.features import Features, classifier_features, pixels
from ddpm_lib.evaluation.kernel import kernel_distance
from ddpm_lib.evaluation.memorised import copying_score
from ddpm_lib.evaluation.metrics import PixelClassifier, frechet_distance
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.classifier import Classifier
from ddpm_lib.runs.model import TrainedModel
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.records import RECORDS, write_record
from ddpm_lib.runs.run import load_data, new_trainer
from ddpm_lib.training.classify import accuracy, train_classifier
from ddpm_lib.training.loop import train
from ddpm_lib.training.monitor import append_entry, read_log

COMMAND = "python -m tools.seeds"
BASE = ("width=16", "groups=4", "batch=64", "steps=320", "sample_steps=20")  # of the recipe digits


def examiner(data: LabelledImages, steps: int) -> Features:
    """The features of one small classifier of clean digits, the same for all trainings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(size=8, channels=1, classes=10, width=16, multipliers=(1, 2), groups=8)
        train_classifier(classifier, data, steps=steps, batch=96)
    return classifier_features(classifier, "a classifier of the digits")


def numbers(images: Tensor, labels: Tensor, data: LabelledImages, held_out: LabelledImages, seen: Features, svc):
    """All metrics of one set of samples against the training images, by name."""
    look = pixels()
    real, fake = look(data.images), look(images)
    known, new = seen(data.images), seen(images)
    precision, recall = precision_and_recall(real, fake)
    density, coverage = density_and_coverage(real, fake)
    found = {
        "Fréchet distance, pixels": frechet_distance(real, fake),
        "Fréchet distance, classifier": frechet_distance(known, new),
        "kernel distance, classifier": kernel_distance(known, new),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "recognised": svc.accuracy(images, labels),
        "nearer than held-out": copying_score(fake, look(held_out.images), real)[1],
    }
    return {name: round(value, 6) for name, value in found.items()}


def measure(seed: int, changes: Sequence[str], draws: int, each: int, classifier_steps: int) -> dict[str, Any]:
    """Train one network; the metrics of `draws` sets of 10·each samples."""
    started, chosen = time.perf_counter(), override(recipe("digits"), [*changes, f"seed={seed}"])
    data, held_out = load_data(chosen)
    seen, svc = examiner(data, classifier_steps), PixelClassifier(data.images, data.labels)
    trainer = new_trainer(chosen, data, torch.device("cpu"))
    train(trainer, chosen.steps, every=chosen.log_every, progress=False)
    model = TrainedModel(trainer.emas[0].model, trainer.schedule, chosen)
    wanted, sets = torch.arange(10).repeat(each), []
    for draw in range(draws):
        images = model.sample(wanted, scale=1.0, seed=1000 * seed + draw, batch=250).clamp(-1, 1)
        sets.append(numbers(images, wanted, data, held_out, seen, svc))
    return {
        "seed": seed,
        "sets": sets,
        "classifier": round(accuracy(seen.network.__closure__[0].cell_contents, held_out.images, held_out.labels), 5),
        "seconds": round(time.perf_counter() - started, 1),
    }


def run(
    work: Path,
    out: Path,
    *,
    changes: Sequence[str] = BASE,
    seeds: Sequence[int] = range(5),
    draws: int = 8,
    each: int = 50,
    classifier_steps: int = 250,
) -> dict[str, Any]:
    """All trainings that `work` does not hold yet, then the record of all in `out`; returns it."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    log = work / "trainings.jsonl"
    done = {entry["seed"]: entry for entry in read_log(log)}
    for seed in seeds:
        if seed not in done:
            done[seed] = measure(seed, changes, draws, each, classifier_steps)
            append_entry(log, done[seed])
            print(f"seed {seed}: {done[seed]['sets'][0]}, {done[seed]['seconds']:.0f} s", flush=True)
    trainings = [done[seed] for seed in seeds]
    seconds = sum(entry.pop("seconds") for entry in trainings)
    results = {"changes": list(changes), "samples": 10 * each, "trainings": trainings}
    return write_record(out, COMMAND, results, time.perf_counter() - seconds, device=torch.device("cpu"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/seeds"), help="where finished trainings are noted")
    parser.add_argument("--out", type=Path, default=RECORDS / "seeds.json", help="the record")
    options = parser.parse_args()
    run(options.work, options.out)
