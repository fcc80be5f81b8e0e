"""Recipes: the whole configuration of a run, as functions that return a frozen dataclass."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_lib import data
from ddpm_lib.cosine import cosine_schedule
from ddpm_lib.schedule import Schedule, linear_schedule
from ddpm_lib.unet import UNet

DATA: dict[str, Callable] = {"digits": data.digits}
SCHEDULES: dict[str, Callable[[int], Schedule]] = {"linear": linear_schedule, "cosine": cosine_schedule}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. `override` changes fields by name."""

    name: str
    # data: a key of DATA, and the shape that comes out of it
    data: str
    size: int
    channels: int
    classes: int
    # network: see UNet
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int
    dropout: float
    # diffusion: a key of SCHEDULES, and the number of steps
    schedule: str
    T: int
    # training: see Trainer
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    final_rate: float
    clip_norm: float
    ema_decay: float
    label_dropout: float
    seed: int
    log_every: int
    save_every: int
    # sampling: DDIM steps, its fresh noise and the guidance scale, where the caller names none
    sample_steps: int
    eta: float
    scale: float

    def __post_init__(self):
        for key, known in (("data", DATA), ("schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key} must be one of {', '.join(known)}; got {getattr(self, key)!r}")
        for key in ("T", "steps", "batch", "log_every", "save_every", "sample_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("label_dropout", "eta"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} must lie in [0, 1], got {getattr(self, key)}")
        for key in ("learning_rate", "final_rate", "clip_norm", "scale"):
            if not math.isfinite(getattr(self, key)):
                raise ValueError(f"{key} must be finite, got {getattr(self, key)}")
        if self.save_every < self.log_every:
            raise ValueError(f"save_every must be at least log_every, {self.log_every}; got {self.save_every}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if self.sample_steps > self.T:
            raise ValueError(f"sample_steps must lie in 1..{self.T}, the schedule's T; got {self.sample_steps}")

    def network(self) -> UNet:
        """A new network, initialised from torch's global generator."""
        names = (
            "size",
            "channels",
            "width",
            "multipliers",
            "blocks",
            "attention",
            "heads",
            "dropout",
            "classes",
        )
        return UNet(**{name: getattr(self, name) for name in names})

    def diffusion(self) -> Schedule:
        """The noise schedule."""
        return SCHEDULES[self.schedule](self.T)


def digits() -> Recipe:
    """scikit-learn's 1,797 handwritten digits at 8x8: no download, under two minutes on two CPU cores."""
    return Recipe(
        name="digits",
        data="digits",
        size=8,
        channels=1,
        classes=10,
        width=32,
        multipliers=(1, 2),
        blocks=1,
        attention=(4,),
        heads=4,
        dropout=0.0,
        schedule="cosine",
        T=1000,
        steps=640,
        batch=128,
        learning_rate=4e-3,
        warmup=20,
        final_rate=0.0,
        clip_norm=1.0,
        ema_decay=0.99,
        label_dropout=0.1,
        seed=0,
        log_every=20,
        save_every=200,
        sample_steps=50,
        eta=0.5,
        scale=2.0,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"digits": digits}


def recipe(name: str) -> Recipe:
    """The recipe of this name. Raises ValueError, listing the names there are, for any other."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]()


def override(base: Recipe, assignments: Sequence[str]) -> Recipe:
    """`base` with fields replaced, each given as "field=value"; a tuple as "1,2,2".

    Raises ValueError for an unknown field (listing all), or a value that is not of the field's type.
    """
    fields = {f.name: f for f in dataclasses.fields(base)}
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected field=value, got {assignment!r}")
        if name not in fields:
            raise ValueError(f"unknown field {name!r}; a recipe has: {', '.join(fields)}")
        kind = fields[name].type
        try:
            changes[name] = (
                tuple(int(part) for part in text.split(",") if part) if kind == tuple[int, ...] else kind(text)
            )
        except ValueError as error:
            shown = "whole numbers separated by commas" if kind == tuple[int, ...] else kind.__name__
            raise ValueError(f"field {name} expects {shown}, got {text!r}") from error
    return dataclasses.replace(base, **changes)


def from_json(fields: dict[str, Any]) -> Recipe:
    """A recipe from what `dataclasses.asdict` and JSON made of it. Raises ValueError for missing or unknown fields."""
    names = {f.name for f in dataclasses.fields(Recipe)}
    if set(fields) != names:
        raise ValueError(
            "not a recipe of this version: "
            f"missing {sorted(names - set(fields))}, unknown {sorted(set(fields) - names)}"
        )
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
