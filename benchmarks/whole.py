"""(b) The whole trainer, from the stored images to the averaged weights, beside the loop of diffusers' example script.

Their loop is that of examples/unconditional_image_generation/train_unconditional.py, with its own default settings and
parts: images are decoded and transformed one by one in a DataLoader, noised by DDPMScheduler in the precision of the
flag, and the loss is read after every step for the log. Where `accelerate` is installed it runs the loop, as there;
else autocast does what its flag would.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.networks import DIFFUSERS, OURS, Contestant, Options, image_shape, network_of
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.datasets import cifar10
from ddpm_lib.training.fast import PRECISIONS
from ddpm_lib.training.fastest import Way
from ddpm_lib.training.trainer import Trainer

try:
    from accelerate import Accelerator
except ImportError:
    Accelerator = None

TITLE = "whole trainer: images from memory to averaged weights"
STORED = ("cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz")
RANDOM = 2048  # images, where CIFAR-10 is not there


def contestants(compiles: bool, way: Way) -> list[Contestant]:
    """All that take part where every package is installed."""
    return [Contestant(OURS), Contestant(OURS, way=way), Contestant(DIFFUSERS)]


def images(options: Options) -> int:
    """Images a call."""
    return options.batch


def stored_images(options: Options) -> tuple[Tensor, str]:
    """Bytes (N, 3, H, W), and what they are."""
    there = any((Path(options.data) / name).exists() for name in STORED)  # nothing is downloaded
    if options.size == "full" and there:
        return cifar10(options.data)[0].images, "CIFAR-10"
    generator = torch.Generator().manual_seed(0)
    shape = (RANDOM, *image_shape(options))
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8), "random images"


def build(contestant: Contestant, options: Options) -> Callable[[], object]:
    """A function that takes one step of training."""
    if contestant.who == DIFFUSERS:
        steps = _their_loop(options)
        return lambda: next(steps)
    data = LabelledImages(stored_images(options)[0])
    settings = {"batch": options.batch, "learning_rate": 1e-4, "flip": True}
    execution = contestant.execution(options)
    return Trainer(network_of(OURS, options), linear_schedule(), data, execution=execution, **settings).step


class _Pictures(Dataset):
    """The images one by one, as pictures, through the transforms of their script."""

    def __init__(self, images: Tensor):
        self.images, side = images.permute(0, 2, 3, 1).numpy(), images.shape[-1]
        self.transform = transforms.Compose(
            [
                transforms.Resize(side, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.RandomCrop(side),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input": self.transform(Image.fromarray(self.images[index]))}


def _their_loop(options: Options) -> Iterator[float]:
    """Yields the loss after every step."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    model, scheduler, dtype = network_of(DIFFUSERS, options), DDPMScheduler(1000), PRECISIONS[options.precision]
    averaged = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    averaged.to(options.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    data = _Pictures(stored_images(options)[0])
    loader = DataLoader(data, options.batch, shuffle=True, num_workers=options.workers)
    rate = get_scheduler("cosine", optimizer=optimiser, num_warmup_steps=500, num_training_steps=100 * len(loader))
    backward, clip = torch.Tensor.backward, torch.nn.utils.clip_grad_norm_
    if Accelerator is not None:
        mixed = {"float32": "no"}.get(options.precision, options.precision)
        accelerator = Accelerator(mixed_precision=mixed, cpu=options.device == "cpu")
        model, optimiser, loader, rate = accelerator.prepare(model, optimiser, loader, rate)
        backward, clip = accelerator.backward, accelerator.clip_grad_norm_
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        clean = batch["input"].to(options.device, dtype or torch.float32)
        noise = torch.randn(clean.shape, dtype=clean.dtype, device=clean.device)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = scheduler.add_noise(clean, noise, t)
        with options.autocast():
            predicted = model(noisy, t).sample
        loss = F.mse_loss(predicted.float(), noise.float())
        backward(loss)
        clip(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
        averaged.step(model.parameters())
        yield loss.detach().item()
