"""The dtype policy: what is computed in which dtype, and how close that comes to float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.precision import at_least_float32, floating, matmul, up
from tests.tolerances import assert_near

LOW = ("bfloat16", "float16")


@pytest.mark.usefixtures("x64")
def test_the_dtype_to_compute_in_is_float32_or_the_widest_if_wider() -> None:
    expected = {
        (): "float32",
        ("bfloat16",): "float32",
        ("float16",): "float32",
        ("bfloat16", "float16"): "float32",
        ("int8", "bool"): "float32",
        ("bfloat16", "float32"): "float32",
        ("float64",): "float64",
        ("bfloat16", "float64"): "float64",
    }
    for dtypes, wanted in expected.items():
        assert at_least_float32(*dtypes) == wanted, dtypes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_up_keeps_the_value_and_has_the_dtype_to_compute_in(dtype: str) -> None:
    x = jnp.asarray([0.1, -3.0], dtype)
    assert up(x).dtype == at_least_float32(dtype)
    np.testing.assert_array_equal(np.asarray(up(x), np.float64), np.asarray(x, np.float64))


@pytest.mark.parametrize("x", [1.5, np.ones(2, np.float32), jnp.ones(2, jnp.bfloat16)])
def test_floating_data_is_handed_back_as_an_array(x: object) -> None:
    array = floating("owner", "x", x)
    assert isinstance(array, jax.Array)
    np.testing.assert_array_equal(np.asarray(array, np.float64), np.asarray(x, np.float64))


@pytest.mark.parametrize("x", [1, True, np.arange(3), np.ones(2, np.complex64)])
def test_data_that_is_not_real_and_floating_is_refused(x: object) -> None:
    dtype = jnp.asarray(x).dtype
    with pytest.raises(TypeError) as refused:
        floating("owner", "the_name", x)
    assert str(refused.value) == (
        f"owner: the_name must have a floating dtype, got {dtype}. Convert it with "
        "the_name.astype(jnp.float32)."
    )


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("other", ["float32", "same"])
def test_a_low_product_is_accumulated_and_returned_in_float32(dtype: str, other: str) -> None:
    """1 + 4095 terms of 2^-12: every partial sum in the low dtype would stay at 1."""
    a = jnp.concatenate([jnp.ones(1), jnp.full(4095, 2.0**-12)]).astype(dtype)
    b = jnp.ones((4096, 1), dtype if other == "same" else other)
    product = matmul(a[None], b)
    assert product.dtype == jnp.float32
    assert_near(product, np.full((1, 1), 1 + 4095 * 2.0**-12), reduced=4096)


def test_a_product_is_taken_in_the_dtype_of_its_left_operand() -> None:
    """float32 weights are rounded to bfloat16, as mixed-precision training expects."""
    a, b = jnp.ones((1, 1), jnp.bfloat16), jnp.full((1, 1), 1 + 2.0**-12, jnp.float32)
    assert float(matmul(a, b)[0, 0]) == 1.0
    assert float(matmul(a.astype(jnp.float32), b)[0, 0]) == 1 + 2.0**-12


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64() -> None:
    a = jax.random.normal(jax.random.key(0), (3, 100), jnp.float64)
    b = jax.random.normal(jax.random.key(1), (100, 2), jnp.float64)
    product = matmul(a, b)
    assert product.dtype == jnp.float64
    assert_near(product, np.asarray(a) @ np.asarray(b), reduced=100)
