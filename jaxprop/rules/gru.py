"""The gated recurrent unit, over whole sequences."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxprop.precision import floating, up
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


def gru_reference(
    x: jax.Array,
    h0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None = None,
    b_n: jax.Array | None = None,
    *,
    block: int | None = None,
) -> Outputs:
    """Run a gated recurrent unit over whole sequences.

    Use it in the place of lstm for fewer parameters. The gates r, z, n stand side by side in each
    weight, and the reset multiplies the product h @ w_h, after it, as in PyTorch. b is the sum of
    PyTorch's two biases, but for n, where b_n is the one beside h: it is reset too.

    Scope      one step of one example, within its length: x (1, C), h0 (H,)
    Forward    a = x @ w_x + b                                         (F1)
               q = column(h0).T @ w_h                                  (F2)
               r = 1 / (1 + exp(-part(a, 0, 3) - part(q, 0, 3)))       (F3)
               z = 1 / (1 + exp(-part(a, 1, 3) - part(q, 1, 3)))       (F4)
               m = part(q, 2, 3) + b_n                                 (F5)
               n = tanh(part(a, 2, 3) + r * m)                         (F6)
               hs = (1 - z) * n + z * h0                               (F7)
               h = sum_rows(hs)                                        (F8)
    Backward   dhs = g_hs + g_h                                        (B1) from F8
               dn = dhs * (1 - z)                                      (B2) from F7
               dz = dhs * (h0 - n)                                     (B3) from F7
               dr = dn * (1 - n * n) * m                               (B4) from F6
               dm = dn * (1 - n * n) * r                               (B5) from F6
               da = beside(dr * r * (1 - r), dz * z * (1 - z),
                        dn * (1 - n * n))                              (B6) from F3, F4, F6
               dq = beside(dr * r * (1 - r), dz * z * (1 - z), dm)     (B7) from F3, F4, F5
               dx = da @ w_x.T                                         (B8) from F1
               dh0 = sum_rows(dhs * z + dq @ w_h.T)                    (B9) from F2, F7
               dw_x = x.T @ da                                         (B10) from F1
               dw_h = column(h0) @ dq                                  (B11) from F2
               db = sum_rows(da)                                       (B12) from F1
               db_n = sum_rows(dm)                                     (B13) from F5

    Args:
        x: (..., T, C), floating; (B, T, C) mostly.
        h0: (..., H), floating; the state before the first step.
        w_x: (C, 3 * H), floating; taken in x's dtype.
        w_h: (H, 3 * H), floating; taken in x's dtype.
        b: (3 * H,), floating, or None for zeros.
        lengths: (...), integers, the steps of each example; None for all T. From its length on
            an example's state stays what it is, its output is 0 and its x is not read. Below 0
            counts as 0, beyond T as T. No cotangent.
        b_n: (H,), floating, or None for zeros.
        block: the steps whose gates are held at once. None for as many as make 512 rows of all
            examples together, a quarter of the sequence at most and 8 at least.

    Returns:
        hs: (..., T, H), x's dtype.
        h: (..., H), the state at the length, in the dtype of h0.

    Residuals: the arguments and hs (an output). The gates are rebuilt, a block at a time, by one
        product over its steps.

    Numerics: gates in float32 at least; h is carried in x's dtype, as it enters the product. The
        gradients of the weights are added up in float32 at least over blocks, of each by one
        product, and rounded once.

    Raises:
        TypeError: where an array is not floating, or lengths are not integers.
        ValueError: where shapes do not fit, or block is not a positive integer.

    Source: Cho et al. (2014), Learning phrase representations, section 2.3, with the reset after
        the product, as in cuDNN.
    """
    s = _checked(x, h0, w_x, w_h, b, lengths, b_n, block)
    hs, state = by_steps(GRU, s)  # F1 to F8
    return _outputs(hs, state, x, h0)


def _checked(
    x: jax.Array,
    h0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None,
    b_n: jax.Array | None,
    block: int | None,
) -> Sequence:
    check("gru", x, {"h0": h0}, Weights(w_x, w_h, b), lengths, block, gates=3)
    return sequence(x, (h0,), Weights(w_x, w_h, b, _beside_q(b_n, w_h)), lengths)


def _beside_q(b_n: jax.Array | None, w_h: jax.Array) -> jax.Array | None:
    """(3 * H,): b_n as what is added to h @ w_h."""
    if b_n is None:
        return None
    if floating("gru", "b_n", b_n).shape != w_h.shape[:1]:
        raise ValueError(
            f"gru: b_n must be (H,) = {w_h.shape[:1]}, the bias of n beside h, got {b_n.shape}. "
            "Add the biases of r and z beside h to b."
        )
    return jnp.concatenate([jnp.zeros((2 * b_n.size,), b_n.dtype), b_n])


def _outputs(hs: jax.Array, state: State, x: jax.Array, h0: jax.Array) -> Outputs:
    hs, (h,) = outputs(hs, state, x, (h0,))
    return hs, h


def _gates(
    a: list[jax.Array], q: list[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    (a_r, a_z, a_n), (q_r, q_z, m) = a, q  # F5
    r, z = jax.nn.sigmoid(a_r + q_r), jax.nn.sigmoid(a_z + q_z)  # F3, F4
    return r, z, m, jnp.tanh(a_n + r * m)  # F6


def _step(a: list[jax.Array], q: list[jax.Array], state: State) -> State:
    (h,) = state
    _, z, _, n = _gates(a, q)
    return (((1 - z) * n + z * up(h)).astype(h.dtype),)  # F7


def _rebuilt(a: list[jax.Array], q: list[jax.Array], h: jax.Array) -> tuple[jax.Array, ...]:
    """r, z, m, n, and h0 of each step of a block."""
    return *_gates(a, q), up(h)  # F3 to F6, recomputed


def _back(gates: tuple[jax.Array, ...], dstate: State) -> tuple[jax.Array, State]:
    r, z, m, n, h0 = gates
    (dhs,) = dstate  # B1
    dn = dhs * (1 - z)  # B2
    dz = dhs * (h0 - n)  # B3
    da_n = dn * (1 - n * n)  # the last part of B6, read by B4 and B5
    dr = da_n * m  # B4
    da = jnp.concatenate([dr * r * (1 - r), dz * z * (1 - z), da_n], axis=-1)  # B6
    return da, (dhs * z,)  # B9, but for q


def _recurrent(gates: tuple[jax.Array, ...], da: jax.Array) -> jax.Array:
    r, *_ = gates
    da_r, da_z, da_n = jnp.split(da, 3, axis=-1)
    return jnp.concatenate([da_r, da_z, da_n * r], axis=-1)  # B5, B7


GRU = Cell(_step, _rebuilt, _back, _recurrent)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GruResiduals:
    x: jax.Array
    h0: jax.Array
    w_x: jax.Array
    w_h: jax.Array
    b: jax.Array | None
    lengths: jax.Array | None
    b_n: jax.Array | None
    hs: jax.Array
    nothing_else: list
    block: int | None = field(metadata={"static": True})


def gru_forward(
    x: jax.Array,
    h0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    b: jax.Array | None,
    lengths: jax.Array | None,
    b_n: jax.Array | None,
    *,
    block: int | None,
) -> tuple[Outputs, GruResiduals]:
    s = _checked(x, h0, w_x, w_h, b, lengths, b_n, block)
    hs, state, nothing_else = forward_in_blocks(GRU, block, s)  # F1 to F8
    y = _outputs(hs, state, x, h0)
    return y, GruResiduals(x, h0, w_x, w_h, b, lengths, b_n, y[0], nothing_else, block)


def gru_backward(res: GruResiduals, g: tuple[jax.Array, jax.Array]) -> tuple[jax.Array | None, ...]:
    weights = Weights(res.w_x, res.w_h, res.b, _beside_q(res.b_n, res.w_h))
    s = sequence(res.x, (res.h0,), weights, res.lengths)
    g_hs, g_h = g
    dx, (dh0,), dw = backward_in_blocks(
        GRU, res.block, s, res.hs, res.nothing_else, g_hs, (g_h,)
    )  # B1 to B12
    db_n = None if dw.b_h is None else dw.b_h[2 * len(res.w_h) :]  # B13
    return dx.reshape(res.x.shape), dh0.reshape(res.h0.shape), dw.w_x, dw.w_h, dw.b, None, db_n


def gru_cases() -> list[Case]:
    x, h0 = normal(0, 3, 5, 2), normal(1, 3, 3)
    w_x, w_h, b, b_n = normal(2, 2, 9), normal(3, 3, 9), normal(4, 9), normal(5, 3)
    weights, lengths = (w_x, w_h, b), jnp.array([5, 0, 3], jnp.int32)
    step = {"x": x[0, :1], "h0": h0[0], "lengths": None, "b_n": b_n}
    low = tuple(array.astype(jnp.bfloat16) for array in (x, h0, *weights))
    two = {"block": 2}
    return [
        Case("lengths", (x, h0, *weights, lengths, b_n), two, given=step),
        Case("no bias", (x, h0, w_x, w_h, None), two, given=step | {"b": 0 * b}),
        Case("one step", (x[:, :1], h0, *weights, None, b_n), two, given=step),
        Case("one example", (x[0], h0[0], *weights, None, b_n), two, given=step),
        Case("bfloat16", (*low, lengths, b_n.astype(jnp.bfloat16)), two, given=step),
        Case("saturated", (x, h0, w_x, w_h, 10 * b, None, 10 * b_n), two, edge=True),
        Case("zeros", (0 * x, 0 * h0, 0 * w_x, 0 * w_h, 0 * b), two, given=step, edge=True),
        Case("no steps", (x[:, :0], h0, *weights, None, b_n), two, edge=True),
    ]


gru = Rule(gru_reference, gru_forward, gru_backward, gru_cases, budget=0)
