"""Activations, gated units, softmax and dropout, forward and backward, against jax.nn by JAX."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp

import jaxprop
from jaxprop.benchmarking.gradients import Way, gradient_entry
from jaxprop.benchmarking.timing import Entry

# A rule by hand, the same function of jax.nn (or plain code) by automatic differentiation, and how
# many arrays of x's shape it takes.
PAIRS: dict[str, tuple[Callable[[], Way], Way, int]] = {
    "relu6": (lambda: jaxprop.relu6, jax.nn.relu6, 1),
    "hard_tanh": (lambda: jaxprop.hard_tanh, jax.nn.hard_tanh, 1),
    "hard_sigmoid": (lambda: jaxprop.hard_sigmoid, jax.nn.hard_sigmoid, 1),
    "hard_silu": (lambda: jaxprop.hard_silu, jax.nn.hard_silu, 1),
    "relu_squared": (lambda: jaxprop.relu_squared, lambda x: jnp.square(jax.nn.relu(x)), 1),
    "elu": (lambda: jaxprop.elu, jax.nn.elu, 1),
    "celu": (lambda: jaxprop.celu, jax.nn.celu, 1),
    "selu": (lambda: jaxprop.selu, jax.nn.selu, 1),
    "log_sigmoid": (lambda: jaxprop.log_sigmoid, jax.nn.log_sigmoid, 1),
    "soft_sign": (lambda: jaxprop.soft_sign, jax.nn.soft_sign, 1),
    "squareplus": (lambda: jaxprop.squareplus, jax.nn.squareplus, 1),
    "mish": (lambda: jaxprop.mish, jax.nn.mish, 1),
    "gelu": (lambda: jaxprop.gelu.bind(approximate=True), jax.nn.gelu, 1),
    "glu": (lambda: jaxprop.glu, jax.nn.glu, 1),
    "swiglu": (lambda: jaxprop.swiglu, lambda value, gate: value * jax.nn.silu(gate), 2),
    "geglu": (
        lambda: jaxprop.geglu.bind(approximate=True),
        lambda value, gate: value * jax.nn.gelu(gate),
        2,
    ),
    "reglu": (lambda: jaxprop.reglu, lambda value, gate: value * jax.nn.relu(gate), 2),
    "softmax": (lambda: jaxprop.softmax, jax.nn.softmax, 1),
    "log_softmax": (lambda: jaxprop.log_softmax, jax.nn.log_softmax, 1),
    "logsumexp": (
        lambda: jaxprop.logsumexp.bind(axis=-1),
        lambda x: jax.scipy.special.logsumexp(x, -1),
        1,
    ),
}


# In bfloat16 some x lie on a kink, where another subgradient is taken.
AT_KINKS = {"hard_tanh", "hard_sigmoid", "hard_silu"}


def elementwise_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    shape = (256, 128) if quick else (8192, 512)
    for rule, (by_hand, plain, count) in PAIRS.items():
        for dtype in ("float32",) if rule in AT_KINKS else ("float32", "bfloat16"):
            name = f"rule-{rule}-{dtype}-{'x'.join(map(str, shape))}"
            yield name, partial(pair, name, dtype, shape, by_hand, plain, count)
    for make in (prelu, soft_cap, dropout, gaussian_noise):
        name = f"rule-{make.__name__}-float32-{'x'.join(map(str, shape))}"
        yield name, partial(make, name, shape)


def pair(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    by_hand: Callable[[], Way],
    plain: Way,
    count: int,
) -> Entry:
    arrays = [_normal(dtype, shape, seed) for seed in range(count)]
    return gradient_entry(name, {"automatic": plain, "by hand": by_hand()}, tuple(arrays))


def prelu(name: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array, slope: jax.Array) -> jax.Array:
        return jnp.where(x > 0, x, slope * x)

    slope = _normal("float32", shape[-1:], 1)
    return gradient_entry(
        name, {"automatic": plain, "by hand": jaxprop.prelu}, (_normal("float32", shape), slope)
    )


def soft_cap(name: str, shape: tuple[int, ...]) -> Entry:
    """The cap fixed, as it is in use."""
    cap = jnp.float32(3.0)
    ways: dict[str, Way] = {
        "automatic": lambda x: cap.astype(x.dtype) * jnp.tanh(x / cap.astype(x.dtype)),
        "by hand": lambda x: jaxprop.soft_cap(x, cap),
    }
    return gradient_entry(name, ways, (_normal("float32", shape),))


def dropout(name: str, shape: tuple[int, ...]) -> Entry:
    """Against the code of Flax and Equinox, whose mask is the same."""
    key, rate = jax.random.key(2), jnp.float32(0.1)

    def plain(x: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(key, 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)

    ways: dict[str, Way] = {
        "automatic": plain,
        "by hand": lambda x: jaxprop.dropout(x, rate, key),
    }
    return gradient_entry(name, ways, (_normal("float32", shape),))


def gaussian_noise(name: str, shape: tuple[int, ...]) -> Entry:
    key, scale = jax.random.key(2), jnp.float32(0.1)

    def plain(x: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, x.shape, jnp.float32)
        return x + (scale * noise).astype(x.dtype)

    ways: dict[str, Way] = {
        "automatic": plain,
        "by hand": lambda x: jaxprop.gaussian_noise(x, scale, key),
    }
    return gradient_entry(name, ways, (_normal("float32", shape),))


def _normal(dtype: str, shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)
