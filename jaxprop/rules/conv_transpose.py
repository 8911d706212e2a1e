"""Transposed convolution over 1 to 3 spatial axes: every entry lays down a window."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxprop.precision import up
from jaxprop.rule import Case, Rule
from jaxprop.rules.convolutions import Convolution, biased, by_xla, check_arrays
from jaxprop.rules.convolving import convolved, to_input, to_kernel
from jaxprop.rules.windows import Padding, check_fit, check_padding, check_per_axis, reach
from jaxprop.samples import normal


def conv_transpose_reference(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    stride: tuple[int, ...],
    padding: Padding,
    dilation: tuple[int, ...] | None = None,
) -> jax.Array:
    """Convolve x with its entries a stride apart, so that y is about stride times as long.

    Use it to raise the resolution by weights that are learned.

    Scope      one example, one spatial axis, padding "VALID", a window no shorter than the stride:
               x (1, N, C), w (K, C, C_out), b (C_out,), stride and dilation of one number
    Forward    laid = x @ flip(w)                                      (F1)
               y = scatter_add(laid, stride, dilation) + b             (F2)
    Backward   db = sum_rows(g)                                        (B1) from F2
               dlaid = patches(g, rows(w), stride, dilation)           (B2) from F2
               dw = flip(swap(x) @ dlaid)                              (B3) from F1
               dx = sum_first(dlaid @ swap(flip(w)))                   (B4) from F1

    Args:
        x: (B, *spatial, C), floating, of 1 to 3 spatial axes.
        w: (*window, C, C_out), floating; taken in x's dtype.
        b: (C_out,), floating, or None for no bias.
        stride: how far apart the entries of x are put, per spatial axis, zeros between them.
        padding: "SAME" gives stride * n entries, "VALID" all that a window touches; or per spatial
            axis a pair (low, high) of zeros before and after x, once its entries are apart.
        dilation: how far apart the entries are that a window sees, per spatial axis; None for 1.

    Returns:
        y: (B, *counts, C_out), x's dtype.

    Residuals: x and w (arguments, so nothing is held beyond them).

    Numerics: as conv: accumulated in float32 for lower precisions, rounded once, for which it holds
        y and dx in float32: half as much temporary memory again, in bfloat16. The convention is
        that of jax.lax.conv_transpose and of Flax: w is not turned round. PyTorch's w is, and lies
        (C, C_out, *window): its y is ours with jnp.flip(w) over the window, and its padding p is
        our K - 1 - p on either side.

    Raises:
        TypeError: where x, w or b is not floating.
        ValueError: where shapes or options do not fit.

    Source: Dumoulin and Visin (2016), A guide to convolution arithmetic, section 4.
    """
    how = _check(x, w, b, stride, padding, dilation)
    return biased(by_xla(x, w, how), b).astype(x.dtype)  # F1, F2


def _check(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    stride: tuple[int, ...],
    padding: Padding,
    dilation: tuple[int, ...] | None,
) -> Convolution:
    """The convolution of x, its entries a stride apart."""
    owner = "conv_transpose"
    check_arrays(owner, x, w, b)
    spatial, ones = x.shape[1:-1], (1,) * (x.ndim - 2)
    dilation = dilation or ones
    check_per_axis(owner, "stride", stride, spatial)
    check_per_axis(owner, "dilation", dilation, spatial)
    extent = [reach(k, d) for k, d in zip(w.shape[:-2], dilation, strict=True)]
    pairs = check_padding(owner, padding, spatial, extent, stride)
    if isinstance(padding, str):
        axes = zip(extent, stride, strict=True)
        pairs = tuple(_around(padding, k, s) for k, s in axes)
    apart = [reach(n, s) for n, s in zip(spatial, stride, strict=True)]
    check_fit(owner, apart, extent, pairs)
    return Convolution(ones, pairs, dilation, stride, 1)


def _around(padding: str, extent: int, stride: int) -> tuple[int, int]:
    """The zeros around entries a stride apart, for a window that spans `extent` of them."""
    if padding == "VALID":
        return extent - 1, max(extent, stride) - 1
    both = extent + stride - 2
    low = extent - 1 if stride > extent - 1 else -(-both // 2)
    return low, both - low


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConvTransposeResiduals:
    x: jax.Array
    w: jax.Array
    how: Convolution = field(metadata={"static": True})


def conv_transpose_forward(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    *,
    stride: tuple[int, ...],
    padding: Padding,
    dilation: tuple[int, ...] | None,
) -> tuple[jax.Array, ConvTransposeResiduals]:
    how = _check(x, w, b, stride, padding, dilation)
    y = biased(convolved(x, w, how), b).astype(x.dtype)  # F1, F2
    return y, ConvTransposeResiduals(x, w, how)


def conv_transpose_backward(
    res: ConvTransposeResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, w, how = res.x, res.w, res.how
    db = jnp.sum(up(g), axis=range(g.ndim - 1))  # B1
    dw = to_kernel(x, g, how, w.shape[:-2])  # B2, B3
    dx = to_input(g, w, how, x.shape[1:-1])  # B2, B4
    return dx, dw, db


def conv_transpose_cases() -> list[Case]:
    images, w, b = normal(0, 2, 3, 4, 3), normal(1, 3, 2, 3, 5), normal(2, 5)
    signals, long = normal(3, 2, 5, 3), normal(4, 3, 3, 1)
    volumes, deep = normal(5, 1, 2, 3, 2, 2), normal(6, 3, 1, 2, 2, 3)
    given = {
        "x": signals[:1],
        "w": normal(7, 3, 3, 2),
        "b": b[:2],
        "stride": (2,),
        "padding": "VALID",
        "dilation": (2,),
    }
    options = {"stride": (2, 1), "padding": "SAME"}
    uneven = {"stride": (3,), "padding": ((3, 1),), "dilation": (2,)}
    apart = {"stride": (2, 2, 3), "padding": "VALID"}
    return [
        Case("images", (images, w, b), options, given),
        Case("signals", (signals, long), uneven, given),
        Case("volumes", (volumes, deep, b[:3]), apart, given),
        Case("bfloat16 data", (images.astype(jnp.bfloat16), w, b), options, given),
        Case("zeros", (0 * images, w, 0 * b), options, given, edge=True),
        Case("no examples", (images[:0], w, b), options, edge=True),
    ]


conv_transpose = Rule(
    conv_transpose_reference,
    conv_transpose_forward,
    conv_transpose_backward,
    conv_transpose_cases,
    budget=0,
)
