"""One step of a Trainer: what the network sees, what the gradient is of, and what the optimiser does with it."""

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.images.data import LabelledImages, digits
from ddpm_lib.networks.unet import UNet
from ddpm_lib.training.loop import train
from ddpm_lib.training.monitor import held_out_loss
from ddpm_lib.training.trainer import Trainer


class Noting(nn.Module):
    """ε_θ = w·x_t + 0.001·t, which keeps what it is asked and what it returns."""

    def __init__(self, w=0.0):
        super().__init__()
        self.w, self.seen = nn.Parameter(torch.tensor([[w]])), []

    def forward(self, x_t, t, labels):
        out = self.w * x_t + 0.001 * t[:, None, None, None]
        self.seen.append((x_t, t, labels, out.detach()))
        return out


class Chosen:
    """A timestep sampler that draws t with these probabilities, and keeps what it is told."""

    def __init__(self, probabilities):
        self.p, self.drawn, self.told = torch.tensor(probabilities) / sum(probabilities), [], []

    def draw(self, batch, generator):
        index = torch.multinomial(self.p, batch, replacement=True, generator=generator)
        self.drawn.append((index + 1, 1 / (len(self.p) * self.p[index])))
        return self.drawn[-1]

    def update(self, t, loss):
        self.told.append((t, loss))


BLACK = LabelledImages(torch.zeros(8, 1, 2, 2), torch.arange(8))


def test_the_t_of_the_sampler_reach_the_network_and_its_factors_the_gradient_but_not_what_it_is_told():
    model, sampler, schedule, gradients = Noting(0.3), Chosen([1.0, 2.0, 4.0, 8.0]), cosine_schedule(4), []
    trainer = Trainer(model, schedule, BLACK, batch=8, learning_rate=0.01, clip_norm=1e9, timesteps=sampler)
    trainer.optimiser.register_step_pre_hook(lambda *_: gradients.append(float(model.w.grad)))
    steps = [trainer.step() for _ in range(3)]
    for step, (x_t, t, *_, out), drawn, told, gradient in zip(
        steps, model.seen, sampler.drawn, sampler.told, gradients, strict=True
    ):
        assert torch.equal(t, drawn[0]) and torch.equal(t, told[0]) and torch.equal(t, step.t)
        assert torch.equal(step.factor, drawn[1])
        eps = x_t / (1 - schedule.alpha_bar[t]).sqrt().float()[:, None, None, None]  # for x_0 = 0
        losses = (eps - out).square().mean((1, 2, 3))
        torch.testing.assert_close(step.loss, losses)
        assert torch.equal(told[1], step.loss) and not told[1].requires_grad
        by_image = (-2 * (eps - out) * x_t).mean((1, 2, 3))  # the derivative of each loss by w
        assert gradient == pytest.approx(float((drawn[1] * by_image).mean()), rel=1e-4)
        assert gradient != pytest.approx(float(by_image.mean()), rel=1e-2)


def test_the_logged_loss_is_that_of_uniform_t_whatever_the_sampler_prefers():
    # losses 1 + (0.05·i)² at the i-th of 100 steps; the sampler looks at the late ones a hundred times more often
    class Late(Noting):
        def forward(self, x_t, t, labels):
            return self.w * x_t + 0.05 * t[:, None, None, None].float()

    expected = 1 + sum((0.05 * t) ** 2 for t in range(1, 101)) / 100
    options = {"batch": 256, "learning_rate": 1e-12, "clip_norm": 1e-12}
    for sampler in (None, Chosen([1.0 + t for t in range(1, 101)])):
        trainer = Trainer(Late(), cosine_schedule(100), BLACK, timesteps=sampler, **options)
        (entry,) = train(trainer, 40, every=40, progress=False)
        assert entry["loss"] == pytest.approx(expected, rel=0.05)
        middles = [1 + sum((0.05 * t) ** 2 for t in range(10 * i + 1, 10 * i + 11)) / 10 for i in range(10)]
        assert entry["loss_by_t"][1:] == pytest.approx(middles[1:], rel=0.1)  # without the factors


def arrows(n=40):
    """Images that look otherwise in a mirror and upside down; their grey level tells their label."""
    labels = torch.arange(n) % 4
    images = labels[:, None, None, None] / 4 - 0.5 + torch.tensor([[0.3, -0.1], [-0.2, 0.0]])
    return LabelledImages(images, labels)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_half_of_the_images_are_mirrored_left_to_right_and_keep_their_labels(as_bytes):
    data = arrows()
    if as_bytes:
        data = LabelledImages(((data.images + 1) * 127.5).round().to(torch.uint8), data.labels)
    for flip in (True, False):
        model = Noting()
        trainer = Trainer(model, Schedule([1e-12]), data, batch=40, learning_rate=0.01, flip=flip)
        before = torch.get_rng_state()
        for _ in range(25):
            trainer.step()
        assert torch.equal(torch.get_rng_state(), before)  # it is left to dropout, of which there is none here
        x_0, _, labels, _ = (torch.cat(part) for part in zip(*model.seen, strict=True))
        original = arrows().images[labels]  # the first four have the labels 0..3
        straight = ((x_0 - original).abs() < 0.01).all((1, 2, 3))
        mirrored = ((x_0 - original.flip(3)).abs() < 0.01).all((1, 2, 3))
        assert not (straight & mirrored).any() and (straight | mirrored).all()
        share = mirrored.double().mean()
        assert abs(share - 0.5) < 5 * 0.5 / len(x_0) ** 0.5 if flip else share == 0
        if flip:
            assert 0 < mirrored[:40].sum() < 40  # each image by itself, not a whole batch


def test_weight_decay_shrinks_kernels_and_leaves_biases_and_norms_alone():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.label = nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Embedding(8, 2)
            self.out = nn.Conv2d(2, 1, 1)

        def forward(self, x_t, t, labels):
            return self.out(self.norm(self.conv(x_t)) + self.label(labels)[:, :, None, None])

    torch.manual_seed(0)
    model, rate, decay, used = Two(), 0.01, 0.5, {}
    trainer = Trainer(
        model, cosine_schedule(10), BLACK, batch=8, learning_rate=2 * rate, rate=lambda done: 0.5, weight_decay=decay
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = dict(model.named_parameters())
    trainer.optimiser.register_step_pre_hook(lambda *_: used.update({n: p.grad.clone() for n, p in names.items()}))
    trainer.step()
    for name, parameter in model.named_parameters():
        # AdamW's first step: both moments, corrected, are the gradient and its square
        shrink = 1 - rate * decay if name in ("conv.weight", "out.weight", "label.weight") else 1
        expected = shrink * before[name] - rate * used[name] / (used[name].abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


def test_without_classes_labels_that_the_data_have_are_not_passed_on_where_they_are_taken_away():
    model = Noting()
    Trainer(model, cosine_schedule(10), BLACK, batch=4, learning_rate=0.01, prepare_labels=lambda *_: None).step()
    assert model.seen[0][2] is None
    called = []
    unlabelled = LabelledImages(BLACK.images)
    trainer = Trainer(model, cosine_schedule(10), unlabelled, batch=4, learning_rate=0.01, prepare_labels=called.append)
    trainer.step()
    assert model.seen[1][2] is None and not called


def test_the_network_trains_in_training_mode_whatever_mode_it_came_in():
    trainer = Trainer(Noting().eval(), cosine_schedule(10), BLACK, batch=4, learning_rate=0.01)
    assert trainer.model.training and not trainer.ema.model.training
    trainer.model.eval()  # somebody looked at samples
    train(trainer, 1, progress=False)
    assert trainer.model.training


def test_the_first_of_the_averages_that_were_asked_for_is_the_one_and_none_is_kept_twice():
    decays = (0.5, 0.25, 0.9, 0.1, 0.25, 0.75)
    trainer = Trainer(Noting(), cosine_schedule(10), BLACK, batch=4, learning_rate=0.01, ema_decays=decays)
    assert [ema.decay for ema in trainer.emas] == [0.5, 0.25, 0.9, 0.1, 0.75]
    assert trainer.ema.decay == 0.5


def test_data_that_cannot_be_trained_on_are_refused():
    for images, labels, said in (
        (torch.rand(8, 1, 2, 2), torch.arange(8), "look like \\[0, 1\\]"),
        (torch.zeros(8, 1, 2, 2), torch.arange(1, 9), "expected labels in 0..7, got 8"),
        (torch.zeros(8, 1, 2, 2), None, "got images without labels"),
    ):
        model = Noting()
        model.null = 8
        with pytest.raises(ValueError, match=said):
            Trainer(model, cosine_schedule(10), LabelledImages(images, labels), batch=4, learning_rate=0.01)


class AtFixed(Chosen):
    """The same t in every batch: how noise levels are learned by heart."""

    def draw(self, batch, generator):
        return torch.arange(batch) % 4 * 10 + 10, None  # 10, 20, 30, 40


def test_a_small_unet_learns_eight_digits_by_heart_and_only_these():
    train_on, others = digits()
    eight = LabelledImages(train_on.images[:8], train_on.labels[:8])
    torch.manual_seed(0)
    network = UNet(
        size=8, channels=1, width=16, multipliers=(1, 2), blocks=1, groups=4, attention=(), dropout=0.0, classes=10
    )
    trainer = Trainer(
        network, cosine_schedule(50), eight, batch=32, learning_rate=4e-3, ema_decays=(0.9,), timesteps=AtFixed([1.0])
    )
    history = train(trainer, 100, every=20, progress=False)
    losses = [entry["loss"] for entry in history]
    assert losses[0] > 4 * losses[-1] and losses[-1] < 0.1
    known, unknown = (held_out_loss(trainer.ema.model, cosine_schedule(50), data) for data in (eight, others))
    assert unknown > 1.5 * known
