"""(a) The network step: forward, L_simple, backward, and a fused step of AdamW, on one batch that stays the same."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import DIFFUSERS, GAUSSIAN, OURS, Contestant, Options, as_ours, image_shape, network_of
from ddpm_lib.diffusion.loss import l_simple
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.training.fastest import Way

TITLE = "network step: forward, L_simple, backward, AdamW"


def contestants(compiles: bool, way: Way) -> list[Contestant]:
    """All that take part where every package is installed."""
    eager = [Contestant(OURS), Contestant(OURS, way=way), Contestant(DIFFUSERS), Contestant(GAUSSIAN)]
    return eager + [Contestant(who, compiled=True) for who in (OURS, DIFFUSERS, GAUSSIAN)[: 3 * compiles]]


def images(options: Options) -> int:
    """Images a call."""
    return options.batch


def build(contestant: Contestant, options: Options) -> Callable[[], None]:
    """A function that takes one step."""
    network, execution = network_of(contestant.who, options), contestant.execution(options)
    model = as_ours(contestant.who, execution.prepare(network))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    schedule, generator = linear_schedule(), torch.Generator().manual_seed(1)
    x_0, eps = (torch.randn(options.batch, *image_shape(options), generator=generator) for _ in range(2))
    x_0, eps = (execution.arrange(x.to(options.device)) for x in (x_0, eps))
    t = torch.randint(1, schedule.T + 1, (options.batch,), generator=generator)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        execution.backward(lambda part: l_simple(model, schedule, x_0[part], eps[part], t[part]), None, options.batch)
        optimiser.step()

    return step


def operations(who: str, options: Options) -> int:
    """Floating-point operations that one image costs: of the matrix products and convolutions, forward and backward."""
    network, shape = network_of(who, options), (2, *image_shape(options))
    x_t, t = torch.randn(shape, device=options.device), torch.ones(2, dtype=torch.long, device=options.device)
    # fused attention is not counted on every device; the plain one is two products, which are
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        as_ours(who, network)(x_t, t).square().mean().backward()
    return counter.get_total_flops() // 2
