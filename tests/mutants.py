"""Functions broken in one simple way each: what a test of their values must notice.

A mutant is the function's own source with one expression changed: a square or a root dropped, an
operator or a comparison replaced, a constant changed, a bias correction left out, two arguments
swapped. It is known by what was written and what stands there instead, which outlives edits of
other lines.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

OPERATORS = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,),
    ast.MatMult: (ast.Mult,), ast.FloorDiv: (ast.Mult,), ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}  # fmt: skip

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
}  # fmt: skip

DROPPED = {
    "sqrt", "sqrt_", "square", "square_", "abs", "abs_", "fabs", "log", "log1p", "exp", "expm1",
    "log2", "log10", "mean",
}  # fmt: skip
"""Calls of one argument that are left out, so that the argument stays."""

REPLACED = {
    "add": "sub", "sub": "add", "mul": "div", "div": "mul", "add_": "sub_", "sub_": "add_",
    "mul_": "div_", "div_": "mul_", "max": "min", "min": "max", "maximum": "minimum",
    "minimum": "maximum", "amax": "amin", "amin": "amax", "lt": "gt", "gt": "lt", "le": "ge",
    "ge": "le", "eq": "ne", "ne": "eq", "multiply": "divide", "divide": "multiply",
    "sin": "cos", "cos": "sin", "arctan2": "hypot", "nanmax": "nanmin", "nanmin": "nanmax",
    "sum": "mean", "bitwise_and": "bitwise_or", "floor": "ceil", "ceil": "floor",
    "cumsum": "cumprod",
}  # fmt: skip
"""Names of functions and methods, and what is called instead."""

SWAPPED = {"sub", "div", "divide", "arctan2", "lt", "gt", "le", "ge", "subtract", "where", "hypot"}
"""Calls of which the first two arguments change places (of ``where`` the last two)."""


@dataclass(frozen=True)
class Mutant:
    """One broken function; `function` has the globals of the original, and is in no registry."""

    name: str
    function: Callable[..., Any]


def mutants(function: Callable[..., Any]) -> Iterator[Mutant]:
    """All of a function, in the order of its text."""
    function = inspect.unwrap(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    definition.decorator_list, definition.returns = [], None
    for argument in ast.walk(definition):
        if isinstance(argument, ast.arg):
            argument.annotation = None  # which the running package never evaluates
    counts: dict[str, int] = {}
    for node, changed in _changes(definition):
        before, after = ast.unparse(node), ast.unparse(changed)
        if before == after:
            continue
        name = f"{function.__name__}: {before} -> {after}"
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            name += f" #{counts[name]}"
        yield Mutant(name, _compiled(function, tree, node, changed))


def _compiled(function, tree, node, changed):
    """The function with one node replaced."""

    made = _replaced(tree, node, changed)
    scope: dict[str, Any] = {}
    exec(compile(made, f"<mutant of {function.__name__}>", "exec"), function.__globals__, scope)
    return scope[function.__name__]


def _replaced(tree, node, changed):
    """A copy of the tree with one node replaced: nodes are told apart by identity."""

    def clone(here):
        if here is node:
            return copy.deepcopy(changed)
        if not isinstance(here, ast.AST):
            return [clone(item) for item in here] if isinstance(here, list) else here
        new = type(here)(**{name: clone(value) for name, value in ast.iter_fields(here)})
        return ast.copy_location(new, here)

    return ast.fix_missing_locations(clone(tree))


def _changes(definition: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Expressions of the body, and what stands in their place."""
    for statement in definition.body:
        for node in _walk(statement):
            for changed in _instead(node):
                yield node, ast.copy_location(changed, node)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Expressions that give values: no annotations, docstrings, messages of errors."""
    if isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.Assert)):
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "args") and isinstance(
            node, (ast.AnnAssign, ast.FunctionDef, ast.arg)
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child)


def _instead(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        if not isinstance(node.operand, ast.Constant):
            yield node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        if not isinstance(node.comparators[0], ast.Constant) or not isinstance(
            node.comparators[0].value, str
        ):  # which device it is decides between two ways to the same number
            for other in COMPARISONS.get(type(node.ops[0]), ()):
                yield ast.Compare(node.left, [other()], node.comparators)
    elif isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            other = COMPARISONS.get(type(op), (type(op),))[0]
            yield ast.Compare(
                node.left, [*node.ops[:place], other(), *node.ops[place + 1 :]], node.comparators
            )
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node.value)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.AugAssign):
        for other in OPERATORS.get(type(node.op), ()):
            yield ast.AugAssign(node.target, other(), node.value)


def _of_operation(node: ast.BinOp) -> Iterator[ast.AST]:
    if isinstance(node.op, ast.Pow):
        yield node.left  # a square dropped
        return
    one = isinstance(node.left, ast.Constant) and node.left.value == 1
    if one and isinstance(node.op, ast.Sub):
        yield node.left  # a bias correction dropped
    for other in OPERATORS.get(type(node.op), ()):
        yield ast.BinOp(node.left, other(), node.right)


def _of_constant(value: object) -> Iterator[ast.AST]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    yield ast.Constant(value + 1 if isinstance(value, int) or value == 0 else 2 * value)


def _of_call(node: ast.Call) -> Iterator[ast.AST]:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else None
    if isinstance(node.func, ast.Name):
        called = node.func.id
    method = isinstance(node.func, ast.Attribute) and not (
        isinstance(node.func.value, ast.Name) and node.func.value.id in ("np", "math", "torch")
    )
    if called in DROPPED:
        if method and not node.args:
            yield node.func.value
        elif not method and len(node.args) == 1 and not node.keywords:
            yield node.args[0]
    if called in REPLACED and not (called == "sum" and not isinstance(node.func, ast.Attribute)):
        new = copy.copy(node.func)
        if isinstance(new, ast.Attribute):
            new.attr = REPLACED[called]
        else:
            new.id = REPLACED[called]
        yield ast.Call(new, node.args, node.keywords)
    if called in SWAPPED and not method:
        if called == "where" and len(node.args) == 3:
            yield ast.Call(node.func, [node.args[0], node.args[2], node.args[1]], node.keywords)
        elif len(node.args) == 2:
            yield ast.Call(node.func, node.args[::-1], node.keywords)
