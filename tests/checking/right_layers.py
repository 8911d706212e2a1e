"""Right: what networks are made of, with the subgradients, masks and statistics people choose."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import matmul, up
from tests.checking.making import Right, each, normal, positive, rows, vjp


def _row_mean(x):
    return jnp.mean(x, -1, keepdims=True)


def _relu(kink):
    """relu, with this subgradient at zero."""
    return vjp(
        lambda x: jnp.maximum(x, 0),
        lambda r, g: (jnp.where(r[0] > 0, g, jnp.where(r[0] == 0, kink * g, 0)),),
    )


def _huber(x, delta):
    size = jnp.abs(x)
    return jnp.where(size <= delta, x * x / 2, delta * (size - delta / 2))


def _huber_backward(res, g):
    x, delta = res
    near = jnp.abs(x) <= delta
    ddelta = jnp.where(near, 0, jnp.abs(x) - delta)
    return g * jnp.where(near, x, delta * jnp.sign(x)), jnp.sum(g * ddelta)


def _row_max(x):
    return jnp.max(x, -1)


def _to_the_first(res, g):
    (x,) = res
    return (jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1], dtype=g.dtype) * g[..., None],)


def _to_every_tie(res, g):
    (x,) = res
    top = (x == jnp.max(x, -1, keepdims=True)).astype(g.dtype)
    return (top * (g / jnp.sum(top, -1))[..., None],)


def _windows(x):
    """The 2 x 2 windows of images, each on the last axis; odd sizes are refused."""
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"max_pool: height and width must be even, got {height} x {width}.")
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(*x.shape[:4], 4)


def _max_pool(x):
    return jnp.max(_windows(x), -1)


def _max_pool_backward(res, g):
    (x,) = res
    (dwindows,) = _to_the_first((_windows(x),), g)
    dx = dwindows.reshape(*g.shape, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return (dx.reshape(x.shape),)


def _normalised(x, eps=1e-5):
    x = up(x)
    inv_std = lax.rsqrt(jnp.mean((x - _row_mean(x)) ** 2, -1, keepdims=True) + eps)
    return (x - _row_mean(x)) * inv_std, inv_std


def _layer_norm(x, gamma, beta):
    return (up(gamma) * _normalised(x)[0] + up(beta)).astype(x.dtype)


def _layer_norm_backward(res, g):
    x, gamma, beta = res
    x_hat, inv_std = _normalised(x)
    g = up(g)
    d = up(gamma) * g
    dx = inv_std * (d - _row_mean(d) - x_hat * _row_mean(d * x_hat))
    over = tuple(range(g.ndim - 1))
    dgamma, dbeta = jnp.sum(g * x_hat, over), jnp.sum(g, over)
    return dx.astype(x.dtype), dgamma.astype(gamma.dtype), dbeta.astype(beta.dtype)


def _rms_norm(x, gamma):
    return gamma * x * lax.rsqrt(_row_mean(x * x) + 1e-6)


def _rms_norm_backward(res, g):
    x, gamma = res
    inv = lax.rsqrt(_row_mean(x * x) + 1e-6)
    x_hat, d = x * inv, gamma * g
    over = tuple(range(g.ndim - 1))
    return inv * (d - x_hat * _row_mean(d * x_hat)), jnp.sum(g * x_hat, over)


def _batch_statistics(x):
    mean = jnp.mean(x, 0)
    var = jnp.mean((x - mean) ** 2, 0)
    return mean, var, lax.rsqrt(var + 1e-3)


def _batch_norm(x, gamma, beta):
    mean, var, inv_std = _batch_statistics(x)
    return gamma * (x - mean) * inv_std + beta, mean, var


def _batch_norm_backward(res, g):
    x, gamma, _ = res
    dy, dmean, dvar = g
    mean, _, inv_std = _batch_statistics(x)
    x_hat, d = (x - mean) * inv_std, gamma * dy
    dx = inv_std * (d - jnp.mean(d, 0) - x_hat * jnp.mean(d * x_hat, 0))
    dx = dx + (dmean + 2 * (x - mean) * dvar) / x.shape[0]
    return dx, jnp.sum(dy * x_hat, 0), jnp.sum(dy, 0)


def _weight_norm(v, gain):
    return gain * v / jnp.linalg.norm(v, axis=0)


def _weight_norm_backward(res, g):
    v, gain = res
    size = jnp.linalg.norm(v, axis=0)
    unit = v / size
    along = jnp.sum(g * unit, 0)
    return gain / size * (g - unit * along), along


def _softmax_backward(y, g):
    return y * (g - jnp.sum(g * y, -1, keepdims=True))


def _masked_softmax(x, mask):
    """Zeros where the mask is False, in rows that are masked whole, too."""
    top = jnp.max(jnp.where(mask, x, -jnp.inf), -1, keepdims=True)
    top = lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    e = jnp.where(mask, jnp.exp(jnp.where(mask, x - top, 0)), 0)
    total = jnp.sum(e, -1, keepdims=True)
    return e / jnp.where(total == 0, 1, total)


def _scores():
    mask = jnp.array([[True, False, True, True], [False] * 4, [True] * 4])
    return normal(3, 4), mask


def _masked_by_infinity():
    return (normal(4, 5).at[0, 1].set(-jnp.inf).at[2, 2:].set(-jnp.inf),)


def _logsumexp(x):
    return jax.nn.logsumexp(x, -1)


def _logsumexp_backward(res, g):
    """exp(x - y), with 0 for -inf and 1 for inf, where x - y is nan."""
    (x,) = res
    y = _logsumexp(x)[..., None]
    p = jnp.where(x == y, 1, jnp.exp(x - y))
    return (g[..., None] * jnp.where(x == -jnp.inf, 0, p),)


def _weights(q, k, scale):
    scores = jnp.where(jnp.tril(jnp.ones((len(q), len(k)), bool)), scale * (q @ k.T), -jnp.inf)
    return jax.nn.softmax(scores)


def _attention(q, k, v, scale):
    """Causal attention of one head."""
    return _weights(q, k, scale) @ v


def _attention_backward(res, g):
    q, k, v, scale = res
    p = _weights(q, k, scale)
    ds = _softmax_backward(p, g @ v.T)
    return scale * ds @ k, scale * ds.T @ q, p.T @ g, jnp.sum(ds * (q @ k.T))


def _cross_entropy(logits, labels):
    """The mean over the labels that are not negative."""
    kept = labels >= 0
    index = jnp.where(kept, labels, 0)[:, None]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), index, -1)[:, 0]
    return -jnp.sum(jnp.where(kept, picked, 0)) / jnp.maximum(jnp.sum(kept), 1).astype(logits.dtype)


def _cross_entropy_backward(res, g):
    logits, labels = res
    kept = labels >= 0
    d = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    count = jnp.maximum(jnp.sum(kept), 1).astype(logits.dtype)
    return jnp.where(kept[:, None], g * d / count, 0), None


def _loss_in_float32(logits, labels):
    """A float32 loss of logits that may be coarser."""
    logp = jax.nn.log_softmax(up(logits))
    return -jnp.mean(jnp.take_along_axis(logp, labels[:, None], -1))


def _loss_in_float32_backward(res, g):
    logits, labels = res
    p = jax.nn.softmax(up(logits))
    d = p - jax.nn.one_hot(labels, logits.shape[-1], dtype=p.dtype)
    return (g * d / logits.shape[0]).astype(logits.dtype), None


def _smoothed(logits, labels):
    return -jnp.sum(_smooth(logits, labels) * jax.nn.log_softmax(logits), -1)


def _smooth(logits, labels):
    classes = logits.shape[-1]
    return 0.9 * jax.nn.one_hot(labels, classes, dtype=logits.dtype) + 0.1 / classes


def _soft_cross_entropy(logits, targets):
    return -jnp.sum(targets * jax.nn.log_softmax(logits), -1)


def _kl(p_logits, q_logits):
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def _kl_backward(res, g):
    log_p, log_q = map(jax.nn.log_softmax, res)
    p, q, g = jnp.exp(log_p), jnp.exp(log_q), g[..., None]
    return g * _softmax_backward(p, log_p - log_q), g * (q - p)


def _binary_cross_entropy(x, y):
    return jnp.maximum(x, 0) - x * y + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _dropout(x, key):
    return jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0)


def _embedding(tokens, table):
    return table[tokens]


def _gelu(x):
    return (up(x) * jax.scipy.stats.norm.cdf(up(x))).astype(x.dtype)


def _gelu_backward(res, g):
    x = up(res[0])
    slope = jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x)
    return ((up(g) * slope).astype(g.dtype),)


def _swiglu(x, gate):
    return x * gate * jax.nn.sigmoid(gate)


def _swiglu_backward(res, g):
    x, gate = res
    s = jax.nn.sigmoid(gate)
    return g * gate * s, g * x * s * (1 + gate * (1 - s))


def _rotary(x, positions):
    half = x.shape[-1] // 2
    if x.shape[-1] % 2:
        raise ValueError(f"rotary: the last axis must be even, got {x.shape[-1]}.")
    return _rotated(x, positions, half, 1)


def _rotated(x, positions, half, direction):
    rates = 10.0 ** -(jnp.arange(half, dtype=x.dtype) / max(half, 1))
    angles = direction * positions.astype(x.dtype)[:, None] * rates
    a, b = x[..., :half], x[..., half:]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def _add_bias(x, b):
    return x + b


def _matmul(x, w):
    return x @ w


def _matmul_backward(res, g):
    """The rows summed in float32 at least."""
    x, w = res
    return g @ w.T, matmul(x.T, g).astype(w.dtype)


def _labelled(*labels):
    return lambda: (normal(len(labels), 6), jnp.array(labels))


def _in_bfloat16(*shapes):
    return lambda: tuple(normal(*s, seed=i, dtype=jnp.bfloat16) for i, s in enumerate(shapes))


_softmax = vjp(
    lambda x: jax.nn.softmax(x), lambda r, g: (_softmax_backward(jax.nn.softmax(r[0]), g),)
)
_tanh = vjp(jnp.tanh, lambda y, g: (g * (1 - y) * (1 + y),), lambda x: (jnp.tanh(x), jnp.tanh(x)))
_drop = vjp(_dropout, lambda r, g: (_dropout(g, r[1]), None))

RIGHT = [
    # Kinks and ties: each of these subgradients is one
    Right("relu: 0 at zero", _relu(0.0), rows(6, 3)),
    Right("relu: a half at zero", _relu(0.5), rows(6, 3)),
    Right("relu: 1 at zero, checked at zeros", _relu(1.0), lambda: (normal(6, 3).at[::2].set(0),)),
    Right("abs: 1 at zero", vjp(jnp.abs, lambda r, g: (jnp.where(r[0] >= 0, g, -g),)), rows(7)),
    Right("clip: 1 at its ends", vjp(lambda x: jnp.clip(x, -1, 1), lambda r, g: (
        jnp.where(jnp.abs(r[0]) <= 1, g, 0),)), lambda: (normal(7).at[:2].set(1.0),)),
    Right("huber", vjp(_huber, _huber_backward), lambda: (normal(4, 3), jnp.float32(0.7))),
    Right("maximum: ties to x", vjp(lambda x, y: jnp.maximum(x, y), lambda r, g: (
        jnp.where(r[0] >= r[1], g, 0), jnp.where(r[0] >= r[1], 0, g))), each((5,), (5,))),
    Right("max: ties to the first", vjp(_row_max, _to_the_first), rows(4, 5)),
    Right("max: ties split", vjp(_row_max, _to_every_tie), rows(4, 5)),
    Right("max pool that refuses odd sizes", vjp(_max_pool, _max_pool_backward), rows(2, 4, 6, 3)),
    # Normalisation
    Right("layer norm, a constant row", vjp(_layer_norm, _layer_norm_backward),
          lambda: (normal(5, 8).at[2].set(3.0), normal(8, seed=1), normal(8, seed=2))),
    Right("rms norm", vjp(_rms_norm, _rms_norm_backward), each((5, 8), (8,))),
    Right("batch norm with its statistics", vjp(_batch_norm, _batch_norm_backward),
          each((6, 3), (3,), (3,))),
    Right("weight norm", vjp(_weight_norm, _weight_norm_backward), each((5, 3), (3,))),
    # Softmax and attention
    Right("softmax", _softmax, rows(4, 5)),
    Right("softmax of x100 inputs", _softmax, lambda: (normal(4, 5, scale=100.0),)),
    Right("softmax with -inf for a mask", _softmax, _masked_by_infinity),
    Right("masked softmax, a row masked whole", vjp(_masked_softmax, lambda r, g: (
        _softmax_backward(_masked_softmax(*r), g), None)), _scores),
    Right("logsumexp", vjp(_logsumexp, _logsumexp_backward), rows(4, 5)),
    Right("causal attention", vjp(_attention, _attention_backward),
          lambda: (normal(5, 4), normal(5, 4, seed=1), normal(5, 3, seed=2), jnp.float32(0.5))),
    Right("rotary with integer positions", vjp(_rotary, lambda r, g: (
        _rotated(g, r[1], g.shape[-1] // 2, -1), None)),
        lambda: (normal(5, 6), jnp.array([0, 1, 2, 3, 7]))),
    # Losses
    Right("cross entropy with ignored labels", vjp(_cross_entropy, _cross_entropy_backward),
          _labelled(0, -1, 5, 2, -1)),
    Right("cross entropy in float32", vjp(_loss_in_float32, _loss_in_float32_backward),
          _labelled(0, 3, 5, 2)),
    Right("label smoothing", vjp(_smoothed, lambda r, g: (
        g[:, None] * (jax.nn.softmax(r[0]) - _smooth(*r)), None)), _labelled(1, 0, 5)),
    Right("cross entropy of targets that sum to one", vjp(_soft_cross_entropy, lambda r, g: (
        g[..., None] * (jax.nn.softmax(r[0]) - r[1]), None)),
        lambda: (normal(4, 5), jax.nn.softmax(normal(4, 5, seed=1))),
        {"intended_zero": ("targets",)}),
    Right("KL divergence of logits", vjp(_kl, _kl_backward), each((4, 5), (4, 5))),
    Right("binary cross entropy", vjp(_binary_cross_entropy, lambda r, g: (
        g * (jax.nn.sigmoid(r[0]) - r[1]), -g * r[0])),
        lambda: (normal(6), jax.nn.sigmoid(normal(6, seed=1)))),
    # Layers
    Right("dropout with a key", _drop, lambda: (normal(8, 5), jax.random.key(3))),
    Right("dropout with an old key", _drop, lambda: (normal(8, 5), jax.random.PRNGKey(3))),
    Right("embedding", vjp(_embedding, lambda r, g: (
        None, jnp.zeros_like(r[1]).at[r[0]].add(g))),
        lambda: (jnp.array([[1, 3], [1, 0]]), normal(5, 2))),
    Right("gelu by erf", vjp(_gelu, _gelu_backward), rows(4, 3)),
    Right("tanh of x100 inputs", _tanh, lambda: (normal(5, 4, scale=100.0),)),
    Right("swiglu", vjp(_swiglu, _swiglu_backward), each((4, 3), (4, 3))),
    Right("log(1 - exp(-x))", vjp(lambda x: jnp.log1p(-jnp.exp(-x)), lambda r, g: (
        g / jnp.expm1(r[0]),)), lambda: (positive(6),)),
    # Many rows in bfloat16
    Right("bias over 4096 rows in bfloat16", vjp(_add_bias, lambda r, g: (
        g, jnp.sum(up(g), 0).astype(g.dtype))), _in_bfloat16((4096, 2), (2,))),
    Right("weights over 8192 rows in bfloat16", vjp(_matmul, _matmul_backward),
          _in_bfloat16((8192, 3), (3, 2))),
]  # fmt: skip
