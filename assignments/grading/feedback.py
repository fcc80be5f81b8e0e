"""One page a student: marks by identity, what to look at, and the notebook with comments. No hidden test is in it."""

import html
import re
import sys
import tempfile
from pathlib import Path

import bleach
import nbformat
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell

from assignments.grading.course import BOOK, Course
from assignments.grading.gradebook import Mark
from assignments.grading.restore import is_test, sources
from ddpm_lib.homework.problem import find, unwrapped

HIDDEN = "It holds for your numbers, but not for all others: think of other schedules, times, sizes and seeds."
LARGEST = 5_000_000  # characters of a cell's attached pictures that come onto the page
TAGS = "p h1 h2 h3 h4 h5 h6 hr br div span pre table thead tbody tr th td img details summary del sub sup dl dt dd"
STYLE = """
body { max-width: 860px; margin: 2em auto; padding: 0 1em; font: 16px/1.5 system-ui, sans-serif; color: #222;
overflow-wrap: break-word; } h1 { line-height: 1.2; } h2 { margin-top: 2em; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3em .6em; vertical-align: top;
border-bottom: 1px solid #ddd; } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4;
padding: .6em; margin: .5em 0; font-size: 13px; } img { max-width: 100%; height: auto; }
.yes { color: #00507d; } .no { color: #a63a00; } .checked th { padding-top: 1.2em; border-bottom: 1px solid #888; }
.checked tr > :last-child { white-space: nowrap; text-align: right; } .checked td:first-child { padding-left: 1.6em; }
.checked pre { color: #222; font-weight: normal; } .comment { border-left: 4px solid #00507d; padding-left: 1em; }
.notebook h1 { font-size: 1.5em; } .notebook h2 { font-size: 1.2em; } .notebook table { display: block; overflow: auto }
.notebook .output_area pre { background: none; border-left: 3px solid #ccc; } .notebook .output_error pre {
border-color: #a63a00; } .prompt, .anchor-link { display: none; }
.notebook :is(p, ul, ol), .MathJax_Display { overflow: auto hidden; padding-block: 2px; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style>
<script type="text/x-mathjax-config">MathJax.Hub.Config({{tex2jax: {{inlineMath: [["$", "$"]], processEscapes: true}},
TeX: {{equationNumbers: {{autoNumber: "AMS"}}}}}});</script><script async src="{mathjax}"></script></head>
<body><h1>{title}</h1>{body}</body></html>
"""


def feedback(course: Course, result: dict, given: list[Mark]) -> str:
    """The page, as HTML. given: the marks in the gradebook."""
    number, student = result["set"], result["student"]
    title = f"Problem set {number}: {student}"
    waiting = [mark for mark in given if mark.score is None]
    total, most = sum(mark.score or 0 for mark in given), sum(mark.most for mark in given)
    by_hand = sum(mark.most for mark in waiting)
    parts = [
        f"<p><strong>{total:g} of {most:g} marks</strong>{f'; {by_hand:g} more not graded yet' * bool(waiting)}.</p>"
    ]
    if result["flags"]:
        parts.append("<h2>Remarks</h2><ul>")
        parts += [f"<li>{html.escape(public(flag))}</li>" for flag in result["flags"]] + ["</ul>"]
    parts += ["<h2>What was checked</h2>", *table(result)]
    parts += ["<h2>Your notebook, as it ran</h2>", notebook(course, number, student, given)]
    return PAGE.format(title=html.escape(title), style=STYLE, mathjax=HTMLExporter().mathjax_url, body="\n".join(parts))


def public(flag: str) -> str:
    """A flag without a path of the grader's machine."""
    return re.sub("^tried to (open|write) .*", r"tried to \1 a file of the grader's machine", without_paths(flag))


def without_paths(text: str) -> str:
    """A text without the folders of the grader's machine."""
    folders = {str(BOOK), sys.prefix, sys.base_prefix, str(Path.home())} - {"/", "/usr"}
    for path in sorted(folders, key=len, reverse=True):
        text = text.replace(path, "…")
    return re.sub(rf"(?:{re.escape(tempfile.gettempdir())})?/grade-\w{{8}}\b", "…", text)  # quick on long pictures, too


def table(result: dict) -> list[str]:
    """The identities, with their marks, and why one does not hold (of a hidden case: only that it is one).

    Where all of a problem is lost for one reason, the reason stands once, below the problem's name.
    """
    rows = ["<table class=checked>"]
    for number, results in result["problems"].items():
        why = [unwrapped(row["message"]) if row["shown"] or not row["message"] else HIDDEN for row in results]
        once = why[0] if len(set(why)) == 1 else ""
        earned, most = sum(row["marks"] for row in results if not row["message"]), sum(row["marks"] for row in results)
        rows.append(line("th", f"{number} {find(number).name}", once, earned, most))
        for row, reason in zip(results, why, strict=True):
            sign, kind, marks = ("✗", "no", 0) if reason else ("✓", "yes", row["marks"])
            told = "" if once else reason
            rows.append(line("td", f"{sign} {row['name']}", told, marks, row["marks"], f" class={kind}"))
    return [*rows, "</table>"]


def line(tag: str, name: str, reason: str, marks: float, most: float, kind: str = "") -> str:
    """A row of the table."""
    told = f"<pre>{html.escape(reason)}</pre>" if reason else ""
    return f"<tr><{tag}{kind}>{html.escape(name)}{told}</{tag}><{tag}>{marks:g} of {most:g}</{tag}></tr>"


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
            score = (
                f"Not graded yet (of {mark.most:g})" if mark.score is None else f"{mark.score:g} of {mark.most:g} marks"
            )
            text = f"**{score}.** " + html.escape(mark.comment)
            cells.append(new_markdown_cell(f'<div class="comment">\n\n{text}\n\n</div>'))
    run.cells = cells
    for cell in cells:
        size = sum(len(str(data)) for data in cell.get("attachments", {}).values())
        if size > LARGEST:
            cell.source += f"\n\n(The attached picture, {size / 1e6:.0f} MB, is not shown here.)"
            del cell["attachments"]
    exporter = HTMLExporter(template_name="basic", sanitize_html=True)
    exporter.register_filter("clean_html", clean)  # nbconvert's own lets no paragraph and no heading pass
    return without_paths(f'<div class="notebook">{exporter.from_notebook_node(run)[0]}</div>')


def clean(text: str) -> str:
    """HTML without what could run, or fetch something from elsewhere; what is not allowed is shown as text."""
    tags = bleach.ALLOWED_TAGS | set(TAGS.split())
    return bleach.clean(str(text), tags, allowed, protocols=[*bleach.ALLOWED_PROTOCOLS, "data"])


def allowed(tag: str, name: str, value: str) -> bool:
    """Whether an attribute may stay."""
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    if name == "href":
        return re.match(r"https?:|mailto:|#", value) is not None
    return name in ("class", "alt", "width", "height", "start")
