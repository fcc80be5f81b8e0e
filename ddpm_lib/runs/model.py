"""A trained model: what one samples from, loads and hands on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lib import __version__, plot
from ddpm_lib.samplers.ancestral import OnStep
from ddpm_lib.training.checkpoint import best_checkpoint, list_checkpoints, load_checkpoint, load_weights, save_checkpoint
from ddpm_lib.samplers.ddim import ddim_sample
from ddpm_lib.samplers.guidance import guided
from ddpm_lib.devices import default_device
from ddpm_lib.runs.recipes import Recipe
from ddpm_lib.runs.stored import from_json, to_json
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.training.trainer import ema_name
from ddpm_lib.networks.unet import UNet

CHECKPOINTS = "checkpoints"  # the folder within a run's


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network, its schedule, the recipe they came from and the names of its classes: all that sampling needs."""

    network: UNet
    schedule: Schedule
    recipe: Recipe
    names: tuple[str, ...] = ()

    def sample(
        self,
        labels: Sequence[int] | Tensor | int,
        *,
        scale: float | Tensor | None = None,
        steps: int | None = None,
        eta: float | None = None,
        seed: int = 0,
        progress: bool = False,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """One image for each label, by DDIM with guidance: (B, C, H, W) in [−1, 1], on the network's device.

        labels: classes, or a number of images to draw without labels (all that an unconditional network can).
        scale, steps, eta: the recipe's where None. scale may be one per label; eta: 0 deterministic to 1 ancestral.
        The same seed gives the same images on one machine. Raises ValueError for a label outside the classes.
        """
        r, device = self.recipe, next(self.network.parameters()).device
        count = labels if isinstance(labels, int) else len(labels)
        if count < 1:
            raise ValueError("expected at least one label or image, got none")
        generator = torch.Generator().manual_seed(seed)
        x_T = torch.randn(count, r.channels, r.size, r.size, generator=generator).to(device)
        eps_model = self.network
        if not isinstance(labels, int):
            labels = torch.as_tensor(labels)
            if not r.classes:
                raise ValueError("this network knows no classes: ask for a number of images, not for labels")
            if labels.is_floating_point() or labels.dtype == torch.bool:
                raise TypeError(f"expected whole numbers as labels, got {labels.dtype}")
            eps_model = guided(self.network, labels.long(), r.scale if scale is None else scale, self.network.null)
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


def load(
    path: str | Path, *, weights: str = "ema", which: str = "last", device: torch.device | None = None
) -> TrainedModel:
    """The model of a run folder, of one of its checkpoints, or of a file that `export` wrote; nothing else is needed.

    weights: "ema" (what one samples from: the recipe's first average), another average ("ema.0.999", say) or "model"
    (the raw weights). which: of a folder, the "last" checkpoint or the "best" (by held-out loss).
    Raises FileNotFoundError, or ValueError for a file that is truncated, not ours, of another architecture, or without
    these weights.
    """
    path = _checkpoint_of(Path(path), which) if Path(path).is_dir() else Path(path)
    _, about = load_checkpoint(path, ())
    try:
        recipe = from_json(about.get("recipe", {}))
        with torch.random.fork_rng(devices=[]):  # first weights that nobody will see: no draws of a run in progress
            network = recipe.network()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} (written by ddpm_lib {about.get('version')}): {error}") from error
    kinds = {"model": "model.", "ema": ema_name(recipe.ema_decays[0])}
    kinds |= {ema_name(decay)[:-1]: ema_name(decay) for decay in recipe.ema_decays}
    if weights not in kinds:
        raise ValueError(f"weights must be one of {', '.join(kinds)}; got {weights!r}")
    tensors, _ = load_checkpoint(path, (kinds[weights],))
    if not tensors:
        there = ", ".join(kind for kind, prefix in kinds.items() if load_checkpoint(path, (prefix,))[0])
        raise ValueError(f"{path} does not hold the weights {weights!r}; it holds: {there or 'none that one can load'}")
    load_weights(network, tensors, kinds[weights], path)
    network = network.to(device or default_device()).eval()
    return TrainedModel(network, recipe.diffusion(), recipe, tuple(about.get("names", ())))


def export(source: str | Path, out: str | Path, *, weights: str = "ema", which: str = "last") -> Path:
    """Write one set of a run's weights in fp16, with all that `load` needs, to a new file; returns its path.

    weights and which choose as in `load`; the recipe in the new file names this average alone.
    Raises FileExistsError if there is such a file.
    """
    if Path(out).exists():
        raise FileExistsError(f"{out} exists and is not overwritten: name another file, or remove it")
    model = load(source, weights=weights, which=which, device=torch.device("cpu"))
    recipe = model.recipe
    if weights != "model":
        decay = recipe.ema_decays[0] if weights == "ema" else float(weights.removeprefix("ema."))
        recipe = dataclasses.replace(recipe, ema_decays=(decay,))
    prefix = "model." if weights == "model" else ema_name(recipe.ema_decays[0])
    tensors = {f"{prefix}{name}": tensor.half() for name, tensor in model.network.state_dict().items()}
    about = {"recipe": to_json(recipe), "names": model.names, "version": __version__}
    save_checkpoint(out, tensors, about)
    return Path(out)


def sample_grid(model: TrainedModel, *, rows: int = 6, seed: int = 0, progress: bool = False) -> Figure:
    """A figure of `rows` guided samples of every class at the recipe's scale; without classes, ten samples a row."""
    classes = model.recipe.classes
    if not classes:
        return plot.grid(model.sample(10 * rows, seed=seed, progress=progress).cpu(), 10)
    images = model.sample(list(range(classes)) * rows, seed=seed, progress=progress).cpu()
    names = model.names or [str(label) for label in range(classes)]
    return plot.grid(images, classes, column_labels=names, title=f"guidance scale {model.recipe.scale:g}")


def _checkpoint_of(folder: Path, which: str) -> Path:
    if which not in ("last", "best"):
        raise ValueError(f'which must be "last" or "best", got {which!r}')
    inside = folder / CHECKPOINTS
    found = best_checkpoint(inside) if which == "best" else (list_checkpoints(inside) or [None])[-1]
    if found is None:
        raise FileNotFoundError(f"expected a checkpoint in {inside}; there is none")
    return found
