"""Right: what a `custom_vjp` can have, and JAX's own constructs inside and around it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxprop
from tests.checking.making import Right, each, normal, rows, vjp


def _cosine_slope(res, g):
    return (g * jnp.cos(res[0]),)


# Arguments and outputs


def _dense(params, x):
    y = x @ params["w"]
    return y if params["b"] is None else y + params["b"]


def _dense_backward(res, g):
    params, x = res
    db = None if params["b"] is None else jnp.sum(g, 0)
    return {"w": x.T @ g, "b": db}, g @ params["w"].T


def _parameters(bias):
    w = normal(3, 4)
    return lambda: ({"w": w, "b": normal(4, seed=1) if bias else None}, normal(5, 3, seed=2))


class _Pair(NamedTuple):
    scale: jax.Array
    others: list


def _nested(x, pair):
    return x * pair.scale + pair.others[0] * pair.others[1]


def _nested_backward(res, g):
    x, (scale, (a, b)) = res
    return g * scale, _Pair(jnp.sum(g * x, 0), [jnp.sum(g * b, 0), jnp.sum(g * a, 0)])


def _cell(x, c):
    i, f, o = jnp.split(x, 3, -1)
    i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
    new = f * c + i
    return o * jnp.tanh(new), new


def _cell_backward(res, g):
    x, c = res
    i, f, o = (jax.nn.sigmoid(part) for part in jnp.split(x, 3, -1))
    new, (dh, dc) = f * c + i, g
    dnew = dc + dh * o * (1 - jnp.tanh(new) ** 2)
    gates = dnew * i * (1 - i), dnew * c * f * (1 - f), dh * jnp.tanh(new) * o * (1 - o)
    return jnp.concatenate(gates, -1), dnew * f


def _mean(x):
    """Zero of nothing."""
    return jnp.sum(x) / max(x.size, 1)


def _mean_of_some(x):
    if x.size == 0:
        raise ValueError("mean: x must not be empty.")
    return jnp.sum(x) / x.size


def _scaled(x, scale=2.0):
    return x * scale


def _not_in_bfloat16(x):
    if x.dtype == jnp.bfloat16:
        raise TypeError("sine: bfloat16 is not supported. Cast to float32.")
    return jnp.sin(x)


def _sine_in_float32(x):
    return jnp.sin(x.astype(jnp.float32)).astype(x.dtype)


def _sine_in_float32_backward(res, g):
    slope = jnp.cos(res[0].astype(jnp.float32))
    return ((g.astype(jnp.float32) * slope).astype(g.dtype),)


# Static arguments


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _applied(f, x):
    return f(x) ** 2


_applied.defvjp(
    lambda f, x: (f(x) ** 2, x), lambda f, x, g: jax.vjp(f, x)[1](2 * g * f(x))
)  # fmt: skip


@partial(jax.custom_vjp, nondiff_argnames=("axis",))
def _sum_of_squares(x, axis):
    return jnp.sum(x * x, axis)


_sum_of_squares.defvjp(
    lambda x, axis: (jnp.sum(x * x, axis), x),
    lambda axis, x, g: (2 * x * jnp.expand_dims(g, axis),),
)


# Ways to define one


def _optimised():
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), (x,)), _cosine_slope, optimize_remat=True)
    return f


def _with_symbolic_zeros():
    f = jax.custom_vjp(lambda x, w: (x * w, jnp.sin(x)))

    def forward(x, w):
        x, w = x.value, w.value
        return (x * w, jnp.sin(x)), (x, w)

    def backward(res, g):
        x, w = res
        product, sine = g
        none = isinstance(product, SymbolicZero)
        dx = 0 * x if none else product * w
        if not isinstance(sine, SymbolicZero):
            dx = dx + sine * jnp.cos(x)
        return dx, 0 * w if none else product * x

    f.defvjp(forward, backward, symbolic_zeros=True)
    return f


# Loops


def _recurrent(w, xs, h0):
    def step(h, x):
        h = jnp.tanh(w @ h + x)
        return h, h

    return lax.scan(step, h0, xs)[1]


def _recurrent_backward(res, g):
    w, hs, h0 = res

    def step(carry, at):
        dh, dw = carry
        dy, h, before = at
        da = (dy + dh) * (1 - h * h)
        return (w.T @ da, dw + jnp.outer(da, before)), da

    before = jnp.concatenate([h0[None], hs])[:-1]
    start = (jnp.zeros_like(h0), jnp.zeros_like(w))
    (dh0, dw), dxs = lax.scan(step, start, (g, hs, before), reverse=True)
    return dw, dxs, dh0


def _recurrent_forward(w, xs, h0):
    hs = _recurrent(w, xs, h0)
    return hs, (w, hs, h0)


def _times(x, n):
    """x to the power n by repeated multiplication; nothing goes backwards through it."""

    def body(state):
        count, y = state
        return count - 1, y * x

    return lax.while_loop(lambda state: state[0] > 0, body, (n, jnp.ones_like(x)))[1]


def _times_backward(res, g):
    x, n = res
    return g * n.astype(x.dtype) * _times(x, n - 1), None


def _step(y, a):
    """One of Newton's steps to the square root of a * a + 1."""
    return 0.5 * (y + (a * a + 1) / y)


def _root(a):
    return lax.fori_loop(0, 40, lambda _, y: _step(y, a), a * a + 1)


def _root_by_while(a):
    """Until the steps no longer go down, and nothing goes backwards through it."""

    def goes_down(state):
        count, y, before = state
        return (count < 60) & jnp.any(y < before)

    def advance(state):
        count, y, _ = state
        return count + 1, _step(y, a), y

    return lax.while_loop(goes_down, advance, (0, a * a + 1, a * a + 2))[1]


def _root_backward(res, g):
    a, y = res
    return (g * a / y,)


# Inside other things


_tanh = vjp(jnp.tanh, lambda y, g: (g * (1 - y * y),), lambda x: (jnp.tanh(x), jnp.tanh(x)))
_matmul = vjp(lambda x, w: x @ w, lambda r, g: (g @ r[1].T, r[0].T @ g))


@jax.jit
def _perceptron(x, w, v):
    return _matmul(_tanh(_matmul(x, w)), v)


def _total(x, w):
    return jnp.sum(jnp.tanh(x @ w), 0)


def _summed_backward(res, g):
    """Of one device's rows: w is shared, so its cotangent is summed over the devices."""
    x, w = res
    d = g * (1 - jnp.tanh(x @ w) ** 2)
    return d @ w.T, lax.psum(x.T @ d, "data")


_local_total = vjp(_total, _summed_backward)


def _over_devices(rule, x, w):
    """The rule on each device's rows, its sums added up."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    run = jax.shard_map(
        lambda x, w: lax.psum(rule(x, w), "data"),
        mesh=mesh, in_specs=(P("data"), P()), out_specs=P(),
    )  # fmt: skip
    return run(x, w)


def _sharded(x, w):
    return _over_devices(_local_total, x, w)


def _sharded_rule(x, w):
    return _over_devices(lambda x, w: jnp.sum(jaxprop.linear(x, w), 0), x, w)


# Not derivatives, on purpose


_round = vjp(lambda x: jnp.round(x), lambda r, g: (g,))
_sign = vjp(jnp.sign, lambda r, g: (jnp.where(jnp.abs(r[0]) <= 1, g, 0),))
_reversal = vjp(lambda x, strength: x, lambda r, g: (-r[1] * g, jnp.zeros_like(r[1])))
_weighed = lambda: (normal(5), jnp.float32(0.3))  # noqa: E731


# Of this library


_chain = jaxprop.chain(hidden=jaxprop.dense(5, jaxprop.tanh), output=jaxprop.dense(3))
_cost = jaxprop.cost(_chain, jaxprop.softmax_cross_entropy, penalty=jaxprop.l2)
_params = lambda: _chain.init(jax.random.key(0), (4, 6))  # noqa: E731
_IN_CATALOGUE = (
    jaxprop.linear, jaxprop.relu, jaxprop.leaky_relu, jaxprop.silu, jaxprop.gelu, jaxprop.softmax,
    jaxprop.softmax_cross_entropy, jaxprop.sigmoid_binary_cross_entropy,
    jaxprop.mean_squared_error, jaxprop.elastic_net,
)  # fmt: skip

RIGHT = [
    # Arguments and outputs
    Right("a dict with a bias", vjp(_dense, _dense_backward), _parameters(bias=True)),
    Right("a dict with None for a bias", vjp(_dense, _dense_backward), _parameters(bias=False)),
    Right("a named tuple with a list", vjp(_nested, _nested_backward),
          lambda: (normal(4, 3), _Pair(normal(3), [normal(3, seed=1), normal(3, seed=2)]))),
    Right("two outputs of a cell", vjp(_cell, _cell_backward), each((4, 9), (4, 3))),
    Right("a mask whose zero is meant",
          vjp(lambda x, mask: x * mask, lambda r, g: (g * r[1], None)),
          lambda: (normal(4), jnp.array([1.0, 0.0, 1.0, 1.0])), {"intended_zero": ("mask",)}),
    Right("0-d arguments and output", vjp(lambda x, y: x * jnp.sin(y), lambda r, g: (
        g * jnp.sin(r[1]), g * r[0] * jnp.cos(r[1]))), lambda: (jnp.float32(0.7), 1.3)),
    Right("a default argument", vjp(_scaled, lambda r, g: (g * r[1], jnp.sum(g * r[0])),
                                    lambda x, scale: (x * scale, (x, scale))), rows(5)),
    Right("safe of size 0", vjp(_mean, lambda r, g: (
        jnp.full_like(r[0], g / max(r[0].size, 1)),)), rows(5, 3)),
    Right("refuses size 0", vjp(_mean_of_some, lambda r, g: (
        jnp.full_like(r[0], g / r[0].size),)), rows(5, 3)),
    Right("refuses bfloat16", vjp(_not_in_bfloat16, _cosine_slope), rows(6)),
    Right("float32 inside", vjp(_sine_in_float32, _sine_in_float32_backward), rows(6)),
    # Ways to define one
    Right("a function for a nondiff argument", _applied, lambda: (jnp.tanh, normal(5))),
    Right("a nondiff argument by name", _sum_of_squares, lambda: (normal(4, 3), -1)),
    Right("optimize_remat", _optimised(), rows(5)),
    Right("symbolic zeros", _with_symbolic_zeros(), each((4,), (4,))),
    # Loops
    Right("a scan inside", vjp(_recurrent, _recurrent_backward, _recurrent_forward),
          each((3, 3), (4, 3), (3,))),
    Right("a while loop inside, and an integer", vjp(_times, _times_backward),
          lambda: (normal(5), jnp.int32(3)), {"reference": lax.pow}),
    Right("a root by iteration", vjp(_root, _root_backward, lambda a: (
        _root(a), (a, _root(a)))), rows(5)),
    Right("a root by a while loop, no reference", vjp(_root_by_while, _root_backward, lambda a: (
        _root_by_while(a), (a, _root_by_while(a)))), rows(5)),
    # Inside other things
    Right("several inside one jit", _perceptron, each((4, 3), (3, 5), (5, 2))),
    Right("inside shard_map", _sharded, each((6, 3), (3, 2)), {"reference": _total}),
    Right("a rule inside shard_map", _sharded_rule, each((6, 3), (3, 2)), {
        "reference": lambda x, w: jnp.sum(x @ w, 0)}),
    # Not derivatives, on purpose
    Right("straight-through", _round, rows(6), {"surrogate": True}),
    Right("straight-through, stated", _round, rows(6), {"surrogate": lambda x: x}),
    Right("sign through a clip, stated", _sign, rows(6),
          {"surrogate": lambda x: jnp.clip(x, -1, 1)}),
    Right("gradient reversal", _reversal, _weighed, {"surrogate": True}),
    Right("gradient reversal, stated", _reversal, _weighed,
          {"surrogate": lambda x, strength: -lax.stop_gradient(strength) * x}),
    # Of this library
    *(Right(f"jaxprop.{rule.name}, its cases", rule, lambda: ()) for rule in _IN_CATALOGUE),
    Right("a chain of dense layers", _chain, lambda: (_params(), normal(4, 6, seed=1))),
    Right("a cost with a penalty", _cost, lambda: (
        _params(), normal(4, 6, seed=1), jnp.array([0, 2, 1, 1]), jnp.float32(0.01))),
]  # fmt: skip
