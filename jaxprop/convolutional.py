"""Layers for images and signals: a convolution with its activation, and what flattens for dense.

Pooling needs none: `chain` takes `max_pool.bind(window=..., stride=..., padding=...)`, and
`global_avg_pool`, as they are.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree, Saved
from jaxprop.layers import (
    Initializer,
    Layer,
    Shape,
    affine_step,
    check_activation,
    elementwise,
    parameters,
)
from jaxprop.rule import Rule
from jaxprop.rules.activations import identity
from jaxprop.rules.conv import conv
from jaxprop.rules.windows import Padding


class ConvolutionResiduals(NamedTuple):
    affine: Saved
    activation: Saved


def convolution(
    channels: int,
    window: tuple[int, ...],
    activation: Rule = identity,
    *,
    stride: tuple[int, ...] | None = None,
    padding: Padding = "SAME",
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    bias: bool = True,
    weights: Initializer | None = None,
) -> Layer:
    """Make a convolutional layer: an affine map of what each window sees, and its activation.

    `dense` for every place of an image, with the same parameters at each.

    Forward    a = conv(x, w) + b                                      (F1)
               h = f(a)                                                (F2)
    Backward   da = g * f'(a), or f's vector-Jacobian product          (B1) from F2
               dx = the convolution of da with w turned round          (B2) from F1
               dw = that of x with da                                  (B3) from F1
               db = sum_rows(da)                                       (B4) from F1

    Args:
        channels: how many features each place of the output has, at least 1.
        window: how many places a window sees, per spatial axis: (5,) for signals, (3, 3) for
            images.
        activation: a Rule of one array; options fixed with `activation.bind(...)`.
        stride, padding, dilation, groups: as `conv` has them.
        bias: whether there is a b; it starts at zero.
        weights: `(key, shape, dtype) -> w`, as `jax.nn.initializers` makes them; Glorot's uniform
            where None, which counts what a window sees. He's for deep networks of relu.

    Returns:
        A Layer; params are {"w": (*window, C / groups, channels), "b": (channels,)}, x is
        (B, *spatial, C).

    Residuals: those of conv (x and w) and of the activation.

    Raises:
        ValueError: where channels or a part of the window is not a positive integer; when called,
            where the other options do not fit x.
        TypeError: where `activation` is not a Rule that can be called with x alone.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 9.5; Algorithms 6.3 and 6.4.
    """
    _check_sizes(channels, window)
    check_activation("convolution", activation)
    affine = conv.bind(stride=stride, padding=padding, dilation=dilation, groups=groups)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        a = affine.reference(x, params["w"], params.get("b"))  # F1
        return activation.reference(a)  # F2

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, ConvolutionResiduals]:
        a, of_a = affine.forward(x, params["w"], params.get("b"))  # F1
        h, of_h = activation.forward(a)  # F2
        return h, ConvolutionResiduals(of_a, of_h)

    def backward(res: ConvolutionResiduals, g: jax.Array) -> tuple[PyTree, jax.Array, None]:
        da = activation.backward(res.activation, g)[0]  # B1
        dx, dw, db = affine.backward(res.affine, da)  # B2, B3, B4
        return parameters(dw, db), dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        make = weights or jax.nn.initializers.glorot_uniform()
        w = make(key, (*window, x_shape[-1] // groups, channels), dtype)
        return parameters(w, jnp.zeros((channels,), dtype) if bias else None)

    reference.__name__ = "convolution"
    reference.__doc__ = convolution.__doc__
    quantities = {"a": affine_step(affine, init), "h": elementwise(activation)}
    return Layer(reference, forward, backward, init=init, quantities=quantities)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlattenResiduals:
    shape: Shape = field(metadata={"static": True})


def flatten() -> Layer:
    """Make a layer that puts all features of an example into one row, for a dense layer after it.

    Forward    y = x as (B, features)                                  (F1)
    Backward   dx = g in x's shape                                     (B1) from F1

    Returns:
        A Layer without parameters; x is (B, ...), y (B, product of the others).

    Residuals: none; x's shape is static.

    Raises:
        ValueError: when called, where x is a scalar.
    """

    def flatten(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        if x.ndim < 1:
            raise ValueError("flatten: x must be (B, ...), got a scalar. Give it a batch axis.")
        return x.reshape(x.shape[0], prod(x.shape[1:]))  # F1

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, FlattenResiduals]:
        return flatten(params, x), FlattenResiduals(x.shape)  # F1

    def backward(res: FlattenResiduals, g: jax.Array) -> tuple[None, jax.Array, None]:
        return None, g.reshape(res.shape), None  # B1

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        return {}

    return Layer(flatten, forward, backward, init=init)


def _check_sizes(channels: int, window: tuple[int, ...]) -> None:
    if not _is_count(channels):
        raise ValueError(f"convolution: channels must be a positive integer, got {channels!r}.")
    if not isinstance(window, tuple) or not window or not all(map(_is_count, window)):
        raise ValueError(
            "convolution: window must be a tuple of positive integers, one per spatial axis, got "
            f"{window!r}. Give (3, 3) for images."
        )


def _is_count(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 1
