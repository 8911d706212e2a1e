"""What of a network is trained: which parameters are frozen, and an optimiser for the others."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxprop.freezing import frozen
from jaxprop.installing import PyTree
from jaxprop.models.adapters import other_than_adapters
from jaxprop.rules.penalties import Filter
from jaxprop.train.tuning import Tuning

TABLES = ("embedding", "positions")


def frozen_patterns(tuning: Tuning, params: PyTree) -> Filter:
    """The filter of the parameters that are frozen whole; None where there are none."""
    if tuning.adapter_rank:
        return other_than_adapters
    below = tuple(name for name in TABLES if tuning.freeze_blocks and name in params)
    return tuning.freeze + below or None


def trained_part(params: PyTree, patterns: Filter, blocks: int) -> PyTree:
    """The parameters that are trained, None in the place of the others.

    Of what is below "blocks", whose leaves have a row for each block, those after the first so
    many.
    """
    if patterns is not None:
        flags = frozen(params, patterns)
        params = jax.tree.map(lambda leaf, left_out: None if left_out else leaf, params, flags)
    above = jax.tree.map(lambda leaf: leaf[blocks:], params["blocks"]) if blocks else None
    return params | {"blocks": above} if blocks else params


def of_trained(
    optimiser: optax.GradientTransformation, part: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """The optimiser over a part of the parameters: no state is held, and none decays, of the rest.

    part: of a tree like params, what is trained, as `trained_part` gives it.
    """

    def init(params: PyTree) -> PyTree:
        return optimiser.init(part(params))

    def update(
        gradients: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        updates, state = optimiser.update(part(gradients), state, part(params))
        return jax.tree.map(_filled, params, updates), state

    return optax.GradientTransformation(init, update)


def _filled(leaf: jax.Array, update: jax.Array | None) -> jax.Array:
    """The update of a whole leaf, zeros where it is not trained."""
    if update is None:
        return jnp.zeros_like(leaf)
    rows = len(leaf) - len(update) if leaf.ndim else 0
    return jnp.pad(update, [(rows, 0), *[(0, 0)] * (leaf.ndim - 1)]) if rows else update
