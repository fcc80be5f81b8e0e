"""The classifier that judges a data set's samples: shipped with the book, kept from before, or trained on the spot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddpm_lib import __version__
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.classifier import Classifier
from ddpm_lib.runs.shipped import DATA
from ddpm_lib.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from ddpm_lib.training.classify import accuracy, train_classifier
from ddpm_lib.training.fast import Fast

SHIPPED = DATA / "classifiers"
PREFIX = "classifier."
SMALL = {"width": 32, "multipliers": (1, 2, 4), "blocks": 1, "groups": 8, "dropout": 0.1}
COURSE = {"steps": 3000, "batch": 128, "learning_rate": 3e-3, "weight_decay": 0.02, "shift": 1, "smoothing": 0.05}
WIDE = {"width": 64, "multipliers": (1, 2, 4), "blocks": 2, "groups": 16, "dropout": 0.2}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # by data set: the network, and how it is trained
    "digits": (SMALL | {"multipliers": (1, 2)}, COURSE | {"steps": 200, "shift": 0}),
    "mnist": (SMALL, COURSE),
    "fashion": (SMALL, COURSE | {"flip": True}),
    "cifar10": (WIDE, COURSE | {"steps": 15_000, "batch": 256, "weight_decay": 0.05, "flip": True, "shift": 4}),
}


@dataclass(frozen=True, eq=False)
class Examiner:
    """A classifier in evaluation mode, its share of right answers on the held-out images, and the data set's name."""

    classifier: Classifier
    accuracy: float
    data: str

    @property
    def name(self) -> str:
        """As a number that it gave is to name it."""
        return f"the book's classifier of {self.data} ({self.accuracy:.1%} right on held-out images)"


def examiner(
    name: str,
    train: LabelledImages,
    held_out: LabelledImages,
    *,
    folder: str | Path = "runs/classifiers",
    device: torch.device | None = None,
    progress: bool = False,
) -> Examiner:
    """The examiner of the data set `name`, on `device`. One that must be trained is written to `folder` for next time.

    Raises ValueError for data without labels.
    """
    if train.labels is None:
        raise ValueError(f"{name} has no labels, so nothing can be trained to recognise them")
    device, (channels, size) = device or torch.device("cpu"), train.images.shape[1:3]
    file = f"{name}-{size}.safetensors"
    kept = next((place for place in (SHIPPED / file, Path(folder) / file) if place.is_file()), None)
    if kept is not None:
        return load_examiner(kept, device)
    network, course = SETTINGS.get(name, SETTINGS["cifar10"])
    levels = network.get("multipliers", (1, 2))
    levels = levels[: next(n for n in range(len(levels), 0, -1) if size % 2 ** (n - 1) == 0)]
    network = network | {"multipliers": levels}
    classes = max(len(train.names), int(train.labels.max()) + 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        classifier = Classifier(size=size, channels=channels, classes=classes, **network).to(device)
        execution = Fast(device, precision="bf16" if device.type == "cuda" else "float32")
        train_classifier(classifier, train, **course, execution=execution, progress=progress)
    path = Path(folder) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_examiner(classifier, name, held_out, path)
    return load_examiner(path, device)


def save_examiner(classifier: Classifier, name: str, held_out: LabelledImages, path: str | Path) -> None:
    """Write a classifier in fp16, with what it is worth in that precision on these images."""
    device = next(classifier.parameters()).device
    halves = {key: value.half() for key, value in classifier.state_dict().items()}
    rounded = _new(classifier.config).to(device).eval()
    rounded.load_state_dict({key: value.float() for key, value in halves.items()})
    found = accuracy(rounded, held_out.images, held_out.labels)
    about = {"classifier": classifier.config, "data": name, "accuracy": found, "version": __version__}
    save_checkpoint(path, {f"{PREFIX}{key}": value for key, value in halves.items()}, about)


def load_examiner(path: str | Path, device: torch.device | None = None) -> Examiner:
    """The examiner that `save_examiner` wrote. Raises FileNotFoundError, or ValueError for another kind of file."""
    tensors, about = load_checkpoint(Path(path), (PREFIX,))
    if "classifier" not in about:
        raise ValueError(f"{path} holds no classifier")
    classifier = _new(about["classifier"])
    load_weights(classifier, tensors, PREFIX, path)
    return Examiner(classifier.to(device or torch.device("cpu")).eval(), about["accuracy"], about["data"])


def _new(config: dict[str, Any]) -> Classifier:
    """One whose first weights nobody will see, and which draws nothing from torch's generator."""
    with torch.random.fork_rng(devices=[]):
        return Classifier(**config)
