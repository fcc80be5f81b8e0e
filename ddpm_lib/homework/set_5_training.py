"""Problem set 5, second part: an average of the weights, and a training loop on digits."""

import copy

import numpy as np
import torch
from scipy import integrate
from torch import nn

from ddpm_lib.checks import apart, largest
from ddpm_lib.checks.guard import apart_each, fault
from ddpm_lib.checks.layers import made, shaken
from ddpm_lib.checks.record import note
from ddpm_lib.homework import numbers
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.problem import Problem
from ddpm_lib.images.data import digits
from ddpm_lib.networks.unet import UNet
from ddpm_lib.training.ema import EMA

AVERAGE = Problem("5.4", "An average with a power", "f(model, gamma): with .model, .steps and .update(model)")


def _network(case: Case, name: str) -> nn.Module:
    seed = numbers.seed(name, f"{case.seed}")
    network = shaken(made(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))), seed)
    network[1].running_mean.copy_(case.normal(3, name=name))
    network[1].num_batches_tracked.fill_(seed % 1000)
    return network


def _followed(average, networks):
    for network in networks:
        average.update(network)
    return average


def _apart(a, b) -> float:
    return apart_each([*a.parameters(), *a.buffers()], [*b.parameters(), *b.buffers()])


def _told(distance: float, text: str, advice: str) -> float:
    note(distance, text, advice)
    return distance


@AVERAGE.identity("the shares are those of (γ + 1)·u^γ", 2, route="integrals of the density, step by step")
def _(f, case):
    for gamma, K in ((float(case.uniform(0.2, 17)), min(case.T, 30)), (0.0, 120), (2.0, 1)):
        networks = [_network(case, f"{k}") for k in range(K)]
        average = _followed(f(_network(case, "start"), gamma), networks)
        ends = np.arange(K + 1) / K
        shares = [integrate.quad(lambda u, g=gamma: (g + 1) * u**g, *ends[k : k + 2])[0] for k in range(K)]
        weights = zip(*(network.parameters() for network in networks), strict=True)
        mean = [sum(s * p for s, p in zip(shares, each, strict=True)) for each in weights]
        yield apart_each(average.model.parameters(), mean)


@AVERAGE.identity("after one update nothing is left of the first weights", 1, route="two starts")
def _(f, case):
    network = _network(case, "1")
    for start in ("a", "b"):
        average = f(_network(case, start), float(case.uniform(0, 17)))
        yield apart_each(average.model.parameters(), _network(case, start).parameters())
        average.update(network)
        yield apart_each(average.model.parameters(), network.parameters())


@AVERAGE.identity("it is a network of its own: buffers copied, evaluating, without gradients", 1)
def _(f, case):
    networks = [_network(case, f"{k}") for k in range(4)]
    average = f(networks[0], 3.0)
    for network in networks:
        before = copy.deepcopy(network)
        average.update(network)
        yield _told(_apart(network, before), "It writes into the network that it is told.", "Write into the copy only.")
        kept = copy.deepcopy(average.model)
        network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})
        yield _told(_apart(average.model, kept), "It moves as soon as the network does.", "Copy; share no tensor.")
    gap = apart_each(average.model.buffers(), before.buffers())
    yield _told(gap, "Its buffers are not those of the last network.", "Copy them, also whole numbers.")
    taught = average.model.training or any(p.requires_grad for p in average.model.parameters())
    yield _told(fault(taught), "The average is in training mode, or has gradients.", "eval(), requires_grad_(False).")
    left = networks[0].training and networks[0][0].weight.requires_grad
    yield _told(fault(not left), "The network that it follows is changed.", "Copy it first.")


@AVERAGE.identity("weights, buffers and .steps are all that the next update needs", 1, route="a second object")
def _(f, case):
    networks = [_network(case, f"{k}") for k in range(7)]
    first, second = f(networks[0], 5.0), f(_network(case, "other"), 5.0)
    _followed(first, networks[:4])
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.steps = first.steps
    yield apart(first.steps, 4)
    yield _apart(_followed(first, networks[4:]).model, _followed(second, networks[4:]).model)


LOOP = Problem("5.5", "The loop", "f(network, average, optimiser, schedule, images, generator): the losses")


class Spy(nn.Module):
    """A network of two tensors, size·(a·tanh(x_t) + b·cos(t)), that keeps what it is called with."""

    def __init__(self, size: float):
        super().__init__()
        self.size, self.calls = size, []
        self.a, self.b = (nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in ([0.3], [0.1, -0.2]))

    def forward(self, x_t, t):
        self.calls.append((x_t.detach().clone(), t.clone()))
        return self.answer(x_t, t, self.a, self.b)

    def answer(self, x_t, t, a, b):
        wave = torch.stack([t.double().cos(), t.double().sin()], -1) @ b
        return self.size * (a * x_t.tanh() + wave[:, None, None, None])

    def update(self, network):
        """As an average: keeps the weights."""
        self.calls.append(torch.cat([network.a, network.b]).detach().clone())


def _ran(f, case: Case, size: float, images, steps=1, batch=5, micro=5, rate=1.0):
    """The network after the run, its losses, and every step's x_t, t."""
    spy, average = Spy(size), Spy(size)
    for p in spy.parameters():
        p.grad = torch.full_like(p, 7.0)  # of what was before
    optimiser = torch.optim.SGD(spy.parameters(), rate)
    options = {"steps": steps, "batch": batch, "micro": micro}
    losses = f(spy, average, optimiser, case.schedule, images, case.generator("run"), **options)
    parts = [len(x_t) for x_t, _ in spy.calls]
    if sum(parts) != steps * batch or max(parts) > micro:
        note(np.inf, f"The network was called with {parts} images.", f"{steps}·{batch}, at most {micro} at once.")
        raise ValueError("other calls of the network than were asked for")
    x_t, t = (torch.cat(part).unflatten(0, (steps, batch)) for part in zip(*spy.calls, strict=True))
    return spy, average, losses, x_t, t


def _noise(case: Case, x_t, t, x_0):
    """The noise that is in x_t."""
    kept = case.schedule.alpha_bar[t].reshape(*t.shape, 1, 1, 1)
    return (x_t - kept.sqrt() * x_0) / (1 - kept).sqrt()


def _by_hand(f, case: Case, size: float, rate: float, steps: int, micro: int):
    """Apart: the losses, and the weights, from those that follow from the noise found in x_t."""
    x_0 = case.normal(1, *case.shape, name="image").tanh()
    spy, _, losses, x_t, t = _ran(f, case, size, x_0, steps, 5, micro, rate)
    a, b = Spy(size).parameters()
    wanted = []
    for x, s in zip(x_t, t, strict=True):
        loss = (_noise(case, x, s, x_0) - spy.answer(x, s, a, b)).square().mean()
        wanted.append(float(loss.detach()))
        g, h = torch.autograd.grad(loss, (a, b))
        long = max(1.0, float(torch.cat([g, h]).norm()))
        a, b = ((p - rate * q / long).detach().requires_grad_() for p, q in ((a, g), (b, h)))
    return apart(torch.tensor(losses, dtype=torch.float64), wanted), apart_each(spy.parameters(), (a, b))


@LOOP.identity("it returns each step's loss: of the whole batch, before the step", 1, route="the noise found in x_t")
def _(f, case):
    for micro in (5, 2):
        gap = _by_hand(f, case, 0.1, 0.5, 3, micro)[0]
        yield _told(gap, f"Micro = {micro} of 5 images: the losses are not those of the batches.", "All parts count.")


@LOOP.identity("each step follows the whole batch's gradient, in parts of any size", 2, route="autograd, all at once")
def _(f, case):
    draws = []
    for micro in (5, 2, 1, 9):
        gap = _by_hand(f, case, 0.1, 0.5, 3, micro)[1]
        text = f"With micro = {micro} of 5 images, the steps follow another gradient."
        yield _told(gap, text, "What is in .grad when a step begins? What share of the mean has each part?")
        draws.append(_ran(f, case, 0.1, case.normal(name="images"), 2, 5, micro)[3])
        text = f"With micro = {micro}, other images, t or noise are drawn than with 5."
        yield _told(apart(draws[-1], draws[0]), text, "Draw for the whole batch, then cut it.")


@LOOP.identity("a gradient longer than 1 is shortened, all tensors together", 1, to=1e-5, route="autograd, all at once")
def _(f, case):
    for micro in (5, 2):
        gap = _by_hand(f, case, 30.0, 0.01, 2, micro)[1]
        yield _told(gap, f"With micro = {micro} of 5 images, long gradients come to another step.", "Clip once a step.")


@LOOP.identity("t, noise and images have their laws", 1, to=5, route="what the network was called with, |z|")
def _(f, case):
    far = 1e4 * torch.arange(5, dtype=torch.float64)  # the images differ by more than any noise
    images = far[:, None, None, None].expand(5, *case.shape)
    _, _, _, x_t, t = _ran(f, case, 0.1, images, 50, 40, 40)
    which = (x_t.mean((2, 3, 4)) / case.schedule.alpha_bar[t].sqrt() / 1e4).round().clamp(0, 4)
    eps = _noise(case, x_t, t, 1e4 * which[..., None, None, None])
    for tried, expected, var in ((eps, 0, 1), (eps**2, 1, 2), (eps.abs() > 2, 0.0455, 0.0434), (eps**4, 3, 96)):
        z = float((tried.double().mean() - expected).abs() * (tried.numel() / var) ** 0.5)
        yield _told(z, "The noise found in x_t is not N(0, 1).", "Draw it with torch.randn, and leave x_t to l_simple.")
    coarse = fault(bool((eps - eps.float()).abs().max() < 1e-8))
    yield _told(coarse, "The noise has seven digits where the images have sixteen.", "Draw it in the images' dtype.")
    T, n = case.T, t.numel()
    for what, drawn, values in (("t", t - 1, T), ("the images", which.long(), 5)):
        bins = min(values, 8)
        count = (drawn * bins // values).flatten().bincount(minlength=bins)
        share = (torch.arange(values) * bins // values).bincount() / values
        z = float(((count - n * share) / (n * share * (1 - share) + 1e-9).sqrt()).abs().max())
        yield _told(z, f"Of {what}, not all come equally often.", "Each with the same chance in each draw.")
    for part in (eps, (which - 2) / 2**0.5, (t - (T + 1) / 2) / max(1, (T**2 - 1) / 12) ** 0.5):
        for one, other in ((part[:, :20], part[:, 20:]), (part[1:], part[:-1])):
            z = float((one * other).mean().abs() * one.numel() ** 0.5)
            yield _told(z, "What is drawn is not independent.", "New draws for each image, and in each step.")


@LOOP.identity("the average is told after each step", 1, route="an average that keeps all it is told")
def _(f, case):
    images = case.normal(name="images")
    for micro in (5, 2):
        spy, told, _, _, _ = _ran(f, case, 0.1, images, 3, 5, micro)
        count, last = len(told.calls), told.calls[-1] if told.calls else torch.zeros(3)
        yield _told(abs(count - 3), f"In 3 steps it was told {count} times.", "Once, at the end of each step.")
        gap = apart(last, torch.cat([spy.a, spy.b]))
        yield _told(gap, "It was not told the weights after the step.", "Let the optimiser step first.")


@LOOP.identity("the generator decides, and a run in two pieces is the run in one", 1, route="bit for bit")
def _(f, case):
    def weights(seed: int, *pieces: int):
        spy, generator, before = Spy(0.1), torch.Generator().manual_seed(seed), torch.get_rng_state()
        parts = spy, EMA(spy, 0.9), torch.optim.Adam(spy.parameters(), 0.1)
        for steps in pieces:
            f(*parts, case.schedule, case.normal(name="images"), generator, steps=steps, batch=5, micro=3)
        if not torch.equal(torch.get_rng_state(), before):
            note(np.inf, "It uses torch's own generator.", "Draw everything from the one that is handed in.")
            raise ValueError("torch's own generator was used")
        return torch.cat([*spy.parameters(), *parts[1].model.parameters()]).detach()

    cut = fault(not torch.equal(weights(1, 5), weights(1, 2, 3)))
    yield _told(cut, "5 steps are not 2 steps and then 3.", "Make nothing inside that lasts.")
    same = fault(torch.equal(weights(1, 5), weights(2, 5)))
    yield _told(same, "Two generators lead to the same weights.", "Draw everything from the generator, set no seed.")


@LOOP.identity("a small U-Net learns the digits, and all its weights move", 1, to=0.45, route="its loss", trials=0)
def _(f, case):
    images, size = digits()[0].images, {"size": 8, "channels": 1, "width": 8, "multipliers": (1,), "blocks": 1}
    network = made(lambda: UNet(**size, groups=4, attention=(), dropout=0.0))
    start = copy.deepcopy(network)
    parts = network, EMA(network), torch.optim.Adam(network.parameters(), 1e-2), case.schedule, images, case.generator()
    losses = f(*parts, steps=40, batch=32, micro=32)
    still = [torch.equal(p, q) for p, q in zip(network.parameters(), start.parameters(), strict=True)]
    _told(fault(any(still)), f"{sum(still)} of its tensors did not move.", "Which gradients arrive at the optimiser?")
    end = float(np.mean(losses[-10:]))
    return largest(fault(any(still)), _told(end, f"After 40 steps the loss is {end:.2f}.", "Look at the others first."))
