"""A run's way on a GPU, where there is none: torch's fake tensors have a device, but neither numbers nor memory.

What belongs on the device is computed with them, the rest on the CPU as ever. It is an error to mix the two, or to
ask the device for numbers, for which the host would have to wait.
"""

import importlib
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.unet import UNet
from ddpm_lib.samplers.ddim import ddim_sample
from ddpm_lib.samplers.guidance import drop_labels, guided
from ddpm_lib.training.fast import Fast
from ddpm_lib.training.monitor import held_out_loss
from ddpm_lib.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
GPU = torch.device("cuda", 0)
SCHEDULE = cosine_schedule(10)
DATA = LabelledImages(torch.zeros(12, 1, 4, 4, dtype=torch.uint8), torch.arange(12) % 3)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Waits(Exception):
    """The host asked the device for numbers."""


class FakeGPU(TorchDispatchMode):
    """Within a FakeTensorMode: only what is on the device is fake. What the host asks of it is an error if `strict`."""

    def __init__(self):
        super().__init__()
        self.strict, self.reads = False, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        to = kwargs.get("device", args[0].device if function is torch.ops.aten.copy_.default else None)
        on_device = torch.device(to).type == "cuda" if to is not None else bool(there)
        if not there and not on_device:
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if not on_device:  # a copy to the host: its numbers are made up
            self.asked(function)
            with unset_fake_temporarily():
                ones = torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
                return args[0].copy_(ones) if function is torch.ops.aten.copy_.default else ones
        if there and function not in COPIES and any(x.ndim for x in tensors if not isinstance(x, FakeTensor)):
            raise RuntimeError(f"{function} of tensors on the CPU and on the device")
        kwargs |= {"generator": None} if "generator" in kwargs else {}  # there is none without a device
        try:
            return function(*args, **kwargs)
        except DataDependentOutputException:
            self.asked(function)
            return 1.0

    def asked(self, function):
        self.reads.append(str(function))
        if self.strict:
            raise Waits(f"{function}: the host waits for the device")


@torch.no_grad()
def backward(loss):
    """What torch's engine does, which needs a GPU for tensors of one: node after node of the graph, from the loss."""
    waiting, nodes = Counter(), [loss.grad_fn]
    seen = {loss.grad_fn}
    for node in nodes:
        for following, _ in node.next_functions:
            if following is not None:
                waiting[following] += 1
                if following not in seen:
                    seen.add(following)
                    nodes.append(following)
    given, ready = {(loss.grad_fn, 0): torch.ones_like(loss)}, [loss.grad_fn]
    while ready:
        node = ready.pop()
        if hasattr(node, "variable"):
            gradient, before = given[node, 0], node.variable.grad
            node.variable.grad = gradient if before is None else before + gradient
            continue
        out = node(*(given.pop((node, i), None) for i in range(len(node._input_metadata))))
        out = out if isinstance(out, tuple) else (out,)
        for gradient, (following, i) in zip(out, node.next_functions, strict=True):
            if following is None:
                continue
            if gradient is not None:
                gradient = gradient.sum_to_size(following._input_metadata[i].shape)
                before = given.get((following, i))
                given[following, i] = gradient if before is None else before + gradient
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


real = torch.Generator


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is not there: within, a trainer can be made on it and step."""
    importlib.import_module("torch.distributed.tensor")  # which torch does on first use: not with the next line
    monkeypatch.setattr(torch, "Generator", lambda device=None: Placed() if device == GPU else real())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.utils, "swap_tensors", lambda old, new: setattr(old, "data", new.data))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**33, 2**34))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True), FakeGPU() as mode:
        yield mode


class Placed(torch.Generator):
    """A generator of the device, as far as anybody looks."""

    device = GPU


def new_trainer(kind=Fast, **options):
    network = UNet(size=4, channels=1, width=4, groups=2, multipliers=(1,), blocks=1, attention=(), classes=3)

    def prepare(labels, generator):
        return drop_labels(labels, 0.3, 3, generator)

    chosen = {"batch": 6, "learning_rate": 0.01, "flip": True, "weight_decay": 0.1, "ema_decays": (0.9, 0.5)}
    chosen |= {"prepare_labels": prepare, "execution": kind(GPU, **options)}
    return Trainer(network.to(GPU), SCHEDULE, DATA, **chosen)


WAYS = [{}, {"precision": "bf16", "accumulate": 4}, {"precision": "fp16", "channels_last": True}]


@pytest.mark.parametrize("options", WAYS, ids=lambda options: " ".join(map(str, options.values())) or "plain")
def test_a_step_mixes_no_devices_and_never_waits(gpu, options):
    trainer = new_trainer(**options)
    gpu.strict = True
    for _ in range(2):  # the second has the optimiser's moments
        step = trainer.step()
    assert step.loss.device == step.gradient_norm.device == GPU and step.loss.dtype == torch.float32
    assert step.t.device.type == "cpu" and step.loss.shape == (6,)
    for network in (trainer.model, *(ema.model for ema in trainer.emas)):
        assert all(p.device == GPU and p.dtype == torch.float32 for p in network.parameters())
    moments = [m for state in trainer.optimiser.state.values() for m in state.values()]
    assert len(moments) == 3 * len(list(trainer.model.parameters()))
    assert all(m.device == GPU and m.dtype == torch.float32 for m in moments)
    if "fp16" in options.values():
        assert step.skipped.device == trainer.execution.scaler.scale.device == GPU


class ReadsTheLoss(Fast):
    def backward(self, losses, factor, count):
        loss = super().backward(losses, factor, count)
        self.seen = float(loss.mean())
        return loss


class ReadsTheNorm(Fast):
    def update(self, optimiser, parameters, clip_norm):
        norm, skipped = super().update(optimiser, parameters, clip_norm)
        return norm.cpu(), skipped


class LeavesFactorsOnTheHost(Fast):
    def backward(self, losses, factor, count):
        return super().backward(lambda part: losses(part) * torch.ones(part.stop - part.start), None, count)


class Asks(Fast):
    def update(self, optimiser, parameters, clip_norm):
        if all(p.grad.isfinite().all() for p in parameters):
            return super().update(optimiser, parameters, clip_norm)
        return None, None


@pytest.mark.parametrize(
    ("kind", "error"),
    [(ReadsTheLoss, Waits), (ReadsTheNorm, Waits), (Asks, Waits), (LeavesFactorsOnTheHost, RuntimeError)],
    ids=lambda kind: kind.__name__,
)
def test_a_step_that_waits_or_mixes_devices_would_be_seen(gpu, kind, error):
    trainer = new_trainer(kind=kind)
    gpu.strict = True
    with pytest.raises(error, match=r"waits for the device|on the CPU and on the device"):
        trainer.step()


def test_a_state_goes_on_and_what_is_sampled_and_watched_stays_on_the_device(gpu):
    trainer = new_trainer(precision="fp16", accumulate=2, channels_last=True)
    trainer.step()
    tensors, about = trainer.state()
    assert about["device"] == "cuda" and {"execution.scaler.scale", "random.cuda"} <= tensors.keys()
    again = new_trainer(precision="fp16", accumulate=2, channels_last=True)
    again.load_state({name: tensor.detach().clone() for name, tensor in tensors.items()}, about)
    gpu.strict = True
    again.step()
    parameters = dict(again.model.named_parameters())
    for name, parameter in parameters.items():
        moments = again.optimiser.state[parameter]
        assert all(moments[kind].stride() == parameter.stride() for kind in ("exp_avg", "exp_avg_sq")), name
    network = again.ema.model
    eps_model = guided(network, torch.arange(3), scale=torch.tensor([0.0, 1.0, 2.0]), null=3)
    images = ddim_sample(eps_model, SCHEDULE, torch.randn(3, 1, 4, 4, device=GPU), steps=2, eta=0.5)
    assert images.device == GPU and images.shape == (3, 1, 4, 4)
    gpu.strict = False
    assert held_out_loss(network, SCHEDULE, DATA, batch=5) == pytest.approx(3 / 12)  # the sum of a batch "is" 1
    assert len(gpu.reads) == 3, gpu.reads  # once a batch
