"""Wrong in the algebra: a factor, a transpose, a sum, a term, a residual, an element."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.checking.making import Mutant, each, normal, positive, rows, vjp

ALGEBRA = ("algebra",)


def _mean_square(x, y):
    return jnp.mean((x - y) ** 2)


def _linear(x, w, b):
    return x @ w + b


def _softmax_jacobian(y, g):
    return y * (g - jnp.sum(g * y, axis=-1, keepdims=True))


def _x_hat(x, eps=1e-5):
    mean = jnp.mean(x, -1, keepdims=True)
    inv_std = lax.rsqrt(jnp.mean((x - mean) ** 2, -1, keepdims=True) + eps)
    return (x - mean) * inv_std, inv_std


def _layer_norm(x, gamma, beta):
    return gamma * _x_hat(x)[0] + beta


def _layer_norm_without_projection(res, g):
    x, gamma, _ = res
    x_hat, inv_std = _x_hat(x)
    d = gamma * g
    dx = inv_std * (d - jnp.mean(d, -1, keepdims=True))
    return dx, jnp.sum(g * x_hat, 0), jnp.sum(g, 0)


def _layer_norm_gamma_from_x(res, g):
    x, gamma, _ = res
    x_hat, inv_std = _x_hat(x)
    d = gamma * g
    inner = jnp.mean(d * x_hat, -1, keepdims=True)
    dx = inv_std * (d - jnp.mean(d, -1, keepdims=True) - x_hat * inner)
    return dx, jnp.sum(g * x, 0), jnp.sum(g, 0)


def _rms_norm(x, gamma):
    return gamma * x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)


def _rms_norm_without_eps(res, g):
    x, gamma = res
    inv = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))
    x_hat, d = x * inv, gamma * g
    dx = inv * (d - x_hat * jnp.mean(d * x_hat, -1, keepdims=True))
    dgamma = jnp.sum(g * x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3), 0)
    return dx, dgamma


def _gelu(x):
    return x * jax.scipy.stats.norm.cdf(x)


def _gelu_by_tanh(res, g):
    return (jax.vjp(lambda x: jax.nn.gelu(x, approximate=True), res[0])[1](g)[0],)


def _cross_entropy(logits, labels):
    z = jax.nn.logsumexp(logits, -1)
    picked = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
    return jnp.mean(z - picked + 1e-4 * z**2)


def _cross_entropy_without_z(res, g):
    logits, labels = res
    d = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return g * d / logits.shape[0], None


def _smoothed(logits, labels):
    n = logits.shape[-1]
    target = 0.9 * jax.nn.one_hot(labels, n, dtype=logits.dtype) + 0.1 / n
    return -jnp.sum(target * jax.nn.log_softmax(logits), -1)


def _smoothing_forgotten(res, g):
    logits, labels = res
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return g[:, None] * (jax.nn.softmax(logits) - hot), None


def _ridge(x, w):
    return jnp.sum((x @ w) ** 2) + 0.5e-3 * jnp.sum(w * w)


def _ridge_lost(res, g):
    x, w = res
    return 2 * g * (x @ w) @ w.T, 2 * g * x.T @ (x @ w)


def _one_element(res, g):
    d = g * jnp.cos(res[0])
    return (d.at[37, 101].multiply(1.01),)


def _labels():
    return normal(4, 6, seed=3), jnp.array([0, 5, 2, 2])


def _attention(q, k, v):
    return jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5) @ v


def _attention_backward(res, g, scaled=True, transposed=True):
    q, k, v = res
    scale = q.shape[-1] ** -0.5
    p = jax.nn.softmax(q @ k.T * scale)
    ds = _softmax_jacobian(p, g @ v.T)
    dv = p.T @ g if transposed else p @ g
    return (ds @ k) * (scale if scaled else 1), scale * ds.T @ q, dv


def _pool(x):
    return jnp.max(x.reshape(x.shape[0], -1, 2), -1)


def _pool_to_the_other(res, g):
    pairs = res[0].reshape(res[0].shape[0], -1, 2)
    least = jax.nn.one_hot(jnp.argmin(pairs, -1), 2, dtype=g.dtype)
    return ((least * g[..., None]).reshape(res[0].shape),)


def _embedding(tokens, table):
    return table[tokens]


def _gates(x, c):
    i, f, o = jnp.split(x, 3, -1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)


def _cell(x, c):
    i, f, o = _gates(x, c)
    new = f * c + i * (1 - i)
    return o * jnp.tanh(new), new


def _cell_backward(res, g, previous=True, carry=True):
    x, c = res
    i, f, o = _gates(x, c)
    new = f * c + i * (1 - i)
    dh, dc = g
    dnew = dh * o * (1 - jnp.tanh(new) ** 2) + (dc if carry else 0)
    di = dnew * (1 - 2 * i) * i * (1 - i)
    df = dnew * (c if previous else new) * f * (1 - f)
    do = dh * jnp.tanh(new) * o * (1 - o)
    return jnp.concatenate([di, df, do], -1), dnew * f


def _dense(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def _dense_without_bias(res, g):
    params, x = res
    d = g * (1 - _dense(params, x) ** 2)
    return {"w": x.T @ d, "b": None}, d @ params["w"].T


def _params():
    return {"w": normal(3, 4), "b": normal(4, seed=1)}, normal(5, 3, seed=2)


def _convolve(x, kernel):
    return jnp.convolve(x, kernel, mode="valid")


def _convolve_unflipped(res, g):
    x, kernel = res
    return jnp.convolve(g, kernel, mode="full"), jnp.convolve(x[::-1], g, mode="valid")


def _dropout(x, key):
    return jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0)


def _dropout_unscaled(res, g):
    return jnp.where(jax.random.bernoulli(res[1], 0.8, g.shape), g, 0), None


def _segments(x, ids):
    return jax.ops.segment_sum(x, ids, num_segments=3)


def _tempered(logits, temperature):
    return jax.nn.logsumexp(logits / temperature, -1)


def _tempered_wrong_sign(res, g):
    logits, t = res
    p = jax.nn.softmax(logits / t) * g[:, None]
    return p / t, jnp.sum(p * logits) / t**2


def _cosine(x, y):
    return jnp.sum(x * y) / (jnp.linalg.norm(x) * jnp.linalg.norm(y))


def _cosine_unprojected(res, g):
    x, y = res
    size = jnp.linalg.norm(x) * jnp.linalg.norm(y)
    return g * y / size, g * (x / size - _cosine(x, y) * y / jnp.sum(y * y))


def _newton_root(a):
    """The square root by iteration: no reverse mode goes through a while loop."""
    return lax.while_loop(
        lambda x: jnp.max(jnp.abs(x * x - a)) > 1e-6 * jnp.max(a),
        lambda x: 0.5 * (x + a / x),
        jnp.ones_like(a) + a,
    )


def _scaled_root(a, s):
    return s * _newton_root(a)


def _with_activation(x, w):
    return jnp.tanh(_halved(x) @ w)


_halved = vjp(jnp.sin, lambda res, g: (0.5 * g * jnp.cos(res[0]),))
_linear_args = each((5, 3), (3, 4), (4,))
_quiet = {"intended_zero": ("labels",)}

MUTANTS = [
    Mutant("mean square: factor 2 missing",
           vjp(_mean_square, lambda r, g: (g * (r[0] - r[1]) / r[0].size,
                                           2 * g * (r[1] - r[0]) / r[0].size)),
           each((4, 3), (4, 3)), ALGEBRA, "x"),
    Mutant("mean square: sum for mean",
           vjp(_mean_square, lambda r, g: (2 * g * (r[0] - r[1]) / r[0].size,
                                           2 * g * (r[1] - r[0]))),
           each((4, 3), (4, 3)), ALGEBRA, "y"),
    Mutant("linear: w not transposed",
           vjp(_linear, lambda r, g: (g @ r[1], r[0].T @ g, jnp.sum(g, 0))),
           each((5, 4), (4, 4), (4,)), ALGEBRA, "x"),
    Mutant("linear: dw transposed",
           vjp(_linear, lambda r, g: (g @ r[1].T, g.T @ r[0], jnp.sum(g, 0))),
           each((5, 4), (4, 4), (4,)), ALGEBRA, "w"),
    Mutant("linear: bias by mean",
           vjp(_linear, lambda r, g: (g @ r[1].T, r[0].T @ g, jnp.mean(g, 0))),
           _linear_args, ALGEBRA, "b"),
    Mutant("softmax: projection missing",
           vjp(lambda x: jax.nn.softmax(x), lambda r, g: (jax.nn.softmax(r[0]) * g,)),
           rows(4, 5), ALGEBRA, "x"),
    Mutant("softmax: summed over the wrong axis",
           vjp(lambda x: jax.nn.softmax(x, -1), lambda r, g: (
               jax.nn.softmax(r[0], -1)
               * (g - jnp.sum(g * jax.nn.softmax(r[0], -1), 0, keepdims=True)),)),
           rows(4, 5), ALGEBRA, "x"),
    Mutant("layer norm: projection on x_hat missing",
           vjp(_layer_norm, _layer_norm_without_projection),
           each((5, 8), (8,), (8,)), ALGEBRA, "x"),
    Mutant("layer norm: gamma from x", vjp(_layer_norm, _layer_norm_gamma_from_x),
           each((5, 8), (8,), (8,)), ALGEBRA, "gamma"),
    Mutant("rms norm: eps missing in backward", vjp(_rms_norm, _rms_norm_without_eps),
           each((5, 8), (8,)), ALGEBRA, "x"),
    Mutant("gelu: gradient of the tanh form", vjp(_gelu, _gelu_by_tanh), rows(6, 5), ALGEBRA, "x"),
    Mutant("cross entropy: z-loss lost", vjp(_cross_entropy, _cross_entropy_without_z),
           _labels, ALGEBRA, "logits"),
    Mutant("cross entropy: smoothing forgotten", vjp(_smoothed, _smoothing_forgotten),
           _labels, ALGEBRA, "logits"),
    Mutant("ridge lost", vjp(_ridge, _ridge_lost), each((5, 3), (3, 2)), ALGEBRA, "w"),
    Mutant("one element of 16384 off by a hundredth", vjp(jnp.sin, _one_element),
           rows(64, 256), ALGEBRA, "x"),
    Mutant("tanh: residual is x", vjp(jnp.tanh, lambda r, g: (g * (1 - r[0] ** 2),)),
           rows(7), ALGEBRA, "x"),
    Mutant("sigmoid: Jacobian missing", vjp(jax.nn.sigmoid, lambda r, g: (g,)),
           rows(7), ALGEBRA, "x"),
    Mutant("cumsum: not reversed", vjp(lambda x: jnp.cumsum(x), lambda r, g: (jnp.cumsum(g),)),
           rows(7), ALGEBRA, "x"),
    Mutant("attention: scale missing in dq",
           vjp(_attention, lambda r, g: _attention_backward(r, g, scaled=False)),
           each((4, 8), (5, 8), (5, 3)), ALGEBRA, "q"),
    Mutant("attention: p not transposed",
           vjp(_attention, lambda r, g: _attention_backward(r, g, transposed=False)),
           each((5, 8), (5, 8), (5, 3)), ALGEBRA, "v"),
    Mutant("logsumexp: g ignored",
           vjp(lambda x: jax.nn.logsumexp(x), lambda r, g: (jax.nn.softmax(r[0]),)),
           rows(6), ("algebra", "linearity"), "x"),
    Mutant("max pool: routed to the least", vjp(_pool, _pool_to_the_other),
           rows(3, 8), ALGEBRA, "x"),
    Mutant("embedding: set for add",
           vjp(_embedding, lambda r, g: (None, jnp.zeros_like(r[1]).at[r[0]].set(g))),
           lambda: (jnp.array([1, 3, 1, 0]), normal(5, 2)), ALGEBRA, "table"),
    Mutant("cell: new state for the old in the forget gate",
           vjp(_cell, lambda r, g: _cell_backward(r, g, previous=False)),
           each((4, 9), (4, 3)), ALGEBRA, "x"),
    Mutant("cell: cotangent of the state dropped",
           vjp(_cell, lambda r, g: _cell_backward(r, g, carry=False)),
           each((4, 9), (4, 3)), ("algebra", "contract"), "c"),
    Mutant("dense: None for the bias of a tree", vjp(_dense, _dense_without_bias),
           _params, ALGEBRA, "params['b']"),
    Mutant("scale: None for a factor", vjp(lambda x, scale: x * scale, lambda r, g: (
        g * r[1], None)), lambda: (normal(4), jnp.float32(0.7)), ALGEBRA, "scale"),
    Mutant("convolution: kernel not flipped", vjp(_convolve, _convolve_unflipped),
           each((9,), (3,)), ALGEBRA, "x"),
    Mutant("variance: n - 1 for n",
           vjp(lambda x: jnp.var(x), lambda r, g: (
               2 * g * (r[0] - jnp.mean(r[0])) / (r[0].size - 1),)), rows(9), ALGEBRA, "x"),
    Mutant("dropout: scale missing", vjp(_dropout, _dropout_unscaled),
           lambda: (normal(8, 5), jax.random.key(3)), ALGEBRA, "x"),
    Mutant("segment sum: ids reversed",
           vjp(_segments, lambda r, g: (g[r[1][::-1]], None)),
           lambda: (normal(5, 2), jnp.array([0, 0, 1, 2, 2])), ALGEBRA, "x"),
    Mutant("temperature: wrong sign", vjp(_tempered, _tempered_wrong_sign),
           lambda: (normal(4, 5), jnp.float32(0.8)), ALGEBRA, "temperature"),
    Mutant("product: cotangents swapped",
           vjp(lambda x, y: x * y, lambda r, g: (g * r[0], g * r[1])), each((4,), (4,)),
           ALGEBRA, "x"),
    Mutant("solve: adjoint not transposed",
           vjp(lambda a, b: jnp.linalg.solve(a, b), lambda r, g: (
               -jnp.outer(jnp.linalg.solve(r[0].T, g), jnp.linalg.solve(*r)),
               jnp.linalg.solve(r[0], g))),
           lambda: (normal(4, 4) + 3 * jnp.eye(4, dtype=jnp.float32), normal(4, seed=1)),
           ALGEBRA, "b"),
    Mutant("cosine similarity: unprojected", vjp(_cosine, _cosine_unprojected),
           each((6,), (6,)), ALGEBRA, "x"),
    Mutant("weights' own reference: gain lost", vjp(lambda x, w: x * w, lambda r, g: (
        g * r[1], g * r[0])), each((4, 3), (4, 3)), ALGEBRA, "w",
           {"reference": lambda x, w: x * w + 1e-3 * jnp.sin(w)}),
    Mutant("no reference: root by iteration, a factor",
           vjp(_newton_root, lambda r, g: (g / _newton_root(r[0]),)),
           lambda: (positive(4),), ("algebra", "finite differences"), "a"),
    Mutant("no reference: zero for the scale",
           vjp(_scaled_root, lambda r, g: (r[1] * g / (2 * _newton_root(r[0])),
                                           jnp.zeros_like(r[1]))),
           lambda: (positive(4), jnp.float32(1.3)), ("algebra", "finite differences"), "s"),
    Mutant("no reference: inside another function", _with_activation,
           each((4, 3), (3, 2)), ALGEBRA, "x"),
]  # fmt: skip
