"""Wrong where nobody looks: a branch, a row of many, a dtype of labels, two axes of one length."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprop import Rule
from jaxprop.precision import up
from tests.checking.making import Mutant, each, normal, positive, rows, vjp

ALGEBRA = ("algebra",)
EDGES = ("edges",)
SHAPES = ("shapes",)


def _sine(change):
    """The sine; what its backward gives is changed."""
    return vjp(jnp.sin, lambda r, g: (change(g * jnp.cos(r[0]), r[0], g),))


def _matmul(x, w):
    return x @ w


def _untransposed_if_square(res, g):
    x, w = res
    return g @ (w if w.shape[0] == w.shape[1] else w.T), x.T @ g


def _running_sum(g):
    """Every partial sum rounded to g's dtype."""
    return lax.fori_loop(0, g.shape[0], lambda i, s: s + g[i], jnp.zeros(g.shape[1:], g.dtype))


def _one_column_coarsely(res, g):
    """The last column's sum alone is taken in g's own dtype."""
    total = jnp.sum(up(g), 0).astype(g.dtype)
    return g, total.at[-1].set(_running_sum(g[:, -1:])[0])


def _both_tied(res, g):
    x, y = res
    return jnp.where(x >= y, g, 0), jnp.where(y >= x, g, 0)


def _masked_log(x, mask):
    return jnp.where(mask, jnp.log(jnp.where(mask, x, 1)), 0)


def _masked_softmax(x, mask):
    top = jnp.max(jnp.where(mask, x, -jnp.inf), -1, keepdims=True)
    top = lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    e = jnp.where(mask, jnp.exp(jnp.where(mask, x - top, 0)), 0)
    total = jnp.sum(e, -1, keepdims=True)
    return e / jnp.where(total == 0, 1, total)


def _masked_softmax_backward(res, g):
    x, mask = res
    y = jax.nn.softmax(jnp.where(mask, x, -jnp.inf))
    return y * (g - jnp.sum(g * y, -1, keepdims=True)), None


def _cross_entropy(logits, labels):
    logp = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logp, labels[:, None], -1)[:, 0]


def _cross_entropy_backward(dtype, only=None):
    """Right, as long as the labels fit this dtype; or wrong for labels of one dtype only."""

    def backward(res, g):
        logits, labels = res
        narrow = labels.astype(dtype).astype(labels.dtype)
        hot = jax.nn.one_hot(narrow, logits.shape[-1], dtype=logits.dtype)
        scale = 2 if labels.dtype == only else 1
        return scale * g[:, None] * (jax.nn.softmax(logits) - hot), None

    return backward


def _whole_blocks(d, size):
    whole = d.shape[0] // size * size
    return d.at[whole:].set(0) if whole else d


def _dropout(x, rate, key):
    kept = jax.random.uniform(key, x.shape) >= rate
    return jnp.where(kept, x / jnp.where(rate < 1, 1 - rate, 1), 0)


def _dropout_backward(res, g):
    x, rate, key = res
    kept = (jax.random.uniform(key, g.shape) >= rate).astype(g.dtype)
    return kept * g / (1 - rate), jnp.sum(jnp.where(kept > 0, g * x, 0)) / (1 - rate) ** 2, None


@custom_vmap
def _twice_batched_wrongly(x):
    return jnp.cos(x)


@_twice_batched_wrongly.def_vmap
def _its_batching(axis_size, in_batched, x):
    return _batched_wrongly(x), in_batched[0]


@custom_vmap
def _batched_wrongly(x):
    return jnp.cos(x)


@_batched_wrongly.def_vmap
def _wrong_batching(axis_size, in_batched, x):
    return 2 * jnp.cos(x), in_batched[0]


_by_shape: dict = {}


def _slope_kept_by_shape(res, g):
    """The slope of the first concrete argument of each shape, taken for all of them."""
    (x,) = res
    if isinstance(x, jax.core.Tracer):
        return (g * jnp.cos(x),)
    return (g * _by_shape.setdefault((x.shape, x.dtype), jnp.cos(x)),)


def _coarse_primal():
    """Right under differentiation; off where nobody differentiates, in bfloat16."""
    f = jax.custom_vjp(lambda x: jnp.sin(x) * (1.25 if x.dtype == jnp.bfloat16 else 1))
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
    return f


def _huber_reference(x, delta=1.0):
    size = jnp.abs(x)
    return jnp.where(size <= delta, x * x / 2, delta * (size - delta / 2))


def _huber_forward(x, delta):
    return _huber_reference(x, delta), (x, delta)


def _huber_without_delta(res, g):
    x, delta = res
    return g * jnp.clip(x, -delta, delta), None


def _x_minus_arctan(x):
    return x - jnp.arctan(x)


def _add_and_bias(x, b):
    return jnp.tanh(x) + b


def _bias_of_an_even_batch(res, g):
    """The rows summed by pairs: an odd row out is dropped."""
    x, _ = res
    pairs = len(g) // 2 * 2
    db = jnp.sum(g[:pairs:2] + g[1:pairs:2], 0)
    return g * (1 - jnp.tanh(x) ** 2), db


def _scan_of_tanh(x, w):
    return lax.scan(lambda h, a: (jnp.tanh(h * w + a),) * 2, jnp.zeros_like(w), x)[1]


def _scan_without_last_step(res, g):
    """The reverse scan starts one step too early: the last step's own term is lost in dw."""
    x, w = res
    hs = _scan_of_tanh(x, w)
    before = jnp.concatenate([jnp.zeros_like(w)[None], hs[:-1]])

    def step(carry, at):
        dh, dw = carry
        dy, h, previous, last = at
        da = (dy + dh) * (1 - h * h)
        return (da * w, dw + jnp.where(last, 0, da * previous)), da

    last = jnp.arange(len(x)) == len(x) - 1
    (_, dw), dx = lax.scan(step, (jnp.zeros_like(w),) * 2, (g, hs, before, last), reverse=True)
    return dx, dw


def _mask():
    return jnp.array([[True, False, True, True], [True, True, False, False], [True] * 4])


MUTANTS = [
    Mutant("half where g is below -1e5",
           _sine(lambda d, x, g: jnp.where(g < -1e5, d / 2, d)), rows(9), ("linearity",), "x"),
    Mutant("one row of 1500 off by a ten-thousandth",
           _sine(lambda d, x, g: d.at[1234].multiply(1.0001)), rows(1500, 2), ALGEBRA, "x"),
    Mutant("off by a millionth in float64",
           _sine(lambda d, x, g: d * 1.000001 if d.dtype == jnp.float64 else d), rows(9),
           ALGEBRA, "x"),
    Mutant("off by a billionth", _sine(lambda d, x, g: d * (1 + 1e-9)), rows(9), ALGEBRA, "x"),
    Mutant("a square w not transposed", vjp(_matmul, _untransposed_if_square),
           each((5, 3), (3, 4)), SHAPES, "x"),
    Mutant("one column summed in bfloat16", vjp(lambda x, b: x + b, _one_column_coarsely),
           each((4096, 3), (3,)), ("numerics",), "b"),
    Mutant("beyond -30 the sign is lost",
           _sine(lambda d, x, g: jnp.where(x < -30, -d, d)), rows(9), EDGES, "x"),
    Mutant("maximum: both of a tie get all of g", vjp(lambda x, y: jnp.maximum(x, y), _both_tied),
           each((5,), (5,)), EDGES, "x"),
    Mutant("clip: twice g at its ends", vjp(lambda x: jnp.clip(x, -1, 1), lambda r, g: (
        jnp.where(jnp.abs(r[0]) == 1, 2 * g, jnp.where(jnp.abs(r[0]) < 1, g, 0)),)),
        rows(9), EDGES, "x"),
    Mutant("relu6: minus g at 6", vjp(lambda x: jnp.clip(x, 0, 6), lambda r, g: (
        jnp.where(r[0] == 6, -g, jnp.where((r[0] > 0) & (r[0] < 6), g, 0)),)),
        lambda: (normal(9).at[0].set(6.0),), ("algebra", "edges"), "x"),
    Mutant("masked log: nan under the mask",
           vjp(_masked_log, lambda r, g: (g * r[1].astype(g.dtype) / r[0], None)),
           lambda: (positive(4), jnp.array([True, False, True, True])), EDGES, "x"),
    Mutant("masked softmax: nan in a row masked whole",
           vjp(_masked_softmax, _masked_softmax_backward),
           lambda: (normal(3, 4), _mask()), EDGES, "x"),
    Mutant("labels beyond 127 wrap", vjp(_cross_entropy, _cross_entropy_backward(jnp.int8)),
           lambda: (normal(4, 200), jnp.array([0, 5, 100, 3])), EDGES, "logits"),
    Mutant("twice for labels of int64",
           vjp(_cross_entropy, _cross_entropy_backward(jnp.int32, jnp.int64)),
           lambda: (normal(4, 6), jnp.array([0, 5, 1, 3])), ("contract", "algebra"), "logits"),
    Mutant("embedding: set for add, no token twice",
           vjp(lambda tokens, table: table[tokens], lambda r, g: (
               None, jnp.zeros_like(r[1]).at[r[0]].set(g))),
           lambda: (jnp.array([1, 3, 0]), normal(5, 2)), ("edges", "shapes"), "table"),
    Mutant("segment sum: ids taken for sorted",
           vjp(lambda x, ids: jax.ops.segment_sum(x, ids, num_segments=3), lambda r, g: (
               g[jnp.sort(r[1])], None)),
           lambda: (normal(5, 2), jnp.array([0, 0, 1, 2, 2])), ("edges", "shapes"), "x"),
    Mutant("the tail of a block of 256",
           _sine(lambda d, x, g: _whole_blocks(d, 256)), rows(512, 2), SHAPES, "x"),
    Mutant("an odd row out", vjp(_add_and_bias, _bias_of_an_even_batch), each((4, 3), (3,)),
           SHAPES, "b"),
    Mutant("a scale's sign lost", vjp(lambda x, scale: x * scale, lambda r, g: (
        g * jnp.abs(r[1]), jnp.sum(g * r[0]))), lambda: (normal(5), jnp.float32(0.7)),
        EDGES, "x", verdict="WARN", why="only a positive scale was given"),
    Mutant("dropout: 0 / 0 at a rate of 1", vjp(_dropout, _dropout_backward),
           lambda: (normal(8, 5), jnp.float32(0.2), jax.random.key(1)), EDGES, "x"),
    Mutant("wrong under vmap of vmap",
           vjp(jnp.sin, lambda r, g: (g * _twice_batched_wrongly(r[0]),)), rows(6),
           ("transforms",), "x"),
    Mutant("the slope kept by shape", vjp(jnp.sin, _slope_kept_by_shape), rows(6),
           ("purity", "algebra", "transforms"), "x"),
    Mutant("a rule: None for a defaulted argument",
           Rule(_huber_reference, _huber_forward, _huber_without_delta),
           lambda: (normal(6, scale=3.0),),
           ("algebra", "contract"), "delta"),
    Mutant("overflow at 300 in float16",
           vjp(_x_minus_arctan, lambda r, g: (g * (r[0] * r[0]) / (1 + r[0] * r[0]),)), rows(6),
           EDGES, "x"),
    Mutant("not differentiated, wrong in bfloat16", _coarse_primal(), rows(6),
           ("contract", "numerics"), "the output"),
    Mutant("scan: the last step missing in dw", vjp(_scan_of_tanh, _scan_without_last_step),
           each((4, 3), (3,)), ALGEBRA, "w"),
]  # fmt: skip
