"""Combinator: one input into several layers, whose outputs come together again."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.composition import add_cotangents, check_params, named_layers, split
from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape
from jaxprop.rule import Rule

COMBINATIONS = ("sum", "concatenate")


class ParallelResiduals(NamedTuple):
    layers: dict[str, Saved]


def parallel(*unnamed: Rule, combine: str = "sum", **named: Rule) -> Layer:
    """Make a layer that hands the same x to several layers and joins what they compute.

    Where x is read several times its cotangents add: that is all there is to a fan-out.

    Forward    h_k = f_k(x), k = 1..n                                  (F1)
               y = h_1 + .. + h_n, or their features side by side      (F2)
    Backward   dh_k = g, or its share of the features                  (B1) from F2
               dx_k, dparams_k = from dh_k                             (B2) from F1
               dx = dx_1 + .. + dx_n                                   (B3) from F1

    Args:
        unnamed: layers, named by kind and position (`dense_1`, `tanh_2`, ...).
        combine: "sum", or "concatenate" along the last axis.
        named: layers under names of your own, after those. Rules of one array are taken as layers
            without parameters; `identity` hands x on as it is.

    Returns:
        A Layer; params are a dict by layer name. Given a key, the layer at position k (from 0) gets
        `jax.random.fold_in(key, k)`.

    Residuals: those of the layers.

    Raises:
        ValueError: where there is no layer or combine is unknown; when called, where params lack a
            layer or have one too many, or the outputs do not fit together.
        TypeError: where something is neither a layer nor a rule of one array.

    Source: Szegedy et al. (2015), Going deeper with convolutions, figure 2, for concatenation.
    """
    if combine not in COMBINATIONS:
        raise ValueError(f"parallel: combine must be one of {COMBINATIONS}, got {combine!r}.")
    layers = named_layers("parallel", unnamed, named)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        check_params("parallel", layers, params)
        keys = split(key, layers)
        hs = {
            name: layer.reference(params[name], x, layer_key)  # F1
            for (name, layer), layer_key in zip(layers.items(), keys, strict=True)
        }
        return _joined(combine, hs)  # F2

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, ParallelResiduals]:
        check_params("parallel", layers, params)
        hs, saved = {}, {}
        for (name, layer), layer_key in zip(layers.items(), split(key, layers), strict=True):
            hs[name], saved[name] = layer.forward(params[name], x, layer_key)  # F1
        return _joined(combine, hs), ParallelResiduals(saved)  # F2

    def backward(res: ParallelResiduals, g: jax.Array) -> tuple[PyTree, jax.Array | None, None]:
        dparams, dx = {}, None
        for (name, layer), dh in zip(layers.items(), _parted(combine, res, g), strict=True):  # B1
            dparams[name], dx_k, _ = layer.backward(res.layers[name], dh)  # B2
            dx = add_cotangents(dx, dx_k)  # B3
        return dparams, dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        pairs = zip(layers.items(), split(key, layers), strict=True)
        return {name: layer.init(layer_key, x_shape, dtype) for (name, layer), layer_key in pairs}

    reference.__name__ = "parallel"
    reference.__doc__ = f"The {combine} of: " + ", ".join(layers)
    return Layer(reference, forward, backward, init=init, layers=layers)


def _joined(combine: str, hs: Mapping[str, jax.Array]) -> jax.Array:
    """y of the h_k."""
    compared = slice(None) if combine == "sum" else slice(-1)
    kinds = {name: (h.shape[compared], h.dtype) for name, h in hs.items()}
    if len(set(kinds.values())) > 1:
        got = ", ".join(f"{name} {h.dtype} {h.shape}" for name, h in hs.items())
        alike = "the same shape" if combine == "sum" else "the same shape but for the last axis,"
        raise ValueError(
            f"parallel: the outputs must have {alike} and dtype, got {got}. End each with a layer "
            "that gives it."
        )
    if combine == "sum":
        return sum(list(hs.values())[1:], start=next(iter(hs.values())))
    return jnp.concatenate(list(hs.values()), axis=-1)


def _parted(combine: str, res: ParallelResiduals, g: jax.Array) -> list[jax.Array]:
    """The dh_k of g."""
    if combine == "sum":
        return [g] * len(res.layers)
    widths = [saved.output.leaves[0].shape[-1] for saved in res.layers.values()]
    return jnp.split(g, np.cumsum(widths)[:-1], axis=-1)
