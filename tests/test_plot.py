"""The figures: which pixel of which image lands where, what the labels say, and that nothing is left open."""

import io
import warnings
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import plot

PAPER = 255


@pytest.fixture(autouse=True)
def no_figure_left():
    plt.close("all")
    yield
    plt.close("all")


def dots(figure):
    """The dots of the picture as they are painted, without the labels around it: (height, width, 3), 0 to 255."""
    figure.canvas.draw()
    (axes,) = figure.axes
    painted = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    left, bottom, right, top = (round(edge) for edge in axes.get_window_extent().extents)
    return painted[len(painted) - top : len(painted) - bottom, left:right]


def expected(images, columns, zoom, gap):
    """The same by hand: every pixel a square of zoom × zoom dots, every image in its place, paper between them."""
    n, _, height, width = images.shape
    down, across, rows = (height + gap) * zoom, (width + gap) * zoom, -(-n // columns)
    picture = np.full((down * rows - gap * zoom, across * columns - gap * zoom, 3), PAPER)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                top, left = down * (i // columns) + y * zoom, across * (i % columns) + x * zoom
                picture[top : top + zoom, left : left + zoom] = np.rint(127.5 * (images[i, :, y, x].numpy() + 1))
    return picture


@pytest.mark.parametrize(("n", "columns"), [(2000, 1), (2000, 2000), (1500, 1000)])
def test_very_many_images_can_be_painted_all_the_same(n, columns):
    images = torch.full((n, 1, 8, 8), -1.0)
    found = dots(plot.grid(images, columns))
    assert 9 * max(columns, n // columns) <= max(found.shape) < 2**16 and (found[:8, :8] == 0).all()


@pytest.mark.parametrize("labels", [{}, {"column_labels": "abc", "row_labels": ["one", "two"], "title": "a title"}])
@pytest.mark.parametrize(("n", "columns"), [(5, 3), (6, 3), (1, 1), (3, 1), (2, 3), (3, 3)])
@pytest.mark.parametrize(
    ("channels", "side", "zoom", "gap"), [(1, (8, 8), 7, 1), (3, (32, 32), 2, 2), (1, (8, 20), 7, 1)]
)
def test_every_pixel_is_a_square_in_its_place_and_all_else_is_paper(channels, side, zoom, gap, n, columns, labels):
    images = torch.rand(n, channels, *side, generator=torch.Generator().manual_seed(n)) * 2 - 1
    figure = plot.grid(images, columns, **labels)
    assert np.array_equal(dots(figure), expected(images, columns, zoom, gap))


def test_a_saved_grid_has_the_same_dots(tmp_path):
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    figure = plot.grid(images, 3, title="a title")
    figure.canvas.draw()
    painted = np.asarray(figure.canvas.buffer_rgba())
    plot.save(figure, tmp_path / "grid.png")
    assert np.array_equal(np.rint(255 * plt.imread(tmp_path / "grid.png")).astype(np.uint8), painted)


def test_one_picture_holds_them_all():
    figure = plot.grid(torch.zeros(900, 1, 8, 8), 30)
    assert len(figure.axes) == 1 and len(figure.axes[0].images) == 1


@pytest.mark.parametrize(
    ("side", "dots_high"), [(2, 66), (8, 63), (16, 68), (28, 60), (32, 68), (64, 68), (96, 68), (512, 69)]
)
def test_an_image_takes_about_its_cell_whatever_its_size(side, dots_high):
    image = torch.zeros(2, 1, side, side)
    two, one = (len(dots(plot.grid(image[:rows], 1))) for rows in (2, 1))
    assert abs((two - one) - dots_high) <= 1
    assert len(dots(plot.grid(image[:1], 1, cell=1.44))) > 1.4 * one


def test_images_larger_than_their_cell_are_averaged_not_picked_from():
    stripes = torch.ones(1, 1, 256, 256)
    stripes[..., ::2] = -1
    inner = dots(plot.grid(stripes, 1))[8:-8, 8:-8]
    assert abs(inner.mean() - 127.5) < 5 and inner.std() < 40


@pytest.mark.parametrize("channels", [1, 3])
def test_values_outside_are_clamped_and_one_scale_serves_all(channels):
    image = torch.full((4, channels, 8, 8), 5.0)
    image[1], image[2], image[3] = float("-inf"), 0.1, float("inf")
    found = dots(plot.grid(image, 4))
    assert [found[0, 63 * i].tolist() for i in range(4)] == [[255] * 3, [0] * 3, [140] * 3, [255] * 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_not_a_number_is_left_blank(channels):
    images = torch.full((3, channels, 8, 8), -1.0)
    images[1] = float("nan")
    images[2, -1, 0, 1] = float("nan")  # one channel is enough
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dots(plot.grid(images, 3))
    assert (found[:56, :56] == 0).all() and (found[:56, 63:119] == PAPER).all()
    blank = np.zeros((8, 8), dtype=bool)
    blank[0, 1] = True
    assert ((found[3::7, 129::7] == PAPER).all(-1) == blank).all()


def test_what_holds_no_image_has_the_figure_s_own_colour():
    with plt.rc_context({"figure.facecolor": "#ffeecc"}):
        found = dots(plot.grid(torch.full((3, 1, 8, 8), -1.0), 2))
    images = np.zeros(found.shape[:2], dtype=bool)
    images[:56, :56] = images[:56, 63:] = images[63:, :56] = True
    assert (found[images] == 0).all() and (found[~images] == (255, 238, 204)).all()


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (2, 2, 8, 8), (2, 8, 8, 3), (0, 1, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected images \(N, C, H, W\), one at least, with C = 1 or 3; got \("):
        plot.grid(torch.zeros(shape), 2)


def test_labels_stand_over_their_columns_and_beside_their_rows_and_all_are_on_the_page():
    columns, rows = ["0", "a wide one", "2"], ["plain", "guided, much longer"]
    figure = plot.grid(torch.zeros(6, 1, 8, 8), 3, column_labels=columns, row_labels=rows, title="digits " * 9)
    figure.canvas.draw()
    (axes,) = figure.axes
    over, beside, box = axes.get_xticklabels(), axes.get_yticklabels(), axes.get_window_extent()
    assert [text.get_text() for text in over] == columns and [text.get_text() for text in beside] == rows
    assert axes.get_title() == "digits " * 9
    for i, text in enumerate(over):
        place = text.get_window_extent()
        assert abs((place.x0 + place.x1) / 2 - (box.x0 + 63 * i + 28)) < 1.5 and 0 < place.y0 - box.y1 < 12
    for i, text in enumerate(beside):
        place = text.get_window_extent()
        assert abs((place.y0 + place.y1) / 2 - (box.y1 - 63 * i - 28)) < 3 and 0 < box.x0 - place.x1 < 12
    page, title = figure.bbox, axes.title.get_window_extent()
    for text in (axes.title, *over, *beside):
        place = text.get_window_extent()
        assert 0 <= place.x0 and 0 <= place.y0 and place.x1 <= page.x1 and place.y1 <= page.y1
    assert title.y0 > max(text.get_window_extent().y1 for text in over)


def test_neighbouring_labels_do_not_touch():
    names = ["T-shirt/top", "Trouser", "Pullover", "automobile", "Ankle boot", "truck"]
    figure = plot.grid(torch.zeros(6, 1, 28, 28), 6, column_labels=names)
    figure.canvas.draw()
    places = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert all(right.x0 - left.x1 > 3 for left, right in pairwise(places))
    short = plot.grid(torch.zeros(6, 1, 28, 28), 6, column_labels="abcdef").axes[0].get_xticklabels()
    assert {text.get_fontsize() for text in short} == {10}


def test_labels_that_have_no_column_or_row_are_left_out():
    figure = plot.grid(torch.zeros(2, 1, 8, 8), 2, column_labels="abc", row_labels="de")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["d"]
    assert dots(figure).shape == (56, 119, 3)


def test_a_mark_can_be_put_on_a_pixel():
    figure = plot.grid(torch.zeros(6, 1, 8, 8), 2)
    figure.axes[0].plot(1 * 9 + 3, 2 * 9 + 5, "s", color="#ff0000", markersize=3)  # column 1, row 2: pixel (5, 3)
    ys, xs = np.nonzero((dots(figure) == (255, 0, 0)).all(-1))
    assert abs(ys.mean() - (2 * 63 + 5 * 7 + 3)) < 2 and abs(xs.mean() - (63 + 3 * 7 + 3)) < 2


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


def shown(monkeypatch, *words):
    """What `show` hands to the notebook: (data, metadata) of the picture, and the caption's data."""
    came = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: came.append((data, options)))
    plot.show(*words)
    (picture, options), (caption, _) = came
    return picture, options["metadata"]["image/png"], caption


def test_a_figure_is_shown_with_its_number_caption_and_alternative_text(monkeypatch):
    figure, axes = plot.panels()
    axes.plot([0, 1])
    size = figure.get_size_inches() * figure.dpi
    picture, about, caption = shown(monkeypatch, "4.2", "A line, $y = x$.", "A line that rises to the right.")
    assert about["alt"] == "A line that rises to the right."
    assert picture["text/plain"] == "[Figure 4.2: A line that rises to the right.]"
    assert caption["text/markdown"] == caption["text/plain"] == "**Figure 4.2.** A line, $y = x$."
    image = Image.open(io.BytesIO(picture["image/png"]))
    assert image.format == "PNG" and image.mode == "P"
    assert (image.width // 2, image.height // 2) == (about["width"], about["height"])
    assert abs(about["width"] - size[0]) < 40 and about["width"] <= 820, "wider than the page"
    assert not plt.get_fignums()


def test_the_stored_colours_are_those_that_were_drawn(monkeypatch):
    images = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    drawn = dots(plot.grid(images, 1))
    picture, _, _ = shown(monkeypatch, "0.1", "Greys.", "Greys from black to white.")
    stored = np.asarray(Image.open(io.BytesIO(picture["image/png"])).convert("RGB"))
    assert {tuple(dot) for dot in drawn.reshape(-1, 3)} <= {tuple(dot) for dot in stored.reshape(-1, 3)}


def test_a_map_with_many_colours_leaves_the_lines_theirs(monkeypatch):
    _, (left, right) = plot.panels(2)
    left.imshow(np.outer(np.linspace(0, 1, 200), np.linspace(0, 1, 200)), aspect="auto")
    for k in range(len(plot.COLOURS)):
        right.plot([0, 1], [k, k + 1], linewidth=1)
    picture, _, _ = shown(monkeypatch, "0.1", "A map and lines.", "A map, and six lines that rise.")
    stored = np.asarray(Image.open(io.BytesIO(picture["image/png"])).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in plot.COLOURS:
        drawn = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert abs(stored - drawn).max(1).min() <= 8, f"{colour} has become another"


def test_without_a_figure_nothing_is_shown_and_the_reason_is_said():
    with pytest.raises(ValueError, match=r"no figure to show as 4\.2: draw it in the same cell"):
        plot.show("4.2", "A line.", "A line.")
