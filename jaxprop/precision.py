"""The one dtype policy: where rules compute in more precision than they store.

A rule's output has the dtype of its data argument. Transcendental functions and
reductions of bfloat16 and float16 values are computed in float32, and matrix
products accumulate there; float32 and float64 stay what they are.
"""

import jax
import jax.numpy as jnp


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype to compute in for data of `dtype`: float32, or `dtype` itself if wider."""
    return jnp.promote_types(dtype, jnp.float32)


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
