"""One test for a layer: what it is made of, how it starts, that every number in it learns, and what it drops."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddpm_lib.checks import largest
from ddpm_lib.checks.guard import fault, slope_gap
from ddpm_lib.checks.record import note


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """make(), drawn from torch's generator after `seed`, which afterwards stands where it stood."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def shaken(layer: nn.Module, seed: int, size: float = 0.6) -> nn.Module:
    """The layer in float64, with random numbers in every parameter: what starts at zero could hide a slip."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def unlike(layer: nn.Module, shapes: dict[str, tuple[int, ...]]) -> float:
    """How many numbers the layer has in the wrong place: 0 if its parameters are those of `shapes`, by name.

    Each must be one of its own, float32 and to be learned; there are no buffers, which a batch norm has.
    """
    expected = {name: (shape, torch.float32, True) for name, shape in shapes.items()}
    tensors = [*layer.named_parameters(), *layer.named_buffers()]  # one that is used twice stands there once
    got = {name: (tuple(x.shape), x.dtype, x.requires_grad) for name, x in tensors}
    different = {name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name)}
    count = float(sum(math.prod(table[name][0]) for table in (got, expected) for name in different & table.keys()))
    for name in sorted(different):
        came, asked = (str(table[name][0]) if name in table else "nothing" for table in (got, expected))
        note(
            count,
            f"Of its parameters, {name} is {came}, where {asked} is expected.",
            "Each float32 and to be learned: look at names, sizes and bias of the layers inside.",
        )
    return count


def start(make: Callable[[], nn.Module], zero: str) -> float:
    """How many numbers of a new layer are wrong: norms start at 1 and 0, the part named `zero` at 0, others at random.

    At random: no two weights equal, other ones in each layer made, the weights of each output of a size near
    1/√(number of inputs), within a factor 3, as all usual rules make them; biases no larger than twice that.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors, others = ({name: p.detach().double() for name, p in make().named_parameters()} for _ in range(2))
    count = 0.0
    for name, tensor in tensors.items():
        part, kind = name.rsplit(".", 1)
        before = count
        if part == zero or part.startswith("norm"):
            count += float((tensor != float(part != zero and kind == "weight")).sum())
            _starts_wrong(name, count - before)
            continue
        scale = tensors[f"{part}.weight"][0].numel() ** -0.5  # of the inputs of one output
        if kind == "bias":
            count += float((tensor.abs() > 2 * scale).sum())
            _starts_wrong(name, count - before)
            continue
        size = (tensor / scale).flatten(1).square().mean(1).sqrt()
        count += float(((size < 1 / 3) | (size > 3)).sum())
        repeated = tensor.numel() - tensor.unique().numel()
        count += repeated if repeated > 0.1 * tensor.numel() else 0
        count += float((tensor == others[name]).all()) * tensor.numel()
        _starts_wrong(name, count - before)
    return count


def _starts_wrong(name: str, count: float) -> None:
    note(
        count,
        f"In a new layer, {count:.0f} numbers of {name} are not as they should start.",
        "Norms start at 1 and 0, the last layer of a branch at 0, all others as PyTorch makes them.",
    )


def unmoved(layer: nn.Module, inputs: Sequence[Tensor], still: dict[str, Tensor] | None = None) -> float:
    """How many of a new layer's numbers have no gradient in any of four steps of training towards a random target.

    still: masks, by name, of those that need none.
    """
    parameters = dict(layer.named_parameters())
    asleep = {name: ~(still or {}).get(name, torch.zeros(p.shape, dtype=torch.bool)) for name, p in parameters.items()}
    with torch.random.fork_rng(devices=[]):  # for the dropout
        torch.manual_seed(0)
        target = torch.randn_like(layer(*inputs))
        for _ in range(4):
            loss = (layer(*inputs) - target).square().mean()
            layer.zero_grad()
            if loss.requires_grad:
                loss.backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    push = parameter.grad * (parameter.grad.abs() > 1e-9)
                    asleep[name] &= push == 0
                    parameter.data -= 0.03 * push.sign()
    for name, mask in asleep.items():
        note(
            float(mask.sum()),
            f"{int(mask.sum())} numbers of {name} get no gradient in training.",
            "Is this part used in forward, with no detach after it?",
        )
    return float(sum(mask.sum() for mask in asleep.values()))


def slope(layer: nn.Module, inputs: Sequence[Tensor]) -> float:
    """How far autograd's derivative is from a difference, in one random direction of all inputs and all parameters.

    A path on which no gradient flows is missed.
    """
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(*values):
        there = dict(zip(names, values[len(inputs) :], strict=True))
        return functional_call(layer, there, values[: len(inputs)])

    gap = slope_gap(function, *inputs, *(parameter.detach() for parameter in parameters))
    return gap if gap > 1e-6 else 0.0  # less is what differences cannot tell


COINS = "Use nn.Dropout(p): each number is dropped by itself, in training alone, and the rest divided by 1 − p."


def coin_score(draw: Callable[[], np.ndarray], p: float) -> float:
    """How far draws are from independent coins, of which a share p is dropped: the largest |z|.

    draw() returns True where something was dropped, (n, D), from torch's global generator. Tried are: each entry by
    itself, in pairs, in threes and all together; entries at every distance along the batch; and that the generator,
    and nothing else, decides the draw.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        coins, second = draw(), draw()
        torch.manual_seed(0)
        again = draw()
    n, D = coins.shape
    z, other = ((x - p) / (p * (1 - p)) ** 0.5 for x in (coins, second))
    if not np.array_equal(coins, again) or (z == z[0, 0]).all():
        note(
            math.inf,
            "What it drops in training is not decided by torch's generator, or nothing or all is dropped.",
            COINS,
        )
        return fault(True)
    pairs = np.einsum("ni,nj->ij", z, z)[np.triu_indices(D, 1)]
    i, j, k = np.ogrid[:D, :D, :D]
    threes = np.einsum("ni,nj,nk->ijk", z, z, z, optimize=True)[(i < j) & (j < k)]
    lags = np.fft.irfft(np.abs(np.fft.rfft(z.ravel(), 2 * z.size)) ** 2)[1 : z.size]
    sums = np.concatenate([z.sum(0), pairs, threes, [(z * other).sum() / D**0.5]]) / n**0.5
    square = (z.sum(1) ** 2 / D - 1).mean() * (n / 2) ** 0.5  # of the sum of an image's entries, nearly normal
    score = largest(np.abs(sums).max(), abs(square), np.abs(lags).max() / z.size**0.5 - 3)  # the largest of n·D lags
    note(score if score > 5 else 0.0, "What it drops in training is not decided by independent coins.", COINS)
    return score
