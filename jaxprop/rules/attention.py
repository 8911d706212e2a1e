"""Attention: each query's mean of values, weighted by how well their keys match it."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import matmul, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.attention_operands import Operands, operands
from jaxprop.rules.blockwise_attention import backward_in_tiles, forward_in_tiles
from jaxprop.samples import normal, replaced


def attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    q_segments: jax.Array | None = None,
    k_segments: jax.Array | None = None,
    *,
    causal: bool,
    window: int | None = None,
    soft_cap: float | None = None,
    query_offset: int | None = None,
    block_size: int = 512,
) -> jax.Array:
    """Mean of the values, weighted by softmax(scale * q @ k.T), for every head.

    Use it in transformers, for training and for decoding from a cache. Memory grows with T + S:
    the T x S scores are computed in tiles, and computed again in the backward.

    Scope      one head of one example: q (T, D), k and v (S, D), bias and mask (T, S); mask says
               all that a query sees, soft_cap=None leaves out F2
    Forward    s = scale * (q @ k.T)                                   (F1)
               c = soft_cap * tanh(s / soft_cap)                       (F2)
               z = c + bias                                            (F3)
               e = where(mask, exp(z), 0)                              (F4)
               total = sum(e)                                          (F5)
               p = e / where(total > 0, total, 1)                      (F6)
               out = p @ v                                             (F7)
    Backward   dv = p.T @ g                                            (B1) from F7
               dp = g @ v.T                                            (B2) from F7
               dtotal = -sum(g * out) / where(total > 0, total, 1)     (B3) from F6, F7
               de = dp / where(total > 0, total, 1) + dtotal           (B4) from F5, F6
               dz = e * de                                             (B5) from F4
               dbias = dz                                              (B6) from F3
               ds = (1 - (c / soft_cap) ** 2) * dz                     (B7) from F2, F3
               dscale = sum_all(q * (ds @ k))                          (B8) from F1
               dq = scale * (ds @ k)                                   (B9) from F1
               dk = scale * (ds.T @ q)                                 (B10) from F1

    Args:
        q: (B, T, H, D), floating; or (T, H, D), or (T, D) for one head of one example.
        k, v: (B, S, KV, D), taken in q's dtype; KV divides H, and query head h reads key head
            h // (H / KV). As many axes as q.
        mask: bool, broadcastable to (B, H, T, S); True attends. No cotangent.
        scale: a scalar, floating; None for 1 / sqrt(D).
        bias: broadcastable to (B, H, T, S), floating; added after the soft cap.
        q_segments, k_segments: integers, (B, T) and (B, S), or (T,) and (S,): a query sees the
            keys of its own segment (packed documents, padding). No cotangent. Both or neither.
        causal: whether a query sees only keys up to its own position.
        window: how far a query sees: window positions back, its own counted, and as many ahead
            unless causal.
        soft_cap: bounds the scaled scores to (-soft_cap, soft_cap).
        query_offset: the position of the first query among the keys, for causal and window. None
            for S - T: the last query is at the last key, as in decoding from a cache.
        block_size: a tile of scores has at most about block_size ** 2 entries per example: of
            one key head and the query heads it serves, or of several where sequences are short,
            fewer where a window is narrow. Tiles out of reach by position are never computed.
            None of the outputs depends on it.

    Returns:
        out: q's shape and dtype.

    Residuals: the arguments, out, and each row's largest z and total: 8 bytes per query and head.
        The probabilities are recomputed.

    Numerics: scores and softmax in float32 at least, shifted by the row's maximum; products of
        what is rounded take their factors in q's dtype. A query that sees no key gets exactly 0,
        and gives 0 as gradient. -inf in the bias is a mask. Keys and values must be finite even
        where masked. Where the keys of a query fill several tiles, B3 takes the row's sum from
        out: in bfloat16 that is out as rounded (errors of dq and dk about 1.02 times automatic's),
        and where the softmax is saturated dz is rounding error instead of exactly 0.
        Tiles go through the heads in turn: where heads are sharded, call it inside shard_map.

    Raises:
        TypeError: where q, k, v, scale or bias is not floating, mask not bool, or segments are
            not integers.
        ValueError: where shapes or options do not fit.

    Source: Vaswani et al. (2017), Attention is all you need, equation 1; in tiles: Dao et al.
        (2022), FlashAttention, algorithms 1 and 4. Soft cap: Gemma 2 (2024), section 2.
    """
    o = operands(q, k, v, mask, scale, bias, q_segments, k_segments,
                 causal, window, soft_cap, query_offset, block_size)  # fmt: skip
    queries, keys = o.q.shape[1], o.k.shape[1]
    q4, k4, v4 = (jnp.swapaxes(_each_head(x, o), 1, 2) for x in (o.q, o.k, o.v))
    s = o.scale * matmul(q4, k4.mT)  # F1
    c = s if soft_cap is None else soft_cap * jnp.tanh(s / soft_cap)  # F2
    z = c if o.bias is None else c + up(o.bias)  # F3
    z = jnp.where(_mask(o, jnp.arange(queries)[:, None], jnp.arange(keys)), z, -jnp.inf)
    largest = lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True, initial=-jnp.inf))
    e = jnp.exp(z - jnp.where(largest == -jnp.inf, 0, largest))  # F4
    total = jnp.sum(e, axis=-1, keepdims=True)  # F5
    p = e / jnp.where(total > 0, total, 1)  # F6
    out = matmul(p.astype(v4.dtype), v4).astype(q.dtype)  # F7
    return jnp.swapaxes(out, 1, 2).reshape(q.shape)


def _each_head(x: jax.Array, o: Operands) -> jax.Array:
    """Keys or values, one copy for every query head."""
    return jnp.repeat(x, o.q.shape[2] // x.shape[2], axis=2)


def _mask(o: Operands, q_at: jax.Array, k_at: jax.Array) -> jax.Array:
    """All that a query sees, broadcastable to (B, H, T, S)."""
    seen = o.reach.sees(q_at, k_at)
    if o.q_segments is not None and o.k_segments is not None:
        seen = seen & (o.q_segments[:, None, :, None] == o.k_segments[:, None, None, :])
    return seen if o.mask is None else seen & o.mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionResiduals:
    """The arguments, out, and what backward must know of the options."""

    arguments: tuple[Any, ...]  # arrays, or None for those left out
    out: jax.Array
    largest: jax.Array
    total: jax.Array
    options: tuple = field(metadata={"static": True})


def attention_forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    q_segments: jax.Array | None,
    k_segments: jax.Array | None,
    *,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    query_offset: int | None,
    block_size: int,
) -> tuple[jax.Array, AttentionResiduals]:
    arguments: tuple[Any, ...] = (q, k, v, mask, scale, bias, q_segments, k_segments)
    options: tuple[Any, ...] = (causal, window, soft_cap, query_offset, block_size)
    out, largest, total = forward_in_tiles(operands(*arguments, *options))  # F1 to F7
    out = out.reshape(q.shape)
    return out, AttentionResiduals(arguments, out, largest, total, options)


def attention_backward(res: AttentionResiduals, g: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, _, scale, bias, _, _ = res.arguments
    o = operands(*res.arguments, *res.options)
    out, g = res.out.reshape(o.q.shape), g.reshape(o.q.shape)
    dq, dk, dv, dscale, dbias = backward_in_tiles(o, out, res.largest, res.total, g)  # B1 to B10
    return (
        dq.reshape(q.shape),
        dk.reshape(k.shape),
        dv.reshape(v.shape),
        None,
        None if scale is None else dscale,
        None if bias is None else dbias.reshape(bias.shape),
        None,
        None,
    )


def attention_cases() -> list[Case]:
    q, k, v = normal(0, 2, 7, 4, 4), normal(1, 2, 7, 2, 4), normal(2, 2, 7, 2, 4)
    bias, key_bias, scale = normal(3, 1, 4, 7, 7), normal(4, 1, 4, 1, 7), jnp.float32(0.7)
    mask = normal(5, 2, 1, 7, 7) > -0.5
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 2]], jnp.int32)
    low, at_inf = jnp.bfloat16, jnp.where(mask, 0.0, -jnp.inf)
    blind = replaced(mask, (0, 0, 1), False)
    causal, dense = {"causal": True}, {"causal": False}
    tiled = {"causal": True, "window": 3, "soft_cap": 2.0, "block_size": 2}
    symmetric = {"causal": False, "window": 2, "query_offset": 1, "soft_cap": 5.0, "block_size": 4}
    cases = [
        Case("causal, grouped heads", (q, k, v), causal),
        Case("bias, scale and mask", (q, k, v, mask, scale, bias), dense),
        Case("soft cap and window", (q, k, v, None, scale, key_bias), tiled),
        Case("segments", (q, k, v, None, None, None, segments, segments), causal),
        Case("more keys than queries", (q[:, :3], k, v), causal),
        Case("one query", (q[:, :1], k, v), causal),
        Case("one key head, symmetric window", (q, k[:, :, :1], v[:, :, :1]), symmetric),
        Case("one head of one example", (q[0, :, 0], k[0, :5, 0], v[0, :5, 0]), dense),
        Case("square", (q[0, :4, 0], k[0, :4, 0], v[0, :4, 0]), dense),
        Case("bfloat16", (q.astype(low), k.astype(low), v.astype(low), None, scale, bias), dense),
        Case("zeros", (0 * q, 0 * k, 0 * v), causal, edge=True),
        Case("a query that sees nothing", (q, k, v, blind, scale, bias), dense, edge=True),
        Case("more queries than keys", (q, k[:, :3], v[:, :3]), causal, edge=True),
        Case("bias of -inf", (q, k, v, None, scale, at_inf), dense, edge=True),
        Case("large", (1e3 * q, 1e3 * k, v), causal, edge=True),
        Case("no examples", (q[:0], k[:0], v[:0]), causal, edge=True),
        Case("no keys", (q, k[:, :0], v[:, :0]), dense, edge=True),
    ]
    return [case._replace(given=_one_head(4 if case.name == "square" else 6)) for case in cases]


def _one_head(keys: int) -> dict[str, jax.Array | bool | float | None]:
    """Arrays at the derivation's scope, among the 4 queries one that sees nothing."""
    q, k, v, bias, mask = (
        normal(i, *shape)
        for i, shape in enumerate([(4, 4), (keys, 4), (keys, 4), (4, keys), (4, keys)])
    )
    arrays = {"q": q, "k": k, "v": v, "bias": bias, "scale": jnp.float32(0.7)}
    mask = replaced(mask > -0.5, 1, False)
    absent = dict.fromkeys(("q_segments", "k_segments", "window", "query_offset"))
    return {**arrays, **absent, "mask": mask, "causal": False, "soft_cap": 2.0}


attention = Rule(
    attention_reference, attention_forward, attention_backward, attention_cases, budget=2
)
