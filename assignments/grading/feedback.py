"""One page a student: marks by identity, what to look at, and the notebook with comments. No hidden test is in it."""

import html
import re
import sys
from pathlib import Path

import bleach
import nbformat
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell

from assignments.grading.course import BOOK, Course
from assignments.grading.gradebook import Mark
from assignments.grading.restore import is_test, sources
from ddpm_lib.homework.problem import find

HIDDEN = "It holds for your numbers, but not for all others: think of other schedules, times, sizes and seeds."
LARGEST = 5_000_000  # characters of a cell's attached pictures that come onto the page
TAGS = {*bleach.ALLOWED_TAGS, "p", "br", "hr", "div", "span", "pre", "img", "details", "summary", "sub", "sup", "del",
        "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip
STYLE = """
body { max-width: 860px; margin: 2em auto; padding: 0 1em; font: 16px/1.5 system-ui, sans-serif; color: #222; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3em .6em; vertical-align: top;
border-bottom: 1px solid #ccc; } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4;
padding: .6em; font-size: 13px; } img { max-width: 100%; } .yes { color: #00507d; } .no { color: #a63a00; }
.comment { border-left: 4px solid #00507d; padding-left: 1em; }
.jp-InputPrompt, .jp-OutputPrompt, .anchor-link { display: none; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style>
<script>MathJax = {{tex: {{inlineMath: [["$", "$"]], displayMath: [["$$", "$$"]], tags: "ams"}}}};</script>
<script async src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml.js"></script></head>
<body><h1>{title}</h1>{body}</body></html>
"""


def feedback(course: Course, result: dict, given: list[Mark]) -> str:
    """The page, as HTML. given: the marks in the gradebook."""
    number, student = result["set"], result["student"]
    title = f"Problem set {number}: {student}"
    waiting = [mark for mark in given if mark.score is None]
    total, most = sum(mark.score or 0 for mark in given), sum(mark.most for mark in given)
    later = f"; {sum(mark.most for mark in waiting):g} of them are not graded yet" if waiting else ""
    parts = [f"<p><strong>{total:g} of {most:g} marks</strong>{later}.</p>"]
    if result["flags"]:
        parts.append("<h2>Remarks</h2><ul>")
        parts += [f"<li>{html.escape(public(flag))}</li>" for flag in result["flags"]] + ["</ul>"]
    parts += ["<h2>What was checked</h2>", *table(result)]
    parts += ["<h2>Your notebook, as it ran</h2>", notebook(course, number, student, given)]
    return PAGE.format(title=html.escape(title), style=STYLE, body="\n".join(parts))


def public(flag: str) -> str:
    """A flag without a path of the grader's machine."""
    return re.sub("^tried to (open|write) .*", r"tried to \1 a file of the grader's machine", without_paths(flag))


def table(result: dict) -> list[str]:
    """The identities, with their marks, and why one does not hold (of a hidden case: only that it is one)."""
    rows = ["<table><tr><th>problem</th><th>what must be so</th><th>marks</th></tr>"]
    for number, results in result["problems"].items():
        for row in results:
            holds = not row["message"]
            text = html.escape(f"{'✓' if holds else '✗'} {row['name']}")
            if not holds:
                text += f"<pre>{html.escape(row['message'] if row['shown'] else HIDDEN)}</pre>"
            kind = "yes" if holds else "no"
            rows.append(
                f"<tr><td>{number} {html.escape(find(number).name)}</td><td class={kind}>{text}</td>"
                f"<td>{row['marks'] if holds else 0:g} of {row['marks']:g}</td></tr>"
            )
    return [*rows, "</table>"]


def notebook(course: Course, number: int, student: str, given: list[Mark]) -> str:
    """The notebook as HTML: test cells as they were given out, without what they printed when they were graded."""
    run = nbformat.read(course.autograded / student / f"set_{number}" / f"set_{number}.ipynb", 4)
    _, released = sources(course, number)
    by_cell = {mark.cell: mark for mark in given}
    cells = []
    for cell in run.cells:
        if is_test(cell):
            cell.source, cell.outputs = released[cell.id].source, []
        cells.append(cell)
        mark = by_cell.get(cell.id)
        if mark and mark.by_hand:
            score = "not graded yet" if mark.score is None else f"{mark.score:g} of {mark.most:g} marks"
            text = f"**{score}.** " + html.escape(mark.comment)
            cells.append(new_markdown_cell(f'<div class="comment">\n\n{text}\n\n</div>'))
    run.cells = cells
    for cell in cells:
        size = sum(len(str(data)) for data in cell.get("attachments", {}).values())
        if size > LARGEST:
            cell.source += f"\n\n(The attached picture, {size / 1e6:.0f} MB, is not shown here.)"
            del cell["attachments"]
    exporter = HTMLExporter(template_name="basic", sanitize_html=True)
    exporter.register_filter("clean_html", clean)
    return without_paths(exporter.from_notebook_node(run)[0])


def clean(text: str | bytes) -> str:
    """HTML without what runs or loads something. (nbconvert's own filter takes out paragraphs and pictures as well.)"""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return bleach.clean(text, tags=TAGS, attributes=harmless, protocols={"http", "https", "mailto", "data"})


def harmless(tag: str, name: str, value: str) -> bool:
    """Whether an attribute may stay: links to pages, and pictures that lie in the page itself."""
    if tag == "img" and name == "src":
        return re.match(r"data:image/(png|jpeg|gif|webp);base64,", value) is not None
    if tag == "a" and name == "href":
        return re.match(r"(https?:|mailto:|#)", value) is not None
    return name in ("class", "alt", "title")


def without_paths(text: str) -> str:
    """A text without the folders of the grader's machine."""
    folders = {str(BOOK), sys.prefix, sys.base_prefix, str(Path.home())} - {"/", "/usr"}
    for path in sorted(folders, key=len, reverse=True):
        text = text.replace(path, "…")
    return re.sub(r"\S*?\bgrade-\w{8}\b", "…", text)
