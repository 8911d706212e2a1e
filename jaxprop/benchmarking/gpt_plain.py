"""A GPT in plain JAX, on the parameters of `jaxprop.models.gpt2`, for automatic differentiation.

In the forms that people use: the blocks unrolled or in a scan; everything saved, the products
alone, or the blocks' inputs alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.installing import PyTree
from jaxprop.models.gpt2 import Gpt2Config

Cost = Callable[[PyTree, jax.Array, jax.Array], jax.Array]


def plain_costs(config: Gpt2Config) -> dict[str, Cost]:
    """J(params, tokens, labels) by what the blocks are and what automatic differentiation saves."""

    def block(h: jax.Array, p: PyTree) -> jax.Array:
        return _block(config, h, p)

    dots = jax.checkpoint_policies.dots_saveable
    kinds: dict[str, Callable] = {
        "": block,
        ", dots_saveable": jax.checkpoint(block, policy=dots),
        ", remat": jax.checkpoint(block),
    }
    costs = {f"scan{kind}": _cost(config, made, _scanned) for kind, made in kinds.items()}
    return costs | {
        f"unrolled{kind}": _cost(config, made, _unrolled) for kind, made in kinds.items()
    }


def _cost(config: Gpt2Config, block: Callable, through: Callable) -> Cost:
    def cost(params: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        h = params["embedding"][tokens] + params["positions"][: tokens.shape[1]]
        h = _norm(config, through(block, h, params["blocks"]), params["norm"])
        log_p = jax.nn.log_softmax(h @ params["embedding"].T)
        return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None], axis=-1))

    return cost


def _scanned(block: Callable, h: jax.Array, blocks: PyTree) -> jax.Array:
    return lax.scan(lambda h, p: (block(h, p), None), h, blocks)[0]


def _unrolled(block: Callable, h: jax.Array, blocks: PyTree) -> jax.Array:
    for k in range(len(jax.tree.leaves(blocks)[0])):
        h = block(h, jax.tree.map(lambda leaf, k=k: leaf[k], blocks))
    return h


def _block(config: Gpt2Config, h: jax.Array, params: PyTree) -> jax.Array:
    p, f = params["attention"], params["feed_forward"]
    batch, time, width = h.shape
    heads = batch, time, config.heads, width // config.heads
    qkv = _norm(config, h, p["norm"]) @ p["w_qkv"] + p["b_qkv"]
    q, k, v = (x.reshape(heads) for x in jnp.split(qkv, 3, axis=-1))
    a = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    h = h + a.reshape(h.shape) @ p["w_o"] + p["b_o"]
    z = _norm(config, h, f["norm"]) @ f["w_in"] + f["b_in"]
    return h + jax.nn.gelu(z, approximate=True) @ f["w_out"] + f["b_out"]


def _norm(config: Gpt2Config, x: jax.Array, p: PyTree) -> jax.Array:
    return jax.nn.standardize(x, epsilon=config.eps) * p["gamma"] + p["beta"]
