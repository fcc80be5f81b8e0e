"""A run: a recipe trained into a folder, and the trained model that one samples from."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lib import plot
from ddpm_lib.ancestral import OnStep
from ddpm_lib.checkpoint import load_checkpoint, load_weights, save_checkpoint, write_atomically
from ddpm_lib.data import check_images
from ddpm_lib.ddim import ddim_sample
from ddpm_lib.guidance import drop_labels, guided
from ddpm_lib.recipes import DATA, Recipe, from_json
from ddpm_lib.schedule import Schedule
from ddpm_lib.train import Trainer, linear_rate, train
from ddpm_lib.unet import UNet

CHECKPOINT = "checkpoint.safetensors"


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network, its schedule and the recipe they came from: all that sampling needs."""

    network: UNet
    schedule: Schedule
    recipe: Recipe

    def sample(
        self,
        labels: Sequence[int] | Tensor,
        *,
        scale: float | Tensor | None = None,
        steps: int | None = None,
        eta: float | None = None,
        seed: int = 0,
        progress: bool = False,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """One image for each label, by DDIM with guidance: (B, C, H, W) in [−1, 1], on the network's device.

        scale, steps, eta: the recipe's where None. scale may be one per label; eta: 0 deterministic to 1 ancestral.
        The same seed gives the same images on one machine. Raises ValueError for a label outside the classes.
        """
        r, device = self.recipe, next(self.network.parameters()).device
        if len(labels) == 0:
            raise ValueError("expected at least one label, got none")
        labels = torch.as_tensor(labels)
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"expected whole numbers as labels, got {labels.dtype}")
        labels = labels.long()
        generator = torch.Generator().manual_seed(seed)
        x_T = torch.randn(len(labels), r.channels, r.size, r.size, generator=generator).to(device)
        eps_model = guided(self.network, labels, r.scale if scale is None else scale, self.network.null)
        return ddim_sample(
            eps_model,
            self.schedule,
            x_T,
            steps=r.sample_steps if steps is None else steps,
            eta=r.eta if eta is None else eta,
            generator=generator,
            progress=progress,
            on_step=on_step,
        )


def new_trainer(recipe: Recipe, device: torch.device | None = None) -> Trainer:
    """Data, network, schedule and label dropout of a recipe, put together and checked, ready for `train`."""
    data, _ = DATA[recipe.data]()
    check_images(data, (recipe.channels, recipe.size, recipe.size), recipe.classes)
    torch.manual_seed(recipe.seed)
    network = recipe.network().to(device or default_device())
    return Trainer(
        network,
        recipe.diffusion(),
        data,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        rate=linear_rate(recipe.warmup, recipe.steps, recipe.final_rate),
        clip_norm=recipe.clip_norm,
        ema_decay=recipe.ema_decay,
        seed=recipe.seed,
        prepare_labels=lambda y, generator: drop_labels(y, recipe.label_dropout, network.null, generator),
    )


def trained(trainer: Trainer, recipe: Recipe) -> TrainedModel:
    """The trainer's averaged network, ready to sample from."""
    return TrainedModel(trainer.ema.model, trainer.schedule, recipe)


def run(
    recipe: Recipe, folder: str | Path, *, device: torch.device | None = None, progress: bool = True
) -> TrainedModel:
    """Train a recipe into a new folder: recipe.json, log.jsonl, checkpoint.safetensors and samples.png.

    The checkpoint holds the raw weights and their average. Raises FileExistsError if the folder exists: a run is
    never overwritten. Ctrl-C saves a whole checkpoint of the last step before KeyboardInterrupt goes on; a loss that
    is not finite raises FloatingPointError and saves nothing. A run that was stopped can be sampled from; it can not be
    resumed yet, for the checkpoint holds no state of the optimiser.
    """
    folder = Path(folder)
    trainer = new_trainer(recipe, device)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(
            f"{folder} exists, and a run is never overwritten: name another folder, or remove it"
        ) from None
    write_atomically(folder / "recipe.json", json.dumps(dataclasses.asdict(recipe), indent=2).encode())

    def on_entry(entry: dict) -> None:
        step = entry["step"]
        if step == recipe.steps or step // recipe.save_every > (step - recipe.log_every) // recipe.save_every:
            save(trainer, recipe, folder / CHECKPOINT)
        with open(folder / "log.jsonl", "a") as log:
            log.write(json.dumps(entry) + "\n")

    try:
        train(trainer, recipe.steps, every=recipe.log_every, on_entry=on_entry, progress=progress)
    except KeyboardInterrupt as stop:
        if stop.args:  # it came between two steps; a second Ctrl-C may cut one in two, and then nothing is saved
            save(trainer, recipe, folder / CHECKPOINT)
        raise
    model = trained(trainer, recipe)
    plot.save(sample_grid(model, progress=progress), folder / "samples.png")
    return model


def save(trainer: Trainer, recipe: Recipe, path: Path) -> None:
    """A checkpoint of the raw weights ("model.…"), their average ("ema.…") and the recipe."""
    tensors = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in trainer.ema.model.state_dict().items()}
    save_checkpoint(path, tensors, {"recipe": dataclasses.asdict(recipe), "step": trainer.steps})


def load(path: str | Path, *, weights: str = "ema", device: torch.device | None = None) -> TrainedModel:
    """The model of a run folder, or of a checkpoint file; nothing else is needed.

    weights: "ema" (what one samples from) or "model" (the raw weights).
    Raises FileNotFoundError, or ValueError for a file that is truncated, not ours, or of another architecture.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f'weights must be "ema" or "model", got {weights!r}')
    path = Path(path) / CHECKPOINT if Path(path).is_dir() else Path(path)
    tensors, about = load_checkpoint(path)
    try:
        recipe = from_json(about.get("recipe", {}))
        network = recipe.network()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    load_weights(network, tensors, f"{weights}.", path)
    return TrainedModel(network.to(device or default_device()).eval(), recipe.diffusion(), recipe)


def sample_grid(model: TrainedModel, *, rows: int = 6, seed: int = 0, progress: bool = False):
    """A figure of `rows` guided samples of every class, at the recipe's scale."""
    classes = model.recipe.classes
    images = model.sample(list(range(classes)) * rows, seed=seed, progress=progress).cpu()
    labels = [str(label) for label in range(classes)]
    return plot.grid(images, classes, column_labels=labels, title=f"guidance scale {model.recipe.scale:g}")
