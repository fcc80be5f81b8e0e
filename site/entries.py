"""Sphinx extension: what the index and the search find an equation by leads to its section, not to an empty place.

Sphinx gives each entry a target of its own, with no text in it, and its search fails where it wants to show that text.
"""

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def lead_to_sections(app: Sphinx, document: nodes.document) -> None:
    """Entries that stand before a section lead to it."""
    waiting: list[addnodes.index] = []
    for node in document.findall(nodes.Element):
        if isinstance(node, addnodes.index):
            waiting.append(node)
        elif isinstance(node, nodes.section):
            for index in waiting:
                index["entries"] = [(kind, words, node["ids"][0], *rest) for kind, words, _, *rest in index["entries"]]
            waiting = []


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", lead_to_sections)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
