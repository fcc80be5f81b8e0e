"""The figures: which pixel of which image lands where, what the labels say, and that nothing is left open."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ddpm_lib import plot


@pytest.fixture(autouse=True)
def no_figure_left():
    plt.close("all")
    yield
    plt.close("all")


def shown(figure):
    """The pixels that each of the figure's axes shows, None where it is empty."""
    return [np.asarray(axis.images[0].get_array()) if axis.images else None for axis in figure.axes]


def test_a_grid_shows_images_row_by_row_from_black_to_white():
    images = torch.linspace(-1, 1, 5 * 4).reshape(5, 1, 2, 2)
    pixels = shown(plot.grid(images, 3))
    assert pixels[5] is None and len(pixels) == 6
    for i in range(5):
        assert np.allclose(pixels[i], (images[i, 0].numpy() + 1) / 2, atol=1e-6)


def test_grey_images_share_one_scale_whatever_their_range():
    figure = plot.grid(torch.full((2, 1, 2, 2), 0.1), 2)
    assert all(axis.images[0].get_clim() == (0, 1) for axis in figure.axes)


def test_colours_keep_their_channels():
    red_and_grey, blue = torch.zeros(2, 3, 2, 2)
    red_and_grey[0, :, 0] = 1
    blue[:2], blue[2] = -1, 1
    pixels = shown(plot.grid(torch.stack([red_and_grey, blue]), 2))
    assert (pixels[0][:, 0] == [1, 0.5, 0.5]).all() and (pixels[0][:, 1] == 0.5).all()
    assert (pixels[1] == [0, 0, 1]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_values_outside_are_clamped(channels):
    image = torch.full((1, channels, 2, 2), 5.0)
    image[..., 0] = -5.0
    (pixels,) = shown(plot.grid(image, 1))
    assert (pixels[:, 0] == 0).all() and (pixels[:, 1] == 1).all()


def test_labels_stand_over_their_columns_and_beside_their_rows():
    figure = plot.grid(
        torch.zeros(4, 1, 2, 2), 2, column_labels=["0", "1"], row_labels=["plain", "guided"], title="digits"
    )
    first, second, third, _ = figure.axes
    assert [axis.get_title() for axis in (first, second, third)] == ["0", "1", ""]
    assert [axis.get_ylabel() for axis in (first, second, third)] == ["plain", "", "guided"]
    assert figure.get_suptitle() == "digits"


def test_panels_are_labelled_on_both_axes():
    _, (left, right) = plot.panels(2)
    left.plot([0, 1], label="line")
    plot.label(left, "t", "β", title="schedule", legend=True)
    right.plot([0, 1], label="line")
    plot.label(right, "t", "β")
    assert (left.get_xlabel(), left.get_ylabel(), left.get_title()) == ("t", "β", "schedule")
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["line"]
    assert right.get_legend() is None


def test_a_saved_figure_is_a_picture_and_is_closed(tmp_path):
    plot.save(plot.grid(torch.zeros(1, 1, 2, 2), 1), tmp_path / "picture.of.digits")
    assert plt.imread(tmp_path / "picture.of.digits", format="png").ndim == 3
    assert not plt.get_fignums()
