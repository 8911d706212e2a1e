"""Small rules that each have one thing that the catalogue's rules do not all have."""

import jax
import jax.numpy as jnp

from jaxprop import Rule


def power_reference(x: jax.Array, *, exponent: float = 2) -> jax.Array:
    """An option: y = x ** exponent."""
    return x**exponent


def _power_forward(x, *, exponent):
    return x**exponent, (x, jnp.asarray(exponent, x.dtype))


def _power_backward(res, g):
    x, exponent = res
    return (g * exponent * x ** (exponent - 1),)


power = Rule(power_reference, _power_forward, _power_backward)


def statistics_reference(x: jax.Array, gamma: jax.Array) -> tuple[jax.Array, dict]:
    """Several outputs, of which the statistics do not depend on gamma."""
    mean = jnp.mean(x, axis=0)
    square = jnp.mean(x * x, axis=0)
    return gamma * x, {"mean": mean, "square": square}


def _statistics_forward(x, gamma):
    return statistics_reference(x, gamma), (x, gamma)


def _statistics_backward(res, g):
    x, gamma = res
    dy, dstatistics = g
    dmean, dsquare = dstatistics["mean"], dstatistics["square"]
    dx = gamma * dy + (dmean + 2 * x * dsquare) / x.shape[0]
    return dx, jnp.sum(x * dy, axis=0)


statistics = Rule(statistics_reference, _statistics_forward, _statistics_backward)


def lookup_reference(tokens: jax.Array, table: jax.Array, scale: jax.Array | None = None):
    """Integer and absent arguments: rows of a table, scaled or not."""
    rows = table[tokens]
    return rows if scale is None else rows * scale


def _lookup_forward(tokens, table, scale):
    return lookup_reference(tokens, table, scale), (tokens, table, scale)


def _lookup_backward(res, g):
    tokens, table, scale = res
    drows = g if scale is None else g * scale
    dtable = jnp.zeros_like(table).at[tokens].add(drows)
    return None, dtable, None if scale is None else jnp.sum(g * table[tokens], axis=0)


lookup = Rule(lookup_reference, _lookup_forward, _lookup_backward)


def masked_reference(x: jax.Array, rate: jax.Array, key: jax.Array | None) -> jax.Array:
    """A key, or none: entries kept with probability 1 - rate."""
    return x if key is None else jnp.where(jax.random.uniform(key, x.shape) < rate, 0, x)


def _masked_forward(x, rate, key):
    return masked_reference(x, rate, key), (key, rate)


def _masked_backward(res, g):
    key, rate = res
    dx = g if key is None else jnp.where(jax.random.uniform(key, g.shape) < rate, 0, g)
    return dx, None, None


masked = Rule(masked_reference, _masked_forward, _masked_backward)


def nested_reference(params: dict, x: jax.Array) -> jax.Array:
    """A nested argument with an integer, an absent leaf and a part that has no gradient."""
    y = x @ params["map"]["w"] * params["times"].astype(x.dtype)
    return y if params["map"]["b"] is None else y + params["map"]["b"]


def _nested_forward(params, x):
    return nested_reference(params, x), (params, x)


def _nested_backward(res, g):
    params, x = res
    w, b = params["map"]["w"], params["map"]["b"]
    da = g * params["times"].astype(g.dtype)
    db = None if b is None else jnp.sum(g, axis=0)
    dmap = {"w": x.T @ da, "b": db}
    return {"map": dmap, "times": None, "unused": None}, da @ w.T


nested = Rule(nested_reference, _nested_forward, _nested_backward)


def ranked_reference(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Integer and key outputs beside the one that has a gradient."""
    order = jnp.argsort(x)
    return x * x, order, jax.random.key(0)


def _ranked_forward(x):
    return ranked_reference(x), x


def _ranked_backward(x, g):
    dy, dorder, dkey = g
    assert dorder is None
    assert dkey is None
    return (2 * x * dy,)


ranked = Rule(ranked_reference, _ranked_forward, _ranked_backward)
