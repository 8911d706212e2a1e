"""Losses of logits h @ w, and their gradients, by blocks of rows: no more logits are ever held.

The labels F and B are those of linear_cross_entropy, which has every line. The two functions
that loop are jitted, or a call outside of jit would compile its loop each time.
"""

from collections.abc import Callable
from functools import partial
from math import ceil, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import floating, matmul
from jaxprop.rules.labelled_rows import (
    Examples,
    Inputs,
    Statistics,
    each_loss,
    examples,
    log_probabilities,
    logits_gradient,
    logsumexps,
    smoothing_slope,
    statistics,
    targets,
)
from jaxprop.rules.losses import check_optional

# Where the vocabulary is wider, dw is in no cache: it is visited by larger blocks, part by part.
WIDE, PARTS = 2**15, 4


class LinearInputs(NamedTuple):
    """The rows h (N, D) with what belongs to each, and what all rows share."""

    h: jax.Array
    w: jax.Array
    labels: jax.Array
    weights: jax.Array | None = None
    label_smoothing: jax.Array | None = None
    z_loss: jax.Array | None = None
    soft_cap: jax.Array | None = None


class Gradients(NamedTuple):
    """Of a sum of losses; None for what is absent, and for dh, which is no sum, in a block."""

    dh: jax.Array | None
    dw: jax.Array | None
    dlabel_smoothing: jax.Array | None
    dz_loss: jax.Array | None
    dsoft_cap: jax.Array | None


class Row(NamedTuple):
    """What belongs to each row of a block: along the first axis of every array."""

    h: jax.Array
    labels: jax.Array
    weights: jax.Array | None
    found: Statistics | None
    v: jax.Array | None


def flat(inputs: LinearInputs) -> LinearInputs:
    """The inputs with every axis but the last of h in one."""
    h, labels, weights = inputs.h, inputs.labels, inputs.weights
    if h.ndim == 2:
        return inputs
    n = prod(h.shape[:-1])
    return inputs._replace(
        h=h.reshape(n, h.shape[-1]),
        labels=labels.reshape(n),
        weights=None if weights is None else weights.reshape(n),
    )


def capped_logits(inputs: LinearInputs) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """(logits, u, a / soft_cap), the last two where there is a cap."""
    a = matmul(inputs.h, inputs.w)  # F1
    if inputs.soft_cap is None:
        return a, None, None
    cap = inputs.soft_cap.astype(a.dtype)
    u = jnp.tanh(a / cap)  # F2
    return cap * u, u, a / cap  # F3


def kept_rows(h: jax.Array, labels: jax.Array, ignore_index: int | None) -> jax.Array:
    """h or its cotangent, 0 where the label is ignored: what is not finite there stays there."""
    return h if ignore_index is None else jnp.where((labels != ignore_index)[..., None], h, 0)


def rows_at_once(block: int | None, w: jax.Array) -> int:
    """The size of a block of rows where none is given: larger where dw is, which each visits."""
    if block is not None:
        return block
    return 256 if w.ndim and w.shape[-1] > WIDE else 128


def without_logits(inputs: LinearInputs, ignore_index: int | None) -> Examples:
    """Every row as an example, its logits known by their shape alone."""
    logits = jax.ShapeDtypeStruct((len(inputs.h), inputs.w.shape[-1]), inputs.h.dtype)
    return _examples(inputs, logits, ignore_index)


@partial(jax.jit, static_argnames=("ignore_index", "block"))
def losses_by_blocks(
    inputs: LinearInputs, ignore_index: int | None, block: int
) -> tuple[jax.Array, Statistics]:
    """(each, the statistics) of the rows, columns (N, 1)."""

    def losses(row: Row, sums: Any) -> tuple[tuple[jax.Array, Statistics], tuple[()]]:
        here = inputs._replace(h=row.h, labels=row.labels, weights=row.weights)
        logits, _, _ = capped_logits(here)
        x = _examples(here, logits, ignore_index)
        found = statistics(logits, x.dtype)
        return (each_loss(x, found), found), ()

    row = Row(inputs.h, inputs.labels, inputs.weights, None, None)
    return _over_blocks(losses, row, block)[0]


@partial(jax.jit, static_argnames=("ignore_index", "block"))
def gradients_by_blocks(
    inputs: LinearInputs,
    ignore_index: int | None,
    block: int,
    found: Statistics | None = None,
    v: jax.Array | None = None,
) -> tuple[jax.Array, Gradients]:
    """(each, the gradients of sum(v * weights * each)); v is (N, 1), None for 1.

    found: the statistics where they are known.
    """

    def gradients(
        row: Row, sums: Gradients | None
    ) -> tuple[tuple[jax.Array, jax.Array], Gradients]:
        h = kept_rows(row.h, row.labels, ignore_index)
        here = inputs._replace(h=h, labels=row.labels, weights=row.weights)
        logits, u, ratio = capped_logits(here)  # F1, F2, F3
        x = _examples(here, logits, ignore_index)
        known = statistics(logits, x.dtype) if row.found is None else row.found
        each = each_loss(x, known)  # F8
        v = jnp.ones_like(each) if row.v is None else row.v
        lse, log_p = logsumexps(x, known), log_probabilities(x, known)  # F6, F7
        _, _, t = targets(x)  # F4, F5
        deach = v * x.weights  # B1
        dlogits = logits_gradient(x, deach, lse, log_p, t)  # B5, B6
        dsmoothing = _where_given(here.label_smoothing, deach * smoothing_slope(x, known))  # B4, B7
        dz_loss = _where_given(here.z_loss, deach * lse * lse)  # B3
        da, dcap = dlogits, None
        if u is not None and ratio is not None:
            # An ignored row gives nothing, also where its 0 / soft_cap is nan.
            dcap = jnp.sum(jnp.where(x.kept, dlogits * _cap_slope(u, ratio), 0))  # B8
            da = jnp.where(x.kept, dlogits * (1 - u * u), 0)  # B9
        da = da.astype(h.dtype)
        dh = kept_rows(matmul(da, here.w.T), row.labels, ignore_index)  # B10
        more = Gradients(None, None, dsmoothing, dz_loss, dcap)
        if sums is not None:
            more = jax.tree.map(jnp.add, sums._replace(dw=None), more)
        return (each, dh), more._replace(dw=_with_product(sums, h, da))  # B11

    row = Row(inputs.h, inputs.labels, inputs.weights, found, v)
    (each, dh), sums = _over_blocks(gradients, row, block)
    return each, sums._replace(dh=dh)


def _with_product(sums: Gradients | None, h: jax.Array, da: jax.Array) -> jax.Array:
    """h.T @ da, added to the sum so far; of a wide dw a few rows at a time."""
    if sums is None or sums.dw is None:
        return matmul(h.T, da)
    dw, parts = sums.dw, PARTS if da.shape[1] > WIDE else 1
    step = max(1, ceil(h.shape[1] / parts))
    for i in range(0, h.shape[1], step):
        dw = dw.at[i : i + step].add(matmul(h[:, i : i + step].T, da))
    return dw


def _cap_slope(u: jax.Array, ratio: jax.Array) -> jax.Array:
    """u - ratio * (1 - u * u); by its series near 0, where the two are nearly the same."""
    near = jnp.abs(ratio) < 0.02
    r = jnp.where(near, ratio, 0)
    square = r * r
    factor = 2 / 3 - square * (8 / 15 - square * (34 / 105 - square * 496 / 2835))
    return jnp.where(near, r * square * factor, u - ratio * (1 - u * u))


def _over_blocks(f: Callable[[Row, Any], tuple[Any, Any]], row: Row, block: int) -> tuple[Any, Any]:
    """f(rows, sums) -> (something per row, the sums with theirs), of all rows, block by block.

    Block j takes every k-th row, so that a batch spread over devices is spread in each block.
    The sums start with a block outside of the loop: what varies over which mesh axes is then
    theirs, and no zeros need to be told.
    """
    n = len(row.h)
    k = max(n - 1, 0) // block
    if k == 0:
        return f(row, None)
    last = jax.tree.map(lambda x: x[k * block :], row)

    def step(sums: Any, some: Row) -> tuple[Any, Any]:
        per_row, sums = f(some, sums)
        return sums, per_row

    def apart(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x[: k * block].reshape(block, k, *x.shape[1:]), 1, 0)

    def together(x: jax.Array, last: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.moveaxis(x, 0, 1).reshape(k * block, *x.shape[2:]), last])

    per_last, sums = f(last, None)
    sums, per_row = lax.scan(step, sums, jax.tree.map(apart, row))
    return jax.tree.map(together, per_row, per_last), sums


def _examples(inputs: LinearInputs, logits: Any, ignore_index: int | None) -> Examples:
    smoothing, z_loss = inputs.label_smoothing, inputs.z_loss
    rows = Inputs(logits, inputs.labels, inputs.weights, None, smoothing, z_loss)
    return examples(rows, ignore_index)


def _where_given(argument: jax.Array | None, terms: jax.Array) -> jax.Array | None:
    return None if argument is None else jnp.sum(terms)


def check_linear(owner: str, name: str, inputs: LinearInputs, block: int) -> None:
    """TypeError or ValueError where they do not fit; name is what the rule calls its labels."""
    h, w, labels = inputs.h, inputs.w, inputs.labels
    floating(owner, "h", h)
    floating(owner, "w", w)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{owner}: {name} must be integers, got {labels.dtype}. Convert them with "
            f"{name}.astype; for distributions use softmax_cross_entropy on whole logits."
        )
    if h.ndim < 1 or w.ndim != 2 or w.shape[-1] < 1 or h.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{owner}: h must be (..., D) and w (D, V) with V of at least 1, got h {h.shape} and w "
            f"{w.shape}. Transpose a (V, D) matrix of embeddings."
        )
    if labels.shape != h.shape[:-1]:
        raise ValueError(
            f"{owner}: {name} must be {h.shape[:-1]}, one for each row of h, got {labels.shape}. "
            "Add, drop or repeat an axis."
        )
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(
            f"{owner}: block must be a positive integer, the rows of logits held at once, got "
            f"{block!r}."
        )
    check_optional(owner, "weights", inputs.weights, h.shape[:-1])
    check_optional(owner, "label_smoothing", inputs.label_smoothing, ())
    check_optional(owner, "z_loss", inputs.z_loss, ())
    check_optional(owner, "soft_cap", inputs.soft_cap, ())
