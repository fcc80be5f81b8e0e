"""Classifier-free guidance with an exact class-conditional denoiser, and the labels that training drops."""

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.guidance import drop_labels, guided


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


def test_the_plain_conditional_model_is_not_asked_twice():
    calls = []

    def model(x_t, t, labels):
        calls.append(labels)
        return x_t

    guided(model, LABELS, 1.0, NULL)(X, T)
    assert len(calls) == 1 and torch.equal(calls[0], LABELS)


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
