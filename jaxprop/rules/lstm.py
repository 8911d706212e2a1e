"""The long short-term memory, over whole sequences."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

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

Outputs = tuple[jax.Array, tuple[jax.Array, jax.Array]]


def lstm_reference(
    x: jax.Array,
    h0: jax.Array,
    c0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None = None,
    *,
    block: int | None = None,
) -> Outputs:
    """Run a long short-term memory over whole sequences.

    Use it for recurrent networks on sequences of known length. The gates i, f, g, o stand side by
    side in each weight, as in PyTorch; the third is called u here.

    Scope      one step of one example, within its length: x (1, C), h0 and c0 (H,)
    Forward    z = x @ w_x + column(h0).T @ w_h + b                    (F1)
               i = 1 / (1 + exp(-part(z, 0, 4)))                       (F2)
               f = 1 / (1 + exp(-part(z, 1, 4)))                       (F3)
               u = tanh(part(z, 2, 4))                                 (F4)
               o = 1 / (1 + exp(-part(z, 3, 4)))                       (F5)
               c1 = f * c0 + i * u                                     (F6)
               t = tanh(c1)                                            (F7)
               hs = o * t                                              (F8)
               h = sum_rows(hs)                                        (F9)
               c = sum_rows(c1)                                        (F10)
    Backward   dhs = g_hs + g_h                                        (B1) from F9
               do = dhs * t                                            (B2) from F8
               dc1 = g_c + dhs * o * (1 - t * t)                       (B3) from F7, F8, F10
               di = dc1 * u                                            (B4) from F6
               df = dc1 * c0                                           (B5) from F6
               du = dc1 * i                                            (B6) from F6
               dz = beside(di * i * (1 - i), df * f * (1 - f),
                        du * (1 - u * u), do * o * (1 - o))            (B7) from F2, F3, F4, F5
               dx = dz @ w_x.T                                         (B8) from F1
               dh0 = sum_rows(dz @ w_h.T)                              (B9) from F1
               dc0 = sum_rows(dc1 * f)                                 (B10) from F6
               dw_x = x.T @ dz                                         (B11) from F1
               dw_h = column(h0) @ dz                                  (B12) from F1
               db = sum_rows(dz)                                       (B13) from F1

    Args:
        x: (..., T, C), floating; (B, T, C) mostly.
        h0: (..., H), floating; the hidden state before the first step.
        c0: (..., H), floating; the cell state before the first step.
        w_x: (C, 4 * H), floating; taken in x's dtype.
        w_h: (H, 4 * H), floating; taken in x's dtype.
        b: (4 * H,), floating, or None for zeros.
        lengths: (...), integers, the steps of each example; None for all T. From its length on
            an example's state stays what it is, its output is 0 and its x is not read. Below 0
            counts as 0, beyond T as T. No cotangent.
        block: the steps whose gates are held at once. None for as many as make 512 rows of all
            examples together, a quarter of the sequence at most and 8 at least.

    Returns:
        hs: (..., T, H), x's dtype.
        (h, c): (..., H) each, the state at the length, in the dtypes of h0 and c0.

    Residuals: the arguments, hs (an output), and c before each block. The gates are rebuilt, a
        block at a time, by one product over its steps; c by running over them once more.

    Numerics: gates and c in float32 at least; h is carried in x's dtype, as it enters the product.
        The gradients of the weights are added up in float32 at least over blocks, of each by one
        product, and rounded once.

    Raises:
        TypeError: where an array is not floating, or lengths are not integers.
        ValueError: where shapes do not fit, or block is not a positive integer.

    Source: Hochreiter and Schmidhuber (1997), with the forget gate of Gers, Schmidhuber and
        Cummins (2000), Learning to forget: continual prediction with LSTM.
    """
    s = _checked(x, h0, c0, w_x, w_h, b, lengths, block)
    hs, state = by_steps(LSTM, s)  # F1 to F10
    return _outputs(hs, state, x, h0, c0)


def _checked(
    x: jax.Array,
    h0: jax.Array,
    c0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None,
    block: int | None,
) -> Sequence:
    weights = Weights(w_x, w_h, b)
    check("lstm", x, {"h0": h0, "c0": c0}, weights, lengths, block, gates=4)
    return sequence(x, (h0, c0), weights, lengths)


def _outputs(hs: jax.Array, state: State, x: jax.Array, h0: jax.Array, c0: jax.Array) -> Outputs:
    hs, (h, c) = outputs(hs, state, x, (h0, c0))
    return hs, (h, c)


def _gates(
    a: list[jax.Array], q: list[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    i, f, u, o = (of_x + of_h for of_x, of_h in zip(a, q, strict=True))  # F1
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(u), jax.nn.sigmoid(o)  # F2 to F5


def _step(a: list[jax.Array], q: list[jax.Array], state: State) -> State:
    h, c = state
    i, f, u, o = _gates(a, q)  # F1 to F5
    c1 = f * c + i * u  # F6
    return (o * jnp.tanh(c1)).astype(h.dtype), c1  # F7, F8


def _rebuilt(
    a: list[jax.Array], q: list[jax.Array], h: jax.Array, c: jax.Array
) -> tuple[jax.Array, ...]:
    """i, f, u, o, and c0 and t of each step of a block, whose first c0 is c."""
    i, f, u, o = _gates(a, q)  # F1 to F5, recomputed

    def step(c: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        f, added = now
        return f * c + added, c  # F6, recomputed

    last, c0 = lax.scan(step, c, (f, i * u))
    c1 = jnp.concatenate([c0[1:], last[None]])
    return i, f, u, o, c0, jnp.tanh(c1)  # F7, recomputed


def _back(gates: tuple[jax.Array, ...], dstate: State) -> tuple[jax.Array, State]:
    i, f, u, o, c0, t = gates
    dhs, dc = dstate  # B1
    do = dhs * t  # B2
    dc1 = dc + dhs * o * (1 - t * t)  # B3
    di, df, du = dc1 * u, dc1 * c0, dc1 * i  # B4, B5, B6
    parts = di * i * (1 - i), df * f * (1 - f), du * (1 - u * u), do * o * (1 - o)
    return jnp.concatenate(parts, axis=-1), (jnp.zeros_like(dhs), dc1 * f)  # B7, B10


LSTM = Cell(_step, _rebuilt, _back)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LstmResiduals:
    x: jax.Array
    h0: jax.Array
    c0: jax.Array
    weights: Weights
    lengths: jax.Array | None
    hs: jax.Array
    c_before: list
    block: int | None = field(metadata={"static": True})


def lstm_forward(
    x: jax.Array,
    h0: jax.Array,
    c0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None,
    *,
    block: int | None,
) -> tuple[Outputs, LstmResiduals]:
    s = _checked(x, h0, c0, w_x, w_h, b, lengths, block)
    hs, state, c_before = forward_in_blocks(LSTM, block, s)  # F1 to F10
    y = _outputs(hs, state, x, h0, c0)
    return y, LstmResiduals(x, h0, c0, s.weights, lengths, y[0], c_before, block)


def lstm_backward(
    res: LstmResiduals, g: tuple[jax.Array, tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array | None, ...]:
    s = sequence(res.x, (res.h0, res.c0), res.weights, res.lengths)
    dx, (dh0, dc0), dw = backward_in_blocks(
        LSTM, res.block, s, res.hs, res.c_before, *g
    )  # B1 to B13
    dh0, dc0 = dh0.reshape(res.h0.shape), dc0.reshape(res.c0.shape)
    return dx.reshape(res.x.shape), dh0, dc0, dw.w_x, dw.w_h, dw.b, None


def lstm_cases() -> list[Case]:
    x, h0, c0 = normal(0, 3, 5, 2), normal(1, 3, 3), normal(2, 3, 3)
    w_x, w_h, b = normal(3, 2, 12), normal(4, 3, 12), normal(5, 12)
    weights, lengths = (w_x, w_h, b), jnp.array([5, 0, 3], jnp.int32)
    step = {"x": x[0, :1], "h0": h0[0], "c0": c0[0], "lengths": None}
    low = tuple(array.astype(jnp.bfloat16) for array in (x, h0, c0, *weights))
    two = {"block": 2}
    return [
        Case("lengths", (x, h0, c0, *weights, lengths), two, given=step),
        Case("no bias", (x, h0, c0, w_x, w_h, None), two, given=step | {"b": 0 * b}),
        Case("one step", (x[:, :1], h0, c0, *weights), two, given=step),
        Case("one example", (x[0], h0[0], c0[0], *weights), two, given=step),
        Case("bfloat16", (*low, lengths), two, given=step),
        Case("saturated", (x, h0, c0, w_x, w_h, 10 * b), two, edge=True),
        Case("zeros", (0 * x, 0 * h0, 0 * c0, 0 * w_x, 0 * w_h, 0 * b), two, given=step, edge=True),
        Case("no steps", (x[:, :0], h0, c0, *weights), two, edge=True),
    ]


# Of an element of the output, c before each block: a float for each at most.
lstm = Rule(lstm_reference, lstm_forward, lstm_backward, lstm_cases, budget=4)
