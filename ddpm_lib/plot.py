"""The figures' one style, a grid of images, and how a figure is shown: number, caption and alternative text."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

# Okabe and Ito's colours, told apart in every common colour blindness; black is left to text.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
STYLE = {
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "image.cmap": "cividis",
}
plt.rcParams.update(STYLE)
COLOURS_STORED = 256  # of a picture in a notebook
WIDTH = 8.6  # inches: about 780 pixels at 90 dpi, a page of JupyterLab


def panels(columns: int = 1, height: float = 3.2, **options) -> tuple[Figure, Sequence[Axes] | Axes]:
    """A figure as wide as the page with `columns` axes side by side (one Axes for one column, an array otherwise)."""
    return plt.subplots(1, columns, figsize=(WIDTH, height), **options)


def label(axes: Axes, x: str, y: str, title: str = "", legend: bool = False) -> None:
    """Name both axes of a plot, and give it a title and a legend where wanted."""
    axes.set(xlabel=x, ylabel=y, title=title)
    if legend:
        axes.legend()


def grid(
    images: Tensor | np.ndarray,
    columns: int,
    *,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    title: str = "",
    cell: float = 0.72,
) -> Figure:
    """Images (N, C, H, W) in [−1, 1], C = 1 or 3, row by row as one picture, with labels. Values outside are clamped.

    cell: about how many inches high an image and the gap below it are. Each pixel becomes a square of a whole number of
    the figure's dots; images with more pixels than there are dots are made smaller. What is NaN is left blank.
    The figure has one Axes, whose coordinates are the images' pixels: those of the image in row r and column c begin at
    x = c·(W + gap), y = r·(H + gap), with a gap of one pixel where a pixel is four dots wide or more.
    Raises ValueError for another shape.
    """
    pixels = np.asarray(images, dtype=np.float32)
    if pixels.ndim != 4 or not len(pixels) or pixels.shape[1] not in (1, 3):
        raise ValueError(f"expected images (N, C, H, W), one at least, with C = 1 or 3; got {pixels.shape}")
    figure = plt.figure(layout="none")  # the layout is made here, so that the zoom is a whole number
    height, width = pixels.shape[2:]
    rows = -(-len(pixels) // columns)
    zoom = cell * figure.dpi / (height + 1)  # dots a pixel
    zoom = min(zoom, 2**15 / max(rows * (height + 1), columns * (width + 1)))  # matplotlib paints fewer than 2^16 dots
    zoom = max(1, round(zoom)) if zoom > 0.75 else zoom
    gap = max(1, round(4 / zoom))
    picture = _tiled(pixels, rows, columns, gap)
    size = np.ceil(np.array(picture.shape[1::-1]) * zoom)  # of the picture without its labels, in dots
    figure.set_size_inches(size / figure.dpi)
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False)
    axes.imshow(picture, interpolation="nearest" if zoom >= 1 else "antialiased")
    axes.grid(False)
    axes.set_title(title, fontsize=11)
    axes.tick_params(length=0, labelsize=10, labeltop=True, labelbottom=False)
    for axis, side, step, texts in (
        (axes.xaxis, width, width + gap, column_labels[:columns]),
        (axes.yaxis, height, height + gap, row_labels[:rows]),
    ):
        axis.set_ticks((side - 1) / 2 + step * np.arange(len(texts)), texts)
    widest = max([1, *(text.get_window_extent().width for text in axes.get_xticklabels())])
    axes.tick_params("x", labelsize=10 * min(1, max(0.6, ((width + gap) * zoom - 6) / widest)))  # neighbours stay apart
    whole = axes.get_tightbbox()  # with the labels: the figure grows by the room that they need
    before, after = np.ceil(np.maximum(0, -whole.min)) + 4, np.ceil(np.maximum(0, whole.max - size)) + 4
    total = before + size + after
    figure.set_size_inches(total / figure.dpi)
    axes.set_position((*(before / total), *(size / total)))
    return figure


def _tiled(pixels: np.ndarray, rows: int, columns: int, gap: int) -> np.ndarray:
    """The images (N, C, H, W) in rows, as bytes (…, …, 4): red, green, blue and opacity, 0 where there is nothing."""
    known = ~np.isnan(pixels).any(1, keepdims=True)
    colours = np.broadcast_to(np.where(known, pixels, 0).clip(-1, 1), (len(pixels), 3, *pixels.shape[2:]))
    shades = np.concatenate([(127.5 * (colours + 1)).round(), 255 * known], axis=1).astype(np.uint8)
    room = ((0, rows * columns - len(pixels)), (0, 0), (0, gap), (0, gap))
    tiled = rearrange(np.pad(shades, room), "(rows columns) c h w -> (rows h) (columns w) c", rows=rows)
    return tiled[:-gap, :-gap]


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG, dot for dot, and close it."""
    figure.savefig(path, format="png", dpi="figure")
    plt.close(figure)


def show(number: str, caption: str, alt: str) -> None:
    """Show the current figure in a notebook, with `Figure number.` and the caption below it, and close it.

    caption: what is drawn, in Markdown; alt: what is to be seen, for readers who cannot see it, in plain text.
    The picture has two dots a pixel, for sharp screens, and COLOURS_STORED colours, which takes a third of the room.
    They are chosen so that every colour drawn has a near one among them. A map with smooth colours gets steps: contourf
    draws them where one wants them. `alt` stands in the picture's metadata, where nbconvert reads it, and wherever no
    picture can be shown.
    Raises ValueError if there is no figure to show.
    """
    from IPython.display import display  # what draws without a notebook needs none

    if not plt.get_fignums():
        raise ValueError(f"there is no figure to show as {number}: draw it in the same cell, before this call")
    painted, stored = io.BytesIO(), io.BytesIO()
    figure = plt.gcf()
    figure.savefig(painted, format="png", dpi=2 * figure.dpi, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)
    picture = Image.open(painted).convert("RGB").quantize(COLOURS_STORED, Image.Quantize.MAXCOVERAGE)
    picture.save(stored, format="png", optimize=True)
    display(
        {"image/png": stored.getvalue(), "text/plain": f"[Figure {number}: {alt}]"},
        metadata={"image/png": {"alt": alt, "width": picture.width // 2, "height": picture.height // 2}},
        raw=True,
    )
    words = f"**Figure {number}.** {caption}"
    display({"text/markdown": words, "text/plain": words}, raw=True)
