"""Right, in unusual guises: narrow domains, jumps, callbacks, other ways to be called."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.precision import up
from tests.checking.making import Right, each, normal, positive, rows, vjp


def _unit(*shape):
    return jax.nn.sigmoid(normal(*shape))


# Narrow domains, kinks and jumps


def _entropy(p):
    """-sum p log p, where 0 log 0 is 0."""
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))


def _entropy_backward(res, g):
    (p,) = res
    return (jnp.where(p > 0, -g * (jnp.log(jnp.where(p > 0, p, 1)) + 1), 0),)


def _hard_swish(x):
    return x * jnp.clip(x + 3, 0, 6) / 6


def _hard_swish_backward(res, g):
    (x,) = res
    return (g * jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (2 * x + 3) / 6)),)


def _sparsemax(x):
    """The projection of each row on the simplex."""
    z = jnp.sort(x, -1)[..., ::-1]
    k = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    total = jnp.cumsum(z, -1)
    count = jnp.sum(1 + k * z > total, -1, keepdims=True)
    tau = (jnp.take_along_axis(total, count - 1, -1) - 1) / count.astype(x.dtype)
    return jnp.maximum(x - tau, 0)


def _sparsemax_backward(res, g):
    support = (_sparsemax(*res) > 0).astype(g.dtype)
    mean = jnp.sum(g * support, -1, keepdims=True) / jnp.sum(support, -1, keepdims=True)
    return (support * (g - mean),)


def _either(x, y):
    """A jump: x y where their sum is positive, and x + y where it is not."""
    return lax.cond(jnp.sum(x + y) > 0, lambda: x * y, lambda: x + y)


def _either_backward(res, g):
    x, y = res
    return lax.cond(jnp.sum(x + y) > 0, lambda: (g * y, g * x), lambda: (g, g))


def _detached(x, scale):
    """The scale takes no gradient, and says so to automatic differentiation, too."""
    return x * lax.stop_gradient(scale)


# Reductions and convolutions


def _group_norm(x, gamma):
    return gamma * _grouped(x)[0].reshape(x.shape)


def _grouped(x):
    """Channels in two groups, each normalised over itself."""
    grouped = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    centred = grouped - jnp.mean(grouped, -1, keepdims=True)
    inv_std = lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-3)
    return centred * inv_std, inv_std


def _group_norm_backward(res, g):
    x, gamma = res
    x_hat, inv_std = _grouped(x)
    d = (gamma * g).reshape(x_hat.shape)
    inner = jnp.mean(d * x_hat, -1, keepdims=True)
    dx = inv_std * (d - jnp.mean(d, -1, keepdims=True) - x_hat * inner)
    return dx.reshape(x.shape), jnp.sum(g * x_hat.reshape(x.shape), 0)


def _strided(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )  # fmt: skip


def _strided_backward(res, g):
    """Each side is linear, so JAX's own transpose is its cotangent."""
    x, kernel = res
    (dx,) = jax.linear_transpose(lambda x: _strided(x, kernel), x)(g)
    (dkernel,) = jax.linear_transpose(lambda kernel: _strided(x, kernel), kernel)(g)
    return dx, dkernel


def _decayed(x, rate, reverse=False):
    """y[t] = rate y[t - 1] + x[t], by a parallel scan."""

    def combine(a, b):
        return a[0] * b[0], a[1] * b[0] + b[1]

    return lax.associative_scan(combine, (jnp.full_like(x, rate), x), reverse=reverse)[1]


def _decayed_forward(x, rate):
    y = _decayed(x, rate)
    return y, (y, rate)


def _decayed_backward(res, g):
    y, rate = res
    dx = _decayed(g, rate, reverse=True)
    return dx, jnp.sum(dx[1:] * y[:-1]).astype(rate.dtype)


# Outside of JAX, and beside the value


def _in_numpy(f, x):
    return jax.pure_callback(
        lambda x: f(np.asarray(x)).astype(x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype), x,
        vmap_method="expand_dims",
    )  # fmt: skip


_heard: list = []


def _hear(d):
    _heard.append(float(np.abs(d).sum()))
    _heard.clear()


def _reporting(res, g):
    jax.debug.callback(_hear, g)
    return (g,)


class _Scale:
    """A callable object with a parameter of its own."""

    def __init__(self):
        self.times = vjp(lambda x, w: x * w, lambda r, g: (g * r[1], g * r[0]))

    def __call__(self, x, w):
        return {"twice": self.times(2 * x, w), "once": (self.times(x, w), None)}


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _reduced(x, how):
    return jnp.sum(x * x) if how == "sum" else jnp.mean(x * x)


_reduced.defvjp(
    lambda x, how: (_reduced(x, how), x),
    lambda how, x, g: (2 * x * g / (1 if how == "sum" else x.size),),
)

_matmul = vjp(lambda x, w: x @ w, lambda r, g: (g @ r[1].T, r[0].T @ g))
_clipping = vjp(lambda x: x, lambda r, g: (jnp.clip(g, -1, 1),))
_at_least = vjp(
    lambda x, floor: jnp.maximum(x, floor),
    lambda r, g: (jnp.where(r[0] > r[1], g, 0), jnp.sum(jnp.where(r[0] > r[1], 0, g))),
)

RIGHT = [
    # Narrow domains, kinks and jumps
    Right("entropy of probabilities", vjp(_entropy, _entropy_backward),
          lambda: (jax.nn.softmax(normal(6)),)),
    Right("logit", vjp(lambda p: jnp.log(p) - jnp.log1p(-p), lambda r, g: (
        g / (r[0] * (1 - r[0])),)), lambda: (_unit(6),)),
    Right("square root", vjp(jnp.sqrt, lambda y, g: (g / (2 * y),), lambda x: (
        jnp.sqrt(x), jnp.sqrt(x))), lambda: (positive(6),)),
    Right("reciprocal", vjp(lambda x: 1 / x, lambda y, g: (-g * y * y,), lambda x: (
        1 / x, 1 / x)), lambda: (positive(6),)),
    Right("log of the gamma function", vjp(jax.scipy.special.gammaln, lambda r, g: (
        g * jax.scipy.special.digamma(r[0]),)), lambda: (positive(6),)),
    Right("exponential", vjp(jnp.exp, lambda y, g: (g * y,), lambda x: (
        jnp.exp(x), jnp.exp(x))), rows(6)),
    Right("hard swish", vjp(_hard_swish, _hard_swish_backward), rows(6)),
    Right("sparsemax", vjp(_sparsemax, _sparsemax_backward), rows(3, 5)),
    Right("a floor that is an argument", _at_least, lambda: (normal(6), jnp.float32(0.1))),
    Right("a sign, whose gradient is zero", vjp(lambda x: jnp.sign(x), lambda r, g: (0 * g,)),
          rows(6)),
    Right("a jump between branches", vjp(_either, _either_backward), each((5,), (5,))),
    Right("a detached argument", vjp(_detached, lambda r, g: (_detached(g, r[1]), None)),
          lambda: (normal(5), jnp.float32(0.7))),
    # Reductions and convolutions
    Right("group norm", vjp(_group_norm, _group_norm_backward), each((5, 8), (8,))),
    Right("strided convolution", vjp(_strided, _strided_backward), each((2, 9, 3), (3, 3, 4))),
    Right("a parallel scan", vjp(
        lambda x, rate: _decayed(x, rate), _decayed_backward, _decayed_forward),
        lambda: (normal(7), jnp.float32(0.8))),
    Right("mean over 5000 in float16", vjp(lambda x: jnp.mean(x, 0), lambda r, g: (
        jnp.broadcast_to((up(g) / r[0].shape[0]).astype(g.dtype), r[0].shape),)),
        lambda: (normal(5000, 2, dtype=jnp.float16),)),
    Right("residual of g alone", vjp(lambda x: 3 * x, lambda r, g: (3 * g,), lambda x: (
        3 * x, None)), rows(4)),
    # Outside of JAX, and beside the value
    Right("a callback to NumPy, no reference", vjp(
        partial(_in_numpy, np.sin), lambda r, g: (g * _in_numpy(np.cos, r[0]),)), rows(5)),
    Right("an identity that reports its gradient", vjp(lambda x: x * 1, _reporting), rows(5)),
    Right("a clipped gradient, on purpose", _clipping, rows(5), {"surrogate": True}),
    # Other ways to be called
    Right("a string for a nondiff argument", _reduced, lambda: (normal(4), "mean")),
    Right("an object with a tree for output", _Scale(), each((4,), (4,))),
    Right("a partial, at NumPy arrays", partial(_matmul, np.ones((2, 3), np.float32)),
          lambda: (np.ones((3, 2), np.float32),)),
    Right("under vmap", jax.vmap(_matmul, in_axes=(0, None)), each((2, 4, 3), (3, 2))),
    Right("under checkpoint and jit", jax.checkpoint(jax.jit(_matmul)), each((4, 3), (3, 2))),
]  # fmt: skip
