"""What a classifier that was trained on noisy images, and one that was not, make of noise: Fashion-MNIST.

python -m benchmarks.noisy_classifier DATA     # DATA: a folder with FashionMNIST; a few minutes on a CPU

Writes data/records/noisy_classifier.json: the share of 2,000 held-out images that each classifier recognises, by t.
"""

import argparse
import time

import torch

from ddpm_lib.devices import default_device
from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.forward import noise_like, q_sample
from ddpm_lib.images.data import to_signed
from ddpm_lib.images.datasets import fashion
from ddpm_lib.networks.classifier import Classifier
from ddpm_lib.runs.records import RECORDS, write_record
from ddpm_lib.training.classify import accuracy, train_classifier

TIMES = (1, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
COUNT = 2000  # held-out images


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", default=str(RECORDS / "noisy_classifier.json"))
    given = parser.parse_args(arguments)
    started, device, schedule = time.perf_counter(), default_device(), cosine_schedule()
    train_set, held_out = fashion(given.data)
    images, labels = to_signed(held_out.images[:COUNT]), held_out.labels[:COUNT]
    eps = noise_like(images, torch.Generator().manual_seed(1))
    results = {"data": "Fashion-MNIST", "images": COUNT, "steps": given.steps, "batch": 64, "t": list(TIMES)}
    for name, noise in (("noisy", schedule), ("clean", None)):
        torch.manual_seed(0)
        network = Classifier(size=28, channels=1, classes=10, width=16, multipliers=(1, 2, 2)).to(device)
        train_classifier(network, train_set, steps=given.steps, batch=64, learning_rate=4e-3, schedule=noise)
        noised = [q_sample(schedule, images, eps, t) for t in TIMES]
        told = TIMES if noise else [None] * len(TIMES)  # the second one was never told a t
        results[name] = [round(accuracy(network, x, labels, t), 4) for x, t in zip(noised, told, strict=True)]
        print(name, results[name])
    command = "python -m benchmarks.noisy_classifier DATA" + f" --steps {given.steps}" * (given.steps != 400)
    return write_record(given.out, command, results, started, device=device)


if __name__ == "__main__":
    main()
