"""Sphinx extension: the book's figures with their words, and maths as it was written.

plot.show stores a picture with its alternative text, and the caption as Markdown after it: here the two become one
figure. Sphinx would put split around maths of several lines, in which no number can stand: here it does not. A
browser would begin a line with the comma that follows a formula: here the two are one.
"""

import re
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx


def _pictures(path: Path) -> list[dict]:
    """What is stored with each picture of a notebook, in order: alt, width, height."""
    outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", ())]
    return [out.metadata.get("image/png", {}) for out in outputs if "image/png" in out.get("data", {})]


def _caption(container: nodes.Element) -> nodes.paragraph | None:
    """The caption that follows a picture's output: a paragraph that begins "Figure 4.1."."""
    parent = container.parent
    after = parent[parent.index(container) + 1 :] if parent is not None else []
    paragraph = next((p for node in after[:1] for p in node.findall(nodes.paragraph)), None)
    return paragraph if paragraph is not None and paragraph.astext().startswith("Figure ") else None


def figures(app: Sphinx, document: nodes.document) -> None:
    path = Path(app.env.doc2path(app.env.current_document.docname))
    if path.suffix != ".ipynb":
        return
    images = [image for image in document.findall(nodes.image) if image.get("candidates", image["uri"])]
    for image, stored in zip(images, _pictures(path), strict=True):
        image["alt"] = stored.get("alt", "")
        image["width"] = f"{stored['width']}px" if "width" in stored else "100%"
        container = image.parent
        figure = nodes.figure("", image.deepcopy(), classes=["book-figure"])
        caption = _caption(container)
        if caption is not None:
            figure += nodes.caption("", "", *[child.deepcopy() for child in caption])
            holder = caption.parent
            holder.remove(caption)
            if not holder.children and holder.parent is not None:
                holder.parent.remove(holder)
        container.replace(image, figure)


def displays(app: Sphinx, document: nodes.document) -> None:
    for block in document.findall(nodes.math_block):
        if not block.get("no-wrap") and not block.get("number"):
            text = block.astext().strip()
            block["no-wrap"] = True
            block.children = [nodes.Text(rf"\[{text}\]")]


def joined(app: Sphinx, document: nodes.document) -> None:
    """A formula in a line keeps the bracket before it and the punctuation after it."""
    for math in list(document.findall(nodes.math)):
        parent = math.parent
        i = parent.index(math)
        before, after = (parent[j] if 0 <= j < len(parent) else None for j in (i - 1, i + 1))
        opening = re.search(r"[(\[“‘]+$", before) if isinstance(before, nodes.Text) else None
        closing = re.match(r"[,.;:!?)\]”’]+|-\w+", after) if isinstance(after, nodes.Text) else None
        if opening or closing:
            whole = nodes.inline("", "", classes=["joined"])
            if opening:
                parent.replace(before, nodes.Text(before[: opening.start()]))
            if closing:
                parent.replace(after, nodes.Text(after[closing.end() :]))
            parent.replace(math, whole)
            whole += [nodes.Text(opening[0] if opening else ""), math, nodes.Text(closing[0] if closing else "")]


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", figures)
    app.connect("doctree-read", displays)
    app.connect("doctree-read", joined)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
