"""Combinators: layers in, a layer out.

A chain's forward is Algorithm 6.3 of Goodfellow et al., its backward Algorithm 6.4.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape, elementwise
from jaxprop.rule import Rule


class ChainResiduals(NamedTuple):
    layers: dict[str, Saved]


def chain(*unnamed: Rule, **named: Rule) -> Layer:
    """Make a network of layers that run one after the other.

    Algorithm 6.3 forward, Algorithm 6.4 backward: each layer's backward is run in
    reverse order, its parameters' cotangents collected, g handed on.

    Args:
        unnamed: layers, named by kind and position (`dense_1`, `relu_2`, ...).
        named: layers under names of your own (`hidden_1=dense(64, relu)`), after those.
            Rules of one array, such as activations, are taken as layers without parameters.

    Returns:
        A Layer; params are a dict by layer name. Given a key, the layer at position k
        (from 0) gets `jax.random.fold_in(key, k)`; given none, every layer gets none.

    Residuals: those of the layers.

    Raises:
        ValueError: where there is no layer, or params lack a layer or have one too many.
        TypeError: where something is neither a layer nor a rule of one array.

    Source: Goodfellow et al., Deep Learning, Algorithms 6.3 and 6.4; seed claims N0 to N8.
    """
    layers = named_layers("chain", unnamed, named)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return list(reference_through(layers, params, x, key).values())[-1]

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, ChainResiduals]:
        hs, saved = forward_through(layers, params, x, key)
        return list(hs.values())[-1], ChainResiduals(saved)

    def backward(res: ChainResiduals, g: jax.Array) -> tuple[PyTree, jax.Array | None, None]:
        dparams, dx = backward_through(layers, res.layers, g, {})
        return dparams, dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        params, x = {}, jax.ShapeDtypeStruct(x_shape, dtype)
        for (name, layer), layer_key in zip(layers.items(), split(key, layers), strict=True):
            params[name] = layer.init(layer_key, x.shape, dtype)
            x = jax.eval_shape(layer.reference, params[name], x)
        return params

    reference.__name__ = "chain"
    reference.__doc__ = "Run in order: " + ", ".join(layers)
    return Layer(reference, forward, backward, init=init, layers=layers, sequential=True)


def reference_through(
    layers: Mapping[str, Layer], params: PyTree, x: jax.Array, key: jax.Array | None
) -> dict[str, jax.Array]:
    """Each layer's h_k by layer name, by the references."""
    check_params("chain", layers, params)
    h, hs = x, {}
    for (name, layer), layer_key in zip(layers.items(), split(key, layers), strict=True):
        h = hs[name] = layer.reference(params[name], h, layer_key)
    return hs


def forward_through(
    layers: Mapping[str, Layer], params: PyTree, x: jax.Array, key: jax.Array | None
) -> tuple[dict[str, jax.Array], dict[str, Saved]]:
    """Algorithm 6.3: each layer's h_k, and what its backward needs, by layer name."""
    check_params("chain", layers, params)
    h, hs, saved = x, {}, {}
    for (name, layer), layer_key in zip(layers.items(), split(key, layers), strict=True):
        h, saved[name] = layer.forward(params[name], h, layer_key)
        hs[name] = h
    return hs, saved


def backward_through(
    layers: Mapping[str, Layer],
    saved: Mapping[str, Saved],
    g: jax.Array | None,
    dhs: Mapping[str, jax.Array | None],
) -> tuple[PyTree, jax.Array | None]:
    """Algorithm 6.4: (every layer's parameter cotangents by name, dx).

    dhs: by layer name, what a cost that reads h_k itself adds to the g that arrives at
    layer k, before its f' (seed claim N9, reading 3).
    """
    dparams = {}
    for name, layer in reversed(list(layers.items())):
        g = add_cotangents(g, dhs.get(name))
        dparams[name], g, _ = layer.backward(saved[name], g)
    return {name: dparams[name] for name in layers}, g


def add_cotangents(a: PyTree, b: PyTree) -> PyTree:
    """a + b, leaf by leaf; None, at a leaf or in place of a whole tree, is zero."""
    if a is None or b is None:
        return b if a is None else a
    return jax.tree.map(_add, a, b, is_leaf=lambda node: node is None)


def _add(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def split(key: jax.Array | None, layers: Mapping[str, Layer]) -> list[jax.Array | None]:
    """One key per layer; that of a layer depends on its position alone."""
    if key is None:
        return [None] * len(layers)
    return [jax.random.fold_in(key, position) for position in range(len(layers))]


def named_layers(
    owner: str, unnamed: tuple[Rule, ...], named: Mapping[str, Rule]
) -> dict[str, Layer]:
    """By name, each rule as a layer; those without a name are called by kind and position."""
    layers = {}
    for position, rule in enumerate(unnamed, start=1):
        layer = as_layer(owner, rule, f"the argument at position {position}")
        layers[f"{layer.name}_{position}"] = layer
    for name, rule in named.items():
        if name in layers:
            raise ValueError(f"{owner}: two layers are called {name!r}. Give one another name.")
        layers[name] = as_layer(owner, rule, name)
    if not layers:
        raise ValueError(f"{owner}: needs at least one layer, got none.")
    return layers


def as_layer(owner: str, rule: Rule, place: str) -> Layer:
    """A Layer as it is, a Rule of one array as a layer; TypeError where it is neither."""
    if isinstance(rule, Layer):
        return rule
    if not isinstance(rule, Rule):
        raise TypeError(
            f"{owner}: {place} must be a Layer or a Rule of one array, got "
            f"{type(rule).__name__}. Give dense(...), chain(...) or a rule such as relu."
        )
    return elementwise(rule)


def check_params(owner: str, layers: Collection[str], params: PyTree) -> None:
    """ValueError where params are not a dict with these layers."""
    if not isinstance(params, Mapping) or set(params) != set(layers):
        got = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            f"{owner}: params must be a dict with the layers {list(layers)}, got {got}. Make them "
            "with init(key, x_shape)."
        )
