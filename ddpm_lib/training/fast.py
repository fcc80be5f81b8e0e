"""Steps that are computed fast: lower precision, a batch in parts, another memory format, compiled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ddpm_lib.training.execution import Execution, Losses, weighted
from ddpm_lib.training.scaler import LossScaler

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def microbatches(count: int, parts: int) -> Iterator[slice]:
    """0..count−1 in at most `parts` pieces of ⌈count/parts⌉, the last of which may be shorter.

    Raises ValueError for count or parts below 1.
    """
    if count < 1 or parts < 1:
        raise ValueError(f"expected count >= 1 and parts >= 1, got {count} and {parts}")
    size = -(-count // parts)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class Fast(Execution):
    """Eq. 12.6 (accumulated gradient). Σ over parts of ∇(Σ_{i in part} w_i·ℓ_i/B): a step whose batch comes in parts.

    And which is computed in lower precision (autocast), in the memory format channels-last, or compiled.
    precision: "float32"; "bf16"; or "fp16", with a `LossScaler`. Weights, their gradients, averages and losses stay in
    float32: only the network's matrix products and convolutions are computed in the lower precision.
    accumulate: the parts that a batch is cut into, one after the other: less memory, the same gradient up to rounding
    (dropout and the compiler see smaller batches). channels_last: the channels of a pixel lie side by side.
    compile: by torch.compile, which needs a C++ compiler; the first step then takes long.
    Raises ValueError for an unknown precision or accumulate < 1.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        precision: str = "float32",
        accumulate: int = 1,
        channels_last: bool = False,
        compile: bool = False,
    ):
        if precision not in PRECISIONS or accumulate < 1:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"expected one of {known} and accumulate >= 1; got {precision!r} and {accumulate}")
        self.device, self.dtype, self.accumulate = device, PRECISIONS[precision], accumulate
        self.channels_last, self.compile = channels_last, compile
        self.scaler = LossScaler(device) if precision == "fp16" else None

    def prepare(self, model: nn.Module) -> Callable[..., Tensor]:
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # the parameters stay the same objects
        return torch.compile(model) if self.compile else model

    def arrange(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def backward(self, losses: Losses, factor: Tensor | None, count: int) -> Tensor:
        """Each part's losses count 1/`count`: the sum over all parts is the mean, however long the last part is."""
        scale, seen = 1.0 if self.scaler is None else self.scaler.scale, []
        for part in microbatches(count, self.accumulate):
            with self.synchronised(part.stop == count):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    loss = losses(part)
                seen.append(loss.detach())
                total = weighted(loss, factor if factor is None else factor[part]).sum()
                (total * scale / count).backward()
        return torch.cat(seen)

    def synchronised(self, last: bool) -> AbstractContextManager:
        """What a part's passes run in; last: whether it is the batch's last part. For several processes."""
        return nullcontext()

    def update(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> tuple[Tensor, Tensor | None]:
        if self.scaler is None:
            return super().update(optimiser, parameters, clip_norm)
        self.scaler.unscale([p.grad for p in parameters if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm)  # not finite if any gradient is not
        skip = self.scaler.update(norm.isfinite())
        optimiser.found_inf = skip.float()  # a fused optimiser leaves everything as it is where this is 1
        optimiser.step()
        return norm, skip

    def state(self) -> dict[str, Tensor]:
        if self.scaler is None:
            return {}
        return {f"scaler.{name}": tensor for name, tensor in self.scaler.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if self.scaler is not None:
            self.scaler.load_state({name.removeprefix("scaler."): tensor for name, tensor in state.items()})
