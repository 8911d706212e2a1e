"""The trace: Algorithms 6.3 and 6.4 on one batch, every quantity kept as an array.

It runs the same layers' forward and backward that training runs, one at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.composition import add_cotangents, split
from jaxprop.costs import Cost
from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer


@dataclass(frozen=True)
class LayerTrace:
    """What one layer computed, forward and backward.

    name:       its path in the network, "hidden_1" or "block/hidden_1".
    values:     a_k and h_k by name, in the order they were computed (a layer that is
                not made of an affine map and an activation has only h).
    gradients:  the gradient of J in each of `values`: "h" is the g that arrives, the
                activity penalty's share included, "a" is g after f'. None where there is none.
    dactivity:  that share, lambda dOmega/dh_k; None without one.
    dparams:    the gradient of the loss (and activity penalty) in the layer's parameters.
    dpenalty:   the parameter penalty's share, lambda dOmega/dtheta_k; None without one.
    dx:         the g handed on, the gradient of J in the layer's input.
    """

    name: str
    values: Mapping[str, jax.Array]
    gradients: Mapping[str, jax.Array | None]
    dactivity: jax.Array | None
    dparams: PyTree
    dpenalty: PyTree
    dx: jax.Array | None


@dataclass(frozen=True)
class Trace:
    """Algorithms 6.3 and 6.4 on one batch; print it for a table, `plot` it for a picture.

    x:       the batch.
    layers:  one LayerTrace per layer, in the order of the forward pass.
    terms:   the parts of J by name ("loss", "penalty", "activity"); empty for a network
             traced without a cost.
    """

    x: jax.Array
    layers: tuple[LayerTrace, ...]
    terms: Mapping[str, jax.Array] = field(default_factory=dict)

    def __str__(self) -> str:
        from jaxprop.trace_report import table

        return table(self)

    def plot(self, path: str | PathLike[str]) -> None:
        """Write a picture of the gradient flow by depth to `path` (needs matplotlib)."""
        from jaxprop.trace_report import plot

        plot(self, path)


class _Run(NamedTuple):
    """One layer after its forward: the steps inside it and what their backwards need."""

    path: tuple[str, ...]
    kind: str
    steps: Mapping[str, Layer]
    values: Mapping[str, jax.Array]
    saved: Mapping[str, Saved]


def trace(
    J: Cost | Layer,
    params: PyTree,
    x: jax.Array,
    y: PyTree = None,
    strength: PyTree = None,
    key: jax.Array | None = None,
    *,
    g: jax.Array | None = None,
) -> Trace:
    """Run Algorithms 6.3 and 6.4 on a batch and keep every quantity.

    Args:
        J: a cost, as `cost(...)` makes it; or a network alone, traced from `g`.
        params, x, y, strength, key: as J takes them; y and strength are J's only.
        g: the gradient that arrives at a network's output, its shape; ones where None.
            Not for a cost, which makes its own.

    Returns:
        A Trace. Chains within the network are opened up, to any depth.

    Raises:
        TypeError: where J is neither a Cost nor a Layer.
        ValueError: where arguments do not belong to it.
    """
    if isinstance(J, Cost):
        if g is not None:
            raise ValueError("trace: g must be None for a cost, got one. Trace J.network from g.")
        return _trace_cost(J, params, x, y, strength, key)
    if not isinstance(J, Layer):
        raise TypeError(
            f"trace: needs a cost or a network, got {type(J).__name__}. Make one with "
            "cost(network, loss) or chain(...)."
        )
    if y is not None or strength is not None:
        raise ValueError(
            "trace: y and strength must be None for a network alone, which has no loss. Trace "
            "cost(network, loss), or give g."
        )
    groups = _forward_groups((), J, params, x, key)
    y_hat = list(_outputs(groups).values())[-1]
    g = jnp.ones_like(y_hat) if g is None else jnp.asarray(g, y_hat.dtype)
    return Trace(x, tuple(_backward(groups, g, {}, None)))


def _trace_cost(
    J: Cost, params: PyTree, x: jax.Array, y: PyTree, strength: PyTree, key: jax.Array | None
) -> Trace:
    groups = _forward_groups((), J.network, params, x, key)
    hs = _outputs(groups)
    loss, saved = J.loss.forward(list(hs.values())[-1], y)
    g, *_ = J.loss.backward(saved, jnp.ones_like(loss))
    terms, shares = {"loss": loss}, {}
    for name, term in J.terms.items():
        terms[name], saved = term.forward(hs if name == "activity" else params, strength)
        shares[name], _ = term.backward(saved, jnp.ones_like(terms[name]))
    layers = _backward(groups, g, shares.get("activity") or {}, shares.get("penalty"))
    return Trace(x, tuple(layers), terms)


def _forward_groups(
    path: tuple[str, ...], network: Layer, params: PyTree, x: jax.Array, key: jax.Array | None
) -> dict[str, list[_Run]]:
    """Algorithm 6.3: for each layer whose h_k a cost may read, the runs of it or its parts."""
    if not network.sequential:
        return {network.name: [_forward(path, network, params, x, key)]}
    groups = {}
    keys = split(key, network.layers)
    for (name, layer), layer_key in zip(network.layers.items(), keys, strict=True):
        inner = _forward_groups((*path, name), layer, params[name], x, layer_key)
        groups[name] = [run for runs in inner.values() for run in runs]
        x = _outputs(groups)[name]
    return groups


def _forward(
    path: tuple[str, ...], layer: Layer, params: PyTree, x: jax.Array, key: jax.Array | None
) -> _Run:
    """One layer that is no chain, step by step."""
    steps = layer.quantities or {"h": layer}
    values, saved = {}, {}
    for name, step in steps.items():
        x, saved[name] = step.forward(params, x, key)
        values[name] = x
        params = {}
    return _Run(path, layer.name, steps, values, saved)


def _outputs(groups: Mapping[str, list[_Run]]) -> dict[str, jax.Array]:
    return {name: list(runs[-1].values.values())[-1] for name, runs in groups.items()}


def _backward(
    groups: Mapping[str, list[_Run]],
    g: jax.Array | None,
    dhs: Mapping[str, jax.Array | None],
    share: PyTree,
) -> list[LayerTrace]:
    """Algorithm 6.4 over all runs; the layers in the order of the forward pass."""
    layers: list[LayerTrace] = []
    for name, runs in reversed(list(groups.items())):
        dactivity = dhs.get(name)
        g = add_cotangents(g, dactivity)
        for run in reversed(runs):
            layers.append(_backward_run(run, g, dactivity, share))
            g, dactivity = layers[-1].dx, None
    return layers[::-1]


def _backward_run(
    run: _Run, g: jax.Array | None, dactivity: jax.Array | None, share: PyTree
) -> LayerTrace:
    gradients: dict[str, jax.Array | None] = {}
    dparams = None
    for name, step in reversed(list(run.steps.items())):
        gradients[name] = g
        dparams, g, _ = step.backward(run.saved[name], g)
    for part in run.path:
        share = None if share is None else share[part]
    name = "/".join(run.path) or run.kind
    return LayerTrace(name, run.values, gradients, dactivity, dparams, share, g)
