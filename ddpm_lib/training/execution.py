"""How one step's gradient comes about: here all at once, in the network's own dtype, in one process."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ddpm_lib.devices import to_device

Losses = Callable[[slice], Tensor]  # of the images part.start..part.stop − 1 of this process's share, one an image


class Execution:
    """What a trainer asks of the way in which its steps are computed. This one does nothing special.

    Others compute in lower precision, a part of the batch after the other, or with several processes; the model that
    they train is the same up to rounding. Make one for one trainer: it may hold a state.
    """

    processes = 1  # that train together

    def prepare(self, model: nn.Module) -> Callable[..., Tensor]:
        """What is called in place of the model, and shares its parameters. Called once, before anything is copied."""
        return model

    def share(self, batch: int) -> slice:
        """The images of a joint batch that this process computes with: all of them."""
        return slice(0, batch)

    def begin_step(self, seed: int, step: int) -> None:
        """Called before each step, with the number of the steps done."""

    def arrange(self, images: Tensor) -> Tensor:
        """The images, (B, C, H, W), in the memory format that the network computes in."""
        return images

    def backward(self, losses: Losses, factor: Tensor | None, count: int) -> Tensor:
        """Add to every parameter's gradient that of the mean over `count` images of factor·loss; the losses, (count,).

        factor: (count,), on the CPU, or None where all are 1.
        """
        loss = losses(slice(0, count))
        weighted(loss, factor).mean().backward()
        return loss.detach()

    def update(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> tuple[Tensor, Tensor | None]:
        """Clip the gradients to this norm and let the optimiser step.

        Returns the norm before, and whether the step was skipped, (), or None where none ever is: nobody has waited.
        """
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimiser.step()
        return norm, None

    def gather(self, losses: Tensor) -> Tensor:
        """The losses of all processes' shares, in the order of the joint batch."""
        return losses

    def agree(self, stop: bool) -> bool:
        """Whether any process wants to stop; called by all of them at the same steps."""
        return stop

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state()` was taken."""


def weighted(losses: Tensor, factor: Tensor | None) -> Tensor:
    """The losses, each times its factor, if there are any."""
    return losses if factor is None else losses * to_device(factor, losses.device)
