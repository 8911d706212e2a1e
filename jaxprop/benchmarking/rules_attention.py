"""Attention and rotary embedding, forward and backward, against automatic differentiation."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprop
from jaxprop.benchmarking.gradients import Way, gradient_entry
from jaxprop.benchmarking.timing import Entry

HEADS, WIDTH, BASE = 4, 64, 10000.0
WINDOW = 256


class Shape(NamedTuple):
    """How many examples, tokens and key heads; HEADS query heads of WIDTH features."""

    batch: int
    length: int
    key_heads: int = HEADS


def attention_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    for length in (256,) if quick else (512, 1024, 2048):
        causal = partial(attention_entry, shape=Shape(1, length))
        for dtype in ("float32", "bfloat16"):
            name = f"rule-attention-causal-{dtype}-{length}"
            yield name, partial(causal, name, dtype)
        name = f"rule-attention-window{WINDOW}-float32-{length}"
        yield name, partial(causal, name, "float32", window=WINDOW)
        name = f"rule-attention-bias-float32-{length}"
        yield name, partial(causal, name, "float32", biased=True)
        name = f"rule-attention-grouped-float32-{length}"
        yield name, partial(attention_entry, name, "float32", Shape(1, length, 1))
    name = "rule-attention-short-float32-64"
    yield name, partial(attention_entry, name, "float32", Shape(8, 64))
    for dtype in ("float32", "bfloat16"):
        name = f"rule-rotary-{dtype}"
        yield name, partial(rotary_entry, name, dtype, Shape(1, 256 if quick else 2048))


def attention_entry(
    name: str, dtype: str, shape: Shape, window: int | None = None, biased: bool = False
) -> Entry:
    """Causal attention: the plain T x T definition, JAX's own, and the rule."""
    args = [
        _normal(dtype, 0, shape.batch, shape.length, HEADS, WIDTH),
        _normal(dtype, 1, shape.batch, shape.length, shape.key_heads, WIDTH),
        _normal(dtype, 2, shape.batch, shape.length, shape.key_heads, WIDTH),
    ]
    if biased:
        args.append(_normal(dtype, 3, 1, HEADS, shape.length, shape.length))
    local = None if window is None else (window - 1, 0)

    def ours(function: Way, q: Any, k: Any, v: Any, bias: Any = None) -> jax.Array:
        return function(q, k, v, None, None, bias, causal=True, window=window)

    def in_jax(q: Any, k: Any, v: Any, bias: Any = None) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, bias, is_causal=True, local_window_size=local)

    ways: dict[str, Callable[..., jax.Array]] = {
        "automatic": partial(ours, jaxprop.attention.reference),
        "jax.nn": in_jax,
        "by hand": partial(ours, jaxprop.attention),
    }
    return gradient_entry(name, ways, tuple(args))


def rotary_entry(name: str, dtype: str, shape: Shape) -> Entry:
    """One turn of the queries: as transformers writes it, and the rule."""
    positions = jnp.arange(shape.length)

    def plain(x: jax.Array) -> jax.Array:
        """Over whole heads, the half rotated."""
        frequencies = BASE ** (-jnp.arange(0, WIDTH, 2, dtype=jnp.float32) / WIDTH)
        angle = jnp.tile(positions[:, None] * frequencies, 2)[:, None]
        rotated = jnp.concatenate([-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], axis=-1)
        return (x * jnp.cos(angle) + rotated * jnp.sin(angle)).astype(x.dtype)

    def by_hand(x: jax.Array) -> jax.Array:
        return jaxprop.rotary(x, positions, base=BASE)

    def reference(x: jax.Array) -> jax.Array:
        return jaxprop.rotary.reference(x, positions, base=BASE)

    ways = {"automatic": reference, "transformers' form": plain, "by hand": by_hand}
    return gradient_entry(name, ways, (_normal(dtype, 0, shape.batch, shape.length, HEADS, WIDTH),))


def _normal(dtype: str, seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)
