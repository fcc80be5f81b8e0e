"""Classifier guidance with the exact classifier of a mixture: the conditional denoiser comes out."""

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.posterior import posterior_mean_from_eps
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.classifier import ExactClassifier
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.classifier_guidance import class_gradient, classifier_guided, guided_mean
from ddpm_lib.samplers.ddim import ddim_sample
from ddpm_lib.samplers.guidance import guided


def double(values):
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = GaussianMixture(
    double([0.2, 0.3, 0.5]), double([[-1.0, 0.2], [0.4, 0.4], [1, -1]]), double([[0.1, 0.5], [0.02, 0.3], [1, 0.05]])
)
SCHEDULE = Schedule([0.02, 0.1, 0.3, 0.5, 0.2])
EXACT, CLASSIFIER = ExactDenoiser(MIXTURE, SCHEDULE), ExactClassifier(MIXTURE, SCHEDULE)
X = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(5, 2)
T, LABELS = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([2, 0, 1, 1, 2])


def test_the_exact_classifier_is_bayes_rule_and_takes_any_t():
    for i, t in enumerate(T.tolist()):
        expected = MIXTURE.diffused(SCHEDULE, t).component_log_density(X).log_softmax(1)
        assert torch.allclose(CLASSIFIER(X, t), expected, atol=1e-13)
        assert torch.allclose(CLASSIFIER(X, T)[i], expected[i], atol=1e-13)
    assert CLASSIFIER(X.float(), T).dtype == torch.float32
    with pytest.raises(ValueError, match="t must"):
        CLASSIFIER(X, 0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, double([0.0, 1.0, -1.0, 3.0, 2.0])])
def test_the_exact_classifier_s_scale_is_that_of_guidance_without_one(scale):
    free, conditional = (guided(EXACT, LABELS, s, EXACT.null) for s in (0.0, 1.0))
    got = classifier_guided(free, CLASSIFIER, SCHEDULE, LABELS, scale)(X, T)
    assert (got - guided(EXACT, LABELS, scale, EXACT.null)(X, T)).abs().max() < 1e-12
    more = classifier_guided(conditional, CLASSIFIER, SCHEDULE, LABELS, scale)(X, T)
    assert (more - guided(EXACT, LABELS, scale + 1, EXACT.null)(X, T)).abs().max() < 1e-12


def test_guiding_the_noise_guides_the_mean_with_beta_over_root_alpha():
    eps, gradient = EXACT(X, 3), class_gradient(CLASSIFIER, X, torch.full((5,), 3), LABELS)
    by_noise = classifier_guided(EXACT, CLASSIFIER, SCHEDULE, LABELS, 2.0)(X, torch.full((5,), 3))
    var = SCHEDULE.beta[3] / SCHEDULE.alpha[3].sqrt()
    mean = posterior_mean_from_eps(SCHEDULE, X, eps, 3)
    got = posterior_mean_from_eps(SCHEDULE, X, by_noise, 3)
    assert (guided_mean(mean, var, gradient, 2.0) - got).abs().max() < 1e-12
    each = double([2.0] * 5)
    assert torch.equal(guided_mean(mean, var, gradient, each), guided_mean(mean, var, gradient, 2.0))


def test_it_samples_inside_no_grad_and_inference_mode_and_leaves_no_gradient():
    network = nn.Linear(2, 3).double().eval()
    eps_model = classifier_guided(EXACT, lambda x_t, t: network(x_t), SCHEDULE, LABELS, 2.0)
    with torch.inference_mode():
        inside = eps_model(X * 1, T * 1)
    assert torch.equal(inside.clone(), eps_model(X, T)) and not inside.requires_grad
    sampled = ddim_sample(eps_model, SCHEDULE, X, steps=5, clip=False)
    assert sampled.isfinite().all() and all(p.grad is None for p in network.parameters())


def test_a_scale_of_0_asks_no_classifier():
    def never(x_t, t):
        raise AssertionError("asked")

    assert torch.equal(classifier_guided(EXACT, never, SCHEDULE, LABELS, 0.0)(X, T), EXACT(X, T))


def test_what_cannot_guide_is_refused():
    network = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="training mode"):
        classifier_guided(EXACT, network, SCHEDULE, LABELS, 1.0)
    with pytest.raises(ValueError, match="finite scale"):
        classifier_guided(EXACT, CLASSIFIER, SCHEDULE, LABELS, float("inf"))
    for labels in (torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, -1, 0, 0, 0]), LABELS[:2]):
        with pytest.raises(ValueError, match=r"a label in 0\.\.2 for each of 5 examples"):
            class_gradient(CLASSIFIER, X, T, labels)
