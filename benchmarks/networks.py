"""The networks that race: DDPM's own in our code and in diffusers', with the same weights, and a third one's."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.networks.interop import save_diffusers
from ddpm_lib.networks.unet import UNet
from ddpm_lib.runs.decide import decided
from ddpm_lib.runs.recipes import recipe
from ddpm_lib.training.fast import PRECISIONS, Fast
from ddpm_lib.training.fastest import Way

try:
    from diffusers import UNet2DModel
except ImportError:  # it comes with the tests
    UNet2DModel = None
try:
    from denoising_diffusion_pytorch import Unet
except ImportError:  # nobody needs it but this comparison
    Unet = None

OURS, DIFFUSERS, GAUSSIAN = "ddpm_lib", "diffusers", "denoising-diffusion-pytorch"
INSTALLED = {OURS: True, DIFFUSERS: UNet2DModel is not None, GAUSSIAN: Unet is not None}
PACKAGES = ("diffusers", "denoising-diffusion-pytorch", "accelerate")
# "full" is DDPM's network for CIFAR-10: the defaults of UNet
CONFIGS = {"full": {}, "tiny": dict(size=8, width=16, multipliers=(1, 2), blocks=1, groups=8, attention=(4,))}
# The same levels, attention at the same sides, and about as many parameters
PEERS = {
    "full": dict(dim=144, dim_mults=(1, 2, 2, 2), full_attn=(False, True, False, False), flash_attn=True),
    "tiny": dict(dim=16, dim_mults=(1, 2), full_attn=(False, True), flash_attn=True),
}


@dataclass(frozen=True)
class Options:
    """What all contestants of a run share. It travels to other processes, so the device is a word."""

    size: str = "full"  # one of CONFIGS
    batch: int = 8
    precision: str = "float32"  # or bf16
    device: str = "cpu"
    steps: int = 50  # of sampling
    workers: int = 0  # processes that read images, in the loop of diffusers
    data: str = "data"  # where CIFAR-10 may lie

    def autocast(self) -> AbstractContextManager:
        """Within, this precision."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device, dtype, enabled=dtype is not None)


@dataclass(frozen=True)
class Contestant:
    """One line of a table. way: how our trainer computes a step by default on this device, where it shall do so."""

    who: str  # one of INSTALLED
    compiled: bool = False
    way: Way | None = None

    def __str__(self) -> str:
        return f"{self.who}{', compiled' * self.compiled}" + (f", own defaults: {self.way}" if self.way else "")

    @property
    def rival(self) -> "Contestant":
        """The one of diffusers that it is measured against: compiled against compiled, all else against eager."""
        return Contestant(DIFFUSERS, self.compiled)

    def execution(self, options: Options) -> Fast:
        """How its steps are computed: the way that was chosen, or the run's precision and nothing else."""
        way = self.way or Way(options.precision, channels_last=False, compile=self.compiled)
        settings = {"precision": way.precision, "channels_last": way.channels_last, "compile": way.compile}
        return Fast(torch.device(options.device), **settings)


def own_defaults(options: Options) -> Way:
    """What our trainer chooses on this device, by trying, where a recipe leaves everything open."""
    network = {"classes": 0, "batch": options.batch, **CONFIGS[options.size]}
    chosen = decided(replace(recipe("cifar10"), **network), torch.device(options.device))
    return Way(chosen.precision, chosen.channels_last == "yes", chosen.compile == "yes")


def our_network(options: Options) -> UNet:
    """Our network in training mode, in which no layer is zero: a new one would return 0, and draw nothing."""
    torch.manual_seed(0)
    network = UNet(**CONFIGS[options.size])
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network.to(options.device).train()


def their_network(options: Options) -> nn.Module:
    """UNet2DModel with the same configuration and weights, through a folder in their form."""
    network = our_network(options)
    with tempfile.TemporaryDirectory() as place:
        save_diffusers(network, linear_schedule(), Path(place) / "twin")
        theirs = UNet2DModel.from_pretrained(Path(place) / "twin", subfolder="unet", low_cpu_mem_usage=False)
    return theirs.to(options.device).train()


def network_of(who: str, options: Options) -> nn.Module:
    """The network of a library, new, on the device, in training mode."""
    if who == GAUSSIAN:
        torch.manual_seed(0)
        return Unet(**PEERS[options.size]).to(options.device).train()
    return our_network(options) if who == OURS else their_network(options)


def as_ours(who: str, network: Callable) -> Callable[[Tensor, Tensor], Tensor]:
    """A network, or what torch.compile made of it, called as ours is: network(x_t, t) with t in 1..T."""
    calls = {DIFFUSERS: lambda x_t, t: network(x_t, t - 1).sample, GAUSSIAN: lambda x_t, t: network(x_t, t - 1)}
    return calls.get(who, network)


def image_shape(options: Options) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    side = CONFIGS[options.size].get("size", 32)
    return 3, side, side
