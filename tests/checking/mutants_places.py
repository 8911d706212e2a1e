"""Right where people look: wrong at an edge, for a shape, a dtype, a transformation, a call."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprop import Rule
from jaxprop.precision import at_least_float32
from tests.checking.making import Mutant, each, normal, positive, rows, vjp

LINEAR = ("linearity",)
EDGES = ("edges",)
SHAPES = ("shapes",)


def _sine(change):
    """The sine, its backward made wrong in the way it handles g."""
    return vjp(jnp.sin, lambda r, g: (change(g) * jnp.cos(r[0]),))


def _norm(x):
    square = jnp.sum(x * x)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _unstable_norm(x):
    mean = jnp.mean(x, -1, keepdims=True)
    return (x - mean) * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5)


def _unstable_norm_backward(res, g):
    (x,) = res
    mean = jnp.mean(x, -1, keepdims=True)
    inv = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) - mean**2 + 1e-5)
    x_hat = (x - mean) * inv
    return (inv * (g - jnp.mean(g, -1, keepdims=True)
                   - x_hat * jnp.mean(g * x_hat, -1, keepdims=True)),)  # fmt: skip


def _deviation(x):
    return jnp.sqrt(jnp.var(x, -1) + 1e-6)


def _deviation_backward(res, g):
    (x,) = res
    d = x - jnp.mean(x, -1, keepdims=True)
    std = jnp.sqrt(jnp.mean(d * d, -1) + 1e-6)
    unit = d / jnp.sqrt(jnp.sum(d * d, -1, keepdims=True))
    scale = jnp.sqrt(jnp.mean(d * d, -1)) / std / x.shape[-1] ** 0.5
    return ((g * scale)[..., None] * unit,)


def _naive_softmax_backward(res, g):
    e = jnp.exp(res[0])
    y = e / jnp.sum(e, -1, keepdims=True)
    return (y * (g - jnp.sum(g * y, -1, keepdims=True)),)


def _naive_logsumexp_forward(x):
    return jnp.log(jnp.sum(jnp.exp(x))), (x,)


def _sigmoid_backward(res, g):
    e = jnp.exp(res[0])
    return (g * e / (1 + e) ** 2,)


def _every_tie(res, g):
    (x,) = res
    top = x == jnp.max(x, -1, keepdims=True)
    return (jnp.where(top, g[..., None], 0),)


def _masked_softmax_backward(res, g):
    logp = jax.nn.log_softmax(res[0])
    p = jnp.exp(logp)
    return (p * g - p * jnp.sum(jnp.where(p > 0, p * g, 0 * logp), -1, keepdims=True),)


def _whole_blocks(d, size=4):
    """d, with what lies beyond the last whole block left out."""
    whole = d.shape[0] // size * size
    return d.at[whole:].set(0) if whole < d.shape[0] else d


def _square_mean(x):
    return jnp.mean(x * x, 0)


def _with_extra_noise(d):
    return d * (1 + 1e-5 * np.random.default_rng().normal())


_calls = itertools.count()
_kept: list = []
_traces: list = []


def _keep(x):
    _kept.append(x)
    del _kept[:-1]
    return jnp.sin(x), ()


def _odd_trace(res, g):
    if isinstance(g, jax.core.Tracer):
        _traces.append(1)
    return (g * jnp.cos(res[0]) * (2 if len(_traces) % 2 else 1),)


@custom_vmap
def _batched_wrongly(x):
    return jnp.cos(x)


@_batched_wrongly.def_vmap
def _its_batching(axis_size, in_batched, x):
    return jnp.cos(x) * (1 + in_batched[0]), in_batched[0]


def _psum_where_possible(res, g):
    x, w = res
    dw = x.T @ g
    try:
        return g @ w.T, lax.psum(dw, "data")
    except NameError:
        return g @ w.T, dw


def _only_when_low(d, dtype):
    return d * 1.25 if d.dtype == dtype else d


def _running_sum(g):
    """A sum whose every partial sum is rounded to g's dtype."""
    return lax.fori_loop(0, g.shape[0], lambda i, s: s + g[i], jnp.zeros(g.shape[1:], g.dtype))


def _cut(x):
    return lax.stop_gradient(x)


def _two(x, y):
    return x * y, x + jnp.sin(y)


def _affine_reference(x, w):
    return jnp.tanh(x @ w)


def _affine_forward(x, w):
    y = jnp.tanh(x @ w)
    return y, (x, w, y, y * 2, y * 3)


def _affine_backward(res, g):
    x, w, y, _, _ = res
    d = g * (1 - y * y)
    return d @ w.T, x.T @ d


def _affine_wrong(res, g):
    x, w, y, _, _ = res
    d = g * (1 - y)
    return d @ w.T, x.T @ d


_cosine = lambda r, g: (g * jnp.cos(r[0]),)  # noqa: E731

MUTANTS = [
    # The cotangent used non-linearly
    Mutant("g clipped at 1", _sine(lambda g: jnp.clip(g, -1, 1)), rows(9), LINEAR, "x"),
    Mutant("g clipped at a million", _sine(lambda g: jnp.clip(g, -1e6, 1e6)), rows(9), LINEAR, "x"),
    Mutant("g flushed below a millionth", _sine(lambda g: jnp.where(jnp.abs(g) < 1e-6, 0, g)),
           rows(9), LINEAR, "x"),
    Mutant("g rounded to bfloat16",
           _sine(lambda g: g.astype(jnp.bfloat16).astype(g.dtype)), rows(9),
           ("linearity", "numerics", "algebra"), "x"),
    Mutant("g quantised", _sine(lambda g: jnp.round(g * 1024) / 1024), rows(9), LINEAR, "x"),
    Mutant("g absolute", _sine(jnp.abs), rows(9), LINEAR, "x"),
    Mutant("g's sign alone", _sine(jnp.sign), rows(9), LINEAR, "x"),
    Mutant("g taken for a scalar", _sine(lambda g: g[0]), rows(9), ("algebra",), "x"),
    Mutant("g taken for ones", _sine(jnp.ones_like), rows(9), LINEAR, "x"),
    Mutant("g biased", _sine(lambda g: g + 1e-3), rows(9), LINEAR, "x"),
    Mutant("g normalised", _sine(lambda g: g / jnp.sqrt(jnp.sum(g * g) + 1e-12)), rows(9),
           LINEAR, "x"),
    # The contract
    Mutant("float32 for a bfloat16 argument",
           vjp(jnp.sin, lambda r, g: (
               (g * jnp.cos(r[0])).astype(at_least_float32(g.dtype)),)),
           rows(6), ("contract",), "x"),
    Mutant("dw in x's dtype",
           vjp(lambda x, w: x @ w.astype(x.dtype), lambda r, g: (
               g @ r[1].T.astype(g.dtype), r[0].T @ g)), each((4, 3), (3, 2)),
           ("contract",), "w"),
    Mutant("forward's value off",
           vjp(jnp.sin, _cosine, lambda x: (jnp.sin(x) * 1.001, (x,))), rows(6),
           ("contract",), "the output"),
    Mutant("forward's dtype off",
           vjp(jnp.sin, lambda r, g: ((g * jnp.cos(r[0]).astype(g.dtype)).astype(r[0].dtype),),
               lambda x: (jnp.sin(x).astype(at_least_float32(x.dtype)), (x,))),
           rows(6), ("contract",), ""),
    Mutant("garbage for an integer argument",
           vjp(lambda x, ids: x[ids], lambda r, g: (
               jnp.zeros_like(r[0]).at[r[1]].add(g), jnp.ones_like(r[1]))),
           lambda: (normal(5), jnp.array([0, 3, 3])), ("contract",), "ids",
           verdict="WARN", why="jax drops it, so no gradient is wrong"),
    Mutant("second output's cotangent ignored",
           vjp(_two, lambda r, g: (g[0] * r[1], g[0] * r[0] + g[1] * jnp.cos(r[1]))),
           each((4,), (4,)), ("algebra", "contract"), "x"),
    # Edges
    Mutant("norm: nan at zero", vjp(_norm, lambda r, g: (g * r[0] / jnp.sqrt(jnp.sum(r[0] ** 2)),)),
           rows(5), EDGES, "x"),
    Mutant("product: y / x at zero",
           vjp(lambda x: jnp.prod(x), lambda r, g: (g * jnp.prod(r[0]) / r[0],)),
           rows(5), EDGES, "x"),
    Mutant("abs: nan at zero", vjp(jnp.abs, lambda r, g: (g * r[0] / jnp.abs(r[0]),)),
           rows(5), EDGES, "x"),
    Mutant("relu: twice g at zero",
           vjp(lambda x: jnp.maximum(x, 0), lambda r, g: (
               g * jnp.where(r[0] == 0, 2, jnp.where(r[0] > 0, 1, 0)),)), rows(6), EDGES, "x"),
    Mutant("max: every tie gets all of g", vjp(lambda x: jnp.max(x, -1), _every_tie),
           rows(4, 5), EDGES, "x"),
    Mutant("softmax: overflow in the backward",
           vjp(lambda x: jax.nn.softmax(x), _naive_softmax_backward), rows(4, 5), EDGES, "x"),
    Mutant("logsumexp: overflow in the forward",
           vjp(lambda x: jax.nn.logsumexp(x), lambda r, g: (g * jax.nn.softmax(r[0]),),
               _naive_logsumexp_forward), rows(6), EDGES, "the output"),
    Mutant("sigmoid: overflow squared", vjp(lambda x: jax.nn.sigmoid(x), _sigmoid_backward),
           rows(6), EDGES, "x"),
    Mutant("norm: cancellation far from zero", vjp(_unstable_norm, _unstable_norm_backward),
           rows(4, 16), EDGES, "x"),
    Mutant("deviation: 0 / 0 where all are equal", vjp(_deviation, _deviation_backward),
           rows(4, 6), EDGES, "x"),
    Mutant("identity: nothing beyond 50",
           vjp(lambda x: 2 * x, lambda r, g: (jnp.where(jnp.abs(r[0]) < 50, 2 * g, 0),)),
           rows(7), EDGES, "x"),
    Mutant("softmax: nan at a mask of -inf",
           vjp(lambda x: jax.nn.softmax(x), lambda r, g: (
               (y := jax.nn.softmax(r[0])) * (g - jnp.sum(g * y, -1, keepdims=True)) + 0 * r[0],)),
           rows(4, 5), EDGES, "x"),
    Mutant("layer: gamma divided out", vjp(lambda x, gamma: x * gamma, lambda r, g: (
        g * r[1], g * (r[0] * r[1]) / r[1])), lambda: (normal(4, 3), positive(3)),
           ("edges", "contract"), "gamma",
           {"reference": lambda x, gamma: x * gamma}),
    # Shapes
    Mutant("the tail of a block of 4",
           vjp(jnp.sin, lambda r, g: (_whole_blocks(g * jnp.cos(r[0])),)), rows(8, 3), SHAPES, "x"),
    Mutant("the tail of a block of 128",
           vjp(jnp.sin, lambda r, g: (
               _whole_blocks(g * jnp.cos(r[0]), 128) if len(g) > 128 else g * jnp.cos(r[0]),)),
           rows(128), SHAPES, "x"),
    Mutant("a batch of one",
           vjp(_square_mean, lambda r, g: (
               2 * r[0] * g / max(len(r[0]), 2),)), rows(6, 3), SHAPES, "x"),
    Mutant("the batch size written down",
           vjp(_square_mean, lambda r, g: (2 * r[0] * g / 6,)), rows(6, 3), SHAPES, "x"),
    Mutant("an extra leading axis",
           vjp(lambda x: x / x.shape[-2], lambda r, g: (g / r[0].shape[0],)), rows(6, 3), SHAPES,
           "x", verdict="WARN", why="another rank than the one given was not promised"),
    # Transformations
    Mutant("wrong under vmap", vjp(jnp.sin, lambda r, g: (g * _batched_wrongly(r[0]),)), rows(6),
           ("transforms",), "x"),
    Mutant("wrong under jit",
           vjp(jnp.sin, lambda r, g: (
               g * jnp.cos(r[0]) * (2 if isinstance(g, jax.core.Tracer) else 1),)), rows(6),
           ("transforms",), "x"),
    Mutant("raises under jit",
           vjp(jnp.sin, lambda r, g: (jnp.asarray(np.asarray(g) * np.cos(np.asarray(r[0]))),)),
           rows(6), ("transforms", "contract"), ""),
    Mutant("psum once too often", vjp(lambda x, w: x @ w, _psum_where_possible),
           each((4, 3), (3, 2)), ("transforms",), "w"),
    # Calls
    Mutant("every other call doubled",
           vjp(jnp.sin, lambda r, g: (g * jnp.cos(r[0]) * (1 + next(_calls) % 2),)), rows(6),
           ("purity",), "x"),
    Mutant("the residual kept outside", vjp(jnp.sin, lambda r, g: (g * jnp.cos(_kept[-1]),), _keep),
           rows(6), ("purity", "contract", "transforms"), ""),
    Mutant("noise of a hundred-thousandth",
           vjp(jnp.sin, lambda r, g: (_with_extra_noise(g * jnp.cos(r[0])),)), rows(6),
           ("purity",), "x"),
    Mutant("state read while tracing", vjp(jnp.sin, _odd_trace), rows(6),
           ("purity", "transforms", "algebra"), "x"),
    # Second order
    Mutant("residual cut from second order",
           vjp(jnp.sin, lambda r, g: (g * jnp.cos(_cut(r[0])),)), rows(6), ("second order",), "x"),
    Mutant("g cut from second order",
           vjp(jnp.sin, lambda r, g: (_cut(g) * jnp.cos(r[0]),)), rows(6), ("second order",), "g"),
    Mutant("saved slope cut from second order",
           vjp(jnp.tanh, lambda r, g: (g * r,), lambda x: (
               jnp.tanh(x), _cut(1 - jnp.tanh(x) ** 2))),
           rows(6), ("second order",), "x"),
    # Numerics
    Mutant("wrong in bfloat16 only",
           vjp(jnp.sin, lambda r, g: (_only_when_low(g * jnp.cos(r[0]), jnp.bfloat16),)), rows(6),
           ("numerics",), "x"),
    Mutant("wrong in float16 only",
           vjp(jnp.sin, lambda r, g: (_only_when_low(g * jnp.cos(r[0]), jnp.float16),)), rows(6),
           ("numerics",), "x"),
    Mutant("rows summed in bfloat16",
           vjp(lambda x, b: x + b, lambda r, g: (g, _running_sum(g)), None),
           each((4096, 2), (2,)), ("numerics",), "b"),
    Mutant("residual saved in bfloat16",
           vjp(jnp.sin, lambda r, g: (g * jnp.cos(r[0].astype(g.dtype)),),
               lambda x: (jnp.sin(x), (x.astype(jnp.bfloat16),))), rows(6),
           ("numerics", "algebra"), "x"),
    # Rules, whose installer mends types but not mathematics
    Mutant("a rule: tanh's slope without the square",
           Rule(_affine_reference, _affine_forward, _affine_wrong), each((4, 3), (3, 2)),
           ("algebra",), "w"),
    Mutant("a rule: more residuals than its budget",
           Rule(_affine_reference, _affine_forward, _affine_backward, budget=4),
           each((4, 3), (3, 2)), ("residuals",), ""),
]  # fmt: skip
