"""(c) Sampling: the same weights, the same noise, the same steps of DDIM; so the images are the same, too."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.networks import DIFFUSERS, OURS, Contestant, Options, image_shape, network_of
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.samplers.ddim import ddim_sample
from ddpm_lib.training.fastest import Way

TITLE = "sampling: DDIM"


def contestants(compiles: bool, way: Way) -> list[Contestant]:
    """All that take part where every package is installed."""
    return [Contestant(OURS), Contestant(DIFFUSERS)]


def images(options: Options) -> int:
    """Images a call."""
    return options.batch


def build(contestant: Contestant, options: Options) -> Callable[[], Tensor]:
    """A function that draws one batch, always the same, (B, C, H, W) in [−1, 1] on the CPU."""
    if 1000 % options.steps:
        raise ValueError(f"steps must divide 1000, for then both libraries have the same grid; got {options.steps}")
    network = network_of(contestant.who, options).eval()
    return (_theirs if contestant.who == DIFFUSERS else _ours)(network, options)


def _ours(network: Callable, options: Options) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x_T = torch.randn(options.batch, *image_shape(options), generator=generator).to(options.device)
        with options.autocast():
            return ddim_sample(network, linear_schedule(), x_T, steps=options.steps).cpu()

    return draw


def _theirs(network: torch.nn.Module, options: Options) -> Callable[[], Tensor]:
    from diffusers import DDIMPipeline, DDIMScheduler

    # "trailing" begins at the last time, as ours does; the clipped noise is computed anew, as ours is
    pipeline = DDIMPipeline(network, DDIMScheduler(1000, timestep_spacing="trailing", clip_sample=True))
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": options.steps, "output_type": "np", "use_clipped_model_output": True}

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        with options.autocast():
            drawn = pipeline(batch_size=options.batch, eta=0.0, generator=generator, **settings).images
        return 2 * torch.from_numpy(drawn).permute(0, 3, 1, 2) - 1

    return draw
