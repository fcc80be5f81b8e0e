"""The tables as a picture: for each contestant a bar as long as its median, and the middle half of its rounds."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.networks import DIFFUSERS, GAUSSIAN, OURS
from ddpm_lib import plot

COLOUR = dict(zip((OURS, DIFFUSERS, GAUSSIAN), plot.COLOURS, strict=False))


def picture(results: dict[str, Any], device: str) -> Figure:
    """One axes a part, one below the other; images a second to the right."""
    parts = results["parts"]
    heights = [1.5 + len(part["rows"]) for part in parts.values()]
    figure, axes = plt.subplots(
        len(parts), height_ratios=heights, figsize=(plot.WIDTH, 0.4 * sum(heights)), squeeze=False
    )
    for one, (letter, part) in zip(axes[:, 0], parts.items(), strict=True):
        rows = part["rows"][::-1]
        low, mid, high = zip(*(row["images_per_s"] for row in rows), strict=True)
        around = [[m - a for m, a in zip(mid, low, strict=True)], [b - m for m, b in zip(mid, high, strict=True)]]
        colours = [COLOUR[row["who"]] for row in rows]
        one.barh(
            [row["name"].replace(", own defaults: ", "\n") for row in rows],
            mid,
            xerr=around,
            color=colours,
            height=0.7,
            ecolor="black",
        )
        one.grid(visible=False, axis="y")
        one.set_xlim(0)
        plot.label(one, "images/s", "", f"({letter}) {part['title']}")
    options = results["options"]
    figure.suptitle(f"{device}, batch {options['batch']}, {options['precision']}", fontsize=11)
    return figure
