"""Data, network and trainer of a recipe, put together."""

import json

import torch
from torch import Tensor

from ddpm_lib.devices import default_device
from ddpm_lib.images.data import LabelledImages, check_images
from ddpm_lib.images.decoded import some_of
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.runs.decide import decided
from ddpm_lib.runs.model import TrainedModel
from ddpm_lib.runs.recipes import DATA, TIMESTEPS, Recipe
from ddpm_lib.samplers.guidance import drop_labels
from ddpm_lib.training.distributed import Distributed, by_first, launched
from ddpm_lib.training.fast import Fast
from ddpm_lib.training.rates import COURSES
from ddpm_lib.training.trainer import Trainer

HELD_OUT = 512  # images in the held-out loss


def load_data(recipe: Recipe) -> tuple[LabelledImages | ImageFiles, LabelledImages]:
    """What a recipe trains on, and at most 512 held-out images, spread evenly over those there are.

    Raises ValueError or TypeError where the data are not what the recipe says.
    """
    data, held_out = DATA[recipe.data](recipe)
    found = len(data.names)
    if recipe.classes and found and recipe.classes != found:
        raise ValueError(
            f"the data have {found} classes ({', '.join(data.names)}) and the recipe {recipe.classes}: "
            f"set classes={found}, or classes=0 to train without labels"
        )
    some = some_of(held_out, HELD_OUT, recipe.workers)
    for part in (data, some):
        if isinstance(part, LabelledImages):
            check_images(part, (recipe.channels, recipe.size, recipe.size), recipe.classes)
    return data, some


def new_trainer(recipe: Recipe, data: LabelledImages | ImageFiles, device: torch.device | None = None) -> Trainer:
    """Network, schedule, label dropout and options of a recipe, put together with its data, ready for `train`.

    What the recipe leaves open ("auto", 0) is decided here as `decided` does, if it was not before. Of the processes
    that torchrun started each computes a share of the steps; ValueError where their images are not the same.
    """
    device = device or default_device()
    recipe = decided(recipe, device)
    torch.manual_seed(recipe.seed)
    network, schedule = recipe.network().to(device), recipe.diffusion()
    execution = (Distributed if launched() else Fast)(
        device,
        precision=recipe.precision,
        accumulate=recipe.accumulate,
        channels_last=recipe.channels_last == "yes",
        compile=recipe.compile == "yes",
    )

    def prepare_labels(labels: Tensor, generator: torch.Generator) -> Tensor | None:
        return drop_labels(labels, recipe.label_dropout, network.null, generator) if recipe.classes else None

    options = ("batch", "learning_rate", "weight_decay", "clip_norm", "ema_decays", "seed", "flip", "workers")
    trainer = Trainer(
        network,
        schedule,
        data,
        rate=COURSES[recipe.course](recipe.warmup, recipe.steps, recipe.final_rate),
        timesteps=TIMESTEPS[recipe.timestep_sampler](schedule),
        execution=execution,
        prepare_labels=prepare_labels,
        memory_budget=recipe.memory_budget(),
        **{name: getattr(recipe, name) for name in options},
    )
    mine = json.dumps(trainer.fingerprint)
    if by_first(lambda: mine) != mine:
        raise ValueError("the images of this process are not those of the first: give every machine the same")
    return trainer


def trained(trainer: Trainer, recipe: Recipe) -> TrainedModel:
    """The trainer's first averaged network, ready to sample from."""
    return TrainedModel(trainer.ema.model, trainer.schedule, recipe, tuple(trainer.data.names))
