"""The mutation operators: small slips of the kind that one makes in a formula, at every place where they apply.

A mutant is the whole source of a module with one slip in it. What is no formula is left alone: docstrings, annotations,
decorators, messages of errors. Not left alone are the conditions of errors, and default values.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace

TIMES = {"t", "s", "step", "T"}  # names that hold a time
FORWARD = "ddpm_lib.diffusion.forward"  # where the coefficients of α and ᾱ stand
BARS = {"alpha": "alpha_bar", "alpha_bar": "alpha", "signal_scale": "step_scale", "step_scale": "signal_scale"}
BAR_CALLS = {"noise_std": "forward_var({}).sqrt()", "forward_var": "noise_std({}) ** 2"}  # √(1 − ᾱ_t) and β_t = 1 − α_t
COEFFICIENTS = ("signal_scale", "step_scale", "noise_std", "forward_var")
SYMBOLS = {ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.MatMult: "@", ast.Add: "+", ast.Sub: "-", ast.Pow: "**"}
ORDERS = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
PRODUCT = (ast.Mult, ast.Div, ast.FloorDiv, ast.MatMult)
LOOSE = (ast.Call, ast.Subscript, ast.Tuple, ast.List, ast.Assign, ast.Return, ast.keyword)  # need no brackets inside

Edit = tuple[int, int, str]  # from byte, to byte, what stands there instead


@dataclass(frozen=True)
class Mutant:
    """One slip in one module. `before` and `after` are the lines that differ, without indentation."""

    module: str
    where: str  # the function's name, with its class's; "" outside all functions
    line: int
    operator: str
    before: str
    after: str
    reach: tuple[int, int] | None  # who runs one of these lines reaches the slip; None: whoever uses the module
    source: str

    @property
    def key(self) -> str:
        return f"{self.module}:{self.where}: {self.before} -> {self.after}"


def mutants(module: str, source: str, only_equations: bool = False) -> list[Mutant]:
    """All mutants of a module, each once, in the order of their places.

    only_equations: of functions and classes that name a numbered equation, and of nothing else in the module.
    """
    return sorted(_Places(module, source, only_equations).mutants.values(), key=lambda mutant: mutant.line)


class _Places(ast.NodeVisitor):
    def __init__(self, module: str, source: str, only_equations: bool):
        tree, self.module, self.code = ast.parse(source), module, source.encode()
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line.encode()))
        self.bound = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            for alias in getattr(node, "names", ())
            if isinstance(alias, ast.alias)
        } | {node.name for node in tree.body if hasattr(node, "name")}
        self.only_equations, self.mutants, self.made = only_equations, {}, set()
        self.names, self.parents, self.functions, self.reach = [], [], 0, None
        self.visit(tree)

    # Places: where operators are tried, and who reaches them

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
            return
        if self.only_equations and isinstance(self.parents[-1] if self.parents else None, ast.Module):
            documented = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node)
            if not (documented or "").startswith("Eq. "):
                return
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "getattr"):
            return
        outer = self.reach
        if isinstance(node, ast.stmt) and self.functions:
            body = getattr(node, "body", None)
            self.reach = (node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno)
        if isinstance(node, ast.Lambda) and not self.functions:
            self.reach = (node.lineno, node.end_lineno)
        for name, edit in self.edits(node):
            self.add(node, name, edit)
        self.parents.append(node)
        if isinstance(node, ast.FunctionDef):
            self.function(node)
        elif isinstance(node, ast.ClassDef):
            self.inside(node, node.body)
        elif isinstance(node, (ast.arguments, ast.AnnAssign)):
            for value in (getattr(node, f, None) for f in ("defaults", "kw_defaults", "value")):
                for each in value if isinstance(value, list) else [value]:
                    if each is not None:
                        self.visit(each)
        else:
            self.generic_visit(node)
        self.parents.pop()
        self.reach = outer

    def function(self, node: ast.FunctionDef) -> None:
        self.reach = (node.body[0].lineno, node.end_lineno)  # of default values: whoever calls the function
        self.functions += 1
        self.inside(node, [node.args, *node.body])
        self.functions -= 1

    def inside(self, node: ast.FunctionDef | ast.ClassDef, body: list[ast.AST]) -> None:
        self.names.append(node.name)
        for part in body:
            self.visit(part)
        self.names.pop()

    # Text

    def span(self, node: ast.AST) -> tuple[int, int]:
        start, end = self.starts[node.lineno - 1], self.starts[node.end_lineno - 1]
        return start + node.col_offset, end + node.end_col_offset

    def text(self, start: int, end: int) -> str:
        return self.code[start:end].decode().strip()

    def of(self, node: ast.AST) -> str:
        return self.text(*self.span(node))

    def instead(self, node: ast.AST, text: str) -> Edit:
        """A loosely bound expression in the place of a node, in brackets where it needs them."""
        parent = self.parents[-1]
        head = parent.func if isinstance(parent, ast.Call) else getattr(parent, "value", None)
        loose = isinstance(parent, LOOSE) and (node is not head or isinstance(parent, (ast.Assign, ast.Return)))
        return (*self.span(node), text if loose else f"({text})")

    def symbol(self, left: ast.AST, right: ast.AST, symbol: str) -> tuple[int, int]:
        """Where an operator stands between its operands, which may be in brackets."""
        start = self.span(left)[1]
        start += self.code[start : self.span(right)[0]].index(symbol.encode())
        return start, start + len(symbol)

    def add(self, node: ast.AST, operator: str, edit: Edit) -> None:
        start, end, text = edit
        source = self.code[:start] + text.encode() + self.code[end:]
        first, last = source.rfind(b"\n", 0, start) + 1, source.find(b"\n", start + len(text.encode()))
        old_last = self.code.find(b"\n", end)
        shown = (
            " ".join(part.decode().partition("  #")[0].split())
            for part in (self.code[first:old_last], source[first:last])
        )
        name = text.strip("(").partition("(")[0]
        if name in COEFFICIENTS and name not in self.bound:
            source += f"\nfrom {FORWARD} import {name}\n".encode()
        if source in self.made or source == self.code:
            return
        self.made.add(source)
        where, before, after = ".".join(self.names), *shown
        mutant = Mutant(self.module, where, node.lineno, operator, before, after, self.reach, source.decode())
        while mutant.key in self.mutants:  # the same line stands in the function again
            mutant = replace(mutant, after=mutant.after + " (again)")
        self.mutants[mutant.key] = mutant

    # Operators

    def edits(self, node: ast.AST) -> Iterator[tuple[str, Edit]]:
        """(operator, edit) of every slip at this node."""
        match node:
            case ast.Attribute(attr=attr, ctx=ast.Load()) if attr in ("alpha", "alpha_bar"):
                yield "α and ᾱ", (*self.span(node), f"{self.of(node.value)}.{BARS[attr]}")
            case ast.Attribute(value=ast.Name(id="schedule" | "self"), attr="T", ctx=ast.Load()):
                yield from self.times(node)
            case ast.Name(id=name, ctx=ast.Load()) if name in BARS:
                yield "α and ᾱ", (*self.span(node), BARS[name])
            case ast.Name(id=name, ctx=ast.Load()) if name in TIMES and not self.of_no_value():
                yield from self.times(node)
            case ast.Constant(value=value) if isinstance(value, (bool, int, float)):
                changed = (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else 0.1
                if isinstance(value, float) and value:
                    changed = float(f"{1.1 * value:.12g}")
                yield "constant", (*self.span(node), repr(changed))
            case ast.UnaryOp(op=ast.USub()):
                yield "sign", (*self.span(node), self.text(self.span(node)[0] + 1, self.span(node)[1]))
            case ast.AugAssign(op=ast.Add() | ast.Sub()):
                symbol = SYMBOLS[type(node.op)]
                yield "sign", (*self.symbol(node.target, node.value, symbol), "-" if symbol == "+" else "+")
            case ast.BinOp(op=op) if type(op) in SYMBOLS:
                yield from self.operands(node, SYMBOLS[type(op)])
            case ast.Compare():
                operands = [node.left, *node.comparators]
                for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
                    if type(op) in ORDERS:
                        symbol, other = ORDERS[type(op)]
                        yield "< and ≤", (*self.symbol(left, right, symbol), other)
            case ast.Call():
                yield from self.call(node)

    def of_no_value(self) -> bool:
        """Whether only the type of a name matters here, or its place (t.device, t.is_complex()), or it is in t ± 1."""
        parent = self.parents[-1]
        if isinstance(parent, ast.Attribute):
            called = len(self.parents) > 1 and getattr(self.parents[-2], "func", None) is parent
            return not called or parent.attr.startswith("is_") or parent.attr == "numel"
        return _one_off(parent)

    def times(self, node: ast.expr) -> Iterator[tuple[str, Edit]]:
        for sign in "-+":
            yield "t and t ± 1", self.instead(node, f"{self.of(node)} {sign} 1")

    def operands(self, node: ast.BinOp, symbol: str) -> Iterator[tuple[str, Edit]]:
        at, after = self.symbol(node.left, node.right, symbol)
        start, end = self.span(node)
        left, right = self.text(start, at), self.text(after, end)
        if symbol in "+-":
            yield "sign", (at, after, "-" if symbol == "+" else "+")
            if _one_off(node):
                yield "t and t ± 1", (start, end, left)
        elif symbol == "**":
            if right in ("2", "0.5"):
                yield "root or square", (start, end, left)
        else:
            yield "factor", (start, end, left)
            if not (isinstance(node.left, ast.BinOp) and isinstance(node.left.op, PRODUCT)) and symbol != "//":
                without = right if symbol in "*@" else f"1 / {right}"
                yield "factor", (start, end, without)

    def call(self, node: ast.Call) -> Iterator[tuple[str, Edit]]:
        start, end = self.span(node)
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in ("sqrt", "square") and isinstance(node.func, ast.Attribute):
            if node.args:
                yield "root or square", (start, end, f"({self.of(node.args[0])})")
            else:
                at = self.code.rindex(b"." + name.encode(), start, self.span(node.func)[1])
                yield "root or square", (start, end, self.text(start, at))
        if name in BAR_CALLS and isinstance(node.func, ast.Name):
            inside = self.text(self.span(node.func)[1] + 1, end - 1)
            text = BAR_CALLS[name].format(inside)
            yield "α and ᾱ", (start, end, text) if name == "noise_std" else self.instead(node, text)
        given = [] if name in ("min", "max") else node.args  # whose order is no slip; a schedule elsewhere only crashes
        given = [arg for arg in given if not isinstance(arg, ast.Starred) and not self.of(arg).endswith("schedule")]
        for i, first in enumerate(given):
            for second in given[i + 1 :]:
                (a, b), (c, d) = self.span(first), self.span(second)
                swapped = self.code[c:d] + self.code[b:c] + self.code[a:b]
                if self.code[a:b] != self.code[c:d]:
                    yield "arguments", (a, d, swapped.decode())


def _one_off(node: ast.AST) -> bool:
    """Whether it is t − 1 or t + 1."""
    match node:
        case ast.BinOp(left=ast.Name(id=name), op=ast.Sub() | ast.Add(), right=ast.Constant(value=1)):
            return name in TIMES
    return False
