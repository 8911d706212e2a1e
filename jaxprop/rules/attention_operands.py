"""What attention is computed from: its arguments and options, checked and in one form."""

from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.precision import at_least_float32, floating

OWNER = "attention"


class Reach(NamedTuple):
    """Which keys a query sees by position alone; query 0 stands at position `offset`."""

    causal: bool
    window: int | None
    offset: int

    def sees(self, q_at: jax.Array, k_at: jax.Array) -> jax.Array:
        """Whether the query of index q_at sees the key of index k_at."""
        back = q_at + self.offset - k_at
        sees = back == back
        if self.causal:
            sees = sees & (back >= 0)
        if self.window is not None:
            sees = sees & (back < self.window) & (back > -self.window)
        return sees

    def sees_any(self, q_first: int, q_last: int, k_first: int, k_last: int) -> bool:
        """Whether some query of a range sees some key of another."""
        least, most = q_first + self.offset - k_last, q_last + self.offset - k_first
        if self.causal and most < 0:
            return False
        return self.window is None or (least < self.window and most > -self.window)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Operands:
    """Arguments and options in one form.

    q (B, T, H, D); k and v (B, S, KV, D), in q's dtype; scale a scalar. mask and bias have four
    axes, each of B, H, T and S or 1; segments two, of B or 1 and T or S.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    mask: jax.Array | None
    scale: jax.Array
    bias: jax.Array | None
    q_segments: jax.Array | None
    k_segments: jax.Array | None
    reach: Reach = field(metadata={"static": True})
    soft_cap: float | None = field(metadata={"static": True})
    block_size: int = field(metadata={"static": True})

    @property
    def key_heads(self) -> int:
        return self.k.shape[2]

    @property
    def arrays(self) -> list[jax.Array]:
        return jax.tree.leaves(self)


def operands(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    q_segments: jax.Array | None,
    k_segments: jax.Array | None,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    query_offset: int | None,
    block_size: int,
) -> Operands:
    """The arguments and options of attention, once they are known to fit."""
    _check_heads(q, k, v)
    _check_options(causal, window, soft_cap, query_offset, block_size)
    whole = _four_axes(q)
    batch, queries, heads, width = whole.shape
    keys = k.shape[-3] if k.ndim > 2 else k.shape[0]
    scores = (batch, heads, queries, keys)
    _check_scale(scale)
    dtype = at_least_float32(q.dtype)
    return Operands(
        whole,
        _four_axes(k).astype(q.dtype),
        _four_axes(v).astype(q.dtype),
        _entries("mask", mask, scores),
        jnp.asarray(1 / sqrt(width) if scale is None else scale, dtype),
        _entries("bias", bias, scores),
        *_segments(q_segments, k_segments, scores),
        Reach(causal, window, keys - queries if query_offset is None else query_offset),
        soft_cap,
        block_size,
    )


def _four_axes(x: jax.Array) -> jax.Array:
    """(T, D) and (T, H, D) as (B, T, H, D)."""
    if x.ndim == 2:
        return x[None, :, None, :]
    return x[None] if x.ndim == 3 else x


def _check_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    for name, x in {"q": q, "k": k, "v": v}.items():
        floating(OWNER, name, x)
    fits = 2 <= q.ndim <= 4 and q.ndim == k.ndim and k.shape == v.shape
    fits = fits and q.shape[-1] == k.shape[-1] > 0
    fits = fits and (q.ndim < 4 or q.shape[0] == k.shape[0])
    if not fits:
        raise ValueError(
            f"{OWNER}: q must be (B, T, H, D) and k and v (B, S, KV, D), or all without B, or "
            f"(T, D) and (S, D), got q {q.shape}, k {k.shape} and v {v.shape}. Heads come after "
            "time: swap those axes where heads come first."
        )
    if q.ndim > 2 and (k.shape[-2] < 1 or q.shape[-2] % k.shape[-2]):
        raise ValueError(
            f"{OWNER}: the number of key heads must divide that of query heads, got "
            f"{q.shape[-2]} query heads and {k.shape[-2]} key heads. Each key head serves the "
            "same number of query heads."
        )


def _check_options(
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    query_offset: int | None,
    block_size: int,
) -> None:
    if not isinstance(causal, bool):
        raise TypeError(f"{OWNER}: causal must be True or False, got {causal!r}.")
    for name, value in {"window": window, "block_size": block_size}.items():
        if not _is_whole(value) and not (value is None and name == "window"):
            raise TypeError(f"{OWNER}: {name} must be a whole number, got {value!r}.")
        if value is not None and value < 1:
            raise ValueError(
                f"{OWNER}: {name} must be at least 1, got {value}. A window of 1 is the token "
                "itself; None has no window."
            )
    if query_offset is not None and not _is_whole(query_offset):
        raise TypeError(
            f"{OWNER}: query_offset must be a whole number known when tracing, got "
            f"{query_offset!r}. Where it is data, give a mask instead."
        )
    if query_offset is not None and not causal and window is None:
        raise ValueError(
            f"{OWNER}: query_offset must come with causal=True or a window, got {query_offset} "
            "without. Positions mean nothing else; leave it out."
        )
    if soft_cap is not None and not (soft_cap > 0 and isfinite(soft_cap)):
        raise ValueError(
            f"{OWNER}: soft_cap must be positive and finite, got {soft_cap}. Give None for no cap."
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_scale(scale: jax.Array | None) -> None:
    if scale is not None and floating(OWNER, "scale", scale).shape != ():
        raise ValueError(
            f"{OWNER}: scale must be a scalar, got shape {scale.shape}. Multiply q by a scale per "
            "head, and give scale=1.0."
        )


def _entries(name: str, x: jax.Array | None, scores: tuple[int, ...]) -> jax.Array | None:
    """A mask or bias with four axes."""
    if x is None:
        return None
    if name == "bias":
        floating(OWNER, name, x)
    elif x.dtype != jnp.bool_:
        raise TypeError(
            f"{OWNER}: mask must be bool, where True attends, got {x.dtype}. Compare it, as in "
            "mask != 0; what is added to the scores is the bias."
        )
    shape = (1,) * (4 - x.ndim) + x.shape
    if len(shape) != 4 or any(n not in (1, m) for n, m in zip(shape, scores, strict=True)):
        raise ValueError(
            f"{OWNER}: {name} must be broadcastable to (B, H, T, S) = {scores}, got {x.shape}. "
            "Give every axis its length or 1."
        )
    return x.reshape(shape)


def _segments(
    q: jax.Array | None, k: jax.Array | None, scores: tuple[int, ...]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Segments with a batch axis."""
    if q is None and k is None:
        return None, None
    if q is None or k is None:
        raise ValueError(
            f"{OWNER}: q_segments and k_segments must be given together, got only "
            f"{'k_segments' if q is None else 'q_segments'}. Queries and keys of self-attention "
            "have the same."
        )
    batch, _, queries, keys = scores
    for name, x, length in (("q_segments", q, queries), ("k_segments", k, keys)):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(
                f"{OWNER}: {name} must be integers, got {x.dtype}. Number the documents."
            )
        if x.shape not in ((length,), (1, length), (batch, length)):
            raise ValueError(
                f"{OWNER}: {name} must be (B, {name[0].replace('q', 'T').replace('k', 'S')}) = "
                f"({batch}, {length}), or without B, got {x.shape}. Give a number per position."
            )
    return jnp.atleast_2d(q), jnp.atleast_2d(k)
