"""Programs that run once: the options of the compiler that the installed XLA takes."""

import jax
import jax.numpy as jnp

from jaxprop.checking import compiling
from tests.tolerances import assert_near


def test_an_option_that_xla_does_not_know_is_not_taken() -> None:
    assert not compiling._taken({"xla_no_such_option": 1})
    assert compiling._taken({"xla_backend_optimization_level": 0})


def test_a_cpu_has_options_and_other_platforms_have_none() -> None:
    assert compiling._options("cpu") in compiling.QUICK
    assert compiling._options("cuda") is None


def test_what_is_compiled_quickly_gives_the_same_numbers() -> None:
    def slope(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(jnp.sin(x) * x))(x)

    x = jnp.linspace(-2.0, 2.0, 9)
    assert_near(compiling.quickly(slope)(x), jnp.cos(x) * x + jnp.sin(x))
