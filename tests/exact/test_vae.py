"""The VAE's parts beyond their equations: bad input, shapes, gradients, and that training raises the bound."""

import pytest
import torch

from ddpm_lib.exact.vae import VAE, LinearVAE, elbo, linear_model
from ddpm_lib.images.data import digits

DOUBLE = {"dtype": torch.float64}


def inputs(B=3, K=2, shape=(1, 2, 2)):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(B, *shape, generator=generator, **DOUBLE)
    return x, *torch.randn(3, B, K, generator=generator, **DOUBLE)


def to_image(z):
    return torch.stack([z[:, 0], z[:, 1], z.sum(1), z[:, 0] * z[:, 1]], 1).reshape(-1, 1, 2, 2)


def test_each_example_has_its_own_two_numbers():
    x, mean, log_var, eps = inputs()
    parts = elbo(x, mean, log_var, to_image, 0.2, eps)
    for i in range(3):
        alone = elbo(*(v[i : i + 1] for v in (x, mean, log_var)), to_image, 0.2, eps[i : i + 1])
        for part, one in zip(parts, alone, strict=True):
            assert part.shape == (3,) and part[i].item() == pytest.approx(one.item(), rel=1e-12)
    assert (parts[1] >= 0).all()


def test_a_decoder_s_variance_may_be_a_number_a_tensor_or_one_for_each_pixel():
    x, mean, log_var, eps = inputs()
    number, _ = elbo(x, mean, log_var, to_image, 0.2, eps)
    for same in (torch.tensor(0.2, **DOUBLE), torch.full((1, 2, 2), 0.2, **DOUBLE)):
        assert torch.allclose(elbo(x, mean, log_var, to_image, same, eps)[0], number)


@pytest.mark.parametrize("name", ["mean", "log_var", "eps"])
def test_shapes_that_would_broadcast_are_refused(name):
    x, mean, log_var, eps = inputs()
    arguments = {"mean": mean, "log_var": log_var, "eps": eps}
    arguments[name] = arguments[name][:1]
    with pytest.raises(
        ValueError, match=r"expected mean, log_var and eps of one shape \(B, K\) with B = 3; got .*1, 2"
    ):
        elbo(x, decode=to_image, decoder_var=0.2, **arguments)


def test_an_encoder_of_another_batch_is_refused():
    x, mean, log_var, eps = inputs()
    with pytest.raises(ValueError, match="with B = 2"):
        elbo(x[:2], mean, log_var, to_image, 0.2, eps)


def test_a_decoder_of_another_shape_is_refused():
    x, mean, log_var, eps = inputs()
    with pytest.raises(ValueError, match=r"decode returned shape \(3, 4\); expected that of x, \(3, 1, 2, 2\)"):
        elbo(x, mean, log_var, lambda z: to_image(z).flatten(1), 0.2, eps)


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [((4, 3), (2, 3), (3,)), ((4, 3), (3, 2), (2,)), ((3,), (3, 2), (3,)), ((4, 3), (3,), (3,))],
)
def test_a_linear_model_whose_shapes_do_not_fit_is_refused(x, weight, bias):
    with pytest.raises(ValueError, match=r"expected x \(B, D\), weight \(D, K\) and bias \(D,\)"):
        linear_model(torch.zeros(x), torch.zeros(weight), torch.zeros(bias), 0.1)


@pytest.mark.parametrize("sizes", [{"latents": 0}, {"hidden": 0}, {"shape": (1, 0, 8)}])
def test_a_vae_without_size_is_refused(sizes):
    with pytest.raises(ValueError, match="sizes of at least 1"):
        VAE(**sizes)


@pytest.mark.parametrize(("shape", "latents"), [((1, 8, 8), 8), ((3, 4, 6), 2), ((1, 1, 1), 1)])
def test_a_vae_has_the_shapes_that_it_promises(shape, latents):
    model = VAE(shape, latents, hidden=16)
    x, eps = torch.rand(5, *shape), torch.randn(5, latents)
    mean, log_var = model.encode(x)
    assert mean.shape == log_var.shape == (5, latents)
    assert model.decode(eps).shape == (5, *shape)
    for part in model(x, eps):
        assert part.shape == (5,) and part.dtype == torch.float32 and part.isfinite().all()


def test_a_vae_is_for_small_images_unless_it_is_told_otherwise():
    model = VAE()
    assert model.shape == (1, 8, 8) and model.latents == 8
    sizes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim == 2]
    assert sizes == [(128, 64), (128, 128), (16, 128), (128, 8), (128, 128), (64, 128)]
    assert model.decoder_log_var.exp().item() == pytest.approx(0.1)


def test_mean_and_log_variance_are_different_outputs():
    mean, log_var = VAE(latents=4).encode(torch.rand(3, 1, 8, 8))
    assert not torch.isclose(mean, log_var).any()


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    linear = LinearVAE(torch.randn(3, 2), torch.randn(3), 0.3)
    for model, x, latents in ((VAE(), torch.rand(4, 1, 8, 8), 8), (linear, torch.randn(4, 3), 2)):
        reconstruction, kl = model(x, torch.randn(4, latents))
        (kl - reconstruction).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("part", ["mean", "log_var"])
def test_the_gradients_are_those_of_differences(part):
    x, mean, log_var, eps = inputs()
    values = {"mean": mean, "log_var": log_var}

    def bound(moved):
        reconstruction, kl = elbo(x, decode=to_image, decoder_var=0.2, eps=eps, **{**values, part: moved})
        return (reconstruction - kl).sum()

    assert torch.autograd.gradcheck(bound, values[part].clone().requires_grad_())


def test_a_linear_vae_starts_at_the_prior_and_owns_its_parameters():
    weight, bias = torch.randn(3, 2, **DOUBLE), torch.randn(3, **DOUBLE)
    model, kept = LinearVAE(weight, bias, 0.3), weight.clone()
    _, kl = model(torch.randn(5, 3, **DOUBLE), torch.randn(5, 2, **DOUBLE))
    assert torch.equal(kl, torch.zeros(5, **DOUBLE))
    with torch.no_grad():
        model.weight += 1
    assert torch.equal(weight, kept)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_linear_vae_with_the_exact_posterior_has_no_gap():
    weight, x = torch.tensor([[1.0, 0], [0, 2], [0, 0.5]], **DOUBLE), torch.randn(6, 3, **DOUBLE)
    model = LinearVAE(weight, torch.tensor([0.1, -0.2, 0.3], **DOUBLE), 0.4)
    evidence, _, cov = model.exact(x)
    with torch.no_grad():
        model.encoder_weight.copy_(cov @ weight.T / 0.4)
        model.encoder_bias.copy_(-model.encoder_weight @ model.bias)
        model.encoder_log_var.copy_(cov.diagonal().log())
        # one sample is enough: with the posterior, log p(x, z) − log q(z|x) is log p(x) whatever z is; here on average
        corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], **DOUBLE)
        bounds = [torch.sub(*model(x, corner.expand(6, 2))) for corner in corners]
    assert torch.allclose(torch.stack(bounds).mean(0), evidence, atol=1e-12)


def test_the_exact_posterior_does_not_depend_on_the_batch_and_keeps_the_dtype():
    x, weight, bias = torch.randn(5, 4), torch.randn(4, 2), torch.randn(4)
    evidence, mean, cov = linear_model(x, weight, bias, 0.2)
    assert evidence.shape == (5,) and mean.shape == (5, 2) and cov.shape == (2, 2)
    assert evidence.dtype == mean.dtype == cov.dtype == torch.float32
    alone = linear_model(x[3:4], weight, bias, 0.2)
    assert torch.allclose(alone[0], evidence[3:4], atol=1e-5) and torch.allclose(alone[1], mean[3:4], atol=1e-5)


def test_more_latents_than_pixels_are_allowed():
    evidence, mean, cov = linear_model(torch.randn(3, 2), torch.randn(2, 5), torch.zeros(2), 0.1)
    assert mean.shape == (3, 5) and cov.shape == (5, 5) and evidence.isfinite().all()


def test_training_raises_the_bound_on_held_out_digits():
    train, held_out = digits()
    torch.manual_seed(0)
    model = VAE(latents=4, hidden=64)
    eps = torch.randn(len(held_out), 4)

    def bound():
        with torch.no_grad():
            reconstruction, kl = model(held_out.images, eps)
        return (reconstruction - kl).mean().item()

    before, optimizer = bound(), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        x = train.images[torch.randint(len(train), (64,))]
        reconstruction, kl = model(x, torch.randn(64, 4))
        optimizer.zero_grad()
        (kl - reconstruction).mean().backward()
        optimizer.step()
    assert bound() > before + 30


def test_the_linear_model_has_one_variance():
    x, weight = torch.zeros(3, 2, **DOUBLE), torch.eye(2, **DOUBLE)
    with pytest.raises(ValueError, match="one decoder_var"):
        linear_model(x, weight, torch.zeros(2, **DOUBLE), torch.tensor([0.1, 0.2], **DOUBLE))
