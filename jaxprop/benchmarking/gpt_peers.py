"""The same GPT of the layers of Flax NNX and of Equinox, holding the same parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree
from jaxprop.models.gpt2 import Gpt2Config

# (their parameters, J(their parameters, tokens, labels)).
Made = tuple[PyTree, Callable[[PyTree, jax.Array, jax.Array], jax.Array]]


def flax_gpt(config: Gpt2Config, params: PyTree) -> Made:
    """Of nnx.Embed, nnx.LayerNorm, nnx.MultiHeadAttention and nnx.Linear."""
    from flax import nnx

    width, hidden, rngs = config.width, config.feed_forward, nnx.Rngs(0)

    class Block(nnx.Module):
        def __init__(self) -> None:
            self.norm_1 = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                config.heads, width, decode=False, use_bias=True, rngs=rngs
            )
            self.norm_2 = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
            self.to_hidden = nnx.Linear(width, hidden, rngs=rngs)
            self.out = nnx.Linear(hidden, width, rngs=rngs)

        def __call__(self, h: jax.Array, mask: jax.Array) -> jax.Array:
            h = h + self.attention(self.norm_1(h), mask=mask)
            return h + self.out(nnx.gelu(self.to_hidden(self.norm_2(h)), approximate=True))

    class Network(nnx.Module):
        def __init__(self) -> None:
            self.embedding = nnx.Embed(config.vocabulary, width, rngs=rngs)
            self.positions = nnx.Embed(config.context, width, rngs=rngs)
            self.blocks = nnx.List([Block() for _ in range(config.depth)])
            self.norm = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)

        def __call__(self, tokens: jax.Array) -> jax.Array:
            h = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))
            mask = nnx.make_causal_mask(tokens)
            for block in self.blocks:
                h = block(h, mask)
            return self.embedding.attend(self.norm(h))

    network = Network()
    network.embedding.embedding[...] = params["embedding"]
    network.positions.embedding[...] = params["positions"]
    _set_norm(network.norm, params["norm"], "scale", "bias")
    for block, p in zip(network.blocks, each_block(params["blocks"]), strict=True):
        _set_flax_block(block, p, config)
    structure, state = nnx.split(network)

    def cost(state: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(nnx.merge(structure, state)(tokens), labels)

    return state, cost


def _set_flax_block(block: Any, params: PyTree, config: Gpt2Config) -> None:
    p, f, a = params["attention"], params["feed_forward"], block.attention
    heads = config.heads, config.width // config.heads
    _set_norm(block.norm_1, p["norm"], "scale", "bias")
    _set_norm(block.norm_2, f["norm"], "scale", "bias")
    parts = jnp.split(p["w_qkv"], 3, axis=1), jnp.split(p["b_qkv"], 3)
    for part, w, b in zip((a.query, a.key, a.value), *parts, strict=True):
        part.kernel[...], part.bias[...] = w.reshape(config.width, *heads), b.reshape(heads)
    a.out.kernel[...], a.out.bias[...] = p["w_o"].reshape(*heads, config.width), p["b_o"]
    block.to_hidden.kernel[...], block.to_hidden.bias[...] = f["w_in"], f["b_in"]
    block.out.kernel[...], block.out.bias[...] = f["w_out"], f["b_out"]


def _set_norm(norm: Any, p: PyTree, scale: str, bias: str) -> None:
    getattr(norm, scale)[...], getattr(norm, bias)[...] = p["gamma"], p["beta"]


def equinox_gpt(config: Gpt2Config, params: PyTree) -> Made:
    """Of eqx.nn.LayerNorm, MultiheadAttention and Linear, for one sequence, under vmap."""
    import equinox as eqx

    key, width = jax.random.key(0), config.width

    def norm(p: PyTree) -> Any:
        made = eqx.nn.LayerNorm(width, eps=config.eps)
        return eqx.tree_at(lambda m: (m.weight, m.bias), made, (p["gamma"], p["beta"]))

    def linear(w: jax.Array, b: jax.Array) -> Any:
        made = eqx.nn.Linear(w.shape[0], w.shape[1], key=key)
        return eqx.tree_at(lambda m: (m.weight, m.bias), made, (w.T, b))

    def attention(p: PyTree) -> Any:
        options: dict[str, Any] = {
            f"use_{name}_bias": True for name in ("query", "key", "value", "output")
        }
        made = eqx.nn.MultiheadAttention(config.heads, width, key=key, **options)
        ws, bs = jnp.split(p["w_qkv"], 3, axis=1), jnp.split(p["b_qkv"], 3)
        parts = [linear(w, b) for w, b in zip(ws, bs, strict=True)]

        def places(m: Any) -> list:
            return [m.query_proj, m.key_proj, m.value_proj, m.output_proj]

        return eqx.tree_at(places, made, [*parts, linear(p["w_o"], p["b_o"])])

    def block(params: PyTree) -> dict[str, Any]:
        p, f = params["attention"], params["feed_forward"]
        return {
            "norm_1": norm(p["norm"]),
            "attention": attention(p),
            "norm_2": norm(f["norm"]),
            "to_hidden": linear(f["w_in"], f["b_in"]),
            "out": linear(f["w_out"], f["b_out"]),
        }

    network = {
        "embedding": params["embedding"],
        "positions": params["positions"],
        "blocks": [block(p) for p in each_block(params["blocks"])],
        "norm": norm(params["norm"]),
    }
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)

    def logits(network: dict[str, Any], tokens: jax.Array) -> jax.Array:
        h = network["embedding"][tokens] + network["positions"][: len(tokens)]
        mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        for b in network["blocks"]:
            n = jax.vmap(b["norm_1"])(h)
            h = h + b["attention"](n, n, n, mask)
            z = jax.vmap(b["to_hidden"])(jax.vmap(b["norm_2"])(h))
            h = h + jax.vmap(b["out"])(jax.nn.gelu(z, approximate=True))
        return jax.vmap(network["norm"])(h) @ network["embedding"].T

    def cost(arrays: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        network = eqx.combine(arrays, rest)
        return cross_entropy(jax.vmap(lambda t: logits(network, t))(tokens), labels)

    return arrays, cost


def each_block(blocks: PyTree) -> list[PyTree]:
    depth = len(jax.tree.leaves(blocks)[0])
    return [jax.tree.map(lambda leaf, k=k: leaf[k], blocks) for k in range(depth)]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
