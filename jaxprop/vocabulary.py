"""The language of derivations: single assignments in a small, fixed vocabulary.

    arithmetic     + - * / ** @, unary minus, parentheses, numbers, pi
    comparison     < <= > >= == !=, for where
    elementwise    exp log log1p sqrt rsqrt tanh erf abs sign round where maximum minimum
    last axis      mean sum max, the axis kept with length 1
    everything     mean_all sum_all, to a scalar
    rows           sum_rows, over every axis but the last
    shapes         size(x), the number of elements; rows(x), the length of the first axis
    matrices       x.T; column(x), a vector as a matrix of one column;
                   swap(x), the last two axes exchanged; flip(x), the first axis back to front
    parts          part(x, k, n), the k-th (from 0) of n equal parts of the last axis;
                   beside(a, b, ...), joined along the last axis
    labels         one_hot(labels, logits): integers as rows of 0 and 1; floating ones as they are
    first axis     sum_first, the axis kept with length 1; first_max(x), 1 at the first largest
                   entry and 0 elsewhere
    between        sum_each, over every axis but the first and the last
    windows        patches(x, window, stride, dilation=1, before=0): what each place of the windows
                   over x (1, N, C) sees, (window, count, C), `before` zeros in front of x;
                   scatter_add(p, stride, dilation=1, like=None, before=0): p added up at the
                   places that patches took it from, in the shape of `like`, or as short as may be
    order          take(x, index): the entries of x, numbered in row-major order, at these numbers

Lines are read with `ast` and evaluated by walking the tree: no Python is run.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from math import pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _kept(reduce: Callable) -> Callable:
    return lambda x: reduce(x, axis=-1, keepdims=True)


def _sum_rows(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(x.ndim - 1)))


def _one_hot(labels: jax.Array, logits: jax.Array) -> jax.Array:
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def _column(x: jax.Array) -> jax.Array:
    return x[:, None]


def _sum_each(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim - 1)))


def _first_max(x: jax.Array) -> jax.Array:
    places = jnp.arange(len(x)).reshape(len(x), *[1] * (x.ndim - 1))
    return (places == jnp.argmax(x, axis=0)).astype(x.dtype)


def _number(option: int | tuple[int]) -> int:
    """An option that has one number per spatial axis, where there is one such axis."""
    return option[0] if isinstance(option, tuple) else option


def _patches(
    x: jax.Array,
    window: int | tuple[int],
    stride: int | tuple[int],
    dilation: int | tuple[int] = 1,
    before: int = 0,
) -> jax.Array:
    window, stride, dilation = map(_number, (window, stride, dilation))
    spatial = jnp.pad(x[0], ((before, 0), (0, 0)))
    count = (len(spatial) - (window - 1) * dilation - 1) // stride + 1
    return spatial[_places(window, count, stride, dilation)]


def _scatter_add(
    p: jax.Array,
    stride: int | tuple[int],
    dilation: int | tuple[int] = 1,
    like: jax.Array | None = None,
    before: int = 0,
) -> jax.Array:
    window, count, channels = p.shape
    places = _places(window, count, _number(stride), _number(dilation))
    length = int(places.max()) + 1 if like is None else like.shape[1] + before
    zeros = jnp.zeros((1, length, channels), p.dtype)
    return zeros.at[0, places].add(p)[:, before:]


def _places(window: int, count: int, stride: int, dilation: int) -> np.ndarray:
    """By place of the window and by window, the entry that is seen."""
    return dilation * np.arange(window)[:, None] + stride * np.arange(count)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.ravel(x)[index]


def _part(x: jax.Array, k: int, n: int) -> jax.Array:
    return jnp.split(x, n, axis=-1)[k]


def _beside(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=-1)


WORDS: Mapping[str, Callable] = {
    "exp": jnp.exp,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "round": jnp.round,
    "where": jnp.where,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "mean": _kept(jnp.mean),
    "sum": _kept(jnp.sum),
    "max": _kept(jnp.max),
    "mean_all": jnp.mean,
    "sum_all": jnp.sum,
    "sum_rows": _sum_rows,
    "size": jnp.size,
    "rows": len,
    "one_hot": _one_hot,
    "column": _column,
    "part": _part,
    "beside": _beside,
    "swap": jnp.matrix_transpose,
    "flip": lambda x: x[::-1],
    "sum_first": lambda x: jnp.sum(x, axis=0, keepdims=True),
    "first_max": _first_max,
    "sum_each": _sum_each,
    "patches": _patches,
    "scatter_add": _scatter_add,
    "take": _take,
}

# Arguments of which a word reads the shape alone, by position: nothing is differentiated there.
SHAPE_ONLY: Mapping[str, int] = {"size": 0, "rows": 0, "one_hot": 1, "scatter_add": 3}

CONSTANTS: Mapping[str, float] = {"pi": pi}

_OPERATORS: Mapping[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
    ast.USub: operator.neg,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def read(text: str) -> tuple[str, ast.expr]:
    """(name, expression) of the assignment `name = expression`, all of it in the vocabulary.

    Raises:
        ValueError: where it is no such assignment; it names the word that is not known.
    """
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f"it is not an assignment ({error.msg}): {text!r}") from None
    match body:
        case [ast.Assign(targets=[ast.Name(id=name)], value=expression)]:
            _check_words(expression)
            return name, expression
    raise ValueError(f"it must be one assignment, name = expression, got {text!r}")


def names(expression: ast.expr, *, shapes: bool = True) -> Iterator[str]:
    """The quantities that an expression reads; without `shapes`, by their values."""
    match expression:
        case ast.Name(id=name):
            if name not in CONSTANTS:
                yield name
        case ast.Call(func=ast.Name(id=word), args=args):
            for position, argument in enumerate(args):
                if shapes or SHAPE_ONLY.get(word) != position:
                    yield from names(argument, shapes=shapes)
        case _:
            for child in ast.iter_child_nodes(expression):
                if isinstance(child, ast.expr):
                    yield from names(child, shapes=shapes)


def evaluate(expression: ast.expr, values: Mapping[str, Any]) -> Any:
    """The value of an expression that `read` returned; KeyError where a name has no value."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=number):
                return number
            case ast.Name(id=name):
                return CONSTANTS[name] if name in CONSTANTS else values[name]
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=op, operand=operand):
                return _OPERATORS[type(op)](value(operand))
            case ast.Attribute(value=matrix):
                return value(matrix).T
            case ast.Call(func=ast.Name(id=word), args=args):
                return WORDS[word](*map(value, args))
        raise AssertionError(f"read() let {ast.unparse(node)!r} pass")

    return value(expression)


def _check_words(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=int() | float()) | ast.Name():
            children: list[ast.expr] = []
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
            children = [left, right]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            children = [left, right]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            children = [operand]
        case ast.Attribute(value=matrix, attr="T"):
            children = [matrix]
        case ast.Call(func=ast.Name(id=word), args=args, keywords=[]) if word in WORDS:
            children = args
        case _:
            raise ValueError(
                f"unknown word {_word(node)!r}. The vocabulary is + - * / ** @ .T, comparisons, "
                f"{', '.join([*WORDS, *CONSTANTS])}."
            )
    for child in children:
        _check_words(child)


def _word(node: ast.expr) -> str:
    """What to call a node that is not in the vocabulary: the function's name in a call of one."""
    known = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WORDS
    return ast.unparse(node.func if isinstance(node, ast.Call) and not known else node)
