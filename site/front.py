"""The front page, and the page that leads to the solutions."""

import re

from pages import escaped, label

from tools.links import Book

WORDS = """(front)=
# Denoising diffusion models, a textbook that runs

This book derives denoising diffusion models (DDPM) from the first equation up. Every numbered equation is checked by
machine, against an independent route and against the wrong versions that are in circulation. What you read here are
its notebooks as they ran; to run them yourself, take the book and type `make lab`.

- **[Start here](#chapter-0)**, or with a chapter below
- **[Index of equations](#all-equations)**: from an equation's number to its derivation, function, check and citations
- **[What was checked](#checked)**: routes, tolerances and wrong versions
- **[The library](#reference)**, with sources · **[Symbols](#all-symbols)**{sets} · **[Solutions](#all-solutions)**

## Contents

{contents}

```{{toctree}}
:hidden:
:caption: Chapters

{chapters}
```

```{{toctree}}
:hidden:
:caption: Appendices

{appendices}
```

```{{toctree}}
:hidden:
:caption: To look up

equations
checked/index
reference/index
symbols
{more}solutions
```
"""
SOLUTIONS = """(all-solutions)=
# Solutions to the exercises

Try the exercises first.

```{{toctree}}
:titlesonly:

{}
```
"""


def page(book: Book, titles: dict[str, str], with_sets: bool) -> str:
    names = {number: name.removesuffix(".ipynb") for number, name in book.chapters.items()}
    lines = [f"- [{escaped(titles[number])}](#{label(name, 'page')})" for number, name in book.chapters.items()]
    words = WORDS.format(
        sets=" · **[Problem sets](#problem-sets)**" if with_sets else "",
        contents="\n".join(lines),
        chapters="\n".join(f"chapters/{name}" for number, name in names.items() if number.isdecimal()),
        appendices="\n".join(f"chapters/{name}" for number, name in names.items() if not number.isdecimal()),
        more="problem_sets/index\n" if with_sets else "",
    )
    return words if "0" in titles else re.sub(r"\[([^\]]+)\]\(#chapter-0\)", r"\1", words)


def solutions(book: Book) -> str:
    """Lists the solutions, chapter by chapter."""
    found = [name.removesuffix(".ipynb") for name in book.notebooks if "/" in name]
    return SOLUTIONS.format("\n".join(f"chapters/{name}" for name in found))
