"""Costs: a loss, penalties on parameters and on activations, and the network, as one rule J.

The three readings of where a regulariser enters (seed claim N9):

separate   J = L(y_hat, y) + lambda Omega(theta): g starts as dL/dy_hat, and each layer
           adds lambda dOmega/dw_k, lambda dOmega/db_k to its own gradients.
folded     J = L~(y_hat, y, theta), the regulariser inside the loss: the loss has two
           cotangents, and the layers' gradients are added to the second.
activity   Omega(h_1, .., h_l): g gains lambda dOmega/dh_k at each layer k. It combines
           with either of the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.composition import (
    add_cotangents,
    backward_through,
    forward_through,
    reference_through,
)
from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer
from jaxprop.rule import Rule
from jaxprop.strength import check_strength, plus, scalar, weighted

READINGS = ("separate", "folded")


@dataclass(frozen=True, eq=False, repr=False)
class Cost(Rule):
    """The rule J(params, x, y, strength=None, key=None), with the parts it was made of.

    terms: by name, the penalties weighted by their strength: rules (tree, strength) ->
    lambda * Omega(tree). "activity" reads the dict of every layer's output, "penalty" params.
    """

    network: Layer = field(kw_only=True)
    loss: Rule = field(kw_only=True)
    terms: Mapping[str, Rule] = field(kw_only=True)
    reading: str = field(kw_only=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairedResiduals:
    """Of the loss, and by which names its arguments after y_hat were given, if by name."""

    loss: Saved
    given: tuple[str, ...] | None = field(metadata={"static": True})


class CostResiduals(NamedTuple):
    layers: dict[str, Saved]
    loss: Saved
    terms: dict[str, Saved]


def cost(
    network: Layer,
    loss: Rule,
    penalty: Rule | None = None,
    activity: Rule | None = None,
    reading: str = "separate",
) -> Cost:
    """Make the cost J of a network: its loss and its penalties, one rule.

    Args:
        network: a Layer, such as a chain.
        loss: a Rule (y_hat, y, ...) -> scalar; options fixed with `bind(...)`.
        penalty: a Rule params -> Omega, such as `l2.bind(leaves="*/w")`.
        activity: a Rule over the dict {layer name: h_k} -> Omega, such as `activity_l2`.
        reading: "separate" or "folded", where the parameter penalty enters (the module
            docstring says more). The gradients are the same.

    Returns:
        J(params, x, y, strength=None, key=None), a scalar of float32 at least.
        y: the loss's second argument; or a dict of what it takes after y_hat, by name, such as
            {"labels": labels, "label_smoothing": 0.1}. Each entry has its cotangent.
        strength: the penalties' lambda, a number or array for all of them, or a dict of
        some of "penalty", "activity" and the other arguments of a penalty ("l1_ratio" of
        `elastic_net`). It is differentiable: its cotangent is Omega.

    Residuals: those of the layers, the loss and the penalties.

    Raises:
        ValueError: where the reading is unknown; when called, where there is a penalty
            and no strength or the other way round, or the loss is not a scalar.

    Source: Goodfellow et al., Deep Learning, Algorithm 6.3 and 6.4; seed claim N9.
    """
    if reading not in READINGS:
        raise ValueError(f"cost: the reading must be one of {READINGS}, got {reading!r}.")
    penalties = {"penalty": penalty, "activity": activity}
    given = {name: omega for name, omega in penalties.items() if omega is not None}
    terms = {name: weighted(omega, name) for name, omega in given.items()}
    others = [other for omega in given.values() for other in omega.argument_names[1:]]
    separate = dict(terms)
    folded = separate.pop("penalty", None) if reading == "folded" else None
    paired = _paired(loss)
    inner = paired if folded is None else _folded_loss(paired, folded)
    layers = _parts(network)

    def reference(
        params: PyTree,
        x: jax.Array,
        y: PyTree,
        strength: PyTree = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        check_strength(list(terms), others, strength)
        hs = reference_through(layers, _nest(network, params), x, key)
        total = scalar(loss, paired.reference(_last(hs), y))
        for name, term in terms.items():
            read = hs if name == "activity" else params
            total = plus(total, term.reference(read, strength))
        return total

    def forward(
        params: PyTree, x: jax.Array, y: PyTree, strength: PyTree, key: jax.Array | None
    ) -> tuple[jax.Array, CostResiduals]:
        check_strength(list(terms), others, strength)
        hs, saved = forward_through(layers, _nest(network, params), x, key)
        theta = () if folded is None else (params, strength)
        total, saved_loss = inner.forward(_last(hs), y, *theta)
        total, saved_terms = scalar(loss, total), {}
        for name, term in separate.items():
            read = hs if name == "activity" else params
            omega, saved_terms[name] = term.forward(read, strength)
            total = plus(total, omega)
        return total, CostResiduals(saved, saved_loss, saved_terms)

    def backward(res: CostResiduals, g: jax.Array) -> tuple[PyTree, ...]:
        dy_hat, dy, *dothers = inner.backward(res.loss, g)
        shares = {name: term.backward(res.terms[name], g) for name, term in separate.items()}
        if folded is not None:
            shares["penalty"] = tuple(dothers)
        dhs, _ = shares.get("activity", ({}, None))
        by_layer, dx = backward_through(layers, res.layers, dy_hat, dhs)
        dtheta, _ = shares.get("penalty", (None, None))
        dparams = add_cotangents(_unnest(network, by_layer), dtheta)
        dstrength = reduce(add_cotangents, [share for _, share in shares.values()], None)
        return dparams, dx, dy, dstrength, None

    reference.__name__ = "cost"
    reference.__doc__ = f"The cost of {network.name}: {loss.name} and {list(terms)}, {reading}."
    return Cost(
        reference, forward, backward, network=network, loss=loss, terms=terms, reading=reading
    )


def value_and_grad(J: Rule, has_aux: bool = False) -> Callable[..., tuple[PyTree, PyTree]]:
    """Make the function (params, ...) -> (J, dparams) that runs J's forward and backward.

    No automatic differentiation takes part: it calls `J.forward` and `J.backward`. For the
    automatic gradient, run `jax.value_and_grad(J, has_aux=...)` within `automatic()`.

    Args:
        J: a Rule with a scalar output, whose first argument is differentiated; it takes
            the same arguments after that, without options.
        has_aux: whether J's output is a pair (J, aux), aux being any arrays beside the cost, such
            as the statistics of a batch. aux gets no cotangent.

    Returns:
        A function of J's arguments that returns (J, dparams), or ((J, aux), dparams); dparams has
        the structure, shapes and dtypes of the first argument, zeros where J does not depend on it.

    Raises:
        TypeError: where J's output is not a pair with has_aux, or not an array without.
        ValueError: where J's output is not a scalar.
    """

    def run(params: PyTree, *args: PyTree) -> tuple[PyTree, PyTree]:
        value, saved = J.forward(params, *args)
        one = jnp.ones_like(scalar(J, _cost_in(J, value, has_aux)))
        dparams, *_ = J.backward(saved, (one, None) if has_aux else one)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return value, zeros if dparams is None else _filled(dparams, zeros)

    return run


def _cost_in(J: Rule, value: PyTree, has_aux: bool) -> jax.Array:
    """The cost in what J returned; TypeError where that is a pair and should not be, or is none."""
    if has_aux and not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(
            f"value_and_grad: with has_aux {J.name} must return a pair (J, aux), got "
            f"{type(value).__name__}. Leave has_aux out."
        )
    if not has_aux and not isinstance(value, jax.Array):
        raise TypeError(
            f"value_and_grad: {J.name} must return a scalar, got {type(value).__name__}. Give "
            "has_aux=True where it is a pair (J, aux)."
        )
    return value[0] if has_aux else value


def _filled(dparams: PyTree, zeros: PyTree) -> PyTree:
    """dparams, with zeros where it has None."""
    return jax.tree.map(
        lambda d, zero: zero if d is None else d, dparams, zeros, is_leaf=lambda d: d is None
    )


def _paired(loss: Rule) -> Rule:
    """The loss as a rule (y_hat, y), where y may be a dict of all its arguments but the first."""

    def reference(y_hat: jax.Array, y: PyTree) -> jax.Array:
        if isinstance(y, Mapping):
            return loss.reference(y_hat, **y)
        return loss.reference(y_hat, y)

    def forward(y_hat: jax.Array, y: PyTree) -> tuple[jax.Array, PairedResiduals]:
        given = tuple(y) if isinstance(y, Mapping) else None
        value, saved = loss.forward(y_hat, **y) if given is not None else loss.forward(y_hat, y)
        return value, PairedResiduals(saved, given)

    def backward(res: PairedResiduals, g: jax.Array) -> tuple[PyTree, ...]:
        dy_hat, *dothers = loss.backward(res.loss, g)
        if res.given is None:
            return dy_hat, dothers[0]
        by_name = dict(zip(loss.argument_names[1:], dothers, strict=True))
        return dy_hat, {name: by_name[name] for name in res.given}

    reference.__name__ = loss.name
    return Rule(reference, forward, backward)


def _folded_loss(loss: Rule, weighted: Rule) -> Rule:
    """The rule L~(y_hat, y, theta, strength) = L + lambda Omega(theta), of reading 2."""

    def folded_loss(y_hat: jax.Array, y: PyTree, theta: PyTree, strength: PyTree) -> jax.Array:
        return plus(loss.reference(y_hat, y), weighted.reference(theta, strength))

    def forward(
        y_hat: jax.Array, y: PyTree, theta: PyTree, strength: PyTree
    ) -> tuple[jax.Array, tuple[Saved, Saved]]:
        value, saved_loss = loss.forward(y_hat, y)
        omega, saved_omega = weighted.forward(theta, strength)
        return plus(scalar(loss, value), omega), (saved_loss, saved_omega)

    def backward(res: tuple[Saved, Saved], g: jax.Array) -> tuple[PyTree, ...]:
        dy_hat, dy = loss.backward(res[0], g)[:2]
        dtheta, dstrength = weighted.backward(res[1], g)
        return dy_hat, dy, dtheta, dstrength

    return Rule(folded_loss, forward, backward)


def _last(hs: Mapping[str, jax.Array]) -> jax.Array:
    """y_hat = h_l."""
    return list(hs.values())[-1]


def _parts(network: Layer) -> Mapping[str, Layer]:
    """The layers h_k of which a cost may read; a network that is no chain is one layer."""
    return network.layers if network.sequential else {network.name: network}


def _nest(network: Layer, params: PyTree) -> PyTree:
    return params if network.sequential else {network.name: params}


def _unnest(network: Layer, dparams: PyTree) -> PyTree:
    return dparams if network.sequential else dparams[network.name]
