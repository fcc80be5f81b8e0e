"""Classifier-free guidance with an exact class-conditional denoiser, and the labels that training drops."""

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.guidance import autoguided, drop_labels, guided
from ddpm_lib.samplers.guidance_rules import cfg_scale, interval_scale, rescaled, towards


def double(values):
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = GaussianMixture(
    double([0.2, 0.3, 0.5]),
    double([[-1.0, 0.2], [0.4, 0.4], [1.0, -1.0]]),
    double([[0.1, 0.5], [0.02, 0.3], [1, 0.05]]),
)
SCHEDULE = Schedule([0.02, 0.1, 0.3, 0.5, 0.2])
EXACT = ExactDenoiser(MIXTURE, SCHEDULE)
NULL = EXACT.null
X = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(5, 2)
T = torch.tensor([1, 2, 3, 4, 5])
LABELS = torch.tensor([2, 0, 1, 1, 2])


def noise_guided_by_the_classifier(scale):
    """ε − s·√(1 − ᾱ_t)·∇log p(y|x_t): by Bayes' rule that is guidance, and here p(y|x_t) is known. By autograd."""
    rows = []
    for x, t, label in zip(X, T.tolist(), LABELS, strict=True):
        x = x[None].clone().requires_grad_()
        log_joint = MIXTURE.diffused(SCHEDULE, t).component_log_density(x)
        unconditional, posterior = log_joint.logsumexp(1).sum(), log_joint.log_softmax(1)[0, label]
        score, classifier = (torch.autograd.grad(part, x, retain_graph=True)[0] for part in (unconditional, posterior))
        kept = float(torch.prod(1 - SCHEDULE.beta[1 : t + 1]))
        rows.append(-((1 - kept) ** 0.5) * (score + scale * classifier))
    return torch.cat(rows)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0, -1.0])
def test_guidance_is_a_classifier_s_gradient_without_the_classifier(scale):
    got = guided(EXACT, LABELS, scale, NULL)(X, T)
    assert (got - noise_guided_by_the_classifier(scale)).abs().max() < 1e-9


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_circulated_sign_and_scale_errors_would_be_seen(scale):
    unconditional, conditional = EXACT(X, T), EXACT(X, T, LABELS)
    right, w = noise_guided_by_the_classifier(scale), scale - 1
    for wrong in (
        conditional + w * unconditional,  # the sign of an early README
        unconditional - scale * (conditional - unconditional),  # pushes away
        unconditional + (1 + scale) * (conditional - unconditional),  # s taken for w
    ):
        assert (wrong - right).abs().max() > 1e-2


def test_scale_0_is_unconditional_and_scale_1_conditional():
    assert torch.equal(guided(EXACT, LABELS, 0.0, NULL)(X, T), EXACT(X, T))
    for one in (1, 1.0, torch.tensor(1.0), torch.ones(5)):
        assert (guided(EXACT, LABELS, one, NULL)(X, T) - EXACT(X, T, LABELS)).abs().max() < 1e-12
    assert (EXACT(X, T) - EXACT(X, T, LABELS)).abs().min() > 1e-6  # the two differ


def test_each_example_may_have_its_own_scale():
    scale = double([0.0, 1.0, 3.0, 0.5, 7.5])
    got = guided(EXACT, LABELS, scale, NULL)(X, T)
    for i, s in enumerate(scale.tolist()):
        assert (got[i] - guided(EXACT, LABELS, s, NULL)(X, T)[i]).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (5, 2)])
@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0), torch.full((5,), 2.0)])
def test_a_step_is_one_pass_over_a_doubled_batch(shape, scale):
    calls = []

    def model(x_t, t, labels):
        calls.append((x_t, t, labels))
        return x_t * labels.reshape(-1, *[1] * (x_t.ndim - 1))

    x_t = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = guided(model, LABELS, scale, null=10)(x_t, T)
    assert got.shape == shape and got.dtype == x_t.dtype
    ((both, t, labels),) = calls
    assert torch.equal(both, torch.cat([x_t, x_t])) and torch.equal(t, torch.cat([T, T]))
    assert sorted(labels.tolist()) == [0, 1, 1, 2, 2] + [10] * 5


class Noting:
    """A model that notes the labels and the t of each call."""

    def __init__(self):
        self.labels, self.t = [], []

    def __call__(self, x_t, t, labels):
        self.labels.append(labels.tolist())
        self.t.append(t.tolist())
        return x_t * (1 + labels.reshape(-1, *[1] * (x_t.ndim - 1)))


@pytest.mark.parametrize("scale", [1, 1.0, torch.tensor(1.0), torch.ones(5)])
def test_the_plain_conditional_model_is_not_asked_twice(scale):
    model = Noting()
    guided(model, LABELS, scale, NULL)(X, T)
    assert model.labels == [LABELS.tolist()]


@pytest.mark.parametrize("scale", [0, 0.0, torch.tensor(0.0), torch.zeros(5)])
def test_the_plain_unconditional_model_is_not_asked_twice(scale):
    model = Noting()
    guided(model, LABELS, scale, NULL)(X, T)
    assert model.labels == [[NULL] * 5]


def test_a_negative_label_stands_in_the_place_of_none():
    away = torch.tensor([0, 1, 2, NULL, 0])
    got = guided(EXACT, LABELS, 3.0, NULL, negative=away)(X, T)
    assert torch.allclose(got, EXACT(X, T, away) + 3 * (EXACT(X, T, LABELS) - EXACT(X, T, away)))
    assert torch.equal(guided(EXACT, LABELS, 0.0, NULL, negative=away)(X, T), EXACT(X, T, away))
    none = torch.full((5,), NULL)
    assert torch.equal(guided(EXACT, LABELS, 3.0, NULL, negative=none)(X, T), guided(EXACT, LABELS, 3.0, NULL)(X, T))
    with pytest.raises(ValueError, match=r"labels in 0\.\.3, got 4"):
        guided(EXACT, LABELS, 3.0, NULL, negative=torch.full((5,), NULL + 1))
    with pytest.raises(ValueError, match=r"a negative label for each of 5; got \(2,\)"):
        guided(EXACT, LABELS, 3.0, NULL, negative=torch.tensor([0, 1]))


@pytest.mark.parametrize("scale", [3.0, double([0.0, 2.0, 3.0, -1.0, 4.0])])
def test_outside_its_interval_guidance_is_the_conditional_model(scale):
    got = guided(EXACT, LABELS, scale, NULL, interval=(2, 4))(X, T)
    everywhere = guided(EXACT, LABELS, scale, NULL)(X, T)
    assert torch.equal(got[1:4], everywhere[1:4])  # t = 2, 3, 4: both ends belong to it
    assert torch.allclose(got[[0, 4]], EXACT(X, T, LABELS)[[0, 4]], atol=1e-14)


def test_outside_its_interval_guidance_costs_one_pass():
    model = Noting()
    eps_model = guided(model, LABELS, 3.0, NULL, interval=(2, 4))
    for t in (1, 2, 4, 5):
        eps_model(X, torch.full((5,), t))
    assert list(map(len, model.t)) == [5, 10, 10, 5]


@pytest.mark.parametrize("interval", [(3, 2), (-1, 2), (1, 2, 3)])
def test_what_is_no_interval_is_refused(interval):
    for call in (lambda: guided(EXACT, LABELS, 2.0, NULL, interval=interval), lambda: interval_scale(2.0, T, interval)):
        with pytest.raises(ValueError, match="expected an interval"):
            call()


def test_a_rescaled_estimate_has_the_conditional_one_s_deviation_image_by_image():
    torch.manual_seed(0)
    conditional, free = (
        torch.randn(4, 2, 3, 5) * torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1, 1),
        torch.randn(4, 2, 3, 5),
    )
    strong = towards(conditional, free, 5.0)
    assert torch.allclose(rescaled(strong, conditional, 1.0).flatten(1).std(1), conditional.flatten(1).std(1))
    half = 0.5 * (strong + rescaled(strong, conditional, 1.0))
    assert torch.allclose(rescaled(strong, conditional, 0.5), half, atol=1e-5)
    assert torch.equal(rescaled(strong, conditional, 0.0), strong)
    one_entry = torch.tensor([[2.0], [-3.0]])  # it has no deviation
    assert torch.equal(rescaled(one_entry, 2 * one_entry, 0.7), one_entry)
    got = guided(EXACT, LABELS, 3.0, NULL, rescale=0.7)(X, T)
    assert torch.allclose(got, rescaled(guided(EXACT, LABELS, 3.0, NULL)(X, T), EXACT(X, T, LABELS), 0.7))
    for phi in (-0.1, 1.1):
        with pytest.raises(ValueError, match="must lie in"):
            rescaled(strong, conditional, phi)
        with pytest.raises(ValueError, match="must lie in"):
            guided(EXACT, LABELS, 3.0, NULL, rescale=phi)


def test_an_unconditional_estimate_is_rescaled_too():
    got = guided(EXACT, LABELS, 0.0, NULL, rescale=1.0)(X, T)
    assert torch.allclose(got.std(1), EXACT(X, T, LABELS).std(1))


def test_a_negative_label_an_interval_and_rescaling_go_together():
    away = torch.tensor([0, 1, 2, NULL, 0])
    got = guided(EXACT, LABELS, 3.0, NULL, negative=away, interval=(2, 4), rescale=0.7)(X, T)
    conditional, negative = EXACT(X, T, LABELS), EXACT(X, T, away)
    inside = rescaled(towards(conditional, negative, 3.0), conditional, 0.7)
    assert torch.allclose(got[1:4], inside[1:4]) and torch.allclose(got[[0, 4]], conditional[[0, 4]])


def test_a_scale_of_another_convention_is_converted():
    conditional, free = EXACT(X, T, LABELS), EXACT(X, T)
    assert torch.allclose(towards(conditional, free, cfg_scale(2.0, "w")), 3 * conditional - 2 * free)
    assert cfg_scale(2.0, "s") == cfg_scale(2.0, "classifier") == 2
    assert cfg_scale(2.0, "classifier on conditional") == 3
    with pytest.raises(ValueError, match="among s, w, classifier"):
        cfg_scale(2.0, "gamma")


def test_a_worse_model_guides():
    worse = ExactDenoiser(GaussianMixture(MIXTURE.weight, MIXTURE.mean, MIXTURE.var + 0.3), SCHEDULE)
    got = autoguided(EXACT, worse, 2.5, LABELS)(X, T)
    assert torch.allclose(got, 2.5 * EXACT(X, T, LABELS) - 1.5 * worse(X, T, LABELS))
    assert torch.allclose(autoguided(EXACT, worse, 2.5)(X, T), 2.5 * EXACT(X, T) - 1.5 * worse(X, T))
    each = double([0.0, 1.0, 2.0, 3.0, -1.0])
    got = autoguided(EXACT, worse, each)(X, T)
    for i, s in enumerate(each.tolist()):
        assert torch.allclose(got[i], autoguided(EXACT, worse, s)(X, T)[i])


def test_a_worse_model_that_does_not_count_is_not_asked():
    def never(*_):
        raise AssertionError("asked")

    assert torch.equal(autoguided(EXACT, never, 1.0)(X, T), EXACT(X, T))
    assert torch.equal(autoguided(never, EXACT, 0.0, LABELS)(X, T), EXACT(X, T, LABELS))
    with pytest.raises(ValueError, match="training mode"):
        autoguided(EXACT, nn.Linear(2, 2), 2.0)
    with pytest.raises(ValueError, match="finite scale"):
        autoguided(EXACT, EXACT, float("nan"))


def test_a_model_in_training_mode_is_refused():
    class Model(nn.Module):
        def forward(self, x_t, t, labels):
            return x_t

    model = Model()
    with pytest.raises(ValueError, match=r"training mode.*call model\.eval\(\)"):
        guided(model, LABELS, 2.0, NULL)
    guided(model.eval(), LABELS, 2.0, NULL)


@pytest.mark.parametrize(
    ("labels", "scale", "complaint"),
    [
        (torch.tensor([0, 3]), 2.0, r"labels in 0\.\.2, got 3"),  # 3 is `null`: a label that nobody can ask for
        (torch.tensor([0, -1]), 2.0, r"labels in 0\.\.2, got -1"),
        (torch.tensor([[0, 1]]), 2.0, r"got labels \(1, 2\)"),
        (torch.tensor(0), 2.0, r"got labels \(\)"),
        (torch.tensor([0, 1]), torch.ones(3), "scale that is a number or"),
        (torch.tensor([0, 1]), torch.ones(2, 1), "scale that is a number or"),
        (torch.tensor([0, 1]), torch.tensor([1.0, float("inf")]), "finite scale"),
    ],
)
def test_labels_and_scales_that_do_not_fit_are_refused(labels, scale, complaint):
    with pytest.raises(ValueError, match=complaint):
        guided(EXACT, labels, scale, NULL)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_labels_are_dropped_independently_at_the_given_rate(probability):
    n = 40_000
    labels = torch.arange(n) % 10
    got = drop_labels(labels, probability, 10, torch.Generator().manual_seed(0))
    dropped = got == 10
    std = (probability * (1 - probability)) ** 0.5
    assert abs(dropped.double().mean() - probability) < 5 * std / n**0.5
    for label in range(10):  # whatever the label
        assert abs(dropped[label::10].double().mean() - probability) < 5 * std / (n / 10) ** 0.5
    pairs = torch.corrcoef(torch.stack([dropped[:-1], dropped[1:]]).double())[0, 1]
    assert abs(pairs) < 5 / n**0.5
    assert torch.equal(got[~dropped], labels[~dropped]) and got.dtype == labels.dtype
    assert torch.equal(labels, torch.arange(n) % 10), "the labels were written to"


def test_one_coin_decides_for_all_labels_of_an_example():
    labels = torch.arange(6000).reshape(2000, 3) % 10
    got = drop_labels(labels, 0.3, 10, torch.Generator().manual_seed(0))
    dropped = (got == 10).sum(1)
    assert set(dropped.tolist()) == {0, 3} and abs((dropped == 3).double().mean() - 0.3) < 5 * (0.21 / 2000) ** 0.5


def test_a_probability_of_0_drops_none_and_of_1_all():
    labels = torch.arange(10).repeat(100)
    assert torch.equal(drop_labels(labels, 0.0, 10), labels)
    assert (drop_labels(labels, 1.0, 10) == 10).all()


def test_a_seed_decides_which_labels_are_dropped():
    labels = torch.zeros(100, dtype=torch.int64)
    one, same, other = (drop_labels(labels, 0.5, 10, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got"):
        drop_labels(LABELS, probability, NULL)
