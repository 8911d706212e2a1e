"""Right: sums, sorts, gathers, interpolation, transforms and linear algebra."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.checking.making import Right, each, normal, positive, rows, vjp


def _norm(x):
    """The length of x, whose gradient at zero is zero."""
    square = jnp.sum(x * x)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _norm_backward(res, g):
    (x,) = res
    size = _norm(x)
    return (g * x / jnp.where(size == 0, 1, size),)


def _cosine(x, y):
    """Cosine similarity, zero where either has no length."""
    square = jnp.sum(x * x) * jnp.sum(y * y)
    return jnp.where(square == 0, 0, jnp.sum(x * y) / jnp.sqrt(jnp.where(square == 0, 1, square)))


def _cosine_backward(res, g):
    x, y = res
    xx, yy = jnp.sum(x * x), jnp.sum(y * y)
    none = xx * yy == 0
    xx, yy = jnp.where(none, 1, xx), jnp.where(none, 1, yy)
    size, c = jnp.sqrt(xx * yy), _cosine(x, y)
    dx, dy = g * (y / size - c * x / xx), g * (x / size - c * y / yy)
    return jnp.where(none, 0, dx), jnp.where(none, 0, dy)


def _power(x, p):
    """x ** p for positive x, and zero for the others."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** p, 0)


def _power_backward(res, g):
    x, p = res
    safe = jnp.where(x > 0, x, 1)
    dx = jnp.where(x > 0, g * p * safe ** (p - 1), 0)
    return dx, jnp.sum(jnp.where(x > 0, g * safe**p * jnp.log(safe), 0))


def _logaddexp_backward(res, g):
    a, b = res
    share = jnp.where(a == b, 0.5, jax.nn.sigmoid(a - b))
    return g * share, g * (1 - share)


def _arctan2_backward(res, g):
    y, x = res
    square = x * x + y * y
    return g * x / square, -g * y / square


def _sorted_by_last(res, g):
    """Among ties, the last entry comes first."""
    (x,) = res
    order = x.shape[-1] - 1 - jnp.argsort(x[..., ::-1], -1)
    return (jnp.take_along_axis(g, jnp.argsort(order, -1), -1),)


def _top(x):
    """The two largest entries of each row, and where they are."""
    return lax.top_k(x, 2)


def _top_backward(res, g):
    x, where = res
    return (jnp.zeros_like(x).at[jnp.arange(len(x))[:, None], where].set(g[0]),)


def _scatter(base, ids, updates):
    return base.at[ids].add(updates)


def _segments(x, ids):
    return jax.ops.segment_sum(x, ids, num_segments=4)


def _cumulative_product(x):
    return jnp.cumprod(x)


def _recomputed(f):
    """A backward that saves the arguments and runs the forward again."""
    return vjp(f, lambda res, g: jax.vjp(f, *res)[1](g))


def _convolved(x, kernel):
    """A circular convolution, by the Fourier transform."""
    n = x.shape[-1]
    return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(kernel), n)


def _convolved_backward(res, g):
    x, kernel = (jnp.fft.rfft(a) for a in res)
    g, n = jnp.fft.rfft(g), g.shape[-1]
    return jnp.fft.irfft(g * kernel.conj(), n), jnp.fft.irfft(g * x.conj(), n)


def _quantile(x):
    return jnp.quantile(x, 0.3)


def _quantile_backward(res, g):
    """The two order statistics that 0.3 lies between, by their weights."""
    (x,) = res
    place = 0.3 * (x.size - 1)
    below, above = int(place), min(int(place) + 1, x.size - 1)
    order = jnp.argsort(x)
    dx = jnp.zeros_like(x).at[order[below]].add(g * (1 - (place - below)))
    return (dx.at[order[above]].add(g * (place - below)),)


def _interpolated(x, knots, values):
    return jnp.interp(x, knots, values)


def _interpolated_backward(res, g):
    x, knots, values = res
    i = jnp.clip(jnp.searchsorted(knots, x, side="right"), 1, len(knots) - 1)
    width = knots[i] - knots[i - 1]
    t = (x - knots[i - 1]) / width
    inside = (x > knots[0]) & (x < knots[-1])
    slope = jnp.where(inside, (values[i] - values[i - 1]) / width, 0)
    t = jnp.where(x <= knots[0], 0, jnp.where(x >= knots[-1], 1, t))
    dvalues = jnp.zeros_like(values).at[i - 1].add(g * (1 - t)).at[i].add(g * t)
    dknots = jnp.zeros_like(knots).at[i - 1].add(-g * slope * (1 - t)).at[i].add(-g * slope * t)
    return g * slope, dknots, dvalues


def _solve(a, b):
    return jnp.linalg.solve(a, b)


def _solve_backward(res, g):
    a, b = res
    db = jnp.linalg.solve(a.T, g)
    return -jnp.outer(db, jnp.linalg.solve(a, b)), db


def _cholesky(a):
    return jnp.linalg.cholesky(a)


def _cholesky_backward(res, g):
    """Murray (2016), Differentiation of the Cholesky decomposition, equation 8."""
    lower = _cholesky(res[0])
    phi = jnp.tril(lower.T @ jnp.tril(g))
    phi = phi - jnp.diag(jnp.diag(phi)) / 2
    inverse = jnp.linalg.inv(lower)
    s = inverse.T @ phi @ inverse
    return ((s + s.T) / 2,)


def _eigenvalues_backward(res, g):
    vectors = jnp.linalg.eigh(res[0])[1]
    return ((vectors * g) @ vectors.T,)


def _log_determinant(a):
    return jnp.linalg.slogdet(a)[1]


def _inverse_backward(res, g):
    inverse = jnp.linalg.inv(res[0])
    return (-inverse.T @ g @ inverse.T,)


def _regular():
    return normal(4, 4) + 4 * jnp.eye(4, dtype=jnp.float32)


def _covariance():
    a = normal(4, 4)
    return a @ a.T + jnp.eye(4, dtype=jnp.float32)


def _settled(w, x):
    """The z with z = tanh(w @ z / (2 |w| + 1) + x): a fixed point, found by iteration."""
    return lax.fori_loop(0, 80, lambda _, z: jnp.tanh(_contraction(w) @ z + x), jnp.zeros_like(x))


def _contraction(w):
    size = jnp.sqrt(jnp.sum(w * w) + 1e-12)
    return w / (2 * size + 1)


def _settled_backward(res, g):
    """u = g + m.T @ (slope * u) is the adjoint's own fixed point."""
    w, x = res
    m, by_w = jax.vjp(_contraction, w)
    z = _settled(w, x)
    slope = 1 - z * z
    u = lax.fori_loop(0, 80, lambda _, u: g + m.T @ (slope * u), g)
    return by_w(jnp.outer(slope * u, z))[0], slope * u


def _distances(x):
    """Between every pair of rows; zero on the diagonal, with no gradient there."""
    square = jnp.sum((x[:, None] - x[None]) ** 2, -1)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _distances_backward(res, g):
    (x,) = res
    size = _distances(x)
    weight = jnp.where(size == 0, 0, (g + g.T) / jnp.where(size == 0, 1, size))
    return (jnp.sum(weight[..., None] * (x[:, None] - x[None]), 1),)


def _polynomial(x, coefficients):
    return jnp.polyval(coefficients, x)


def _polynomial_backward(res, g):
    x, c = res
    n = len(c)
    powers = jnp.vander(x, n)
    degrees = jnp.arange(n - 1, 0, -1, dtype=x.dtype)
    return g * (powers[:, 1:] @ (degrees * c[:-1])), g @ powers


def _bilinear(x, w, y):
    return jnp.einsum("bi,ij,bj->b", x, w, y)


def _bilinear_backward(res, g):
    x, w, y = res
    left, right = x @ w, y @ w.T
    return g[:, None] * right, (g[:, None] * x).T @ y, g[:, None] * left


def _deviation(x):
    return jnp.std(x, ddof=1)


def _knots():
    return normal(6), jnp.linspace(-2.0, 2.0, 5), normal(5, seed=1)


RIGHT = [
    # Elementwise, and lengths
    Right("length, safe at zero", vjp(_norm, _norm_backward), rows(5)),
    Right("cosine similarity, safe at zero", vjp(_cosine, _cosine_backward), each((6,), (6,))),
    Right("pairwise distances", vjp(_distances, _distances_backward), rows(4, 3)),
    Right("power, safe at zero", vjp(_power, _power_backward),
          lambda: (positive(6), jnp.float32(1.7))),
    Right("logaddexp", vjp(lambda a, b: jnp.logaddexp(a, b), _logaddexp_backward),
          each((6,), (6,))),
    Right("arctan2", vjp(lambda y, x: jnp.arctan2(y, x), _arctan2_backward), each((6,), (6,))),
    Right("log1p", vjp(lambda x: jnp.log1p(x), lambda r, g: (g / (1 + r[0]),)),
          lambda: (positive(6),)),
    Right("polynomial", vjp(_polynomial, _polynomial_backward), each((5,), (4,))),
    Right("bilinear form", vjp(_bilinear, _bilinear_backward), each((4, 3), (3, 5), (4, 5))),
    Right("deviation, n - 1", vjp(_deviation, lambda r, g: (
        g * (r[0] - jnp.mean(r[0])) / (_deviation(r[0]) * (r[0].size - 1)),)), rows(6)),
    # Order
    Right("sort: ties to the last", vjp(lambda x: jnp.sort(x, -1), _sorted_by_last), rows(3, 5)),
    Right("top two with their indices", vjp(_top, _top_backward, lambda x: (
        _top(x), (x, _top(x)[1]))), rows(3, 5)),
    Right("quantile", vjp(_quantile, _quantile_backward), rows(8)),
    Right("interpolation", vjp(_interpolated, _interpolated_backward), _knots),
    # Gather, scatter, running
    Right("gather", vjp(lambda x, ids: x[ids], lambda r, g: (
        jnp.zeros_like(r[0]).at[r[1]].add(g), None)),
        lambda: (normal(5, 2), jnp.array([4, 0, 4, 1]))),
    Right("scatter", vjp(_scatter, lambda r, g: (g, None, g[r[1]])),
          lambda: (normal(5, 2), jnp.array([0, 3, 3]), normal(3, 2, seed=1))),
    Right("segment sum", vjp(_segments, lambda r, g: (g[r[1]], None)),
          lambda: (normal(6, 2), jnp.array([0, 0, 1, 3, 3, 3]))),
    Right("cumulative sum", vjp(lambda x: jnp.cumsum(x, 0), lambda r, g: (
        jnp.cumsum(g[::-1], 0)[::-1],)), rows(7, 2)),
    Right("cumulative product, recomputed", _recomputed(_cumulative_product), rows(6)),
    Right("convolution by Fourier transform", vjp(_convolved, _convolved_backward),
          each((7,), (7,))),
    # Linear algebra
    Right("solve", vjp(_solve, _solve_backward), lambda: (_regular(), normal(4, seed=1))),
    Right("cholesky", vjp(_cholesky, _cholesky_backward), lambda: (_covariance(),)),
    Right("eigenvalues", vjp(lambda a: jnp.linalg.eigh(a)[0], _eigenvalues_backward),
          lambda: (_covariance(),)),
    Right("log of the determinant", vjp(_log_determinant, lambda r, g: (
        g * jnp.linalg.inv(r[0]).T,)), lambda: (_regular(),)),
    Right("inverse", vjp(lambda a: jnp.linalg.inv(a), _inverse_backward), lambda: (_regular(),)),
    Right("a fixed point by its adjoint", vjp(_settled, _settled_backward), each((4, 4), (4,))),
]  # fmt: skip
