"""What computes a step fastest on this device, found by trying, in seconds."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm_lib.devices import to_device
from ddpm_lib.training.fast import Fast

ROUNDS, SECONDS = 3, 10.0  # so often is each way timed, in turns, so that a busy moment meets all; unless it takes long
GAIN = 1.05  # by how much faster a way must be than a simpler one
AGREE = 0.99  # the least cosine between its gradient and that of float32


class Way(NamedTuple):
    """A way to compute a step, and what was found: seconds a step, and how well its gradient agrees with float32's."""

    precision: str
    channels_last: bool
    compile: bool
    seconds: float = float("nan")
    cosine: float = float("nan")
    error: str = ""  # why it could not be tried

    def __str__(self) -> str:
        return self.precision + ", channels-last" * self.channels_last + ", compiled" * self.compile


def candidates(
    device: torch.device, precision: str = "auto", channels_last: bool | None = None, compile: bool | None = None
) -> list[Way]:
    """The ways that are worth trying on this device, simplest first; what is given ("auto" and None are not) is kept.

    fp16 is tried only where a GPU has no bf16 of its own, and compiling only on a GPU (CUDA).
    """
    precisions = [precision]
    if precision == "auto":
        lower = {"cpu": ["bf16"], "cuda": ["bf16"]}.get(device.type, [])
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            lower = ["fp16"]
        precisions = ["float32", *lower]
    formats = [False, True] if channels_last is None else [channels_last]
    compiled = [compile] if compile is not None else [False, True] if device.type == "cuda" else [False]
    return [Way(p, f, c) for c in compiled for f in formats for p in precisions]


def tried(
    network: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    ways: Sequence[Way],
    clock: Callable[[], float] = time.perf_counter,
) -> list[Way]:
    """The ways with their seconds and cosines: the least of a few forward and backward passes, in turns.

    network: is copied, and called as network(x_t, t, labels). images: (B, C, H, W), on its device. What a new network
    holds at zero gets small random values in the copies, or nearly all gradients would be 0. A way that raises an
    error is told so, with infinite seconds.
    """
    model, device = _filled(network), images.device
    t = to_device(torch.arange(len(images)) * 13 % 999 + 1, device)
    goal = to_device(torch.randn(images.shape, generator=torch.Generator().manual_seed(1)), device)  # as noise is
    passes, gradients, errors, times = {}, {}, {}, {way: [] for way in ways}
    plain = Way("float32", False, False)
    for way in dict.fromkeys([plain, *ways]):
        try:
            passes[way] = _prepared(way, model, images, labels, t, goal)
            gradients[way] = _gradient(passes[way]())  # a first pass compiles, or fills caches
        except Exception as error:  # no compiler, no such kernel, too little memory: the other ways remain
            errors[way] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            passes.pop(way, None)
    for turn in range(ROUNDS):
        if turn and sum(map(sum, times.values())) > SECONDS:
            break
        for way in (way for way in ways if way in passes):
            began = clock()
            passes[way]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[way].append(clock() - began)
    found = []
    for way in ways:
        if way in errors:
            found.append(way._replace(seconds=float("inf"), error=errors[way]))
            continue
        cosine = float(gradients[way] @ gradients[plain])
        found.append(way._replace(seconds=min(times[way]), cosine=cosine))
    return found


def fastest(found: Sequence[Way]) -> Way:
    """The fastest way that is right; a simpler one (earlier in the list) where the gain is too small to matter.

    Where none is right (a network whose gradients are not finite, say), the simplest that works: the run will tell.
    Raises RuntimeError where none works.
    """
    working = [way for way in found if not way.error]
    if not working:
        raise RuntimeError("; ".join(f"{way}: {way.error}" for way in found))
    right = [way for way in working if way.cosine >= AGREE] or working[:1]
    best = right[0]
    for way in right[1:]:
        if best.seconds > GAIN * way.seconds:
            best = way
    return best


def _filled(network: nn.Module) -> nn.Module:
    model = copy.deepcopy(network).train()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            noise = 0.02 * torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # its draws would differ from way to way
    return model


def _prepared(
    way: Way, network: nn.Module, images: Tensor, labels: Tensor | None, t: Tensor, goal: Tensor
) -> Callable[[], nn.Module]:
    """One forward and backward pass of a copy of the network, which it returns."""
    model = copy.deepcopy(network)
    execution = Fast(images.device, precision=way.precision, channels_last=way.channels_last, compile=way.compile)
    if execution.scaler is not None:
        execution.scaler.scale /= 64  # where few pixels have large gradients, the first steps would be skipped
    called, x, wanted = execution.prepare(model), execution.arrange(images), execution.arrange(goal)

    def losses(part: slice) -> Tensor:
        return (wanted - called(x, t, labels)).square().flatten(1).mean(1)

    def one() -> nn.Module:
        model.zero_grad(set_to_none=True)
        execution.backward(losses, None, len(x))
        return model

    return one


def _gradient(model: nn.Module) -> Tensor:
    """All of it, of length 1, float64, on the CPU."""
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().cpu()
    return flat / flat.norm()
