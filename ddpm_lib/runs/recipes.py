"""Recipes: the whole configuration of a run, as functions that return a frozen dataclass."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.networks.unet import UNet
from ddpm_lib.runs.choices import CHOICES, DATA, SCHEDULES, TIMESTEPS
from ddpm_lib.runs.words import SHORT, did_you_mean, nearest
from ddpm_lib.training.fast import PRECISIONS
from ddpm_lib.training.rates import COURSES

NETWORK = (
    *("size", "channels", "width", "multipliers", "blocks", "groups", "attention", "head_channels"),
    *("scale_shift", "learned_resampling", "dropout", "classes", "gradient_checkpointing"),
)


def option(about: str, *default: Any) -> Any:
    """A field of `Recipe`: what it is, which the command line's help and `describe` show, and its default, if any."""
    return field(metadata={"about": about}, **({"default": default[0]} if default else {}))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. `override` changes fields by name; the defaults are DDPM's for CIFAR-10."""

    name: str = option("of the recipe, and of the folder of its runs")
    data: str = option(f"one of {', '.join(DATA)}")
    size: int = option("height and width of the images, in pixels")
    channels: int = option("of the images: 1 is grey, 3 is RGB")
    classes: int = option("number of classes; 0 trains without labels")
    root: str = option("where the data sets lie; of `folder`: where the images lie", "data")
    flip: bool = option("mirror each image left to right with probability 1/2", False)
    width: int = option("channels of the first level; an even number", 128)
    multipliers: tuple[int, ...] = option("each level's channels over width; levels halve the image", (1, 2, 2, 2))
    blocks: int = option("residual blocks a level", 2)
    groups: int = option("of every group norm; they must divide the channels", 32)
    attention: tuple[int, ...] = option("sides of the image at which attention stands", (16,))
    head_channels: int = option("channels of an attention head; 0: one head of all", 0)
    scale_shift: bool = option("time scales and shifts a block's channels; false: is added", False)
    learned_resampling: bool = option("down and up by convolutions; false: averaging and repeating", True)
    dropout: float = option("in the residual blocks, a probability", 0.1)
    gradient_checkpointing: bool = option("less memory for a second forward pass", False)
    schedule: str = option(f"of the noise, one of {', '.join(SCHEDULES)}", "cosine")
    T: int = option("number of noise levels", 1000)
    steps: int = option("of the optimiser, in all", 100_000)
    batch: int = option("images a step", 128)
    learning_rate: float = option("of AdamW, after the warm-up", 2e-4)
    warmup: int = option("steps in which the learning rate rises from 0", 1000)
    final_rate: float = option("the last step's learning rate, over learning_rate; 1: constant", 1.0)
    course: str = option(f"of the rate after the warm-up: {', '.join(COURSES)}", "linear")
    weight_decay: float = option("of AdamW, on matrices and kernels alone", 0.0)
    clip_norm: float = option("longer gradients are cut to this length", 1.0)
    ema_decays: tuple[float, ...] = option("of the weights' averages, the first of which is sampled", (0.9999,))
    label_dropout: float = option("the probability of hiding a label, for guidance", 0.1)
    timestep_sampler: str = option(f"how t is drawn, one of {', '.join(TIMESTEPS)}", "uniform")
    precision: str = option(f"of the network: {', '.join(PRECISIONS)}; auto: the fastest right one", "auto")
    channels_last: str = option("memory format of the images: yes, no; auto: the faster one", "auto")
    compile: str = option("by torch.compile: yes, no; auto: on a GPU, where it is faster", "auto")
    accumulate: int = option("parts of a batch, one after the other; 0: so few as memory allows", 1)
    seed: int = option("of the weights, the batches and the noise", 0)
    workers: int = option("processes that read image files", 4)
    memory_budget_gb: float = option("10^9 bytes, for the images; 0: a quarter of what is free", 0.0)
    log_every: int = option("steps between two entries of the log", 100)
    save_every: int = option("steps between two checkpoints", 5000)
    keep: int = option("so many last checkpoints stay, and the best", 2)
    sample_every: int = option("steps between two pictures of samples; 0: one at the end", 0)
    sample_steps: int = option("DDIM steps", 50)
    eta: float = option("fresh noise: 0 none, 1 as ancestral sampling", 0.5)
    scale: float = option("guidance: 0 unconditional, 1 conditional, above 1 guided", 2.0)

    def __post_init__(self):
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                hint = did_you_mean(str(getattr(self, key)), known)
                raise ValueError(f"{key} must be one of {', '.join(known)}; got {getattr(self, key)!r}{hint}")
        for key in ("T", "steps", "batch", "log_every", "save_every", "keep", "sample_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("warmup", "seed", "workers", "sample_every", "classes", "memory_budget_gb", "accumulate"):
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
    course = {"steps": 640, "batch": 96, "learning_rate": 4e-3, "warmup": 20, "final_rate": 0.0, "ema_decays": (0.99,)}
    log = {"log_every": 20, "save_every": 200}
    plain = {"dropout": 0.0, "precision": "float32", "channels_last": "no", "compile": "no"}  # the same everywhere
    return Recipe("digits", data="digits", size=8, channels=1, classes=10, **plain, **network, **course, **log)


def mnist() -> Recipe:
    """MNIST's 60,000 handwritten digits at 28x28, in ten classes."""
    network = {"width": 64, "multipliers": (1, 2, 2), "groups": 16, "attention": (14,), "head_channels": 64}
    return Recipe("mnist", data="mnist", size=28, channels=1, classes=10, steps=30_000, **network)


def fashion() -> Recipe:
    """Fashion-MNIST's 60,000 garments at 28x28, in ten classes: the network of `mnist`."""
    return replace(mnist(), name="fashion", data="fashion")


def fashion_small() -> Recipe:
    """Fashion-MNIST with a network whose weights, stored in fp16, take less than 8 MB."""
    return replace(fashion(), name="fashion_small", width=48, head_channels=48)


def fashion_cpu() -> Recipe:
    """Fashion-MNIST with a network of 1.1 M weights, for two hours of one CPU core; the book ships its weights."""
    network = {"width": 32, "multipliers": (1, 2, 2), "blocks": 1, "groups": 8, "attention": (7,), "head_channels": 32}
    course = {"steps": 18_500, "batch": 64, "learning_rate": 1e-3, "warmup": 200, "final_rate": 0.0}
    rest = {"dropout": 0.05, "ema_decays": (0.998,), "log_every": 50, "save_every": 500}
    return replace(fashion(), name="fashion_cpu", **network, **course, **rest)


def cifar10() -> Recipe:
    """CIFAR-10 with DDPM's network (35.75 M), in ten classes; classes=0 schedule=linear is DDPM as it was published."""
    course = {"steps": 800_000, "warmup": 5000, "ema_decays": (0.9999, 0.999), "sample_every": 20_000}
    return Recipe("cifar10", data="cifar10", size=32, channels=3, classes=10, flip=True, **course)


def cifar10_small() -> Recipe:
    """CIFAR-10 with a network whose weights, stored in fp16, take less than 8 MB."""
    network = {"width": 48, "multipliers": (1, 2, 2), "groups": 16, "head_channels": 48}
    return replace(cifar10(), name="cifar10_small", steps=200_000, **network)


def stl10() -> Recipe:
    """STL-10's 105,000 photographs (most without a label, so all without) at 64x64."""
    network = {"multipliers": (1, 2, 2, 2), "attention": (16,), "scale_shift": True, "head_channels": 64}
    return Recipe("stl10", data="stl10", size=64, channels=3, classes=0, flip=True, steps=300_000, **network)


def stl10_96() -> Recipe:
    """STL-10 at its own size, 96x96: a fourth level that is wider, and attention at 24x24 and 12x12."""
    network = {"size": 96, "multipliers": (1, 2, 3, 4), "attention": (24, 12)}
    return replace(stl10(), name="stl10_96", batch=64, learning_rate=1e-4, **network)


def celeba64() -> Recipe:
    """CelebA's 162,770 faces of the training split at 64x64, without labels: the network of `stl10`."""
    return replace(stl10(), name="celeba64", data="celeba")


def celeba128() -> Recipe:
    """CelebA at 128x128: five levels; where memory is short, accumulate=0 or gradient_checkpointing=true."""
    network = {"size": 128, "multipliers": (1, 1, 2, 3, 4), "attention": (32, 16, 8)}
    return replace(celeba64(), name="celeba128", batch=64, learning_rate=1e-4, **network)


def folder() -> Recipe:
    """Images of your own: root=PATH; subfolders are classes, used with classes=THEIR NUMBER and ignored without it."""
    return replace(stl10(), name="folder", data="folder", root="images", steps=100_000)


FUNCTIONS = (digits, mnist, fashion, fashion_small, fashion_cpu, cifar10, cifar10_small)
FUNCTIONS += (stl10, stl10_96, celeba64, celeba128, folder)
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
    known = {f.name: f for f in fields(base)}
    changes: dict[str, Any] = {}
    for i, assignment in enumerate(assignments):
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected field=value, got {assignment!r}{meant(assignments[i:])}")
        if name not in known:
            raise ValueError(f"unknown field {name!r}{meant([assignment])}; a recipe has: {', '.join(known)}")
        read, expected = READERS[known[name].type]
        try:
            changes[name] = read(text)
        except (ValueError, KeyError) as error:
            raise ValueError(f"field {name} expects {expected}, got {text!r}") from error
    return replace(base, **changes)


def meant(words: Sequence[str]) -> str:
    """The end of a message, " (did you mean steps=10?)", for words that begin with --steps 10 or step=10; else ""."""
    name, equals, text = words[0].partition("=")
    types = {f.name: f.type for f in fields(Recipe)}
    if (likely := nearest(name, types, SHORT)) is None:
        return ""
    if not equals:
        follows = next((word for word in words[1:2] if "=" not in word and not word.startswith("--")), None)
        text = follows or ("true" if types[likely] is bool else "VALUE")
    return f" (did you mean {likely}={text}?)"


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
    names = [field.name for field in fields(chosen)]
    return [f"{n}={text_of(getattr(chosen, n))}" for n in names if getattr(chosen, n) != getattr(base, n)]


def text_of(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(text_of(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
