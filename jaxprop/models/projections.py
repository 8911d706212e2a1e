"""The matrices of a transformer's block, with adapters of low rank or without."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxprop.rules.linear import linear
from jaxprop.rules.lora import lora_linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """In the place of a matrix: w, which is not trained, and beside it scale * a @ b, which is.

    w: (n_in, n_out). a: (n_in, rank). b: (rank, n_out). scale: a number, static.
    """

    w: Any
    a: Any
    b: Any
    scale: float = field(metadata={"static": True})


Matrix = jax.Array | Adapted


def affine_reference(x: jax.Array, w: Matrix, b: jax.Array | None = None) -> jax.Array:
    """x @ w + b in plain JAX."""
    if isinstance(w, Adapted):
        return lora_linear.reference(x, w.w, w.a, w.b, _scale(w), b)
    return linear.reference(x, w, b)


def affine(x: jax.Array, w: Matrix, b: jax.Array | None = None) -> jax.Array:
    """x @ w + b; what its backward reads is x and the parameters, which the block has."""
    if isinstance(w, Adapted):
        return lora_linear.forward(x, w.w, w.a, w.b, _scale(w), b)[0]
    return linear.forward(x, w, b)[0]


def pull(
    x: jax.Array, w: Matrix, b: jax.Array | None, g: jax.Array
) -> tuple[jax.Array, Matrix, jax.Array | None]:
    """(dx, dw, db) of `affine` at an x that was not saved; its product is not used: jit drops it.

    dw of a matrix with an adapter has None for w: no product is made for it.
    """
    if isinstance(w, Adapted):
        _, saved = lora_linear.forward(x, w.w, w.a, w.b, _scale(w), b)
        dx, _, dw_a, dw_b, _, db = lora_linear.backward(saved, g)
        return dx, Adapted(None, dw_a, dw_b, w.scale), db
    _, saved = linear.forward(x, w, b)
    return linear.backward(saved, g)


def _scale(w: Adapted) -> jax.Array:
    return jnp.asarray(w.scale, w.a.dtype)
