"""A recipe in words: its fields in columns, what each of them is, and the list of all recipes."""

import dataclasses
import textwrap
from collections.abc import Container

from ddpm_lib.runs.recipes import RECIPES, Recipe, text_of

GROUPS = {  # of fields, in their order: each begins with this one
    **{"data": "name", "network": "width", "diffusion": "schedule"},
    **{"training": "steps", "run folder": "log_every", "sampling": "sample_steps"},
}
TITLE, CELL, CELLS = 12, 28, 3  # characters of a group's title, of a field, and fields a line


def describe(recipe: Recipe) -> str:
    """All fields of a recipe as `override` reads them, in groups and columns, at most 96 characters a line."""
    lines: list[str] = []
    titles = {first: title for title, first in GROUPS.items()}
    for field in dataclasses.fields(recipe):
        if title := titles.get(field.name):
            lines.append(title.ljust(TITLE))
        for cell in textwrap.wrap(f"{field.name}={text_of(getattr(recipe, field.name))}", CELL * CELLS - 1):
            place = -(len(lines[-1]) - TITLE) // CELL * -CELL + TITLE  # the next free column
            if place + len(cell) > TITLE + CELLS * CELL:
                lines.append(" " * TITLE)
                place = TITLE
            lines[-1] = lines[-1].ljust(place) + cell
    return "\n".join(line.rstrip() for line in lines)


def fields_in_words(recipe: Recipe | None = None, names: Container[str] | None = None) -> str:
    """One line for each field (of these names): the name, its value in the recipe (None: its default), what it is."""
    rows = []
    for field in dataclasses.fields(Recipe):
        if names is None or field.name in names:
            value = field.default if recipe is None else getattr(recipe, field.name)
            rows.append((field.name, "-" if value is dataclasses.MISSING else text_of(value), field.metadata["about"]))
    name, value = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"  {row[0]:{name}}  {row[1]:{value}}  {row[2]}" for row in rows)


def recipes_in_words() -> str:
    """The recipes, a name and what it is, in columns, at most 100 characters a line."""
    width = max(map(len, RECIPES)) + 2
    texts = {name: " ".join(function.__doc__.split()) for name, function in RECIPES.items()}
    indent = {"subsequent_indent": " " * width, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(name.ljust(width) + text, 100, **indent) for name, text in texts.items())
