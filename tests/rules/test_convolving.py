"""Each way to a convolution and to its kernel gives what XLA's does, and is taken where meant."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprop import conv
from jaxprop.checking.compiling import quickly
from jaxprop.checking.subject import on_device
from jaxprop.rules import convolving
from jaxprop.rules.convolutions import Convolution, by_xla, counts, kernel_by_xla
from jaxprop.rules.convolving import convolved, to_kernel
from jaxprop.samples import normal, replaced
from tests.tolerances import assert_near

IMAGES = Convolution((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
SIGNALS = Convolution((1,), ((2, 0),), (1,), (1,), 1)
VOLUMES = Convolution((1, 1, 1), ((0, 0), (1, 1), (1, 0)), (1, 1, 1), (1, 1, 1), 1)

SIDE_BY_SIDE = {
    "grey images": ((2, 5, 6, 1), (3, 3, 1, 6), IMAGES),
    "three colours": ((2, 5, 6, 3), (3, 3, 3, 8), IMAGES),
    "strides": ((2, 7, 11, 2), (3, 3, 2, 5), replace(IMAGES, stride=(2, 2))),
    "cut off": ((2, 7, 8, 2), (3, 3, 2, 1), replace(IMAGES, padding=((0, -1), (-1, 1)))),
    "signals": ((2, 9, 3), (4, 3, 2), SIGNALS),
    "volumes": ((2, 3, 4, 4, 2), (2, 1, 2, 2, 4), VOLUMES),
}
GROUPS = {
    "depthwise": ((2, 5, 6, 3), (3, 2, 1, 3), replace(IMAGES, groups=3)),
    "two outputs each": ((2, 5, 6, 3), (3, 3, 1, 6), replace(IMAGES, groups=3, stride=(2, 1))),
    "two channels each": ((2, 7, 6, 4), (2, 3, 2, 6), replace(IMAGES, groups=2, dilation=(2, 1))),
    "spread": ((2, 3, 4, 4), (3, 3, 2, 4), replace(IMAGES, groups=2, spread=(2, 3))),
    "signals": ((2, 9, 4), (3, 1, 4), replace(SIGNALS, groups=4)),
    "volumes": ((1, 3, 4, 3, 4), (2, 1, 2, 2, 4), replace(VOLUMES, groups=2)),
}
SPREAD = {
    "images": ((2, 3, 4, 2), (4, 3, 2, 3), replace(IMAGES, spread=(2, 2))),
    "along one axis": ((2, 3, 4, 2), (2, 3, 2, 3), replace(IMAGES, spread=(1, 3))),
    "dilated": ((2, 4, 2), (3, 2, 3), replace(SIGNALS, spread=(2,), dilation=(2,))),
}
IN_ORDER = {
    "strides": ((2, 7, 6, 4), (3, 2, 4, 5), replace(IMAGES, stride=(2, 1))),
    "wide groups": ((2, 5, 6, 32), (3, 3, 16, 4), replace(IMAGES, groups=2)),
    "signals": ((2, 9, 3), (4, 3, 2), SIGNALS),
}
PRODUCTS = {
    "images": ((48, 14, 14, 32), (3, 2, 32, 2), IMAGES),
    "dilated": ((60, 14, 15, 32), (2, 3, 32, 2), replace(IMAGES, dilation=(2, 3))),
    "one place": ((48, 14, 14, 32), (1, 1, 32, 2), replace(IMAGES, padding=((0, 0), (0, 0)))),
    "signals": ((21, 400, 32), (3, 32, 2), SIGNALS),
    "volumes": ((20, 8, 8, 8, 32), (2, 1, 2, 32, 2), VOLUMES),
}


def drawn(shape: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return on_device(normal(0, *shape), float), on_device(normal(1, *kernel), float)


def cotangent(shape: tuple[int, ...], kernel: tuple[int, ...], how: Convolution) -> jax.Array:
    counted = counts(shape[1:-1], kernel[:-2], how)
    return on_device(normal(2, shape[0], *counted, kernel[-1]), float)


@pytest.mark.parametrize(
    ("shape", "kernel", "how"),
    [*SIDE_BY_SIDE.values(), *GROUPS.values()],
    ids=[*(f"side by side, {name}" for name in SIDE_BY_SIDE), *(f"groups, {n}" for n in GROUPS)],
)
@pytest.mark.usefixtures("x64")
def test_a_convolution_is_that_of_xla(
    shape: tuple[int, ...], kernel: tuple[int, ...], how: Convolution
) -> None:
    x, w = drawn(shape, kernel)
    assert convolving._small_groups(w.shape[:-1], how) or convolving._neighbours(x, w, how) > 1
    y, expected = quickly(lambda x, w: (convolved(x, w, how), by_xla(x, w, how)))(x, w)
    assert y.shape == expected.shape
    assert_near(y, expected, reduced=int(np.prod(kernel[:-1])))


@pytest.mark.parametrize(
    ("shape", "kernel", "how", "way"),
    [
        pytest.param(*setting, way, id=f"{way}, {name}")
        for way, settings in {
            "_place_by_place": GROUPS,
            "_exchanged": SPREAD,
            "_in_order": IN_ORDER,
            "_by_products": PRODUCTS,
        }.items()
        for name, setting in settings.items()
    ],
)
@pytest.mark.usefixtures("x64")
def test_the_cotangent_of_w_is_that_of_xla(
    shape: tuple[int, ...], kernel: tuple[int, ...], how: Convolution, way: str
) -> None:
    x, _ = drawn(shape, kernel)
    g, window = cotangent(shape, kernel, how), kernel[:-2]
    assert convolving._kernel_on_cpu(x, g, how, window) is getattr(convolving, way)
    ways = (to_kernel, kernel_by_xla)
    dw, expected = quickly(lambda x, g: [way(x, g, how, window) for way in ways])(x, g)
    assert dw.shape == expected.shape
    assert_near(dw, expected, reduced=g.size)


def test_wide_products_in_one_group_are_those_of_xla() -> None:
    x, w = jnp.zeros((2, 5, 6, 8)), jnp.zeros((3, 3, 8, 32))
    assert convolving._neighbours(x, w, IMAGES) == 1
    way = convolving._kernel_on_cpu(x, jnp.zeros((2, 5, 6, 32)), IMAGES, (3, 3))
    assert way is convolving._in_order


@pytest.mark.parametrize("groups", [1, 8])
def test_on_other_platforms_all_is_that_of_xla(groups: int) -> None:
    """Few outputs or small groups, and the gradient of w, lowered for a GPU."""
    layer = conv.bind(padding="SAME", groups=groups)
    x, w = jnp.zeros((48, 14, 14, 32)), jnp.zeros((3, 3, 32 // groups, 8))

    def gradients(x: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
        y, saved = layer.forward(x, w)
        return layer.backward(saved, y)[:2]

    def lowered(platform: str) -> str:
        return jax.jit(gradients).trace(x, w).lower(lowering_platforms=(platform,)).as_text()

    on_gpu, on_cpu = lowered("cuda"), lowered("cpu")
    assert on_gpu.count("stablehlo.convolution") == 3
    assert "stablehlo.pad" not in on_gpu
    assert "stablehlo.pad" in on_cpu


@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf, jnp.nan])
def test_what_is_not_finite_reaches_those_that_see_it_alone(value: float) -> None:
    """Of few outputs neighbours share a window, and of groups padding is there, none of x."""
    for groups in (1, 2):
        x, w = replaced(normal(0, 2, 5, 6, 2), (0, 2, 3, 0), value), normal(1, 3, 3, 2 // groups, 2)
        how = replace(IMAGES, groups=groups)
        np.testing.assert_array_equal(np.isnan(convolved(x, w, how)), np.isnan(by_xla(x, w, how)))
        there = np.zeros((5, 6), bool)
        there[1:4, 2:5] = True
        touched = ~np.isfinite(convolved(x, w, how)).all(-1)[0]
        np.testing.assert_array_equal(touched, there)


@pytest.mark.parametrize("value", [jnp.inf, jnp.nan])
@pytest.mark.usefixtures("x64")
def test_padding_of_groups_is_no_factor_of_what_is_not_finite(value: float) -> None:
    """The first place of a window sees padding in the first row and the first column."""
    how = replace(IMAGES, groups=2)
    x, w = drawn((2, 5, 6, 2), (3, 3, 1, 2))
    bad_w = jnp.asarray(replaced(w, (0, 0, 0, 0), value))
    finite = np.isfinite(convolved(x, bad_w, how))[..., 0]
    assert finite[:, 0].all()
    assert finite[:, :, 0].all()
    assert not finite[:, 1:, 1:].any()
    g = cotangent((2, 5, 6, 2), (3, 3, 1, 2), how)
    bad_g = jnp.asarray(replaced(g, (0, 0, 0, 0), value))
    finite = np.isfinite(to_kernel(x, bad_g, how, (3, 3)))[..., 0, 0]
    np.testing.assert_array_equal(finite[:1], [[True] * 3])
    np.testing.assert_array_equal(finite[1:], [[True, False, False]] * 2)


@pytest.mark.parametrize("setting", [SPREAD["images"], PRODUCTS["images"]], ids=["spread", "many"])
@pytest.mark.parametrize("bad", ["x", "g"])
@pytest.mark.usefixtures("x64")
def test_the_cotangent_of_w_is_nan_where_that_of_xla_is(setting: tuple, bad: str) -> None:
    """An infinite number at a corner, which not every place of a window sees."""
    shape, kernel, how = setting
    (x, _), g = drawn(shape, kernel), cotangent(*setting)
    if bad == "x":
        x = jnp.asarray(replaced(x, (0,) * x.ndim, jnp.inf))
    else:
        g = jnp.asarray(replaced(g, (0,) * g.ndim, jnp.inf))
    dw, expected = to_kernel(x, g, how, kernel[:-2]), kernel_by_xla(x, g, how, kernel[:-2])
    np.testing.assert_array_equal(np.isnan(dw), np.isnan(expected))
    np.testing.assert_array_equal(np.isfinite(dw), np.isfinite(expected))
    assert np.isfinite(expected).any()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("groups", "outputs"),
    [(1, 6), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((1, 32), (32, 32)))],
)
def test_on_a_mesh_over_the_batch_gradients_are_those_without(
    kind: AxisType, groups: int, outputs: int
) -> None:
    """Side by side, by products, and of groups."""
    layer = conv.bind(padding="SAME", groups=groups)
    channels = 1 if outputs == 6 else 32
    x, w = normal(0, 48, 14, 14, channels), normal(1, 3, 3, channels // groups, outputs)
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(layer(x, w))), (0, 1)))
    expected = gradient(x, w)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.device_get(
            gradient(sharded, jax.device_put(w, NamedSharding(mesh, PartitionSpec())))
        )
    assert_near(got, jax.device_get(expected), reduced=48 * 14 * 14)


def test_examples_are_taken_in_equal_parts() -> None:
    assert convolving._examples(64, 196) == 8
    assert convolving._examples(7, 400) == 1
    assert convolving._examples(3, 100) == 3
    assert convolving._examples(0, 100) == 1
