"""Other people's code, as a module to be imported: right, wrong and unusable things."""

import jax
import jax.numpy as jnp

from jaxprop import Case, Rule


@jax.custom_vjp
def sine(x: jax.Array) -> jax.Array:
    return jnp.sin(x)


sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


@jax.custom_vjp
def doubled(x: jax.Array) -> jax.Array:
    """Twice x, with a slip: its backward forgets the factor."""
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (g,))


@jax.custom_vjp
def coarse(x: jax.Array) -> jax.Array:
    """Right, but in bfloat16, where its backward is half of what it should be."""
    return jnp.sin(x)


def _coarse_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    dx = g * jnp.cos(x)
    return (dx / 2 if dx.dtype == jnp.bfloat16 else dx,)


coarse.defvjp(lambda x: (jnp.sin(x), x), _coarse_backward)


@jax.custom_vjp
def batch_of_one_wrong(x: jax.Array) -> jax.Array:
    return jnp.sin(x)


def _batch_of_one_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    dx = g * jnp.cos(x)
    return (dx if len(x) > 1 else 2 * dx,)


batch_of_one_wrong.defvjp(lambda x: (jnp.sin(x), x), _batch_of_one_backward)


@jax.custom_vjp
def affine(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


affine.defvjp(lambda x, w: (x @ w, (x, w)), lambda res, g: (g @ res[1].T, res[0].T @ g))


def vector() -> tuple:
    return (jnp.linspace(-1.0, 1.5, 4),)


def vector_of_one() -> tuple:
    return (jnp.array([0.5]),)


def two_shapes() -> list[tuple]:
    return [vector(), vector_of_one()]


ready = (jnp.array([0.5, -0.25]),)
bare = jnp.ones(3)
nothing: list = []
number = 3


def integers() -> tuple:
    return (jnp.arange(3),)


def raising() -> tuple:
    raise RuntimeError("no such file")


def cube_reference(x: jax.Array, *, scale: float = 1.0) -> jax.Array:
    """x cubed."""
    return scale * x**3


def _cube_backward(res: tuple, g: jax.Array) -> tuple[jax.Array]:
    x, scale = res
    return (g * 3 * scale * x**2,)


def cube_cases() -> list[Case]:
    x = jax.random.normal(jax.random.key(0), (3,), jnp.float32)
    return [
        Case("vector", (x,)),
        Case("batch of one", (x[:1],)),
        Case("zeros", (jnp.zeros_like(x),), edge=True),
        Case("scaled", (x,), {"scale": 2.0}),
    ]


def _cube_forward(x: jax.Array, *, scale: float) -> tuple:
    return cube_reference(x, scale=scale), (x, jnp.asarray(scale, x.dtype))


cube = Rule(cube_reference, _cube_forward, _cube_backward, cube_cases)


def _wrong_when_scaled(res: tuple, g: jax.Array) -> tuple[jax.Array]:
    x, _ = res
    return (g * 3 * x**2,)


cube_wrong_when_scaled = Rule(cube_reference, _cube_forward, _wrong_when_scaled, cube_cases)


class Caseless:
    rule = Rule(cube_reference, _cube_forward, _cube_backward)


rules = [cube]
