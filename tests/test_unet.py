"""The U-Net and its time embedding: what its output depends on, plain loops beside its parts, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn

from ddpm_lib.embedding import timestep_embedding
from ddpm_lib.unet import ResidualBlock, SelfAttention, UNet, norm


def small(perturbed=True, **options):
    """A small network in float64 and evaluation mode; what starts at zero is moved away from it where `perturbed`."""
    defaults = dict(size=8, channels=2, width=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, classes=3)
    torch.manual_seed(0)
    network = UNet(**{**defaults, **options}).double().eval()
    if perturbed:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return network


def inputs(batch=3, side=8, channels=2):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, channels, side, side, generator=generator, dtype=torch.float64)
    return x_t, torch.tensor([1, 40, 1000][:batch]), torch.tensor([2, 0, 1][:batch])


def on_paper(**options):
    """A network of full size whose tensors have shapes and no values."""
    with torch.device("meta"):
        return UNet(**options)


def test_the_default_network_has_as_many_parameters_as_ddpm_s_for_cifar_10():
    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    # Ho et al. print 35.7 million; their released checkpoint for CIFAR-10 holds exactly these.
    assert count(on_paper()) == 35_746_307
    assert count(on_paper(classes=10)) - count(on_paper()) == 11 * 512  # ten labels and none, as wide as the time


def test_the_default_network_has_ddpm_s_blocks_in_ddpm_s_places():
    network, sides = on_paper(), []
    for module in network.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    with torch.device("meta"):
        network(torch.zeros(1, 3, 32, 32), torch.ones(1, dtype=torch.int64))
    assert sides == [16, 16, 4, 16, 16, 16]  # six, of which one in the middle
    assert sum(isinstance(module, ResidualBlock) for module in network.modules()) == 22


def test_a_new_network_returns_zero():
    assert (small(perturbed=False)(*inputs()) == 0).all()
    assert (small()(*inputs()) != 0).all()


@pytest.mark.parametrize("side", [2, 4, 6, 8, 12])
def test_any_side_that_can_be_halved_works(side):
    out = small()(*inputs(side=side))
    assert out.shape == (3, 2, side, side) and out.isfinite().all() and out.std() > 0


@pytest.mark.parametrize("options", [{"multipliers": (1, 2, 2), "attention": (8, 2), "blocks": 2}, {"attention": ()}])
def test_other_depths_work(options):
    out = small(**options)(*inputs())
    assert out.shape == (3, 2, 8, 8) and out.std() > 0


# Group norm mixes a whole image too. Without it, what links two far corners is attention.
def test_every_output_pixel_sees_every_input_pixel():
    network = small(size=32, attention=())  # attention in the middle only
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    x_t, t, labels = inputs(1, side=32)
    x_t.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x_t, t, labels)[0, 0, 0, 0], x_t)
    assert (gradient != 0).all()


def test_the_output_depends_on_t_and_on_the_label():
    network, (x_t, t, labels) = small(), inputs()
    out = network(x_t, t, labels)
    for other in (network(x_t, t + torch.tensor([1, -1, -1]), labels), network(x_t, t, (labels + 1) % 3)):
        assert ((out - other).abs().amax((1, 2, 3)) > 1e-4).all()


def test_the_null_label_is_no_label():
    network, (x_t, t, labels) = small(), inputs()
    null = network(x_t, t, torch.full((3,), network.null))
    assert network.null == 3
    assert torch.equal(network(x_t, t), null)
    assert ((network(x_t, t, labels) - null).abs().amax((1, 2, 3)) > 1e-4).all()


def test_an_example_s_output_does_not_depend_on_the_others():
    network, (x_t, t, labels) = small(), inputs()
    out = network(x_t, t, labels)
    for i in range(3):
        alone = network(x_t[i : i + 1], t[i : i + 1], labels[i : i + 1])
        assert (alone - out[i : i + 1]).abs().max() < 1e-12


def test_dropout_acts_in_training_only():
    network, batch = small(dropout=0.5), inputs()
    assert torch.equal(network(*batch), network(*batch))
    network.train()
    assert not torch.equal(network(*batch), network(*batch))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"x_t": torch.zeros(3, 2, 7, 7)}, r"\(B, 2, S, S\) with S a multiple of 2; got \(3, 2, 7, 7\)"),
        ({"x_t": torch.zeros(3, 2, 8, 4)}, r"got \(3, 2, 8, 4\)"),
        ({"x_t": torch.zeros(3, 1, 8, 8)}, r"\(B, 2, S, S\).*got \(3, 1, 8, 8\)"),
        ({"x_t": torch.zeros(3, 2, 8)}, r"got \(3, 2, 8\)"),
        ({"x_t": torch.zeros(3, 2, 8, 8, 1)}, r"got \(3, 2, 8, 8, 1\)"),
        ({"t": torch.tensor([1, 2])}, r"t of shape \(3,\), one per image; got \(2,\)"),
        ({"t": torch.tensor(1)}, r"t of shape \(3,\), one per image; got \(\)"),
        ({"labels": torch.tensor([0])}, r"labels of shape \(3,\), one per image; got \(1,\)"),
        ({"labels": torch.tensor([0, 4, 1])}, r"0\.\.2, or 3 for no label; got \[0, 4, 1\]"),
        ({"labels": torch.tensor([0, -1, 1])}, r"0\.\.2, or 3 for no label; got \[0, -1, 1\]"),
    ],
)
def test_wrong_inputs_are_refused(change, complaint):
    x_t, t, labels = inputs()
    with pytest.raises(ValueError, match=complaint):
        small()(**({"x_t": x_t, "t": t, "labels": labels} | change))


def test_an_unconditional_network_refuses_labels():
    x_t, t, labels = inputs()
    network = small(classes=0)
    assert network(x_t, t).std() > 0
    with pytest.raises(ValueError, match="unconditional"):
        network(x_t, t, labels)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": 10, "multipliers": (1, 2, 2)}, "size 10 cannot be halved 2 times, as 3 levels need"),
        ({"attention": (4, 16)}, r"attention at side 16: the levels have sides \[8, 4\]"),
        ({"heads": 3}, "3 attention heads do not divide 16 channels"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        small(**options)


def embedding_by_hand(t, width, shift=1, cosines_first=False):
    """One row, number by number: sines of (t − 1)·ω, then cosines; ω falls from 1 to 1/10,000 by equal factors."""
    half = width // 2
    angles = [(t - shift) * 10_000 ** (-i / (half - 1)) for i in range(half)]
    sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
    return cosines + sines if cosines_first else sines + cosines


def rows_instead_of_columns(t, width):
    """A circulated bug: the sine was put on even rows and the cosine of the *sine* on odd ones."""
    table = torch.tensor([embedding_by_hand(int(k), width)[: width // 2] for k in t]).repeat(1, 2)
    table[1::2] = table[1::2].cos()
    return table


def test_the_time_embedding_is_what_a_plain_loop_gives_and_known_wrong_ones_are_not():
    t, width, tolerance = torch.tensor([1, 2, 3, 17, 500, 1000]), 16, 5e-4  # float32 angles up to 999
    got = timestep_embedding(t, width).double()

    def distance(table):
        return (got - torch.as_tensor(table, dtype=torch.float64)).abs().max()

    assert distance([embedding_by_hand(int(k), width) for k in t]) < tolerance
    for wrong in (
        [embedding_by_hand(int(k), width, shift=0) for k in t],  # t for t − 1
        [embedding_by_hand(int(k), width, cosines_first=True) for k in t],
        rows_instead_of_columns(t, width),
    ):
        assert distance(wrong) > 10 * tolerance


@pytest.mark.parametrize("width", [2, 7, 0])
def test_an_embedding_without_pairs_is_refused(width):
    with pytest.raises(ValueError, match=f"even and >= 4, got {width}"):
        timestep_embedding(torch.tensor([1]), width)


def test_attention_is_what_a_plain_loop_over_heads_and_pixels_gives():
    torch.manual_seed(0)
    c, heads, side = 8, 2, 3
    layer, size = SelfAttention(c, heads).double(), c // heads
    assert (layer.out.weight == 0).all()  # it starts as the identity
    nn.init.normal_(layer.out.weight)
    x = torch.randn(2, c, side, side, dtype=torch.float64)
    expected = torch.zeros_like(x).flatten(2)
    for b in range(2):
        pixels = layer.norm(x)[b].flatten(1).detach()  # (C, H·W)
        q, k, v = (torch.einsum("oc,cp->op", w[:, :, 0, 0], pixels) for w in layer.qkv.weight.detach().chunk(3))
        q, k, v = (part + bias[:, None] for part, bias in zip((q, k, v), layer.qkv.bias.detach().chunk(3), strict=True))
        for head in range(heads):
            mine = slice(head * size, (head + 1) * size)
            for pixel in range(side * side):
                scores = [float(q[mine, pixel] @ k[mine, other]) / size**0.5 for other in range(side * side)]
                total = sum(math.exp(score) for score in scores)
                for other, score in enumerate(scores):
                    expected[b, mine, pixel] += math.exp(score) / total * v[mine, other]
    expected = x + layer.out(expected.reshape(x.shape))
    assert (layer(x) - expected).abs().max() < 1e-12


def test_a_group_of_the_norm_holds_four_channels_or_more():
    for c in range(4, 513):
        groups = norm(c).num_groups
        assert c // groups >= 4 and 32 % groups == 0
        assert groups == 32 or c % 128 != 0, "32 groups, as in DDPM, wherever they fit"


def test_a_copy_of_the_weights_is_the_same_network():
    network, batch = small(), inputs()
    other = small(perturbed=False)
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    assert torch.equal(network(*batch), other(*batch))
