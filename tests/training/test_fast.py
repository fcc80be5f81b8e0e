"""Steps in parts, in lower precision, with a loss scaler, in another memory format, compiled: the same model."""

import copy
import shutil

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.unet import UNet
from ddpm_lib.training.execution import Execution
from ddpm_lib.training.fast import Fast, microbatches
from ddpm_lib.training.loop import train
from ddpm_lib.training.scaler import LossScaler
from ddpm_lib.training.trainer import Trainer

CPU = torch.device("cpu")
SCHEDULE = cosine_schedule(40)
DATA = LabelledImages(torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1)


class TwoHalves:
    """Half of the t are late ones, and half as important: factors that are not 1."""

    def draw(self, batch, generator):
        t = torch.randint(1, 41, (batch,), generator=generator)
        return t, torch.where(t > 20, 0.5, 1.5)

    def update(self, t, loss):
        pass

    def state(self):
        return {}

    def load_state(self, state):
        pass


def new_trainer(execution=None, device=CPU, **options):
    torch.manual_seed(0)
    network = UNet(size=4, channels=1, width=4, multipliers=(1,), blocks=1, groups=2, attention=(), dropout=0.0)
    with torch.no_grad():
        for p in network.parameters():  # a new network has zeros, and so nearly no gradient
            p += 0.1 * torch.randn(p.shape)
    chosen = {"batch": 7, "learning_rate": 0.01, "ema_decays": (0.9,), "timesteps": TwoHalves()}
    return Trainer(network.to(device), SCHEDULE, DATA, execution=execution, **chosen | options)


def gradients(trainer):
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


def cosine(a, b):
    a, b = (torch.cat([x.flatten().double().cpu() for x in part.values()]) for part in (a, b))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_pieces_are_as_few_and_as_even_as_they_can_be():
    for count in range(1, 30):
        for parts in range(1, 35):
            pieces = list(microbatches(count, parts))
            assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(count))
            sizes = [piece.stop - piece.start for piece in pieces]
            assert len(sizes) <= parts and set(sizes[:-1]) <= {sizes[0]} and sizes[0] == -(-count // parts)
    for count, parts in ((0, 1), (3, 0)):
        with pytest.raises(ValueError, match=f"expected count >= 1 and parts >= 1, got {count} and {parts}"):
            list(microbatches(count, parts))


def test_a_batch_in_parts_has_the_gradient_of_the_whole_and_the_same_losses():
    whole = new_trainer(Execution(), clip_norm=1e9)
    expected = whole.step()
    for parts in (1, 2, 3, 5, 7, 9):  # 7 images: 4 + 3, 3 + 3 + 1, 2 + 2 + 2 + 1, ...
        trainer = new_trainer(Fast(CPU, accumulate=parts), clip_norm=1e9)
        step = trainer.step()
        torch.testing.assert_close(step.loss, expected.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients(trainer), gradients(whole), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(step.gradient_norm, expected.gradient_norm)
        assert torch.equal(step.factor, expected.factor) and len(step.factor.unique()) == 2


def test_no_part_is_larger_than_it_must_be():
    seen = []
    trainer = new_trainer(Fast(CPU, accumulate=3))
    trainer.network = lambda x_t, t, y: seen.append(len(x_t)) or trainer.model(x_t, t, y)
    trainer.step()
    assert seen == [3, 3, 1]


def test_a_scaled_loss_gives_the_unscaled_steps_bit_for_bit():
    plain, scaled = new_trainer(Fast(CPU)), new_trainer(Fast(CPU))
    scaled.execution.scaler = LossScaler(CPU, start=2.0**16, interval=2)  # in float32: a power of two rounds nothing
    for _ in range(5):
        one, other = plain.step(), scaled.step()
        assert torch.equal(one.loss, other.loss) and torch.equal(one.gradient_norm, other.gradient_norm)
    assert scaled.execution.scaler.scale == 2.0**18
    weights = scaled.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.model.state_dict().items())


def test_plain_ways_are_the_plain_execution_bit_for_bit():
    plain, fast = new_trainer(Execution()), new_trainer(Fast(CPU))
    for _ in range(3):
        assert torch.equal(plain.step().loss, fast.step().loss)
    weights = fast.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.model.state_dict().items())


def overflowing(step, start=2.0**20):
    """A trainer in fp16 whose next step, the one after `step` good ones, overflows."""
    trainer = new_trainer(Fast(CPU, precision="fp16"))
    for _ in range(step):
        trainer.step()
    trainer.execution.scaler = LossScaler(CPU, start=start, interval=3, floor=2.0**4)
    return trainer


@pytest.mark.parametrize("done", [0, 2])
def test_a_step_that_overflows_is_skipped_and_halves_the_scale(done):
    trainer = overflowing(done, 2.0**40)
    before = {name: tensor.clone() for name, tensor in trainer.state()[0].items()}
    step = trainer.step()
    assert step.skipped and not step.gradient_norm.isfinite()
    tensors = trainer.state()[0]
    moments = [name for name in tensors if name.startswith("optimiser.")]
    assert len(moments) == 3 * len(list(trainer.model.parameters()))
    for name in (name for name in tensors if name.startswith(("model.", "optimiser."))):
        assert torch.equal(tensors[name], before.get(name, torch.zeros_like(tensors[name]))), name
    assert trainer.execution.scaler.scale == 2.0**39 and trainer.steps == done + 1


def test_the_log_counts_what_was_skipped_and_speaks_of_the_rest():
    trainer, entries = overflowing(0, 2.0**33), []
    history = train(trainer, 60, every=5, on_entry=entries.append, progress=False)
    skipped = [entry["skipped"] for entry in history]
    assert history == entries and sum(skipped) > 5 and 0 in skipped
    first = history[0]["step"]
    assert first > 5 and first % 5 == 0, "an entry without one good step"
    assert all(torch.tensor([entry["loss"], entry["gradient_norm"]]).isfinite().all() for entry in history)
    plain = train(new_trainer(), 5, every=5, progress=False)
    assert "skipped" not in plain[0]


def test_what_is_not_finite_at_the_floor_ends_the_run_and_nothing_is_saved():
    trainer, entries = overflowing(0, 2.0**6), []
    nn.init.constant_(trainer.model.stem.bias, float("nan"))  # no scale helps
    with pytest.raises(FloatingPointError, match="at step 3 the loss was nan"):  # 2^6, 2^5, then the floor
        train(trainer, 20, every=4, on_entry=entries.append, progress=False)
    assert not entries
    hopeless = overflowing(0, 2.0**60)
    with pytest.raises(FloatingPointError, match="every step after 0 was skipped, nothing saved"):
        train(hopeless, 6, every=3, progress=False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_agrees_nearly_and_leaves_weights_and_losses_in_float32(precision):
    plain, lower = new_trainer(clip_norm=1e9), new_trainer(Fast(CPU, precision=precision), clip_norm=1e9)
    if precision == "fp16":
        lower.execution.scaler = LossScaler(CPU, start=2.0**8)  # of so few pixels each has a large gradient
    step = lower.step()
    torch.testing.assert_close(step.loss, plain.step().loss, rtol=0.05, atol=0.02)
    assert 0.99 < cosine(gradients(lower), gradients(plain)) < 1 - 1e-9  # something was rounded
    assert step.loss.dtype == torch.float32 and torch.equal(step.t, step.t.long())
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in lower.model.parameters())
    assert all(m.dtype == torch.float32 for state in lower.optimiser.state.values() for m in state.values())
    assert (step.skipped is None) == (precision == "bf16")


def test_channels_last_is_the_same_network_in_another_order():
    plain, last = new_trainer(clip_norm=1e9), new_trainer(Fast(CPU, channels_last=True), clip_norm=1e9)
    torch.testing.assert_close(last.step().loss, plain.step().loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(last), gradients(plain), rtol=1e-3, atol=1e-5)
    kernels = [p for p in last.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    images = last.execution.arrange(torch.zeros(2, 3, 4, 4))
    assert images.stride() == (48, 1, 12, 3)


def test_compiling_is_asked_of_torch_and_its_result_is_called(monkeypatch):
    called = []

    def compiled(model):
        return lambda *args: called.append(len(args)) or model(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    trainer = new_trainer(Fast(CPU, compile=True))
    assert torch.equal(trainer.step().loss, new_trainer().step().loss) and called == [3]


def test_an_unknown_precision_and_no_parts_are_refused():
    for options in ({"precision": "float16"}, {"accumulate": 0}):
        with pytest.raises(ValueError, match="expected one of float32, bf16, fp16 and accumulate >= 1; got "):
            Fast(CPU, **options)


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_is_the_eager_one_up_to_rounding():
    plain, compiled = new_trainer(clip_norm=1e9), new_trainer(Fast(CPU, compile=True, accumulate=2), clip_norm=1e9)
    for _ in range(3):
        torch.testing.assert_close(compiled.step().loss, plain.step().loss, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradients(compiled), gradients(plain), rtol=1e-2, atol=1e-4)
    names = dict(plain.model.named_parameters())
    assert names.keys() == dict(compiled.model.named_parameters()).keys()  # no "_orig_mod." in a checkpoint


# On a GPU

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_A_GPU = [
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"compile": True},
    {"channels_last": True},
    {"precision": "bf16", "channels_last": True, "compile": True, "accumulate": 3},
]


@needs_a_gpu
@pytest.mark.parametrize("options", ON_A_GPU, ids=lambda options: " ".join(options))
def test_on_a_gpu_every_way_is_close_to_float32(options):
    gpu = torch.device("cuda", 0)
    plain = new_trainer(Fast(gpu), gpu, clip_norm=1e9)
    fast = new_trainer(Fast(gpu, **options), gpu, clip_norm=1e9)
    if fast.execution.scaler is not None:
        fast.execution.scaler = LossScaler(gpu, start=2.0**8)
    one, other = plain.step(), fast.step()
    torch.testing.assert_close(other.loss, one.loss, rtol=0.05, atol=0.02)
    assert cosine(gradients(fast), gradients(plain)) > 0.99
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast.step()  # and nobody waits
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_a_gpu
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_on_a_gpu_a_resumed_trainer_goes_on_nearly_where_it_was(precision):
    gpu = torch.device("cuda", 0)
    options = {"precision": precision, "channels_last": True, "accumulate": 2}
    whole, first = new_trainer(Fast(gpu, **options), gpu), new_trainer(Fast(gpu, **options), gpu)
    for _ in range(2):
        whole.step(), first.step()
    tensors, about = copy.deepcopy(first.state())
    again = new_trainer(Fast(gpu, **options), gpu)
    again.load_state(tensors, about)
    for _ in range(3):
        one, other = whole.step(), again.step()
        assert torch.equal(one.t, other.t)
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-2, atol=1e-3)
