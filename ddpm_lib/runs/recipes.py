"""Recipes: the whole configuration of a run, as functions that return a frozen dataclass."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.images import data
from ddpm_lib.networks.unet import UNet


def _datasets() -> ModuleType:
    from ddpm_lib.images import datasets  # torchvision takes as long to import as torch, and few commands need it

    return datasets


DATA: dict[str, Callable[["Recipe"], tuple]] = {
    "digits": lambda r: data.digits(),
    "mnist": lambda r: _datasets().mnist(r.root, r.size),
    "fashion": lambda r: _datasets().fashion(r.root, r.size),
    "cifar10": lambda r: _datasets().cifar10(r.root, r.size),
    "stl10": lambda r: _datasets().stl10(r.root, r.size),
    "celeba": lambda r: _datasets().celeba(r.root, r.size),
    "folder": lambda r: _datasets().folder(r.root, r.size, r.channels),
}
SCHEDULES: dict[str, Callable[[int], Schedule]] = {"linear": linear_schedule, "cosine": cosine_schedule}
NETWORK = (
    *("size", "channels", "width", "multipliers", "blocks", "groups", "attention", "head_channels"),
    *("scale_shift", "learned_resampling", "dropout", "classes", "gradient_checkpointing"),
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. `override` changes fields by name."""

    name: str
    # data: a key of DATA, the folder in which data sets lie, and what comes out; classes = 0 trains without labels
    data: str
    size: int
    channels: int
    classes: int
    root: str = "data"
    flip: bool = False
    # network: see UNet; the defaults are DDPM's for CIFAR-10
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    groups: int = 32
    attention: tuple[int, ...] = (16,)
    head_channels: int = 0
    scale_shift: bool = False
    learned_resampling: bool = True
    dropout: float = 0.1
    gradient_checkpointing: bool = False
    # diffusion: a key of SCHEDULES, and the number of steps
    schedule: str = "cosine"
    T: int = 1000
    # training: see Trainer
    steps: int = 100_000
    batch: int = 128
    learning_rate: float = 2e-4
    warmup: int = 1000
    final_rate: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decays: tuple[float, ...] = (0.9999,)
    label_dropout: float = 0.1
    seed: int = 0
    workers: int = 4
    memory_budget_gb: float = 0.0  # of 10^9 bytes, that the images may take; 0: a quarter of the memory that is free
    # the run folder: `keep` checkpoints and the best stay; sample_every = 0 draws samples at the end only
    log_every: int = 100
    save_every: int = 5000
    keep: int = 2
    sample_every: int = 0
    # sampling: DDIM steps, its fresh noise and the guidance scale, where the caller names none
    sample_steps: int = 50
    eta: float = 0.5
    scale: float = 2.0

    def __post_init__(self):
        for key, known in (("data", DATA), ("schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                hint = did_you_mean(getattr(self, key), known)
                raise ValueError(f"{key} must be one of {', '.join(known)}; got {getattr(self, key)!r}{hint}")
        for key in ("T", "steps", "batch", "log_every", "save_every", "keep", "sample_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("warmup", "seed", "workers", "sample_every", "classes", "memory_budget_gb"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must be at least 0, got {getattr(self, key)}")
        for key in ("label_dropout", "eta"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} must lie in [0, 1], got {getattr(self, key)}")
        for key in ("learning_rate", "final_rate", "clip_norm", "scale", "weight_decay", "memory_budget_gb"):
            if not math.isfinite(getattr(self, key)):
                raise ValueError(f"{key} must be finite, got {getattr(self, key)}")
        if self.save_every < self.log_every:
            raise ValueError(f"save_every must be at least log_every, {self.log_every}; got {self.save_every}")
        if self.sample_steps > self.T:
            raise ValueError(f"sample_steps must lie in 1..{self.T}, the schedule's T; got {self.sample_steps}")

    def memory_budget(self) -> int | None:
        """`memory_budget_gb` in bytes; None where it is 0, and `feed` takes a quarter of what is free."""
        return math.ceil(self.memory_budget_gb * 1e9) or None

    def network(self) -> UNet:
        """A new network, initialised from torch's global generator."""
        return UNet(**{name: getattr(self, name) for name in NETWORK})

    def diffusion(self) -> Schedule:
        """The noise schedule."""
        return SCHEDULES[self.schedule](self.T)


def digits() -> Recipe:
    """scikit-learn's 1,797 handwritten digits at 8x8: no download, under two minutes on two CPU cores."""
    network = {"width": 32, "multipliers": (1, 2), "blocks": 1, "groups": 8, "attention": (4,), "head_channels": 16}
    course = {"steps": 640, "learning_rate": 4e-3, "warmup": 20, "final_rate": 0.0, "ema_decays": (0.99,)}
    log = {"log_every": 20, "save_every": 200}
    return Recipe("digits", data="digits", size=8, channels=1, classes=10, dropout=0.0, **network, **course, **log)


def mnist() -> Recipe:
    """MNIST's 60,000 handwritten digits at 28x28, in ten classes."""
    network = {"width": 64, "multipliers": (1, 2, 2), "groups": 16, "attention": (14,), "head_channels": 64}
    return Recipe("mnist", data="mnist", size=28, channels=1, classes=10, steps=30_000, **network)


def fashion() -> Recipe:
    """Fashion-MNIST's 60,000 garments at 28x28, in ten classes: the network of `mnist`."""
    return dataclasses.replace(mnist(), name="fashion", data="fashion")


def fashion_small() -> Recipe:
    """Fashion-MNIST with a network whose weights, stored in fp16, take less than 8 MB."""
    return dataclasses.replace(fashion(), name="fashion_small", width=48, head_channels=48)


def cifar10() -> Recipe:
    """CIFAR-10 with DDPM's network (35.75 M), in ten classes; classes=0 schedule=linear is DDPM as it was published."""
    course = {"steps": 800_000, "warmup": 5000, "ema_decays": (0.9999, 0.999), "sample_every": 20_000}
    return Recipe("cifar10", data="cifar10", size=32, channels=3, classes=10, flip=True, **course)


def cifar10_small() -> Recipe:
    """CIFAR-10 with a network whose weights, stored in fp16, take less than 8 MB."""
    network = {"width": 48, "multipliers": (1, 2, 2), "groups": 16, "head_channels": 48}
    return dataclasses.replace(cifar10(), name="cifar10_small", steps=200_000, **network)


def stl10() -> Recipe:
    """STL-10's 105,000 photographs (most without a label, so all without) at 64x64."""
    network = {"multipliers": (1, 2, 2, 2), "attention": (16,), "scale_shift": True, "head_channels": 64}
    return Recipe("stl10", data="stl10", size=64, channels=3, classes=0, flip=True, steps=300_000, **network)


def celeba64() -> Recipe:
    """CelebA's 162,770 faces of the training split at 64x64, without labels: the network of `stl10`."""
    return dataclasses.replace(stl10(), name="celeba64", data="celeba")


def folder() -> Recipe:
    """Images of your own: root=PATH; subfolders are classes, used with classes=THEIR NUMBER and ignored without it."""
    return dataclasses.replace(stl10(), name="folder", data="folder", root="images", steps=100_000)


FUNCTIONS = (digits, mnist, fashion, fashion_small, cifar10, cifar10_small, stl10, celeba64, folder)
RECIPES: dict[str, Callable[[], Recipe]] = {function.__name__: function for function in FUNCTIONS}


def recipe(name: str) -> Recipe:
    """The recipe of this name. Raises ValueError, listing the names there are, for any other."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]()


def override(base: Recipe, assignments: Sequence[str]) -> Recipe:
    """`base` with fields replaced, each given as "field=value"; a tuple as "1,2,2", a truth value as true or false.

    Raises ValueError for an unknown field (listing all), or a value that is not of the field's type.
    """
    fields = {f.name: f for f in dataclasses.fields(base)}
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected field=value, got {assignment!r}")
        if name not in fields:
            hint = did_you_mean(name, fields, SHORT)
            raise ValueError(f"unknown field {name!r}{hint}; a recipe has: {', '.join(fields)}")
        read, expected = READERS[fields[name].type]
        try:
            changes[name] = read(text)
        except (ValueError, KeyError) as error:
            raise ValueError(f"field {name} expects {expected}, got {text!r}") from error
    return dataclasses.replace(base, **changes)


READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
    tuple[int, ...]: (lambda text: tuple(int(part) for part in text.split(",") if part), "whole numbers and commas"),
    tuple[float, ...]: (lambda text: tuple(float(part) for part in text.split(",") if part), "numbers and commas"),
}


def assignments(chosen: Recipe, base: Recipe) -> list[str]:
    """What `override` needs to make `chosen` of `base`: "field=value" for every field in which they differ."""
    names = [field.name for field in dataclasses.fields(chosen)]
    return [f"{n}={_text(getattr(chosen, n))}" for n in names if getattr(chosen, n) != getattr(base, n)]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_text(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


SHORT = {  # what other programs call a field
    **{"lr": "learning_rate", "wd": "weight_decay", "bs": "batch", "batch_size": "batch", "epochs": "steps"},
    **{"iters": "steps", "iterations": "steps", "timesteps": "T", "ema": "ema_decays", "image_size": "size"},
    **{"resolution": "size", "clip": "clip_norm", "cfg": "scale", "guidance": "scale", "dataset": "data"},
}


def did_you_mean(word: str, known: Iterable[str], short: dict[str, str] | None = None) -> str:
    """The end of a message, "did you mean …?", for a word that looks like a known one or is short for one; else ""."""
    lower = {name.lower(): name for name in known}
    word = word.strip("-").replace("-", "_").lower()
    likely = [(short or {}).get(word)] + [lower[name] for name in difflib.get_close_matches(word, lower, 1)]
    found = next(filter(None, likely), None)
    return f" (did you mean {found}?)" if found else ""
