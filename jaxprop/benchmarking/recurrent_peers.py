"""The LSTM of `jaxprop.models.recurrent` in plain JAX, Flax NNX and Equinox, on its parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.benchmarking.gpt_peers import Made, cross_entropy, each_block
from jaxprop.benchmarking.network_step import Cost
from jaxprop.installing import PyTree
from jaxprop.models.recurrent import RecurrentConfig

# (parameters of a layer, what it reads (B, T, C)) -> hs (B, T, C).
Run = Callable[[PyTree, jax.Array], jax.Array]


def plain_lstms() -> dict[str, Cost]:
    """`lax.scan` under automatic differentiation: what a step computes, and what it saves."""
    return {
        "scan": _cost(partial(_scanned, _step_of_x)),
        "scan, inputs before": _cost(_inputs_before),
        "scan, remat": _cost(partial(_scanned, jax.checkpoint(_step_of_x))),
    }


def _cost(run: Run) -> Cost:
    def cost(params: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        h = params["embedding"][tokens]
        for layer in each_block(params["blocks"]):
            h = run(layer, h)
        return cross_entropy(h @ params["head"], labels)

    return cost


def _scanned(step: Callable, p: PyTree, x: jax.Array) -> jax.Array:
    _, hs = lax.scan(partial(step, p), _zeros(x), jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(hs, 0, 1)


def _inputs_before(p: PyTree, x: jax.Array) -> jax.Array:
    """The product with w_x of all steps at once, before the loop."""
    a = jnp.moveaxis(x @ p["w_x"] + p["b"], 1, 0)
    _, hs = lax.scan(partial(_step, p), _zeros(x), a)
    return jnp.moveaxis(hs, 0, 1)


def _zeros(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[:, 0])


def _step_of_x(p: PyTree, state: tuple, x: jax.Array) -> tuple[tuple, jax.Array]:
    return _step(p, state, x @ p["w_x"] + p["b"])


def _step(p: PyTree, state: tuple, a: jax.Array) -> tuple[tuple, jax.Array]:
    h, c = state
    i, f, u, o = jnp.split(a + h @ p["w_h"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(u)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def flax_lstm(config: RecurrentConfig, params: PyTree) -> Made:
    """Of nnx.Embed, nnx.RNN of nnx.OptimizedLSTMCell, and nnx.Linear."""
    from flax import nnx

    width, rngs = config.width, nnx.Rngs(0)

    class Network(nnx.Module):
        def __init__(self) -> None:
            self.embedding = nnx.Embed(config.vocabulary, width, rngs=rngs)
            self.layers = nnx.List(
                [
                    nnx.RNN(nnx.OptimizedLSTMCell(width, width, rngs=rngs), rngs=rngs)
                    for _ in range(config.depth)
                ]
            )
            self.head = nnx.Linear(width, config.vocabulary, use_bias=False, rngs=rngs)

        def __call__(self, tokens: jax.Array) -> jax.Array:
            h = self.embedding(tokens)
            for layer in self.layers:
                h = layer(h, initial_carry=_zeros(h))  # its own draws from rngs, which jit refuses
            return self.head(h)

    network = Network()
    network.embedding.embedding[...] = params["embedding"]
    network.head.kernel[...] = params["head"]
    for layer, p in zip(network.layers, each_block(params["blocks"]), strict=True):
        cell: Any = layer.cell
        of_x, of_h = cell.dense_i, cell.dense_h
        of_x.kernel[...], of_h.kernel[...], of_h.bias[...] = p["w_x"], p["w_h"], p["b"]
    structure, state, *rest = nnx.split(network, nnx.Param, ...)

    def cost(state: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(nnx.merge(structure, state, *rest)(tokens), labels)

    return state, cost


def equinox_lstm(config: RecurrentConfig, params: PyTree) -> Made:
    """Of eqx.nn.LSTMCell for one sequence, in a scan, under vmap."""
    import equinox as eqx

    def cell(p: PyTree) -> eqx.nn.LSTMCell:
        made = eqx.nn.LSTMCell(config.width, config.width, key=jax.random.key(0))
        parts = p["w_x"].T, p["w_h"].T, p["b"]
        return eqx.tree_at(lambda m: (m.weight_ih, m.weight_hh, m.bias), made, parts)

    cells = [cell(p) for p in each_block(params["blocks"])]
    network = {"embedding": params["embedding"], "cells": cells, "head": params["head"]}
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)

    def through(cell: eqx.nn.LSTMCell, h: jax.Array) -> jax.Array:
        def step(state: tuple, x: jax.Array) -> tuple[tuple, jax.Array]:
            state = cell(x, state)
            return state, state[0]

        return lax.scan(step, (jnp.zeros_like(h[0]), jnp.zeros_like(h[0])), h)[1]

    def logits(network: PyTree, tokens: jax.Array) -> jax.Array:
        h = network["embedding"][tokens]
        for layer in network["cells"]:
            h = through(layer, h)
        return h @ network["head"]

    def cost(arrays: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        network = eqx.combine(arrays, rest)
        return cross_entropy(jax.vmap(lambda t: logits(network, t))(tokens), labels)

    return arrays, cost
