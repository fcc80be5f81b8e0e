"""Self-attention: PyTorch's fused kernel is the one that runs, what it saves, and that its answers are the same."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddpm_lib.networks.blocks import SelfAttention
from ddpm_lib.networks.unet import UNet

FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
every_format = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)


class WithTheTable(SelfAttention):
    """The same layer, with the table of all scores written out."""

    def forward(self, x):
        qkv = self.qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b (three n c) h w -> three b n (h w) c", three=3, n=self.heads)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return x + self.out(rearrange(weights @ v, "b n (h w) c -> b (n c) h w", h=x.shape[2]))


def layers(c, head_channels):
    """The library's layer and the one with the table, with the same weights, none of them zero."""
    torch.manual_seed(0)
    ours, table = (kind(c, groups=2, head_channels=head_channels) for kind in (SelfAttention, WithTheTable))
    torch.nn.init.normal_(ours.out.weight, std=0.1)
    table.load_state_dict(ours.state_dict())
    return ours, table


def image(c, side, dtype=torch.float32, batch=2, memory_format=torch.contiguous_format):
    x = torch.randn(batch, c, *side, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x.contiguous(memory_format=memory_format).requires_grad_()


def kept(layer, x):
    """Bytes of activations that the layer saves for its backward pass."""
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)


@pytest.fixture
def chosen(monkeypatch):
    """The kernels that PyTorch chooses while a test runs."""
    kernels, attend = [], F.scaled_dot_product_attention

    def noted(q, k, v):
        kernels.append(SDPBackend(torch._fused_sdp_choice(q, k, v)))
        return attend(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return kernels


# On a GPU the fused kernels ask for the same layout; which of them runs depends on the dtype.
@every_format
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("c", "head_channels"), [(64, 0), (64, 64), (64, 32), (64, 8), (8, 2), (256, 0)])
def test_the_fused_kernel_is_chosen(chosen, c, head_channels, dtype, training, memory_format):
    ours, _ = layers(c, head_channels)
    ours = ours.to(dtype).train(training)
    for side in ((8, 8), (1, 1), (3, 5), (1, 7), (7, 1)):
        for batch in (1, 3, 16):
            with torch.set_grad_enabled(training), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # any other one raises
                out = ours(image(c, side, dtype, batch, memory_format))
            if training:
                out.sum().backward()
    assert set(chosen) == {SDPBackend.FLASH_ATTENTION} and len(chosen) == 15


def test_the_fused_kernel_is_chosen_in_the_whole_network(chosen):
    network = UNet(size=8, width=8, multipliers=(1, 2), blocks=1, groups=4, attention=(8, 4), head_channels=8)
    network(torch.randn(2, 3, 8, 8), torch.tensor([1, 2])).sum().backward()
    network.to(memory_format=torch.channels_last).eval()
    network(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.tensor([1, 2]))
    assert chosen == [SDPBackend.FLASH_ATTENTION] * 14  # seven layers, twice


@every_format
def test_no_table_of_scores_is_kept_for_the_backward_pass(memory_format):
    """Kept: the input twice (norm and its result), q, k, v and the answer, and a number a pixel and head; no N × N."""
    for c, head_channels, side in ((32, 0, 32), (32, 8, 32), (64, 16, 24)):
        (ours, table), x = layers(c, head_channels), image(c, (side, side), batch=1, memory_format=memory_format)
        one_image, pixels = x.nbytes, side**2
        least = 4 * pixels**2 * ours.heads
        assert kept(ours, x) < 6 * one_image + 4 * pixels * ours.heads + 1024
        assert kept(table, x) > least and least > 2 * kept(ours, x)


@every_format
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("head_channels", [0, 8, 1])
def test_answers_and_gradients_are_those_of_the_table(head_channels, dtype, within, memory_format):
    results = []
    for layer in layers(16, head_channels):
        x = image(16, (3, 5), dtype, memory_format=memory_format)
        out = layer.to(dtype)(x)
        assert out.is_contiguous(memory_format=memory_format)
        gradients = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
        results.append([out.detach(), *gradients])
    for ours, table in zip(*results, strict=True):
        assert (ours - table).abs().max() < within * (1 + table.abs().max())


def test_second_derivatives_need_the_kernel_without_fusion():
    ours, table = (layer.double() for layer in layers(8, 4))

    def curvature(layer):
        x = image(8, (2, 3), torch.float64)
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    with pytest.raises(RuntimeError, match="flash_attention"):
        curvature(ours)
    with sdpa_kernel(SDPBackend.MATH):
        assert (curvature(ours) - curvature(table)).abs().max() < 1e-9
