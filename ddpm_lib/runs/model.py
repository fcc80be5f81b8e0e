"""A trained model: what one samples from, loads and hands on."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lib import __version__, plot
from ddpm_lib.devices import default_device
from ddpm_lib.diffusion.forward import noise_like
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.networks.unet import UNet
from ddpm_lib.runs.recipes import Recipe
from ddpm_lib.runs.shipped import located
from ddpm_lib.runs.stored import from_json, to_json
from ddpm_lib.samplers.ancestral import OnStep, generators, image_seeds, progress_bar
from ddpm_lib.samplers.ddim import ddim_sample
from ddpm_lib.samplers.guidance import guided, refuse_training
from ddpm_lib.training.checkpoint import (
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from ddpm_lib.training.fast import PRECISIONS
from ddpm_lib.training.trainer import ema_name

CHECKPOINTS = "checkpoints"  # the folder within a run's
OTHERS = (".pt", ".pth", ".ckpt", ".bin")  # what the names of pickled weights end in


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
        negative: int | None = None,
        interval: tuple[int, int] | None = None,
        rescale: float = 0.0,
        steps: int | None = None,
        eta: float | None = None,
        seed: int = 0,
        batch: int | None = None,
        precision: str = "float32",
        progress: bool = False,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """One image for each label, by DDIM with guidance: (N, C, H, W) in [−1, 1], on the network's device.

        labels: classes, or a number of images to draw without labels (all that an unconditional network can).
        scale, steps, eta: the recipe's where None. scale may be one per label; eta: 0 deterministic to 1 ancestral.
        negative: a class to lead away from, in the place of no label; interval, rescale: of guidance, as in `guided`.
        seed: the same seed gives the same images on one machine. Image i draws all its noise from a generator of its
        own, whose seed is `image_seeds(seed, N)[i]`: with that seed it can be drawn again, alone.
        batch: how many images go through the network at once; None: as many as in a step of training, which needs more
        memory than sampling them. The images are the same whatever the batch, but for rounding.
        precision: of the network's products, as in training: float32, or bf16 or fp16, which are faster where the
        processor has them, and other images by a little. All else, the sampler's steps included, is in float32.
        on_step: as `ddim_sample` calls it, with the images of one batch, all its steps, then those of the next batch.
        Raises ValueError for a label outside the classes, and for an unknown precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        r, device = self.recipe, next(self.network.parameters()).device
        count, batch = labels if isinstance(labels, int) else len(labels), r.batch if batch is None else batch
        if count < 1 or batch < 1:
            raise ValueError(f"expected at least one label or image and a batch of at least 1, got {count} and {batch}")
        steps, eta = r.sample_steps if steps is None else steps, r.eta if eta is None else eta
        parts = [slice(start, start + batch) for start in range(0, count, batch)]
        guidance = {"negative": negative, "interval": interval, "rescale": rescale}
        refuse_training(self.network)
        lower = torch.autocast(device.type, PRECISIONS[precision], enabled=PRECISIONS[precision] is not None)
        models = self._eps_models(
            _in(lower, self.network), labels, r.scale if scale is None else scale, parts, guidance
        )
        seeds, images = image_seeds(seed, count), []
        with progress_bar(range(len(parts) * steps), progress) as bar:

            def told(t: int, x_t: Tensor, x_0_hat: Tensor) -> None:
                bar.update()
                if on_step is not None:
                    on_step(t, x_t, x_0_hat)

            for part, eps_model in zip(parts, models, strict=True):
                each = generators(seeds[part])
                x_T = noise_like(torch.empty(len(each), r.channels, r.size, r.size, device=device), each)
                options = {"steps": steps, "eta": eta, "generator": each, "on_step": told}
                images.append(ddim_sample(eps_model, self.schedule, x_T, **options))
        return torch.cat(images)

    def _eps_models(
        self,
        network: Callable[..., Tensor],
        labels: Sequence[int] | Tensor | int,
        scale: float | Tensor,
        parts: list[slice],
        guidance: dict,
    ) -> list:
        """The noise estimate for each part of the labels, as a function of (x_t, t)."""
        if isinstance(labels, int):
            if guidance != {"negative": None, "interval": None, "rescale": 0.0}:
                raise ValueError(f"without labels there is nothing to guide by: got {guidance}")
            return [network for _ in parts]
        labels, null = torch.as_tensor(labels), self.network.null
        if not self.recipe.classes:
            raise ValueError("this network knows no classes: ask for a number of images, not for labels")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"expected whole numbers as labels, got {labels.dtype}")
        one_each = isinstance(scale, Tensor) and scale.ndim > 0

        def model(y: Tensor, s: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
            away = None if guidance["negative"] is None else torch.full_like(y, guidance["negative"])
            return guided(network, y, s, null, **guidance | {"negative": away})

        model(labels.long(), scale)  # what is wrong with any label is said before the first batch
        return [model(labels[p].long(), scale[p] if one_each else scale) for p in parts]


def _in(context: torch.autocast, network: UNet) -> Callable[..., Tensor]:
    """The network, computed within a context, and its answer in x_t's own dtype: guidance multiplies its rounding."""

    def within(x_t: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        with context:
            return network(x_t, t, *labels).to(x_t.dtype)

    return within


def load(
    path: str | Path, *, weights: str = "ema", which: str = "last", device: torch.device | None = None
) -> TrainedModel:
    """The model of a run folder, of one of its checkpoints, or of a file that `export` wrote; nothing else is needed.

    weights: "ema" (what one samples from: the recipe's first average), another average ("ema.0.999", say) or "model"
    (the raw weights). which: of a folder, the "last" checkpoint or the "best" (by held-out loss).
    path: also the name alone of a model that the book ships, "fashion" say, see `runs.shipped`.
    Raises FileNotFoundError, or ValueError for a file that is truncated, not ours, of another architecture, or without
    these weights.
    """
    path = located(path)
    path = _checkpoint_of(path, which) if path.is_dir() else path
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
    Raises FileExistsError if there is such a file, ValueError for a name that promises another form (.pt, say).
    """
    out = Path(out)
    if out.suffix.lower() in OTHERS:
        better = out.with_suffix(".safetensors")
        raise ValueError(f"what is written is a safetensors file, no {out.suffix}: name it {better}, say; got {out}")
    if out.exists():
        raise FileExistsError(f"{out} exists and is not overwritten: name another file, or remove it")
    model = load(source, weights=weights, which=which, device=torch.device("cpu"))
    recipe = model.recipe
    if weights != "model":
        decay = recipe.ema_decays[0] if weights == "ema" else float(weights.removeprefix("ema."))
        recipe = dataclasses.replace(recipe, ema_decays=(decay,))
    prefix = "model." if weights == "model" else ema_name(recipe.ema_decays[0])
    tensors = {f"{prefix}{name}": tensor.half() for name, tensor in model.network.state_dict().items()}
    about = {"recipe": to_json(recipe), "names": model.names, "version": __version__}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, tensors, about)
    return out


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
