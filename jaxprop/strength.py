"""A penalty in a cost: lambda Omega, lambda being the strength that the cost is given."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree, Saved
from jaxprop.precision import at_least_float32
from jaxprop.rule import Rule


def weighted(omega: Rule, name: str) -> Rule:
    """The rule (tree, strength) -> lambda * Omega(tree), lambda being strength or strength[name].

    Other entries of strength that are named as arguments of Omega are passed on to it.
    """
    others = omega.argument_names[1:]

    def arguments(strength: PyTree) -> dict[str, jax.Array]:
        if not isinstance(strength, Mapping):
            return {}
        return {other: strength[other] for other in others if other in strength}

    def scale(strength: PyTree, value: jax.Array) -> jax.Array:
        lam = jnp.asarray(strength[name] if isinstance(strength, Mapping) else strength)
        if lam.ndim:
            raise ValueError(
                f"cost: the strength of {name} must be a scalar, got an array of {lam.shape}. A "
                "sweep is jax.vmap over the strength."
            )
        return lam.astype(value.dtype)

    def reference(tree: PyTree, strength: PyTree) -> jax.Array:
        value = omega.reference(tree, **arguments(strength))
        return scale(strength, value) * value  # F1

    def forward(tree: PyTree, strength: PyTree) -> tuple[jax.Array, "WeightedResiduals"]:
        value, saved = omega.forward(tree, **arguments(strength))
        return scale(strength, value) * value, WeightedResiduals(saved, value, strength)  # F1

    def backward(res: "WeightedResiduals", g: jax.Array) -> tuple[PyTree, PyTree]:
        saved, value, strength = res
        dtree, *dothers = omega.backward(saved, g * scale(strength, value))
        dlambda = g * value
        if not isinstance(strength, Mapping):
            return dtree, dlambda
        by_name = dict(zip(others, dothers, strict=True)) | {name: dlambda}
        return dtree, {entry: by_name.get(entry) for entry in strength}

    reference.__name__ = f"weighted_{omega.name}"
    return Rule(reference, forward, backward)


class WeightedResiduals(NamedTuple):
    omega: Saved
    value: jax.Array
    strength: PyTree


def check_strength(terms: list[str], others: list[str], strength: PyTree) -> None:
    """ValueError where the strength does not fit a cost with these terms and their arguments."""
    if not terms and strength is not None:
        raise ValueError(
            "cost: strength must be None where J has no penalty, got one. Make J with penalty=... "
            "or activity=..., or leave it out."
        )
    if terms and strength is None:
        raise ValueError(
            f"cost: J has a penalty ({', '.join(terms)}), so it needs a strength, got None. Call "
            "J(params, x, y, strength), or make J without a penalty."
        )
    if not isinstance(strength, Mapping):
        return
    if missing := [name for name in terms if name not in strength]:
        raise ValueError(
            f"cost: strength must have {terms}, got {list(strength)}. Give {missing[0]!r} a number."
        )
    if unknown := [name for name in strength if name not in [*terms, *others]]:
        raise ValueError(
            f"cost: strength may have {[*terms, *others]}, got {list(strength)}. Leave "
            f"{unknown[0]!r} out."
        )


def plus(total: jax.Array, term: jax.Array) -> jax.Array:
    """total + term in the wider of their dtypes."""
    dtype = at_least_float32(total.dtype, term.dtype)
    return total.astype(dtype) + term.astype(dtype)


def scalar(loss: Rule, value: jax.Array) -> jax.Array:
    """value, the loss's; ValueError where it is no scalar."""
    if value.shape != ():
        raise ValueError(
            f"cost: {loss.name} must return a scalar, got {value.shape}. Fix its reduction, as in "
            f"{loss.name}.bind(reduction='mean')."
        )
    return value
