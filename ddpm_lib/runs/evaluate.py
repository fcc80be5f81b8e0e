"""What a trained model is worth: every number with its features, its counts, its settings and its interval."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_lib import plot
from ddpm_lib.evaluation.bits import measured_bits
from ddpm_lib.evaluation.coverage import density_and_coverage, precision_and_recall
from ddpm_lib.evaluation.features import Features
from ddpm_lib.evaluation.frechet import Moments
from ddpm_lib.evaluation.intervals import Measured, measured, measured_share
from ddpm_lib.evaluation.kernel import kernel_distance
from ddpm_lib.evaluation.memorised import copying_score, share_below
from ddpm_lib.evaluation.metrics import gaussian_per_class
from ddpm_lib.evaluation.neighbours import nearest
from ddpm_lib.images.data import LabelledImages, to_signed
from ddpm_lib.runs.examiner import Examiner
from ddpm_lib.runs.model import TrainedModel
from ddpm_lib.training.classify import accuracy

QUANTILE = 0.05  # of held-out images, for the share of samples that are near to a training image
LEVELS = {"digits": 17}  # grey levels of a data set, where they are not 256
GROUPS = 20  # of the jackknife
WIDE = 4096  # numbers in an image, of which a covariance takes 128 MiB
Row = dict[str, Any]  # "what" and its settings, and "numbers": name → Measured, as dictionaries


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images that samples are compared with, and what compares them.

    train, held_out: images in [−1, 1] or bytes; examiner: None where there are no labels; features: of what the
    distances are. `count` samples are compared with all held-out images in the two distances, and with `count` of them
    wherever neighbours are counted.
    """

    train: LabelledImages
    held_out: LabelledImages
    features: Features
    examiner: Examiner | None
    count: int

    def __post_init__(self):
        most = min(len(self.held_out), len(self.train))
        if not GROUPS <= self.count <= most:
            raise ValueError(f"expected a count in {GROUPS}..{most}, the held-out images; got {self.count}")
        seen = {"train": _features(self.features, self.train.images)}
        seen["held_out"] = _features(self.features, self.held_out.images)
        object.__setattr__(self, "seen", seen)

    @property
    def about(self) -> Row:
        """What of it decides a row's numbers."""
        return {"count": self.count, "features": self.features.name}

    def numbers(self, images: Tensor, labels: Tensor | None, fixed: bool = False) -> dict[str, Measured]:
        """All metrics of images, (count, C, H, W) in [−1, 1], that were drawn for these labels, (count,).

        fixed: how many of each label there are was no matter of chance, which the intervals then leave out.
        """
        images = images.clamp(-1, 1)
        fake, real = self.features(images), self.seen["held_out"]
        some, moments = real[_spread(len(real), self.count)], Moments.of(real)
        about = {"features": self.features.name, "fake": len(fake)}
        groups, strata = GROUPS, None
        if fixed and labels is not None:
            groups = next((g for g in range(GROUPS, 9, -1) if not (labels.unique(return_counts=True)[1] % g).any()), 0)
            groups, strata = (groups, labels) if groups else (GROUPS, None)
        found = {}
        if self.examiner is not None and labels is not None:
            right = round(accuracy(self.examiner.classifier, images, labels) * len(images))
            found["accuracy"] = measured_share(
                "accuracy", right, len(images), features=self.examiner.name, fake=len(images)
            )
        metrics: dict[str, tuple[Callable[[Tensor], float], int]] = {
            self.features.frechet: (lambda f: moments.distance(Moments.of(f)), len(real)),
            self.features.kernel: (lambda f: kernel_distance(some, f), len(some)),
            "precision": (lambda f: precision_and_recall(some, f)[0], len(some)),
            "recall": (lambda f: precision_and_recall(some, f)[1], len(some)),
            "density": (lambda f: density_and_coverage(some, f)[0], len(some)),
            "coverage": (lambda f: density_and_coverage(some, f)[1], len(some)),
        }
        for name, (metric, against) in metrics.items():
            found[name] = measured(name, metric, fake, groups, strata, **about, real=against)
        train = self.seen["train"]
        about |= {"real": len(some)}
        near, (_, nearer) = share_below(fake, some, train, QUANTILE), copying_score(fake, some, train)
        found["near to training"] = measured_share("near to training", round(near * len(fake)), len(fake), **about)
        reach = 1.96 * ((len(fake) + len(some) + 1) / (12 * len(fake) * len(some))) ** 0.5
        how = "95 % were nothing copied, Mann and Whitney"
        name = "nearer than held-out"
        found[name] = Measured(name, nearer, nearer - reach, nearer + reach, how=how, **about)
        return found

    def rows(self, without: Sequence[str] = ()) -> Iterator[Row]:
        """Two rows to compare with: as many training images, and as many draws from a Gaussian for each class.

        With labels there are as many of each class as there are of samples. without: rows that nobody needs.
        """
        labels, count = self.train.labels, self.count
        if labels is None:
            chosen, classes = _spread(len(self.train), count), torch.zeros(len(self.train), dtype=torch.int64)
        else:
            chosen, classes = _balanced(labels, count), labels
        wanted = classes[chosen]
        asked = None if labels is None else wanted
        images = _signed(self.train.images[chosen])
        if "training images" not in without:
            yield row("training images", self.numbers(images, asked, fixed=True), **self.about)
        if "Gaussian per class" not in without:
            generator, fitted = torch.Generator().manual_seed(0), _some_of_each(classes, images[0].numel())
            drawn = gaussian_per_class(_signed(self.train.images[fitted]), classes[fitted], wanted, generator)
            yield row("Gaussian per class", self.numbers(drawn, asked, fixed=True), **self.about)


def row(what: str, numbers: dict[str, Measured], **settings: Any) -> Row:
    """A row of an evaluation, as it is stored."""
    return {"what": what, **settings, "numbers": {name: dataclasses.asdict(n) for name, n in numbers.items()}}


def evaluate_scale(model: TrainedModel, reference: Reference, settings: Row, progress: bool = False) -> tuple[Row, Any]:
    """The row of one guidance scale, and a figure: samples, and below each the training image nearest to it.

    settings: as `settings_of` gives them; scale None samples without labels.
    """
    count, options = reference.count, {name: settings[name] for name in ("steps", "eta", "seed", "precision")}
    labels = None if settings["scale"] is None else torch.arange(count) % model.recipe.classes
    wanted = count if labels is None else labels
    drawn = model.sample(wanted, scale=settings["scale"], progress=progress, **options).cpu()
    numbers = reference.numbers(drawn, labels, fixed=True)
    columns = model.recipe.classes or 10
    shown = drawn[: 2 * columns]
    index = nearest(reference.features(shown.clamp(-1, 1)), reference.seen["train"])[1].cpu()
    near = _signed(reference.train.images[index])
    pairs = [part for i in range(0, len(shown), columns) for part in (shown[i : i + columns], near[i : i + columns])]
    names = {"column_labels": model.names} if model.recipe.classes else {}
    sides = ["sample", "nearest"] * (len(pairs) // 2)
    picture = plot.grid(torch.cat(pairs), columns, row_labels=sides, title=in_words(settings), **names)
    return row("samples", numbers, **settings, **reference.about), picture


def bits_row(model: TrainedModel, reference: Reference, count: int) -> Row:
    """Bits per dimension of so many held-out images, by the bound, with their labels where the model knows classes."""
    chosen, device = _spread(len(reference.held_out), count), next(model.network.parameters()).device
    labels = reference.held_out.labels[chosen].to(device) if model.recipe.classes else None
    images, generator = _signed(reference.held_out.images[chosen]).to(device), torch.Generator().manual_seed(0)
    options = {"labels": labels, "batch": model.recipe.batch, "levels": LEVELS.get(model.recipe.data, 256)}
    numbers = measured_bits(model.network, model.schedule, images, generator, **options)
    return row("bits", numbers, count=count, weights_are=fingerprint(model))


def settings_of(
    model: TrainedModel,
    scale: float | None,
    *,
    steps: int | None = None,
    eta: float | None = None,
    seed: int = 0,
    precision: str = "float32",
    weights: str = "ema",
) -> Row:
    """All that decides a row of samples, for its record: steps and eta are the recipe's where None."""
    chosen = {"steps": model.recipe.sample_steps if steps is None else steps}
    chosen["eta"] = model.recipe.eta if eta is None else eta
    rest = {"seed": seed, "precision": precision, "weights": weights}
    return {"scale": scale, "sampler": "DDIM", **chosen, **rest, "weights_are": fingerprint(model)}


def in_words(settings: Row) -> str:
    """The settings of a row of samples in a line."""
    scale = "no labels" if settings["scale"] is None else f"guidance scale {settings['scale']:g}"
    return (
        f"{scale}: {settings['sampler']}, {settings['steps']} steps, eta {settings['eta']:g}, "
        f"seed {settings['seed']}, {settings['precision']}, weights: {settings['weights']}"
    )


def fingerprint(model: TrainedModel) -> str:
    """Twelve digits that other weights do not share."""
    digest = hashlib.sha256()
    for tensor in model.network.state_dict().values():
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def find(rows: Sequence[Row], what: str, settings: Row) -> Row | None:
    """The stored row that these settings would give again, if there is one."""
    alike = (one for one in rows if one["what"] == what and all(one.get(key) == settings[key] for key in settings))
    return next(alike, None)


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal: a line that says what was done with what, then a line a number, with its interval."""
    lines = []
    for one in rows:
        what = in_words(one) if one["what"] == "samples" else one["what"]
        lines.append(f"{what}, {one['count']:,} images" + (f", {one['features']}" if "features" in one else ""))
        for number in one["numbers"].values():
            lines.append(f"  {Measured(**number | {'features': '', 'fake': 0, 'real': 0})}")
    return "\n".join(lines)


def _signed(images: Tensor) -> Tensor:
    return to_signed(images, check=False) if images.dtype == torch.uint8 else images


def _features(features: Features, images: Tensor, at_once: int = 1000) -> Tensor:
    return torch.cat([features(_signed(part)) for part in images.split(at_once)])


def _some_of_each(labels: Tensor, dims: int) -> Tensor:
    """All indices; of images with more than WIDE numbers, whose covariance no memory holds, at most WIDE a class."""
    order = torch.arange(len(labels))
    return order if dims <= WIDE else torch.cat([order[labels == c][:WIDE] for c in labels.unique()])


def _balanced(labels: Tensor, count: int) -> Tensor:
    """`count` indices, of one class after the other in turn, at random within each.

    Raises ValueError where a class has too few.
    """
    order, classes = _spread(len(labels), len(labels)), labels.unique()
    of_each = [order[labels[order] == c] for c in classes]
    need = -(-count // len(classes))
    if min(map(len, of_each)) < need:
        raise ValueError(f"expected {need} training images of each class, there are {min(map(len, of_each))} of one")
    return torch.stack([of_class[:need] for of_class in of_each], 1).flatten()[:count]


def _spread(n: int, count: int) -> Tensor:
    """`count` of the indices 0..n−1, in a random order that is always the same."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(n))[:count]
