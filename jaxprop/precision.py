"""The one dtype policy: where rules compute in more precision than they store.

A rule's output has the dtype of its data argument. Transcendental functions and
reductions of bfloat16 and float16 values are computed in float32, and matrix
products accumulate there; float32 and float64 stay what they are.
"""

import jax
import jax.numpy as jnp


def at_least_float32(*dtypes: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype to compute in for data of these dtypes: float32, or the widest if wider."""
    with jax.numpy_dtype_promotion("standard"):  # the caller's may be "strict"
        return jnp.result_type(jnp.float32, *dtypes)


def floating(owner: str, name: str, x: jax.typing.ArrayLike) -> jax.Array:
    """`x` as an array; TypeError where it is not real and floating, for rules that need that."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{owner}: {name} must have a floating dtype, got {x.dtype}. Convert it with "
            f"{name}.astype(jnp.float32)."
        )
    return x


def up(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` in the dtype to compute in."""
    x = jnp.asarray(x)
    return x.astype(at_least_float32(x.dtype))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b`, taken in a's dtype, accumulated and returned in the dtype to compute in.

    So bfloat16 data against float32 parameters uses the bfloat16 matrix units, as
    mixed-precision training expects, and no partial sum is rounded to bfloat16.
    """
    return jnp.matmul(a, b.astype(a.dtype), preferred_element_type=at_least_float32(a.dtype))
