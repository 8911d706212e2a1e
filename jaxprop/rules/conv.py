"""Convolution over 1 to 3 spatial axes."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxprop.precision import up
from jaxprop.rule import Case, Rule
from jaxprop.rules.convolutions import Convolution, biased, by_xla, check_convolution
from jaxprop.rules.convolving import convolved, to_input, to_kernel
from jaxprop.rules.windows import Padding
from jaxprop.samples import normal


def conv_reference(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    stride: tuple[int, ...] | None = None,
    padding: Padding,
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
) -> jax.Array:
    """Affine map of what each window sees: a weight per place and pair of channels.

    Use it where a feature means the same wherever it is. Depthwise is groups = C.

    Scope      one example, one spatial axis, no padding, one group: x (1, N, C), w (K, C, C_out),
               b (C_out,), stride and dilation of one number
    Forward    seen = patches(x, rows(w), stride, dilation)            (F1)
               y = sum_first(seen @ w) + b                             (F2)
    Backward   db = sum_rows(g)                                        (B1) from F2
               dw = swap(seen) @ g                                     (B2) from F2
               dseen = g @ swap(w)                                     (B3) from F2
               dx = scatter_add(dseen, stride, dilation, x)            (B4) from F1, F2

    Args:
        x: (B, *spatial, C), floating, of 1 to 3 spatial axes.
        w: (*window, C / groups, C_out), floating; taken in x's dtype. It is not turned round.
        b: (C_out,), floating, or None for no bias.
        stride: by how much the next window lies further on, per spatial axis; None for 1.
        padding: "SAME", "VALID", or per spatial axis a pair (low, high) of zeros before and after.
        dilation: how far apart the entries are that a window sees, per spatial axis; None for 1.
        groups: channels are cut into so many, and outputs too; a group of outputs sees its group of
            channels alone. Divides C and C_out.

    Returns:
        y: (B, *counts, C_out), x's dtype.

    Residuals: x and w (arguments, so nothing is held beyond them).

    Numerics: accumulated in float32 for lower precisions, rounded once; dw and db too, which takes
        a tenth to a quarter more temporary memory than rounding partial sums. Those put db off by
        up to a fifth in bfloat16, at 25088 terms. dx is the
        convolution of g, the stride between its entries, with w turned round; dw that of x with g.
        On a CPU few outputs, small groups and large dw are computed in other ways than XLA's
        (convolving.py): the sums are the same, in another order. x is held padded for it: up to a
        third more temporary memory where groups are small.
        jax.lax.conv has the same orientation, and so has PyTorch, whose w is (C_out, C / groups,
        *window).

    Raises:
        TypeError: where x, w or b is not floating.
        ValueError: where shapes or options do not fit.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 9.5, equations 9.11 to 9.13.
    """
    how = check_convolution(
        "conv", x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return biased(by_xla(x, w, how), b).astype(x.dtype)  # F1, F2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConvResiduals:
    x: jax.Array
    w: jax.Array
    how: Convolution = field(metadata={"static": True})


def conv_forward(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    *,
    stride: tuple[int, ...] | None,
    padding: Padding,
    dilation: tuple[int, ...] | None,
    groups: int,
) -> tuple[jax.Array, ConvResiduals]:
    how = check_convolution(
        "conv", x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    y = biased(convolved(x, w, how), b).astype(x.dtype)  # F1, F2
    return y, ConvResiduals(x, w, how)


def conv_backward(res: ConvResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, w, how = res.x, res.w, res.how
    db = jnp.sum(up(g), axis=range(g.ndim - 1))  # B1
    dw = to_kernel(x, g, how, w.shape[:-2])  # B2
    dx = to_input(g, w, how, x.shape[1:-1])  # B3, B4
    return dx, dw, db


def conv_cases() -> list[Case]:
    images, w, b = normal(0, 2, 5, 4, 3), normal(1, 3, 2, 3, 5), normal(2, 5)
    signals, grouped = normal(3, 2, 9, 4), normal(4, 3, 2, 6)
    volumes, deep = normal(5, 1, 3, 4, 3, 2), normal(6, 3, 1, 2, 2, 3)
    given = {
        "x": signals[:1, :, :3],
        "w": normal(7, 3, 3, 2),
        "b": b[:2],
        "stride": (3,),
        "padding": "VALID",
        "dilation": (2,),
        "groups": 1,
    }
    strided = {"stride": (2, 1), "padding": "SAME"}
    uneven = {"stride": (2,), "padding": ((3, 1),), "dilation": (2,), "groups": 2}
    depthwise = {"padding": "SAME", "groups": 3}
    return [
        Case("images", (images, w, b), strided, given),
        Case("groups", (signals, grouped), uneven, given),
        Case("depthwise", (images[:1], normal(9, 3, 3, 1, 3), b[:3]), depthwise, given),
        Case("volumes", (volumes, deep, b[:3]), {"padding": "VALID"}, given),
        Case("bfloat16 data", (images.astype(jnp.bfloat16), w, b), strided, given),
        Case("zeros", (0 * images, w, 0 * b), strided, given, edge=True),
        Case("no examples", (images[:0], w, b), strided, edge=True),
    ]


conv = Rule(conv_reference, conv_forward, conv_backward, conv_cases, budget=0)
