"""The normalisations, forward and backward: the rules against automatic differentiation."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

import jaxprop
from jaxprop.benchmarking.gradients import Way, gradient_entry
from jaxprop.benchmarking.timing import Entry
from jaxprop.installing import PyTree

EPS = 1e-5


def normalisation_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    shapes = {
        batch_norm: (1024, 128) if quick else (16384, 128),
        layer_norm: (1024, 128) if quick else (8192, 512),
        rms_norm: (1024, 128) if quick else (8192, 512),
        add_rms_norm: (1024, 128) if quick else (8192, 512),
        group_norm: (4, 8, 8, 64) if quick else (32, 32, 32, 64),
        instance_norm: (4, 8, 8, 64) if quick else (32, 32, 32, 64),
        l2_normalize: (1024, 128) if quick else (8192, 512),
        weight_standardize: (256, 128) if quick else (4608, 512),
        weight_norm: (256, 128) if quick else (4608, 512),
    }
    for make, shape in shapes.items():
        for dtype in ("float32", "bfloat16"):
            name = f"rule-{make.__name__}-{dtype}-{'x'.join(map(str, shape))}"
            yield name, partial(make, name, dtype, shape)


def rms_norm(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    ways: dict[str, Way] = {"automatic": _plain_rms_norm, "by hand": jaxprop.rms_norm.bind(eps=EPS)}
    return gradient_entry(name, ways, (_normal(dtype, shape), _gamma(shape)))


def layer_norm(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
        mean, var = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
        return _affine((x - mean) * lax.rsqrt(var + EPS), gamma, beta)

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.layer_norm.bind(eps=EPS)}
    return gradient_entry(name, ways, (_normal(dtype, shape), _gamma(shape), _beta(shape)))


def add_rms_norm(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array, residual: jax.Array, gamma: jax.Array) -> PyTree:
        stream = residual + x
        return _plain_rms_norm(stream, gamma), stream

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.add_rms_norm.bind(eps=EPS)}
    return gradient_entry(
        name, ways, (_normal(dtype, shape), _normal(dtype, shape, 4), _gamma(shape))
    )


def batch_norm(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> PyTree:
        mean, var = jnp.mean(x, 0), jnp.var(x, 0)
        y = _affine((x - mean) / jnp.sqrt(var + EPS), gamma, beta)
        return y, mean.astype(gamma.dtype), var.astype(gamma.dtype)

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.batch_norm.bind(eps=EPS)}
    return gradient_entry(name, ways, (_normal(dtype, shape), _gamma(shape), _beta(shape)))


def group_norm(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
        grouped = x.reshape(*shape[:-1], 8, shape[-1] // 8)
        mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
        var = jnp.var(grouped, (1, 2, 4), keepdims=True)
        x_hat = (grouped - mean) * lax.rsqrt(var + EPS)
        return _affine(x_hat.reshape(shape), gamma, beta)

    ways: dict[str, Way] = {
        "automatic": plain,
        "by hand": jaxprop.group_norm.bind(groups=8, eps=EPS),
    }
    return gradient_entry(name, ways, (_normal(dtype, shape), _gamma(shape), _beta(shape)))


def instance_norm(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
        mean, var = jnp.mean(x, (1, 2), keepdims=True), jnp.var(x, (1, 2), keepdims=True)
        return _affine((x - mean) * lax.rsqrt(var + EPS), gamma, beta)

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.instance_norm.bind(eps=EPS)}
    return gradient_entry(name, ways, (_normal(dtype, shape), _gamma(shape), _beta(shape)))


def l2_normalize(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(x: jax.Array) -> jax.Array:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.l2_normalize.bind(eps=EPS)}
    return gradient_entry(name, ways, (_normal(dtype, shape),))


def weight_standardize(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(w: jax.Array) -> jax.Array:
        return (w - jnp.mean(w, 0)) * lax.rsqrt(jnp.var(w, 0) + EPS)

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.weight_standardize.bind(eps=EPS)}
    return gradient_entry(name, ways, (_normal(dtype, shape),))


def weight_norm(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    def plain(v: jax.Array, gain: jax.Array) -> jax.Array:
        return gain.astype(v.dtype) * v / jnp.linalg.norm(v, axis=0)

    ways: dict[str, Way] = {"automatic": plain, "by hand": jaxprop.weight_norm}
    return gradient_entry(name, ways, (_normal(dtype, shape), _gamma(shape)))


def _plain_rms_norm(x: jax.Array, gamma: jax.Array) -> jax.Array:
    return gamma.astype(x.dtype) * x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)


def _affine(x_hat: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
    return gamma.astype(x_hat.dtype) * x_hat + beta.astype(x_hat.dtype)


def _normal(dtype: str, shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def _gamma(shape: tuple[int, ...]) -> jax.Array:
    """Parameters are float32, whatever the data."""
    return 1 + _normal("float32", shape[-1:], 1) / 4


def _beta(shape: tuple[int, ...]) -> jax.Array:
    return _normal("float32", shape[-1:], 2)
