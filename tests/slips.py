"""Slips of the pen, planted one at a time in a line of a derivation.

They are made from the line's syntax, so that every line gets all that its form allows:

    negated, doubled, halved    the whole right-hand side
    sign                        + for - and - for +, a unary minus lost
    dropped                     a term or a factor: either side of + - * @, the divisor of /
    transpose                   .T lost, or added to either side of @
    mean                        sum for mean and mean for sum, sum_all and mean_all alike
    branches                    the two of a `where` exchanged
"""

import ast
import inspect
from collections.abc import Hashable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

from jaxprop import Rule
from jaxprop.derivation import Derivation, Line, derivation

OTHER_REDUCTION = {"sum": "mean", "mean": "sum", "sum_all": "mean_all", "mean_all": "sum_all"}


class Slip(NamedTuple):
    kind: str
    expression: str  # the right-hand side of the line after it


def slips(line: Line) -> list[Slip]:
    """Every right-hand side that differs from the line's by one slip."""
    whole = ast.unparse(line.expression)
    wholes = {"negated": f"-({whole})", "doubled": f"2 * ({whole})", "halved": f"({whole}) / 2"}
    found = {normal(wrong): kind for kind, wrong in wholes.items()}
    for position, node in enumerate(ast.walk(line.expression)):
        for kind, replacement in _replacements(node):
            wrong = ast.unparse(_replaced(line.expression, position, replacement))
            found.setdefault(wrong, kind)
    return [Slip(kind, wrong) for wrong, kind in found.items() if wrong != whole]


def one_of_each_kind(found: list[Slip]) -> list[Slip]:
    return list({slip.kind: slip for slip in reversed(found)}.values())


def normal(text: str) -> str:
    """Python without the spaces and parentheses that do not matter to it."""
    return ast.unparse(ast.parse(text))


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
            minus = isinstance(op, ast.Sub)
            yield "sign", ast.BinOp(left, ast.Add() if minus else ast.Sub(), right)
            yield "dropped", left
            yield "dropped", ast.UnaryOp(ast.USub(), right) if minus else right
        case ast.BinOp(left=left, op=ast.Mult() | ast.MatMult() as op, right=right):
            yield "dropped", left
            yield "dropped", right
            if isinstance(op, ast.MatMult):
                yield "transpose", ast.BinOp(_transposed(left), op, right)
                yield "transpose", ast.BinOp(left, op, _transposed(right))
        case ast.BinOp(left=left, op=ast.Div()):
            yield "dropped", left
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "sign", operand
        case ast.Call(func=ast.Name(id="where"), args=[condition, yes, no]):
            yield "branches", ast.Call(node.func, [condition, no, yes], [])
        case ast.Call(func=ast.Name(id=word), args=args) if word in OTHER_REDUCTION:
            yield "mean", ast.Call(ast.Name(OTHER_REDUCTION[word]), args, [])


def _transposed(matrix: ast.expr) -> ast.expr:
    """matrix.T; of one that is transposed already, the matrix."""
    return matrix.value if isinstance(matrix, ast.Attribute) else ast.Attribute(matrix, "T")


def _replaced(expression: ast.expr, position: int, replacement: ast.expr) -> ast.expr:
    """A copy of the expression with another node at this position of `ast.walk`."""
    root = ast.Expression(deepcopy(expression))
    target = list(ast.walk(root))[position + 1]  # after the root itself

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return replacement if node is target else self.generic_visit(node)

    return Replace().visit(root).body


def with_line(rule: Rule, label: str, expression: str) -> Rule:
    """The rule, one line of its derivation given another right-hand side."""
    return with_docstring(rule, docstring(derivation(rule), {label: expression}))


def docstring(lines: Derivation, changed: dict[str, str]) -> str:
    """A derivation as text, some lines given another right-hand side by label."""
    rows = [f"Scope      {lines.scope}"]
    for heading, part in {"Forward": lines.forward, "Backward": lines.backward}.items():
        for i, line in enumerate(part):
            right = changed.get(line.label, ast.unparse(line.expression))
            cited = f" from {', '.join(line.follows)}" if line.follows else ""
            rows.append(f"{'' if i else heading:<10} {line.name} = {right}  ({line.label}){cited}")
    return "\n".join(rows)


def with_docstring(rule: Rule, text: str) -> Rule:
    """The rule under another docstring."""

    def reference(*args: Any, **options: Hashable) -> Any:
        return rule.reference(*args, **options)

    reference.__name__ = rule.name
    reference.__doc__ = text
    vars(reference)["__signature__"] = inspect.signature(rule)
    return Rule(reference, rule.forward, rule.backward, surrogate=rule.surrogate)
