"""The plain recurrent network, over whole sequences."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxprop.rule import Case, Rule
from jaxprop.rules.recurrence import (
    Cell,
    Sequence,
    State,
    Weights,
    backward_in_blocks,
    by_steps,
    check,
    forward_in_blocks,
    outputs,
    sequence,
)
from jaxprop.samples import normal

Outputs = tuple[jax.Array, jax.Array]


def rnn_reference(
    x: jax.Array,
    h0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None = None,
    *,
    block: int | None = None,
) -> Outputs:
    """Run a recurrent network with tanh over whole sequences.

    Use it to study recurrence; lstm and gru remember for longer.

    Scope      one step of one example, within its length: x (1, C), h0 (H,)
    Forward    hs = tanh(x @ w_x + column(h0).T @ w_h + b)             (F1)
               h = sum_rows(hs)                                        (F2)
    Backward   dhs = g_hs + g_h                                        (B1) from F2
               dx = (dhs * (1 - hs * hs)) @ w_x.T                      (B2) from F1
               dh0 = sum_rows((dhs * (1 - hs * hs)) @ w_h.T)           (B3) from F1
               dw_x = x.T @ (dhs * (1 - hs * hs))                      (B4) from F1
               dw_h = column(h0) @ (dhs * (1 - hs * hs))               (B5) from F1
               db = sum_rows(dhs * (1 - hs * hs))                      (B6) from F1

    Args:
        x: (..., T, C), floating; (B, T, C) mostly.
        h0: (..., H), floating; the state before the first step.
        w_x: (C, H), floating; taken in x's dtype.
        w_h: (H, H), floating; taken in x's dtype.
        b: (H,), floating, or None for zeros.
        lengths: (...), integers, the steps of each example; None for all T. From its length on
            an example's state stays what it is, its output is 0 and its x is not read. Below 0
            counts as 0, beyond T as T. No cotangent.
        block: the steps whose gradients are held at once. None for as many as make 512 rows of all
            examples together, a quarter of the sequence at most and 8 at least.

    Returns:
        hs: (..., T, H), x's dtype.
        h: (..., H), the state at the length, in the dtype of h0.

    Residuals: the arguments and hs (an output); tanh is recomputed, a block at a time.

    Numerics: tanh in float32 at least; h is carried in x's dtype, as it enters the product. The
        gradients of the weights are added up in float32 at least over blocks, of each by one
        product, and rounded once.

    Raises:
        TypeError: where an array is not floating, or lengths are not integers.
        ValueError: where shapes do not fit, or block is not a positive integer.

    Source: Elman (1990), Finding structure in time; Goodfellow, Bengio and Courville, Deep
        Learning, section 10.2.2.
    """
    s = _checked(x, h0, w_x, w_h, b, lengths, block)
    hs, state = by_steps(RNN, s)  # F1, F2
    return _outputs(hs, state, x, h0)


def _checked(
    x: jax.Array,
    h0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None,
    block: int | None,
) -> Sequence:
    check("rnn", x, {"h0": h0}, Weights(w_x, w_h, b), lengths, block, gates=1)
    return sequence(x, (h0,), Weights(w_x, w_h, b), lengths)


def _outputs(hs: jax.Array, state: State, x: jax.Array, h0: jax.Array) -> Outputs:
    hs, (h,) = outputs(hs, state, x, (h0,))
    return hs, h


def _step(a: list[jax.Array], q: list[jax.Array], state: State) -> State:
    (h,) = state
    return (jnp.tanh(a[0] + q[0]).astype(h.dtype),)  # F1


def _rebuilt(a: list[jax.Array], q: list[jax.Array], h: jax.Array) -> jax.Array:
    return jnp.tanh(a[0] + q[0])  # F1, recomputed


def _back(t: jax.Array, dstate: State) -> tuple[jax.Array, State]:
    (dhs,) = dstate  # B1
    return dhs * (1 - t * t), (jnp.zeros_like(dhs),)  # B2 to B6, before their products


RNN = Cell(_step, _rebuilt, _back)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RnnResiduals:
    x: jax.Array
    h0: jax.Array
    weights: Weights
    lengths: jax.Array | None
    hs: jax.Array
    nothing_else: list
    block: int | None = field(metadata={"static": True})


def rnn_forward(
    x: jax.Array,
    h0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None,
    *,
    block: int | None,
) -> tuple[Outputs, RnnResiduals]:
    s = _checked(x, h0, w_x, w_h, b, lengths, block)
    hs, state, nothing_else = forward_in_blocks(RNN, block, s)  # F1, F2
    y = _outputs(hs, state, x, h0)
    return y, RnnResiduals(x, h0, s.weights, lengths, y[0], nothing_else, block)


def rnn_backward(res: RnnResiduals, g: tuple[jax.Array, jax.Array]) -> tuple[jax.Array | None, ...]:
    s = sequence(res.x, (res.h0,), res.weights, res.lengths)
    g_hs, g_h = g
    dx, (dh0,), dw = backward_in_blocks(
        RNN, res.block, s, res.hs, res.nothing_else, g_hs, (g_h,)
    )  # B1 to B6
    return dx.reshape(res.x.shape), dh0.reshape(res.h0.shape), dw.w_x, dw.w_h, dw.b, None


def rnn_cases() -> list[Case]:
    x, h0 = normal(0, 3, 5, 2), normal(1, 3, 4)
    w_x, w_h, b = normal(2, 2, 4), normal(3, 4, 4), normal(4, 4)
    weights, lengths = (w_x, w_h, b), jnp.array([5, 0, 3], jnp.int32)
    step = {"x": x[0, :1], "h0": h0[0], "lengths": None}
    low = tuple(array.astype(jnp.bfloat16) for array in (x, h0, *weights))
    two = {"block": 2}
    return [
        Case("lengths", (x, h0, *weights, lengths), two, given=step),
        Case("no bias", (x, h0, w_x, w_h, None), two, given=step | {"b": 0 * b}),
        Case("one step", (x[:, :1], h0, *weights), two, given=step),
        Case("one example", (x[0], h0[0], *weights), two, given=step),
        Case("bfloat16", (*low, lengths), two, given=step),
        Case("zeros", (0 * x, 0 * h0, 0 * w_x, 0 * w_h, 0 * b), two, given=step, edge=True),
        Case("no steps", (x[:, :0], h0, *weights), two, edge=True),
    ]


rnn = Rule(rnn_reference, rnn_forward, rnn_backward, rnn_cases, budget=0)
