"""Pooling, convolution and embedding, forward and backward: the rules against JAX's own."""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxprop
from jaxprop.benchmarking.gradients import Way, gradient_entry
from jaxprop.benchmarking.timing import Entry


def convolution_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    batch, size = (2, 8) if quick else (32, 56)
    shapes: dict[Callable[..., Entry], dict[str, tuple[int, ...]]] = {
        max_pool: {
            "2x2": (batch, size, size, 64),
            "3x3": (batch, size, size, 64),
        },
        avg_pool: {
            "2x2": (batch, size, size, 64),
            "3x3": (batch, size, size, 64),
        },
        conv: {
            "dense": (batch, size // 2, size // 2, 64),
            "strided": (batch, size // 2, size // 2, 64),
            "groups": (batch, size // 4, size // 4, 64),
            "depthwise": (batch, size // 4, size // 4, 64),
            "colours": (batch, size // 2, size // 2, 3),
        },
        conv_transpose: {"": (batch, size // 4, size // 4, 64)},
        causal_depthwise_conv: {"": (batch // 2, 64 if quick else 512, 256)},
        embedding: {"": (batch, 64 if quick else 512, 256)},
        resize_nearest: {"": (batch, size // 2, size // 2, 64)},
        resize_bilinear: {"": (batch, size // 2, size // 2, 64)},
        pixel_shuffle: {"": (batch, size // 2, size // 2, 64)},
        global_max_pool: {"": (batch, size, size, 64)},
        global_avg_pool: {"": (batch, size, size, 64)},
    }
    for make, kinds in shapes.items():
        for kind, shape in kinds.items():
            for dtype in DTYPES.get(make, ("float32", "bfloat16")):
                parts = ["rule", make.__name__, kind, dtype, "x".join(map(str, shape))]
                name = "-".join(filter(None, parts))
                yield name, partial(make, name, dtype, shape, *([kind] if kind else []))


# Windows side by side as in most networks, and the overlapping ones of ResNet's stem.
POOLS: dict[str, dict[str, Any]] = {
    "2x2": {"window": (2, 2), "stride": (2, 2), "padding": "VALID"},
    "3x3": {"window": (3, 3), "stride": (2, 2), "padding": "SAME"},
}


def max_pool(name: str, dtype: str, shape: tuple[int, ...], kind: str) -> Entry:
    def plain(x: jax.Array) -> jax.Array:
        return _reduce_window(x, -np.inf, lax.max, kind)

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.max_pool.bind(**POOLS[kind])}
    return _entry(name, ways, (_normal(dtype, shape),))


def avg_pool(name: str, dtype: str, shape: tuple[int, ...], kind: str) -> Entry:
    def plain(x: jax.Array) -> jax.Array:
        return _reduce_window(x, 0, lax.add, kind) / prod(POOLS[kind]["window"])

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.avg_pool.bind(**POOLS[kind])}
    return _entry(name, ways, (_normal(dtype, shape),))


def _reduce_window(x: jax.Array, start: float, reduce: Callable, kind: str) -> jax.Array:
    pool = POOLS[kind]
    window, stride = (1, *pool["window"], 1), (1, *pool["stride"], 1)
    return lax.reduce_window(x, x.dtype.type(start), reduce, window, stride, pool["padding"])


def global_max_pool(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    ways: dict[str, Way] = {
        "automatic": lambda x: jnp.max(x, axis=(1, 2)),
        "by hand": jaxprop.global_max_pool,
    }
    return _entry(name, ways, (_normal(dtype, shape),))


def global_avg_pool(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    ways: dict[str, Way] = {
        "automatic": lambda x: jnp.mean(x, axis=(1, 2)),
        "by hand": jaxprop.global_avg_pool,
    }
    return _entry(name, ways, (_normal(dtype, shape),))


# A convolution of 64 channels, 3 by 3, as each is used: groups of 8 channels, or of one; and the
# first of a network on images in colour, of 16 outputs.
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "strided": {"stride": (2, 2)},
    "groups": {"groups": 8},
    "depthwise": {"groups": 64},
    "colours": {},
}
AXES = ("NHWC", "HWIO", "NHWC")


def conv(name: str, dtype: str, shape: tuple[int, ...], kind: str) -> Entry:
    options = CONVOLUTIONS[kind]

    def plain(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(
            x,
            w.astype(x.dtype),
            options.get("stride", (1, 1)),
            "SAME",
            dimension_numbers=AXES,
            feature_group_count=options.get("groups", 1),
        )
        return y + b.astype(x.dtype)

    by_hand = jaxprop.conv.bind(padding="SAME", **options)
    ways: dict[str, Way] = {"automatic": plain, "by hand": by_hand}
    outputs = 16 if kind == "colours" else 64
    w = _normal("float32", (3, 3, shape[-1] // options.get("groups", 1), outputs), 1) / 8
    return _entry(name, ways, (_normal(dtype, shape), w, _normal("float32", (outputs,), 2)))


def conv_transpose(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_transpose(x, w.astype(x.dtype), (2, 2), "SAME")

    by_hand = jaxprop.conv_transpose.bind(stride=(2, 2), padding="SAME")
    ways: dict[str, Way] = {"automatic": plain, "by hand": by_hand}
    return _entry(name, ways, (_normal(dtype, shape), _normal("float32", (4, 4, 64, 64), 1) / 8))


def causal_depthwise_conv(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    """Against XLA's convolution in groups, and the sum of shifted arrays that it is."""

    def grouped(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            w[:, None].astype(x.dtype),
            (1,),
            [(len(w) - 1, 0)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=x.shape[-1],
        )

    def shifted(x: jax.Array, w: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (len(w) - 1, 0), (0, 0)))
        terms = [padded[:, k : k + x.shape[1]] * w[k].astype(x.dtype) for k in range(len(w))]
        return sum(terms[1:], start=terms[0])

    ways: dict[str, Way] = {
        "automatic": shifted,
        "automatic, of a convolution": grouped,
        "by hand": jaxprop.causal_depthwise_conv,
    }
    return _entry(name, ways, (_normal(dtype, shape), _normal("float32", (4, shape[-1]), 1)))


def embedding(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    """A table of 8192 rows of shape[-1] numbers, tokens of which most repeat."""
    tokens = jax.random.randint(jax.random.key(1), shape[:-1], 0, 2048, jnp.int32)
    ways: dict[str, Way] = {
        "automatic": lambda tokens, table: table[tokens],
        "by hand": jaxprop.embedding,
    }
    return _entry(name, ways, (tokens, _normal(dtype, (8192, shape[-1]))))


def resize_nearest(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    return _resize(name, jaxprop.resize_nearest, "nearest", dtype, shape)


def resize_bilinear(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    return _resize(name, jaxprop.resize_bilinear, "linear", dtype, shape)


def _resize(
    name: str, rule: jaxprop.Rule, method: str, dtype: str, shape: tuple[int, ...]
) -> Entry:
    """To twice the resolution."""
    batch, height, width, channels = shape
    size = (2 * height, 2 * width)

    def plain(x: jax.Array) -> jax.Array:
        return jax.image.resize(x, (batch, *size, channels), method, antialias=False)

    ways: dict[str, Way] = {"automatic": plain, "by hand": rule.bind(size=size)}
    return _entry(name, ways, (_normal(dtype, shape),))


def pixel_shuffle(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array) -> jax.Array:
        batch, height, width, channels = shape
        split = x.reshape(batch, height, width, channels // 4, 2, 2)
        pixels = jnp.transpose(split, (0, 1, 4, 2, 5, 3))
        return pixels.reshape(batch, 2 * height, 2 * width, channels // 4)

    by_hand = jaxprop.pixel_shuffle.bind(factor=2)
    ways: dict[str, Way] = {"automatic": plain, "by hand": by_hand}
    return _entry(name, ways, (_normal(dtype, shape),))


# Of bfloat16 numbers many tie, and there jnp.max has another subgradient: it splits g.
DTYPES: dict[Callable[..., Entry], tuple[str, ...]] = {global_max_pool: ("float32",)}


def _normal(dtype: str, shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def _entry(name: str, ways: dict[str, Way], args: tuple[jax.Array, ...]) -> Entry:
    """Held against the rule's reference: of ties JAX's own functions may choose another."""

    def reference(*args: jax.Array) -> jax.Array:
        with jaxprop.automatic():
            return ways["by hand"](*args)

    return gradient_entry(name, ways, args, truth=reference)
