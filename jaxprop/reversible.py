"""A stack of reversible blocks: backward rebuilds the input of each from its output."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.composition import as_layer
from jaxprop.installing import PyTree
from jaxprop.layers import Layer, Shape
from jaxprop.precision import up
from jaxprop.rule import Rule
from jaxprop.structure import carried, check_count, check_stacked, keys_of, like, stacked_init


class ReversibleResiduals(NamedTuple):
    """y1 and y2 are the halves of the output, in the dtype to compute in."""

    params: PyTree
    halves: tuple[jax.Array, jax.Array]
    key: jax.Array | None


def reversible(f: Rule, g: Rule, n: int = 1) -> Layer:
    """Make a stack of n reversible blocks, whose inputs backward rebuilds from their outputs.

    Use it where depth is limited by memory: what is saved does not grow with n. It costs about
    one more forward. Each block splits the last axis of x into halves x1 and x2, and computes
    y1 = x1 + f(x2), then y2 = x2 + g(y1).

    Args:
        f, g: Layers, or Rules of one array, whose outputs have the shape and dtype of a half.
        n: how many blocks; positive.

    Returns:
        A Layer; params are {"f": ..., "g": ...}, each leaf with a first axis of n. Given a key,
        block k (from 0) splits `jax.random.fold_in(key, k)` between f and g.

    Residuals: params and key (arguments), and the output, in float32 at least.

    Numerics: the halves are carried in float32 at least, rounded to x's dtype where f and g read
        them and at the end. The rebuilt inputs differ from the inputs by rounding errors, which
        grow where the blocks amplify.

    Raises:
        TypeError: where f or g is neither a layer nor a rule of one array.
        ValueError: where n is not a positive integer; when called, where the last axis of x is not
            even, a leaf of params has not n as its first axis, or an output does not fit.

    Source: Gomez et al. (2017), The reversible residual network, equations 6 to 8.
    """
    layers = {"f": as_layer("reversible", f, "f"), "g": as_layer("reversible", g, "g")}
    check_count("reversible", n)

    def through(run: Callable, params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple:
        """The halves of the output; run(layer's name, params, x, key) is f or g."""

        def step(halves: tuple, at: tuple) -> tuple[tuple, None]:
            (x1, x2), (p, k) = halves, _key_pair(at)
            y1 = x1 + up(run("f", p["f"], x2.astype(x.dtype), k[0]))
            y2 = x2 + up(run("g", p["g"], y1.astype(x.dtype), k[1]))
            return (y1, y2), None

        check_stacked("reversible", params, n)
        start = tuple(jnp.split(carried(up(_even(x)), params), 2, axis=-1))
        return lax.scan(step, start, (params, keys_of(key, n)), length=n)[0]

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        def run(name: str, p: PyTree, h: jax.Array, k: jax.Array | None) -> jax.Array:
            return like("reversible", h, layers[name].reference(p, h, k))

        return jnp.concatenate(through(run, params, x, key), axis=-1).astype(x.dtype)

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, ReversibleResiduals]:
        def run(name: str, p: PyTree, h: jax.Array, k: jax.Array | None) -> jax.Array:
            return like("reversible", h, layers[name].forward(p, h, k)[0])

        halves = through(run, params, x, key)
        y = jnp.concatenate(halves, axis=-1).astype(x.dtype)
        return y, ReversibleResiduals(params, halves, key)

    def backward(res: ReversibleResiduals, g: jax.Array) -> tuple[PyTree, jax.Array, None]:
        dtype = g.dtype

        def back(name: str, p: PyTree, h: jax.Array, k: Any, d: jax.Array) -> tuple:
            """(the layer's output at h, dparams, dh)."""
            y, saved = layers[name].forward(p, h.astype(dtype), k)
            dp, dh, _ = layers[name].backward(saved, d.astype(dtype))
            return up(y), dp, 0 if dh is None else up(dh)

        def step(carry: tuple, at: tuple) -> tuple[tuple, PyTree]:
            (y1, y2, dy1, dy2), (p, k) = carry, _key_pair(at)
            of_y1, dg, dy1_by_g = back("g", p["g"], y1, k[1], dy2)
            x2, dx1 = y2 - of_y1, dy1 + dy1_by_g
            of_x2, df, dx2_by_f = back("f", p["f"], x2, k[0], dx1)
            return (y1 - of_x2, x2, dx1, dy2 + dx2_by_f), {"f": df, "g": dg}

        start = (*res.halves, *jnp.split(up(g), 2, axis=-1))
        xs = res.params, keys_of(res.key, n)
        (_, _, dx1, dx2), dparams = lax.scan(step, start, xs, length=n, reverse=True)
        return dparams, jnp.concatenate([dx1, dx2], axis=-1), None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        half = (*x_shape[:-1], x_shape[-1] // 2)
        keys = jax.random.split(key)
        return {
            name: layer.init(k, half, dtype)
            for (name, layer), k in zip(layers.items(), keys, strict=True)
        }

    reference.__name__ = "reversible"
    reference.__doc__ = f"{n} reversible blocks of {layers['f'].name} and {layers['g'].name}."
    return Layer(reference, forward, backward, init=stacked_init(init, n))


def _key_pair(at: tuple) -> tuple[PyTree, Any]:
    """The params of a block, and a key for each of its two layers."""
    params, key = at
    return params, (None, None) if key is None else jax.random.split(key)


def _even(x: jax.Array) -> jax.Array:
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ValueError(
            "reversible: x must have a last axis of even length, to be split into halves, got "
            f"{x.shape}. Make the layer before it wider by one."
        )
    return x
