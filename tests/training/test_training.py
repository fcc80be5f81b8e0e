"""Training: seeded, watched, stopped by what is not finite, and safe to interrupt."""

import os
import signal
import threading

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.unet import UNet
from ddpm_lib.samplers.guidance import drop_labels
from ddpm_lib.training.ema import EMA
from ddpm_lib.training.loop import linear_rate, train
from ddpm_lib.training.monitor import peak_memory
from ddpm_lib.training.trainer import Trainer

NULL = 5


class Toy(nn.Module):
    """A network of a few weights that remembers what it was asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.label, self.asked = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(NULL + 1, 1), []

    def forward(self, x_t, t, labels):
        self.asked.append((x_t.detach(), t, labels))
        return self.conv(x_t) + self.label(labels)[:, :, None, None]


def levels(n=20):
    """Images of one grey level each, which is their label: 0 → −1, 1 → −0.5, ..."""
    labels = torch.arange(n) % NULL
    return LabelledImages((labels / 2 - 1)[:, None, None, None].expand(n, 1, 2, 2).clone(), labels)


def toy_trainer(model=None, schedule=None, **options):
    options = {"batch": 4, "learning_rate": 0.01, **options}
    return Trainer(model or Toy(), schedule or cosine_schedule(100), levels(), **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def entries(trainer, steps, every):
    """The steps of the entries that the callback was given, and the exception that stopped training."""
    seen = []
    try:
        train(trainer, steps, every=every, on_entry=lambda entry: seen.append(entry["step"]), progress=False)
    except BaseException as stop:
        return seen, stop
    return seen, None


def test_a_step_uses_the_rate_of_the_steps_done_before_it():
    model, used = Toy(), []
    trainer = toy_trainer(model, rate=linear_rate(2, 6))
    trainer.optimiser.register_step_pre_hook(lambda optimiser, *_: used.append(optimiser.param_groups[0]["lr"]))
    train(trainer, 6, progress=False)
    assert used == pytest.approx([0.01 * part for part in (1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25)])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    def trained(seed):
        torch.manual_seed(0)
        network = UNet(
            size=4, channels=1, width=8, groups=4, multipliers=(1,), blocks=1, attention=(), dropout=0.5, classes=NULL
        )
        torch.seed()  # the global generator is anywhere when a trainer is made
        trainer = toy_trainer(network, seed=seed)
        train(trainer, 5, progress=False)
        return weights(network), weights(trainer.ema.model)

    (raw, average), again, (other, _) = trained(1), trained(1), trained(2)
    assert torch.equal(raw, again[0]) and torch.equal(average, again[1])
    assert not torch.equal(raw, other)


def test_a_seed_decides_the_order_the_times_and_the_noise():
    def asked(seed, schedule):
        model = Toy()
        train(toy_trainer(model, schedule, seed=seed), 5, progress=False)
        return zip(*model.asked, strict=True)

    (_, times, labels), (_, other_times, other_labels) = (asked(seed, cosine_schedule(100)) for seed in (1, 2))
    assert not torch.equal(torch.cat(times), torch.cat(other_times))
    assert not torch.equal(torch.cat(labels), torch.cat(other_labels))
    (noise, *_), (other_noise, *_) = (asked(seed, Schedule([1 - 1e-9])) for seed in (1, 2))  # x_1 is all noise
    assert (torch.cat(noise) - torch.cat(other_noise)).abs().max() > 0.1


def test_every_average_is_updated_with_every_step():
    trainer = toy_trainer(ema_decays=(0.2, 0.05))
    expected = [EMA(trainer.model, decay) for decay in (0.2, 0.05)]
    for _ in range(5):
        trainer.step()
        for average in expected:
            average.update(trainer.model)
    for average, ours in zip(expected, trainer.emas, strict=True):
        assert torch.equal(weights(ours.model), weights(average.model))
    assert trainer.ema is trainer.emas[0] and not torch.equal(*(weights(ours.model) for ours in trainer.emas))


def test_a_tiny_network_learns_one_image_by_heart():
    torch.manual_seed(0)
    network = UNet(
        size=4, channels=1, width=8, groups=4, multipliers=(1,), blocks=1, attention=(), dropout=0.0, classes=1
    )
    image = LabelledImages(torch.rand(1, 1, 4, 4) * 2 - 1, torch.zeros(1, dtype=torch.int64))
    history = train(
        Trainer(network, cosine_schedule(100), image, batch=64, learning_rate=0.01), 60, every=2, progress=False
    )
    losses = [entry["loss"] for entry in history]
    assert 0.8 < losses[0] < 1.2  # a new network returns 0, and the mean square of the noise is 1
    assert losses[-1] < losses[0] / 5


def test_every_image_meets_its_own_label():
    model = Toy()
    schedule = Schedule([1e-12])  # so little noise that the grey level, and with it the label, can be read off x_t
    train(toy_trainer(model, schedule), 12, progress=False)
    for x_t, _, labels in model.asked:
        assert torch.equal(((x_t.mean((1, 2, 3)) + 1) * 2).round().long(), labels)
    assert {int(label) for *_, labels in model.asked for label in labels} == set(range(NULL))


def test_the_network_sees_labels_dropped_at_the_rate_that_was_asked_for():
    model, rate = Toy(), 0.3

    def prepare(labels, generator):
        return drop_labels(labels, rate, NULL, generator)

    train(toy_trainer(model, batch=100, prepare_labels=prepare), 40, progress=False)
    dropped = torch.cat([labels == NULL for *_, labels in model.asked]).double()
    assert abs(dropped.mean() - rate) < 5 * (rate * (1 - rate) / len(dropped)) ** 0.5


@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_gradients_are_clipped_to_their_norm_and_smaller_ones_left_alone(clip_norm):
    trainer, used = toy_trainer(clip_norm=clip_norm), []

    def note(*_):
        used.append(float(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm()))

    trainer.optimiser.register_step_pre_hook(note)
    norm = trainer.step().gradient_norm
    assert 1e-2 < float(norm) < 1e2  # as it was before
    assert used == pytest.approx([min(clip_norm, float(norm))], rel=1e-3)


class Breaks(Toy):
    """A Toy that goes wrong in its fifth step: in the loss, or in the gradient alone."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, x_t, t, labels):
        out = super().forward(x_t, t, labels)
        if len(self.asked) == 5:
            out = out * torch.nan if self.where == "loss" else out + (out * 0).abs().sqrt()
        return out


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_training_at_the_next_reading_before_anyone_can_save(where):
    trainer = toy_trainer(Breaks(where))
    seen, stop = entries(trainer, 20, every=4)
    assert isinstance(stop, FloatingPointError) and "at step 5 " in str(stop)
    assert "Nothing was saved since step 4" in str(stop) and "now 0.01" in str(stop)
    assert seen == [4] and trainer.steps == 8


def test_the_log_sums_up_each_stretch():
    trainer, steps = toy_trainer(rate=lambda done: (done + 1) / 10), []
    step = trainer.step

    def noted():
        steps.append(step())
        return steps[-1]

    trainer.step = noted
    history = train(trainer, 10, every=4, progress=False)
    assert [entry["step"] for entry in history] == [4, 8, 10]
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0.004, 0.008, 0.01])  # of the last step
    for entry, part in zip(history, (slice(0, 4), slice(4, 8), slice(8, 10)), strict=True):
        losses = [float(loss) for step in steps[part] for loss in step.loss]
        times = [int(t) for step in steps[part] for t in step.t]
        assert entry["loss"] == pytest.approx(sum(losses) / len(losses))
        assert entry["gradient_norm"] == pytest.approx(max(float(step.gradient_norm) for step in steps[part]))
        for tenth, mean in enumerate(entry["loss_by_t"]):
            here = range(10 * tenth + 1, 10 * tenth + 11)  # T = 100
            mine = [loss for loss, t in zip(losses, times, strict=True) if t in here]
            assert mean == (pytest.approx(sum(mine) / len(mine)) if mine else None)
        assert entry["images_per_s"] > 0
    memory = [entry["memory_gb"] for entry in history] + [peak_memory(trainer.device)]
    assert 0 < memory[0] and memory == sorted(memory)
    assert train(trainer, 10, progress=False) == []  # it is there already


def interrupting(at, presses=1):
    """Labels as they are; and Ctrl-C while the step `at` is under way."""
    calls = []

    def prepare(labels, generator):
        calls.append(labels)
        for _ in range(presses if len(calls) == at else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return labels

    return prepare


def test_ctrl_c_ends_the_step_in_hand_and_leaves_a_state_to_save():
    handler = signal.getsignal(signal.SIGINT)
    trainer, undisturbed = toy_trainer(prepare_labels=interrupting(at=3)), toy_trainer()
    seen, stop = entries(trainer, 20, every=5)
    assert isinstance(stop, KeyboardInterrupt) and "after step 3 of 20" in str(stop)
    assert seen == [3] and trainer.steps == 3
    assert signal.getsignal(signal.SIGINT) is handler
    train(undisturbed, 3, progress=False)
    assert torch.equal(weights(trainer.model), weights(undisturbed.model))
    assert torch.equal(weights(trainer.ema.model), weights(undisturbed.ema.model))
    train(trainer, 6, progress=False)  # and one may go on
    train(undisturbed, 6, progress=False)
    assert torch.equal(weights(trainer.model), weights(undisturbed.model))


def test_ctrl_c_while_an_entry_is_written_waits_until_it_is():
    trainer, written = toy_trainer(), []

    def write(entry):
        os.kill(os.getpid(), signal.SIGINT)
        written.append(entry["step"])

    with pytest.raises(KeyboardInterrupt, match="after step 2 of 20"):
        train(trainer, 20, every=2, on_entry=write, progress=False)
    assert written == [2] and trainer.steps == 2


def test_a_second_ctrl_c_acts_at_once():
    handler = signal.getsignal(signal.SIGINT)
    trainer = toy_trainer(prepare_labels=interrupting(at=3, presses=2))
    seen, stop = entries(trainer, 20, every=5)
    assert isinstance(stop, KeyboardInterrupt) and seen == [] and trainer.steps == 2
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_works_in_a_thread_where_no_handler_may_be_set():
    trainer, outcome = toy_trainer(), []
    thread = threading.Thread(target=lambda: outcome.append(entries(trainer, 3, every=3)))
    thread.start()
    thread.join()
    assert outcome == [([3], None)]


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"learning_rate": 0.0}, {"clip_norm": -1.0}, {"weight_decay": -1.0}, {"ema_decays": ()}]
)
def test_a_trainer_refuses_what_cannot_train(wrong):
    with pytest.raises(ValueError, match=r"expected batch >= 1, learning_rate > 0, .* and at least one EMA decay; got"):
        toy_trainer(**wrong)
