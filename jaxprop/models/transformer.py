"""What transformers share: heads, and decoding from a cache.

The blocks are in `gpt2` and `llama`: there is the text on how backpropagation goes through a
transformer. B batch, T time, C width, H heads, K key heads, D head size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.installing import PyTree
from jaxprop.layers import Layer
from jaxprop.models.language import (
    Decoder,
    LanguageModel,
    embedded,
    language_model,
    logits_of,
)
from jaxprop.rules.attention import attention

# attention(q, k, v) -> a, as a block of plain JAX calls it.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def transformer(
    config: Any,
    blocks: Layer,
    norm: Layer,
    block: Callable[..., jax.Array],
    init: Callable[..., PyTree],
) -> LanguageModel:
    """Make a language model of blocks with attention.

    Args:
        config, blocks, norm, init: as in `language_model`; config has `depth`, `key_shape` (K, D),
            and `window` where attention has one.
        block: one block in plain JAX, (config, params, h, positions, attend) -> h.
    """

    def empty(params: PyTree, batch: int, size: int) -> Cache:
        return _empty(config, params, batch, size)

    def read(params: PyTree, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return _read(config, norm, block, params, tokens, cache)

    return language_model(config, blocks, norm, Decoder(empty, read), init)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, T, H * D) as (B, T, H, D)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: jax.Array) -> jax.Array:
    """(B, T, H, D) as (B, T, H * D)."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


class Cache(NamedTuple):
    """Keys and values of the tokens read so far.

    k, v:   (depth, B, S, K, D), S the most tokens that it holds.
    length: how many it holds, an integer scalar.
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array


def _empty(config: Any, params: PyTree, batch: int, size: int) -> Cache:
    learned = params.get("positions")
    if learned is not None and size > len(learned):
        raise ValueError(
            f"decoding: the cache must be no longer than the positions that are learned, "
            f"{len(learned)}, got {size} tokens. Read and write less."
        )
    shape = config.depth, batch, size, *config.key_shape
    dtype = config.dtype or params["embedding"].dtype
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))


def _read(
    config: Any,
    norm: Layer,
    block: Callable[..., jax.Array],
    params: PyTree,
    tokens: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """The block in plain JAX over new tokens, whose keys and values are written into the cache."""
    time, size = tokens.shape[1], cache.k.shape[2]
    positions = cache.length + jnp.arange(time, dtype=jnp.int32)
    mask = _seen(positions, size, getattr(config, "window", None))

    def step(h: jax.Array, at: tuple) -> tuple[jax.Array, list[jax.Array]]:
        p, *kept = at
        kept = list(kept)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kept[:] = [
                _written(old, new, cache.length) for old, new in zip(kept, (k, v), strict=True)
            ]
            return attention.reference(q, *kept, mask, causal=False)

        h = block(config, p, h, positions, attend)
        return h, kept

    h = embedded(config, params, tokens, positions)
    h, (k, v) = lax.scan(step, h, (params["blocks"], cache.k, cache.v))
    logits = logits_of(params, norm.reference(params["norm"], h))
    return logits, Cache(k, v, cache.length + time)


def _seen(positions: jax.Array, size: int, window: int | None) -> jax.Array:
    """Which of the cache's places each new token sees, (T, S)."""
    back = positions[:, None] - jnp.arange(size, dtype=jnp.int32)
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def _written(old: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis=1)
