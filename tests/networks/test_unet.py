"""The U-Net and its time embedding: what its output depends on, plain loops beside its parts, and what it refuses."""

import copy
import inspect

import pytest
import torch
from torch import nn

from ddpm_lib.networks.blocks import Down, ResidualBlock, SelfAttention, Up, norm
from ddpm_lib.networks.embedding import timestep_embedding
from ddpm_lib.networks.unet import UNet

SMALL = dict(size=8, channels=2, width=8, multipliers=(1, 2), blocks=1, groups=4, attention=(4,), head_channels=8)


def small(perturbed=True, **options):
    """A small network in float64 and evaluation mode; what starts at zero is moved away from it where `perturbed`."""
    torch.manual_seed(0)
    network = UNet(**{**SMALL, "classes": 3, **options}).double().eval()
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
        ({"extra": torch.zeros(3, 8)}, r"an extra embedding of shape \(3, 32\); got \(3, 8\)"),
        ({"extra": torch.zeros(1, 32)}, r"an extra embedding of shape \(3, 32\); got \(1, 32\)"),
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
        ({"head_channels": 3}, "heads of 3 channels do not divide 16 channels"),
        ({"head_channels": -8}, "heads of -8 channels"),
        ({"groups": 3}, "groups of two channels or more that divide 8 channels evenly; got 3 groups"),
        ({"groups": 8}, "divide 8 channels evenly; got 8 groups"),  # of one channel each
        ({"groups": 0}, "got 0 groups"),
        ({"multipliers": ()}, r"multipliers of at least 1 .*; got \(\) and 8"),
        ({"multipliers": (1, 0)}, r"multipliers of at least 1 .*; got \(1, 0\) and 8"),
        ({"width": 9}, "an even width of at least 4; got .* and 9"),
        ({"blocks": 0}, "blocks and channels of at least 1 .*; got 0, 2 and 3"),
        ({"channels": 0}, "got 1, 0 and 3"),
        ({"classes": -1}, "classes of at least 0; got 1, 2 and -1"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        small(**options)


@pytest.mark.parametrize("width", [2, 7, 0])
def test_an_embedding_without_pairs_is_refused(width):
    with pytest.raises(ValueError, match=f"even and >= 4, got {width}"):
        timestep_embedding(torch.tensor([1]), width)


def test_without_a_size_there_is_one_head_of_all_channels():
    torch.manual_seed(0)
    one, all_of_them = (SelfAttention(8, groups=2, head_channels=size) for size in (0, 8))
    all_of_them.load_state_dict(one.state_dict())
    assert one.heads == all_of_them.heads == 1 and SelfAttention(8, groups=2, head_channels=2).heads == 4


def test_halving_by_a_convolution_pads_right_and_bottom():
    torch.manual_seed(0)
    down, x = Down(2, learned=True).double(), torch.randn(1, 2, 4, 6).double()
    padded = torch.zeros(1, 2, 5, 7).double()
    padded[:, :, :4, :6] = x
    expected = torch.empty(1, 2, 2, 3).double()
    for row in range(2):
        for column in range(3):
            patch = padded[0, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[0, :, row, column] = (down.conv.weight * patch).sum((1, 2, 3)) + down.conv.bias
    assert (down(x) - expected).abs().max() < 1e-12
    elsewhere = nn.functional.conv2d(x, down.conv.weight, down.conv.bias, stride=2, padding=1)  # left and top, too
    assert (down(x) - elsewhere).abs().max() > 0.1


def test_plain_resampling_averages_squares_and_repeats_pixels():
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    down, up = Down(2, learned=False), Up(2, learned=False)
    assert not list(down.parameters()) and not list(up.parameters())
    small = down(x[:, :, :2])
    assert small.tolist() == [[[[2.5, 4.5]], [[14.5, 16.5]]]]
    assert torch.equal(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(down(up(x)), x)


def test_learned_enlarging_convolves_repeated_pixels():
    torch.manual_seed(0)
    up, x = Up(2, learned=True), torch.randn(1, 2, 3, 3)
    assert torch.equal(up(x), up.conv(Up(2, learned=False)(x)))


@pytest.mark.parametrize("options", [{"learned_resampling": False}, {"scale_shift": True}, {"head_channels": 0}])
def test_the_network_has_what_its_options_name(options):
    plain, other = small(), small(**options)
    assert small(**options)(*inputs()).std() > 0
    counts = [sum(p.numel() for p in network.parameters()) for network in (plain, other)]
    expected = {
        "learned_resampling": -(9 * 8 * 8 + 8) - (9 * 16 * 16 + 16),  # no convolution of 8 channels down, of 16 up
        "scale_shift": (32 + 1) * (8 + 16 + 2 * 16 + 2 * 16 + 2 * 8),  # as many numbers again from each embedding
        "head_channels": 0,
    }
    assert counts[1] - counts[0] == expected[next(iter(options))]


def test_the_norm_has_the_groups_it_was_given():
    layers = [module for module in small().modules() if isinstance(module, nn.GroupNorm)]
    assert {layer.num_groups for layer in layers} == {4} and {layer.eps for layer in layers} == {1e-6}
    for c, groups in ((8, 3), (8, 8), (8, 16), (4, 0), (4, -2)):
        with pytest.raises(ValueError, match=f"divide {c} channels evenly; got {groups} groups"):
            norm(c, groups)


def test_an_extra_embedding_is_added_to_that_of_t_and_label():
    network, (x_t, t, labels) = small(), inputs()
    extra = torch.randn(3, network.embed_width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert network.embed_width == 32
    assert torch.equal(network(x_t, t, labels, torch.zeros_like(extra)), network(x_t, t, labels))
    told = network(x_t, t, labels, extra)
    assert ((told - network(x_t, t, labels)).abs().amax((1, 2, 3)) > 1e-3).all()
    for i in range(3):  # the same by hand: each image's extra in the label's place
        with torch.no_grad():
            other = copy.deepcopy(network)
            other.label.weight[labels[i]] += extra[i]
            assert (other(x_t, t, labels) - told)[i].abs().max() < 1e-12
    unlabelled = small(classes=0)
    assert not torch.equal(unlabelled(x_t, t, extra=extra), unlabelled(x_t, t))


def test_the_label_s_row_is_added_to_the_time_s_embedding():
    network, (x_t, t, labels) = small(), inputs()
    assert network.label.weight.shape == (4, 32)
    alike = copy.deepcopy(network)
    with torch.no_grad():  # all labels made like label 1
        alike.label.weight.copy_(network.label.weight[1])
    assert torch.equal(alike(x_t, t, labels), network(x_t, t, torch.ones_like(labels)))


def test_the_gradient_is_that_of_finite_differences():
    network = small(size=4, channels=1, width=4, groups=2, scale_shift=True, attention=())
    x_t, t, labels = inputs(2, side=4, channels=1)
    x_t.requires_grad_()
    extra = torch.zeros(2, 16, dtype=torch.float64, requires_grad=True)

    def run(x_t, extra, *_):
        return network(x_t, t, labels, extra)

    assert torch.autograd.gradcheck(run, (x_t, extra, *network.parameters()), fast_mode=True)


def backward(network, batch, seed=0):
    """The gradients of a step, by name, and the bytes of activations that the step kept for it."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()] = tensor  # held: none moves in
        return tensor

    network.zero_grad()
    torch.manual_seed(seed)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = network(*batch).square().mean()
    held = {key[0] for key in kept} - {p.untyped_storage().data_ptr() for p in network.parameters()}
    bytes_kept = sum(size for address, size in kept if address in held)
    kept.clear()
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}, bytes_kept


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less(dropout):
    batch = (*inputs(), torch.randn(3, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    plain = small(dropout=dropout, multipliers=(1, 2, 2), blocks=2, gradient_checkpointing=False).train()
    lean = small(dropout=dropout, multipliers=(1, 2, 2), blocks=2, gradient_checkpointing=True).train()
    (expected, much), (got, little) = backward(plain, batch), backward(lean, batch)
    assert len(got) == len(expected) and all(gradient is not None for gradient in got.values())
    for name, gradient in got.items():
        assert torch.equal(gradient, expected[name]), name
    assert little < much / 3
    other, _ = backward(plain, batch, seed=1)
    assert all(torch.equal(other[name], gradient) for name, gradient in expected.items()) == (dropout == 0)
    with torch.no_grad():
        assert torch.equal(lean.eval()(*batch), plain.eval()(*batch))


def test_the_configuration_builds_the_same_network_again():
    network = small(scale_shift=True, dropout=0.2)
    assert network.config.keys() == inspect.signature(UNet).parameters.keys()
    again = UNet(**network.config)
    assert again.config == network.config
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}
    assert network.config["dropout"] == 0.2 and network.config["multipliers"] == (1, 2)


def test_a_copy_of_the_weights_is_the_same_network():
    network, batch = small(), inputs()
    other = small(perturbed=False)
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    assert torch.equal(network(*batch), other(*batch))
