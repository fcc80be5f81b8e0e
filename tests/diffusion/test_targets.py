"""What a network may predict and the losses that belong to it; the two-dimensional toy that the book trains."""

import math

import numpy as np
import pytest
import torch

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.elbo import bound_term, posterior_var_clipped
from ddpm_lib.diffusion.forward import forward_var
from ddpm_lib.diffusion.loss import bound_weight, draw_t, l_simple
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.diffusion.targets import TARGETS, as_eps_model, eps_from_x_0, find_target, x_0_from_eps
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.exact.toy import MLP, fit, spiral
from ddpm_lib.gaussian import log_density

SCHEDULES = {"linear": linear_schedule(), "cosine": cosine_schedule(30), "short": Schedule([0.2, 0.6, 0.35, 0.9])}
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
by_target = pytest.mark.parametrize("target", TARGETS)
SHAPES = [(6, 2, 3, 3), (6, 5)]


def batch(schedule, shape=SHAPES[0], dtype=torch.float64, seed=0):
    """x_0 and ε as arrays, t with both ends of 1..T in it, and √ᾱ_t and √(1 − ᾱ_t), shaped to multiply with x_0."""
    random = np.random.default_rng(seed)
    t = np.array([1, 2, schedule.T // 2, schedule.T - 1, schedule.T, 2])[: shape[0]]
    a = np.array([math.prod(1 - b for b in schedule.beta[1 : step + 1].tolist()) for step in t])
    a = a.reshape(-1, *[1] * (len(shape) - 1))
    x_0, eps = random.uniform(-1, 1, shape), random.standard_normal(shape)
    if dtype == torch.float32:
        x_0, eps = x_0.astype(np.float32), eps.astype(np.float32)
    return x_0, eps, t, np.sqrt(a), np.sqrt(1 - a)


def value(target, x_t, eps, scale, std):
    """Each target from x_t and a noise estimate, with the x_0 that goes with both."""
    x_0 = (x_t - std * eps) / scale
    return {"eps": eps, "x_0": x_0, "v": scale * eps - std * x_0, "score": -eps / std}[target]


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def model_that_says(value):
    return lambda x_t, t: torch.as_tensor(value, dtype=x_t.dtype)


# Targets


def test_there_are_four_targets():
    assert list(TARGETS) == ["eps", "x_0", "v", "score"]
    assert all(find_target(name) is target for name, target in TARGETS.items())


@by_schedule
@by_target
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_a_target_s_true_value_implies_the_true_noise(schedule, target, shape, dtype, relative):
    x_0, eps, t, scale, std = batch(schedule, shape, dtype)
    x_t = torch.from_numpy(scale * x_0 + std * eps).to(dtype)
    of, to_eps = TARGETS[target].of, TARGETS[target].to_eps
    x_0, eps, t = tensors(x_0, eps, t)
    true = of(schedule, x_0, eps, t)
    expected = value(
        target, scale * x_0.double().numpy() + std * eps.double().numpy(), eps.double().numpy(), scale, std
    )
    assert true.dtype == dtype
    np.testing.assert_allclose(true.numpy(), expected, rtol=relative, atol=relative)
    got = to_eps(schedule, x_t, true, t)
    assert got.dtype == dtype
    torch.testing.assert_close(got, eps, rtol=relative, atol=relative)


@by_target
def test_one_t_for_all_is_that_t_for_each(target):
    schedule = SCHEDULES["short"]
    x_0, eps, x_t = tensors(*np.random.default_rng(0).standard_normal((3, 4, 2, 3, 3)))
    for step in (1, 3, 4):
        t = torch.full((4,), step)
        of, to_eps = TARGETS[target].of, TARGETS[target].to_eps
        assert torch.equal(of(schedule, x_0, eps, step), of(schedule, x_0, eps, t))
        assert torch.equal(to_eps(schedule, x_t, x_0, step), to_eps(schedule, x_t, x_0, t))


@pytest.mark.parametrize("target", ["x_0", "v", "score"])  # noise is noise at any t
@pytest.mark.parametrize("t", [0, 5, -1, torch.tensor([1, 0]), torch.tensor([5, 4])])
def test_a_conversion_refuses_a_t_outside_1_to_T(target, t):
    schedule, x = SCHEDULES["short"], torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"t must lie in 1\.\.4"):
        TARGETS[target].to_eps(schedule, x, x, t)
    if target != "x_0":
        with pytest.raises(ValueError, match=r"t must lie in 1\.\.4"):
            TARGETS[target].of(schedule, x, x, t)


@by_target
@pytest.mark.parametrize("t", [[1, 0], [5, 4]])
def test_the_loss_refuses_a_t_outside_1_to_T_for_every_target(target, t):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"t must lie in 1\.\.4"):
        l_simple(lambda x_t, t: x_t, SCHEDULES["short"], x, x, torch.tensor(t), target)


@by_target
def test_a_model_of_any_target_becomes_one_of_the_noise_and_is_given_its_labels(target):
    schedule, seen = SCHEDULES["linear"], []
    x_0, eps, t, scale, std = batch(schedule)
    x_t = scale * x_0 + std * eps
    eps_hat = eps + 0.1
    says = torch.from_numpy(value(target, x_t, eps_hat, scale, std))

    def model(*arguments):
        seen.append(arguments)
        return says

    x_t, t = tensors(x_t, t)
    labels, more = torch.arange(6), object()
    eps_model = as_eps_model(model, schedule, target)
    got = eps_model(x_t, t, labels, more)
    np.testing.assert_allclose(got.numpy(), eps_hat, rtol=1e-9, atol=1e-9)
    assert len(seen) == 1 and all(a is b for a, b in zip(seen[0], (x_t, t, labels, more), strict=True))
    eps_model(x_t, t)
    assert len(seen[1]) == 2
    # and for all one t, an int, as the samplers may give it
    says = torch.from_numpy(value(target, x_t.numpy(), eps_hat, scale[2], std[2]))
    np.testing.assert_allclose(eps_model(x_t, int(t[2])).numpy(), eps_hat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wrong", ["epsilon", "", "x0", "EPS", "V"])
def test_an_unknown_target_is_refused_and_the_known_ones_are_listed(wrong):
    schedule, x = SCHEDULES["short"], torch.zeros(1, 2)
    for ask in (
        lambda: find_target(wrong),
        lambda: as_eps_model(lambda x_t, t: x_t, schedule, wrong),
        lambda: l_simple(lambda x_t, t: x_t, schedule, x, x, torch.tensor([1]), wrong),
        lambda: fit(schedule, spiral(), wrong, steps=1),
    ):
        with pytest.raises(ValueError, match=f"expected a target among eps, x_0, v, score; got '{wrong}'"):
            ask()


# Losses


def half(x_t, t):
    return 0.5 * x_t


@by_schedule
@by_target
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_the_mean_square_of_the_target_s_error(schedule, target, shape):
    x_0, eps, t, scale, std = batch(schedule, shape)
    x_t = scale * x_0 + std * eps
    said = np.cos(3 * x_t) - 0.1 * t.reshape(scale.shape)
    errors = {
        "eps": eps - said,
        "x_0": x_0 - said,
        "v": scale * eps - std * x_0 - said,
        "score": -eps - std * said,  # times √(1 − ᾱ_t), by which it stays bounded
    }
    expected = (errors[target] ** 2).reshape(6, -1).mean(1)

    def model(x_t, t):
        return torch.cos(3 * x_t) - 0.1 * t.double().reshape(scale.shape)

    got = l_simple(model, schedule, *tensors(x_0, eps, t), target)
    assert got.shape == (6,)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)


@by_schedule
def test_without_a_name_the_target_is_the_noise(schedule):
    x_0, eps, t = tensors(*batch(schedule)[:3])
    assert torch.equal(l_simple(half, schedule, x_0, eps, t), l_simple(half, schedule, x_0, eps, t, "eps"))


@by_schedule
def test_the_loss_of_a_score_is_that_of_the_noise_it_implies(schedule):
    x_0, eps, t = tensors(*batch(schedule)[:3])
    as_score = l_simple(half, schedule, x_0, eps, t, "score")
    as_noise = l_simple(as_eps_model(half, schedule, "score"), schedule, x_0, eps, t)
    torch.testing.assert_close(as_score, as_noise, rtol=1e-12, atol=0)


@by_schedule
def test_one_error_of_the_noise_costs_1_or_1_over_snr_or_1_over_alpha_bar_or_1(schedule):
    x_0, eps, t, scale, std = batch(schedule)
    x_t, error = scale * x_0 + std * eps, 0.3
    losses = {}
    for target in TARGETS:
        model = model_that_says(value(target, x_t, eps + error, scale, std))
        losses[target] = l_simple(model, schedule, *tensors(x_0, eps, t), target).numpy() / error**2
    alpha_bar = scale.reshape(-1) ** 2
    expected = {
        "eps": 1 + 0 * alpha_bar,
        "x_0": (1 - alpha_bar) / alpha_bar,
        "v": 1 / alpha_bar,
        "score": 1 + 0 * alpha_bar,
    }
    for target, ratio in expected.items():
        np.testing.assert_allclose(losses[target], ratio, rtol=1e-8)


@by_schedule
@pytest.mark.parametrize("variance", [posterior_var_clipped, forward_var], ids=lambda f: f.__name__)
def test_the_weighted_square_is_all_that_the_bound_holds_of_the_network(schedule, variance):
    """A term minus that of a network that knows ε; and for t ≥ 2, minus what the two variances say alone."""
    x_0, eps, t = tensors(*batch(schedule)[:3])
    error = torch.from_numpy(np.random.default_rng(1).standard_normal(x_0.shape))
    weighted = bound_weight(schedule, t, variance) * error.square().flatten(1).sum(1)

    def term(eps_hat):
        options = {"reverse_var": variance, "decoder": log_density}
        return bound_term(model_that_says(eps_hat), schedule, x_0, eps, t, **options)

    torch.testing.assert_close(weighted, term(eps - error) - term(eps), rtol=1e-9, atol=1e-9)
    beta = schedule.beta[t]
    left = 1 / (schedule.alpha[t] / beta + 1 / (1 - schedule.alpha_bar[t - 1]))  # given x_t and x_0: precisions add
    model_var = {posterior_var_clipped: left, forward_var: beta}[variance]
    alone = x_0[0].numel() * 0.5 * (left / model_var - 1 - torch.log(left / model_var))
    rest = term(eps - error) - alone
    torch.testing.assert_close(weighted[t > 1], rest[t > 1], rtol=1e-9, atol=1e-9)


def test_the_weight_has_the_shape_of_t_and_is_never_less_than_float64():
    schedule = SCHEDULES["linear"]
    one = bound_weight(schedule, 7)
    assert one.shape == () and one.dtype == torch.float64
    t = torch.tensor([[7, 1000], [2, 1]])
    many = bound_weight(schedule, t)
    assert many.shape == (2, 2) and many.dtype == torch.float64 and many[0, 0] == one
    # known values for σ² = β̃: 0.600 at t = 2 and 0.0102 at T
    assert many[1, 0].item() == pytest.approx(0.600, abs=5e-4) and many[0, 1].item() == pytest.approx(0.0102, abs=5e-5)


# The toy


@pytest.mark.parametrize(("components", "std"), [(16, 0.1), (5, 0.02), (1, 0.05)])
def test_the_spiral_is_a_mixture_of_equal_blobs_inside_its_square(components, std):
    mixture = spiral(components, std)
    assert mixture.weight.dtype == mixture.mean.dtype == mixture.var.dtype == torch.float32
    assert mixture.mean.shape == mixture.var.shape == (components, 2)
    assert torch.equal(mixture.weight, torch.full((components,), 1 / components))
    torch.testing.assert_close(mixture.var, torch.full((components, 2), std**2))
    assert mixture.mean.abs().max() <= 1
    points, labels = mixture.sample(20_000, torch.Generator().manual_seed(0))
    assert points.abs().max() < 1.3 and labels.unique().tolist() == list(range(components))


def test_the_spiral_turns_outwards():
    mean = spiral().mean.double()
    radius, angle = mean.norm(dim=1), torch.atan2(mean[:, 1], mean[:, 0])
    steps = (angle.diff() + math.pi) % (2 * math.pi) - math.pi
    assert (radius.diff() > 0).all() and (steps > 0).all()
    assert float(steps.sum()) > 2 * math.pi  # so that a ray from the centre meets it more than once


@pytest.mark.parametrize(("n", "dims"), [(5, 2), (1, 2), (4, 3), (3, 1)])
def test_the_network_takes_points_and_times_and_returns_points(n, dims):
    network = MLP(T=10, dims=dims, width=8, frequencies=3)
    out = network(torch.zeros(n, dims), torch.arange(n) + 1)
    assert out.shape == (n, dims) and out.dtype == torch.float32
    assert sum(p.numel() for p in network.parameters()) == 8 * (dims + 6 + 1) + 2 * 8 * 9 + dims * 9


def test_the_network_tells_every_t_from_every_other_one():
    torch.manual_seed(0)
    network, inputs = MLP(T=1000), []
    network.layers[0].register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0]))
    x_t = torch.tensor([[0.3, -0.2]]).expand(1000, 2)
    network(x_t, torch.arange(1, 1001))
    (seen,) = inputs
    assert torch.equal(seen[:, :2], x_t)
    assert seen[:, 2:].abs().max() <= 1
    different = torch.cdist(seen.double(), seen.double()) + torch.eye(1000)
    assert different.min() > 0.1
    assert not torch.equal(*network(x_t[:2], torch.tensor([1, 2])))


SCHEDULE, STEPS = cosine_schedule(50), 300


@pytest.fixture(scope="module")
def trained():
    return {target: fit(SCHEDULE, spiral(), target, steps=STEPS) for target in TARGETS}


@pytest.fixture(scope="module")
def held_out():
    generator = torch.Generator().manual_seed(123)
    n = 20_000
    x_0, _ = spiral().sample(n, generator)
    return x_0, torch.randn(n, 2, generator=generator), draw_t(SCHEDULE, n, generator)


def untrained(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(SCHEDULE.T)


def z_score(differences):
    return float(differences.mean() / differences.std() * len(differences) ** 0.5)


@by_target
@torch.no_grad()
def test_a_few_steps_of_training_lower_the_loss_of_every_target(trained, held_out, target):
    network = trained[target]
    assert not network.training
    before, after = (l_simple(model, SCHEDULE, *held_out, target) for model in (untrained(), network))
    assert z_score(before - after) > 15
    assert after.mean() < 0.7 * before.mean()


@by_target
@torch.no_grad()
def test_a_trained_network_does_not_beat_the_exact_denoiser(trained, held_out, target):
    oracle = ExactDenoiser(spiral(), SCHEDULE)
    floor = l_simple(oracle, SCHEDULE, *held_out)
    loss = l_simple(as_eps_model(trained[target], SCHEDULE, target), SCHEDULE, *held_out)
    *_, t = held_out
    for low, high in ((1, 10), (11, 25), (26, 40), (41, 50)):
        rows = (t >= low) & (t <= high)
        assert z_score(loss[rows] - floor[rows]) > -5
    assert z_score(loss - floor) > 5  # and after so few steps it is worse


@torch.no_grad()
def test_where_a_network_learns_more_than_a_straight_line_it_still_does_not_beat_the_exact_denoiser(held_out):
    two = GaussianMixture(torch.full((2,), 0.5), torch.tensor([[-0.8, 0.0], [0.8, 0.0]]), torch.full((2, 2), 0.04))
    bell = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[0.68, 0.04]]))  # its mean and variance
    x_0, _ = two.sample(20_000, torch.Generator().manual_seed(4))
    with torch.enable_grad():
        network = fit(SCHEDULE, two, steps=600)
    exact, best_line, loss = (
        l_simple(model, SCHEDULE, x_0, *held_out[1:])
        for model in (ExactDenoiser(two, SCHEDULE), ExactDenoiser(bell, SCHEDULE), network)
    )
    assert z_score(best_line - loss) > 15 and z_score(loss - exact) > 5


@torch.no_grad()
def test_no_neighbour_of_the_exact_denoiser_is_better(held_out):
    oracle = ExactDenoiser(spiral(), SCHEDULE)
    floor = l_simple(oracle, SCHEDULE, *held_out)

    def off_by(k):
        return lambda x_t, t: eps_from_x_0(SCHEDULE, x_t, oracle.x_0_hat(x_t, (t + k).clamp(1, SCHEDULE.T)), t)

    assert (l_simple(off_by(0), SCHEDULE, *held_out) - floor).abs().max() < 1e-3
    others = [off_by(1), off_by(-1), ExactDenoiser(spiral(std=0.2), SCHEDULE)]
    others += [lambda x_t, t, k=k: k * oracle(x_t, t) for k in (0.95, 1.05)]
    for other in others:
        assert z_score(l_simple(other, SCHEDULE, *held_out) - floor) > 5


@torch.no_grad()
def test_the_floor_of_every_target_s_loss_is_the_exact_denoiser_s(trained, held_out):
    oracle = ExactDenoiser(spiral(), SCHEDULE)

    def as_target(target):
        def model(x_t, t):
            eps_hat = oracle(x_t, t)
            return TARGETS[target].of(SCHEDULE, x_0_from_eps(SCHEDULE, x_t, eps_hat, t), eps_hat, t)

        return model

    for target in TARGETS:
        floor, loss = (l_simple(model, SCHEDULE, *held_out, target) for model in (as_target(target), trained[target]))
        assert z_score(loss - floor) > 5


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_seed_decides_what_training_gives_and_nothing_else_does():
    results = []
    for outside, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(outside)
        results.append(weights(fit(SCHEDULE, spiral(), steps=5, seed=seed)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_training_leaves_the_global_random_state_as_it_was():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(SCHEDULE, spiral(), steps=3, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_training_starts_from_the_seed_s_network_and_its_rate_falls_to_0():
    start = weights(untrained(3))
    options = {"seed": 3, "batch": 32}
    assert torch.equal(weights(fit(SCHEDULE, spiral(), steps=0, **options)), start)
    # Adam's first step moves a weight by the rate, whatever the gradient
    one = weights(fit(SCHEDULE, spiral(), steps=1, learning_rate=1e-3, **options)) - start
    assert one.abs().max().item() == pytest.approx(1e-3, rel=1e-2)
    # and a few steps of a falling rate move it by no more than the rates' sum, 1 + ... + 0 of them
    steps = 8
    rates = sum((1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps))
    moved = weights(fit(SCHEDULE, spiral(), steps=steps, learning_rate=1e-3, **options)) - start
    assert 0.9e-3 * rates < moved.abs().max().item() < 1.1e-3 * rates


def test_training_learns_data_of_any_dimension():
    mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.ones(1, 3))
    network = fit(SCHEDULE, mixture, steps=2)
    assert network(torch.zeros(4, 3), torch.arange(1, 5)).shape == (4, 3)


def test_the_bound_s_weight_reads_its_tables_through_the_one_door():
    schedule = Schedule([0.2, 0.3, 0.4])
    steps = torch.tensor([1, 2, 3, 1])
    torch.testing.assert_close(bound_weight(schedule, steps.to(torch.uint8)), bound_weight(schedule, steps))
    for t in (0, 4, torch.tensor([1, 4])):
        with pytest.raises(ValueError, match=r"t must lie in 1\.\.3"):
            bound_weight(schedule, t)
    with pytest.raises(TypeError, match="integer"):
        bound_weight(schedule, 1.0)


def test_an_eps_model_passes_on_what_the_network_takes_by_name():
    schedule, x_t, t = Schedule([0.2, 0.3]), torch.randn(3, 2), torch.tensor([1, 2, 2])
    eps_model = as_eps_model(lambda x, t, labels: x * labels[:, None], schedule, "eps")
    labels = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(eps_model(x_t, t, labels=labels), x_t * labels[:, None])
