"""The tables as a picture: for each contestant a bar as long as its median, and the middle half of its rounds."""

from typing import Any

from matplotlib.figure import Figure

from benchmarks.networks import DIFFUSERS, GAUSSIAN, OURS
from ddpm_lib import plot

COLOUR = dict(zip((OURS, DIFFUSERS, GAUSSIAN), plot.COLOURS, strict=False))


def picture(results: dict[str, Any], device: str) -> Figure:
    """One axes a part, side by side; images a second to the right."""
    figure, axes = plot.panels(1, height=0.7 + sum(0.8 + 0.3 * len(part["rows"]) for part in results["parts"].values()))
    axes.remove()
    heights = [1 + len(part["rows"]) for part in results["parts"].values()]
    for one, (letter, part) in zip(
        figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0],
        results["parts"].items(),
        strict=True,
    ):
        rows = part["rows"][::-1]
        low, mid, high = zip(*(row["images_per_s"] for row in rows), strict=True)
        around = [[m - a for m, a in zip(mid, low, strict=True)], [b - m for m, b in zip(mid, high, strict=True)]]
        colours = [COLOUR[row["name"].split(", ")[0]] for row in rows]
        one.barh([row["name"] for row in rows], mid, xerr=around, color=colours, height=0.7, ecolor="black")
        one.grid(visible=False, axis="y")
        one.set_xlim(0)
        plot.label(one, "images/s", "", f"({letter}) {part['title']}")
    options = results["options"]
    figure.suptitle(f"{device}, batch {options['batch']}, {options['precision']}", fontsize=11)
    return figure
