"""The figures' one style, and the two ways in which the book shows images: a grid and a strip."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
    """Images (N, C, H, W) in [−1, 1], C = 1 or 3, row by row in a labelled grid. Values outside are clamped."""
    pixels = (np.asarray(images, dtype=np.float32).transpose(0, 2, 3, 1).clip(-1, 1) + 1) / 2
    rows = -(-len(pixels) // columns)
    size = (
        max(columns * cell + (1.0 if row_labels else 0.2), 2.5),
        rows * cell + (0.35 if column_labels else 0.1) + (0.35 if title else 0),
    )
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[], frame_on=False)
        if i < len(pixels):
            axis.imshow(
                pixels[i] if pixels.shape[-1] == 3 else pixels[i, ..., 0],
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
    for axis, text in zip(axes[0], column_labels, strict=False):
        axis.set_title(text, fontsize=10)
    for axis, text in zip(axes[:, 0], row_labels, strict=False):
        axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG and close it."""
    figure.savefig(path, format="png", dpi=110)
    plt.close(figure)
