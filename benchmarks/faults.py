"""Faults for the mutation check: one small change of a source text each, found on its syntax tree.

What only users read (messages, docstrings, strings) and what only checks the code itself (type hints,
`strict` of `zip`) is left alone.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
ORDERLESS = {"min", "max", "minimum", "maximum", "logical_and", "logical_or", "array_equal", "isinstance"}
"""Functions whose first two arguments may change places, or never: no mistake to make."""
MESSAGES = {"UserError", "Finding", "warn", "print", "debug", "info", "warning", "error", "cast", "TypeVar"}
"""Calls whose arguments are words for users or types."""
NOT_CODE = ("annotation", "returns", "decorator_list", "type_params", "bases", "exc")
"""Fields of a node that hold types, decorators or the message of an error."""
SHOWN = 70
"""Characters of a text that are printed."""


@dataclass(frozen=True, order=True)
class Fault:
    """One change of one file."""

    file: str
    """Path within the repository."""
    line: int
    """Of the text that changes, from 1."""
    last_line: int
    start: int
    """First byte of it in the file."""
    end: int
    kind: str
    old: str
    new: str

    def apply(self, source: bytes) -> bytes:
        """Return the file's text with the fault in it."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    @property
    def change(self) -> str:
        """The fault in words, without its line."""
        texts = (self.old, self.new.removeprefix("(").removesuffix(")"))
        old, new = (text if len(text) <= SHOWN else f"{text[:SHOWN]}..." for text in texts)
        return f"{self.file}: {self.kind}: {old} -> {new}".replace("\n", " ")

    def __str__(self) -> str:
        return self.change.replace(": ", f":{self.line}: ", 1)


def faults_in(file: str, source: bytes) -> list[Fault]:
    """All faults of a file's text, in its order."""
    lengths = [len(line) for line in source.splitlines(keepends=True)]
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    found = []
    for kind, old, new in _changes_below(ast.parse(source)):
        start = starts[old.lineno - 1] + old.col_offset
        end = starts[(old.end_lineno or 0) - 1] + (old.end_col_offset or 0)
        text = ast.unparse(new) if isinstance(new, ast.stmt) else f"({ast.unparse(new)})"
        before = ast.unparse(old)
        if before != ast.unparse(new):
            found.append(Fault(file, old.lineno, old.end_lineno or 0, start, end, kind, before, text))
    return sorted(set(found))


_Change = tuple[str, ast.expr | ast.stmt, ast.expr | ast.stmt]


def _changes_below(node: ast.AST) -> Iterator[_Change]:
    """Kind, node before and node after, of a node and all below it that is code."""
    if _is_words(node):
        return
    if isinstance(node, ast.stmt):
        yield from _of_statement(node)
    elif isinstance(node, ast.expr):
        yield from _of_expression(node)
    elif isinstance(node, ast.comprehension):
        yield from (("condition negated", test, _negated(test)) for test in node.ifs)
    for field, value in ast.iter_fields(node):
        if field not in NOT_CODE:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _changes_below(child)


def _is_words(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.keyword(arg="strict"):
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in MESSAGES
    return False


def _of_statement(node: ast.stmt) -> Iterator[_Change]:
    match node:
        case ast.If(test=test) | ast.While(test=test):
            yield "condition negated", test, _negated(test)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield "result is None", value, ast.Constant(None)
        case ast.AugAssign(op=operator):
            if type(operator) in ARITHMETIC:
                yield "arithmetic", node, _with(node, op=ARITHMETIC[type(operator)]())
            yield "statement deleted", node, ast.Pass()
        case ast.Raise() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement deleted", node, ast.Pass()
        case ast.Expr(value=ast.Call() as call) if not _is_words(call):
            yield "statement deleted", node, ast.Pass()


def _of_expression(node: ast.expr) -> Iterator[_Change]:
    match node:
        case ast.Compare(ops=operators):
            for place, operator in enumerate(operators):
                changed = [*operators[:place], COMPARISONS[type(operator)](), *operators[place + 1 :]]
                yield "comparison", node, _with(node, ops=changed)
        case ast.BinOp(op=operator) if type(operator) in ARITHMETIC and not _joins_text(node):
            yield "arithmetic", node, _with(node, op=ARITHMETIC[type(operator)]())
        case ast.BoolOp(op=operator):
            yield "logic", node, _with(node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "logic", node, operand
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "arithmetic", node, operand
        case ast.IfExp(test=test):
            yield "condition negated", test, _negated(test)
        case ast.Call():
            yield from _of_call(node)
        case ast.Constant(value=bool() | int() | float() as value):
            yield "constant", node, ast.Constant(_other(value))


def _of_call(node: ast.Call) -> Iterator[_Change]:
    for keyword in node.keywords:
        if keyword.arg in ("axis", "dim") and isinstance(keyword.value, ast.UnaryOp):
            yield "axis", keyword.value, ast.Constant(0)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    match node.args:
        case [first, second, *rest] if name not in ORDERLESS:
            if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                yield "order of arguments", node, _with(node, args=[second, first, *rest])


def _joins_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _other(value: float) -> float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) or value == 0 else 2 * value


def _negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
