"""The parts of training: loss, draw of t, batches, the learning rate's course, averaged weights; and one quiet step."""

import importlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.loss import l_simple
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.unet import UNet
from ddpm_lib.training.ema import EMA
from ddpm_lib.training.loop import linear_rate
from ddpm_lib.training.trainer import Trainer


def test_a_model_that_returns_another_shape_is_refused():
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"returned shape \(2, 1\); expected that of x_t, \(2, 1, 4, 4\)"):
        l_simple(lambda x_t, t: x_t[:, :, 0, 0], Schedule([0.1]), x, x, torch.tensor([1, 1]))


def test_the_rate_rises_to_1_then_falls_to_its_end():
    rate = linear_rate(4, 10, final=0.25)
    assert [rate(done) for done in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [rate(done) for done in range(4, 11)] == pytest.approx([1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25])
    assert rate(1000) == 0.25
    assert linear_rate(0, 10)(0) == 1 and linear_rate(0, 10)(10) == 0


def ema_by_hand(values, decay, warmup=True, keep=True):
    average = values[0]
    for step, value in enumerate(values[1:]):
        d = min(decay, (1 + step) / (10 + step)) if warmup else decay
        average = d * (average if keep else value) + (1 - d) * value
    return average


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.0])
def test_the_average_follows_its_recursion_and_wrong_ones_do_not(decay):
    values = [1.0, 3.0, -2.0, 5.0, 4.0, 0.5, 7.0]
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, values[0])
    ema = EMA(model, decay)
    for value in values[1:]:
        nn.init.constant_(model.weight, value)
        ema.update(model)
    average = ema.model.weight.item()
    assert average == pytest.approx(ema_by_hand(values, decay), abs=1e-12)
    if decay:
        # θ in place of its average, as printed in a summary of EDM2; and no warm-up
        for wrong in (ema_by_hand(values, decay, keep=False), ema_by_hand(values, decay, warmup=False)):
            assert abs(average - wrong) > 1e-3


def test_the_average_copies_buffers_and_is_ready_for_sampling():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    ema = EMA(model, 0.9)
    model(torch.randn(8, 2) + 3)
    ema.update(model)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert ema.model[1].num_batches_tracked == 1
    assert model.training and not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_that_never_moves_or_diverges_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got"):
        EMA(nn.Linear(1, 1), decay)


def test_the_average_is_ddpm_s_unless_told_otherwise_and_takes_no_other_network_s_buffers():
    ema = EMA(nn.BatchNorm1d(2))
    assert ema.decay == 0.9999
    other = nn.BatchNorm1d(2)
    other.register_buffer("more", torch.zeros(1))
    with pytest.raises(ValueError, match="longer"):
        ema.update(other)


class Reads(TorchDispatchMode):
    """Notes the type of every tensor that the host asks for a number."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.types.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


class NoFloat64(TorchDispatchMode):
    """A device that knows no float64, as Apple's GPU: "meta" stands for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                assert tensor.dtype != torch.float64, f"{function} makes float64 on the device"
        return out


def test_a_step_makes_no_float64_on_the_device():
    network = UNet(size=8, channels=1, width=8, groups=4, multipliers=(1, 2), blocks=1, attention=(4,), classes=3)
    network = network.to("meta")
    data = LabelledImages(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 3)
    trainer = Trainer.__new__(Trainer)
    if torch.distributed.is_available():
        importlib.import_module("torch.distributed.tensor")  # which torch does on first use: not with the patch below
    real = torch.Generator
    with pytest.MonkeyPatch.context() as patch:  # there are no generators on "meta", nor a fused AdamW
        patch.setattr(torch, "Generator", lambda device=None: real())
        optimiser = torch.optim.AdamW
        patch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: optimiser(groups, lr=lr, fused=False))
        trainer.__init__(network, cosine_schedule(10), data, batch=4, learning_rate=0.01, flip=True)
        with NoFloat64():
            for _ in range(2):
                step = trainer.step()
    assert step.loss.device.type == "meta" and step.loss.dtype == torch.float32
    with pytest.raises(AssertionError, match="makes float64"), NoFloat64():
        step.loss.double()  # it would have been seen


class OneConvolution(nn.Conv2d):
    def forward(self, x_t, t, labels):
        return super().forward(x_t)


def test_a_step_asks_for_no_number_that_a_gpu_would_have_to_finish_first():
    network = OneConvolution(1, 1, 3, padding=1)
    data = LabelledImages(torch.zeros(8, 1, 4, 4), torch.arange(8) % 2)
    trainer = Trainer(network, cosine_schedule(10), data, batch=4, learning_rate=0.01)
    with Reads() as reads:
        for _ in range(3):
            loss = trainer.step().loss
    # t is drawn and checked on the CPU; loss, gradients and weights stay where they are
    assert set(reads.types) == {torch.int64}
    with reads:
        float(loss[0])
    assert torch.float32 in reads.types  # it would have been seen
