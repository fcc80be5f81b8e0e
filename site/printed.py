"""A page of the site as Markdown for print: what Typst shall lay out stands in it as Typst's own code.

The pages' labels become labels in print, numbered displays carry their number, and pictures their words. A link to what
only the site has (a function's page, a check) becomes plain words.
"""

import base64
import json
import re
from pathlib import Path

import formulas
from nbformat import NotebookNode
from pages import CODE, LINK

GIVEN = re.compile(r"^\(([^()\s]+)\)=$", re.MULTILINE)
LABELS = re.compile(r"^((?:\([^()\s]+\)=(?:\n|\Z))+)(?:(#+ .+)$)?", re.MULTILINE)
# A paragraph that belongs to what follows it: a bold line, words before a colon, or before a display.
BEFORE = re.compile(r"(?:\A|(?<=\n\n))(?![\s\d#>|`$-])(?:\*\*[^*\n]+\*\*|[^\n]+:|[^\n]+(?=\n\n\$\$))(?=\n*\Z|\n\n)")
PLACE = re.compile(r"\b(Eqs?\.|[Cc]hapters?|[Ss]ections?|[Ee]xercises?|Figures?|[Aa]ppendix|[Pp]age) (?=[\dA-C])")
CITING = re.compile(r"\[(\[[^\[\]]*\]\([^()\s]*\))\]\{#([^{}\s]+)\}")
PAGED = ("Solution", "a notebook of their own")  # the words of links that on paper need a page
SITE_ONLY = re.compile(r"^:::\{(index|container)\}.*?^:::\n?|^```\{toctree\}.*?^```\n?", re.DOTALL | re.MULTILINE)


def typst(code: str) -> str:
    """Typst's code within a line of Markdown."""
    return f"`{code}`{{=typst}}"


def quoted(text: str) -> str:
    """Text as a string of Typst's, without a backtick, which would end it in Markdown."""
    return json.dumps(text, ensure_ascii=False).replace("`", r"\u{60}")


def _labelled(found: re.Match) -> str:
    """A label as a heading's identifier, further ones, and those of other cells, as invisible marks."""
    given, heading = GIVEN.findall(found[1]), found[2]
    marks = [typst(f"#mark(<{one}>)") for one in given[bool(heading) :]]
    back = given[0].replace("solution-", "exercise-")
    if heading and back != given[0]:  # on paper, a way back needs a page
        marks.append(f"{typst('#beneath[')}[Exercise](#{back}), page {typst(f'#page-of(<{back}>)')}{typst(']')}")
    return (f"{heading} {{#{given[0]}}}\n\n" if heading else "") + " ".join(marks) + "\n\n"


def markdown(text: str, known: set[str]) -> str:
    """A cell's Markdown for print; known: the labels that the print has."""

    def link(found: re.Match) -> str:
        if found[2][:1] != "#":
            return found[0]
        if found[2][1:] not in known:
            return found[1]
        return found[0] + (f", page {typst(f'#page-of(<{found[2][1:]}>)')}" if found[1] in PAGED else "")

    def words(part: str) -> str:
        part = CITING.sub(lambda found: found[1] + typst(f"#mark(<{found[2]}>)"), PLACE.sub(r"\1&nbsp;", part))
        return LINK.sub(link, part)

    parts, end = [], 0
    text = SITE_ONLY.sub("", text)
    for code in CODE.finditer(text):
        parts += [words(text[end : code.start()]), code[0]]
        end = code.end()
    text = "".join([*parts, words(text[end:])])
    text = LABELS.sub(_labelled, text)
    text = re.sub(r"</?details>", "\n\n", re.sub(r"<summary>(.*?)</summary>", r"**\1.**", text))
    text = re.sub(r"<code>(.*?)</code>", r"`\1`", text)
    return BEFORE.sub(lambda found: f"{typst('#keep[')}{found[0]}{typst(']')}", text)


def notebook(made: NotebookNode, name: str, pictures: Path, known: set[str]) -> str:
    """A notebook's Markdown with its code and its stored outputs; its pictures are written to the folder."""
    blocks = []
    for i, cell in enumerate(made.cells):
        if cell.cell_type == "markdown":
            blocks.append(markdown(cell.source, known))
        outputs = list(cell.get("outputs", ()))
        if cell.cell_type == "code" and cell.source.strip():
            kept = outputs and outputs[0].output_type == "stream" and len(outputs[0].text.splitlines()) < 12
            begin, end = (typst("#keep["), typst("]")) if kept else ("", "")
            blocks += [begin, _fenced("python", cell.source), end]
        while outputs:
            blocks.append(_output(outputs, pictures / f"{Path(name).stem}-{i}-{len(outputs)}.png"))
    return "\n\n".join(filter(None, blocks))


def _fenced(language: str, text: str) -> str:
    return f"``````{language}\n{text.rstrip()}\n``````"


def _output(outputs: list[NotebookNode], picture: Path) -> str:
    """Takes the first output, and with a picture its caption, which is the next one."""
    output = outputs.pop(0)
    if output.output_type == "stream":
        return _fenced("output", output.text)
    if "image/png" in output.data:
        picture.write_bytes(base64.b64decode(output.data["image/png"]))
        stored = output.metadata["image/png"]
        caption = outputs.pop(0).data["text/markdown"] if outputs else ""
        file, alt, width = quoted(f"{picture.parent.name}/{picture.name}"), quoted(stored["alt"]), stored["width"]
        return f"{typst(f'#picture({file}, {width}, {alt})[')}{caption}{typst(']')}"
    return output.data.get("text/markdown") or _fenced("output", output.data["text/plain"])


def labels(page: NotebookNode | str) -> set[str]:
    """The labels that a page gives."""
    text = page if isinstance(page, str) else "\n".join(c.source for c in page.cells if c.cell_type == "markdown")
    return set(GIVEN.findall(text))


def with_formulas(text: str) -> str:
    """Markdown with its formulas as Typst's code: displays with their number, and the TeX for a screen reader."""
    outside, end = [], 0
    for code in [*formulas.CODE.finditer(text), None]:
        outside.append(text[end : code.start() if code else len(text)])
        end = code.end() if code else end
    found = [match for part in outside for match in formulas.FORMULA.finditer(part)]
    made = formulas.typeset(formulas.plain((one[1] or one[3]) + (one[2] or "")) for one in found)

    def code_of(one: re.Match) -> str:
        tex = formulas.plain((one[1] or one[3]) + (one[2] or ""))
        if one[3]:
            return typst(f"#formula({quoted(tex)}, ${made[tex]}$)")
        tag = formulas.TAG.search(one[1])
        number = quoted(f"({tag[1]})") if tag else "none"
        return typst(f"#display({number}, {quoted(tex)}, $ {made[tex]} $)")

    parts = [formulas.FORMULA.sub(code_of, part) for part in outside]
    codes = [code[0] for code in formulas.CODE.finditer(text)]
    return "".join(part + code for part, code in zip(parts, [*codes, ""], strict=True))
