"""Rotary embedding: independent formulas, scalings, geometry, long positions, refusals."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import rotary
from jaxprop.rules.rotary_scaling import (
    LinearScaling,
    Llama3Scaling,
    NtkScaling,
    YarnScaling,
)
from tests.rules.oracle import by_hand
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

BASE = 500.0


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def by_rotate_half(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
    """As transformers has it: cos and sin over both halves, and the half rotated."""
    angle = positions[..., None] * inv_freq
    both = np.concatenate([angle, angle], axis=-1)[..., None, :]
    half = x.shape[-1] // 2
    rotated = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * np.cos(both) + rotated * np.sin(both)


def by_complex_numbers(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
    """As LLaMA's own code has it: adjacent features are one complex number."""
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(
        1j * (positions[..., None] * inv_freq)[..., None, :]
    )
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def inv_freq(width: int, base: float = BASE) -> np.ndarray:
    return np.array([1 / base ** (2 * i / width) for i in range(width // 2)])


POSITIONS = {
    "shared": np.arange(5),
    "each example's own": np.array([[0, 1, 2, 0, 1], [9, 8, 3, 1, 100]]),
    "negative": np.array([-4, -1, 0, 2, 3]),
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.usefixtures("x64")
def test_halves_are_those_of_transformers(positions: np.ndarray) -> None:
    x = normal(0, 2, 5, 3, 8)
    truth = by_rotate_half(np.asarray(x), positions, inv_freq(8))
    assert_near(rotary(x, jnp.asarray(positions), base=BASE), truth)


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.usefixtures("x64")
def test_interleaved_pairs_are_complex_numbers(positions: np.ndarray) -> None:
    x = normal(0, 2, 5, 3, 8)
    truth = by_complex_numbers(np.asarray(x), positions, inv_freq(8))
    assert_near(rotary(x, jnp.asarray(positions), base=BASE, interleaved=True), truth)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.usefixtures("x64")
def test_features_beyond_the_part_pass_unchanged(interleaved: bool) -> None:
    x, positions, g = normal(0, 2, 5, 3, 8), jnp.arange(5), normal(1, 2, 5, 3, 8)
    options: dict[str, Any] = {"base": BASE, "interleaved": interleaved}
    y, (dx, _) = by_hand(rotary, g, x, positions, part=6, **options)
    assert_near(y[..., :6], rotary(x[..., :6], positions, **options))
    np.testing.assert_array_equal(y[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(dx[..., 6:], g[..., 6:])


def llama3_inv_freq(factor: float, low: float, high: float, length: int) -> list[float]:
    """Wavelength by wavelength, as released with Llama 3.1."""
    scaled = []
    for f in inv_freq(16):
        wavelength = 2 * math.pi / f
        if wavelength < length / high:
            scaled.append(f)
        elif wavelength > length / low:
            scaled.append(f / factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * f / factor + smooth * f)
    return scaled


def yarn_inv_freq(factor: float, length: int, fast: float, slow: float) -> list[float]:
    """As transformers has it."""

    def dimension(rotations: float) -> float:
        return 16 * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(BASE))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), 15)
    scaled = []
    for i, f in enumerate(inv_freq(16)):
        ramp = min(max((i - low) / (high - low), 0), 1)
        scaled.append(f / factor * ramp + f * (1 - ramp))
    return scaled


SCALINGS = {
    "linear": (LinearScaling(4.0), inv_freq(16) / 4, 1.0),
    "NTK": (NtkScaling(4.0), inv_freq(16, BASE * 4 ** (16 / 14)), 1.0),
    "llama 3": (Llama3Scaling(8.0, 1.0, 4.0, 200), llama3_inv_freq(8.0, 1.0, 4.0, 200), 1.0),
    "YaRN": (YarnScaling(4.0, 200, 8.0, 1.0), yarn_inv_freq(4.0, 200, 8.0, 1.0), 1.13862943611199),
    "YaRN that stretches nothing": (YarnScaling(1.0, 200), inv_freq(16), 1.0),
}


@pytest.mark.parametrize(("scaling", "frequencies", "gain"), SCALINGS.values(), ids=SCALINGS)
@pytest.mark.usefixtures("x64")
def test_a_scaling_has_the_frequencies_of_its_source(
    scaling: Any, frequencies: Any, gain: float
) -> None:
    x, positions = normal(0, 1, 5, 1, 16), np.array([0, 1, 10, 100, 1000])
    truth = gain * by_rotate_half(np.asarray(x), positions, np.asarray(frequencies))
    assert_near(rotary(x, jnp.asarray(positions), base=BASE, scaling=scaling), truth, reduced=1000)


def test_llama_3_scaling_has_slow_fast_and_interpolated_pairs() -> None:
    """So that the test above has seen all three."""
    ratio = Llama3Scaling(8.0, 1.0, 4.0, 200).frequencies(BASE, 16) / inv_freq(16)
    assert np.any(ratio == 1)
    assert np.any(np.isclose(ratio, 1 / 8))
    assert np.any((ratio > 0.13) & (ratio < 0.99))


def test_ntk_scaling_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all() -> None:
    ratio = NtkScaling(4.0).frequencies(BASE, 16) / inv_freq(16)
    assert_near(ratio[[0, -1]], np.array([1.0, 0.25]), "float64")


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.usefixtures("x64")
def test_the_product_of_query_and_key_depends_on_their_distance_alone(interleaved: bool) -> None:
    q, k = normal(0, 1, 1, 8), normal(1, 1, 1, 8)

    def product(at: int, other: int) -> jax.Array:
        turned = [
            rotary(x, jnp.array([p]), base=BASE, interleaved=interleaved)
            for x, p in ((q, at), (k, other))
        ]
        return jnp.sum(turned[0] * turned[1])

    near = product(3, 1)
    assert_near(product(103, 101), near, reduced=100)
    assert abs(float(product(3, 2) - near)) > 1e-3


def test_every_pair_keeps_its_norm() -> None:
    x = normal(0, 2, 50, 3, 8)
    y = rotary(x, jnp.arange(50), base=BASE)
    norms = [jnp.hypot(a[..., :4], a[..., 4:]) for a in (x, y)]
    assert_near(norms[1], norms[0])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.usefixtures("x64")
def test_backward_turns_back(interleaved: bool) -> None:
    x, positions = normal(0, 2, 5, 3, 8), jnp.arange(5)
    y, saved = rotary.forward(x, positions, base=BASE, interleaved=interleaved)
    dx, dpositions = rotary.backward(saved, y)
    assert_near(dx, x)
    assert dpositions is None


def test_positions_are_all_that_is_saved() -> None:
    x, positions = normal(0, 2, 5, 3, 8), jnp.arange(5)
    _, saved = rotary.forward(x, positions, base=BASE)
    (kept,) = jax.tree.leaves(saved)
    assert kept is positions


@pytest.mark.slow
def test_bfloat16_is_float32_rounded_once_also_where_bfloat16_cannot_count() -> None:
    """bfloat16 has no 1001: angles are those of the integers."""
    x = normal(0, 2, 3, 3, 8).astype(jnp.bfloat16)
    positions = jnp.array([1000, 1001, 40003])
    exact, saved = rotary.forward(x.astype(jnp.float32), positions, base=BASE)
    y, saved_low = rotary.forward(x, positions, base=BASE)
    for low, full in (
        (y, exact),
        (rotary.backward(saved_low, x)[0], rotary.backward(saved, x.astype(jnp.float32))[0]),
    ):
        assert low.dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            np.asarray(low, np.float32), np.asarray(full.astype(jnp.bfloat16), np.float32)
        )


X, AT = jnp.ones((2, 5, 3, 8)), jnp.arange(5)


def test_what_is_not_floating_or_not_integer_is_refused() -> None:
    assert_refuses(
        rotary,
        (X.astype(jnp.int32), AT),
        TypeError,
        not_floating("rotary", "x", "int32"),
        base=BASE,
    )
    message = "rotary: positions must be integers, got float32. Scale them by the option scaling."
    assert_refuses(rotary, (X, AT.astype(jnp.float32)), TypeError, message, base=BASE)


@pytest.mark.parametrize("shape", [(8,), (1, 2, 5, 3, 8)])
def test_an_x_of_too_few_or_too_many_axes_is_refused(shape: tuple[int, ...]) -> None:
    message = (
        f"rotary: x must be (B, T, H, D), (T, H, D) or (T, D), got {shape}. Heads come after time: "
        "swap those axes where heads come first."
    )
    assert_refuses(rotary, (jnp.ones(shape), AT), ValueError, message, base=BASE)


@pytest.mark.parametrize("shape", [(), (3,), (1, 5), (5, 2), (2, 5, 1)])
def test_positions_that_are_not_one_per_time_are_refused(shape: tuple[int, ...]) -> None:
    message = (
        "rotary: positions must be (T,) or (B, T), with T = 5 for x (2, 5, 3, 8), got "
        f"{shape}. Give jnp.arange(T), or each example its own."
    )
    assert_refuses(rotary, (X, jnp.zeros(shape, jnp.int32)), ValueError, message, base=BASE)


@pytest.mark.parametrize("part", [0, 3, 10, -2])
def test_a_part_that_is_odd_or_out_of_range_is_refused(part: int) -> None:
    message = (
        f"rotary: part must be even and from 2 to D = 8, got {part}. Features are turned in pairs."
    )
    assert_refuses(rotary, (X, AT), ValueError, message, base=BASE, part=part)


@pytest.mark.parametrize("base", [0.0, -1.0, math.inf, math.nan])
def test_a_base_that_is_not_positive_and_finite_is_refused(base: float) -> None:
    message = f"rotary: base must be positive and finite, got {base}. 10000 is usual."
    assert_refuses(rotary, (X, AT), ValueError, message, base=base)


def test_a_scaling_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^LinearScaling: factor must be positive, got 0\.0\.$"):
        LinearScaling(0.0)
    with pytest.raises(ValueError, match=r"^YarnScaling: trained_length must be positive, got 0"):
        YarnScaling(2.0, 0)
    with pytest.raises(ValueError, match=r"^Llama3Scaling: low must be less than high, got 4\.0"):
        Llama3Scaling(8.0, 4.0, 1.0, 100)
    with pytest.raises(ValueError, match=r"^NtkScaling: at least two pairs .* got 2 features"):
        rotary(X[..., :2], AT, base=BASE, scaling=NtkScaling(2.0))
