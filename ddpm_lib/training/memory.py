"""How much memory a training step takes, and into how many parts a batch must be cut to fit into what is free."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm_lib.training.checkpoint import amount
from ddpm_lib.training.execution import Execution

USABLE = 0.6  # of what is free: the images may take a quarter, and kernels need room to work in


class Memory(NamedTuple):
    """Bytes of a training step: `fixed`, however many images it computes with at once, and `image` for each of them."""

    fixed: int
    image: int

    def of(self, images: int) -> int:
        """Of a step that computes with so many images at once."""
        return self.fixed + images * self.image


def step_memory(parameters: int, images: int, per_image: float, averages: int = 1) -> float:
    """Eq. 13.3 (memory of a step). Bytes of a step in float32 with AdamW: 4·P·(4 + averages) + images·per_image.

    parameters: P, each with its gradient, two moments and its averages. images: those that are computed with at once.
    per_image: the bytes that the forward pass keeps of one image until the backward pass is through.
    """
    return 4 * parameters * (4 + averages) + images * per_image


def memory_of_step(
    network: nn.Module, images: Tensor, labels: Tensor | None, execution: Execution, averages: int = 1
) -> Memory:
    """What a step of this network takes, found by forward and backward passes of one image and of two.

    images: (2, C, H, W), on the network's device; labels: (2,) or None. execution: how the passes are computed, a new
    one, whose parts and compiler are not looked at. The network is left with gradients. What a library of kernels
    takes for itself is not seen.
    """
    called, t = execution.prepare(network), torch.ones(2, dtype=torch.int64, device=images.device)

    def passes(count: int) -> None:
        x = execution.arrange(images[:count])

        def losses(part: slice) -> Tensor:
            y = labels if labels is None else labels[:count]
            return (x - called(x, t[:count], y)).square().flatten(1).mean(1)

        execution.backward(losses, None, count)

    passes(1)  # makes the gradients, which are counted below
    one, two = (peak_bytes(lambda count=count: passes(count)) for count in (1, 2))
    fixed = step_memory(sum(p.numel() for p in network.parameters()), 0, 0, averages)
    return Memory(int(fixed) + max(0, 2 * one - two), two - one)


def parts_that_fit(memory: Memory, batch: int, free: int) -> int:
    """The smallest number of parts of a batch, of at most ⌈batch/parts⌉ images, with which a step fits.

    free: bytes, of which USABLE may be used. Raises ValueError, with the numbers, where one image does not fit.
    """
    room = int(USABLE * free)
    if (most := (room - memory.fixed) // max(1, memory.image)) < 1:
        raise ValueError(
            f"a step does not fit, even image by image: weights, gradients, moments and averages take "
            f"{amount(memory.fixed)}, one image {amount(memory.image)}, and of {amount(free)} that are free "
            f"{amount(room)} may be used. Take a smaller network, fewer averages, or gradient_checkpointing=true"
        )
    return -(-batch // min(batch, most))


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes that tensors made by `work` take at once, on whichever device; what was there before is free."""
    with _Allocations() as seen:
        work()
    return seen.peak


class _Allocations(TorchDispatchMode):
    """Sees what every operation returns, those of the backward pass too, and notes when its memory is given back."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.there = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and _key(x) not in before and _key(x) not in self.there:
                self._note(x.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            del self.there[key]
            self.now -= size

        self.there[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata
