"""Penalties on activations: what a cost adds for large h_k.

An activity penalty is a mean over the examples of a batch (axis 0) of a sum over everything
else. `layers` is a filter on the layers' names, of the kinds that `penalties` describes.
"""

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree
from jaxprop.precision import up
from jaxprop.rule import Case, Rule
from jaxprop.rules.penalties import Filter, PenaltyResiduals, magnitude, select, times, total
from jaxprop.samples import normal


def activity_l2_reference(hs: PyTree, *, layers: Filter = None) -> jax.Array:
    """Mean over the examples of half the sum of squares of the activations.

    Use it to keep activations small; `cost(..., activity=activity_l2)`.

    Scope      one layer's h (B, ...); the sum over layers is omega
    Forward    omega = sum_all(h * h) / (2 * rows(h))                  (F1)
    Backward   dh = g * h / rows(h)                                    (B1) from F1

    Args:
        hs: a dict from layer name to h, (B, ...), floating.
        layers: a filter on the layers' names (the module says more); None for all.

    Returns:
        omega: a scalar, float32 at least.

    Residuals: the selected activations (arguments).

    Numerics: squares and sums in float32 at least. Layers not selected have no gradient. The
        mean over no example is nan.

    Raises:
        TypeError: where a selected h is not floating.
        ValueError: where the filter selects nothing, or a selected h has no batch axis.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 7.10; seed claim N9,
        reading 3.
    """
    return _mean_l2(_layers("activity_l2", hs, layers))


def activity_l2_forward(hs: PyTree, *, layers: Filter) -> tuple[jax.Array, PenaltyResiduals]:
    selected = _layers("activity_l2", hs, layers)
    return _mean_l2(selected), PenaltyResiduals(selected)


def activity_l2_backward(res: PenaltyResiduals, g: jax.Array) -> tuple[PyTree]:
    return (jax.tree.map(lambda h: times(g, h) / h.shape[0], res.selected),)  # B1


def activity_l1_reference(hs: PyTree, *, layers: Filter = None) -> jax.Array:
    """Mean over the examples of the sum of the absolute activations.

    Use it for sparse representations; `cost(..., activity=activity_l1)`.

    Scope      one layer's h (B, ...); the sum over layers is omega
    Forward    omega = sum_all(abs(h)) / rows(h)                       (F1)
    Backward   dh = g * sign(h) / rows(h)                              (B1) from F1

    Args:
        hs: a dict from layer name to h, (B, ...), floating.
        layers: a filter on the layers' names (the module says more); None for all.

    Returns:
        omega: a scalar, float32 at least.

    Residuals: the selected activations (arguments).

    Numerics: sums in float32 at least. At the kink h = 0 the subgradient is 0. Layers not
        selected have no gradient. The mean over no example is nan.

    Raises:
        TypeError: where a selected h is not floating.
        ValueError: where the filter selects nothing, or a selected h has no batch axis.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 7.10; seed claim N9,
        reading 3.
    """
    return _mean_l1(_layers("activity_l1", hs, layers))


def activity_l1_forward(hs: PyTree, *, layers: Filter) -> tuple[jax.Array, PenaltyResiduals]:
    selected = _layers("activity_l1", hs, layers)
    return _mean_l1(selected), PenaltyResiduals(selected)


def activity_l1_backward(res: PenaltyResiduals, g: jax.Array) -> tuple[PyTree]:
    return (jax.tree.map(lambda h: times(g, jnp.sign(h)) / h.shape[0], res.selected),)  # B1


def _mean_l2(selected: PyTree) -> jax.Array:
    return total(selected, lambda h: jnp.sum(jnp.square(up(h))) / (2 * h.shape[0]))  # F1


def _mean_l1(selected: PyTree) -> jax.Array:
    return total(selected, lambda h: jnp.sum(magnitude(up(h))) / h.shape[0])  # F1


def _layers(owner: str, hs: PyTree, layers: Filter) -> PyTree:
    selected = select(owner, "layers", hs, layers)
    for h in jax.tree.leaves(selected):
        if h.ndim < 1:
            raise ValueError(
                f"{owner}: a selected h must be (B, ...), got a scalar. Give h its batch axis."
            )
    return selected


def activity_cases() -> list[Case]:
    h_1 = normal(0, 4, 3)
    h_2 = normal(1, 4, 2, 5)
    hs = {"hidden_1": h_1, "hidden_2": h_2}
    low = jax.tree.map(lambda h: h.astype(jnp.bfloat16), hs)
    scope = {"h": h_1, "hs": {"h": h_1}, "layers": None}
    return [
        Case("every layer", (hs,), given=scope),
        Case("one layer", (hs,), {"layers": "hidden_2"}, given=scope),
        Case("batch of one", ({"h": h_1[:1]},), given=scope),
        Case("vectors", ({"h": h_1[:, 0]},), given=scope),
        Case("bfloat16", (low,), given=scope),
        Case("mixed dtypes", (hs | {"hidden_2": low["hidden_2"]},), given=scope),
        Case("zeros", (jax.tree.map(jnp.zeros_like, hs),), edge=True),
        Case("no unit", ({"h": h_1[:, :0]},), edge=True),
    ]


activity_l2 = Rule(
    activity_l2_reference, activity_l2_forward, activity_l2_backward, activity_cases, budget=0
)
activity_l1 = Rule(
    activity_l1_reference, activity_l1_forward, activity_l1_backward, activity_cases, budget=0
)
