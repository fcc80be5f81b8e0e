"""What a recipe names by a word: data sets, schedules, courses, timestep samplers, and the words there are."""

from collections.abc import Callable
from typing import Any

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.diffusion.timesteps import LossSecondMoment, TimestepSampler, UniformTimesteps
from ddpm_lib.images import data
from ddpm_lib.training.fast import PRECISIONS
from ddpm_lib.training.rates import COURSES


def _files(name: str) -> Callable[[Any], tuple]:
    def load(recipe: Any) -> tuple:  # a Recipe, whose module imports this one
        from ddpm_lib.images import datasets  # torchvision takes as long to import as torch, and few commands need it

        return getattr(datasets, name)(recipe.root, recipe.size, *[recipe.channels] * (name == "folder"))

    return load


DATA: dict[str, Callable[[Any], tuple]] = {"digits": lambda recipe: data.digits()}
DATA |= {name: _files(name) for name in ("mnist", "fashion", "cifar10", "stl10", "celeba", "folder")}
SCHEDULES: dict[str, Callable[[int], Schedule]] = {"linear": linear_schedule, "cosine": cosine_schedule}
TIMESTEPS: dict[str, Callable[[Schedule], TimestepSampler]] = {
    "uniform": UniformTimesteps,
    "second-moment": LossSecondMoment,
}
FEATURES = ("auto", "classifier", "efficientnet", "inception", "pixels")  # of an evaluation
AUTO = ("no", "yes", "auto")
CHOICES = {  # fields with one of a few words
    **{"data": DATA, "schedule": SCHEDULES, "course": COURSES, "timestep_sampler": TIMESTEPS},
    **{"precision": (*PRECISIONS, "auto"), "channels_last": AUTO, "compile": AUTO},
}
