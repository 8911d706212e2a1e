"""The parts of a ResNet: its stem, and the basic block of two convolutions and a shortcut.

`block` is the text to read: how backpropagation goes through a residual with batch norms, the
forward list and its reverse. B batch, H and W height and width, C channels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape
from jaxprop.rules.activations import relu
from jaxprop.rules.conv import conv
from jaxprop.rules.pooling import max_pool

# A convolution or pooling with a window of 3 keeps height and width where its stride is 1.
AROUND = ((1, 1), (1, 1))


class StemResiduals(NamedTuple):
    a: Saved
    n: Saved
    h: Saved
    y: Saved | None


def stem(width: int, large: bool, norm: Layer) -> Layer:
    """What comes before the stages: a rule over (params, x) -> (y, statistics).

    Forward    a = conv(x, w)                            (B, H, W, C)  (F1)
               n, statistics = batch_norm(a)                           (F2)
               h = relu(n)                                             (F3)
               y = max_pool(h) where the stem is large                 (F4)
    Backward   dh = from g                                             (B1) from F4
               dn = from dh                                            (B2) from F3
               da, dnorm = from dn and the statistics' cotangents      (B3) from F2
               dx, dw = from da                                        (B4) from F1

    Args:
        width: channels of the output.
        large: whether the window is 7 x 7 with a stride of 2, and F4 halves once more.
        norm: as `block` has it.

    Residuals: those of the rules.
    """
    window, pads = (7, ((3, 3), (3, 3))) if large else (3, AROUND)
    affine = conv.bind(stride=(2, 2) if large else (1, 1), padding=pads)
    pool = max_pool.bind(window=(3, 3), stride=(2, 2), padding=AROUND)

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> tuple:
        a = affine.reference(x, params["conv"]["w"])  # F1
        n, statistics = norm.reference(params["norm"], a)  # F2
        h = relu.reference(n)  # F3
        return (pool.reference(h) if large else h), {"norm": statistics}  # F4

    def forward(params: PyTree, x: jax.Array, key: jax.Array | None) -> tuple[tuple, StemResiduals]:
        a, of_a = affine.forward(x, params["conv"]["w"])  # F1
        (n, statistics), of_n = norm.forward(params["norm"], a)  # F2
        h, of_h = relu.forward(n)  # F3
        y, of_y = pool.forward(h) if large else (h, None)  # F4
        return (y, {"norm": statistics}), StemResiduals(of_a, of_n, of_h, of_y)

    def backward(res: StemResiduals, g: tuple[jax.Array, PyTree]) -> tuple:
        g_y, g_statistics = g
        dh = pool.backward(res.y, g_y)[0] if large else g_y  # B1
        dn = relu.backward(res.h, dh)[0]  # B2
        dnorm, da, _ = norm.backward(res.n, (dn, g_statistics["norm"]))  # B3
        dx, dw, _ = affine.backward(res.a, da)  # B4
        return {"conv": {"w": dw}, "norm": dnorm}, dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        w = _kernel(key, (window, window, x_shape[-1], width), dtype)
        return {"conv": {"w": w}, "norm": norm.init(key, (width,), dtype)}

    reference.__name__ = "stem"
    reference.__doc__ = stem.__doc__
    return Layer(reference, forward, backward, init=init)


class BlockResiduals(NamedTuple):
    """What each line saves: x, a_1, h, a_2 and y, (B, H, W, C), of which y is the next block's x.

    And three numbers per channel for each norm. The shortcut's two are None where it is x itself;
    else a_shortcut is saved too.
    """

    a_1: Saved
    n_1: Saved
    h: Saved
    a_2: Saved
    n_2: Saved
    a_shortcut: Saved | None
    n_shortcut: Saved | None
    y: Saved


def block(width: int, stride: int, projected: bool, norm: Layer, zero_gamma: bool) -> Layer:
    """A basic block: two convolutions with batch norms, and a shortcut that goes round them.

    A rule over (params, x) -> (y, statistics), x (B, H, W, C). What each line's gradient is, line
    for line, s the shortcut:

    Forward    a_1 = conv(x, w_1), 3 x 3, with the stride              (F1)
               n_1, mean_1, var_1 = batch_norm(a_1)                    (F2)
               h = relu(n_1)                                           (F3)
               a_2 = conv(h, w_2), 3 x 3                               (F4)
               n_2, mean_2, var_2 = batch_norm(a_2)                    (F5)
               s = x, or batch_norm(conv(x, w_s)), 1 x 1, the stride   (F6)
               y = relu(n_2 + s)                                       (F7)
    Backward   dn_2 = ds = from g                                      (B1) from F7
               da_2, dnorm_2 = from dn_2                               (B2) from F5
               dh, dw_2 = from da_2                                    (B3) from F4
               dn_1 = from dh                                          (B4) from F3
               da_1, dnorm_1 = from dn_1                               (B5) from F2
               dx_by_branch, dw_1 = from da_1                          (B6) from F1
               dx_by_shortcut = ds, or from ds; dnorm_s, dw_s          (B7) from F6
               dx = dx_by_branch + dx_by_shortcut                      (B8) from F1, F6

    x is read twice, so its two cotangents add (B8): what arrives at y past its relu reaches x
    whole by the shortcut, whatever the branch does to its own share. Each norm hands on the
    statistics' cotangents with its own (B2, B5, B7): zeros where only J is differentiated.

    Args:
        width: channels of the output.
        stride: of the first convolution and of the shortcut.
        projected: whether the shortcut is a convolution, which it must be where the block changes
            the shape of x.
        norm: a Layer (params, a) -> (n, statistics): `training_norm` or `evaluating_norm`.
        zero_gamma: whether the gamma of norm_2 starts at 0.

    Residuals: BlockResiduals.
    """
    first = conv.bind(stride=(stride, stride), padding=AROUND)
    second = conv.bind(stride=(1, 1), padding=AROUND)
    shortcut = conv.bind(stride=(stride, stride), padding="VALID")

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> tuple:
        p, statistics = params, {}
        a_1 = first.reference(x, p["conv_1"]["w"])  # F1
        n_1, statistics["norm_1"] = norm.reference(p["norm_1"], a_1)  # F2
        h = relu.reference(n_1)  # F3
        a_2 = second.reference(h, p["conv_2"]["w"])  # F4
        n_2, statistics["norm_2"] = norm.reference(p["norm_2"], a_2)  # F5
        s = x  # F6
        if projected:
            a_s = shortcut.reference(x, p["conv_shortcut"]["w"])
            s, statistics["norm_shortcut"] = norm.reference(p["norm_shortcut"], a_s)
        return relu.reference(n_2 + s), statistics  # F7

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[tuple, BlockResiduals]:
        p, statistics = params, {}
        a_1, of_a_1 = first.forward(x, p["conv_1"]["w"])  # F1
        (n_1, statistics["norm_1"]), of_n_1 = norm.forward(p["norm_1"], a_1)  # F2
        h, of_h = relu.forward(n_1)  # F3
        a_2, of_a_2 = second.forward(h, p["conv_2"]["w"])  # F4
        (n_2, statistics["norm_2"]), of_n_2 = norm.forward(p["norm_2"], a_2)  # F5
        s, of_a_s, of_n_s = x, None, None  # F6
        if projected:
            a_s, of_a_s = shortcut.forward(x, p["conv_shortcut"]["w"])
            (s, statistics["norm_shortcut"]), of_n_s = norm.forward(p["norm_shortcut"], a_s)
        y, of_y = relu.forward(n_2 + s)  # F7
        res = BlockResiduals(of_a_1, of_n_1, of_h, of_a_2, of_n_2, of_a_s, of_n_s, of_y)
        return (y, statistics), res

    def backward(res: BlockResiduals, g: tuple[jax.Array, PyTree]) -> tuple:
        (g_y, g_statistics), dparams = g, {}
        dn_2 = ds = relu.backward(res.y, g_y)[0]  # B1
        dparams["norm_2"], da_2, _ = norm.backward(res.n_2, (dn_2, g_statistics["norm_2"]))  # B2
        dh, dw_2, _ = second.backward(res.a_2, da_2)  # B3
        dn_1 = relu.backward(res.h, dh)[0]  # B4
        dparams["norm_1"], da_1, _ = norm.backward(res.n_1, (dn_1, g_statistics["norm_1"]))  # B5
        dx_by_branch, dw_1, _ = first.backward(res.a_1, da_1)  # B6
        dx_by_shortcut = ds  # B7
        if projected:
            g_s = ds, g_statistics["norm_shortcut"]
            dparams["norm_shortcut"], da_s, _ = norm.backward(res.n_shortcut, g_s)
            dx_by_shortcut, dw_s, _ = shortcut.backward(res.a_shortcut, da_s)
            dparams["conv_shortcut"] = {"w": dw_s}
        dx = dx_by_branch + dx_by_shortcut  # B8
        return dparams | {"conv_1": {"w": dw_1}, "conv_2": {"w": dw_2}}, dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        keys, before = jax.random.split(key, 3), x_shape[-1]
        norms = {name: norm.init(key, (width,), dtype) for name in ("norm_1", "norm_2")}
        if zero_gamma:
            norms["norm_2"]["gamma"] = jnp.zeros((width,), dtype)
        kernels = {
            "conv_1": {"w": _kernel(keys[0], (3, 3, before, width), dtype)},
            "conv_2": {"w": _kernel(keys[1], (3, 3, width, width), dtype)},
        }
        if projected:
            kernels["conv_shortcut"] = {"w": _kernel(keys[2], (1, 1, before, width), dtype)}
            norms["norm_shortcut"] = norm.init(key, (width,), dtype)
        return kernels | norms

    reference.__name__ = "basic_block"
    reference.__doc__ = block.__doc__
    return Layer(reference, forward, backward, init=init)


def _kernel(key: jax.Array, shape: Shape, dtype: Any) -> jax.Array:
    """He's normal weights, by what an output of the convolution is read by, as for relu."""
    return jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")(key, shape, dtype)
