"""Low-rank adaptation: a linear map that is not trained, and one of low rank that is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import floating, matmul, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.linear import rows
from jaxprop.samples import normal


def lora_linear_reference(
    x: jax.Array,
    w: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Affine map whose weight is frozen, with one of low rank added to it.

    Use it to adapt a large pretrained model: y = x @ (w + scale * a @ b) + bias, and only a, b,
    scale and bias are trained. Start with b at zero; scale is alpha / rank.

    Scope      rows: x (B, n_in), w (n_in, n_out), a (n_in, rank), b (rank, n_out), scale a scalar,
               bias (n_out,)
    Forward    u = x @ a                                               (F1)
               y = x @ w + scale * (u @ b) + bias                      (F2)
    Backward   du = scale * (g @ b.T)                                  (B1) from F2
               dx = g @ w.T + du @ a.T                                 (B2) from F1, F2
               da = x.T @ du                                           (B3) from F1
               db = scale * (u.T @ g)                                  (B4) from F2
               dscale = sum_all(g * (u @ b))                           (B5) from F2
               dbias = sum_rows(g)                                     (B6) from F2

    Args:
        x: (..., n_in), floating.
        w: (n_in, n_out), floating; taken in x's dtype. No cotangent: it is frozen, and none is
            computed.
        a: (n_in, rank), floating; taken in x's dtype.
        b: (rank, n_out), floating; taken in x's dtype.
        scale: a scalar, floating; what u @ b is multiplied by.
        bias: (n_out,), floating, or None for no bias.

    Returns:
        y: (..., n_out), x's dtype.

    Residuals: the arguments; u is recomputed, for its rank is low. No w-shaped gradient is held.

    Numerics: the products accumulate in float32 for lower precisions; u and du are rounded to x's
        dtype where they enter a product. The gradients of a, b, scale and bias are summed in
        float32 at least.

    Raises:
        TypeError: where an argument is not floating.
        ValueError: where shapes do not fit, or scale is not a scalar.

    Source: Hu et al. (2021), LoRA: low-rank adaptation of large language models, equation 3.
    """
    _check(x, w, a, b, scale, bias)
    u = matmul(x, a).astype(x.dtype)  # F1
    update = matmul(u, b)
    y = matmul(x, lax.stop_gradient(w)) + scale.astype(update.dtype) * update  # F2
    return (y if bias is None else y + bias.astype(y.dtype)).astype(x.dtype)  # F2


class LoraLinearResiduals(NamedTuple):
    x: jax.Array
    w: jax.Array
    a: jax.Array
    b: jax.Array
    scale: jax.Array


def lora_linear_forward(
    x: jax.Array,
    w: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
) -> tuple[jax.Array, LoraLinearResiduals]:
    y = lora_linear_reference(x, w, a, b, scale, bias)  # F1, F2
    # Backward reads w as a constant: without a second derivative in it either.
    return y, LoraLinearResiduals(x, lax.stop_gradient(w), a, b, scale)


def lora_linear_backward(
    res: LoraLinearResiduals, g: jax.Array
) -> tuple[jax.Array, None, jax.Array, jax.Array, jax.Array, jax.Array]:
    x, w, a, b, scale = res
    u = matmul(x, a)  # F1, recomputed
    by_rank = matmul(g, b.T)
    scale = scale.astype(by_rank.dtype)
    du = scale * by_rank  # B1
    dx = matmul(g, w.T) + matmul(du.astype(x.dtype), a.T)  # B2
    da = matmul(rows(x).T, rows(du.astype(x.dtype)))  # B3
    db = scale * matmul(rows(u.astype(x.dtype)).T, rows(g))  # B4
    dscale = jnp.sum(by_rank * u)  # B5
    dbias = jnp.sum(rows(up(g)), axis=0)  # B6
    return dx, None, da, db, dscale, dbias


def _check(
    x: jax.Array,
    w: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
) -> None:
    named = {"x": x, "w": w, "a": a, "b": b, "scale": scale, "bias": bias}
    for name, array in named.items():
        if array is not None:
            floating("lora_linear", name, array)
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"lora_linear: x must be (..., n_in) and w (n_in, n_out), got x {x.shape} and w "
            f"{w.shape}. Weights are stored (n_in, n_out): transpose a (n_out, n_in) matrix."
        )
    n_in, n_out = w.shape
    if a.ndim != 2 or b.ndim != 2 or (*a.shape, *b.shape) != (n_in, b.shape[0], b.shape[0], n_out):
        raise ValueError(
            f"lora_linear: a must be ({n_in}, rank) and b (rank, {n_out}), got a {a.shape} and b "
            f"{b.shape}. Other packages store them the other way round: transpose."
        )
    if scale.shape != ():
        raise ValueError(
            f"lora_linear: scale must be a scalar, got {scale.shape}. Give one number, such as "
            "alpha / rank."
        )
    if bias is not None and bias.shape != (n_out,):
        raise ValueError(
            f"lora_linear: bias must be (n_out,) = ({n_out},), got {bias.shape}. Give one bias per "
            "column of w, or None."
        )


def lora_linear_cases() -> list[Case]:
    x, w, bias = normal(0, 5, 3), normal(1, 3, 4), normal(2, 4)
    a, b, scale = normal(3, 3, 2), normal(4, 2, 4), jnp.float32(1.5)
    low = x.astype(jnp.bfloat16)
    return [
        Case("rows", (x, w, a, b, scale, bias)),
        Case("no bias", (x, w, a, b, scale), given={"bias": 0 * bias}),
        Case("more axes", (normal(5, 2, 1, 3), w, a, b, scale, bias), given={"x": x}),
        Case("all bfloat16", tuple(p.astype(low.dtype) for p in (x, w, a, b, scale, bias))),
        Case("at the start", (x, w, a, 0 * b, scale, bias), edge=True),
        Case("no rank", (x, w, a[:, :0], b[:0], scale, bias), edge=True),
        Case("no rows", (x[:0], w, a, b, scale, bias), edge=True),
    ]


lora_linear = Rule(
    lora_linear_reference,
    lora_linear_forward,
    lora_linear_backward,
    lora_linear_cases,
    budget=0,
)
