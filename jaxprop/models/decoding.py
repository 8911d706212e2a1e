"""Text from a language model, a token at a time: keys and values of what was read are kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.installing import PyTree
from jaxprop.models.transformer import LanguageModel, embedded, logits_of
from jaxprop.rules.attention import attention


class Cache(NamedTuple):
    """Keys and values of the tokens read so far.

    k, v:   (depth, B, S, K, D), S the most tokens that it holds.
    length: how many it holds, an integer scalar.
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array


class Choice(NamedTuple):
    """How the next token is drawn; arrays, so that changing one compiles nothing.

    temperature: the logits are divided by it; 0 takes the likeliest token.
    top_k:       among the k likeliest tokens alone; 0 for all.
    top_p:       among the likeliest tokens whose probabilities, added up, first reach p; 1 for all.
    """

    temperature: jax.typing.ArrayLike = 1.0
    top_k: jax.typing.ArrayLike = 0
    top_p: jax.typing.ArrayLike = 1.0


AS_IT_IS = Choice()


def empty_cache(model: LanguageModel, params: PyTree, batch: int, size: int) -> Cache:
    """A cache for sequences of up to `size` tokens.

    Raises ValueError where the model's learned positions are fewer.
    """
    learned = params.get("positions")
    if learned is not None and size > len(learned):
        raise ValueError(
            f"decoding: the cache must be no longer than the positions that are learned, "
            f"{len(learned)}, got {size} tokens. Read and write less."
        )
    config = model.config
    shape = config.depth, batch, size, *config.key_shape
    dtype = config.dtype or params["embedding"].dtype
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))


def read(
    model: LanguageModel, params: PyTree, tokens: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """The logits after each of some tokens that follow those in the cache, and the cache with them.

    Args:
        model: whose block is run in plain JAX; there is no gradient to compute.
        params: the model's.
        tokens: (B, T), integers; the cache must have room for T more.
        cache: from `empty_cache`, or an earlier call.

    Returns:
        logits: (B, T, V); equal to the network's on all tokens at once, but for rounding.
        cache: T tokens longer.
    """
    time, size = tokens.shape[1], cache.k.shape[2]
    positions = cache.length + jnp.arange(time, dtype=jnp.int32)
    mask = _seen(positions, size, getattr(model.config, "window", None))

    def step(h: jax.Array, at: tuple) -> tuple[jax.Array, list[jax.Array]]:
        p, *kept = at
        kept = list(kept)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kept[:] = [
                _written(old, new, cache.length) for old, new in zip(kept, (k, v), strict=True)
            ]
            return attention.reference(q, *kept, mask, causal=False)

        h = model.block(model.config, p, h, positions, attend)
        return h, kept

    h = embedded(model.config, params, tokens, positions)
    h, (k, v) = lax.scan(step, h, (params["blocks"], cache.k, cache.v))
    logits = logits_of(params, model.norm.reference(params["norm"], h))
    return logits, Cache(k, v, cache.length + time)


def _seen(positions: jax.Array, size: int, window: int | None) -> jax.Array:
    """Which of the cache's places each new token sees, (T, S)."""
    back = positions[:, None] - jnp.arange(size, dtype=jnp.int32)
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def _written(old: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis=1)


def choose(logits: jax.Array, choice: Choice, key: jax.Array) -> jax.Array:
    """A token for each row of logits (B, V), as the choice says, (B,)."""
    logits = logits.astype(jnp.float32)
    temperature = jnp.asarray(choice.temperature, jnp.float32)
    ordered = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(jnp.asarray(choice.top_k) > 0, choice.top_k, logits.shape[-1])
    least = jnp.take(ordered, jnp.clip(k, 1, logits.shape[-1]) - 1, axis=-1)
    p = jax.nn.softmax(ordered / jnp.where(temperature > 0, temperature, 1), axis=-1)
    before = jnp.cumsum(p, axis=-1) - p  # what the likelier ones have together
    kept = jnp.sum(before < choice.top_p, axis=-1)
    nucleus = jnp.take_along_axis(ordered, jnp.maximum(kept, 1)[:, None] - 1, axis=-1)[:, 0]
    allowed = jnp.where(logits >= jnp.maximum(least, nucleus)[:, None], logits, -jnp.inf)
    drawn = jax.random.categorical(key, allowed / jnp.where(temperature > 0, temperature, 1))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))


def generate(
    model: LanguageModel,
    params: PyTree,
    prompt: jax.Array,
    count: int,
    key: jax.Array,
    choice: Choice = AS_IT_IS,
) -> jax.Array:
    """`count` tokens that follow a prompt, (B, count).

    Args:
        model, params: a language model and its parameters.
        prompt: (B, T), integers; at least one token.
        count: how many; positive.
        key: of the draws; the token at place k (from 0) is drawn with `fold_in(key, k)`.
        choice: how each token is drawn.

    Raises:
        ValueError: where the prompt is empty, count is not positive, or both together are longer
            than the positions that the model has learned.
    """
    if prompt.ndim != 2 or not prompt.shape[1] or count < 1:
        raise ValueError(
            f"decoding: needs a prompt (B, T) of at least one token and a count of at least 1, got "
            f"{prompt.shape} and {count}. Begin with a line break, say."
        )
    cache = empty_cache(model, params, prompt.shape[0], prompt.shape[1] + count)
    logits, cache = read(model, params, prompt, cache)

    def step(carry: tuple, k: jax.Array) -> tuple[tuple, jax.Array]:
        logits, cache = carry
        token = choose(logits, choice, jax.random.fold_in(key, k)).astype(prompt.dtype)
        logits, cache = read(model, params, token[:, None], cache)
        return (logits[:, -1], cache), token

    _, tokens = lax.scan(step, (logits[:, -1], cache), jnp.arange(count))
    return tokens.T
