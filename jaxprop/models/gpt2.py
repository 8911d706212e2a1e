"""GPT-2: the transformer with learned positions, layer norms, GELU and dropout.

`block` is written out as in `llama`, forward list and reverse. B batch, T time, C width, H heads,
D = C / H, F the width of the feed-forward layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape
from jaxprop.models.inputs import segments_of
from jaxprop.models.language import (
    LanguageModel,
    drop_backward,
    drop_forward,
    normal_weights,
    two_keys,
)
from jaxprop.models.projections import affine, affine_reference, pull
from jaxprop.models.sizes import check_sizes
from jaxprop.models.transformer import Attend, merge_heads, split_heads, transformer
from jaxprop.repetition import repeat
from jaxprop.rule import Rule
from jaxprop.rules.attention import attention
from jaxprop.rules.dropout import dropout
from jaxprop.rules.layer_norm import layer_norm
from jaxprop.rules.self_gated import gelu


@dataclass(frozen=True)
class Gpt2Config:
    """The shape of a network of the GPT-2 family.

    vocabulary, width, depth, heads: V, C, the number of blocks, H.
    context:    the number of positions that are learned, the longest T.
    hidden:     F; None for 4 C.
    tied:       whether the table that embeds the tokens is also the last layer.
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
    context: int
    hidden: int | None = None
    tied: bool = True
    eps: float = 1e-5
    save: int | None = None
    frozen: int = 0
    dtype: str | None = None

    def __post_init__(self) -> None:
        names = ("vocabulary", "width", "depth", "heads", "context")
        sizes = {name: getattr(self, name) for name in names}
        check_sizes("Gpt2Config", **sizes)
        check_sizes("Gpt2Config", hidden=self.feed_forward)
        if self.width % self.heads:
            raise ValueError(
                f"Gpt2Config: heads must divide width, got {self.heads} and {self.width}. Change "
                "one of them."
            )

    @property
    def key_shape(self) -> tuple[int, int]:
        """(H, D)."""
        return self.heads, self.width // self.heads

    @property
    def feed_forward(self) -> int:
        return 4 * self.width if self.hidden is None else self.hidden


def gpt2(config: Gpt2Config) -> LanguageModel:
    """Make a network of the GPT-2 family: embeddings, blocks, norm, last layer.

    Args:
        config: its shape.

    Returns:
        A LanguageModel, whose Inputs may have a dropout rate. Its params are

            embedding                   (V, C)
            positions                   (context, C)
            blocks, each leaf with a first axis of depth:
                attention: norm: gamma and beta (C,); w_qkv (C, 3 C), b_qkv, w_o (C, C), b_o
                feed_forward: norm: gamma and beta (C,); w_in (C, F), b_in, w_out (F, C), b_out
            norm: gamma and beta        (C,)
            head                        (C, V), unless tied

        Weights are normal with a standard deviation of 0.02, those that are added to h smaller
        by sqrt(2 depth); biases are 0.

    Source: Radford et al. (2019), Language models are unsupervised multitask learners, section
        2.3. Dropout is after the embedding and on both branches; not on attention's weights.
    """
    blocks = repeat(block(config), config.depth, save=config.save, frozen=config.frozen)
    return transformer(config, blocks, final_norm(config), block_reference, _init)


def final_norm(config: Gpt2Config) -> Layer:
    """The norm after the last block, as a layer."""

    def norm(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return layer_norm.reference(x, params["gamma"], params["beta"], eps=config.eps)

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Saved]:
        return layer_norm.forward(x, params["gamma"], params["beta"], eps=config.eps)

    def backward(res: Saved, g: jax.Array) -> tuple[PyTree, jax.Array, None]:
        dx, dgamma, dbeta = layer_norm.backward(res, g)
        return {"gamma": dgamma, "beta": dbeta}, dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return _norm_init(x_shape[-1], dtype)

    return Layer(norm, forward, backward, init=init)


def block_reference(
    config: Gpt2Config,
    params: PyTree,
    h: jax.Array,
    positions: jax.Array,
    attend: Attend,
    dropped: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """`block` in plain JAX, line for line.

    attend(q, k, v) is its F3, with a cache or without; dropped(x) is dropout in F4, then in F8.
    Positions are in h already.
    """
    p, f = params["attention"], params["feed_forward"]
    norm, bend = _bound(config)
    n = norm.reference(h, p["norm"]["gamma"], p["norm"]["beta"])  # F1
    q, k, v = _three(affine_reference(n, p["w_qkv"], p["b_qkv"]), config.heads)  # F2
    a = attend(q, k, v)  # F3
    u = h + dropped(affine_reference(merge_heads(a), p["w_o"], p["b_o"]))  # F4
    m = norm.reference(u, f["norm"]["gamma"], f["norm"]["beta"])  # F5
    z = affine_reference(m, f["w_in"], f["b_in"])  # F6
    s = bend.reference(z)  # F7
    return u + dropped(affine_reference(s, f["w_out"], f["b_out"]))  # F8


def _bound(config: Gpt2Config) -> tuple[Rule, Rule]:
    """The rules of F1 and F7, their options fixed."""
    return layer_norm.bind(eps=config.eps), gelu.bind(approximate=True)


class BlockResiduals(NamedTuple):
    """What a block saves; n, m and s are computed again from these.

    h, u (B, T, C); attention's own: q, k, v, a and two numbers per query; z (B, T, F).
    """

    params: PyTree
    h: jax.Array
    attention: Saved
    a: jax.Array
    dropout_1: Saved | None
    u: jax.Array
    z: jax.Array
    dropout_2: Saved | None


def block(config: Gpt2Config) -> Layer:
    """One block: attention over the tokens so far, then a feed-forward layer for each token.

    A rule over (params, (h, context)), h (B, T, C). What each line's gradient is, line for line:

    Forward    n = layer_norm(h)                      (B, T, C)        (F1)
               q, k, v = split(n @ w_qkv + b_qkv)     (B, T, H, D)     (F2)
               a = attention(q, k, v)                 (B, T, H, D)     (F3)
               u = h + dropout(a @ w_o + b_o)         (B, T, C)        (F4)
               m = layer_norm(u)                      (B, T, C)        (F5)
               z = m @ w_in + b_in                    (B, T, F)        (F6)
               s = gelu(z)                            (B, T, F)        (F7)
               y = u + dropout(s @ w_out + b_out)     (B, T, C)        (F8)
    Backward   ds, dw_out, db_out = from dropped g                     (B1) from F8
               dz = from ds                                            (B2) from F7
               dm, dw_in, db_in = from dz                              (B3) from F6
               du = g + from dm; dgamma, dbeta                         (B4) from F5, F8
               da, dw_o, db_o = from dropped du                        (B5) from F4
               dq, dk, dv = from da                                    (B6) from F3
               dn, dw_qkv, db_qkv = from dq, dk, dv side by side       (B7) from F2
               dh = du + from dn; dgamma, dbeta                        (B8) from F1, F4

    A residual is where two paths meet: g reaches h by the sum itself and through the branch, and
    the two cotangents add (B4, B8).

    Residuals: BlockResiduals. n, m and s are cheap to make again and as large as what they are
        made from; the masks of dropout are drawn again from the key.
    """
    heads = config.heads
    norm, bend = _bound(config)
    attend = attention.bind(causal=True)

    def reference(params: PyTree, x: tuple, key: jax.Array | None = None) -> jax.Array:
        h, context = x
        keys = iter(two_keys(key))

        def sees(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend.reference(q, k, v, **segments_of(context))

        def dropped(x: jax.Array) -> jax.Array:
            key = next(keys)
            return x if context.dropout is None else dropout.reference(x, context.dropout, key)

        return block_reference(config, params, h, context.positions, sees, dropped)

    def forward(
        params: PyTree, x: tuple, key: jax.Array | None
    ) -> tuple[jax.Array, BlockResiduals]:
        (h, context), p, f = x, params["attention"], params["feed_forward"]
        key_1, key_2 = two_keys(key)
        n, _ = norm.forward(h, p["norm"]["gamma"], p["norm"]["beta"])  # F1
        q, k, v = _three(affine(n, p["w_qkv"], p["b_qkv"]), heads)  # F2
        a, of_a = attend.forward(q, k, v, **segments_of(context))  # F3
        branch = affine(merge_heads(a), p["w_o"], p["b_o"])
        branch, dropout_1 = drop_forward(branch, context, key_1)
        u = h + branch  # F4
        m, _ = norm.forward(u, f["norm"]["gamma"], f["norm"]["beta"])  # F5
        z = affine(m, f["w_in"], f["b_in"])  # F6
        s, _ = bend.forward(z)  # F7
        branch = affine(s, f["w_out"], f["b_out"])
        branch, dropout_2 = drop_forward(branch, context, key_2)
        y = u + branch  # F8
        return y, BlockResiduals(params, h, of_a, a, dropout_1, u, z, dropout_2)

    def backward(res: BlockResiduals, g: jax.Array) -> tuple[PyTree, tuple, None]:
        p, f = res.params["attention"], res.params["feed_forward"]
        n, of_n = norm.forward(res.h, p["norm"]["gamma"], p["norm"]["beta"])  # F1, recomputed
        m, of_m = norm.forward(res.u, f["norm"]["gamma"], f["norm"]["beta"])  # F5, recomputed
        s, of_s = bend.forward(res.z)  # F7, recomputed
        ds, dw_out, db_out = pull(s, f["w_out"], f["b_out"], drop_backward(res.dropout_2, g))  # B1
        (dz,) = bend.backward(of_s, ds)  # B2
        dm, dw_in, db_in = pull(m, f["w_in"], f["b_in"], dz)  # B3
        du_by_m, dgamma_2, dbeta_2 = norm.backward(of_m, dm)  # B4
        du = g + du_by_m
        da, dw_o, db_o = pull(
            merge_heads(res.a), p["w_o"], p["b_o"], drop_backward(res.dropout_1, du)
        )  # B5
        dq, dk, dv, *_ = attend.backward(res.attention, split_heads(da, heads))  # B6
        dqkv = jnp.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)
        dn, dw_qkv, db_qkv = pull(n, p["w_qkv"], p["b_qkv"], dqkv)  # B7
        dh_by_n, dgamma_1, dbeta_1 = norm.backward(of_n, dn)  # B8
        dh = du + dh_by_n
        dattention = {"w_qkv": dw_qkv, "b_qkv": db_qkv, "w_o": dw_o, "b_o": db_o}
        dfeed_forward = {"w_in": dw_in, "b_in": db_in, "w_out": dw_out, "b_out": db_out}
        dparams = {
            "attention": {"norm": {"gamma": dgamma_1, "beta": dbeta_1}, **dattention},
            "feed_forward": {"norm": {"gamma": dgamma_2, "beta": dbeta_2}, **dfeed_forward},
        }
        return dparams, (dh, None), None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return _block_init(key, config, dtype)

    reference.__name__ = "gpt2_block"
    reference.__doc__ = block.__doc__
    return Layer(reference, forward, backward, init=init)


def _three(qkv: jax.Array, heads: int) -> list[jax.Array]:
    """(B, T, 3 C) as q, k and v, each (B, T, H, D)."""
    return [split_heads(x, heads) for x in jnp.split(qkv, 3, axis=-1)]


def _norm_init(width: int, dtype: Any) -> PyTree:
    return {"gamma": jnp.ones((width,), dtype), "beta": jnp.zeros((width,), dtype)}


def _block_init(key: jax.Array, config: Gpt2Config, dtype: Any) -> PyTree:
    """Normal weights; those whose output is added to h are smaller, by the number of additions."""
    c, f = config.width, config.feed_forward
    added = (2 * config.depth) ** -0.5
    qkv, o, to_hidden, out = jax.random.split(key, 4)
    return {
        "attention": {
            "norm": _norm_init(c, dtype),
            "w_qkv": normal_weights(qkv, (c, 3 * c), dtype),
            "b_qkv": jnp.zeros((3 * c,), dtype),
            "w_o": normal_weights(o, (c, c), dtype, added),
            "b_o": jnp.zeros((c,), dtype),
        },
        "feed_forward": {
            "norm": _norm_init(c, dtype),
            "w_in": normal_weights(to_hidden, (c, f), dtype),
            "b_in": jnp.zeros((f,), dtype),
            "w_out": normal_weights(out, (f, c), dtype, added),
            "b_out": jnp.zeros((c,), dtype),
        },
    }


def _init(key: jax.Array, config: Gpt2Config, blocks: Layer, dtype: Any) -> PyTree:
    of_table, of_positions, of_blocks, of_head = jax.random.split(key, 4)
    shape = (config.vocabulary, config.width)
    params = {
        "embedding": normal_weights(of_table, shape, dtype),
        "positions": normal_weights(of_positions, (config.context, config.width), dtype, 0.5),
        "blocks": blocks.init(of_blocks, (1, 1, config.width), dtype),
        "norm": _norm_init(config.width, dtype),
    }
    if not config.tied:
        params["head"] = normal_weights(of_head, shape[::-1], dtype)
    return params
