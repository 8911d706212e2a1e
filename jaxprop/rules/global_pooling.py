"""Global pooling: the largest or the mean of each channel over all spatial axes."""

from dataclasses import dataclass, field
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.pooling import max_pool
from jaxprop.rules.windows import check_spatial, place_dtype
from jaxprop.samples import normal, replaced


def global_max_pool_reference(x: jax.Array) -> jax.Array:
    """Take the largest entry of each channel of an example.

    Use it before a classifier, where it matters whether a feature is anywhere, not where.

    Scope      one example, one spatial axis: x (1, n, C)
    Forward    seen = patches(x, n, 1)                                 (F1)
               y = sum_each(sum_first(first_max(seen) * seen))         (F2)
    Backward   dseen = first_max(seen) * column(g)                     (B1) from F2
               dx = scatter_add(dseen, 1)                              (B2) from F1, F2

    Args:
        x: (B, *spatial, C), floating, of 1 to 3 spatial axes.

    Returns:
        y: (B, C), x's dtype.

    Residuals: where the largest entry is, the smallest integer that numbers the places (1, 2 or 4
        bytes) per element of y; x is not held.

    Numerics: of entries that tie the first gets g, in row-major order; nan is larger than
        anything. jnp.max splits ties. The first place is found by a minimum in blocks of 32, whose
        results are held: a sixty-fourth of x in bytes, in two thirds of automatic's time.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x is not (B, *spatial, C), or a spatial axis is empty.

    Source: max_pool, its window the whole of x.
    """
    spatial = _check("global_max_pool", x)
    ones = (1,) * len(spatial)
    y = max_pool.reference(x, window=spatial, stride=ones, padding="VALID")  # F1, F2
    return y.reshape(x.shape[0], x.shape[-1])  # F2


def _check(owner: str, x: jax.Array) -> tuple[int, ...]:
    """The spatial axes of x."""
    check_spatial(owner, floating(owner, "x", x))
    spatial = x.shape[1:-1]
    if not all(spatial):
        raise ValueError(
            f"{owner}: the spatial axes of x must have entries, got {x.shape}. There is nothing to "
            "pool."
        )
    return spatial


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GlobalMaxPoolResiduals:
    place: jax.Array
    spatial: tuple[int, ...] = field(metadata={"static": True})


def global_max_pool_forward(x: jax.Array) -> tuple[jax.Array, GlobalMaxPoolResiduals]:
    spatial = _check("global_max_pool", x)
    number = _numbers(spatial)
    rows = x.reshape(x.shape[0], prod(spatial), x.shape[-1])  # F1
    y = jnp.max(rows, axis=1, keepdims=True)  # F2
    largest = (rows == y) | jnp.isnan(rows)
    place = jnp.min(jnp.where(largest, number, number[-1:]), axis=1)
    return y[:, 0], GlobalMaxPoolResiduals(place, spatial)


def _numbers(spatial: tuple[int, ...]) -> jax.Array:
    """The places of a channel, to broadcast against (B, places, C)."""
    places = prod(spatial)
    return jnp.arange(places, dtype=place_dtype(places))[:, None]


def global_max_pool_backward(res: GlobalMaxPoolResiduals, g: jax.Array) -> tuple[jax.Array]:
    hit = _numbers(res.spatial) == res.place[:, None]
    dx = jnp.where(hit, g[:, None], 0)  # B1, B2
    return (dx.reshape(g.shape[0], *res.spatial, g.shape[-1]),)


def global_avg_pool_reference(x: jax.Array) -> jax.Array:
    """Take the mean of each channel of an example.

    Use it before a classifier, in place of a linear map over all places.

    Scope      one example, one spatial axis: x (1, n, C)
    Forward    y = sum_each(x) / n                                     (F1)
    Backward   dx = (0 * x + column(g)) / n                            (B1) from F1

    Args:
        x: (B, *spatial, C), floating, of 1 to 3 spatial axes.

    Returns:
        y: (B, C), x's dtype.

    Residuals: none.

    Numerics: summed in float32 at least, rounded once.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x is not (B, *spatial, C), or a spatial axis is empty.

    Source: Lin, Chen and Yan (2014), Network in network, section 3.2.
    """
    spatial = _check("global_avg_pool", x)
    return jnp.mean(up(x), axis=range(1, 1 + len(spatial))).astype(x.dtype)  # F1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GlobalAvgPoolResiduals:
    spatial: tuple[int, ...] = field(metadata={"static": True})


def global_avg_pool_forward(x: jax.Array) -> tuple[jax.Array, GlobalAvgPoolResiduals]:
    return global_avg_pool_reference(x), GlobalAvgPoolResiduals(x.shape[1:-1])  # F1


def global_avg_pool_backward(res: GlobalAvgPoolResiduals, g: jax.Array) -> tuple[jax.Array]:
    ones = (1,) * len(res.spatial)
    share = up(g) / prod(res.spatial)
    dx = share.reshape(g.shape[0], *ones, g.shape[-1])
    return (jnp.broadcast_to(dx, (g.shape[0], *res.spatial, g.shape[-1])),)  # B1


def global_avg_pool_cases() -> list[Case]:
    signal = normal(3, 1, 6, 2)
    images = normal(0, 2, 5, 4, 3)
    volumes = normal(1, 1, 2, 3, 1, 2)
    given = {"x": signal, "n": 6}
    return [
        Case("images", (images,), given=given),
        Case("signals", (signal,), given=given),
        Case("volumes", (volumes,), given=given),
        Case("bfloat16", (images.astype(jnp.bfloat16),), given=given),
        Case("no examples", (images[:0],), edge=True),
    ]


def global_max_pool_cases() -> list[Case]:
    (images,) = global_avg_pool_cases()[0].args
    return [
        *global_avg_pool_cases(),
        Case("all entries tie", (0 * images,), edge=True),
        Case("infinite", (replaced(images, np.s_[:, 0], -jnp.inf),), edge=True),
    ]


global_max_pool = Rule(
    global_max_pool_reference,
    global_max_pool_forward,
    global_max_pool_backward,
    global_max_pool_cases,
    budget=4,
)
global_avg_pool = Rule(
    global_avg_pool_reference,
    global_avg_pool_forward,
    global_avg_pool_backward,
    global_avg_pool_cases,
    budget=0,
)
