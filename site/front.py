"""The front page, and the page that leads to the solutions."""

import re

from conf import book_repository
from equations import Equation, wrong_versions
from pages import escaped, label

from ddpm_lib import __version__
from tools.links import Book

WORDS = """(front)=
# Denoising diffusion models, a textbook that runs

This book derives denoising diffusion models (DDPM) from the first equation up. Each of its {equations} numbered
equations is checked by machine: against an independent route, and against wrong versions. There are {wrong} of these,
{public} of which, or their like, stand in public places.{example} What you read here are the notebooks as they ran; to
run them yourself, type `make lab` in a copy of the book. {source}

- **[Start here](#chapter-0)**. You need calculus, linear algebra, basic probability and PyTorch
- **[Index of equations](#all-equations)**: from an equation's number to its derivation, function, check and citations
- **[What was checked](#checked)**: routes, tolerances and wrong versions
- **[Errata](#chapter-a)**: the mistakes in circulation · **[Check your own code](#chapter-b)** for them
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


def page(book: Book, titles: dict[str, str], facts: dict[str, Equation], with_sets: bool) -> str:
    """The front page; facts: the equations by number."""
    names = {number: name.removesuffix(".ipynb") for number, name in book.chapters.items()}
    wrong, public = wrong_versions(facts)
    source = f": [source]({book_repository})" if book_repository else ""
    example = " [Eq. 4.6](#eq-4-6) and [its wrong versions](#check-4-6), for example." if "4.6" in facts else ""
    words = WORDS.format(
        equations=len(facts),
        wrong=wrong,
        public=public,
        example=example,
        source=f"Version {__version__}, under the MIT licence{source}.",
        sets=" · **[Problem sets](#problem-sets)**" if with_sets else "",
        contents="\n".join(_line(book, number, titles[number]) for number in book.chapters),
        chapters="\n".join(f"chapters/{name}" for number, name in names.items() if number.isdecimal()),
        appendices="\n".join(f"chapters/{name}" for number, name in names.items() if not number.isdecimal()),
        more="problem_sets/index\n" if with_sets else "",
    )

    def there(link: re.Match) -> str:
        return link[0] if link[2].upper() in titles else link[1]

    return re.sub(r"\[([^\]]+)\]\(#chapter-(\w+)\)", there, words)


def _line(book: Book, number: str, title: str) -> str:
    """A chapter, with the headings of its sections."""
    sections = [
        heading.partition(" ")[2]
        for (kind, section), (_, _, heading) in book.places.items()
        if kind == "sec" and section.startswith(f"{number}.")
    ]
    about = f"\\\n  {' · '.join(sections)}" if sections else ""
    return f"- **[{escaped(title)}](#{label(book.chapters[number], 'page')})**{about}"


def solutions(book: Book) -> str:
    """Lists the solutions, chapter by chapter."""
    found = [name.removesuffix(".ipynb") for name in book.notebooks if "/" in name]
    return SOLUTIONS.format("\n".join(f"chapters/{name}" for name in found))
