"""The toy data and the toy network, number for number: where the blobs lie, what the network is told, what it is."""

import inspect
import math

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.toy import MLP, fit, spiral


def test_the_spiral_makes_a_turn_and_a_half_and_ends_on_the_left():
    mixture = spiral()
    assert mixture.mean.shape == (24, 2) and mixture.mean.dtype == torch.float32
    assert mixture.weight.tolist() == pytest.approx([1 / 24] * 24)
    assert mixture.var.sqrt().flatten().tolist() == pytest.approx([0.09] * 48)
    turns = [0.8 + i * (3 * math.pi - 0.8) / 23 for i in range(24)]
    for (x, y), turn in zip(mixture.mean.tolist(), turns, strict=True):
        assert math.hypot(x, y) == pytest.approx(0.1 + 0.8 * turn / (3 * math.pi), abs=1e-6)
        assert math.remainder(math.atan2(y, x) - turn, 2 * math.pi) == pytest.approx(0, abs=1e-5)
    assert mixture.mean[-1].tolist() == pytest.approx([-0.9, 0], abs=1e-6)


def test_the_network_is_told_the_point_and_sines_and_cosines_of_t_over_T():
    model, seen = MLP(T=5), []
    model.layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x_t, t = torch.tensor([[0.3, -0.7], [0.1, 0.2]]), [2, 5]
    model(x_t, torch.tensor(t))
    for row, point, step in zip(seen[0].tolist(), x_t.tolist(), t, strict=True):
        angles = [math.pi / 2 * 2**k * step / 5 for k in range(8)]  # a quarter of a turn at t = T, and its octaves
        expected = [*point, *map(math.sin, angles), *map(math.cos, angles)]
        assert row == pytest.approx(expected, abs=1e-4)  # single precision, at angles up to 200


def test_the_network_has_three_hidden_layers_with_a_curve_after_each():
    layers = list(MLP(T=5).layers)
    assert [type(layer) for layer in layers] == [*[nn.Linear, nn.SiLU] * 3, nn.Linear]
    shapes = [tuple(layer.weight.shape) for layer in layers[::2]]
    assert shapes == [(96, 18), (96, 96), (96, 96), (2, 96)]


def test_training_takes_T_and_dimensions_from_what_it_is_given_and_is_long_by_default():
    model = fit(Schedule([0.1, 0.2, 0.3]), spiral(), steps=1, batch=2)
    assert model.T == 3 and model.layers[-1].out_features == 2 and not model.training
    defaults = {name: p.default for name, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert defaults == {"steps": 6000, "batch": 256, "learning_rate": 4e-3, "seed": 0}
