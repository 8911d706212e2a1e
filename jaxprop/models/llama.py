"""Llama: the transformer with rotary positions, RMS norms, SwiGLU and grouped query heads.

`block` is the text to read: how backpropagation goes through one block of a transformer, the
forward list and its reverse. B batch, T time, C width, H heads, K key heads, D head size, F the
width of the feed-forward layer.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape
from jaxprop.models.inputs import Context, segments_of
from jaxprop.models.language import LanguageModel, normal_weights
from jaxprop.models.projections import affine, affine_reference, pull
from jaxprop.models.sizes import check_sizes
from jaxprop.models.transformer import Attend, merge_heads, split_heads, transformer
from jaxprop.repetition import repeat
from jaxprop.rule import Rule
from jaxprop.rules.attention import attention
from jaxprop.rules.gated import swiglu
from jaxprop.rules.layer_norm import rms_norm
from jaxprop.rules.rotary import rotary
from jaxprop.rules.rotary_scaling import Scaling


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a network of the Llama family (Mistral and Qwen 2 among it).

    vocabulary, width, depth, heads: V, C, the number of blocks, H.
    hidden:     F.
    key_heads:  K, which divides H; None for H.
    head_size:  D, even; None for C / H.
    tied:       whether the table that embeds the tokens is also the last layer.
    qkv_bias:   whether queries, keys and values have biases.
    window:     how many positions back a token sees, its own counted; None for all.
    base, scaling: of the rotary positions.
    eps:        of the norms.
    save:       what the blocks save for the backward pass, as `repeat` has it.
    frozen:     how many of the first blocks are not trained. The backward pass ends above them: the
                tables below have no gradient through the blocks.
    dtype:      what is computed in, by its name; None for that of the parameters.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    key_heads: int | None = None
    head_size: int | None = None
    tied: bool = False
    qkv_bias: bool = False
    window: int | None = None
    base: float = 10000.0
    scaling: Scaling | None = None
    eps: float = 1e-5
    save: int | None = None
    frozen: int = 0
    dtype: str | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("vocabulary", "width", "depth", "hidden")}
        check_sizes("LlamaConfig", **sizes, heads=self.heads, key_heads=self.key_heads_or_heads)
        if self.heads % self.key_heads_or_heads:
            raise ValueError(
                f"LlamaConfig: key_heads must divide heads, got {self.key_heads} and {self.heads}."
            )
        if self.window is not None:
            check_sizes("LlamaConfig", window=self.window)
        if self.head_size is None and self.width % self.heads:
            raise ValueError(
                f"LlamaConfig: heads must divide width, got {self.heads} and {self.width}. Change "
                "one of them, or give head_size."
            )
        if self.size % 2:
            raise ValueError(
                f"LlamaConfig: the head size must be even, for rotary positions, got {self.size}."
            )

    @property
    def size(self) -> int:
        return self.width // self.heads if self.head_size is None else self.head_size

    @property
    def key_shape(self) -> tuple[int, int]:
        """(K, D)."""
        return self.key_heads_or_heads, self.size

    @property
    def key_heads_or_heads(self) -> int:
        return self.heads if self.key_heads is None else self.key_heads


def llama(config: LlamaConfig) -> LanguageModel:
    """Make a network of the Llama family: token embedding, blocks, norm, last layer.

    Args:
        config: its shape.

    Returns:
        A LanguageModel. Its params are

            embedding                   (V, C)
            blocks, each leaf with a first axis of depth:
                attention: norm (C,), w_q (C, H D), w_k and w_v (C, K D), w_o (H D, C),
                           and b_q, b_k, b_v with qkv_bias
                feed_forward: norm (C,), w_gate and w_up (C, F), w_down (F, C)
            norm                        (C,)
            head                        (C, V), unless tied

    Source: Touvron et al. (2023), LLaMA; grouped query heads: Ainslie et al. (2023), GQA.
    """
    blocks = repeat(block(config), config.depth, save=config.save, frozen=config.frozen)
    return transformer(config, blocks, final_norm(config), block_reference, _init)


def final_norm(config: LlamaConfig) -> Layer:
    """The norm after the last block, as a layer whose params are gamma itself."""

    def norm(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return rms_norm.reference(x, params, eps=config.eps)

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Saved]:
        return rms_norm.forward(x, params, eps=config.eps)

    def backward(res: Saved, g: jax.Array) -> tuple[PyTree, jax.Array, None]:
        dx, dgamma = rms_norm.backward(res, g)
        return dgamma, dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return jnp.ones(x_shape[-1:], dtype)

    return Layer(norm, forward, backward, init=init)


def block_reference(
    config: LlamaConfig, params: PyTree, h: jax.Array, positions: jax.Array, attend: Attend
) -> jax.Array:
    """`block` in plain JAX, line for line; attend(q, k, v) is its F4, with a cache or without."""
    p, f = params["attention"], params["feed_forward"]
    heads, key_heads = config.heads, config.key_heads_or_heads
    norm, turned = _bound(config)
    n = norm.reference(h, p["norm"])  # F1
    q = split_heads(affine_reference(n, p["w_q"], p.get("b_q")), heads)  # F2
    k = split_heads(affine_reference(n, p["w_k"], p.get("b_k")), key_heads)
    v = split_heads(affine_reference(n, p["w_v"], p.get("b_v")), key_heads)
    q, k = (turned.reference(x, positions) for x in (q, k))  # F3
    a = attend(q, k, v)  # F4
    u = h + affine_reference(merge_heads(a), p["w_o"])  # F5
    m = norm.reference(u, f["norm"])  # F6
    value, gate = affine_reference(m, f["w_up"]), affine_reference(m, f["w_gate"])  # F7
    s = swiglu.reference(value, gate)  # F8
    return u + affine_reference(s, f["w_down"])  # F9


def _bound(config: LlamaConfig) -> tuple[Rule, Rule]:
    """The rules of F1 and F3, their options fixed."""
    return rms_norm.bind(eps=config.eps), rotary.bind(base=config.base, scaling=config.scaling)


class BlockResiduals(NamedTuple):
    """What a block saves; n, m and s are computed again from these.

    h, u (B, T, C); attention's own: q, k, v, a and two numbers per query; value, gate (B, T, F).
    """

    params: PyTree
    h: jax.Array
    positions: Saved
    key_positions: Saved
    attention: Saved
    a: jax.Array
    u: jax.Array
    value: jax.Array
    gate: jax.Array


def block(config: LlamaConfig) -> Layer:
    """One block: attention over the tokens so far, then a feed-forward layer for each token.

    A rule over (params, (h, context)), h (B, T, C). What each line's gradient is, line for line:

    Forward    n = rms_norm(h)                        (B, T, C)        (F1)
               q, k, v = n @ w_q, n @ w_k, n @ w_v    (B, T, H|K, D)   (F2)
               q, k = rotary(q), rotary(k)                             (F3)
               a = attention(q, k, v)                 (B, T, H, D)     (F4)
               u = h + a @ w_o                        (B, T, C)        (F5)
               m = rms_norm(u)                        (B, T, C)        (F6)
               value, gate = m @ w_up, m @ w_gate     (B, T, F)        (F7)
               s = swiglu(value, gate)                (B, T, F)        (F8)
               y = u + s @ w_down                     (B, T, C)        (F9)
    Backward   ds, dw_down = from g                                    (B1) from F9
               dvalue, dgate = from ds                                 (B2) from F8
               dm, dw_up, dw_gate = from dvalue and dgate, added       (B3) from F7
               du = g + from dm; dnorm                                 (B4) from F6, F9
               da, dw_o = from du                                      (B5) from F5
               dq, dk, dv = from da                                    (B6) from F4
               dq, dk = turned back                                    (B7) from F3
               dn, dw_q, dw_k, dw_v = from dq, dk and dv, added        (B8) from F2
               dh = du + from dn; dnorm                                (B9) from F1, F5

    A residual is where two paths meet: g reaches h by the sum itself and through the branch, and
    the two cotangents add (B4, B9). So do those of n and m, which several products read (B3, B8).

    Residuals: BlockResiduals. n, m and s are cheap to make again (a norm, a product of numbers)
        and are as large as what they are made from.
    """
    heads, key_heads = config.heads, config.key_heads_or_heads
    norm, turned = _bound(config)
    attend = attention.bind(causal=True, window=config.window)

    def reference(params: PyTree, x: tuple, key: jax.Array | None = None) -> jax.Array:
        h, context = x
        _check_dropout(context)

        def sees(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend.reference(q, k, v, **segments_of(context))

        return block_reference(config, params, h, context.positions, sees)

    def forward(
        params: PyTree, x: tuple, key: jax.Array | None
    ) -> tuple[jax.Array, BlockResiduals]:
        _check_dropout(x[1])
        (h, context), p, f = x, params["attention"], params["feed_forward"]
        n, _ = norm.forward(h, p["norm"])  # F1
        q = split_heads(affine(n, p["w_q"], p.get("b_q")), heads)  # F2
        k = split_heads(affine(n, p["w_k"], p.get("b_k")), key_heads)
        v = split_heads(affine(n, p["w_v"], p.get("b_v")), key_heads)
        q, of_q = turned.forward(q, context.positions)  # F3
        k, of_k = turned.forward(k, context.positions)
        a, of_a = attend.forward(q, k, v, **segments_of(context))  # F4
        u = h + affine(merge_heads(a), p["w_o"])  # F5
        m, _ = norm.forward(u, f["norm"])  # F6
        value = affine(m, f["w_up"])  # F7
        gate = affine(m, f["w_gate"])
        s, _ = swiglu.forward(value, gate)  # F8
        y = u + affine(s, f["w_down"])  # F9
        return y, BlockResiduals(params, h, of_q, of_k, of_a, a, u, value, gate)

    def backward(res: BlockResiduals, g: jax.Array) -> tuple[PyTree, tuple, None]:
        p, f = res.params["attention"], res.params["feed_forward"]
        n, of_n = norm.forward(res.h, p["norm"])  # F1, recomputed
        m, of_m = norm.forward(res.u, f["norm"])  # F6, recomputed
        s, of_s = swiglu.forward(res.value, res.gate)  # F8, recomputed
        ds, dw_down, _ = pull(s, f["w_down"], None, g)  # B1
        dvalue, dgate = swiglu.backward(of_s, ds)  # B2
        dm_by_value, dw_up, _ = pull(m, f["w_up"], None, dvalue)  # B3
        dm_by_gate, dw_gate, _ = pull(m, f["w_gate"], None, dgate)
        du_by_m, dnorm_2 = norm.backward(of_m, dm_by_value + dm_by_gate)  # B4
        du = g + du_by_m
        da, dw_o, _ = pull(merge_heads(res.a), p["w_o"], None, du)  # B5
        dq, dk, dv, *_ = attend.backward(res.attention, split_heads(da, heads))  # B6
        dq, _ = turned.backward(res.positions, dq)  # B7
        dk, _ = turned.backward(res.key_positions, dk)
        dn_by_q, dw_q, db_q = pull(n, p["w_q"], p.get("b_q"), merge_heads(dq))  # B8
        dn_by_k, dw_k, db_k = pull(n, p["w_k"], p.get("b_k"), merge_heads(dk))
        dn_by_v, dw_v, db_v = pull(n, p["w_v"], p.get("b_v"), merge_heads(dv))
        dh_by_n, dnorm_1 = norm.backward(of_n, dn_by_q + dn_by_k + dn_by_v)  # B9
        dh = du + dh_by_n
        dparams = {
            "attention": {"norm": dnorm_1, "w_q": dw_q, "w_k": dw_k, "w_v": dw_v, "w_o": dw_o},
            "feed_forward": {"norm": dnorm_2, "w_gate": dw_gate, "w_up": dw_up, "w_down": dw_down},
        }
        if config.qkv_bias:
            dparams["attention"] |= {"b_q": db_q, "b_k": db_k, "b_v": db_v}
        return dparams, (dh, None), None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return _block_init(key, config, dtype)

    reference.__name__ = "llama_block"
    reference.__doc__ = block.__doc__
    return Layer(reference, forward, backward, init=init)


def _check_dropout(context: Context) -> None:
    if context.dropout is not None:
        raise ValueError(
            "llama: has no dropout, got a rate. Leave it out of the inputs, or use gpt2."
        )


def _block_init(key: jax.Array, config: LlamaConfig, dtype: Any) -> PyTree:
    """Normal weights; those whose output is added to h are smaller, by the number of additions."""
    c, f, size = config.width, config.hidden, config.size
    q_width, k_width = config.heads * size, config.key_heads_or_heads * size
    added = (2 * config.depth) ** -0.5
    keys = iter(jax.random.split(key, 7))
    p = {
        "norm": jnp.ones((c,), dtype),
        "w_q": normal_weights(next(keys), (c, q_width), dtype),
        "w_k": normal_weights(next(keys), (c, k_width), dtype),
        "w_v": normal_weights(next(keys), (c, k_width), dtype),
        "w_o": normal_weights(next(keys), (q_width, c), dtype, added),
    }
    if config.qkv_bias:
        p |= {"b_q": jnp.zeros((q_width,), dtype), "b_k": jnp.zeros((k_width,), dtype)}
        p |= {"b_v": jnp.zeros((k_width,), dtype)}
    feed_forward = {
        "norm": jnp.ones((c,), dtype),
        "w_gate": normal_weights(next(keys), (c, f), dtype),
        "w_up": normal_weights(next(keys), (c, f), dtype),
        "w_down": normal_weights(next(keys), (f, c), dtype, added),
    }
    return {"attention": p, "feed_forward": feed_forward}


def _init(key: jax.Array, config: LlamaConfig, blocks: Layer, dtype: Any) -> PyTree:
    of_table, of_blocks, of_head = jax.random.split(key, 3)
    shape = (config.vocabulary, config.width)
    params = {
        "embedding": normal_weights(of_table, shape, dtype),
        "blocks": blocks.init(of_blocks, (1, 1, config.width), dtype),
        "norm": jnp.ones((config.width,), dtype),
    }
    if not config.tied:
        params["head"] = normal_weights(of_head, shape[::-1], dtype)
    return params
