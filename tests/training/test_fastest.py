"""The fastest right way to compute a step: with a clock that says what is wanted, and with ways that fail."""

import pytest
import torch
from torch import nn

from ddpm_lib.networks.unet import UNet
from ddpm_lib.training import fastest as module
from ddpm_lib.training.fastest import ROUNDS, Way, candidates, fastest, tried

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FLOAT32, BF16, LAST = Way("float32", False, False), Way("bf16", False, False), Way("float32", True, False)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 1000.0)


def network():
    torch.manual_seed(0)
    return UNet(size=4, channels=1, width=4, multipliers=(1,), blocks=1, groups=2, attention=(), classes=3)


def images():
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def clock(*seconds):
    """A clock after which the ways took so long, way after way in every round."""
    ticks = []
    for _ in range(ROUNDS):
        for one in seconds:
            ticks += [0.0, one]
    return iter(ticks).__next__


def test_every_way_is_timed_in_turns_and_compared_with_float32():
    network_, before = network(), torch.get_rng_state()
    weights = {name: p.clone() for name, p in network_.named_parameters()}
    ways = [FLOAT32, BF16, Way("fp16", False, False), LAST]
    found = tried(network_, images(), torch.arange(3), ways, clock(4.0, 2.0, 3.0, 5.0))
    assert [way.seconds for way in found] == [4.0, 2.0, 3.0, 5.0]
    assert [way[:3] for way in found] == [way[:3] for way in ways] and not any(way.error for way in found)
    assert found[0].cosine == pytest.approx(1, abs=1e-12) and found[3].cosine > 0.999999
    assert all(0.99 < way.cosine < 1 - 1e-9 for way in found[1:3])  # something was rounded
    assert fastest(found)[:3] == BF16[:3]
    # the network is left alone, and so is everybody's generator
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in network_.named_parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_busy_moment_does_not_decide():
    seconds = iter([9.0, 2.0, 9.0, 7.0, 1.0, 2.5])  # most of the time somebody else had the processor
    ticks = [tick for one in seconds for tick in (0.0, one)]
    found = tried(network(), images(), None, [FLOAT32, LAST], iter(ticks).__next__)
    assert [way.seconds for way in found] == [1.0, 2.0]


def test_what_takes_long_is_timed_once(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 10.0)
    ticks = iter([0.0, 9.0, 9.0, 11.0])
    found = tried(network(), images(), None, [FLOAT32, LAST], ticks.__next__)
    assert [way.seconds for way in found] == [9.0, 2.0] and next(ticks, None) is None


def test_what_cannot_be_tried_is_left_out(monkeypatch):
    def broken(model):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    ways = [FLOAT32, Way("float32", False, True)]
    found = tried(network(), images(), None, ways, clock(5.0))
    assert found[1].error == "RuntimeError: no compiler" and found[1].seconds == float("inf")
    assert fastest(found)[:3] == FLOAT32[:3]


class Explodes(nn.Module):
    """A network that is finite in float32 alone: 300 squared twice is more than fp16 holds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x_t, t, labels):
        return self.conv(self.conv(300 + 0 * x_t) * 300 + x_t) * 300


def test_a_fast_way_with_a_wrong_gradient_is_left_out():
    torch.manual_seed(0)
    found = tried(Explodes(), images(), None, [FLOAT32, Way("fp16", False, False)], clock(5.0, 1.0))
    assert not found[1].cosine >= module.AGREE and not found[1].error
    assert fastest(found)[:3] == FLOAT32[:3]
    assert fastest(found[1:]) == found[1]  # where nothing else works, the run will tell
    with pytest.raises(RuntimeError, match="fp16: no kernel"):
        fastest([found[1]._replace(error="no kernel")])


def ways(*rows):
    return [Way(str(i), False, False, seconds, cosine) for i, (seconds, cosine) in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([(1.0, 1.0), (1.0, 1.0)], "0"),  # a tie: the simpler one
        ([(1.0, 1.0), (0.97, 1.0)], "0"),  # too small a gain
        ([(1.0, 1.0), (0.97, 1.0), (0.94, 1.0)], "2"),
        ([(1.0, 1.0), (0.9, 1.0), (0.89, 1.0)], "1"),
        ([(1.0, 1.0), (0.5, 0.98)], "0"),  # fast and wrong
        ([(1.0, 1.0), (0.5, float("nan"))], "0"),
        ([(1.0, 0.5), (2.0, 0.995)], "1"),
    ],
)
def test_the_fastest_right_way_wins_where_its_gain_matters(rows, chosen):
    assert fastest(ways(*rows)).precision == chosen


def test_candidates_of_a_device(monkeypatch):
    assert candidates(CPU) == [FLOAT32, BF16, LAST, Way("bf16", True, False)]
    assert candidates(CPU, "float32", False, False) == [FLOAT32]
    assert candidates(CPU, "fp16", None, True) == [Way("fp16", False, True), Way("fp16", True, True)]
    assert candidates(torch.device("mps"), "auto", False) == [FLOAT32]
    for supported, lower in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, s=supported: s)
        assert candidates(GPU, "auto", False) == [Way(p, False, c) for c in (False, True) for p in ("float32", lower)]
    assert str(Way("bf16", True, True)) == "bf16, channels-last, compiled"
