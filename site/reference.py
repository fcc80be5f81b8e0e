"""The library's reference: a page for each module, from its docstrings, which are plain text and shown as such.

Nothing is imported for it: names, signatures, docstrings and sources are read from the files.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from pages import escaped

from ddpm_lib import CHAPTER, ROOMS

BOOK = Path(__file__).parents[1]
LEFT_OUT = ("checks.chapter_", "homework")  # the checks have pages of their own
Documented = ast.FunctionDef | ast.ClassDef | ast.Module


def _file(module: str) -> Path:
    path = Path("ddpm_lib", *module.split("."))
    return path / "__init__.py" if (BOOK / path).is_dir() else path.with_suffix(".py")


SHOWN = [room for room in ROOMS if not room.startswith(LEFT_OUT)]
# room by room: a folder first, then what is in it
MODULES = {
    module: _file(module)
    for room in SHOWN
    for module in dict.fromkeys([room, *(one for one in CHAPTER if one.startswith(f"{room}."))])
    if not module.startswith(LEFT_OUT)
}


def anchor(module: str, qualified: str = "") -> str:
    """The label of a module, function, class or method."""
    kind = "module" if not qualified else "class" if qualified[0].isupper() else "function"
    return f"{kind}-{module}.{qualified}".rstrip(".").replace("_", "-").replace(".", "-").lower()


def documented(tree: ast.Module) -> Iterator[tuple[str, Documented]]:
    """A module, and its public functions, classes and their public methods, by qualified name ("" is the module)."""
    yield "", tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and ast.get_docstring(inner):
                    yield f"{node.name}.{inner.name}", inner


def _arguments(given: ast.arguments) -> list[str]:
    """The arguments one by one, as they are written: `t: int`, `*`, `scale: float = 1`."""
    places = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(places) - len(given.defaults)), *given.defaults]
    parts = [_argument(one, default) for one, default in zip(places, defaults, strict=True)]
    parts[len(given.posonlyargs) : len(given.posonlyargs)] = ["/"] if given.posonlyargs else []
    star = f"*{_argument(given.vararg, None)}" if given.vararg else "*" if given.kwonlyargs else ""
    parts += [star] if star else []
    parts += [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*parts, f"**{_argument(given.kwarg, None)}"] if given.kwarg else parts


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(one) + (f" = {ast.unparse(default)}" if default else "")


def signature(node: Documented) -> str:
    """`def f(x: Tensor) -> Tensor`, or for a class what its instances are made of."""
    above = [f"@{ast.unparse(one)}" for one in node.decorator_list]
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        line = f"def {node.name}({ast.unparse(node.args)}){returns}"
        if len(line) > 88:
            line = "\n".join([f"def {node.name}(", *(f"    {part}," for part in _arguments(node.args)), f"){returns}"])
        return "\n".join([*above, line])
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    made = [f"    {ast.unparse(one)}" for one in node.body if isinstance(one, ast.AnnAssign)]
    begin = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    made += [f"    {line}" for line in signature(begin).splitlines()] if begin else []
    return "\n".join([*above, f"class {node.name}{bases}", *made])


def prose(text: str, linked: Callable[[str], str]) -> str:
    """A docstring as Markdown: paragraphs, and what is indented as it stands."""
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        if block.startswith("    "):
            blocks.append(f"```text\n{textwrap.dedent(block)}\n```")
        else:  # a line that begins further in goes with the one above: a list without marks
            lines = [linked(line.strip()) for line in block.splitlines()]
            lines = [re.sub(r"^(\d+)([.)])", r"\1\\\2", re.sub(r"^([-+=:])", r"\\\1", line)) for line in lines]
            blocks.append(re.sub(r"\n(?=[\w\\]+(?:, [\w\\]+)*: )", r"\\\n", "\n".join(lines)))
    return "\n\n".join(blocks)


def folded(summary: str, code: str) -> list[str]:
    """Code that opens at a click."""
    fence = "`" * (3 + 3 * ("```" in code))
    lines = ["", '<details class="source">', f"<summary>{summary}</summary>", ""]
    return [*lines, f"{fence}python", code.rstrip(), fence, "", "</details>", ""]


def page(module: str, linked: Callable[[str], str], checks: dict[str, str], titles: dict[str, str]) -> str:
    """A module's page. checks: {label of a function: a line that leads to its check}; titles: of chapters by number."""
    source = (BOOK / MODULES[module]).read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = []
    for qualified, node in documented(tree):
        text = prose(ast.get_docstring(node) or "", linked)
        if not qualified:
            lines += [f"({anchor(module)})=", f"# {escaped(module)}", ""]
            lines += [_belongs(module, titles), "", text, "", *_listed(module)]
            continue
        lines += [f"({anchor(module, qualified)})=", f"{'###' if '.' in qualified else '##'} {escaped(qualified)}", ""]
        check = checks.get(anchor(module, qualified), "")
        lines += ["```python", signature(node), "```", "", text, "", check]
        if "." not in qualified or check:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            body = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
            lines += folded(f"Source: {MODULES[module].as_posix()}, line {first}", body)
    lines += folded(f"The whole file, {MODULES[module].as_posix()}", source) if lines else []
    return "\n".join(lines) + "\n"


def _belongs(module: str, titles: dict[str, str]) -> str:
    """Where a module is from: its chapter."""
    number = str(CHAPTER.get(module, ""))
    origin = f"[chapter {number}](#chapter-{number})" if number in titles else "the appendices" if number else ""
    return f"`ddpm_lib.{module}`" + f", of {origin}." * bool(origin)


def _inside(room: str) -> list[str]:
    return [module for module in MODULES if module.startswith(f"{room}.")]


def _about(module: str) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse((BOOK / MODULES[module]).read_text(encoding="utf-8"))) or ""
    return escaped(re.split(r"(?<=[.?]) ", " ".join(text.partition("\n\n")[0].split()))[0].removesuffix(":"))


def _listed(room: str) -> list[str]:
    """The modules of a folder, each with its first sentence."""
    inside = _inside(room)
    if not inside:
        return []
    lines = [f"- [`{module.partition('.')[2]}`](#{anchor(module)}): {_about(module)}" for module in inside]
    return ["## Modules", "", *lines, "", "```{toctree}", ":hidden:", ":titlesonly:", "", *inside, "```", ""]


def contents() -> str:
    """The page that leads to all modules, folder by folder."""
    lines = ["(reference)=", "# The library", ""]
    lines += ["Its folders, from the ground up: none imports what stands further down. Each page has the docstrings"]
    lines += ["and the source.", ""]
    for room in SHOWN:
        links = [f"[`{module.partition('.')[2]}`](#{anchor(module)})" for module in _inside(room)]
        lines += [f"- **[{escaped(room)}](#{anchor(room)})**: {_about(room)}{chr(92) * bool(links)}"]
        lines += [f"  {' · '.join(links)}"] if links else []
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", ":titlesonly:", "", *SHOWN, "```", ""])
