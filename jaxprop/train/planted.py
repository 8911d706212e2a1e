"""Backpropagation with one line wrong, on purpose: the notes' slips that keep the shapes.

Algorithm 6.4 is written here as five replaceable lines. A slip replaces one of them, so that
it can be trained beside the right one: a wrong gradient often still trains.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.composition import add_cotangents
from jaxprop.costs import Cost
from jaxprop.layers import Layer
from jaxprop.precision import matmul, up

PyTree = Any


class At(NamedTuple):
    """One dense layer after the forward pass, with what a line of its backward may read."""

    h_in: jax.Array
    w: jax.Array
    b: jax.Array
    a: jax.Array
    activation: Layer
    before: "At | None"

    @property
    def square(self) -> bool:
        return self.w.shape[0] == self.w.shape[1]

    @property
    def before_of_same_width(self) -> "At | None":
        same = self.before is not None and self.before.a.shape == self.a.shape
        return self.before if same else None


def after_f(at: At, g: jax.Array) -> jax.Array:
    """N4: G_a = G * f'(A), or f's vector-Jacobian product."""
    return _through_f(at, g, at.a)


def weights(at: At, g_a: jax.Array) -> jax.Array:
    """N1, N5, N8: dw = H^T G_a."""
    return matmul(at.h_in.T, g_a)


def handed_on(at: At, g_a: jax.Array) -> jax.Array:
    """N3, N7: G = G_a w^T."""
    return matmul(g_a, at.w.T)


def share(dtheta: PyTree) -> PyTree:
    """The penalty's share, lambda dOmega/dtheta, as it is."""
    return dtheta


@dataclass(frozen=True)
class Lines:
    """Algorithm 6.4, a function per line; the right ones where none is given."""

    after_f: Callable[[At, jax.Array], jax.Array] = after_f
    weights: Callable[[At, jax.Array], jax.Array] = weights
    handed_on: Callable[[At, jax.Array], jax.Array] = handed_on
    share: Callable[[PyTree], PyTree] = share


class Slip(NamedTuple):
    """A slip of the notes: what it says, where it shows, and the line it replaces."""

    says: str
    shows: str
    lines: Lines


def _through_f(at: At, g: jax.Array, a: jax.Array) -> jax.Array:
    _, saved = at.activation.forward({}, a)
    return at.activation.backward(saved, g)[1]


def _transposed_weights(at: At, g_a: jax.Array) -> jax.Array:
    return weights(at, g_a).T if at.square else weights(at, g_a)


def _dot(at: At, g: jax.Array) -> jax.Array:
    product = after_f(at, g)
    return jnp.broadcast_to(jnp.sum(product, axis=-1, keepdims=True), product.shape)


def _mixed(at: At, g_a: jax.Array) -> jax.Array:
    return matmul(g_a, at.w) if at.square else handed_on(at, g_a)


def _other_bias(at: At, g: jax.Array) -> jax.Array:
    before = at.before_of_same_width
    if before is None:
        return after_f(at, g)
    return _through_f(at, g, at.a + (before.b - at.b).astype(at.a.dtype))


def _without_input(at: At, g_a: jax.Array) -> jax.Array:
    return matmul(jnp.ones_like(at.h_in).T, g_a)


def _other_layer(at: At, g: jax.Array) -> jax.Array:
    return _through_f(at, g, (at.before_of_same_width or at).a)


def _negated(dtheta: PyTree) -> PyTree:
    return jax.tree.map(jnp.negative, dtheta)


def _without_biases(dtheta: PyTree) -> PyTree:
    return {name: layer | {"b": None} for name, layer in dtheta.items()}


def _doubled(dtheta: PyTree) -> PyTree:
    return jax.tree.map(lambda d: d + d, dtheta)


_SQUARE = "at layers as wide as the one before, such as the second of --layers 64 64"
_PENALTY = "where there is a penalty"

SLIPS: Mapping[str, Slip] = {
    "E1": Slip("dw = G_a^T H, not H^T G_a", _SQUARE, Lines(weights=_transposed_weights)),
    "E2": Slip("G_a = the dot of G and f'(A), not G * f'(A)", "anywhere", Lines(after_f=_dot)),
    "E3": Slip("G = G_a w, not G_a w^T", _SQUARE, Lines(handed_on=_mixed)),
    "E4": Slip("f' at a_k with b_{k-1}, not b_k", _SQUARE, Lines(after_f=_other_bias)),
    "E5": Slip("- lambda dOmega, not +", _PENALTY, Lines(share=_negated)),
    "E7": Slip("dw = 1^T G_a, H lost", "anywhere", Lines(weights=_without_input)),
    "E8": Slip("f' at a_{k-1}, not a_k", _SQUARE, Lines(after_f=_other_layer)),
    "E9": Slip(
        "Omega(w) in the gradient, Omega(w, b) in J",
        "where there is a penalty on the biases too (--penalise-biases)",
        Lines(share=_without_biases),
    ),
    "N9": Slip("the penalty counted twice", _PENALTY, Lines(share=_doubled)),
}


def planted_value_and_grad(J: Cost, lines: Lines) -> Callable[..., tuple[jax.Array, PyTree]]:
    """Make (params, x, y, strength=None, key=None) -> (J, dparams), by these lines.

    Args:
        J: the cost of a chain of dense layers, without an activity penalty.
        lines: Algorithm 6.4; `Lines()` is the right one.

    Raises:
        ValueError: where J is of another kind.
    """
    layers = J.network.layers
    if "activity" in J.terms or not all("a" in layer.quantities for layer in layers.values()):
        raise ValueError(
            "plant: a slip is planted into a chain of dense layers without an activity penalty. "
            "Leave the activity penalty out."
        )

    def run(
        params: PyTree, x: jax.Array, y: jax.Array, strength: PyTree = None, key: Any = None
    ) -> tuple[jax.Array, PyTree]:
        value, _ = J.forward(params, x, y, strength, key)
        at: At | None = None
        ats, h = {}, x
        for name, layer in layers.items():
            a, _ = layer.quantities["a"].forward(params[name], h)
            w, b, activation = params[name]["w"], params[name]["b"], layer.quantities["h"]
            ats[name] = at = At(h, w, b, a, activation, at)
            h, _ = activation.forward({}, a)
        _, saved = J.loss.forward(h, y)
        g = J.loss.backward(saved, jnp.ones_like(value))[0]
        dparams = _algorithm_6_4(ats, g, lines)
        dparams = jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, params)
        if "penalty" in J.terms:
            term = J.terms["penalty"]
            omega, saved = term.forward(params, strength)
            dtheta, _ = term.backward(saved, jnp.ones_like(omega))
            dparams = add_cotangents(dparams, lines.share(dtheta))
        return value, dparams

    return run


def _algorithm_6_4(ats: Mapping[str, At], g: jax.Array, lines: Lines) -> PyTree:
    dparams = {}
    for name, at in reversed(list(ats.items())):
        g_a = lines.after_f(at, g.astype(at.a.dtype))
        dparams[name] = {"w": lines.weights(at, g_a), "b": jnp.sum(up(g_a), axis=0)}
        g = lines.handed_on(at, g_a)
    return {name: dparams[name] for name in ats}
