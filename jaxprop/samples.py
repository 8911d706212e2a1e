"""Random arrays for cases and checks, drawn by NumPy: `jax.random` compiles for every shape."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers in float32, the same on every platform."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def uniform(seed: int, *shape: int) -> jax.Array:
    """Numbers in [0, 1), in float32, the same on every platform."""
    return jnp.asarray(np.random.default_rng(seed).random(size=shape, dtype=np.float32))
