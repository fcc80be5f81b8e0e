"""The held-out loss: a number that means the same at every checkpoint of a run."""

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.images.data import LabelledImages, digits
from ddpm_lib.training.monitor import held_out_loss

SCHEDULE = cosine_schedule(100)


class Zero(nn.Module):
    """Returns 0, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.zeros(1)), []

    def forward(self, x_t, t, labels):
        assert not torch.is_grad_enabled()  # it would take memory
        self.asked.append((x_t.clone(), t.clone(), labels))
        return x_t * self.weight


def images(n=300):
    labels = torch.arange(n) * 5 // n  # sorted by class
    return LabelledImages((labels / 2 - 1)[:, None, None, None].expand(n, 1, 4, 4).clone(), labels)


def test_the_zero_network_s_loss_is_the_variance_of_the_noise():
    data = images()
    loss = held_out_loss(Zero().eval(), SCHEDULE, data)
    assert abs(loss - 1) < 5 * (2 / data.images.numel()) ** 0.5  # the mean of that many squares of normals


def test_the_held_out_loss_is_the_same_again_and_touches_no_one_s_generator():
    model, data = Zero().eval(), images()
    nn.init.constant_(model.weight, 0.3)
    torch.manual_seed(1)
    first = held_out_loss(model, SCHEDULE, data)
    drawn = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(4))
    assert held_out_loss(model, SCHEDULE, data) == first
    for (x_t, t, labels), (again, same, too) in zip(model.asked[:3], model.asked[3:], strict=True):
        assert torch.equal(x_t, again) and torch.equal(t, same) and torch.equal(labels, too)


def test_it_is_the_mean_over_all_images_however_they_are_batched():
    class Constant(Zero):  # (eps − c)² has the mean 1 + c², where c is the image's class, read off its label
        def forward(self, x_t, t, labels):
            return (x_t * 0 + 10.0 * labels[:, None, None, None].float()).clone()

    data = images(301)
    expected = float((1 + (10.0 * data.labels.double()) ** 2).mean())
    for batch in (7, 128, 400):  # 301 leaves a rest
        assert held_out_loss(Constant().eval(), SCHEDULE, data, batch=batch) == pytest.approx(expected, rel=0.01)


def test_the_held_out_times_are_spread_evenly_whatever_the_order_of_the_images():
    model, data = Zero().eval(), images(300)
    held_out_loss(model, SCHEDULE, data)
    times, labels = (torch.cat([row[i] for row in model.asked]) for i in (1, 2))
    assert torch.bincount(times, minlength=101).tolist() == [0] + [3] * 100
    assert torch.equal(labels, data.labels)
    for label in range(5):  # 60 times each, uniform in 1..100
        assert abs(times[labels == label].double().mean() - 50.5) < 5 * 28.9 / 60**0.5
    model.asked.clear()
    held_out_loss(model, SCHEDULE, images(7))  # fewer images than steps
    assert sorted(model.asked[0][1].tolist()) == [1, 15, 29, 43, 58, 72, 86]


def test_every_held_out_image_is_noised_as_its_t_says_with_noise_of_its_own():
    model, data = Zero().eval(), images()
    held_out_loss(model, SCHEDULE, data)
    x_t, t, _ = (torch.cat(parts) for parts in zip(*model.asked, strict=True))
    alpha_bar = SCHEDULE.alpha_bar[t].float()[:, None, None, None]
    eps = (x_t - alpha_bar.sqrt() * data.images) / (1 - alpha_bar).sqrt()
    assert abs(eps.mean()) < 5 / eps.numel() ** 0.5 and abs(eps.var() - 1) < 5 * (2 / eps.numel()) ** 0.5
    assert eps.flatten().round(decimals=4).unique().numel() > 0.9 * eps.numel()


def test_bytes_count_as_the_images_that_they_are():
    levels = torch.randint(0, 256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    network = Zero().eval()
    nn.init.constant_(network.weight, 0.5)
    as_bytes, as_floats = LabelledImages(levels.to(torch.uint8)), LabelledImages((levels / 127.5 - 1).float())
    loss = held_out_loss(network, SCHEDULE, as_floats)
    assert held_out_loss(network, SCHEDULE, as_bytes) == pytest.approx(loss, rel=1e-5)


def test_a_network_without_classes_sees_no_labels_and_images_without_labels_give_none():
    model = Zero().eval()
    model.null = 0
    held_out_loss(model, SCHEDULE, images())
    model.null = 5
    held_out_loss(model, SCHEDULE, LabelledImages(images().images))
    assert all(labels is None for *_, labels in model.asked)


def test_a_network_whose_dropout_would_act_is_refused():
    with pytest.raises(ValueError, match="expected a network in eval mode"):
        held_out_loss(Zero().train(), SCHEDULE, images())


def test_a_better_network_has_a_lower_held_out_loss():
    held_out = digits()[1]  # at so much noise x_t is nearly the noise
    losses = []
    for weight in (0.0, 0.5, 1.0):
        model = Zero().eval()
        nn.init.constant_(model.weight, weight)
        losses.append(held_out_loss(model, Schedule([0.999]), held_out))
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.01
