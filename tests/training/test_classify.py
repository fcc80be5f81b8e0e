"""The classifier: its shape, what it is told, how it is trained, and what its accuracy counts."""

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.images.data import LabelledImages, digits
from ddpm_lib.networks.classifier import Classifier
from ddpm_lib.training import classify
from ddpm_lib.training.classify import _moved, accuracy, train_classifier
from ddpm_lib.training.fast import Fast

SMALL = {"size": 8, "channels": 1, "classes": 10, "width": 16, "groups": 4}


def lively(**options):
    """A classifier whose zero-initialised layers were given weights."""
    torch.manual_seed(0)
    network = Classifier(**SMALL | options).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def test_a_new_classifier_knows_nothing_and_every_parameter_then_moves():
    network = Classifier(**SMALL, attention=(4,), head_channels=16)
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    assert torch.equal(network(images), torch.zeros(6, 10))
    network = lively(attention=(4,), head_channels=16)
    nn.functional.cross_entropy(network(images, torch.arange(1, 7)), labels).backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


def test_time_matters_and_clean_images_are_told_as_t_1():
    network, images = lively(channels=3), torch.randn(4, 3, 8, 8)
    ones = torch.ones(4, dtype=torch.int64)
    assert torch.equal(network(images), network(images, ones))
    assert not torch.allclose(network(images, 500 * ones), network(images, ones), atol=1e-3)
    assert network.features(images).shape == (4, 32) and network(images).shape == (4, 10)
    assert torch.allclose(network(images), network.head(network.features(images)))
    assert torch.allclose(network(images[1:2]), network(images)[1:2], atol=1e-5)  # no image looks at another


def test_its_configuration_builds_another_one_like_it():
    network = lively(blocks=2, multipliers=(1, 2, 2))
    Classifier(**network.config).load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 10, "multipliers": (1, 2, 2)}, "halved 2 times"),
        ({"classes": 1}, "at least 2 classes"),
        ({"groups": 3}, "groups of two channels"),
        ({"multipliers": ()}, "halved"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**SMALL | options)


def test_images_and_times_of_another_shape_are_refused():
    network = lively()
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        network(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"expected t of shape \(2,\)"):
        network(torch.randn(2, 1, 8, 8), torch.ones(1, dtype=torch.int64))


@pytest.fixture(scope="module")
def noisy():
    torch.manual_seed(0)
    return train_classifier(Classifier(**SMALL), digits()[0], steps=150, schedule=cosine_schedule())


def test_trained_on_noisy_digits_it_reads_them_the_better_the_less_noise(noisy):
    held_out, schedule = digits()[1], cosine_schedule()
    shares = []
    for t in (1, 300, 600, 1000):
        noise = torch.randn(held_out.images.shape, generator=torch.Generator().manual_seed(t))
        x_t = schedule.alpha_bar[t].sqrt() * held_out.images + (1 - schedule.alpha_bar[t]).sqrt() * noise
        shares.append(accuracy(noisy, x_t.float(), held_out.labels, t))
    assert shares[0] > 0.8 and shares == sorted(shares, reverse=True) and shares[-1] < 0.25
    assert accuracy(noisy, held_out.images, held_out.labels) == accuracy(noisy, held_out.images, held_out.labels, 1)


def test_the_same_seed_trains_the_same_classifier_and_another_seed_another():
    def weights(seed, **options):
        network = lively()
        train_classifier(network, digits()[0], steps=3, batch=16, seed=seed, **options)
        return torch.cat([p.flatten() for p in network.parameters()])

    assert torch.equal(weights(1, schedule=linear_schedule(10)), weights(1, schedule=linear_schedule(10)))
    assert not torch.allclose(weights(1, schedule=linear_schedule(10)), weights(2, schedule=linear_schedule(10)))
    assert not torch.allclose(weights(1), weights(1, smoothing=0.3), atol=1e-6)
    parts = weights(1, execution=Fast(torch.device("cpu"), accumulate=3))
    assert torch.allclose(parts, weights(1), atol=1e-3)  # the order of sums alone is another


def test_flipped_and_shifted_images_are_the_images_moved_each_by_itself():
    torch.manual_seed(0)
    x, host = torch.randn(400, 3, 6, 6), torch.Generator().manual_seed(0)
    assert torch.equal(_moved(x, False, 0, host), x)
    flipped = _moved(x, True, 0, host)
    same = (flipped == x).flatten(1).all(1)
    assert torch.equal(flipped[~same], x[~same].flip(-1)) and 150 < int(same.sum()) < 250
    moved, seen = _moved(x, False, 1, host), []
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    for image, source in zip(moved, padded, strict=True):
        seen += [(i, j) for i in range(3) for j in range(3) if torch.equal(image, source[:, i : i + 6, j : j + 6])]
    assert len(seen) == 400 and min(map(seen.count, set(seen))) > 20 and len(set(seen)) == 9


def test_what_cannot_be_trained_on_or_asked_is_refused():
    network = lively()
    images = LabelledImages(torch.zeros(4, 1, 8, 8))
    with pytest.raises(ValueError, match="expected labels"):
        train_classifier(network, images, steps=1)
    with pytest.raises(ValueError, match="at least one step"):
        train_classifier(network, digits()[0], steps=0)
    with pytest.raises(ValueError, match="training mode"):
        accuracy(network.train(), torch.zeros(4, 1, 8, 8), torch.zeros(4))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train_classifier(lively(), digits()[0], steps=2, batch=8, learning_rate=float("inf"))


def test_bytes_are_read_as_the_images_they_are():
    network, images = lively(), torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    labels = network(images.float() / 127.5 - 1).argmax(1)
    assert accuracy(network, images, labels, batch=2) == 1.0
    labels[:2] = (labels[:2] + 1) % 10
    assert accuracy(network, images, labels, batch=3) == pytest.approx(5 / 7)


def test_the_course_is_the_one_that_was_asked_for(monkeypatch):
    rates, asked, adamw, entropy = [], [], torch.optim.AdamW, nn.functional.cross_entropy

    class Noted(adamw):
        def step(self, *args, **options):
            rates.append((self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]))
            return super().step(*args, **options)

    def noted(*args, **options):
        asked.append(options["label_smoothing"])
        return entropy(*args, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Noted)
    monkeypatch.setattr(classify.F, "cross_entropy", noted)
    monkeypatch.setattr(classify, "_moved", lambda x, *options: asked.append(options[:2]) or x)
    course = {"steps": 40, "batch": 4, "learning_rate": 0.03, "weight_decay": 0.7, "smoothing": 0.3}
    train_classifier(lively(), digits()[0], **course, flip=True, shift=2)
    assert [rate for rate, _ in rates[:4]] == pytest.approx([0.01, 0.02, 0.03, 0.03 * (1 - 1 / 38)])
    assert rates[-1] == pytest.approx((0.03 / 38, 0.7)) and len(rates) == 40
    assert asked[:2] == [(True, 2), 0.3]


def test_dropout_also_acts_on_the_mean():
    network, images = lively(dropout=0.5), torch.randn(4, 1, 8, 8)
    network.dropout.train()
    assert not torch.equal(network(images), network(images))


def test_each_image_is_read_at_its_own_t_in_every_batch():
    class Clock(nn.Linear):
        def forward(self, x, t):
            return nn.functional.one_hot(t, 41)

    clock, images, t = Clock(1, 1).eval(), torch.zeros(40, 1, 8, 8), torch.arange(1, 41)
    assert accuracy(clock, images, t, t, batch=7) == 1 and accuracy(clock, images, t, t.flip(0)) == 0
